//! What is going on when the power is cut: threads that store, delete and load objects, and a neighbour on the same file
//! system that syncs files of its own, so that the journal is committed at any moment.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::content::size_of;
use crate::error::{Doing, Error, Result};
use crate::history::History;
use crate::log::{LogReader, Position};

/// Objects in flight.
const THREADS: usize = 12;

/// One action of this many is a load.
const LOAD_ONE_OF: u32 = 6;

/// How often a store that finds no room is tried again: room that another thread is making is there soon.
const FULL_TRIES: usize = 2_000;
const FULL_STEP: Duration = Duration::from_millis(1);

/// The neighbour's pauses between two syncs: powers of two of a microsecond, so that there are stretches with many syncs and
/// stretches in which nobody but the store itself commits the journal.
const NEIGHBOUR_PAUSE_US_LOG2: std::ops::Range<f64> = 9.0..18.0;

/// Key numbers that a workload uses start here.
const FIRST_NUMBER: u64 = 1;

/// What a store did.
pub(crate) enum Stored {
    Done,
    Full,
}

/// What a delete did.
pub(crate) enum Deleted {
    Done,
    InUse,
}

/// What a load found.
pub(crate) enum Loaded {
    Right,
    Absent,
}

/// A store of objects under load. An error is a failure without any power cut.
pub(crate) trait Target: Sync {
    fn store(&self, number: u64) -> Result<Stored, String>;
    fn delete(&self, number: u64) -> Result<Deleted, String>;
    fn load(&self, number: u64) -> Result<Loaded, String>;
}

/// What the threads do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Stores only.
    Fresh,
    /// At capacity: each store displaces the oldest objects.
    Steady,
    /// As many deletes as stores, of objects of any age; deleted objects are stored again.
    DeleteHeavy,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Fresh => "fresh",
            Self::Steady => "steady",
            Self::DeleteHeavy => "delete-heavy",
        })
    }
}

/// How much is stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) mode: Mode,
    /// Bytes of live objects, at most; stored before the part of the log that is cut, except in [`Mode::Fresh`].
    pub(crate) capacity_bytes: u64,
    /// Bytes stored in the part that is cut.
    pub(crate) store_bytes: u64,
}

struct State {
    live: VecDeque<u64>,
    /// Includes objects on their way, not those that are being deleted.
    live_bytes: u64,
    deleted: Vec<u64>,
    next: u64,
    budget_bytes: u64,
}

enum Action {
    Store { number: u64, displaced: Vec<u64> },
    Delete(u64),
    Load(u64),
}

/// Runs workloads, one after the other, on targets that hold the same objects.
pub(crate) struct Driver<'a> {
    log: &'a LogReader,
    history: &'a History,
    state: Mutex<State>,
    failed: AtomicBool,
}

impl<'a> Driver<'a> {
    /// `found` are the objects that there are already.
    pub(crate) fn new(log: &'a LogReader, history: &'a History, found: &[u64]) -> Self {
        let state = State {
            live: found.iter().copied().collect(),
            live_bytes: found.iter().map(|number| size_of(*number)).sum(),
            deleted: Vec::new(),
            next: found.iter().max().map_or(FIRST_NUMBER, |highest| highest + 1),
            budget_bytes: 0,
        };
        Self { log, history, state: Mutex::new(state), failed: AtomicBool::new(false) }
    }

    fn position(&self) -> Result<Position> {
        self.log.position().doing("read the disk's position")
    }

