//! Walks over the index, page by page, for listings.

use super::{Index, PARTITIONS, State};
use crate::key::{ObjectKey, Scope};

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
            // A slot that is free is not `Present`: entries leave as `Storing` or `Doomed`.
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
}
