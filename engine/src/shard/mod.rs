//! A shard: one pinned thread with one ring, which does all I/O of the keys that belong to it.
//!
//! ```text
//! mailbox -> waiting -> active (file open) -> pieces in the ring -> finished -> ledger, then answers
//! ```
//!
//! Loads go before stores at every step; stores keep a share of the ring, so that neither starves. Cheap metadata calls
//! (open, rename, unlink) are made inline. The thread sleeps in the ring, and callers wake it through its mailbox.
//!
//! Stop: `Close` fails what waits, lets what is active end, and leaves. On a panic everything that is unanswered
//! is answered with an error (see [`Part`](crate::ticket::Part)), and the ring waits for its requests before memory is freed.

mod delete;
mod descriptors;
mod device;
mod evict;
mod gate;
mod issue;
mod load;
mod mailbox;
mod spares;
#[cfg(test)]
mod spares_model;
mod store;
mod transfer;
mod twin;

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use slab::Slab;

use crate::config::{BOUNCE_BUFFERS, Durability};
use crate::core::Core;
use crate::error::{Error, Result};
use crate::key::ObjectKey;
use crate::ledger::Deltas;
use crate::mem::{Buffer, IoBuffer};
use crate::report::{DeleteReport, LoadReport, StoreReport};
use crate::ring::{Completion, Op, Priorities, Ring, Wait};
use crate::room::Evicted;
use crate::ticket::Part;
use crate::volume::Directory;
use crate::watch::ShardQueues;
pub(crate) use descriptors::reserve_descriptors;
use descriptors::{Descriptors, open_files};
use device::Devices;
use issue::{Class, Lane, Pending};
use load::ActiveLoad;
pub(crate) use mailbox::{Command, DeleteOp, EvictOp, LoadOp, Mailbox, StoreOp, TwinOp};
use spares::{Spare, Spares};
use store::ActiveStore;
use transfer::{Grid, Transfer};

/// Loads begun in one turn of the loop: the first ones should not wait in the queue while the last are opened.
const LOAD_STARTS_PER_TURN: usize = 8;

/// Calls that change names made in one turn of the loop (create, rename, unlink): each takes tens of microseconds, for which
/// loads would wait. Where there are no loads, longer turns save calls of the ring.
const NAME_CHANGES_PER_TURN: usize = 4;
const NAME_CHANGES_WITHOUT_LOADS: usize = 16;

/// Bytes of stores that are summed in one turn, in which loads wait for them: a checksum takes 30 to 150 us a MiB. Summed after they were
/// handed to the device, not before: what is computed while it writes delays nobody.
const SUMMED_BYTES_PER_TURN: usize = 256 << 10;
const SUMMED_BYTES_WITHOUT_LOADS: usize = 1 << 20;

/// Shards of a volume: they are dealt to the volumes in turn.
fn shards_of(volume: usize, core: &Core) -> usize {
    (core.mailboxes.len() - volume).div_ceil(core.volumes.len())
}

/// An object whose file is open.
enum Active {
    Load(ActiveLoad),
    Store(ActiveStore),
}

impl Active {
    fn transfer(&mut self) -> &mut Transfer {
        match self {
            Self::Load(load) => &mut load.transfer,
            Self::Store(store) => &mut store.transfer,
        }
    }

    fn class(&self) -> Class {
        match self {
            Self::Load(_) => Class::Load,
            Self::Store(_) => Class::Store,
        }
    }

    /// Whether its deadline has answered already.
    fn is_expired(&self) -> bool {
        match self {
            Self::Load(load) => load.is_expired(),
            Self::Store(store) => store.is_expired(),
        }
    }
}

/// An answer that waits for the ledger.
enum Answer {
    Store(Part<StoreReport>, Result<u64>, Option<Buffer>),
    Load(Part<LoadReport>, Result<u64>, Option<Buffer>),
    Delete(Part<DeleteReport>, Result<u64>),
}

