//! The shared byte accounting: total and by salt, committed and reserved. No I/O in it.
//!
//! One lock guards all sums, so that a snapshot is exact and the salts always add up to the total; callers
//! aggregate a batch into one [`Deltas`] before they take it. Amounts never go below zero: an attempt is a
//! defect of the caller, counted and logged, and changes nothing but the amount that is there.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

/// A salt as the ledger numbers it; valid for the ledger that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SaltId(u32);

/// Bytes in use at one moment. Never changes after it was taken.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AdapterUsage {
    /// Bytes of all objects.
    pub total_bytes_used: u64,
    /// The configured capacity; 0 when there is none.
    pub total_capacity_bytes: u64,
    /// Bytes by salt; salts without objects do not appear. Adds up to the total.
    pub bytes_by_salt: BTreeMap<Arc<str>, u64>,
    /// Used by capacity; -1 when there is no capacity.
    pub usage_fraction: f64,
}

/// There is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRoom {
    /// Bytes neither used nor reserved.
    pub free: u64,
    /// The capacity.
    pub capacity: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Change {
    used: i64,
    reserved: i64,
}

/// Changes of a batch, summed by salt before the shared state is touched.
#[derive(Debug, Default)]
pub struct Deltas(Vec<(SaltId, Change)>);

impl Deltas {
    /// No changes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there are no changes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets the changes, and keeps the memory for the next batch.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    fn change(&mut self, salt: SaltId) -> &mut Change {
        // A batch has few salts, mostly one: the last is looked at first.
        let at = self.0.iter().rposition(|(id, _)| *id == salt).unwrap_or_else(|| {
            self.0.push((salt, Change::default()));
            self.0.len() - 1
        });
        &mut self.0[at].1
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
}

#[derive(Debug, Default, Clone, Copy)]
struct Account {
    used: u64,
    reserved: u64,
}

#[derive(Default)]
struct State {
    total: Account,
    accounts: Vec<Account>,
    names: Vec<Arc<str>>,
    ids: HashMap<Arc<str>, SaltId>,
    underflows: u64,
}

/// The only truth about bytes in use. Thread-safe; no call blocks for longer than a few sums take.
pub struct Ledger {
    capacity: Option<u64>,
    state: Mutex<State>,
}

impl Ledger {
    /// An empty ledger with this capacity; `None` is no limit.
    pub fn new(capacity_bytes: Option<u64>) -> Self {
        Self { capacity: capacity_bytes, state: Mutex::default() }
    }

    /// The number of a salt, given on first sight.
    pub fn salt(&self, name: &str) -> SaltId {
        let mut state = self.state.lock();
        if let Some(id) = state.ids.get(name) {
            return *id;
        }
        let name: Arc<str> = name.into();
        let id = SaltId(u32::try_from(state.names.len()).expect("fewer than 2^32 salts"));
        state.names.push(name.clone());
        state.accounts.push(Account::default());
        state.ids.insert(name, id);
        id
    }

    /// Reserves room for one object, if it fits beside all that is used and reserved.
    ///
    /// # Errors
    /// [`NoRoom`]; nothing is reserved then.
    pub fn reserve(&self, salt: SaltId, bytes: u64) -> Result<(), NoRoom> {
        let mut state = self.state.lock();
        if let Some(capacity) = self.capacity {
            let free = capacity.saturating_sub(state.total.used.saturating_add(state.total.reserved));
            if bytes > free {
                return Err(NoRoom { free, capacity });
            }
        }
        state.total.reserved += bytes;
        state.accounts[salt.0 as usize].reserved += bytes;
        Ok(())
    }

    /// Enters the changes of a batch.
    pub fn apply(&self, deltas: &Deltas) {
        let state = &mut *self.state.lock();
        for (salt, change) in &deltas.0 {
            let account = &mut state.accounts[salt.0 as usize];
            // The total moves by what the salt moved, so that the sums stay equal even where a salt would underflow.
            let used = shift(&mut account.used, change.used, &mut state.underflows);
            let reserved = shift(&mut account.reserved, change.reserved, &mut state.underflows);
            state.total.used = state.total.used.wrapping_add_signed(used);
            state.total.reserved = state.total.reserved.wrapping_add_signed(reserved);
        }
    }

