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

use super::many::{Recount, Tally, by_partition};
use super::{Entered, Entry, Epoch, Held, Index, Keyed, Origin, PARTITIONS, Partition, State, hash_of};
use crate::discover::Seen;
use crate::events::EventKind;
use crate::key::{ObjectKey, Scope};
use crate::ledger::{Ledger, SaltId};
use crate::snapshot::Record;

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

    /// Enters hints of a volume, partition by partition. `count` is told of their bytes before anybody can settle them, with the partition
    /// locked. Listeners are not told: called before there can be any. Of what the scan has met already the time of use is taken over.
    /// Where they are vouched for, a file that is there needs no look. Gives how many objects of the volume the records have told of.
    pub(crate) fn add_hints(
        &self,
        volume: usize,
        scopes: &[HintScope],
        records: &[Record],
        is_vouched: bool,
        mut count: impl FnMut(&[(SaltId, u64)]),
    ) -> u64 {
        let scope_of = |record: &Record| &scopes[record.scope as usize];
        let hashes: Vec<u64> = records.iter().map(|record| record.chunk.hash64(scope_of(record).hash)).collect();
        let (mut told, mut added) = (0, Vec::new());
        let origin = if is_vouched { Origin::unseen(volume) } else { Origin::found(volume) };
        for group in by_partition(hashes.iter().copied()).chunk_by(|a, b| a.partition == b.partition) {
            let mut partition = self.partitions[group[0].partition as usize].lock();
            if self.is_lost(volume) {
                break;
            }
            for place in group {
                let (record, hash) = (&records[place.number as usize], hashes[place.number as usize]);
                let scope = scope_of(record);
                if let Some(slot) = partition.find(hash, scope.id, &record.chunk) {
                    told += u64::from(partition.entries[slot as usize].is_told(volume, record));
                    continue;
                }
                partition.insert(Entry {
                    hash,
                    chunk: record.chunk.clone(),
                    bytes: record.bytes,
                    used_ns: record.used_ns,
                    scope: scope.id,
                    pins: 0,
                    lease: 0,
                    loads: 0,
                    state: State::Hinted,
                    origin,
                });
                added.push((scope.salt, record.bytes));
            }
            told += added.len() as u64;
            self.objects.fetch_add(added.len() as u64, Ordering::Relaxed);
            self.hints.fetch_add(added.len() as u64, Ordering::Relaxed);
            count(&added);
            added.clear();
        }
        told
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
        recount: impl FnOnce(&[Recount]),
    ) -> Entered {
        let mut partition = self.partition(keyed.hash);
        // Without an entry somebody else has found that there is no file: that is looked at again, as for any absent key.
        let Some(slot) = partition.slot(keyed) else { return Entered::Stale };
        let mut tally = Tally::default();
        let entered = self.settle_in(&mut partition, slot, keyed, found, seen, &mut tally);
        self.tell(&mut tally, recount);
        entered
    }

    /// As [`Self::settle_hint`], with the partition locked; the caller tells the tally before it unlocks it.
    pub(super) fn settle_in(
        &self,
        partition: &mut Partition,
        slot: u32,
        keyed: &Keyed,
        found: Option<Seen>,
        seen: Epoch,
        tally: &mut Tally,
    ) -> Entered {
        let is_stale = partition.epoch != seen.0;
        let entry = &mut partition.entries[slot as usize];
        if entry.state != State::Hinted {
            return Entered::Known;
        }
        if is_stale || found.is_some_and(|found| self.is_lost(found.object.volume)) {
            return Entered::Stale;
        }
        let (from, to) = (entry.held(), found.map(|found| found.object));
        if to != Some(from) {
            tally.recounts.push(Recount { salt: keyed.salt, from: Some(from), to });
        }
        tally.hints -= 1;
        let Some(Seen { object: Held { bytes, volume }, modified_ns, is_unseen }) = found else {
            partition.vacate(slot);
            tally.objects -= 1;
            tally.push(&self.hub, EventKind::Deleted, from.bytes, keyed);
            return Entered::Gone;
        };
        entry.state = State::Present;
        entry.origin = if is_unseen { Origin::unseen(volume) } else { Origin::found(volume) };
        if bytes == from.bytes {
            entry.used_ns = entry.used_ns.max(modified_ns);
        } else {
            // Another object than the one whose use is remembered.
            (entry.bytes, entry.used_ns) = (bytes, modified_ns);
            tally.push(&self.hub, EventKind::Deleted, from.bytes, keyed);
            tally.push(&self.hub, EventKind::Recovered, bytes, keyed);
        }
        self.note_insert(partition, slot);
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

impl Entry {
    /// The object, if this is a hint that is vouched for, of a file on this volume.
    pub(super) fn vouches(&self, volume: usize) -> Option<Seen> {
        let is_vouched = self.state == State::Hinted && self.origin == Origin::unseen(volume);
        is_vouched.then(|| Seen { object: self.held(), modified_ns: 0, is_unseen: true })
    }

    /// Whether a record is of this object, which the scan has met before: then its use is remembered.
    fn is_told(&mut self, volume: usize, record: &Record) -> bool {
        let is_found = self.state == State::Present && self.origin.is_found() && self.origin.volume() == volume;
        if is_found && self.bytes == record.bytes {
            self.used_ns = self.used_ns.max(record.used_ns);
        }
        is_found
    }
}