pub(crate) struct Shard {
    core: Arc<Core>,
    me: usize,
    /// The volume that it belongs to. It works on others for keys of its own whose files are there.
    volume: usize,
    ring: Ring,
    /// By volume.
    grids: Box<[Grid]>,
    waiting_loads: VecDeque<LoadOp>,
    waiting_stores: VecDeque<StoreOp>,
    waiting_deletes: VecDeque<DeleteOp>,
    /// Stores whose pieces have ended: they wait for their publication.
    written: VecDeque<usize>,
    /// Stores whose checksum is behind; some of them may have ended, and their numbers be others' by now.
    unsummed: VecDeque<usize>,
    waiting_evictions: VecDeque<EvictOp>,
    /// The next call that changes names takes one away, if one is to go.
    removes_next: bool,
    /// Victims that are done with, of which the plan is told after the ledger.
    evicted: Vec<Evicted>,
    actives: Slab<Active>,
    pending: Slab<Pending>,
    loads: Lane,
    stores: Lane,
    /// Syncs that wait for room in the ring.
    syncs: VecDeque<(usize, Op, Rc<OwnedFd>)>,
    bounce: Vec<IoBuffer>,
    devices: Devices,
    /// Stores of keys that another store, or a removal, holds.
    followers: HashMap<ObjectKey, Vec<StoreOp>>,
    /// Second files of such keys.
    twins: HashMap<ObjectKey, Vec<TwinOp>>,
    descriptors: Descriptors,
    spares: Spares,
    /// What `status` was told of them: bytes and count.
    spares_told: (u64, u64),
    /// The file system was short of space when it was last asked.
    disk_is_low: bool,
    /// Whose files may be overwritten.
    user: u32,
    /// The volume's directory and the spares' one, for syncing them.
    dir: Rc<OwnedFd>,
    spares_dir: Rc<OwnedFd>,
    dir_sync_running: bool,
    dir_sync_waiting: Vec<usize>,
    next_number: u64,
    /// By volume.
    deltas: Box<[Deltas]>,
    answers: Vec<Answer>,
    /// Kept for its memory.
    completions: Vec<Completion>,
    closing: bool,
}

impl Shard {
    /// Builds the shard on its own thread.
    pub(crate) fn new(core: Arc<Core>, me: usize) -> Result<Self> {
        let config = &core.config;
        let number = me % core.volumes.len();
        let (volume, dir) = (&core.volumes[number], &core.volumes[number].dir);
        let segment = config.segment_bytes;
        let grid = |dir: &Directory| Grid { segment, mem_align: dir.mem_align(), offset_align: dir.offset_align() };
        let grids: Box<[_]> = core.volumes.iter().map(|volume| grid(&volume.dir)).collect();
        // What has to go on from the middle goes on where every volume takes it.
        let align = grids.iter().map(|grid| grid.offset_align).max().unwrap_or(1);
        let mut ring = Ring::new(config.depth, align, core.mailboxes[me].wake.clone())?;
        ring.hold(core.volumes.iter().map(|volume| volume.dir.lock_fd()))?;
        ring.adopt(&core.registry);
        if let Some(priorities) = dir.scheduler().and_then(|name| Priorities::choose(config.io_priority, name)) {
            ring.prioritize(priorities)?;
        }
        let bounce = (0..BOUNCE_BUFFERS)
            .map(|_| core.pool.alloc(config.segment_bytes).map(|buffer| IoBuffer::new(buffer.into())))
            .collect::<Result<_>>()?;
        let (loads, stores) = (Lane::new(config.load_inflight_bytes), Lane::new(config.store_inflight_bytes));
        let shards = core.mailboxes.len();
        let spare_limit = volume.spare_limit() / shards_of(number, &core) as u64;
        let mut shard = Self {
            me,
            volume: number,
            ring,
            grids,
            waiting_loads: VecDeque::new(),
            waiting_stores: VecDeque::new(),
            waiting_deletes: VecDeque::new(),
            written: VecDeque::new(),
            unsummed: VecDeque::new(),
            waiting_evictions: VecDeque::new(),
            removes_next: false,
            evicted: Vec::new(),
            actives: Slab::new(),
            pending: Slab::new(),
            loads,
            stores,
            syncs: VecDeque::new(),
            bounce,
            devices: Devices::default(),
            followers: HashMap::new(),
            twins: HashMap::new(),
            descriptors: Descriptors::new(open_files(config) / shards),
            spares: Spares::new(spare_limit),
            spares_told: (0, 0),
            disk_is_low: false,
            user: nix::unistd::geteuid().as_raw(),
            dir: Rc::new(dir.reopen()?),
            spares_dir: Rc::new(dir.spares_dir()?),
            dir_sync_running: false,
            dir_sync_waiting: Vec::new(),
            next_number: 0,
            deltas: core.volumes.iter().map(|_| Deltas::new()).collect(),
            answers: Vec::new(),
            completions: Vec::new(),
            closing: false,
            core,
        };
        shard.take_old_spares();
        Ok(shard)
    }

