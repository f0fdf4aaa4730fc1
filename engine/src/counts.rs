//! Counters that all threads add to.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::status::Counters;

/// One counter. Relaxed: it orders nothing.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// As [`Counters`], still counting.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) lookup_hits: Count,
    pub(crate) lookup_misses: Count,
    pub(crate) loads: Count,
    pub(crate) load_misses: Count,
    pub(crate) load_errors: Count,
    pub(crate) loaded_bytes: Count,
    pub(crate) stores: Count,
    pub(crate) restores: Count,
    pub(crate) stores_refused: Count,
    pub(crate) stores_over_quota: Count,
    pub(crate) stores_not_admitted: Count,
    pub(crate) store_errors: Count,
    pub(crate) stored_bytes: Count,
    pub(crate) deletes: Count,
    pub(crate) deletes_refused: Count,
    pub(crate) evictions: Count,
    pub(crate) evicted_bytes: Count,
    pub(crate) quota_evictions: Count,
    pub(crate) evictions_in_use: Count,
    pub(crate) eviction_errors: Count,
    pub(crate) damaged: Count,
    pub(crate) twins: Count,
    pub(crate) lost_objects: Count,
    pub(crate) timeouts: Count,
    pub(crate) bounced_bytes: Count,
    pub(crate) recycled: Count,
    pub(crate) checksum_failures: Count,
}

impl Counts {
    /// A number that changes with everything that a snapshot of the index would show.
    pub(crate) fn changes(&self) -> u64 {
        let all = [&self.stores, &self.restores, &self.loads, &self.deletes, &self.evictions, &self.damaged];
        all.map(Count::get).iter().sum()
    }

    pub(crate) fn snapshot(&self, ledger_underflows: u64) -> Counters {
        Counters {
            lookup_hits: self.lookup_hits.get(),
            lookup_misses: self.lookup_misses.get(),
            loads: self.loads.get(),
            load_misses: self.load_misses.get(),
            load_errors: self.load_errors.get(),
            loaded_bytes: self.loaded_bytes.get(),
            stores: self.stores.get(),
            restores: self.restores.get(),
            stores_refused: self.stores_refused.get(),
            stores_over_quota: self.stores_over_quota.get(),
            stores_not_admitted: self.stores_not_admitted.get(),
            store_errors: self.store_errors.get(),
            stored_bytes: self.stored_bytes.get(),
            deletes: self.deletes.get(),
            deletes_refused: self.deletes_refused.get(),
            evictions: self.evictions.get(),
            evicted_bytes: self.evicted_bytes.get(),
            quota_evictions: self.quota_evictions.get(),
            evictions_in_use: self.evictions_in_use.get(),
            eviction_errors: self.eviction_errors.get(),
            damaged: self.damaged.get(),
            twins: self.twins.get(),
            lost_objects: self.lost_objects.get(),
            timeouts: self.timeouts.get(),
            bounced_bytes: self.bounced_bytes.get(),
            recycled: self.recycled.get(),
            checksum_failures: self.checksum_failures.get(),
            ledger_underflows,
        }
    }
}
