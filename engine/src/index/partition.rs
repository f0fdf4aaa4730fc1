//! The table of one partition: entries by slot, found by hash. Slots are used again; what is left in a free one means nothing.

use hashbrown::HashTable;

use super::Keyed;
use crate::config::VOLUMES_MAX;
use crate::key::ChunkHash;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Storing,
    /// The snapshot says that it is there, and nobody has looked yet; see `hints.rs`.
    Hinted,
    Present,
    /// On its way out: answers nothing, and goes when the last load has ended.
    Doomed,
}

pub(super) struct Entry {
    pub(super) hash: u64,
    pub(super) chunk: ChunkHash,
    pub(super) bytes: u64,
    /// Last use, in nanoseconds since 1970; the file's time where it was recovered.
    pub(super) used_ns: u64,
    pub(super) scope: u32,
    pub(super) pins: u32,
    pub(super) lease: u32,
    pub(super) loads: u16,
    pub(super) state: State,
    pub(super) origin: Origin,
}

/// Where an object's file is, and whether it was found there, not stored. One byte: an entry is paid a million times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin(u8);

impl Origin {
    const FOUND: u8 = 1 << 7;
    /// Known by its name alone: its size is what a snapshot says.
    const UNSEEN: u8 = 1 << 6;

    pub(super) fn stored(volume: usize) -> Self {
        Self(volume as u8)
    }

    pub(super) fn found(volume: usize) -> Self {
        Self(volume as u8 | Self::FOUND)
    }

    pub(super) fn unseen(volume: usize) -> Self {
        Self(volume as u8 | Self::FOUND | Self::UNSEEN)
    }

    pub(super) fn volume(self) -> usize {
        usize::from(self.0 & !(Self::FOUND | Self::UNSEEN))
    }

    pub(super) fn is_found(self) -> bool {
        self.0 & Self::FOUND != 0
    }

    pub(super) fn is_unseen(self) -> bool {
        self.0 & Self::UNSEEN != 0
    }

    /// Its file was looked at.
    pub(super) fn see(&mut self) {
        self.0 &= !Self::UNSEEN;
    }
}

const _: () = assert!(VOLUMES_MAX <= Origin::UNSEEN as usize);

/// An object that is held for its caller: its size, and the volume that has its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) bytes: u64,
    pub(crate) volume: usize,
}

const _: () = assert!(size_of::<Entry>() <= 88, "an entry is paid a million times");

#[derive(Default)]
pub(super) struct Partition {
    pub(super) table: HashTable<u32>,
    pub(super) entries: Vec<Entry>,
    pub(super) free: Vec<u32>,
    /// Changes with every removal, so that what was seen on disk before it is not entered after it.
    pub(super) epoch: u64,
    /// Whether the lists of eviction are told of changes.
    pub(super) is_ordered: bool,
}

impl Partition {
    pub(super) fn find(&self, hash: u64, scope: u32, chunk: &ChunkHash) -> Option<u32> {
        let entries = &self.entries;
        self.table
            .find(hash, |slot| {
                let entry = &entries[*slot as usize];
                entry.hash == hash && entry.scope == scope && entry.chunk == *chunk
            })
            .copied()
    }

    pub(super) fn get(&mut self, keyed: &Keyed) -> Option<&mut Entry> {
        let slot = self.slot(keyed)?;
        Some(&mut self.entries[slot as usize])
    }

    pub(super) fn slot(&self, keyed: &Keyed) -> Option<u32> {
        self.find(keyed.hash, keyed.scope, keyed.key.chunk_hash())
    }

    pub(super) fn insert(&mut self, entry: Entry) -> u32 {
        let hash = entry.hash;
        let slot = match self.free.pop() {
            Some(slot) => {
                self.entries[slot as usize] = entry;
                slot
            }
            None => {
                if self.entries.len() == self.entries.capacity() {
                    // An eighth instead of double: a million entries are held, not copied often.
                    self.entries.reserve_exact((self.entries.len() / 8).max(64));
                }
                self.entries.push(entry);
                (self.entries.len() - 1) as u32
            }
        };
        let entries = &self.entries;
        self.table.insert_unique(hash, slot, |slot| entries[*slot as usize].hash);
        slot
    }

    pub(super) fn remove(&mut self, keyed: &Keyed) -> Option<(u64, bool)> {
        let slot = self.slot(keyed)?;
        let (bytes, _) = self.vacate(slot);
        Some((bytes, self.entries[slot as usize].state == State::Doomed))
    }

    /// Whether a slot holds an entry, not what is left of one.
    pub(super) fn is_taken(&self, slot: u32) -> bool {
        self.table.find(self.entries[slot as usize].hash, |other| *other == slot).is_some()
    }

    /// Takes an entry out; gives its bytes and its scope.
    pub(super) fn vacate(&mut self, slot: u32) -> (u64, u32) {
        let hash = self.entries[slot as usize].hash;
        if let Ok(found) = self.table.find_entry(hash, |other| *other == slot) {
            found.remove();
        }
        self.free.push(slot);
        self.epoch += 1;
        let entry = &self.entries[slot as usize];
        (entry.bytes, entry.scope)
    }
}

impl Entry {
    pub(super) fn held(&self) -> Held {
        Held { bytes: self.bytes, volume: self.origin.volume() }
    }

    pub(super) fn live_pins(&self, now: u32) -> u32 {
        if self.lease.wrapping_sub(now) as i32 > 0 { self.pins } else { 0 }
    }
}
