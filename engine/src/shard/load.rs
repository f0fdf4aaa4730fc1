//! What happens on a load: index, open, read, answer.

use nix::errno::Errno;

use super::transfer::{Piece, Transfer};
use super::{Active, Answer, LoadOp, Shard};
use crate::core::Queued;
use crate::error::Error;
use crate::index::Keyed;
use crate::mem::{Buffer, IoBuffer};
use crate::report::LoadReport;
use crate::sys::stat_fd;
use crate::ticket::Part;

/// A load whose file is open.
pub(super) struct ActiveLoad {
    keyed: Keyed,
    name: String,
    part: Part<LoadReport>,
    pub(super) transfer: Transfer,
    _queued: Queued,
}

impl ActiveLoad {
    /// Takes what a piece has brought.
    pub(super) fn end_piece(&mut self, piece: Piece, bounce: Option<&IoBuffer>, result: Result<usize, Errno>) {
        match result {
            Ok(bytes) if bytes >= piece.len => {
                if let Some(bounce) = bounce {
                    self.transfer.buffer.span(piece.offset, piece.len).copy_from(&bounce.span(0, piece.len));
                }
            }
            Ok(bytes) => self.transfer.fail(Error::Damaged {
                path: self.name.clone(),
                expected: self.transfer.len as u64,
                found: (piece.offset + bytes) as u64,
            }),
            Err(errno) => self.transfer.fail(Error::io("read", &self.name, errno)),
        }
    }
}

impl Shard {
    pub(super) fn start_load(&mut self, op: LoadOp) {
        if op.part.is_expired() {
            return;
        }
        let Some(size) = self.find(&op.keyed, &op.name) else {
            self.core.counts.load_misses.add(1);
            return self.answers.push(Answer::Load(op.part, Err(Error::NotFound), Some(op.buffer)));
        };
        let (object_bytes, buffer_bytes) = (size, op.buffer.len() as u64);
        let padding = self.core.config.padding_bytes;
        let fits =
            object_bytes == buffer_bytes || (object_bytes > buffer_bytes && object_bytes - buffer_bytes < padding);
        if !fits {
            let error = Error::WrongSize { object_bytes, buffer_bytes };
            return self.end_load(&op.keyed, &op.name, op.part, Err(error), Some(op.buffer));
        }
        let opened = self.core.volume.open_object(&op.name).and_then(|fd| {
            let stat = stat_fd(std::os::fd::AsFd::as_fd(&fd))?;
            Ok((fd, stat))
        });
        match opened {
            Ok((fd, stat)) if stat.is_regular && stat.bytes == object_bytes => {
                let transfer = Transfer::new(IoBuffer::new(op.buffer), fd);
                self.activate_load(ActiveLoad {
                    keyed: op.keyed,
                    name: op.name,
                    part: op.part,
                    transfer,
                    _queued: op._queued,
                });
            }
            Ok((_, stat)) => {
                let error = Error::Damaged { path: op.name.clone(), expected: object_bytes, found: stat.bytes };
                self.fail_load(&op.keyed, &op.name, op.part, error, Some(op.buffer));
            }
            // Gone, or something else in its place: not ours any more.
            Err(Errno::ENOENT | Errno::ELOOP | Errno::EISDIR | Errno::ENXIO | Errno::ENOTDIR | Errno::EXDEV) => {
                self.fail_load(&op.keyed, &op.name, op.part, Error::NotFound, Some(op.buffer));
            }
            Err(errno) => {
                let error = Error::io("open", &op.name, errno);
                self.end_load(&op.keyed, &op.name, op.part, Err(error), Some(op.buffer));
            }
        }
    }

    /// The size of an object, which is kept from removal; asks the disk while the scan is not complete.
    fn find(&self, keyed: &Keyed, name: &str) -> Option<u64> {
        let complete = self.core.recovery.is_complete();
        let found = self.core.index.begin_load(keyed);
        if found.is_some() || complete {
            return found;
        }
        if let Err(error) = self.core.ask_disk(keyed, name) {
            tracing::warn!(%error, "a load could not ask the disk");
        }
        self.core.index.begin_load(keyed)
    }

    fn activate_load(&mut self, load: ActiveLoad) {
        self.loads.active += 1;
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
        let ActiveLoad { keyed, name, part, transfer, _queued } = load;
        let bytes = transfer.len as u64;
        let buffer = transfer.buffer.into_buffer().ok();
        match transfer.error {
            None => self.end_load(&keyed, &name, part, Ok(bytes), buffer),
            Some(error @ Error::Damaged { .. }) => self.fail_load(&keyed, &name, part, error, buffer),
            Some(error) => self.end_load(&keyed, &name, part, Err(error), buffer),
        }
    }

    /// Ends a load of an object that is not what the index knows: it goes.
    fn fail_load(&mut self, keyed: &Keyed, name: &str, part: Part<LoadReport>, error: Error, buffer: Option<Buffer>) {
        tracing::warn!(key = %keyed.key, %error, "an object's file is gone or damaged; the object is dropped");
        self.core.counts.damaged.add(1);
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
            }
            Err(Error::NotFound) => counts.load_misses.add(1),
            Err(_) => counts.load_errors.add(1),
        }
        let used = result.is_ok();
        self.answers.push(Answer::Load(part, result, buffer));
        if self.core.index.end_load(keyed, used) {
            self.remove_doomed(keyed, name);
        }
    }
}
