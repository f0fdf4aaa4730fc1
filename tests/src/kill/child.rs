//! The process that is killed: many batches in flight, everything that comes back checked.

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use saltern::{DeleteReport, Durability, Engine, Error, Integrity, LoadReport, StoreReport, Ticket};

use super::journal::{Journal, Known};
use super::{KEYS, Mode, Volume, content, object};

const VARIABLE: &str = "SALTERN_KILL_WORK";

/// As they are numbered for the child.
const DURABILITIES: [Durability; 3] = [Durability::None, Durability::Data, Durability::Full];

/// Batches in flight.
const BATCHES: usize = 12;

/// What the parent tells its child.
pub(crate) struct Work {
    pub(crate) volume: Volume,
    pub(crate) seed: u64,
    pub(crate) journal: PathBuf,
}

impl Work {
    pub(crate) fn hand_over(&self, command: &mut Command) {
        let Volume { dir, layout, shards, durability, integrity, mode } = &self.volume;
        let durability = DURABILITIES.iter().position(|known| known == durability).expect("a known one");
        let fields = [
            dir.display().to_string(),
            layout.to_string(),
            shards.to_string(),
            durability.to_string(),
            u8::from(*integrity == Integrity::Verify).to_string(),
            (*mode as usize).to_string(),
            self.seed.to_string(),
            self.journal.display().to_string(),
        ];
        command.env(VARIABLE, fields.join("\n"));
    }

    fn take_over() -> Self {
        let text = std::env::var(VARIABLE).expect("started by the test that needs it");
        let mut fields = text.split('\n');
        let mut next = || fields.next().expect("eight fields");
        let volume = Volume {
            dir: next().into(),
            layout: next().parse().expect("a layout"),
            shards: next().parse().expect("a number"),
            durability: DURABILITIES[next().parse::<usize>().expect("a number")],
            integrity: if next() == "1" { Integrity::Verify } else { Integrity::Off },
            mode: Mode::ALL[next().parse::<usize>().expect("a number")],
        };
        Self { volume, seed: next().parse().expect("a number"), journal: next().into() }
    }
}

enum Flight {
    Store(Vec<u32>, Ticket<StoreReport>),
    Load(Vec<u32>, Ticket<LoadReport>),
    Delete(Vec<u32>, Ticket<DeleteReport>),
}

struct Worker {
    engine: Engine,
    mode: Mode,
    journal: Journal,
    rng: StdRng,
    flights: VecDeque<Flight>,
    /// Keys with a store or a delete in flight; no other is begun before it has ended.
    busy: BTreeSet<u32>,
}

/// Works on what its environment says, until it is killed.
///
/// # Panics
/// When something is wrong.
pub fn child() {
    // When the parent's test fails, nobody else ends this process.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).expect("prctl");
    let work = Work::take_over();
    let mut config = work.volume.config();
    config.capacity_bytes = work.volume.mode.capacity_bytes();
    let engine = Engine::open(config).expect("open");
    let mut journal = Journal::open(&work.journal);
    journal.begin();
    let rng = StdRng::seed_from_u64(work.seed);
    let mode = work.volume.mode;
    let mut worker = Worker { engine, mode, journal, rng, flights: VecDeque::new(), busy: BTreeSet::new() };
    loop {
        while worker.flights.len() < BATCHES {
            worker.submit();
        }
        worker.reap();
    }
}

impl Worker {
    fn submit(&mut self) {
        let kind = self.rng.random_range(0..10);
        let (stores, deletes) = self.mode.shares();
        let (is_store, changes) = (kind < stores, kind < stores + deletes);
        let count = self.rng.random_range(1..=if is_store { 8 } else { 4 });
        let mut keys: Vec<u32> = (0..count).map(|_| self.rng.random_range(0..KEYS)).collect();
        if changes {
            // Stores and deletes: keys that are free, each once.
            keys.retain(|n| self.busy.insert(*n));
            keys.iter().for_each(|n| self.journal.note(*n, Known::Unclear));
        }
        let flight = match (is_store, changes) {
            (true, _) => {
                let batch = keys.iter().map(|n| (object(*n).0, content(*n).into())).collect();
                let ticket = self.engine.store(batch);
                Flight::Store(keys, ticket)
            }
            (false, true) => {
                let named: Vec<_> = keys.iter().map(|n| object(*n).0).collect();
                let ticket = self.engine.delete(&named);
                Flight::Delete(keys, ticket)
            }
            (false, false) => {
                let batch = keys.iter().map(|n| (object(*n).0, vec![0; object(*n).1].into())).collect();
                let ticket = self.engine.load(batch);
                Flight::Load(keys, ticket)
            }
        };
        self.flights.push_back(flight);
    }

    /// Takes what is done; when nothing is, waits a moment for the oldest.
    fn reap(&mut self) {
        let before = self.flights.len();
        for _ in 0..before {
            let flight = self.flights.pop_front().expect("counted");
            self.take(flight, Duration::ZERO);
        }
        if self.flights.len() == before {
            let oldest = self.flights.pop_front().expect("there are some");
            self.take(oldest, Duration::from_millis(5));
        }
    }

    fn take(&mut self, flight: Flight, timeout: Duration) {
        match flight {
            Flight::Store(keys, mut ticket) => match ticket.wait_timeout(timeout) {
                None => self.flights.push_back(Flight::Store(keys, ticket)),
                Some(report) => {
                    for (n, result) in keys.iter().zip(report.results) {
                        match result {
                            Ok(bytes) => {
                                assert!(bytes == 0 || bytes == object(*n).1 as u64, "store of {n}: {bytes}");
                                self.know(*n, Known::Present);
                            }
                            Err(Error::Full { .. }) if self.mode.capacity_bytes().is_some() => {
                                self.journal.refuse(*n);
                                self.busy.remove(n);
                            }
                            Err(error) => panic!("store of {n}: {error}"),
                        }
                    }
                }
            },
            Flight::Delete(keys, mut ticket) => match ticket.wait_timeout(timeout) {
                None => self.flights.push_back(Flight::Delete(keys, ticket)),
                Some(report) => {
                    for (n, result) in keys.iter().zip(report.results) {
                        match result {
                            Ok(_) | Err(Error::NotFound) => self.know(*n, Known::Absent),
                            Err(Error::Pinned { .. }) => self.know(*n, Known::Present),
                            Err(error) => panic!("delete of {n}: {error}"),
                        }
                    }
                }
            },
            Flight::Load(keys, mut ticket) => match ticket.wait_timeout(timeout) {
                None => self.flights.push_back(Flight::Load(keys, ticket)),
                Some(report) => {
                    for ((n, result), buffer) in keys.iter().zip(report.results).zip(report.buffers) {
                        match result {
                            Ok(_) => assert!(buffer.expect("comes back").as_slice() == content(*n), "wrong bytes: {n}"),
                            Err(Error::NotFound) => {}
                            Err(error) => panic!("load of {n}: {error}"),
                        }
                    }
                }
            },
        }
    }

    fn know(&mut self, n: u32, known: Known) {
        self.journal.note(n, known);
        self.busy.remove(&n);
    }
}
