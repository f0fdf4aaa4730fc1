//! The quarantine under loom: its own code, with loom's atomics and locks, in every order that threads can take (within a bound of
//! preemptions, which `SALTERN_MODEL_CASES` lifts).
//!
//! Each shard renames files, asks for their numbers, and syncs when it may, as `Shard` does. A rename and what a sync sees of it go through a
//! lock: the kernel's of the directory.

use std::time::Instant;

use loom::sync::Arc;
use loom::thread;

use self::checked::Quarantine;

mod sync {
    pub(super) use loom::sync::MutexGuard;
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    /// As parking_lot's.
    #[derive(Debug, Default)]
    pub(super) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(super) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("not poisoned")
        }
    }
}

#[path = "quarantine.rs"]
#[expect(clippy::duplicate_mod, reason = "the code that is checked is the code that runs, over other locks")]
mod checked;

/// Switches of threads that are not forced, in one order.
const PREEMPTIONS: usize = 3;

const FILES: usize = 4;

/// One volume.
struct World {
    quarantine: Quarantine,
    /// The clock stands, so that no sync rests, and every run of an order is the same.
    now: Instant,
    /// Which files have lost their names, and of which of these that would survive a power cut.
    disk: sync::Mutex<([bool; FILES], [bool; FILES])>,
}

/// What a shard does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Asks for the number before the rename.
    EntersEarly,
    /// Its syncs fail.
    SyncFails,
}

impl World {
    /// Retires a file, and syncs if it may; gives whether the file may be overwritten.
    fn retire(&self, file: usize, fault: Fault) -> bool {
        let early = self.quarantine.enter();
        self.disk.lock().0[file] = true;
        let entered = if fault == Fault::EntersEarly { early } else { self.quarantine.enter() };
        if let Some(sync) = self.quarantine.try_begin(self.now, 0) {
            let renamed = self.disk.lock().0;
            let is_good = fault != Fault::SyncFails;
            if is_good {
                let durable = &mut self.disk.lock().1;
                durable.iter_mut().zip(renamed).for_each(|(durable, renamed)| *durable |= renamed);
            }
            self.quarantine.end(sync, is_good, self.now);
        }
        let is_clean = entered < self.quarantine.clean_below();
        assert!(!is_clean || self.disk.lock().1[file], "clean, and a power cut would bring its name back");
        is_clean
    }
}

/// Two shards with two files each.
fn check(first: Fault, second: Fault) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = std::env::var_os("SALTERN_MODEL_CASES").is_none().then_some(PREEMPTIONS);
    let now = Instant::now();
    model.check(move || {
        let (quarantine, disk) = (Quarantine::default(), sync::Mutex::default());
        let world = Arc::new(World { quarantine, now, disk });
        let other = world.clone();
        let shard = thread::spawn(move || [0, 1].map(|file| other.retire(file, second)));
        let mine = [2, 3].map(|file| world.retire(file, first));
        let theirs = shard.join().expect("it does not panic");
        if first == Fault::SyncFails && second == Fault::SyncFails {
            assert_eq!((mine, theirs), ([false; 2], [false; 2]), "nothing is clean");
            assert!(world.quarantine.has_failed() && world.quarantine.try_begin(now, 0).is_none());
        }
    });
}

#[test]
fn in_every_order_of_two_shards_what_is_clean_is_durable() {
    check(Fault::None, Fault::None);
}

#[test]
fn a_sync_that_fails_makes_nothing_clean() {
    check(Fault::None, Fault::SyncFails);
    check(Fault::SyncFails, Fault::SyncFails);
}

#[test]
#[should_panic(expected = "a power cut would bring its name back")]
fn the_model_finds_a_shard_that_asks_for_its_number_too_early() {
    check(Fault::EntersEarly, Fault::None);
}
