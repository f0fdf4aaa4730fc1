//! What happens on a store: claim, take a spare or create, write, (sync,) publish, (sync,) index, answer.
//!
//! Order of the steps, and what a crash after each leaves behind:
//! 1. create `.saltern/tmp/N`, write all bytes: an unfinished store, removed at the next start; or take a clean
//!    spare, `.saltern/spares/N`, and overwrite it: it stays a spare;
//! 2. exact length, stamp;
//! 3. durability `data` and `full`: fdatasync, so that the name can never be there without the bytes;
//! 4. rename to the object's name: from here on the object exists, whole;
//! 5. durability `full`: fsync of the directory, so that the name survives a power cut;
//! 6. index, ledger, answer.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use nix::errno::Errno;

use super::delete::discard;
use super::descriptors::Opened;
use super::spares::Spare;
use super::transfer::{Piece, Target, Transfer};
use super::{Active, Answer, Durability, Pending, Shard, StoreOp};
use crate::core::Queued;
use crate::error::{Error, Result};
use crate::index::{BeginStore, Keyed};
use crate::integrity::{Integrity, STAMP_NAME, Stamp, Sum};
use crate::mem::Buffer;
use crate::report::StoreReport;
use crate::ring::Op;
use crate::room::Reserved;
use crate::steps::Step;
use crate::sys::{remove_attribute, set_attribute, stat_fd};
use crate::ticket::Part;
use crate::volume::{Holding, Parent, Volume};

/// Where its writes allocate, a new file is written in pieces of so many segments, one after the other: a write that allocates
/// holds the file's lock, and others of the same file would only wait for it, each in a kernel worker of its own.
const NEW_FILE_SEGMENTS: usize = 4;

/// Names of unfinished stores that may be taken, one after the other, by what is not ours.
const TAKEN_MAX: u32 = 1000;

/// A store whose file is open.
pub(super) struct ActiveStore {
    keyed: Keyed,
    name: String,
    volume: usize,
    /// Where the file is until it is published, and how long it was before.
    from: Holding,
    old_bytes: u64,
    part: Part<StoreReport>,
    pub(super) transfer: Transfer,
    pub(super) sum: Option<Sum>,
    _queued: Queued,
}

impl ActiveStore {
    pub(super) fn is_expired(&self) -> bool {
        self.part.is_expired()
    }

    /// Bytes in the host's memory that the checksum has not come to, and has to. (Those of a device are summed slot by slot.)
    pub(super) fn unsummed(&self) -> usize {
        match (&self.sum, &self.transfer.target) {
            (Some(sum), Target::Host(_)) if self.transfer.error.is_none() => self.transfer.len - sum.upto(),
            _ => 0,
        }
    }

    /// Whether its file can be published, or the store given up.
    pub(super) fn is_written(&self) -> bool {
        self.transfer.is_done() && self.unsummed() == 0
    }

    /// Adds the next bytes to the checksum, `most` at most; gives how many there were.
    pub(super) fn sum_next(&mut self, most: usize) -> usize {
        let len = self.unsummed().min(most);
        if let Some(sum) = &mut self.sum
            && len > 0
        {
            self.transfer.sum_piece(sum, Piece { offset: sum.upto(), len, bounce: false });
        }
        len
    }

