//! Making room, where the engine evicts: who goes, and which stores wait for it.
//!
//! ```text
//! store, does not fit --> waiting --+                         +--> home shard: file to the spares, index, ledger
//! ledger has grown, a quota is set --+--> plan: victims, doomed -+                                            |
//!                      ^----------------------------------------------- room is free: stores go on ------------+
//! ```
//!
//! A plan is made by whoever changed something, on its own thread; it takes no longer than a few victims take. It asks first
//! for the salts that are over their quota, with their own oldest, then for the watermark, by the policy. At most
//! [`EVICTING_MAX`] victims are on their way at a time; each that is gone makes the next plan. What is on its way counts as gone
//! already, what waits as if it were there, so that no more goes than has to.
//!
//! Bounds: waiting stores are among the queued objects (`max_queued_objects`); they are refused when nobody can go, nobody is
//! going, and no store is in flight that could go later. Lock order: this, then the index, then the ledger; callers are answered without it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

use crate::config::{Config, Eviction};
use crate::core::Core;
use crate::error::Error;
use crate::eviction::PolicyKind;
use crate::index::{Found, Victim, Whose};
use crate::ledger::{NoRoom, Refusal, SaltId};
use crate::shard::{Command, EvictOp, StoreOp};

/// Victims on their way, at most: more would be out of sight long before their room is needed.
const EVICTING_MAX: u64 = 256;

/// Victims of one plan: it runs on threads that have other things to do.
const PLAN_VICTIMS: usize = 32;

/// Objects in use that one plan passes over, at most. Then the stores that wait are refused; later plans go on behind them.
const PLAN_SKIPS: usize = 4096;

/// What one salt waits for.
#[derive(Default)]
struct Need {
    stores: VecDeque<StoreOp>,
    store_bytes: u64,
    /// Bytes of its objects that are on their way out.
    evicting_bytes: u64,
}

#[derive(Default)]
struct Plan {
    needs: HashMap<SaltId, Need>,
    waiting_bytes: u64,
    /// Salts that may be over their quota without a store that waits.
    suspects: HashSet<SaltId>,
    evicting_bytes: u64,
    /// Below the watermark, and not yet by the ratio.
    is_draining: bool,
    /// A caller wants the use to go down to this.
    goal: Option<u64>,
    /// A store that waits fits into the capacity of all volumes, but on none of them.
    is_stuck: bool,
    /// An eviction has failed: what waits is not held up by more attempts.
    has_failed: bool,
    is_closed: bool,
}

/// A victim that was dealt with.
pub(crate) struct Evicted {
    pub(crate) salt: SaltId,
    pub(crate) bytes: u64,
    pub(crate) is_gone: bool,
}

/// An answer to a store that waited in vain.
type Refused = (StoreOp, Error);

/// What a plan has to tell when its lock is gone.
#[derive(Default)]
struct Outcome {
    refused: Vec<Refused>,
    to_wake: u64,
}

/// See the module. Thread-safe.
#[derive(Default)]
pub(crate) struct Room {
    /// Used and reserved bytes above which objects go, and down to which; `None` where the host evicts.
    marks: Option<(u64, u64)>,
    plan: Mutex<Plan>,
    /// Whether a change of the ledger needs a plan whatever the watermark says.
    is_wanted: AtomicBool,
    evicting: AtomicU64,
    waiting: AtomicU64,
    settled: Condvar,
}

impl Room {
    pub(crate) fn new(config: &Config) -> Self {
        Self { marks: marks(config), ..Self::default() }
    }

    /// The policy and the bytes that it is for.
    pub(crate) fn policy(config: &Config) -> Option<(PolicyKind, u64)> {
        let Eviction::Engine { policy, .. } = config.eviction else { return None };
        marks(config).map(|(high, _)| (policy, high))
    }

    /// Whether the engine evicts.
    pub(crate) fn is_on(&self) -> bool {
        self.marks.is_some()
    }

    /// Victims that are not removed yet.
    pub(crate) fn evicting(&self) -> u64 {
        self.evicting.load(Ordering::Relaxed)
    }