    /// Takes its share of the spares of an earlier run.
    fn take_old_spares(&mut self) {
        let core = self.core.clone();
        let old = core.volumes[self.volume].old_spares.lock();
        // Numbers go on after those in use, whichever shard they were.
        let number = |name: &str| name.rsplit_once('-').and_then(|(_, number)| number.parse::<u64>().ok());
        self.next_number = old.iter().filter_map(|(name, _)| number(name)).max().map_or(0, |highest| highest + 1);
        let (first, shards) = (self.me / core.volumes.len(), shards_of(self.volume, &core));
        for (name, bytes) in old.iter().skip(first).step_by(shards).cloned() {
            let spare = Spare { name, bytes, fd: None };
            if self.spares.bytes() + bytes <= self.spares.limit() {
                self.spares.adopt_clean(spare);
            } else {
                delete::discard(&core, self.volume, spare);
            }
        }
        drop(old);
        self.count_spares();
    }

    /// A name for an unpublished file that no other has.
    fn next_name(&mut self) -> String {
        self.next_number += 1;
        format!("{}-{}", self.me, self.next_number)
    }

    /// The volume that it belongs to.
    pub(crate) fn volume(&self) -> usize {
        self.volume
    }

    pub(crate) fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The loop; returns when the shard is closed.
    ///
    /// # Errors
    /// [`Error::Io`] when the ring is broken.
    pub(crate) fn run(&mut self) -> Result<()> {
        loop {
            // Callers prepare what comes next while this thread goes on.
            self.answer();
            self.sum_some();
            self.take_commands();
            self.poll_devices();
            self.start_loads()?;
            self.issue();
            if self.has_name_changes() {
                let mut changes = NAME_CHANGES_WITHOUT_LOADS;
                if self.loads.active > 0 || !self.waiting_loads.is_empty() {
                    // Before this thread is busy with names, the device has its work, and loads that have ended their answer.
                    self.turn_ring(Wait::No)?;
                    self.answer();
                    changes = NAME_CHANGES_PER_TURN;
                }
                self.change_names(changes)?;
                self.issue();
            }
            self.answer();
            if self.closing {
                if self.give_up_devices() {
                    continue;
                }
                if self.is_idle() {
                    return Ok(());
                }
            }
            self.tell_queues();
            self.devices.flush();
            let may_sleep =
                self.unsummed.is_empty() && !self.has_startable() && self.core.mailboxes[self.me].may_sleep();
            self.turn_ring(if may_sleep { self.devices.sleep() } else { Wait::No })?;
            self.core.mailboxes[self.me].awake();
        }
    }

    /// Hands requests to the kernel and takes what has ended.
    fn turn_ring(&mut self, wait: Wait) -> Result<()> {
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.submit(wait, |completion| completions.push(completion))?;
        for completion in completions.drain(..) {
            self.complete(completion);
        }
        self.completions = completions;
        Ok(())
    }

    /// Lets `status` know what waits here.
    fn tell_queues(&self) {
        self.core.watches[self.me].tell(ShardQueues {
            mailbox: 0,
            waiting_loads: (self.waiting_loads.len() + self.devices.waiting_loads.len()) as u64,
            waiting_stores: (self.waiting_stores.len() + self.devices.waiting_stores.len()) as u64,
            waiting_deletes: self.waiting_deletes.len() as u64,
            waiting_evictions: self.waiting_evictions.len() as u64,
            active_loads: self.loads.active as u64,
            active_stores: self.stores.active as u64,
            requests_in_flight: self.pending.len() as u64,
            load_bytes_in_flight: self.loads.bytes as u64,
            store_bytes_in_flight: self.stores.bytes as u64,
        });
    }