    /// Makes the file's length and stamp those of the object.
    fn trim_and_stamp(&self, align: usize) -> Result<()> {
        let len = self.transfer.len as u64;
        let fd = &*self.transfer.fd;
        let written = len.next_multiple_of(align as u64).max(self.old_bytes);
        if written != len {
            nix::unistd::ftruncate(fd, len as i64).map_err(|errno| Error::io("ftruncate", &self.name, errno))?;
        }
        match &self.sum {
            Some(sum) => set_attribute(fd.as_fd(), STAMP_NAME, Stamp::new(len, sum.finish()).as_bytes())
                .map_err(|errno| Error::io("setxattr", &self.name, errno)),
            // The stamp of what the file was before must not stay.
            None if self.old_bytes > 0 => {
                remove_attribute(fd.as_fd(), STAMP_NAME).map_err(|errno| Error::io("removexattr", &self.name, errno))
            }
            None => Ok(()),
        }
    }

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
                self.give_up_claim(&op.keyed, op.volume, op.buffer.len() as u64);
            }
            return self.answers.push(Answer::Store(op.part, Err(Error::Closed), Some(op.buffer)));
        }
        if !op.claimed {
            // Asked before the key is claimed: a claim would hide from others what is on disk.
            if !self.core.index_is_whole()
                && let Err(error) = self.core.ask_disk(&op.keyed, &op.name)
            {
                self.core.counts.store_errors.add(1);
                return self.answers.push(Answer::Store(op.part, Err(error), Some(op.buffer)));
            }
            match self.core.index.begin_store(&op.keyed) {
                BeginStore::New => {}
                BeginStore::Present => {
                    return self.answers.push(Answer::Store(op.part, self.core.confirm(), Some(op.buffer)));
                }
                BeginStore::Busy => {
                    return self.followers.entry(op.keyed.key.clone()).or_default().push(op);
                }
            }
            match self.core.reserve(op) {
                Reserved::Now(reserved) => op = reserved,
                Reserved::Later => return,
                Reserved::Never(op, error) => {
                    return self.answers.push(Answer::Store(op.part, Err(error), Some(op.buffer)));
                }
            }
        }
        self.waiting_stores.push_back(op);
    }

    pub(super) fn start_store(&mut self, mut op: StoreOp) {
        let bytes = op.buffer.len() as u64;
        if op.part.is_expired() {
            self.give_up_claim(&op.keyed, op.volume, bytes);
            return self.release_followers(&op.keyed);
        }
        let lane = match self.devices.lane_of(&op.buffer) {
            Ok(lane) => lane,
            Err(error) => return self.fail_store(&op.keyed, op.volume, op.part, error, bytes, Some(op.buffer)),
        };
        match self.open_somewhere(&mut op, bytes) {
            Ok((from, old_bytes, fd)) => {
                let volume = op.volume;
                let sum = (self.core.volumes[volume].integrity != Integrity::Off).then(Sum::new);
                let (grid, may_be_direct) =
                    (self.grids[volume], sum.is_none() && self.core.volumes[volume].dir.is_direct());
                let StoreOp { keyed, name, buffer, part, _queued, .. } = op;
                let target = self.devices.target(buffer, lane, may_be_direct.then_some(volume), grid);
                let mut transfer = Transfer::new(target, fd, grid);
                if matches!(from, Holding::Temp(_)) && self.core.volumes[volume].dir.writes_allocate() {
                    transfer = transfer.in_turn(NEW_FILE_SEGMENTS * grid.segment);
                }
                self.activate_store(ActiveStore { keyed, name, volume, from, old_bytes, part, transfer, sum, _queued });
            }
            Err(error) => self.fail_store(&op.keyed, op.volume, op.part, error, bytes, Some(op.buffer)),
        }
    }

    /// A file to write into, on the volume where room is reserved; where that cannot have one, on the next that can.
    fn open_somewhere(&mut self, op: &mut StoreOp, bytes: u64) -> Result<(Holding, u64, Rc<OwnedFd>)> {
        let mut passed = 0;
        loop {
            let error = if self.core.volumes[op.volume].is_up() {
                let writable = self.core.volumes[op.volume].dir.check_writable();
                match writable.and_then(|()| self.open_file(op.volume, bytes)) {
                    Ok(opened) => return Ok(opened),
                    Err(error) => {
                        self.core.check_health(op.volume);
                        error
                    }
                }
            } else {
                self.core.volume_failed(op.volume)
            };
            passed |= 1 << op.volume;
            let Some(next) = self.core.move_reservation(op, passed) else { return Err(error) };
            op.volume = next;
        }
    }

    /// A file to write into, with its present length: a clean spare where there is one, else a new one.
    fn open_file(&mut self, volume: usize, bytes: u64) -> Result<(Holding, u64, Rc<OwnedFd>)> {
        let is_mine = volume == self.volume;
        if is_mine {
            self.settle_spares();
        }
        while is_mine
            && bytes > 0
            && let Some(spare) = self.spares.take(bytes)
        {
            self.count_spares();
            if let Some(fd) = self.open_spare(&spare) {
                self.core.counts.recycled.add(1);
                return Ok((Holding::Spare(spare.name), spare.bytes, fd));
            }
            discard(&self.core, volume, spare);
        }
        if is_mine {
            self.sync_spares(true);
        }
        self.check_room(volume, bytes)?;
        let (mut temp, mut taken) = (self.next_name(), 0);
        loop {
            match self.core.volumes[volume].dir.create_temp(&temp, bytes) {
                Ok(fd) => return Ok((Holding::Temp(temp), 0, Rc::new(fd))),
                // Something that the start could not remove has the name.
                Err(Errno::EEXIST) if taken < TAKEN_MAX => {
                    taken += 1;
                    temp = self.next_name();
                }
                Err(Errno::EMFILE | Errno::ENFILE) if self.descriptors.give_back() => {}
                Err(errno) => return Err(self.disk_error(volume, "create", &temp, errno, bytes)),
            }
        }
    }

    /// The descriptor of a spare, if its file may be overwritten: it has no other name, and is private to this user. A
    /// recovered file may be a hard link of somebody's backup.
    fn open_spare(&self, spare: &Spare) -> Option<Rc<OwnedFd>> {
        let fd = match &spare.fd {
            Some(fd) => fd.clone(),
            None => Rc::new(self.core.volumes[self.volume].dir.open_spare(&spare.name).ok()?),
        };
        let stat = stat_fd(fd.as_fd()).ok()?;
        let ours = stat.is_regular && stat.links == 1 && stat.mode == 0o600 && stat.owner == self.user;
        (ours && stat.bytes == spare.bytes).then_some(fd)
    }

    /// A new file must not take the file system's last bytes: as many as are needed of those that wait to be removed go first, then
    /// spares are given back.
    fn check_room(&mut self, volume: usize, bytes: u64) -> Result<()> {
        let is_mine = volume == self.volume;
        let mut may_give_back = is_mine;
        loop {
            let Volume { dir, min_free_bytes: floor, .. } = &self.core.volumes[volume];
            // A file system that does not tell has room until a write says otherwise.
            let Ok((free, capacity)) = dir.free_bytes() else { return Ok(()) };
            let (is_low, free) = (free < floor.saturating_add(bytes), free.saturating_sub(*floor));
            if is_mine {
                self.disk_is_low = is_low;
            }
            if !is_low {
                return Ok(());
            }
            if self.remove_next() {
                continue;
            }
            if !std::mem::take(&mut may_give_back) {
                return Err(Error::Full { needed: bytes, free, capacity });
            }
            self.give_spares_back();
        }
    }

    fn activate_store(&mut self, store: ActiveStore) {
        self.stores.active += 1;
        self.stores.on_devices += usize::from(store.transfer.target.is_lent());
        let (done, has_sum) = (store.transfer.is_done(), store.unsummed() > 0);
        let active = self.actives.insert(Active::Store(store));
        if has_sum {
            self.unsummed.push_back(active);
        }
        if done {
            self.written.push_back(active);
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
    pub(super) fn end_write(&mut self, active: usize) {
        let durability = self.core.config.durability;
        let volume = self.store_mut(active).volume;
        let (align, direct) = (self.grids[volume].offset_align, self.core.volumes[volume].dir.is_direct());
        let store = self.store_mut(active);
        if store.transfer.error.is_none()
            && let Err(error) = store.trim_and_stamp(align)
        {
            store.transfer.fail(error);
        }
        if store.transfer.error.is_some() || store.part.is_expired() {
            return self.abandon(active);
        }
        // Buffered bytes are not on the device when a write completes: published without a sync, a power cut would tear them.
        if durability == Durability::None && direct {
            return self.publish(active);
        }
        let fd = store.transfer.fd.clone();
        self.sync(Pending::DataSync { active }, Op::SyncData, fd);
    }

    pub(super) fn data_synced(&mut self, active: usize, result: Result<(), Errno>) {
        let core = self.core.clone();
        let store = self.store_mut(active);
        if let Err(errno) = result {
            let (error, volume) = (Error::io("fdatasync", &store.name, errno), store.volume);
            core.sync_failed(volume, "fdatasync", &store.name, errno);
            store.transfer.fail(error);
        }
        let store = self.store_mut(active);
        if store.transfer.error.is_some() || store.part.is_expired() {
            return self.abandon(active);
        }
        self.publish(active);
    }

    /// Gives the object its name.
    fn publish(&mut self, active: usize) {
        let core = self.core.clone();
        let store = self.store_mut(active);
        let volume = store.volume;
        let Volume { dir, presence, .. } = &core.volumes[volume];
        let is_up = if presence.is_up() { Ok(()) } else { Err(core.volume_failed(volume)) };
        // Another's sync may have failed for all that the device had in hand.
        if let Err(error) = is_up.and_then(|()| dir.health.check(dir.path())) {
            store.transfer.fail(error);
            return self.abandon(active);
        }
        match dir.publish(&store.from, &store.name) {
            Err(errno) => {
                let error = Error::io("rename", &store.name, errno);
                store.transfer.fail(error);
                self.abandon(active);
            }
            Ok(parent) => {
                dir.health.went_well();
                self.make_durable(active, volume, parent);
            }
        }
    }

    /// The object has its name; where that has to survive a power cut, its directory is synced.
    fn make_durable(&mut self, active: usize, volume: usize, parent: Parent<'_>) {
        match parent {
            _ if self.core.config.durability != Durability::Full => self.finish_store(active),
            Parent::Root(_) if volume == self.volume => {
                self.dir_sync_waiting.push(active);
                self.sync_dir();
            }
            Parent::Root(_) => match self.core.volumes[volume].dir.reopen() {
                Ok(dir) => self.sync_other_dir(active, dir),
                Err(error) => self.take_back(active, error),
            },
            Parent::Shard(dir) => self.sync_other_dir(active, dir),
        }
    }

    /// Shard directories are many, and other volumes' own ones rare: each sync is of its own.
    fn sync_other_dir(&mut self, active: usize, dir: OwnedFd) {
        self.sync(Pending::DirSync { actives: vec![active], is_shared: false }, Op::SyncAll, Rc::new(dir));
    }

    /// One sync of the directory at a time; those who come meanwhile share the next.
    fn sync_dir(&mut self) {
        if !self.dir_sync_running && !self.dir_sync_waiting.is_empty() {
            self.dir_sync_running = true;
            let actives = std::mem::take(&mut self.dir_sync_waiting);
            let dir: Rc<OwnedFd> = self.dir.clone();
            self.sync(Pending::DirSync { actives, is_shared: true }, Op::SyncAll, dir);
        }
    }

    pub(super) fn dir_synced(&mut self, actives: Vec<usize>, is_shared: bool, result: Result<(), Errno>) {
        if is_shared {
            self.dir_sync_running = false;
        }
        for active in actives {
            let (core, volume) = (self.core.clone(), self.store_mut(active).volume);
            let dir = &core.volumes[volume].dir;
            let synced = result.map_err(|errno| {
                core.sync_failed(volume, "fsync", "of the directory", errno);
                Error::io("fsync", dir.path(), errno)
            });
            match synced.and_then(|()| dir.health.check(dir.path())) {
                Ok(()) => self.finish_store(active),
                Err(error) => self.take_back(active, error),
            }
        }
        self.sync_dir();
    }

    /// The name is there, but nothing says that it would survive a power cut, or its caller was told long ago that it is
    /// late: it goes again. Where it cannot, the object stays and counts, as it is on disk; its caller hears of the failure all the same.
    fn take_back(&mut self, active: usize, error: Error) {
        let core = self.core.clone();
        let store = self.store_mut(active);
        match core.volumes[store.volume].dir.remove(&store.name) {
            Ok(()) | Err(Errno::ENOENT) => {
                store.transfer.fail(error);
                self.abandon(active);
            }
            Err(errno) => {
                tracing::error!(name = store.name, %errno, "a store that was not made durable could not be taken back");
                self.core.counts.store_errors.add(1);
                self.end_store(active, Err(error));
            }
        }
    }

    fn finish_store(&mut self, active: usize) {
        let core = self.core.clone();
        let store = self.store_mut(active);
        core.config.steps.at(Step::Published, &store.keyed.key);
        // The rename or the sync has outlasted the deadline. A delete since then may have found nothing, so nothing may appear.
        if store.part.is_expired() {
            let deadline_ms = core.config.store_deadline.as_millis() as u64;
            return self.take_back(active, Error::TimedOut { deadline_ms });
        }
        self.end_store(active, Ok(()));
    }

    /// The object is there; its caller is told so, or of an error.
    fn end_store(&mut self, active: usize, result: Result<()>) {
        let Active::Store(store) = self.actives.remove(active) else { unreachable!("a store's number names a store") };
        self.stores.active -= 1;
        self.stores.on_devices -= usize::from(store.transfer.target.is_lent());
        let ActiveStore { keyed, volume, part, transfer, sum, _queued, .. } = store;
        let bytes = transfer.len as u64;
        self.core.volumes[volume].dir.trust.prove(keyed.hash());
        if !self.core.index.commit_store(&keyed, bytes, volume) {
            let error = self.core.volume_failed(volume);
            return self.fail_store(&keyed, volume, part, error, bytes, transfer.target.into_buffer());
        }
        let stamp = sum.map(|sum| Stamp::new(bytes, sum.finish()));
        self.descriptors.put(keyed.key.clone(), Opened { fd: transfer.fd, volume, stamp });
        self.deltas[volume].stored(keyed.salt, bytes);
        if result.is_ok() {
            self.core.counts.stores.add(1);
            self.core.counts.stored_bytes.add(bytes);
            self.core.watches[self.me].store.record(part.age());
        }
        self.answers.push(Answer::Store(part, result.map(|()| bytes), transfer.target.into_buffer()));
        self.release_followers(&keyed);
    }

    /// Ends a store that has failed, or that nobody waits for any more.
    fn abandon(&mut self, active: usize) {
        let Active::Store(store) = self.actives.remove(active) else { unreachable!("a store's number names a store") };
        self.stores.active -= 1;
        self.stores.on_devices -= usize::from(store.transfer.target.is_lent());
        let ActiveStore { keyed, name, volume, from, part, transfer, _queued, .. } = store;
        let Volume { dir, presence, .. } = &self.core.volumes[volume];
        if presence.is_up()
            && let Err(errno) = dir.discard(&from)
            && errno != Errno::ENOENT
        {
            tracing::warn!(?from, %errno, "an unfinished store could not be removed; the next start will");
        }
        let bytes = transfer.len as u64;
        let deadline_ms = self.core.config.store_deadline.as_millis() as u64;
        let error = match transfer.error {
            Some(Error::Io { op, errno, .. }) => self.disk_error(volume, op, &name, errno, bytes),
            Some(error) => error,
            None => Error::TimedOut { deadline_ms },
        };
        self.fail_store(&keyed, volume, part, error, bytes, transfer.target.into_buffer());
    }

    /// A disk without room is `Full`, whichever call says so. Other errors are counted against the volume.
    fn disk_error(&mut self, volume: usize, op: &'static str, name: &str, errno: Errno, needed: u64) -> Error {
        match errno {
            Errno::ENOSPC | Errno::EDQUOT => {
                if volume == self.volume {
                    self.give_spares_back();
                }
                let (free, capacity) = self.core.volumes[volume].dir.free_bytes().unwrap_or((0, 0));
                Error::Full { needed, free, capacity }
            }
            _ => {
                self.core.write_failed(volume, op, name, errno);
                Error::io(op, name, errno)
            }
        }
    }

    fn fail_store(
        &mut self,
        keyed: &Keyed,
        volume: usize,
        part: Part<StoreReport>,
        error: Error,
        bytes: u64,
        buffer: Option<Buffer>,
    ) {
        match &error {
            Error::Full { .. } => self.core.counts.stores_refused.add(1),
            _ => self.core.counts.store_errors.add(1),
        }
        self.give_up_claim(keyed, volume, bytes);
        self.answers.push(Answer::Store(part, Err(error), buffer));
        self.release_followers(keyed);
    }

    /// Who finds the key free must find its room free, too.
    pub(super) fn give_up_claim(&mut self, keyed: &Keyed, volume: usize, bytes: u64) {
        self.deltas[volume].cancelled(keyed.salt, bytes);
        self.apply_deltas();
        self.core.index.abort_store(keyed);
    }

    /// The key is free, or there is an object now: the stores that waited for it go on.
    pub(super) fn release_followers(&mut self, keyed: &Keyed) {
        if !self.twins.is_empty()
            && let Some(waiting) = self.twins.remove(&keyed.key)
        {
            waiting.into_iter().for_each(|op| self.settle_twin(op));
        }
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
