//! What happens on a store: claim, create, write, (sync,) publish, (sync,) index, answer.
//!
//! Order of the steps, and what a crash after each leaves behind:
//! 1. create `.saltern/tmp/N`, write all bytes: an unfinished store, removed at the next start;
//! 2. durability `data` and `full`: fdatasync, so that the name can never be there without the bytes;
//! 3. rename to the object's name: from here on the object exists, whole;
//! 4. durability `full`: fsync of the directory, so that the name survives a power cut;
//! 5. index, ledger, answer.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use nix::errno::Errno;

use super::transfer::Transfer;
use super::{Active, Answer, Durability, Pending, Shard, StoreOp};
use crate::core::Queued;
use crate::error::{Error, Result};
use crate::index::{BeginStore, Keyed};
use crate::mem::{Buffer, IoBuffer};
use crate::report::StoreReport;
use crate::ring::Op;
use crate::ticket::Part;
use crate::volume::Parent;

/// A store whose file is open.
pub(super) struct ActiveStore {
    keyed: Keyed,
    name: String,
    temp: String,
    part: Part<StoreReport>,
    pub(super) transfer: Transfer,
    _queued: Queued,
}

impl ActiveStore {
    pub(super) fn end_piece(&mut self, result: Result<usize, Errno>) {
        if let Err(errno) = result {
            self.transfer.fail(Error::io("write", &self.name, errno));
        }
    }
}

impl Shard {
    /// A store has come in; where its key is not claimed yet (another store or a removal held it), it is now.
    pub(super) fn take_store(&mut self, mut op: StoreOp) {
        if self.closing {
            if op.claimed {
                self.give_up_claim(&op.keyed, op.buffer.len() as u64);
            }
            return self.answers.push(Answer::Store(op.part, Err(Error::Closed), Some(op.buffer)));
        }
        if !op.claimed {
            op.ask_disk = !self.core.recovery.is_complete();
            match self.core.index.begin_store(&op.keyed) {
                BeginStore::New => {}
                BeginStore::Present => {
                    self.core.counts.restores.add(1);
                    return self.answers.push(Answer::Store(op.part, Ok(0), Some(op.buffer)));
                }
                BeginStore::Busy => {
                    return self.followers.entry(op.keyed.key.clone()).or_default().push(op);
                }
            }
            if let Err(room) = self.core.ledger.reserve(op.keyed.salt, op.buffer.len() as u64) {
                self.core.index.abort_store(&op.keyed);
                let error = self.core.full(op.buffer.len() as u64, room);
                return self.answers.push(Answer::Store(op.part, Err(error), Some(op.buffer)));
            }
            op.claimed = true;
        }
        self.waiting_stores.push_back(op);
    }

    pub(super) fn start_store(&mut self, op: StoreOp) {
        let bytes = op.buffer.len() as u64;
        if op.part.is_expired() {
            self.give_up_claim(&op.keyed, bytes);
            return self.release_followers(&op.keyed);
        }
        if op.ask_disk && self.is_on_disk(&op.keyed, &op.name, bytes) {
            self.core.counts.restores.add(1);
            self.answers.push(Answer::Store(op.part, Ok(0), Some(op.buffer)));
            return self.release_followers(&op.keyed);
        }
        let temp = format!("{}-{}", self.me, self.temp_number);
        self.temp_number += 1;
        match self.core.volume.create_temp(&temp) {
            Ok(fd) => {
                let transfer = Transfer::new(IoBuffer::new(op.buffer), fd);
                let StoreOp { keyed, name, part, _queued, .. } = op;
                self.activate_store(ActiveStore { keyed, name, temp, part, transfer, _queued });
            }
            Err(errno) => {
                let error = self.disk_error("create", &temp, errno, bytes);
                self.fail_store(&op.keyed, op.part, error, bytes, Some(op.buffer));
            }
        }
    }

    /// While the scan runs, a claimed key may turn out to be on disk; its claim then becomes the object.
    fn is_on_disk(&mut self, keyed: &Keyed, name: &str, reserved: u64) -> bool {
        let Ok(Some(stat)) = self.core.volume.stat(name) else { return false };
        self.core.index.commit_as_recovered(keyed, stat.bytes, stat.modified_ns);
        self.deltas.cancelled(keyed.salt, reserved);
        self.deltas.recovered(keyed.salt, stat.bytes);
        true
    }

    fn activate_store(&mut self, store: ActiveStore) {
        self.stores.active += 1;
        let done = store.transfer.is_done();
        let active = self.actives.insert(Active::Store(store));
        if done {
            self.written(active);
        } else {
            self.stores.ready.push_back(active);
        }
    }

    fn store_mut(&mut self, active: usize) -> &mut ActiveStore {
        match &mut self.actives[active] {
            Active::Store(store) => store,
            Active::Load(_) => unreachable!("a store's number names a store"),
        }
    }

    /// All pieces are written, or one has failed.
    pub(super) fn written(&mut self, active: usize) {
        let align = self.grid.offset_align;
        let durability = self.core.config.durability;
        let store = self.store_mut(active);
        let len = store.transfer.len;
        if store.transfer.error.is_none()
            && !len.is_multiple_of(align)
            && let Err(errno) = nix::unistd::ftruncate(&*store.transfer.fd, len as i64)
        {
            let error = Error::io("ftruncate", &store.name, errno);
            store.transfer.fail(error);
        }
        if store.transfer.error.is_some() || store.part.is_expired() {
            return self.abandon(active);
        }
        if durability == Durability::None {
            return self.publish(active);
        }
        let fd = store.transfer.fd.clone();
        self.sync(Pending::DataSync { active }, Op::SyncData, fd);
    }