    /// Runs one workload to its end. The neighbour writes into `root`.
    pub(crate) fn run(&self, target: &impl Target, plan: Plan, root: &Path, seed: u64) -> Result<()> {
        self.state.lock().budget_bytes = plan.store_bytes;
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let neighbour = scope.spawn(|| neighbour(root, seed, &done));
            let workers: Vec<_> = (0..THREADS as u64)
                .map(|number| {
                    scope.spawn(move || self.work(target, plan, SmallRng::seed_from_u64(seed ^ (number << 32))))
                })
                .collect();
            let worked =
                workers.into_iter().map(|worker| worker.join().expect("no panic")).collect::<Result<Vec<()>>>();
            done.store(true, Ordering::Relaxed);
            let lived = neighbour.join().expect("no panic");
            worked.and(lived)
        })
    }

    fn work(&self, target: &impl Target, plan: Plan, mut rng: SmallRng) -> Result<()> {
        while !self.failed.load(Ordering::Relaxed)
            && let Some(action) = self.next(plan, &mut rng)
        {
            if let Err(error) = self.act(target, action) {
                self.failed.store(true, Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(())
    }

    /// What to do next; `None` when all that was planned is stored.
    fn next(&self, plan: Plan, rng: &mut SmallRng) -> Option<Action> {
        let state = &mut *self.state.lock();
        if state.budget_bytes == 0 {
            return None;
        }
        if !state.live.is_empty() && rng.random_ratio(1, LOAD_ONE_OF) {
            return Some(Action::Load(state.live[rng.random_range(0..state.live.len())]));
        }
        if plan.mode == Mode::DeleteHeavy && !state.live.is_empty() && rng.random_bool(0.5) {
            let at = rng.random_range(0..state.live.len());
            let number = state.live.swap_remove_back(at).expect("in range");
            state.live_bytes -= size_of(number);
            return Some(Action::Delete(number));
        }
        let again = plan.mode == Mode::DeleteHeavy && !state.deleted.is_empty() && rng.random_bool(0.25);
        let number = if again {
            let at = rng.random_range(0..state.deleted.len());
            state.deleted.swap_remove(at)
        } else {
            state.next += 1;
            state.next - 1
        };
        let bytes = size_of(number);
        state.budget_bytes = state.budget_bytes.saturating_sub(bytes);
        state.live_bytes += bytes;
        let mut displaced = Vec::new();
        while state.live_bytes > plan.capacity_bytes
            && let Some(oldest) = state.live.pop_front()
        {
            state.live_bytes -= size_of(oldest);
            displaced.push(oldest);
        }
        Some(Action::Store { number, displaced })
    }

    fn act(&self, target: &impl Target, action: Action) -> Result<()> {
        match action {
            Action::Store { number, displaced } => {
                displaced.into_iter().try_for_each(|number| self.delete(target, number))?;
                self.store(target, number)
            }
            Action::Delete(number) => self.delete(target, number),
            Action::Load(number) => match target.load(number).map_err(Error::Workload)? {
                Loaded::Absent if !self.history.may_be_absent(number) => {
                    Err(Error::Workload(format!("a live object is absent: {}", self.history.tell(number))))
                }
                _ => Ok(()),
            },
        }
    }

    fn store(&self, target: &impl Target, number: u64) -> Result<()> {
        self.history.store_submitted(number, self.position()?);
        for _ in 0..FULL_TRIES {
            match target.store(number).map_err(Error::Workload)? {
                Stored::Done => {
                    self.history.stored(number, self.position()?);
                    self.state.lock().live.push_back(number);
                    return Ok(());
                }
                Stored::Full => std::thread::sleep(FULL_STEP),
            }
        }
        Err(Error::Workload(format!("no room for key {number}, of {} bytes", size_of(number))))
    }

    fn delete(&self, target: &impl Target, number: u64) -> Result<()> {
        self.history.delete_submitted(number, self.position()?);
        match target.delete(number).map_err(Error::Workload)? {
            Deleted::Done => {
                self.history.deleted(number, self.position()?);
                self.state.lock().deleted.push(number);
            }
            Deleted::InUse => {
                self.history.delete_refused(number);
                let state = &mut *self.state.lock();
                state.live_bytes += size_of(number);
                state.live.push_back(number);
            }
        }
        Ok(())
    }
}

/// Another program on the same file system.
fn neighbour(root: &Path, seed: u64, done: &AtomicBool) -> Result<()> {
    let mut rng = SmallRng::seed_from_u64(!seed);
    let file = File::create(root.join("neighbour")).doing("create the neighbour's file")?;
    let mut number: u64 = 0;
    while !done.load(Ordering::Relaxed) {
        file.write_all_at(&number.to_le_bytes(), number % 64 * 4096).doing("write the neighbour's file")?;
        file.sync_all().doing("sync the neighbour's file")?;
        number += 1;
        std::thread::sleep(Duration::from_micros(rng.random_range(NEIGHBOUR_PAUSE_US_LOG2).exp2() as u64));
    }
    Ok(())
}