    /// Stores that wait.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// Bytes above which objects go, and down to which.
fn marks(config: &Config) -> Option<(u64, u64)> {
    let Eviction::Engine { watermark, ratio, .. } = config.eviction else { return None };
    let share = |share: f64| config.capacity_bytes.map(|capacity| (capacity as f64 * share) as u64);
    share(watermark).zip(share(watermark - ratio))
}

impl Core {
    /// Reserves the bytes of a claimed store, if it is admitted. What is not, or does not fit, and cannot wait for room, comes back with the reason; its claim
    /// is given up. A store that waits is handed to its shard when there is room.
    pub(crate) fn reserve(&self, mut op: StoreOp) -> Reserved {
        if let Some(admission) = &self.admission
            && let Err(error) = admission.admit(op.keyed.hash())
        {
            self.counts.stores_not_admitted.add(1);
            self.index.abort_store(&op.keyed);
            return Reserved::Never(op, error);
        }
        let bytes = op.buffer.len() as u64;
        match self.reserve_somewhere(&op) {
            Ok(volume) => {
                (op.claimed, op.volume) = (true, volume);
                Reserved::Now(op)
            }
            Err(Refusal::Capacity(room) | Refusal::Shared(room) | Refusal::Quota(room))
                if self.room.is_on() && bytes <= room.capacity =>
            {
                self.wait_for_room(op)
            }
            Err(refusal) => {
                self.index.abort_store(&op.keyed);
                Reserved::Never(op, self.refused(bytes, refusal))
            }
        }
    }

    /// Reserves a store's bytes on the first volume of its name that has room.
    fn reserve_somewhere(&self, op: &StoreOp) -> Result<usize, Refusal> {
        // One volume is always up, and says.
        let (mut passed, mut refused) = (0, None);
        while let Some(volume) = self.volumes.place(&op.name, passed) {
            match self.volumes[volume].ledger.reserve(op.keyed.salt, op.buffer.len() as u64) {
                Ok(()) => return Ok(volume),
                Err(refusal @ Refusal::Capacity(_)) => refused = refused.or(Some(refusal)),
                Err(refusal) => return Err(refusal),
            }
            passed |= 1 << volume;
        }
        Err(refused.unwrap_or(Refusal::Capacity(NoRoom { free: 0, capacity: 0 })))
    }

    /// Moves a claimed store's bytes to the next volume of its name, other than those `passed`; gives it, when there is one.
    pub(crate) fn move_reservation(&self, op: &StoreOp, mut passed: u64) -> Option<usize> {
        let ledger = &self.volumes[op.volume].ledger;
        while let Some(next) = self.volumes.place(&op.name, passed) {
            if ledger.hand_over(&self.volumes[next].ledger, op.keyed.salt, op.buffer.len() as u64).is_ok() {
                return Some(next);
            }
            passed |= 1 << next;
        }
        None
    }

    fn wait_for_room(&self, op: StoreOp) -> Reserved {
        let mut plan = self.room.plan.lock();
        if plan.is_closed {
            self.index.abort_store(&op.keyed);
            return Reserved::Never(op, Error::Closed);
        }
        let bytes = op.buffer.len() as u64;
        plan.waiting_bytes += bytes;
        let need = plan.needs.entry(op.keyed.salt).or_default();
        need.store_bytes += bytes;
        need.stores.push_back(op);
        self.room.waiting.fetch_add(1, Ordering::Relaxed);
        self.room.is_wanted.store(true, Ordering::Relaxed);
        drop(plan);
        self.make_room();
        Reserved::Later
    }

    /// The ledger has changed: room may be needed, or be there.
    pub(crate) fn ledger_changed(&self) {
        let Some((high, _)) = self.room.marks else { return };
        if !self.room.is_wanted.load(Ordering::Relaxed) {
            let (used, reserved) = self.ledger().shared_totals();
            if used + reserved <= high {
                return;
            }
        }
        self.make_room();
    }

    /// These salts may be over their quota.
    pub(crate) fn suspect(&self, salts: impl IntoIterator<Item = SaltId>) {
        if self.room.is_on() {
            self.room.plan.lock().suspects.extend(salts);
            self.room.is_wanted.store(true, Ordering::Relaxed);
            self.make_room();
        }
    }

    /// Victims have gone, and the ledger knows; or they could not go.
    pub(crate) fn evicted(&self, ended: &[Evicted]) {
        let mut plan = self.room.plan.lock();
        for Evicted { salt, bytes, is_gone } in ended {
            plan.evicting_bytes -= bytes;
            if let Some(need) = plan.needs.get_mut(salt) {
                need.evicting_bytes -= bytes;
            }
            plan.has_failed |= !is_gone;
        }
        self.room.evicting.fetch_sub(ended.len() as u64, Ordering::Relaxed);
        drop(plan);
        self.make_room();
    }

