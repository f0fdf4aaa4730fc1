//! What happens on a load: index, open, read, (check,) answer.

use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;

use nix::errno::Errno;

use super::descriptors::Opened;
use super::transfer::{Piece, Target, Transfer};
use super::{Active, Answer, LoadOp, Shard};
use crate::core::Queued;
use crate::error::{Error, Result};
use crate::index::{Held, Keyed};
use crate::integrity::{Integrity, STAMP_BYTES, STAMP_NAME, Stamp, Sum};
use crate::key::ObjectKey;
use crate::mem::{Buffer, IoBuffer};
use crate::report::LoadReport;
use crate::steps::Step;
use crate::sys::{get_attribute, stat_fd};
use crate::ticket::Part;

/// A load whose file is open.
pub(super) struct ActiveLoad {
    keyed: Keyed,
    name: String,
    volume: usize,
    part: Part<LoadReport>,
    pub(super) transfer: Transfer,
    /// What the payload has to be, and what has come of it, where that is checked.
    pub(super) check: Option<(Stamp, Sum)>,
    _queued: Queued,
}

impl ActiveLoad {
    pub(super) fn is_expired(&self) -> bool {
        self.part.is_expired()
    }

    /// Takes what a piece has brought.
    pub(super) fn end_piece(&mut self, piece: Piece, bounce: Option<&IoBuffer>, result: Result<usize, Errno>) {
        let is_whole = matches!(result, Ok(bytes) if bytes >= piece.len);
        self.check_read(piece, result);
        if let (true, Target::Host(memory)) = (is_whole, &self.transfer.target) {
            if let Some(bounce) = bounce {
                memory.span(piece.offset, piece.len).copy_from(&bounce.span(0, piece.len));
            }
            if let Some((_, sum)) = &mut self.check {
                self.transfer.sum_piece(sum, piece);
            }
        }
    }

    /// Notes a piece that was not read, or not all of it.
    pub(super) fn check_read(&mut self, piece: Piece, result: Result<usize, Errno>) {
        match result {
            Ok(bytes) if bytes >= piece.len => {}
            Ok(bytes) => self.transfer.fail(self.short_read(piece.offset + bytes)),
            Err(errno) => self.transfer.fail(Error::io("read", &self.name, errno)),
        }
    }
}

impl ActiveLoad {
    /// What it means that a read has ended here, in front of the object's end: the file was cut, or only the read was.
    fn short_read(&self, found: usize) -> Error {
        let (expected, found) = (self.transfer.len as u64, found as u64);
        match stat_fd(self.transfer.fd.as_fd()) {
            Ok(stat) if stat.bytes >= expected => Error::io("read", &self.name, Errno::EIO),
            _ => Error::Damaged { path: self.name.clone(), expected, found },
        }
    }
}

/// The stamp of a file, if it has one that this version knows.
fn read_stamp(fd: BorrowedFd<'_>) -> Result<Option<Stamp>, Errno> {
    let mut raw = [0; STAMP_BYTES];
    Ok(get_attribute(fd, STAMP_NAME, &mut raw)?.and_then(|len| Stamp::parse(&raw[..len])))
}

