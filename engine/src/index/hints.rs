//! Hints: objects of which the snapshot says that they are there, before anybody has looked for their files.
//!
//! A hint is counted, in the ledger as in `objects`, and listeners hear of it as of any other object. To all that asks for objects it
//! is absent: while there are hints the index is not whole, and what it lacks is asked of the disk, by lookups, loads, stores and
//! deletes alike. Who has looked settles the hint: it becomes an object, of the size that was found, or goes.
//! So nothing is ever answered from a snapshot alone, however old it is.
//!
//! A hint is settled under the lock of its partition, the ledger's change with it: two who have looked at the same time count it once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Entered, Entry, Epoch, Held, Index, Keyed, Origin, PARTITIONS, State, hash_of};
use crate::discover::Seen;
use crate::events::EventKind;
use crate::key::{ChunkHash, ObjectKey, Scope};
use crate::ledger::{Ledger, SaltId};

/// What the index knows of a key, for those who are about to look at the disk.
pub(crate) enum Sight {
    /// Storing, an object, or on its way out: the disk has nothing to add.
    Known,
    /// For `insert_recovered` and `if_absent`.
    Absent(Epoch),
    /// For `settle_hint`.
    Hinted(Epoch),
}

/// A scope of a snapshot, resolved once for all its objects.
pub(crate) struct HintScope {
    id: u32,
    hash: u64,
    pub(crate) salt: SaltId,
}

impl Index {
    /// Makes room for so many hints at once: a million that move a few times cost more than the rest.
    pub(crate) fn expect_hints(&self, objects: usize) {
        // Hashes spread evenly, but not exactly.
        let share = objects / PARTITIONS + objects / PARTITIONS / 16;
        for partition in &self.partitions {
            let partition = &mut *partition.lock();
            let entries = &partition.entries;
            partition.table.reserve(share, |slot| entries[*slot as usize].hash);
            partition.entries.reserve_exact(share);
        }
    }

    /// Resolves the scope of hints.
    pub(crate) fn hint_scope(&self, scope: &Arc<Scope>, ledger: &Ledger) -> HintScope {
        let id = self.enter_scope(scope, ledger);
        HintScope { id, hash: scope.hash64(), salt: self.scopes[id as usize].salt }
    }

    /// Enters a hint; false when the key is there already. The ledger is told by the caller. Listeners are not: called before there
    /// can be any.
    pub(crate) fn add_hint(&self, scope: &HintScope, chunk: ChunkHash, object: Held, used_ns: u64) -> bool {
        let Held { bytes, volume } = object;
        let hash = chunk.hash64(scope.hash);
        let mut partition = self.partition(hash);
        if partition.find(hash, scope.id, &chunk).is_some() {
            return false;
        }
        partition.insert(Entry {
            hash,
            chunk,
            bytes,
            used_ns,
            scope: scope.id,
            pins: 0,
            lease: 0,
            loads: 0,
            state: State::Hinted,
            origin: Origin::found(volume),
        });
        self.objects.fetch_add(1, Ordering::Relaxed);
        self.hints.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// To be taken before the disk is looked at.
    pub(crate) fn sight(&self, keyed: &Keyed) -> Sight {
        let mut partition = self.partition(keyed.hash);
        let state = partition.get(keyed).map(|entry| entry.state);
        match state {
            None => Sight::Absent(Epoch(partition.epoch)),
            Some(State::Hinted) => Sight::Hinted(Epoch(partition.epoch)),
            Some(_) => Sight::Known,
        }
    }

    /// The file of a hint was looked for since `seen`: gives its size and time, if it is there. `recount` moves the key's bytes in the
    /// ledger, from one volume to another as well; it is called with the partition locked.
    pub(crate) fn settle_hint(
        &self,
        keyed: &Keyed,
        found: Option<Seen>,
        seen: Epoch,
        recount: impl FnOnce(Held, Option<Held>),
    ) -> Entered {
        let mut partition = self.partition(keyed.hash);
        // Without an entry somebody else has found that there is no file: that is looked at again, as for any absent key.
        let Some(slot) = partition.slot(keyed) else { return Entered::Stale };
        let is_stale = partition.epoch != seen.0;
        let entry = &mut partition.entries[slot as usize];
        if entry.state != State::Hinted {
            return Entered::Known;
        }
        if is_stale || found.is_some_and(|found| self.is_lost(found.object.volume)) {
            return Entered::Stale;
        }
        let held = entry.held();
        let before = held.bytes;
        self.hints.fetch_sub(1, Ordering::Relaxed);
        let Some(Seen { object, modified_ns }) = found else {
            recount(held, None);
            partition.remove(keyed);
            self.objects.fetch_sub(1, Ordering::Relaxed);
            self.hub.push(EventKind::Deleted, before, || keyed.key.clone());
            return Entered::Gone;
        };
        let bytes = object.bytes;
        recount(held, Some(object));
        (entry.state, entry.origin) = (State::Present, Origin::found(object.volume));
        if bytes == before {
            entry.used_ns = entry.used_ns.max(modified_ns);
        } else {
            // Another object than the one whose use is remembered.
            (entry.bytes, entry.used_ns) = (bytes, modified_ns);
            self.hub.push(EventKind::Deleted, before, || keyed.key.clone());
            self.hub.push(EventKind::Recovered, bytes, || keyed.key.clone());
        }
        self.note_insert(&partition, slot);
        Entered::New
    }

    /// Whether the snapshot told of this key, and nobody has looked yet.
    pub(crate) fn is_hint(&self, key: &ObjectKey) -> bool {
        if self.hints() == 0 {
            return false;
        }
        let Some(scope) = self.scope_id(key.scope()) else { return false };
        let hash = hash_of(key);
        let partition = self.partition(hash);
        let slot = partition.find(hash, scope, key.chunk_hash());
        slot.is_some_and(|slot| partition.entries[slot as usize].state == State::Hinted)
    }

    /// What the snapshot told of this key, if nobody has looked yet.
    pub(crate) fn hinted(&self, keyed: &Keyed) -> Option<Held> {
        if self.hints() == 0 {
            return None;
        }
        let mut partition = self.partition(keyed.hash);
        partition.get(keyed).filter(|entry| entry.state == State::Hinted).map(|entry| entry.held())
    }

    /// Hints that nobody has settled.
    pub(crate) fn hints(&self) -> u64 {
        self.hints.load(Ordering::Relaxed)
    }

    /// The hints of one of [`PARTITIONS`]; `None` past the last.
    pub(crate) fn hints_of(&self, partition: usize) -> Option<Vec<Keyed>> {
        let partition = self.partitions.get(partition)?.lock();
        let entries = partition.table.iter().map(|slot| &partition.entries[*slot as usize]);
        let hints = entries.filter(|entry| entry.state == State::Hinted).map(|entry| {
            let known = &self.scopes[entry.scope as usize];
            let key = ObjectKey::from_parts(known.scope.clone(), entry.chunk.clone());
            Keyed { key, salt: known.salt, hash: entry.hash, scope: entry.scope }
        });
        Some(hints.collect())
    }
}