    /// Evicts until at most `bytes` are used and reserved, or nothing more can go. Blocks.
    pub(crate) fn evict_down_to(&self, bytes: u64) {
        let mut plan = self.room.plan.lock();
        plan.goal = Some(plan.goal.map_or(bytes, |goal| goal.min(bytes)));
        drop(plan);
        self.make_room();
        let mut plan = self.room.plan.lock();
        while plan.goal.is_some() && !plan.is_closed {
            self.room.settled.wait(&mut plan);
        }
    }

    /// Makes a plan, and carries it out as far as that needs no I/O.
    pub(crate) fn make_room(&self) {
        if !self.room.is_on() {
            return;
        }
        let mut outcome = Outcome::default();
        let mut plan = self.room.plan.lock();
        if !plan.is_closed {
            Planner { core: self, plan: &mut plan, out: &mut outcome, victims: PLAN_VICTIMS, skips: PLAN_SKIPS }.run();
        }
        drop(plan);
        self.tell(outcome);
    }

    /// Ends all waiting.
    pub(crate) fn close_room(&self) {
        let mut outcome = Outcome::default();
        let mut plan = self.room.plan.lock();
        plan.is_closed = true;
        for (_, mut need) in plan.needs.drain() {
            outcome.refused.extend(need.stores.drain(..).map(|op| (op, Error::Closed)));
        }
        self.room.waiting.store(0, Ordering::Relaxed);
        self.room.settled.notify_all();
        drop(plan);
        self.tell(outcome);
    }

    fn tell(&self, outcome: Outcome) {
        let mut to_wake = outcome.to_wake;
        for (op, error) in outcome.refused {
            self.index.abort_store(&op.keyed);
            let home = self.home(&op.keyed, &op.name);
            op.part.answer((Err(error), Some(op.buffer)));
            // Stores that met the claim meanwhile are waiting for it at the key's home.
            self.mailboxes[home].push(Command::Released(op.keyed));
            to_wake |= 1 << home;
        }
        self.wake_all(to_wake);
        self.completion.store.flush();
    }
}

/// What became of a reservation.
pub(crate) enum Reserved {
    /// The bytes are reserved.
    Now(StoreOp),
    /// The store waits for room, and will come to its shard.
    Later,
    /// It does not fit, or is not admitted; its claim was given up.
    Never(StoreOp, Error),
}

/// One plan, in the making.
struct Planner<'a> {
    core: &'a Core,
    plan: &'a mut Plan,
    out: &'a mut Outcome,
    victims: usize,
    skips: usize,
}

