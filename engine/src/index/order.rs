//! In which order objects have to go, where the engine evicts: the policy, and the order of use inside each salt, fed by the
//! index's own changes under the lock of the partition that they happen in.
//!
//! ```text
//! scan --> entries with times of use --seed: sorted, oldest first--> lists --victim--> doomed
//! changes of entries, from the seed on ------------------------------^
//! ```
//!
//! Before the seed nothing is fed: a scan meets objects in the order of a directory. Changes made while the seed is sorted wait in
//! a queue, so that neither lookups nor loads wait for it.
//!
//! Lock order: a partition, then this.

use parking_lot::Mutex;

use crate::eviction::{Id, Object, Policy, PolicyKind, SaltOrder};
use crate::ledger::SaltId;

/// Whose objects are victims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// Anybody's, by the policy.
    All,
    /// One salt's, the least recently used first.
    Salt(SaltId),
}

/// A change of an object.
#[derive(Debug, Clone, Copy)]
pub(super) enum Change {
    Insert(Object, SaltId),
    Access(Id),
    Remove(Id),
}

/// The policy, and the order inside each salt.
pub(super) struct Lists {
    policy: Box<dyn Policy>,
    salts: SaltOrder,
}

impl Lists {
    pub(super) fn victim(&mut self, whose: Whose) -> Option<Id> {
        match whose {
            Whose::All => self.policy.victim(),
            Whose::Salt(salt) => self.salts.oldest(salt.index() as u32),
        }
    }

    pub(super) fn evict(&mut self, id: Id) {
        self.policy.evict(id);
        self.salts.remove(id);
    }

    pub(super) fn defer(&mut self, id: Id) {
        self.policy.defer(id);
        self.salts.defer(id);
    }

    fn enter(&mut self, change: Change) {
        match change {
            Change::Insert(object, salt) => {
                self.policy.insert(object);
                self.salts.insert(object.id, salt.index() as u32);
            }
            Change::Access(id) => {
                self.policy.access(id);
                self.salts.access(id);
            }
            Change::Remove(id) => {
                self.policy.remove(id);
                self.salts.remove(id);
            }
        }
    }
}

enum State {
    /// Until the seed is in: what has changed meanwhile.
    Waiting(Vec<Change>),
    Live(Lists),
}

/// See the module. Thread-safe; no call blocks for longer than a few memory accesses.
pub(super) struct Order {
    kind: PolicyKind,
    capacity: u64,
    state: Mutex<State>,
}

impl Order {
    pub(super) fn new(kind: PolicyKind, capacity_bytes: u64) -> Self {
        Self { kind, capacity: capacity_bytes, state: Mutex::new(State::Waiting(Vec::new())) }
    }

    /// Enters a change; the object's partition is locked.
    pub(super) fn note(&self, change: Change) {
        match &mut *self.state.lock() {
            State::Waiting(changes) => changes.push(change),
            State::Live(lists) => lists.enter(change),
        }
    }

    /// Takes what there is, oldest first, and from then on says what goes.
    pub(super) fn seed(&self, oldest_first: impl Iterator<Item = (Object, SaltId)>) {
        let mut lists = Lists { policy: self.kind.build(self.capacity), salts: SaltOrder::new() };
        oldest_first.for_each(|(object, salt)| lists.enter(Change::Insert(object, salt)));
        let mut state = self.state.lock();
        if let State::Waiting(changes) = &mut *state {
            changes.drain(..).for_each(|change| lists.enter(change));
            *state = State::Live(lists);
        }
    }

    /// Works with the lists; `None` before the seed.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Lists) -> T) -> Option<T> {
        match &mut *self.state.lock() {
            State::Waiting(_) => None,
            State::Live(lists) => Some(work(lists)),
        }
    }

    /// Those that were in use may be asked again.
    pub(super) fn resume(&self) {
        self.with(|lists| {
            lists.policy.resume();
            lists.salts.resume();
        });
    }
}
