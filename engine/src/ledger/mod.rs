//! The shared byte accounting: total and by salt, committed and reserved, with capacities and quotas. No I/O in it.
//!
//! ```text
//! adapter: Ledger --+
//! adapter: Ledger --+--> one state: salts, quotas, sums by adapter and over all
//! ```
//!
//! One lock guards all sums, so that a snapshot is exact and the salts always add up to the total; callers
//! aggregate a batch into one [`Deltas`] before they take it. A reservation and a batch cost the same with one salt and with
//! 10,000: salts are numbers, given once. Amounts never go below zero: an attempt is a defect of the caller, counted in total and
//! by salt, logged, and changes nothing but the amount that is there.

mod deltas;
mod usage;

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

pub use deltas::Deltas;
use usage::fraction;
pub use usage::{AdapterUsage, SALT_PAGE_MAX, SaltPage, SaltUsage};

/// Stands for no quota.
const UNLIMITED: u64 = u64::MAX;

/// A salt as the ledger numbers it; valid for the state that gave it, through any of its adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SaltId(u32);

impl SaltId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// There is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRoom {
    /// Bytes neither used nor reserved.
    pub free: u64,
    /// The capacity, or the quota.
    pub capacity: u64,
}

/// Which bound a reservation would pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The adapter's capacity: another adapter may have room.
    Capacity(NoRoom),
    /// The capacity of all adapters together.
    Shared(NoRoom),
    /// The salt's quota.
    Quota(NoRoom),
}

#[derive(Debug, Default, Clone, Copy)]
struct Account {
    used: u64,
    reserved: u64,
}

impl Account {
    fn taken(self) -> u64 {
        self.used.saturating_add(self.reserved)
    }

    /// Enters a change, each amount not below zero; gives what they moved by, and how often one would have underflowed.
    fn shift(&mut self, used: i64, reserved: i64) -> (i64, i64, u64) {
        let (used, below) = shift(&mut self.used, used);
        let (reserved, below_too) = shift(&mut self.reserved, reserved);
        (used, reserved, u64::from(below) + u64::from(below_too))
    }

    fn moved(&mut self, used: i64, reserved: i64) {
        self.used = self.used.wrapping_add_signed(used);
        self.reserved = self.reserved.wrapping_add_signed(reserved);
    }
}

/// A salt over all adapters.
#[derive(Debug, Clone, Copy)]
struct Salt {
    account: Account,
    quota: u64,
    /// Whether the quota was set for this salt; else it follows the default.
    has_own_quota: bool,
    underflows: u64,
}

#[derive(Debug, Default)]
struct Adapter {
    capacity: Option<u64>,
    total: Account,
    salts: Vec<Account>,
}

struct State {
    adapters: Vec<Adapter>,
    /// Over all adapters.
    capacity: Option<u64>,
    total: Account,
    salts: Vec<Salt>,
    ids: HashMap<Arc<str>, SaltId>,
    default_quota: u64,
    underflows: u64,
}

impl State {
    fn capacity(&self) -> Option<u64> {
        self.capacity.or_else(|| self.adapters.iter().map(|adapter| adapter.capacity).sum())
    }
}

struct Shared {
    state: Mutex<State>,
    /// By number; read without the lock.
    names: boxcar::Vec<Arc<str>>,
}

/// One adapter's books. Thread-safe; no call blocks for longer than a few sums take, [`Ledger::usage`] for as long as
/// copying a number a salt takes.
///
/// ```
/// use saltern::ledger::{Deltas, Ledger};
/// let disk = Ledger::new(Some(1 << 30));
/// let salt = disk.salt("tenant-1");
/// disk.reserve(salt, 4096).expect("room");
/// let mut batch = Deltas::new();
/// batch.stored(salt, 4096);
/// disk.apply(&batch);
/// assert_eq!(disk.usage().bytes_by_salt["tenant-1"], 4096);
/// ```
pub struct Ledger {
    shared: Arc<Shared>,
    adapter: usize,
    capacity: Option<u64>,
}

impl Ledger {
    /// An empty state with one adapter of this capacity; `None` is no limit.
    pub fn new(capacity_bytes: Option<u64>) -> Self {
        Self::within(None, capacity_bytes)
    }

    /// As [`Ledger::new`], with a capacity for all adapters of the state together as well.
    pub fn within(shared_bytes: Option<u64>, capacity_bytes: Option<u64>) -> Self {
        let state = State {
            adapters: vec![Adapter { capacity: capacity_bytes, ..Adapter::default() }],
            capacity: shared_bytes,
            total: Account::default(),
            salts: Vec::new(),
            ids: HashMap::new(),
            default_quota: UNLIMITED,
            underflows: 0,
        };
        let shared = Shared { state: Mutex::new(state), names: boxcar::Vec::new() };
        Self { shared: Arc::new(shared), adapter: 0, capacity: capacity_bytes }
    }

