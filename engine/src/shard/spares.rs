//! Spares: files of deleted objects, kept to be overwritten in place.
//!
//! ```text
//! published --rename into .saltern/spares--> retired --directory synced--> clean --taken by a store--> published
//! ```
//!
//! Overwriting blocks that a file has already costs no allocation and no worker threads, so a store into a spare is several
//! times cheaper than one into a new file. The order matters for a power cut: a file may be overwritten only when
//! the rename that took its old name away is durable, or the crash would bring the old name back over new bytes. So
//! retired files wait in quarantine; one sync makes all of them clean that were retired before it began. Stores do
//! not wait for it: without a clean spare they make a new file.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use crate::volume::SyncNumber;

/// Retired files that start a sync. Fewer cost more syncs an object; more keep more disk space in quarantine.
const SYNC_BATCH: usize = 64;

/// Or this many retired bytes: of large objects, fewer are enough to pay for a sync.
const SYNC_BATCH_BYTES: u64 = 16 << 20;

/// A spare serves objects of this share of its size and more: a larger file would waste what it is cut by.
const FIT_SHARE: u64 = 2;

/// A file kept to be overwritten.
pub(super) struct Spare {
    /// Its name in `.saltern/spares`.
    pub(super) name: String,
    /// Length of the file.
    pub(super) bytes: u64,
    /// Open for writing, when it was.
    pub(super) fd: Option<Rc<OwnedFd>>,
}

/// The spares of one shard.
pub(super) struct Spares {
    limit: u64,
    bytes: u64,
    count: usize,
    clean: BTreeMap<u64, Vec<Spare>>,
    /// In quarantine, in the order in which they came, with the number that they came with.
    retired: VecDeque<(SyncNumber, Spare)>,
    retired_bytes: u64,
}