impl Shard {
    pub(super) fn start_load(&mut self, op: LoadOp) {
        if op.part.is_expired() {
            return;
        }
        let Some(mut held) = self.find(&op.keyed, &op.name) else {
            self.core.counts.load_misses.add(1);
            return self.answers.push(Answer::Load(op.part, Err(Error::NotFound), Some(op.buffer)));
        };
        self.core.config.steps.at(Step::Loading, &op.keyed.key);
        let buffer_bytes = op.buffer.len() as u64;
        let padding = self.core.config.padding_bytes;
        let fits = |object: u64| object == buffer_bytes || (object > buffer_bytes && object - buffer_bytes < padding);
        if !fits(held.bytes) {
            held = self.see_size(&op, held).unwrap_or(held);
        }
        let lane = match self.devices.lane_of(&op.buffer) {
            Ok(lane) => lane,
            Err(error) => return self.end_load(&op.keyed, &op.name, op.part, Err(error), Some(op.buffer)),
        };
        let is_doubted = self.core.volumes[held.volume].dir.trust.doubts(op.keyed.hash());
        let opened = loop {
            if !fits(held.bytes) {
                break Err(Error::WrongSize { object_bytes: held.bytes, buffer_bytes });
            }
            let opened = self.open(&op.keyed.key, &op.name, held, is_doubted);
            let is_damaged = matches!(opened, Err(Error::Damaged { .. }));
            match if is_damaged { self.see_size(&op, held) } else { None } {
                Some(seen) => held = seen,
                None => break opened,
            }
        };
        // Only a whole payload can be checked: a padded file's tail is not loaded.
        let is_whole = held.bytes == buffer_bytes;
        match opened {
            Ok(Opened { stamp: Some(_), .. }) if is_doubted && !is_whole => {
                let error = Error::Unverifiable { path: op.name.clone() };
                self.fail_load(&op.keyed, &op.name, op.part, error, Some(op.buffer));
            }
            Ok(Opened { fd, stamp, volume }) => {
                let is_checked = is_whole && (is_doubted || self.core.volumes[volume].integrity == Integrity::Verify);
                let check = stamp.filter(|_| is_checked).map(|stamp| (stamp, Sum::new()));
                let LoadOp { keyed, name, buffer, part, _queued } = op;
                let grid = self.grids[volume];
                let may_be_direct = check.is_none() && self.core.volumes[volume].dir.is_direct();
                let transfer =
                    Transfer::new(self.devices.target(buffer, lane, may_be_direct.then_some(volume), grid), fd, grid);
                self.activate_load(ActiveLoad { keyed, name, volume, part, transfer, check, _queued });
            }
            Err(error @ (Error::NotFound | Error::Damaged { .. } | Error::Unverifiable { .. })) => {
                self.fail_load(&op.keyed, &op.name, op.part, error, Some(op.buffer));
            }
            Err(error) => {
                self.count_error(held.volume, &error);
                self.end_load(&op.keyed, &op.name, op.part, Err(error), Some(op.buffer));
            }
        }
    }

    /// The first use of an object that was found by its name alone, and is not of the size that the snapshot says: it has the size that its file has.
    fn see_size(&mut self, op: &LoadOp, held: Held) -> Option<Held> {
        let LoadOp { keyed, name, .. } = op;
        if !self.core.index.is_unseen(keyed) {
            return None;
        }
        let fd = self.core.volumes[held.volume].dir.open_object(name).ok()?;
        let stat = stat_fd(fd.as_fd()).ok()?;
        let seen = Held { bytes: stat.bytes, volume: held.volume };
        // One that says how long it was is damaged.
        let is_whole = read_stamp(fd.as_fd()).ok()?.is_none_or(|stamp| stamp.bytes() == stat.bytes);
        if !stat.is_regular || seen == held || !is_whole {
            return None;
        }
        let deltas = |shard: &mut Self, came: u64, went: u64| {
            shard.deltas[held.volume].recovered(keyed.salt, came);
            shard.deltas[held.volume].deleted(keyed.salt, went);
            shard.apply_deltas();
        };
        deltas(self, seen.bytes, held.bytes);
        if self.core.index.relocate(keyed, seen) {
            self.core.suspect([keyed.salt]);
            return Some(seen);
        }
        deltas(self, held.bytes, seen.bytes);
        None
    }

    /// Errors of a volume's disk take it out, when they are enough.
    fn count_error(&self, volume: usize, error: &Error) {
        if let Error::Io { op, errno, .. } = error {
            self.core.read_failed(volume, op, *errno);
        }
    }

    /// The object's descriptor: a cached one, or a new one whose file is what the index knows.
    fn open(&mut self, key: &ObjectKey, name: &str, held: Held, is_doubted: bool) -> Result<Opened> {
        let Held { bytes: expected, volume } = held;
        if let Some(opened) = self.descriptors.get(key) {
            // Someone may have removed or replaced the file: then the name decides, and the space is not held.
            let stat = stat_fd(opened.fd.as_fd()).ok();
            if opened.volume == volume && stat.is_some_and(|stat| stat.links > 0 && stat.bytes == expected) {
                return Ok(opened);
            }
            self.descriptors.take(key);
        }
        let fd = loop {
            match self.core.volumes[volume].dir.open_object(name) {
                Ok(fd) => break fd,
                // Out of descriptors: one that is kept for later makes room.
                Err(Errno::EMFILE | Errno::ENFILE) if self.descriptors.give_back() => {}
                // Gone, or something else in its place: not ours any more.
                Err(_) if matches!(self.core.volumes[volume].dir.stat(name), Ok(None)) => return Err(Error::NotFound),
                Err(errno) => return Err(Error::io("open", name, errno)),
            }
        };
        let stat = stat_fd(fd.as_fd()).map_err(|errno| Error::io("statx", name, errno))?;
        let damaged = |found| Error::Damaged { path: name.into(), expected, found };
        if !stat.is_regular || stat.bytes != expected {
            return Err(damaged(stat.bytes));
        }
        let mut stamp = None;
        let integrity = self.core.volumes[volume].integrity;
        if is_doubted || integrity == Integrity::Verify {
            stamp = read_stamp(fd.as_fd()).map_err(|errno| Error::io("getxattr", name, errno))?;
            if let Some(stamp) = stamp.filter(|stamp| stamp.bytes() != expected) {
                return Err(damaged(stamp.bytes()));
            }
        }
        let trust = &self.core.volumes[volume].dir.trust;
        if is_doubted && stamp.is_none() && integrity != Integrity::Off && trust.is_old(&stat) {
            return Err(Error::Unverifiable { path: name.into() });
        }
        let opened = Opened { fd: Rc::new(fd), volume, stamp };
        self.descriptors.put(key.clone(), opened.clone());
        Ok(opened)
    }