impl Planner<'_> {
    fn run(mut self) {
        self.let_in();
        let skips = self.skips;
        if std::mem::take(&mut self.plan.has_failed) {
            self.give_up();
        }
        let salts: Vec<SaltId> = self.plan.needs.keys().chain(&self.plan.suspects).copied().collect();
        for salt in salts {
            if self.may_evict() {
                self.serve_quota(salt);
            }
        }
        if self.may_evict() {
            self.serve_watermark();
        }
        let passed_over = (skips - self.skips) as u64;
        if passed_over > 0 {
            self.core.counts.evictions_in_use.add(passed_over);
            self.core.index.resume_victims();
        }
        self.plan.needs.retain(|_, need| !need.stores.is_empty() || need.evicting_bytes > 0);
        let is_wanted = !self.plan.needs.is_empty()
            || !self.plan.suspects.is_empty()
            || self.plan.is_draining
            || self.plan.goal.is_some();
        self.core.room.is_wanted.store(is_wanted, Ordering::Relaxed);
    }

    /// Lets those stores go on for which there is room now, salt by salt, in the order in which they came.
    fn let_in(&mut self) {
        let (core, plan) = (self.core, &mut *self.plan);
        plan.is_stuck = false;
        for need in plan.needs.values_mut() {
            while let Some(op) = need.stores.front() {
                let bytes = op.buffer.len() as u64;
                let is_expired = op.part.is_expired();
                let mut volume = 0;
                if !is_expired {
                    match core.reserve_somewhere(op) {
                        Ok(reserved) => volume = reserved,
                        Err(refusal) => {
                            plan.is_stuck |= matches!(refusal, Refusal::Capacity(_));
                            break;
                        }
                    }
                }
                let Some(mut op) = need.stores.pop_front() else { break };
                need.store_bytes -= bytes;
                plan.waiting_bytes -= bytes;
                core.room.waiting.fetch_sub(1, Ordering::Relaxed);
                if is_expired {
                    let deadline_ms = core.config.store_deadline.as_millis() as u64;
                    self.out.refused.push((op, Error::TimedOut { deadline_ms }));
                    continue;
                }
                (op.claimed, op.volume) = (true, volume);
                let home = core.home(&op.keyed, &op.name);
                core.mailboxes[home].push(Command::Store(op));
                self.out.to_wake |= 1 << home;
            }
        }
    }

    /// A salt that is over its quota, or would be with the stores that wait, gives up its own oldest.
    fn serve_quota(&mut self, salt: SaltId) {
        loop {
            let need = self.plan.needs.get(&salt);
            let (coming, going) = need.map_or((0, 0), |need| (need.store_bytes, need.evicting_bytes));
            if self.core.ledger().over_quota(salt, coming) <= going {
                self.plan.suspects.remove(&salt);
                return;
            }
            if !self.may_evict() {
                return;
            }
            if !self.evict(Whose::Salt(salt)) {
                self.plan.suspects.remove(&salt);
                // Stores in flight will be objects that can go.
                let is_over = self.plan.needs.get(&salt).is_some_and(|need| need.evicting_bytes == 0);
                if is_over && self.core.ledger().reserved(salt) == 0 {
                    self.refuse(Some(salt));
                }
                return;
            }
        }
    }

    /// Above the watermark, objects go until the use is below it by the ratio.
    fn serve_watermark(&mut self) {
        let Some((high, low)) = self.core.room.marks else { return };
        loop {
            let (used, reserved) = self.core.ledger().shared_totals();
            let level = (used + reserved + self.plan.waiting_bytes).saturating_sub(self.plan.evicting_bytes);
            if self.plan.goal.is_some_and(|goal| used + reserved <= goal) && self.core.room.evicting() == 0 {
                self.settle();
            }
            self.plan.is_draining = level > low && (self.plan.is_draining || level > high);
            let is_asked = self.plan.goal.is_some_and(|goal| level > goal);
            // Where no volume has room although all together have, one after the other goes, wherever it is.
            let is_stuck = self.plan.is_stuck && self.core.room.evicting() == 0;
            if !(self.plan.is_draining || is_asked || is_stuck) || !self.may_evict() {
                return;
            }
            if !self.evict(Whose::All) {
                self.plan.is_draining = false;
                if self.core.room.evicting() == 0 {
                    self.settle();
                    // Stores in flight will be objects that can go.
                    if reserved == 0 {
                        self.refuse(None);
                    }
                }
                return;
            }
        }
    }

    /// Refuses what waits, and plans no more until something changes.
    fn give_up(&mut self) {
        self.settle();
        self.refuse(None);
        self.plan.suspects.clear();
        self.plan.is_draining = false;
        self.victims = 0;
    }

    fn settle(&mut self) {
        self.plan.goal = None;
        self.core.room.settled.notify_all();
    }

    fn may_evict(&self) -> bool {
        self.victims > 0 && self.core.room.evicting() < EVICTING_MAX
    }

    /// Sends one victim to its home; false when nobody can go.
    fn evict(&mut self, whose: Whose) -> bool {
        let core = self.core;
        let Found::Victim(Victim { keyed, held }) = core.index.take_victim(whose, &mut self.skips) else {
            return false;
        };
        let bytes = held.bytes;
        self.victims -= 1;
        self.plan.evicting_bytes += bytes;
        self.plan.needs.entry(keyed.salt).or_default().evicting_bytes += bytes;
        core.room.evicting.fetch_add(1, Ordering::Relaxed);
        let home = core.home_of_object(&keyed);
        core.mailboxes[home].push(Command::Evict(EvictOp { keyed, held, for_quota: whose != Whose::All }));
        self.out.to_wake |= 1 << home;
        true
    }

    /// Refuses the stores that wait and do not fit, of one salt or of all: nobody can go, and nobody is going.
    fn refuse(&mut self, whose: Option<SaltId>) {
        self.let_in();
        let (core, plan) = (self.core, &mut *self.plan);
        plan.is_stuck = false;
        for (_, need) in plan.needs.iter_mut().filter(|(salt, _)| whose.is_none_or(|whose| whose == **salt)) {
            for op in std::mem::take(&mut need.stores) {
                let bytes = op.buffer.len() as u64;
                plan.waiting_bytes -= bytes;
                core.room.waiting.fetch_sub(1, Ordering::Relaxed);
                match core.reserve_somewhere(&op) {
                    // It is small enough for what is left.
                    Ok(volume) => {
                        let home = core.home(&op.keyed, &op.name);
                        core.mailboxes[home].push(Command::Store(StoreOp { claimed: true, volume, ..op }));
                        self.out.to_wake |= 1 << home;
                    }
                    Err(refusal) => self.out.refused.push((op, core.refused(bytes, refusal))),
                }
            }
            need.store_bytes = 0;
        }
    }
}
