//! A caller of the engine that knows what must be true: stores, deletes and loads at random, by seed, and a model that the
//! answers are held against. Answers may be errors; what they must not be is wrong.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::index::sample;
use rand::{Rng, SeedableRng};
use saltern::{Engine, Error, Layout, Ticket};
use saltern_tests::{Disk, WAIT_MAX, unfinished};

use crate::content::{bytes, key, size};

/// A key that only probes use.
const PROBE: u32 = 1 << 20;

/// Stores that may fail before the engine has to say what is wrong.
const PROBES: u32 = 20;

/// Answers that are remembered of an object.
const PAST: usize = 8;

/// What is known of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Present,
    Absent,
    /// Something has failed on the way.
    Unclear,
}

/// What a kind of trouble may do to objects that were stored well.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tolerance {
    /// Bytes change under way: a load may find a wrong checksum, and the object is dropped.
    pub corrupt: bool,
    /// The engine evicts: what was stored may be gone.
    pub evicts: bool,
}

/// See the module.
pub struct World {
    known: BTreeMap<u32, Known>,
    /// What was last answered of each, for who has to explain something bad.
    past: BTreeMap<u32, VecDeque<String>>,
    /// Present, as a load has found, but not acknowledged: their stores have failed.
    unpromised: BTreeSet<u32>,
    keys: u32,
    rng: StdRng,
    tolerance: Tolerance,
    /// What must not be.
    pub bad: Vec<String>,
    /// Of these, so many say when it was.
    dated: usize,
    /// Answers, and errors among them.
    pub answers: (u64, u64),
    /// Loads that were answered with a wrong checksum.
    pub corrupt: u64,
    /// The slowest load since somebody looked, and all of them.
    pub load_times: Vec<Duration>,
}

impl World {
    /// So many keys; nothing is stored.
    pub fn new(seed: u64, keys: u32, tolerance: Tolerance) -> Self {
        let known = (0..keys).map(|n| (n, Known::Absent)).collect();
        let rng = StdRng::seed_from_u64(seed);
        Self {
            known,
            past: BTreeMap::new(),
            unpromised: BTreeSet::new(),
            keys,
            rng,
            tolerance,
            bad: Vec::new(),
            dated: 0,
            answers: (0, 0),
            corrupt: 0,
            load_times: Vec::new(),
        }
    }

    /// Whether it makes sense to go on.
    fn is_over(&self) -> bool {
        self.bad.len() > 20
    }

    /// Says of what was bad since the last time when that was.
    pub fn date(&mut self, when: &str) {
        self.bad[self.dated..].iter_mut().for_each(|bad| *bad = format!("{when}: {bad}"));
        self.dated = self.bad.len();
    }

    fn report<R>(&mut self, what: &str, mut ticket: Ticket<R>) -> Option<R> {
        let report = ticket.wait_timeout(WAIT_MAX);
        if report.is_none() {
            self.bad.push(format!("a {what} did not complete within {WAIT_MAX:?}"));
        }
        report
    }

    /// A store, a delete and a load of some keys each, at once; so often.
    pub fn act(&mut self, engine: &Engine, rounds: u32) {
        for _ in 0..rounds {
            if self.is_over() {
                return;
            }
            let picked: Vec<u32> = sample(&mut self.rng, self.keys as usize, 12).iter().map(|n| n as u32).collect();
            let cuts = (self.rng.random_range(1..=6), self.rng.random_range(6..=9));
            let (stored, deleted, loaded) = (&picked[..cuts.0], &picked[cuts.0..cuts.1], &picked[cuts.1..]);
            let batch = stored.iter().map(|n| (key(*n), bytes(*n).into())).collect();
            let begun = Instant::now();
            let stores = engine.store(batch);
            let deletes = engine.delete(&deleted.iter().map(|n| key(*n)).collect::<Vec<_>>());
            let loads = engine.load(loaded.iter().map(|n| (key(*n), vec![0x5a; size(*n)].into())).collect());
            if let Some(report) = self.report("load", loads) {
                self.load_times.push(begun.elapsed());
                for ((n, result), buffer) in loaded.iter().zip(report.results).zip(report.buffers) {
                    self.loaded(*n, result, buffer.as_ref().map(|buffer| buffer.as_slice()));
                }
            }
            if let Some(report) = self.report("store", stores) {
                stored.iter().zip(report.results).for_each(|(n, result)| self.stored(*n, &result));
            }
            if let Some(report) = self.report("delete", deletes) {
                deleted.iter().zip(report.results).for_each(|(n, result)| self.deleted(*n, &result));
            }
        }
    }