    /// An object, which is kept from removal; asks the disk while the index is not whole.
    fn find(&mut self, keyed: &Keyed, name: &str) -> Option<Held> {
        let whole = self.core.index_is_whole();
        let mut found = self.begin_load(keyed, name);
        if found.is_none() && !whole {
            if let Err(error) = self.core.ask_disk(keyed, name) {
                tracing::warn!(%error, "a load could not ask the disk");
            }
            found = self.begin_load(keyed, name);
        }
        found
    }

    /// What a lost volume had is a miss, before its guard has come to it, too.
    fn begin_load(&mut self, keyed: &Keyed, name: &str) -> Option<Held> {
        let held = self.core.index.begin_load(keyed)?;
        if self.core.volumes[held.volume].is_up() {
            return Some(held);
        }
        self.core.index.doom(keyed);
        if let Some(held) = self.core.index.end_load(keyed, false) {
            self.core.counts.lost_objects.add(1);
            self.remove_doomed(keyed, name, held);
        }
        None
    }

    fn activate_load(&mut self, load: ActiveLoad) {
        self.loads.active += 1;
        self.loads.on_devices += usize::from(load.transfer.target.is_lent());
        let done = load.transfer.is_done();
        let active = self.actives.insert(Active::Load(load));
        if done {
            self.finish_load(active);
        } else {
            self.loads.ready.push_back(active);
        }
    }

    pub(super) fn finish_load(&mut self, active: usize) {
        let Active::Load(load) = self.actives.remove(active) else { unreachable!("a load's number names a load") };
        self.loads.active -= 1;
        self.loads.on_devices -= usize::from(load.transfer.target.is_lent());
        let ActiveLoad { keyed, name, volume, part, transfer, check, _queued } = load;
        let bytes = transfer.len as u64;
        let wrong = |(stamp, sum): (Stamp, Sum)| stamp.checksum() != sum.finish();
        let buffer = transfer.target.into_buffer();
        match transfer.error {
            None if check.is_some_and(wrong) => {
                self.core.counts.checksum_failures.add(1);
                let error = Error::Corrupt { path: name.clone() };
                self.fail_load(&keyed, &name, part, error, buffer);
            }
            None => {
                let volume = &self.core.volumes[volume];
                volume.presence.read();
                volume.dir.trust.prove(keyed.hash());
                self.end_load(&keyed, &name, part, Ok(bytes), buffer);
            }
            Some(error @ Error::Damaged { .. }) => self.fail_load(&keyed, &name, part, error, buffer),
            Some(error) => {
                self.count_error(volume, &error);
                self.end_load(&keyed, &name, part, Err(error), buffer);
            }
        }
    }

    /// Ends a load of an object that is not what the index knows: it goes.
    fn fail_load(&mut self, keyed: &Keyed, name: &str, part: Part<LoadReport>, error: Error, buffer: Option<Buffer>) {
        tracing::warn!(key = %keyed.key, %error, "an object's file is gone or damaged; the object is dropped");
        self.core.counts.damaged.add(1);
        self.descriptors.take(&keyed.key);
        self.core.index.doom(keyed);
        self.end_load(keyed, name, part, Err(error), buffer);
    }

    fn end_load(
        &mut self,
        keyed: &Keyed,
        name: &str,
        part: Part<LoadReport>,
        result: Result<u64, Error>,
        buffer: Option<Buffer>,
    ) {
        let counts = &self.core.counts;
        match &result {
            Ok(bytes) => {
                counts.loads.add(1);
                counts.loaded_bytes.add(*bytes);
                self.core.watches[self.me].load.record(part.age());
            }
            Err(Error::NotFound) => counts.load_misses.add(1),
            Err(_) => counts.load_errors.add(1),
        }
        let used = result.is_ok();
        self.answers.push(Answer::Load(part, result, buffer));
        if let Some(held) = self.core.index.end_load(keyed, used) {
            self.remove_doomed(keyed, name, held);
        }
    }
}
