//! What the index gives to those who make room: victims, taken out of sight, and the seed of their order.

use super::order::{Change, Whose};
use super::{Entry, Held, Index, Keyed, PARTITIONS, Partition, State};
use crate::eviction::{Id, Object};
use crate::key::ObjectKey;

/// An object on its way out.
#[derive(Debug)]
pub(crate) struct Victim {
    pub(crate) keyed: Keyed,
    pub(crate) held: Held,
}

/// The answer to who should go.
#[derive(Debug)]
pub(crate) enum Found {
    Victim(Victim),
    /// There is nobody, or as many as were allowed were in use.
    Nobody,
}

impl Index {
    /// The number under which the lists of eviction know an entry: partitions in turn, so that numbers are dense.
    pub(super) fn id(&self, hash: u64, slot: u32) -> Id {
        slot * PARTITIONS as u32 + Self::partition_number(hash) as u32
    }

    /// Tells the lists of a change of an entry.
    pub(super) fn note(&self, partition: &Partition, change: impl FnOnce() -> Change) {
        if partition.is_ordered
            && let Some(order) = &self.order
        {
            order.note(change());
        }
    }

    /// An entry that has become an object.
    pub(super) fn note_insert(&self, partition: &Partition, slot: u32) {
        self.note(partition, || {
            let entry = &partition.entries[slot as usize];
            let salt = self.scopes[entry.scope as usize].salt;
            Change::Insert(self.object(entry, slot), salt)
        });
    }

    fn object(&self, entry: &Entry, slot: u32) -> Object {
        Object { id: self.id(entry.hash, slot), hash: entry.hash, bytes: entry.bytes }
    }

    /// Takes the next victim out of sight, as a delete does. Objects that are pinned or being loaded are passed over, at most
    /// `skips` of them (counted down); they are asked again after [`Self::resume_victims`].
    pub(crate) fn take_victim(&self, whose: Whose, skips: &mut usize) -> Found {
        let Some(order) = &self.order else { return Found::Nobody };
        let now = self.now_ticks();
        while *skips > 0
            && let Some(id) = order.with(|lists| lists.victim(whose)).flatten()
        {
            let (number, slot) = (id as usize % PARTITIONS, id as usize / PARTITIONS);
            let mut partition = self.partitions[number].lock();
            // Since it was asked for, it may have gone, and its number may be another's: then the lists say otherwise.
            let verdict = order.with(|lists| {
                let entry = &partition.entries[slot];
                if lists.victim(whose) != Some(id) {
                    return None;
                }
                assert_eq!(entry.state, State::Present, "the lists hold what is present");
                let in_use = entry.live_pins(now) > 0 || entry.loads > 0;
                if in_use {
                    lists.defer(id);
                } else {
                    lists.evict(id);
                }
                Some(in_use)
            });
            match verdict.flatten() {
                None => {}
                Some(true) => *skips -= 1,
                Some(false) => {
                    let entry = &mut partition.entries[slot];
                    entry.state = State::Doomed;
                    let known = &self.scopes[entry.scope as usize];
                    let key = ObjectKey::from_parts(known.scope.clone(), entry.chunk.clone());
                    let keyed = Keyed { key, salt: known.salt, hash: entry.hash, scope: entry.scope };
                    return Found::Victim(Victim { keyed, held: entry.held() });
                }
            }
        }
        Found::Nobody
    }

    /// Lets objects that were in use be victims again, as just used.
    pub(crate) fn resume_victims(&self) {
        if let Some(order) = &self.order {
            order.resume();
        }
    }

    /// From now on the lists hold what is present, ordered by the last use. Called once, when the scan has ended. Takes
    /// each partition's lock for a moment.
    pub(crate) fn start_order(&self) {
        let Some(order) = &self.order else { return };
        let mut seeds = Vec::with_capacity(self.objects() as usize);
        for partition in &self.partitions {
            let mut partition = partition.lock();
            partition.is_ordered = true;
            for slot in &partition.table {
                let entry = &partition.entries[*slot as usize];
                if entry.state == State::Present {
                    let salt = self.scopes[entry.scope as usize].salt;
                    seeds.push((entry.used_ns, self.object(entry, *slot), salt));
                }
            }
        }
        seeds.sort_unstable_by_key(|(used_ns, object, _)| (*used_ns, object.hash));
        order.seed(seeds.into_iter().map(|(_, object, salt)| (object, salt)));
    }
}
