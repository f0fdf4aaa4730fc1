//! Changes of a batch, summed by salt before the shared state is touched.

use std::collections::HashMap;

use super::SaltId;

/// Up to so many salts a batch is searched from its end; with more, an index is kept.
const SEARCHED_MAX: usize = 16;

/// What a batch changes for one salt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) used: i64,
    pub(super) reserved: i64,
}

/// The changes of a batch. Reused, it allocates only when a batch has more salts than any before.
#[derive(Debug, Default)]
pub struct Deltas {
    changes: Vec<(SaltId, Change)>,
    index: HashMap<SaltId, usize, foldhash::fast::RandomState>,
}

impl Deltas {
    /// No changes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there are no changes.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Forgets the changes, and keeps the memory for the next batch.
    pub fn clear(&mut self) {
        self.changes.clear();
        self.index.clear();
    }

    /// A reserved object was published.
    pub fn stored(&mut self, salt: SaltId, bytes: u64) {
        let change = self.change(salt);
        change.used += bytes as i64;
        change.reserved -= bytes as i64;
    }

    /// A reserved object was not published.
    pub fn cancelled(&mut self, salt: SaltId, bytes: u64) {
        self.change(salt).reserved -= bytes as i64;
    }

    /// An object was found on disk.
    pub fn recovered(&mut self, salt: SaltId, bytes: u64) {
        self.change(salt).used += bytes as i64;
    }

    /// An object is gone.
    pub fn deleted(&mut self, salt: SaltId, bytes: u64) {
        self.change(salt).used -= bytes as i64;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (SaltId, Change)> {
        self.changes.iter().copied()
    }

    fn change(&mut self, salt: SaltId) -> &mut Change {
        let at = self.find(salt).unwrap_or_else(|| self.add(salt));
        &mut self.changes[at].1
    }

    fn find(&self, salt: SaltId) -> Option<usize> {
        // A batch has few salts, mostly one: the last is looked at first.
        if self.index.is_empty() {
            return self.changes.iter().rposition(|(id, _)| *id == salt);
        }
        self.index.get(&salt).copied()
    }

    fn add(&mut self, salt: SaltId) -> usize {
        let at = self.changes.len();
        self.changes.push((salt, Change::default()));
        if at == SEARCHED_MAX {
            self.index.extend(self.changes.iter().enumerate().map(|(at, (id, _))| (*id, at)));
        } else if at > SEARCHED_MAX {
            self.index.insert(salt, at);
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_one_change_a_salt_whatever_their_number() {
        let mut deltas = Deltas::new();
        for salts in [1, SEARCHED_MAX, SEARCHED_MAX + 1, 1000] {
            for round in 0..3 {
                for salt in 0..salts {
                    let id = SaltId((salt as u32).wrapping_mul(7919));
                    deltas.recovered(id, 10 + round);
                    deltas.deleted(id, 1);
                }
            }
            assert_eq!(deltas.iter().count(), salts);
            assert!(deltas.iter().all(|(_, change)| change == Change { used: 30, reserved: 0 }));
            deltas.clear();
            assert!(deltas.is_empty() && deltas.iter().next().is_none());
        }
    }
}