    fn note(&mut self, n: u32, what: &str, result: &Result<u64, Error>) {
        self.answers.0 += 1;
        self.answers.1 += u64::from(result.is_err());
        let past = self.past.entry(n).or_default();
        if past.len() == PAST {
            past.pop_front();
        }
        past.push_back(match result {
            Ok(bytes) => format!("{what}: {bytes}"),
            Err(error) => format!("{what}: {error}"),
        });
    }

    fn past(&self, n: u32) -> String {
        self.past.get(&n).map(|past| past.iter().cloned().collect::<Vec<_>>().join(" | ")).unwrap_or_default()
    }

    fn stored(&mut self, n: u32, result: &Result<u64, Error>) {
        let known = self.known[&n];
        self.note(n, "store", result);
        let is_known = known == Known::Present && !self.tolerance.evicts;
        let now = match result {
            Ok(0) if known == Known::Absent && size(n) > 0 => {
                self.bad.push(format!("{n} was absent, and its store says that it is there"));
                Known::Present
            }
            Ok(stored) if *stored > 0 && (is_known || *stored != size(n) as u64) => {
                self.bad.push(format!("{n} was {known:?}, and its store says {stored} of {} bytes", size(n)));
                Known::Present
            }
            Ok(_) => {
                self.unpromised.remove(&n);
                Known::Present
            }
            Err(Error::Full { .. } | Error::OverQuota { .. } | Error::QueueFull { .. }) => known,
            Err(_) if known == Known::Present => known,
            Err(_) => Known::Unclear,
        };
        self.known.insert(n, now);
    }

    fn deleted(&mut self, n: u32, result: &Result<u64, Error>) {
        let known = self.known[&n];
        self.note(n, "delete", result);
        let now = match result {
            Ok(_) if known == Known::Absent => {
                self.bad.push(format!("{n} was absent, and was deleted"));
                Known::Absent
            }
            Err(Error::NotFound) if known == Known::Present && !self.tolerance.evicts => {
                self.bad.push(format!("{n} was there, and its delete did not find it"));
                Known::Absent
            }
            Ok(_) | Err(Error::NotFound) => Known::Absent,
            Err(Error::TimedOut { .. }) => Known::Unclear,
            Err(_) => known,
        };
        self.known.insert(n, now);
    }

    fn loaded(&mut self, n: u32, result: Result<u64, Error>, buffer: Option<&[u8]>) {
        let known = self.known[&n];
        self.note(n, "load", &result);
        self.corrupt += u64::from(matches!(result, Err(Error::Corrupt { .. })));
        let now = match result {
            Ok(_) => {
                if buffer != Some(&bytes(n)[..]) {
                    self.bad.push(format!("WRONG BYTES under {n}"));
                }
                if known == Known::Unclear {
                    self.unpromised.insert(n);
                }
                if known == Known::Absent {
                    self.bad.push(format!("{n} was deleted, and is back; {}", self.past(n)));
                }
                Known::Present
            }
            Err(Error::NotFound) => {
                if known == Known::Present && !self.tolerance.evicts {
                    self.bad.push(format!("{n} was acknowledged, and is gone; {}", self.past(n)));
                }
                Known::Absent
            }
            Err(Error::Corrupt { .. }) if self.tolerance.corrupt => Known::Unclear,
            Err(error @ (Error::Corrupt { .. } | Error::Damaged { .. } | Error::WrongSize { .. })) => {
                self.bad.push(format!("{n}: {error}"));
                Known::Unclear
            }
            Err(_) => known,
        };
        self.known.insert(n, now);
    }

