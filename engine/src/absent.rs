//! Keys that the disk did not have when it was asked, remembered for a moment: a host asks for the same missing keys
//! again and again, and each question would cost a system call.
//!
//! Only lookups use it. What this engine stores is in the index, which is asked first, so the only thing that a
//! remembered answer can hide, for as long as it is remembered, is a file that another program has made since.

use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;

/// Most keys that are remembered; past it the ones that were asked for longest ago are forgotten.
pub(crate) const ABSENT_MAX: usize = 65_536;

/// The keys, by their hash: another key of the same hash is a miss for a moment, which is all that can go wrong.
pub(crate) struct Absent {
    ttl: Duration,
    until: Mutex<LruCache<u64, Instant, foldhash::fast::RandomState>>,
}

impl Absent {
    /// Remembers each key for `ttl`; not at all when it is zero.
    pub(crate) fn new(ttl: Duration) -> Self {
        // The bound is kept by `remember`: given to the cache, it would allocate its whole table at once.
        Self { ttl, until: Mutex::new(LruCache::unbounded_with_hasher(foldhash::fast::RandomState::default())) }
    }

    /// The disk does not have this key.
    pub(crate) fn remember(&self, hash: u64) {
        let Some(until) = Instant::now().checked_add(self.ttl).filter(|_| !self.ttl.is_zero()) else { return };
        let mut keys = self.until.lock();
        keys.put(hash, until);
        if keys.len() > ABSENT_MAX {
            keys.pop_lru();
        }
    }

    /// Whether the disk was asked for this key a moment ago, and did not have it.
    pub(crate) fn knows(&self, hash: u64) -> bool {
        let mut keys = self.until.lock();
        match keys.peek(&hash) {
            Some(until) if *until > Instant::now() => true,
            Some(_) => {
                keys.pop(&hash);
                false
            }
            None => false,
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.until.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_remembered_for_their_time_and_no_longer() {
        let forever = Absent::new(Duration::from_secs(3600));
        forever.remember(1);
        assert!(forever.knows(1) && !forever.knows(2));
        let never = Absent::new(Duration::ZERO);
        never.remember(1);
        assert!(!never.knows(1));
        let nearly_never = Absent::new(Duration::from_nanos(1));
        nearly_never.remember(1);
        assert!(!nearly_never.knows(1));
        assert_eq!(nearly_never.len(), 0);
    }

    #[test]
    fn the_bound_holds_and_the_oldest_go() {
        let absent = Absent::new(Duration::from_secs(3600));
        (0..ABSENT_MAX as u64 + 10).for_each(|hash| absent.remember(hash));
        assert_eq!(absent.len(), ABSENT_MAX);
        assert!(!absent.knows(9) && absent.knows(10) && absent.knows(ABSENT_MAX as u64 + 9));
    }
}
