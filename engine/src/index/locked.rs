//! The whole index, held still for an exact replay.

use parking_lot::MutexGuard;

use super::{Entry, Index, Partition, State};
use crate::events::{Event, EventKind};
use crate::key::ObjectKey;

/// The whole index, held still.
pub(crate) struct Locked<'a> {
    index: &'a Index,
    partitions: Vec<MutexGuard<'a, Partition>>,
}

impl Locked<'_> {
    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.partitions
            .iter()
            .flat_map(|partition| partition.table.iter().map(|slot| &partition.entries[*slot as usize]))
    }

    /// The objects that were stored, not found, and the volume of each.
    pub(crate) fn own(&self) -> Vec<(ObjectKey, usize)> {
        let own = self.entries().filter(|entry| entry.state != State::Storing && !entry.origin.is_found());
        own.map(|entry| (self.key(entry), entry.origin.volume())).collect()
    }

    /// The keys' hashes of all objects of a volume.
    pub(crate) fn hashes(&self, volume: usize) -> Vec<u64> {
        self.entries().filter(|entry| entry.origin.volume() == volume).map(|entry| entry.hash).collect()
    }

    fn key(&self, entry: &Entry) -> ObjectKey {
        ObjectKey::from_parts(self.index.scopes[entry.scope as usize].scope.clone(), entry.chunk.clone())
    }

    /// Every object as an event, the least recently used first.
    pub(crate) fn snapshot(&self) -> Vec<Event> {
        let mut present: Vec<(u64, Event)> = Vec::with_capacity(self.index.objects() as usize);
        // What is doomed was announced, and its deletion will be.
        for entry in self.entries().filter(|entry| entry.state != State::Storing) {
            let kind = if entry.origin.is_found() { EventKind::Recovered } else { EventKind::Stored };
            let key = self.key(entry);
            present.push((entry.used_ns, Event { kind, key, bytes: entry.bytes }));
        }
        present.sort_by(|(a, x), (b, y)| a.cmp(b).then_with(|| x.key.chunk_hash().cmp(y.key.chunk_hash())));
        present.into_iter().map(|(_, event)| event).collect()
    }
}

impl Index {
    /// Stops all changes.
    pub(crate) fn lock_all(&self) -> Locked<'_> {
        Locked { index: self, partitions: self.partitions.iter().map(|partition| partition.lock()).collect() }
    }
}