    /// Bytes in use, exact at the moment of the call.
    pub fn usage(&self) -> AdapterUsage {
        let state = self.state.lock();
        let used = state.total.used;
        let by_salt = state.names.iter().zip(&state.accounts).filter(|(_, account)| account.used > 0);
        AdapterUsage {
            total_bytes_used: used,
            total_capacity_bytes: self.capacity.unwrap_or(0),
            bytes_by_salt: by_salt.map(|(name, account)| (name.clone(), account.used)).collect(),
            usage_fraction: match self.capacity {
                None | Some(0) => -1.0,
                Some(capacity) => used as f64 / capacity as f64,
            },
        }
    }

    /// The configured capacity.
    pub fn capacity_bytes(&self) -> Option<u64> {
        self.capacity
    }

    /// Bytes used, and bytes reserved for stores in flight.
    pub fn totals(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.total.used, state.total.reserved)
    }

    /// Number of salts seen.
    pub fn salts(&self) -> u64 {
        self.state.lock().names.len() as u64
    }

    /// How often an amount would have gone below zero: 0, unless there is a defect.
    pub fn underflows(&self) -> u64 {
        self.state.lock().underflows
    }
}

/// Moves an amount, not below zero; gives what it moved by.
fn shift(amount: &mut u64, by: i64, underflows: &mut u64) -> i64 {
    let moved = match amount.checked_add_signed(by) {
        Some(sum) => {
            *amount = sum;
            by
        }
        None => {
            *underflows += 1;
            tracing::error!(amount, by, "ledger: an amount would go below zero; kept at zero");
            -(std::mem::take(amount) as i64)
        }
    };
    debug_assert!(moved >= by);
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(ledger: &Ledger) -> u64 {
        let usage = ledger.usage();
        assert_eq!(usage.bytes_by_salt.values().sum::<u64>(), usage.total_bytes_used);
        usage.total_bytes_used
    }

    #[test]
    fn reservations_keep_concurrent_stores_inside_the_capacity() {
        let ledger = Ledger::new(Some(100));
        let (a, b) = (ledger.salt("a"), ledger.salt("b"));
        assert_eq!(ledger.salt("a"), a);
        ledger.reserve(a, 60).unwrap();
        assert_eq!(ledger.reserve(b, 41), Err(NoRoom { free: 40, capacity: 100 }));
        ledger.reserve(b, 40).unwrap();
        assert_eq!(check(&ledger), 0);
        let mut deltas = Deltas::new();
        deltas.stored(a, 60);
        deltas.cancelled(b, 40);
        ledger.apply(&deltas);
        assert_eq!(check(&ledger), 60);
        assert_eq!(ledger.totals(), (60, 0));
        assert_eq!(ledger.usage().usage_fraction, 0.6);
        ledger.reserve(b, 40).unwrap();
    }

    #[test]
    fn what_was_recovered_may_exceed_the_capacity_and_blocks_stores() {
        let ledger = Ledger::new(Some(10));
        let salt = ledger.salt("");
        let mut deltas = Deltas::new();
        deltas.recovered(salt, 25);
        ledger.apply(&deltas);
        assert_eq!(ledger.usage().usage_fraction, 2.5);
        assert_eq!(ledger.reserve(salt, 0), Ok(()));
        assert_eq!(ledger.reserve(salt, 1), Err(NoRoom { free: 0, capacity: 10 }));
    }

    #[test]
    fn an_underflow_is_counted_and_leaves_the_other_salts_alone() {
        let ledger = Ledger::new(None);
        let (a, b) = (ledger.salt("a"), ledger.salt("b"));
        let mut deltas = Deltas::new();
        deltas.recovered(a, 5);
        deltas.recovered(b, 7);
        ledger.apply(&deltas);
        let mut wrong = Deltas::new();
        wrong.deleted(a, 6);
        ledger.apply(&wrong);
        assert_eq!(check(&ledger), 7);
        assert_eq!(ledger.underflows(), 1);
        assert_eq!(ledger.usage().usage_fraction, -1.0);
    }
}
