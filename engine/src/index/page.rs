//! Walks over the index, page by page, for listings and snapshots.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Entry, Index, PARTITIONS, State};
use crate::key::{ObjectKey, Scope};
use crate::snapshot::Record;

/// Slots that a snapshot copies under one lock: some tens of microseconds.
const SNAPSHOT_SLOTS: usize = 1024;

/// Where a walk over the objects stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) partition: usize,
    pub(crate) slot: usize,
}

impl Index {
    /// Up to `limit` objects that `wanted` takes, from a place on, and the place after them; `None` at the end.
    ///
    /// What is there throughout a walk is seen once; what comes or goes meanwhile may be seen or not.
    pub(crate) fn page(
        &self,
        from: Place,
        limit: usize,
        wanted: impl Fn(&Scope) -> bool,
    ) -> (Vec<(ObjectKey, u64)>, Option<Place>) {
        let mut found = Vec::new();
        for partition in from.partition..PARTITIONS {
            let first = if partition == from.partition { from.slot } else { 0 };
            // A slot that is free is not `Present`: entries leave as `Storing`, `Hinted` or `Doomed`.
            let entries = &self.partitions[partition].lock().entries;
            for (slot, entry) in entries.iter().enumerate().skip(first) {
                let scope = &self.scopes[entry.scope as usize].scope;
                if entry.state != State::Present || !wanted(scope) {
                    continue;
                }
                if found.len() == limit {
                    return (found, Some(Place { partition, slot }));
                }
                found.push((ObjectKey::from_parts(scope.clone(), entry.chunk.clone()), entry.bytes));
            }
        }
        (found, None)
    }

    /// What a snapshot keeps of each object of a volume, the oldest use first, and the scopes that there are. Copied in short steps: what is there
    /// throughout is in it once, what comes or goes meanwhile may be.
    pub(crate) fn records(&self, volume: usize) -> (Vec<Arc<Scope>>, Vec<Record>) {
        let mut scopes: Vec<Arc<Scope>> = Vec::new();
        // The snapshot numbers those that have objects.
        let mut numbers: HashMap<u32, u32> = HashMap::new();
        let mut records = Vec::with_capacity(self.objects() as usize);
        let mut add = |entry: &Entry| {
            let scope = *numbers.entry(entry.scope).or_insert_with(|| {
                scopes.push(self.scopes[entry.scope as usize].scope.clone());
                scopes.len() as u32 - 1
            });
            let Entry { bytes, used_ns, .. } = *entry;
            records.push(Record { scope, chunk: entry.chunk.clone(), bytes, used_ns });
        };
        for partition in &self.partitions {
            let mut from = 0;
            loop {
                let entries = &partition.lock().entries;
                let Some(rest) = entries.get(from..).filter(|rest| !rest.is_empty()) else { break };
                let step = &rest[..rest.len().min(SNAPSHOT_SLOTS)];
                from += step.len();
                let is_there = |entry: &&Entry| entry.state == State::Present && entry.origin.volume() == volume;
                step.iter().filter(is_there).for_each(&mut add);
            }
        }
        records.sort_unstable_by(|a, b| (a.used_ns, &a.chunk).cmp(&(b.used_ns, &b.chunk)));
        (scopes, records)
    }
}