impl Spares {
    /// At most `limit` bytes; 0 keeps none.
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, bytes: 0, count: 0, clean: BTreeMap::new(), retired: VecDeque::new(), retired_bytes: 0 }
    }

    pub(super) fn is_on(&self) -> bool {
        self.limit > 0
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes of all spares, clean or not.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Whether a file of this length can be kept. Where the bound is reached, spares that nobody asks for make room:
    /// they are given to `remove`, the caller's, to be unlinked.
    pub(super) fn make_room(&mut self, bytes: u64, mut remove: impl FnMut(Spare)) -> bool {
        if bytes > self.limit {
            return false;
        }
        while self.bytes + bytes > self.limit {
            // Spares of this very size are as good as this file: then it goes itself, for one call instead of two.
            let Some(class) = self.clean.keys().copied().find(|class| *class != bytes) else { return false };
            match self.pop_clean(class) {
                Some(spare) => remove(spare),
                None => return false,
            }
        }
        true
    }

    /// Takes a file whose name has just been taken away, into quarantine; `entered` was asked for after that.
    pub(super) fn retire(&mut self, spare: Spare, entered: SyncNumber) {
        self.bytes += spare.bytes;
        self.count += 1;
        self.retired_bytes += spare.bytes;
        self.retired.push_back((entered, spare));
    }

    /// Takes a file whose old name is known to be gone for good.
    pub(super) fn adopt_clean(&mut self, spare: Spare) {
        self.bytes += spare.bytes;
        self.count += 1;
        self.clean.entry(spare.bytes).or_default().push(spare);
    }

    /// A clean spare for an object of this size: the smallest that holds it, else the largest that is not far from it.
    pub(super) fn take(&mut self, bytes: u64) -> Option<Spare> {
        let larger = self.clean.range(bytes..=bytes.saturating_mul(FIT_SHARE)).next();
        let smaller = || self.clean.range(bytes.div_ceil(FIT_SHARE)..bytes).next_back();
        let class = *larger.or_else(smaller)?.0;
        self.pop_clean(class)
    }

    fn pop_clean(&mut self, class: u64) -> Option<Spare> {
        let spares = self.clean.get_mut(&class)?;
        let spare = spares.pop();
        if spares.is_empty() {
            self.clean.remove(&class);
        }
        if let Some(spare) = &spare {
            self.bytes -= spare.bytes;
            self.count -= 1;
        }
        spare
    }

    /// Any clean spare, to be given back.
    pub(super) fn pop_any(&mut self) -> Option<Spare> {
        let class = *self.clean.keys().next_back()?;
        self.pop_clean(class)
    }

    /// What came into quarantine with a lower number is clean.
    pub(super) fn settle(&mut self, below: SyncNumber) {
        while self.retired.front().is_some_and(|(entered, _)| *entered < below)
            && let Some((_, spare)) = self.retired.pop_front()
        {
            self.retired_bytes -= spare.bytes;
            self.clean.entry(spare.bytes).or_default().push(spare);
        }
    }

    /// Whether a sync should begin: enough wait for it, or a store has just found no clean spare.
    pub(super) fn wants_sync(&self, missed: bool) -> bool {
        let enough = self.retired.len() >= SYNC_BATCH || self.retired_bytes >= SYNC_BATCH_BYTES;
        enough || (missed && !self.retired.is_empty())
    }

    /// A sync has failed: nothing is known of these files, and none is recycled any more.
    pub(super) fn fail_sync(&mut self) -> Vec<Spare> {
        (self.limit, self.retired_bytes) = (0, 0);
        let failed: Vec<_> = self.retired.drain(..).map(|(_, spare)| spare).collect();
        self.bytes -= failed.iter().map(|spare| spare.bytes).sum::<u64>();
        self.count -= failed.len();
        failed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::volume::Quarantine;

    fn spare(name: &str, bytes: u64) -> Spare {
        Spare { name: name.into(), bytes, fd: None }
    }

    #[test]
    fn a_retired_file_is_not_given_out_before_a_sync_that_began_later() {
        let quarantine = Quarantine::default();
        let now = Instant::now();
        let mut spares = Spares::new(1000);
        spares.retire(spare("a", 100), quarantine.enter());
        assert!(spares.take(100).is_none());
        assert!(!spares.wants_sync(false) && spares.wants_sync(true));
        let sync = quarantine.try_begin(now, 0).unwrap();
        spares.retire(spare("b", 100), quarantine.enter());
        quarantine.end(sync, true, now);
        spares.settle(quarantine.clean_below());
        assert_eq!(spares.take(100).map(|spare| spare.name), Some("a".into()));
        assert!(spares.take(100).is_none(), "b came after the sync had begun");
        assert_eq!((spares.bytes(), spares.count()), (100, 1));
    }

    #[test]
    fn the_nearest_size_is_taken_and_far_ones_are_not() {
        let mut spares = Spares::new(10_000);
        for (name, bytes) in [("a", 100), ("b", 150), ("c", 400)] {
            spares.adopt_clean(spare(name, bytes));
        }
        let mut take = |bytes| spares.take(bytes).map(|spare| spare.name);
        assert_eq!(take(120).as_deref(), Some("b"));
        assert_eq!(take(199).as_deref(), Some("a"));
        assert_eq!(take(199), None);
        assert_eq!(take(801), None);
        assert_eq!(take(800).as_deref(), Some("c"));
        assert_eq!((spares.bytes(), spares.count()), (0, 0));
    }

    #[test]
    fn the_bound_holds_and_other_sizes_make_room() {
        let mut spares = Spares::new(250);
        let mut removed = Vec::new();
        spares.adopt_clean(spare("a", 100));
        spares.adopt_clean(spare("b", 100));
        assert!(!spares.make_room(100, |spare| removed.push(spare.name)), "as good as those that are there");
        assert!(spares.make_room(200, |spare| removed.push(spare.name)));
        assert_eq!(removed, ["b", "a"]);
        spares.adopt_clean(spare("c", 100));
        assert!(!spares.make_room(251, |_| panic!("nothing goes for a file that never fits")));
    }

    #[test]
    fn after_a_failed_sync_nothing_is_kept() {
        let mut spares = Spares::new(1000);
        let quarantine = Quarantine::default();
        spares.retire(spare("a", 100), quarantine.enter());
        spares.retire(spare("b", 100), quarantine.enter());
        assert_eq!(spares.fail_sync().len(), 2);
        assert!(!spares.is_on() && !spares.make_room(1, |_| {}));
        assert_eq!((spares.bytes(), spares.count()), (0, 0));
    }

    /// Every sequence of so many steps is tried: nothing is given out that was not retired before a sync that has ended since,
    /// nothing twice, and the sums agree.
    #[test]
    fn in_every_order_what_is_given_out_is_clean() {
        const STEPS: u32 = 8;
        const KINDS: u32 = 5;
        for sequence in 0..KINDS.pow(STEPS) {
            let (mut spares, quarantine, now) = (Spares::new(1000), Quarantine::default(), Instant::now());
            let mut sync = None;
            let (mut retired, mut syncing, mut clean) = (Vec::new(), Vec::new(), Vec::new());
            for step in 0..STEPS {
                match sequence / KINDS.pow(step) % KINDS {
                    0 => {
                        let name = format!("{step}");
                        if spares.make_room(100, |_| panic!("there is room for all")) {
                            spares.retire(spare(&name, 100), quarantine.enter());
                            retired.push(name);
                        }
                    }
                    1 if spares.wants_sync(true) && sync.is_none() => {
                        sync = quarantine.try_begin(now, 0);
                        syncing.append(&mut retired);
                    }
                    2 if sync.is_some() => {
                        quarantine.end(sync.take().expect("it runs"), true, now);
                        spares.settle(quarantine.clean_below());
                        clean.append(&mut syncing);
                    }
                    3 if sync.is_some() && spares.is_on() => {
                        let failed = spares.fail_sync().len();
                        assert_eq!(failed, syncing.len() + retired.len());
                        (syncing, retired) = (Vec::new(), Vec::new());
                    }
                    4 => match spares.take(100) {
                        Some(spare) => {
                            let at = clean.iter().position(|name| *name == spare.name);
                            clean.remove(at.expect("what is given out is clean, and given out once"));
                        }
                        None => assert_eq!(clean, [""; 0], "clean ones are given out"),
                    },
                    _ => {}
                }
                let count = retired.len() + syncing.len() + clean.len();
                assert_eq!((spares.count(), spares.bytes()), (count, 100 * count as u64));
            }
        }
    }
}