    fn is_idle(&self) -> bool {
        self.actives.is_empty()
            && self.pending.is_empty()
            && self.waiting_loads.is_empty()
            && self.waiting_stores.is_empty()
            && self.devices.waiting_loads.is_empty()
            && self.devices.waiting_stores.is_empty()
            && self.waiting_deletes.is_empty()
            && self.waiting_evictions.is_empty()
    }

    /// Whether a turn of the loop could start something without waiting for a completion.
    fn has_startable(&self) -> bool {
        let is_waiting =
            !self.waiting_loads.is_empty() || self.has_place_for_devices(&self.loads, &self.devices.waiting_loads);
        (is_waiting && self.loads.active < self.core.config.depth) || self.has_name_changes()
    }

    fn has_name_changes(&self) -> bool {
        !self.written.is_empty()
            || !self.waiting_deletes.is_empty()
            || !self.waiting_evictions.is_empty()
            || (self.stores.active < self.core.config.depth
                && (!self.waiting_stores.is_empty()
                    || self.has_place_for_devices(&self.stores, &self.devices.waiting_stores)))
    }

    /// Whether an object of a device waits, and may begin: they leave half of the places to memory of the host's, which must not wait for a
    /// device that hangs, or for a caller's work on one.
    fn has_place_for_devices<T>(&self, lane: &Lane, waiting: &VecDeque<T>) -> bool {
        !waiting.is_empty() && lane.on_devices < self.places_for_devices()
    }

    fn places_for_devices(&self) -> usize {
        (self.core.config.depth / 2).max(1)
    }

    /// The next load that may begin.
    fn next_load(&mut self) -> Option<LoadOp> {
        let has_place = self.loads.on_devices < self.places_for_devices();
        if has_place && let Some(op) = self.devices.waiting_loads.pop_front() {
            return Some(op);
        }
        while let Some(op) = self.waiting_loads.pop_front() {
            if has_place || op.buffer.device().is_none() {
                return Some(op);
            }
            self.devices.waiting_loads.push_back(op);
        }
        None
    }

    /// The next store that may begin.
    fn next_store(&mut self) -> Option<StoreOp> {
        let has_place = self.stores.on_devices < self.places_for_devices();
        if has_place && let Some(op) = self.devices.waiting_stores.pop_front() {
            return Some(op);
        }
        while let Some(op) = self.waiting_stores.pop_front() {
            if has_place || op.buffer.device().is_none() {
                return Some(op);
            }
            self.devices.waiting_stores.push_back(op);
        }
        None
    }

    fn take_commands(&mut self) {
        while let Some(command) = self.core.mailboxes[self.me].pop() {
            match command {
                Command::Load(op) => self.waiting_loads.push_back(op),
                Command::Store(op) => self.take_store(op),
                Command::Delete(op) => self.waiting_deletes.push_back(op),
                Command::Evict(op) => self.waiting_evictions.push_back(op),
                Command::Twin(op) => self.settle_twin(op),
                Command::Lost(volume) => self.lose(volume),
                Command::Released(keyed) => self.release_followers(&keyed),
                Command::Adopt => self.ring.adopt(&self.core.registry),
                Command::Attach(attached, reply) => drop(reply.send(self.attach(attached))),
                Command::Settle { device, keep, .. } => self.settle_device(device, keep),
                Command::Close => self.close(),
            }
        }
    }

    /// Fails what has not begun; what has, ends.
    fn close(&mut self) {
        self.closing = true;
        self.devices.close();
        self.waiting_loads.append(&mut self.devices.waiting_loads);
        self.waiting_stores.append(&mut self.devices.waiting_stores);
        for op in std::mem::take(&mut self.waiting_loads) {
            self.answers.push(Answer::Load(op.part, Err(Error::Closed), Some(op.buffer)));
        }
        for op in std::mem::take(&mut self.waiting_stores) {
            self.give_up_claim(&op.keyed, op.volume, op.buffer.len() as u64);
            self.answers.push(Answer::Store(op.part, Err(Error::Closed), Some(op.buffer)));
        }
        for op in std::mem::take(&mut self.followers).into_values().flatten() {
            self.answers.push(Answer::Store(op.part, Err(Error::Closed), Some(op.buffer)));
        }
    }

    /// A volume was lost: nothing of it is kept.
    fn lose(&mut self, volume: usize) {
        self.descriptors.lose(volume);
        if volume == self.volume {
            self.lose_spares();
        }
    }

