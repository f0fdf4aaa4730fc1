//! When retired files of a volume are clean: the syncs of its spares' directory, which all its shards share.
//!
//! ```text
//! retire: rename, then read the number of the last sync that began --> the file is clean when a later one has ended
//! sync:   try_begin -> fsync -> end
//! ```
//!
//! A sync that begins after a file's rename makes that rename durable, whichever shard asked for either. Syncs rest: on a device
//! whose flush takes long, or whose flush writes out all that it has cached, they would otherwise take the whole of its time. Where there
//! are loads they rest longer: a flush holds up every read that is in flight. What cannot be recycled meanwhile is made new, or waits in quarantine, within the bound of
//! spares.

use std::time::{Duration, Instant};

use super::sync::{AtomicBool, AtomicU64, Mutex, Ordering};

/// How long syncs rest, as a multiple of how long the last one took: with 15, a sixteenth of a device's time goes into them. On a
/// drive whose flush is cheap (0.1 ms) that rest is shorter than the time that a batch takes to come together.
pub(super) const REST: u32 = 15;

/// The same while objects are loaded: syncs take so little of the device's time then that the p99 of loads does not show them.
pub(super) const REST_BESIDE_LOADS: u32 = 400;

/// Loads are under way until none has ended for so long.
pub(super) const LOADS_LAST: Duration = Duration::from_secs(1);

/// Longest rest: what waits in quarantine is disk space that nobody uses.
pub(super) const REST_MAX: Duration = Duration::from_secs(30);

/// The number of a sync, counted from 1; 0 stands for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SyncNumber(u64);

/// See the module. Thread-safe; no call blocks for longer than a few memory accesses.
#[derive(Debug, Default)]
pub(crate) struct Quarantine {
    begun: AtomicU64,
    /// The last sync that ended well; those before it have ended, too.
    ended: AtomicU64,
    has_failed: AtomicBool,
    pace: Mutex<Pace>,
}

#[derive(Debug, Default)]
struct Pace {
    /// When the sync that runs began.
    running: Option<Instant>,
    /// When the last one ended, and how long it took.
    ended: Option<(Instant, Duration)>,
    /// Loads that had ended when somebody asked last, and when that number was first seen.
    loads: u64,
    loads_since: Option<Instant>,
}

impl Pace {
    fn rests_until(&mut self, now: Instant, loads: u64) -> Instant {
        if loads != self.loads {
            (self.loads, self.loads_since) = (loads, Some(now));
        }
        let has_loads = self.loads_since.is_some_and(|since| now < since + LOADS_LAST);
        let rest = if has_loads { REST_BESIDE_LOADS } else { REST };
        self.ended.map_or(now, |(ended, took)| ended + took.saturating_mul(rest).min(REST_MAX))
    }
}

impl Quarantine {
    /// What a file that has just been renamed waits for: the first sync that has a higher number.
    pub(crate) fn enter(&self) -> SyncNumber {
        // Either this sees that a sync has begun, and the file waits for the next; or the rename was before it.
        SyncNumber(self.begun.load(Ordering::SeqCst))
    }

    /// Files that entered with a lower number are clean.
    pub(crate) fn clean_below(&self) -> SyncNumber {
        SyncNumber(self.ended.load(Ordering::SeqCst))
    }

    /// Whether a sync has failed: nothing is clean any more that was not before.
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::SeqCst)
    }

    /// The right to sync now, if nobody does, and the rest after the last one is over; `loads` have ended so far. [`Self::end`] has to
    /// follow.
    pub(crate) fn try_begin(&self, now: Instant, loads: u64) -> Option<SyncNumber> {
        let mut pace = self.pace.lock();
        if pace.running.is_some() || now < pace.rests_until(now, loads) || self.has_failed() {
            return None;
        }
        pace.running = Some(now);
        Some(SyncNumber(self.begun.fetch_add(1, Ordering::SeqCst) + 1))
    }

    /// The sync has ended. Once one has failed, none begins any more.
    pub(crate) fn end(&self, number: SyncNumber, is_good: bool, now: Instant) {
        let mut pace = self.pace.lock();
        let took = pace.running.take().map_or(Duration::ZERO, |began| now.saturating_duration_since(began));
        pace.ended = Some((now, took));
        if is_good {
            self.ended.store(number.0, Ordering::SeqCst);
        } else {
            self.has_failed.store(true, Ordering::SeqCst);
        }
    }
}