    /// Another adapter on the same state: with a capacity of its own, with the salts and their quotas in common.
    pub fn join(&self, capacity_bytes: Option<u64>) -> Self {
        let mut state = self.shared.state.lock();
        let salts = vec![Account::default(); state.salts.len()];
        state.adapters.push(Adapter { capacity: capacity_bytes, total: Account::default(), salts });
        let adapter = state.adapters.len() - 1;
        Self { shared: self.shared.clone(), adapter, capacity: capacity_bytes }
    }

    /// The number of a salt, given on first sight.
    pub fn salt(&self, name: &str) -> SaltId {
        let mut state = self.shared.state.lock();
        if let Some(id) = state.ids.get(name) {
            return *id;
        }
        let name: Arc<str> = name.into();
        // Under the lock: numbers and places go up together.
        let id = SaltId(u32::try_from(self.shared.names.push(name.clone())).expect("fewer than 2^32 salts"));
        let quota = state.default_quota;
        state.salts.push(Salt { account: Account::default(), quota, has_own_quota: false, underflows: 0 });
        state.adapters.iter_mut().for_each(|adapter| adapter.salts.push(Account::default()));
        state.ids.insert(name, id);
        id
    }

    /// A salt's name.
    pub fn name(&self, salt: SaltId) -> &Arc<str> {
        &self.shared.names[salt.index()]
    }

    /// Reserves room for one object, if it fits beside all that is used and reserved: into the capacity of all, into this adapter's,
    /// and into the salt's quota.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is reserved then.
    pub fn reserve(&self, salt: SaltId, bytes: u64) -> Result<(), Refusal> {
        let state = &mut *self.shared.state.lock();
        let adapter = &mut state.adapters[self.adapter];
        let account = &mut state.salts[salt.index()];
        if let Some(capacity) = state.capacity {
            let free = capacity.saturating_sub(state.total.taken());
            if bytes > free {
                return Err(Refusal::Shared(NoRoom { free, capacity }));
            }
        }
        if let Some(capacity) = self.capacity {
            let free = capacity.saturating_sub(adapter.total.taken());
            if bytes > free {
                return Err(Refusal::Capacity(NoRoom { free, capacity }));
            }
        }
        if account.quota != UNLIMITED {
            let free = account.quota.saturating_sub(account.account.taken());
            if bytes > free {
                return Err(Refusal::Quota(NoRoom { free, capacity: account.quota }));
            }
        }
        account.account.reserved += bytes;
        state.total.reserved += bytes;
        adapter.total.reserved += bytes;
        adapter.salts[salt.index()].reserved += bytes;
        Ok(())
    }

    /// Makes a reservation another adapter's of the state, where that has room.
    ///
    /// # Errors
    /// Its capacity would be passed; nothing has changed then.
    pub fn hand_over(&self, to: &Self, salt: SaltId, bytes: u64) -> Result<(), NoRoom> {
        let state = &mut *self.shared.state.lock();
        if let Some(capacity) = to.capacity {
            let free = capacity.saturating_sub(state.adapters[to.adapter].total.taken());
            if bytes > free {
                return Err(NoRoom { free, capacity });
            }
        }
        // What this adapter does not have cannot move: the sums would not add up any more.
        let from = &mut state.adapters[self.adapter];
        let (_, moved, below) = from.salts[salt.index()].shift(0, -(bytes as i64));
        from.total.moved(0, moved);
        let to = &mut state.adapters[to.adapter];
        to.salts[salt.index()].moved(0, -moved);
        to.total.moved(0, -moved);
        state.salts[salt.index()].underflows += below;
        state.underflows += below;
        Ok(())
    }

    /// Enters the changes of a batch.
    pub fn apply(&self, deltas: &Deltas) {
        let state = &mut *self.shared.state.lock();
        let adapter = &mut state.adapters[self.adapter];
        for (id, change) in deltas.iter() {
            // The totals move by what the salt moved, so that the sums stay equal even where a salt would underflow.
            let (used, reserved, below) = adapter.salts[id.index()].shift(change.used, change.reserved);
            let salt = &mut state.salts[id.index()];
            salt.account.moved(used, reserved);
            state.total.moved(used, reserved);
            adapter.total.moved(used, reserved);
            if below > 0 {
                salt.underflows += below;
                state.underflows += below;
            }
        }
    }

    /// Bytes in use through this adapter, exact at the moment of the call.
    pub fn usage(&self) -> AdapterUsage {
        let state = self.shared.state.lock();
        let adapter = &state.adapters[self.adapter];
        let total = adapter.total.used;
        let used: Vec<u64> = adapter.salts.iter().map(|account| account.used).collect();
        drop(state);
        self.snapshot(total, self.capacity, used)
    }

    /// Bytes in use through all adapters of the state, and the capacity as [`Ledger::shared_capacity_bytes`] has it.
    pub fn shared_usage(&self) -> AdapterUsage {
        let state = self.shared.state.lock();
        let (capacity, total) = (state.capacity(), state.total.used);
        let used: Vec<u64> = state.salts.iter().map(|salt| salt.account.used).collect();
        drop(state);
        self.snapshot(total, capacity, used)
    }