    /// Waits until the engine has nothing in hand.
    pub fn settle(&mut self, engine: &Engine) {
        let start = Instant::now();
        loop {
            let status = engine.status();
            if status.queued_objects == 0 && status.reserved_bytes == 0 && status.evicting_objects == 0 {
                return;
            }
            if status.shards.iter().any(|shard| !shard.is_running) {
                self.bad.push(format!("a shard has failed: {:?}", status.problems));
                return;
            }
            if start.elapsed() > WAIT_MAX {
                let (queued, reserved) = (status.queued_objects, status.reserved_bytes);
                self.bad.push(format!("{queued} objects in hand and {reserved} bytes reserved after {WAIT_MAX:?}"));
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Everything that was acknowledged is there, and the books agree with the directory. There is no trouble any more.
    pub fn check(&mut self, engine: &Engine, dir: &Path, layout: Layout) {
        self.settle(engine);
        let all: Vec<u32> = self.known.keys().copied().collect();
        for part in all.chunks(32) {
            let batch = part.iter().map(|n| (key(*n), vec![0x5a; size(*n)].into())).collect();
            let Some(report) = self.report("load", engine.load(batch)) else { return };
            for ((n, result), buffer) in part.iter().zip(report.results).zip(report.buffers) {
                if let Err(error) = &result
                    && !matches!(error, Error::NotFound | Error::Corrupt { .. })
                {
                    self.bad.push(format!("{n}: no trouble any more, and yet: {error}"));
                }
                self.loaded(*n, result, buffer.as_ref().map(|buffer| buffer.as_slice()));
            }
        }
        self.books(engine, dir, layout);
    }

    /// The engine's accounts are those of the directory.
    pub fn books(&mut self, engine: &Engine, dir: &Path, layout: Layout) {
        self.settle(engine);
        let (usage, disk, status) = (engine.usage(), Disk::read(dir, layout), engine.status());
        let used: BTreeMap<String, u64> =
            usage.bytes_by_salt.iter().map(|(salt, bytes)| (salt.to_string(), *bytes)).collect();
        if usage.total_bytes_used != disk.bytes || used != disk.bytes_by_salt {
            self.bad.push(format!(
                "usage {} {used:?}, on disk {} {:?}",
                usage.total_bytes_used, disk.bytes, disk.bytes_by_salt
            ));
        }
        if status.objects != disk.files.len() as u64 {
            let names: BTreeSet<&str> = disk.files.keys().map(String::as_str).collect();
            self.bad.push(format!("{} objects, {} files: {names:?}", status.objects, disk.files.len()));
        }
        if status.counters.ledger_underflows > 0 {
            self.bad.push(format!("{} underflows of the ledger", status.counters.ledger_underflows));
        }
    }

    /// The engine works on, or says that it does not and why. A file system that has shut itself down is known by the
    /// number of its refusals.
    pub fn lives_or_says_why(&mut self, engine: &Engine) {
        let n = PROBE + self.rng.random_range(0..1000) * 10 + 5;
        let mut said = String::new();
        for _ in 0..PROBES {
            let Some(report) = self.report("store", engine.store(vec![(key(n), bytes(n).into())])) else { return };
            let status = engine.status();
            match (&report.results[0], &status.volumes[0].read_only) {
                (Ok(_), None) => {
                    let deleted = self.report("delete", engine.delete(&[key(n)]));
                    if deleted.is_none_or(|report| report.results[0].is_err()) {
                        self.bad.push(format!("{n}: there is no trouble any more, and a delete fails"));
                    }
                    return;
                }
                (Err(Error::ReadOnly { .. }), Some(_)) if !status.is_healthy && !status.problems.is_empty() => return,
                (result, read_only) => {
                    said = format!("{result:?}, status: read-only {read_only:?}, {:?}", status.problems);
                }
            }
        }
        self.bad.push(format!("there is no trouble any more, and {PROBES} stores fail, the last: {said}"));
    }

    /// What an engine that has just opened the directory must find, and must not.
    pub fn check_opened(&mut self, engine: &Engine, dir: &Path, layout: Layout) {
        let left = unfinished(dir);
        if !left.is_empty() {
            self.bad.push(format!("unfinished stores after a start: {left:?}"));
        }
        self.check(engine, dir, layout);
    }

    /// The file system was mounted again after a failure: what was not durable may be lost, and deletes, which never are, undone.
    pub fn lose(&mut self, is_durable: bool) {
        for (n, known) in &mut self.known {
            if *known != Known::Present || !is_durable || self.unpromised.contains(n) {
                *known = Known::Unclear;
            }
        }
    }

    /// Objects that are there for certain.
    pub fn present(&self) -> usize {
        self.known.values().filter(|known| **known == Known::Present).count()
    }
}