    /// Opens files for loads that wait.
    fn start_loads(&mut self) -> Result<()> {
        for _ in 0..LOAD_STARTS_PER_TURN {
            if self.loads.active == self.core.config.depth {
                break;
            }
            let Some(op) = self.next_load() else { break };
            self.start_load(op);
            self.feed(Class::Load)?;
        }
        Ok(())
    }

    /// Deletes, evicts, begins stores and publishes. Stores begin before those that have ended are published, so that the device works
    /// while this thread is busy with names. Every other call takes a name away, where one is to go: room is made as stores begin, and
    /// neither waits for all of the other.
    fn change_names(&mut self, most: usize) -> Result<()> {
        for _ in 0..most {
            self.removes_next = !self.removes_next;
            if self.removes_next && self.remove_next() {
                continue;
            }
            if self.stores.active < self.core.config.depth
                && let Some(op) = self.next_store()
            {
                self.start_store(op);
                self.feed(Class::Store)?;
            } else if let Some(active) = self.written.pop_front() {
                self.end_write(active);
            } else if !self.remove_next() {
                break;
            }
        }
        Ok(())
    }

    /// Deletes or evicts the next object that is to go; false when there is none.
    pub(super) fn remove_next(&mut self) -> bool {
        if let Some(op) = self.waiting_deletes.pop_front() {
            self.delete(op);
        } else if let Some(op) = self.waiting_evictions.pop_front() {
            self.evict(op);
        } else {
            return false;
        }
        true
    }

    /// Goes on with the checksums of stores whose bytes are on their way to the device.
    fn sum_some(&mut self) {
        let mut budget = if self.loads.active > 0 || !self.waiting_loads.is_empty() {
            SUMMED_BYTES_PER_TURN
        } else {
            SUMMED_BYTES_WITHOUT_LOADS
        };
        while budget > 0
            && let Some(active) = self.unsummed.front()
        {
            let Some(Active::Store(store)) = self.actives.get_mut(*active) else {
                // It has ended.
                self.unsummed.pop_front();
                continue;
            };
            let summed = store.sum_next(budget);
            budget -= summed;
            if store.unsummed() == 0 {
                // Where nothing was left to sum, whoever ended its last piece has seen to it.
                if summed > 0 && store.is_written() {
                    self.written.push_back(*active);
                }
                self.unsummed.pop_front();
            }
        }
    }

    /// Tells the ledger what has changed, then the callers.
    fn answer(&mut self) {
        self.apply_deltas();
        if self.answers.is_empty() {
            return;
        }
        for answer in self.answers.drain(..) {
            match answer {
                Answer::Store(part, result, buffer) => drop(part.answer((result, buffer))),
                Answer::Load(part, result, buffer) => drop(part.answer((result, buffer))),
                Answer::Delete(part, result) => drop(part.answer(result)),
            }
        }
        self.core.completion.flush();
    }

    fn apply_deltas(&mut self) {
        let mut has_changed = false;
        for (deltas, volume) in self.deltas.iter_mut().zip(self.core.volumes.iter()) {
            if !deltas.is_empty() {
                volume.ledger.apply(deltas);
                deltas.clear();
                has_changed = true;
            }
        }
        if has_changed {
            self.core.ledger_changed();
        }
        if !self.evicted.is_empty() {
            self.core.evicted(&self.evicted);
            self.evicted.clear();
        }
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.core.stopped_shards.fetch_or(1 << self.me, Ordering::Relaxed);
        // After a panic or with a broken ring: callers must not wait for a thread that is gone.
        if !self.closing {
            self.core.shard_failed(self.me);
            for op in std::mem::take(&mut self.waiting_evictions) {
                self.core.bury(Command::Evict(op));
            }
            self.waiting_stores.append(&mut self.devices.waiting_stores);
            for op in std::mem::take(&mut self.waiting_stores) {
                self.core.bury(Command::Store(op));
            }
        }
        self.core.bury_all(self.me);
        self.waiting_loads.clear();
        self.devices.waiting_loads.clear();
        self.waiting_stores.clear();
        self.followers.clear();
        self.twins.clear();
        self.answers.clear();
        self.core.completion.flush();
    }
}