    pub(super) fn data_synced(&mut self, active: usize, result: Result<(), Errno>) {
        let store = self.store_mut(active);
        if let Err(errno) = result {
            let error = Error::io("fdatasync", &store.name, errno);
            store.transfer.fail(error);
        }
        if store.transfer.error.is_some() || store.part.is_expired() {
            return self.abandon(active);
        }
        self.publish(active);
    }

    /// Gives the object its name.
    fn publish(&mut self, active: usize) {
        let core = self.core.clone();
        let store = self.store_mut(active);
        match core.volume.publish(&store.temp, &store.name) {
            Err(errno) => {
                let error = Error::io("rename", &store.name, errno);
                store.transfer.fail(error);
                self.abandon(active);
            }
            Ok(_) if core.config.durability != Durability::Full => self.finish_store(active),
            Ok(Parent::Root(_)) => {
                self.dir_sync_waiting.push(active);
                self.sync_dir();
            }
            // Shard directories are many: each sync is of its own.
            Ok(Parent::Shard(dir)) => {
                self.sync(Pending::DirSync { actives: vec![active] }, Op::SyncAll, Rc::new(dir));
            }
        }
    }

    /// One sync of the directory at a time; those who come meanwhile share the next.
    fn sync_dir(&mut self) {
        if !self.dir_sync_running && !self.dir_sync_waiting.is_empty() {
            self.dir_sync_running = true;
            let actives = std::mem::take(&mut self.dir_sync_waiting);
            let dir: Rc<OwnedFd> = self.dir.clone();
            self.sync(Pending::DirSync { actives }, Op::SyncAll, dir);
        }
    }

    pub(super) fn dir_synced(&mut self, actives: Vec<usize>, result: Result<(), Errno>) {
        if !self.core.config.layout.is_sharded() {
            self.dir_sync_running = false;
        }
        for active in actives {
            match result {
                Ok(()) => self.finish_store(active),
                Err(errno) => {
                    // The name is there, but nothing says that it would survive: it is taken back.
                    let core = self.core.clone();
                    let store = self.store_mut(active);
                    let _ = core.volume.remove(&store.name);
                    let error = Error::io("fsync", core.volume.path(), errno);
                    store.transfer.fail(error);
                    self.abandon(active);
                }
            }
        }
        self.sync_dir();
    }

    fn finish_store(&mut self, active: usize) {
        let Active::Store(store) = self.actives.remove(active) else { unreachable!("a store's number names a store") };
        self.stores.active -= 1;
        let ActiveStore { keyed, part, transfer, _queued, .. } = store;
        let bytes = transfer.len as u64;
        self.core.index.commit_store(&keyed, bytes);
        self.deltas.stored(keyed.salt, bytes);
        self.core.counts.stores.add(1);
        self.core.counts.stored_bytes.add(bytes);
        self.answers.push(Answer::Store(part, Ok(bytes), transfer.buffer.into_buffer().ok()));
        self.release_followers(&keyed);
    }

    /// Ends a store that has failed, or that nobody waits for any more.
    fn abandon(&mut self, active: usize) {
        let Active::Store(store) = self.actives.remove(active) else { unreachable!("a store's number names a store") };
        self.stores.active -= 1;
        let ActiveStore { keyed, name, temp, part, transfer, _queued } = store;
        if let Err(errno) = self.core.volume.discard_temp(&temp)
            && errno != Errno::ENOENT
        {
            tracing::warn!(temp, %errno, "an unfinished store could not be removed; the next start will");
        }
        let bytes = transfer.len as u64;
        let deadline_ms = self.core.config.store_deadline.as_millis() as u64;
        let error = match transfer.error {
            Some(Error::Io { op, errno, .. }) => self.disk_error(op, &name, errno, bytes),
            Some(error) => error,
            None => Error::TimedOut { deadline_ms },
        };
        self.fail_store(&keyed, part, error, bytes, transfer.buffer.into_buffer().ok());
    }

    /// A disk without room is `Full`, whichever call says so.
    fn disk_error(&self, op: &'static str, name: &str, errno: Errno, needed: u64) -> Error {
        match errno {
            Errno::ENOSPC | Errno::EDQUOT => {
                let (free, capacity) = self.core.volume.free_bytes().unwrap_or((0, 0));
                self.core.full(needed, crate::ledger::NoRoom { free, capacity })
            }
            _ => Error::io(op, name, errno),
        }
    }

    fn fail_store(&mut self, keyed: &Keyed, part: Part<StoreReport>, error: Error, bytes: u64, buffer: Option<Buffer>) {
        if !matches!(error, Error::Full { .. }) {
            self.core.counts.store_errors.add(1);
        }
        self.give_up_claim(keyed, bytes);
        self.answers.push(Answer::Store(part, Err(error), buffer));
        self.release_followers(keyed);
    }

    pub(super) fn give_up_claim(&mut self, keyed: &Keyed, bytes: u64) {
        self.core.index.abort_store(keyed);
        self.deltas.cancelled(keyed.salt, bytes);
    }

    /// The key is free, or there is an object now: the stores that waited for it go on.
    pub(super) fn release_followers(&mut self, keyed: &Keyed) {
        if self.followers.is_empty() {
            return;
        }
        if let Some(waiting) = self.followers.remove(&keyed.key) {
            // What this key gave back has to be seen by the next reservation.
            self.apply_deltas();
            for op in waiting {
                self.take_store(op);
            }
        }
    }
}
