//! What becomes of the objects of a volume that was lost: they go out of sight, whoever has pinned them.

use std::sync::atomic::Ordering;

use super::order::Change;
use super::{Index, State};
use crate::events::EventKind;
use crate::key::ObjectKey;
use crate::ledger::SaltId;

/// Entries that are looked at with a partition locked: callers wait for them.
const SWEEP_SLOTS: usize = 256;

impl Index {
    /// Whether a volume was lost; to be asked with a partition locked, so that the answer holds until it is unlocked.
    pub(super) fn is_lost(&self, volume: usize) -> bool {
        self.lost.load(Ordering::Acquire) & (1 << volume) != 0
    }

    /// From now on nothing is entered for this volume.
    pub(crate) fn lose(&self, volume: usize) {
        self.lost.fetch_or(1 << volume, Ordering::AcqRel);
    }

    /// Removes the objects of a lost volume. `free` is told of their bytes before their keys are free, with a partition locked. Those
    /// that are being loaded are doomed, and removed when their last load has ended; what is on its way out already, or still being
    /// stored, is for whoever is at it. Called once, after [`Self::lose`]. Gives how many are gone or doomed.
    pub(crate) fn sweep(&self, volume: usize, mut free: impl FnMut(&[(SaltId, u64)])) -> u64 {
        let mut gone = 0;
        let mut freed = Vec::new();
        for number in 0..self.partitions.len() {
            let mut from = 0;
            loop {
                let mut partition = self.partitions[number].lock();
                let end = partition.entries.len().min(from + SWEEP_SLOTS);
                let mut leaving = Vec::new();
                for slot in from..end {
                    // A slot that is free is not `Present`; it may say `Hinted`, and then its key does not lead to it.
                    let entry = &partition.entries[slot];
                    let (state, hash) = (entry.state, entry.hash);
                    let is_of_it = entry.origin.volume() == volume && matches!(state, State::Present | State::Hinted);
                    if !is_of_it || !partition.is_taken(slot as u32) {
                        continue;
                    }
                    gone += 1;
                    let entry = &mut partition.entries[slot];
                    entry.state = State::Doomed;
                    let is_loaded = entry.loads > 0;
                    if state == State::Hinted {
                        self.hints.fetch_sub(1, Ordering::Relaxed);
                    } else {
                        self.note(&partition, || Change::Remove(self.id(hash, slot as u32)));
                    }
                    if !is_loaded {
                        let entry = &partition.entries[slot];
                        freed.push((self.scopes[entry.scope as usize].salt, entry.bytes));
                        leaving.push(slot as u32);
                    }
                }
                free(&freed);
                freed.clear();
                for slot in leaving {
                    let (bytes, scope) = partition.vacate(slot);
                    self.objects.fetch_sub(1, Ordering::Relaxed);
                    let chunk = || partition.entries[slot as usize].chunk.clone();
                    let key = || ObjectKey::from_parts(self.scopes[scope as usize].scope.clone(), chunk());
                    self.hub.push(EventKind::Deleted, bytes, key);
                }
                if end == partition.entries.len() {
                    break;
                }
                from = end;
            }
        }
        gone
    }
}