    /// Names are added without the lock.
    fn snapshot(&self, total: u64, capacity: Option<u64>, used: Vec<u64>) -> AdapterUsage {
        let by_salt = used.into_iter().enumerate().filter(|(_, used)| *used > 0);
        AdapterUsage {
            total_bytes_used: total,
            total_capacity_bytes: capacity.unwrap_or(0),
            bytes_by_salt: by_salt.map(|(id, used)| (self.shared.names[id].clone(), used)).collect(),
            usage_fraction: fraction(total, capacity),
        }
    }

    /// Salts from number `from` on, at most `limit` of them and at most [`SALT_PAGE_MAX`], over all adapters. What is new
    /// meanwhile comes last, so that following `next` shows every salt once.
    pub fn page(&self, from: u64, limit: usize) -> SaltPage {
        let state = self.shared.state.lock();
        let total = state.salts.len();
        let start = usize::try_from(from).unwrap_or(total).min(total);
        let end = start.saturating_add(limit.min(SALT_PAGE_MAX)).min(total);
        let salts = state.salts[start..end].to_vec();
        drop(state);
        let name = |at: usize| self.shared.names[start + at].clone();
        let salts = salts.iter().enumerate().map(|(at, salt)| SaltUsage {
            salt: name(at),
            used_bytes: salt.account.used,
            reserved_bytes: salt.account.reserved,
            quota_bytes: (salt.quota != UNLIMITED).then_some(salt.quota),
            underflows: salt.underflows,
        });
        SaltPage {
            salts: salts.collect(),
            next: (end < total && end > start).then_some(end as u64),
            salts_total: total as u64,
        }
    }

    /// Sets the quota of one salt, over all adapters; `None` lets it follow the default again. What is over it stays: whoever
    /// evicts has to ask [`Ledger::over_quota`].
    pub fn set_quota(&self, salt: SaltId, bytes: Option<u64>) {
        let mut state = self.shared.state.lock();
        let default = state.default_quota;
        let salt = &mut state.salts[salt.index()];
        (salt.quota, salt.has_own_quota) = (bytes.unwrap_or(default), bytes.is_some());
    }

    /// Sets the quota of all salts that have none of their own; `None` is no limit.
    pub fn set_default_quota(&self, bytes: Option<u64>) {
        let mut state = self.shared.state.lock();
        let default = bytes.unwrap_or(UNLIMITED);
        state.default_quota = default;
        state.salts.iter_mut().filter(|salt| !salt.has_own_quota).for_each(|salt| salt.quota = default);
    }

    /// By how many bytes a salt would be over its quota with `more` bytes, reservations counted; 0 when it would not.
    pub fn over_quota(&self, salt: SaltId, more: u64) -> u64 {
        let salt = self.shared.state.lock().salts[salt.index()];
        if salt.quota == UNLIMITED { 0 } else { salt.account.taken().saturating_add(more).saturating_sub(salt.quota) }
    }

    /// Bytes reserved for stores of a salt in flight.
    pub fn reserved(&self, salt: SaltId) -> u64 {
        self.shared.state.lock().salts[salt.index()].account.reserved
    }

    /// All salts that are over their quota. Looks at every salt.
    pub fn all_over_quota(&self) -> Vec<SaltId> {
        let state = self.shared.state.lock();
        let over = state.salts.iter().enumerate().filter(|(_, salt)| salt.account.taken() > salt.quota);
        over.map(|(id, _)| SaltId(id as u32)).collect()
    }

    /// The configured capacity of this adapter.
    pub fn capacity_bytes(&self) -> Option<u64> {
        self.capacity
    }

    /// Bytes used, and bytes reserved for stores in flight, through this adapter.
    pub fn totals(&self) -> (u64, u64) {
        let total = self.shared.state.lock().adapters[self.adapter].total;
        (total.used, total.reserved)
    }

    /// The capacity of all adapters together: their own, or the sum of each one's where all have one.
    pub fn shared_capacity_bytes(&self) -> Option<u64> {
        self.shared.state.lock().capacity()
    }

    /// Bytes used, and bytes reserved for stores in flight, through all adapters.
    pub fn shared_totals(&self) -> (u64, u64) {
        let total = self.shared.state.lock().total;
        (total.used, total.reserved)
    }

    /// Number of salts: those seen, and those with a quota.
    pub fn salts(&self) -> u64 {
        self.shared.state.lock().salts.len() as u64
    }

    /// How often an amount would have gone below zero, of any salt: 0, unless there is a defect.
    pub fn underflows(&self) -> u64 {
        self.shared.state.lock().underflows
    }
}

/// Moves an amount, not below zero; gives what it moved by, and whether it would have gone below.
fn shift(amount: &mut u64, by: i64) -> (i64, bool) {
    match amount.checked_add_signed(by) {
        Some(sum) => {
            *amount = sum;
            (by, false)
        }
        None => {
            tracing::error!(amount, by, "ledger: an amount would go below zero; kept at zero");
            (-(std::mem::take(amount) as i64), true)
        }
    }
}

#[cfg(test)]
mod tests;
