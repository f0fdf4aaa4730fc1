//! What a shard asks of the kernel, and in which order: syncs, then pieces, loads before stores, one of each object in turn; and
//! what becomes of a piece when it has ended.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use nix::errno::Errno;

use super::device::Issued;
use super::transfer::{Piece, Target};
use super::{Active, Shard};
use crate::error::Result;
use crate::mem::IoBuffer;
use crate::ring::{Completion, Op, Request};
use crate::volume::SyncNumber;

/// The share of the ring that stores keep while loads are waiting: one part of this many.
const STORE_SHARE: usize = 8;

/// What a completion belongs to.
pub(super) enum Pending {
    Piece {
        active: usize,
        piece: Piece,
        bounce: Option<IoBuffer>,
    },
    /// A piece of a device's object, in a slot.
    Slot {
        active: usize,
        piece: Piece,
        slot: IoBuffer,
    },
    /// fdatasync of an object, before it is published.
    DataSync {
        active: usize,
    },
    /// fsync of a directory, which makes these objects' names durable.
    DirSync {
        actives: Vec<usize>,
        /// It is the sync of the volume's own directory, of which one runs at a time.
        is_shared: bool,
    },
    /// fsync of the spares' directory, which makes retired files clean.
    SpareSync(SyncNumber),
}

/// Which class a piece counts for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Load,
    Store,
}

/// Work of one class.
pub(super) struct Lane {
    /// Active objects with pieces still to be asked for, in turn.
    pub(super) ready: VecDeque<usize>,
    pub(super) active: usize,
    pub(super) bytes: usize,
    pub(super) requests: usize,
    /// Of the active objects, those in a caller's memory of a device.
    pub(super) on_devices: usize,
    /// Bound of `bytes`.
    pub(super) limit: usize,
}

impl Lane {
    pub(super) fn new(limit: usize) -> Self {
        Self { ready: VecDeque::new(), active: 0, bytes: 0, requests: 0, on_devices: 0, limit }
    }

    pub(super) fn has_room(&self) -> bool {
        // One request always goes: a bound below its size must not hold it up for ever.
        self.requests == 0 || self.bytes < self.limit
    }
}

impl Shard {
    /// Asks the kernel for pieces, as many as it may have: one of each object in turn, so that a large one does not hold
    /// up the small ones behind it.
    pub(super) fn issue(&mut self) {
        while self.ring.room() > 0
            && let Some((pending, op, fd)) = self.syncs.pop_front()
        {
            self.push(Request { op, fd, span: None, offset: 0, token: pending });
        }
        let share = self.core.config.depth / STORE_SHARE;
        while self.ring.room() > 0 {
            let order =
                if self.stores.requests < share { [Class::Store, Class::Load] } else { [Class::Load, Class::Store] };
            let issued = order.into_iter().any(|class| self.issue_one(class));
            if !issued {
                return;
            }
        }
    }

    /// After an object has begun: a device with little to do gets a piece at once, and not after the next files have been opened or
    /// created, each of which takes tens of microseconds. One piece, for large objects must not come before the small ones behind them.
    pub(super) fn feed(&mut self, class: Class) -> Result<()> {
        if self.ring.room() > 0 {
            self.issue_one(class);
        }
        self.ring.feed()
    }

    pub(super) fn lane(&mut self, class: Class) -> &mut Lane {
        match class {
            Class::Load => &mut self.loads,
            Class::Store => &mut self.stores,
        }
    }

    /// One piece of one object of a class; false when none can go.
    pub(super) fn issue_one(&mut self, class: Class) -> bool {
        if self.issue_again(class) || (class == Class::Store && self.issue_staged()) {
            return true;
        }
        for _ in 0..self.lane(class).ready.len() {
            let lane = self.lane(class);
            if !lane.has_room() {
                return false;
            }
            let Some(active) = lane.ready.pop_front() else { return false };
            let transfer = self.actives[active].transfer();
            let Some(piece) = transfer.next() else { continue };
            if let Target::Device(_) = transfer.target {
                match self.issue_device_piece(class, active, piece) {
                    Issued::Yes => return true,
                    // Its turn comes again when a slot is back.
                    Issued::NoRoom => self.lane(class).ready.push_back(active),
                    Issued::Parked => {}
                }
                continue;
            }
            if piece.bounce && self.bounce.is_empty() {
                // Its turn comes again when a bounce buffer is back.
                self.lane(class).ready.push_back(active);
                continue;
            }
            self.issue_piece(class, active, piece);
            return true;
        }
        false
    }

    pub(super) fn issue_piece(&mut self, class: Class, active: usize, piece: Piece) {
        let transfer = self.actives[active].transfer();
        let Target::Host(memory) = &transfer.target else { unreachable!("pieces of devices go another way") };
        let mut bounce = None;
        let span = if piece.bounce {
            let buffer = self.bounce.pop().expect("checked by the caller");
            // A direct transfer is whole blocks: what goes past the end is cut off again, or was never there.
            let span = buffer.span(0, piece.len.next_multiple_of(transfer.grid.offset_align));
            if class == Class::Store {
                span.copy_from(&memory.span(piece.offset, piece.len));
                span.zero_from(piece.len);
            }
            bounce = Some(buffer);
            self.core.counts.bounced_bytes.add(piece.len as u64);
            span
        } else {
            memory.span(piece.offset, piece.len)
        };
        transfer.issue(piece);
        let (fd, more) = (transfer.fd.clone(), transfer.next().is_some());
        let lane = self.lane(class);
        lane.bytes += piece.len;
        lane.requests += 1;
        if more {
            lane.ready.push_back(active);
        }
        let token = self.pending.insert(Pending::Piece { active, piece, bounce });
        let op = if class == Class::Load { Op::Read } else { Op::Write };
        self.push(Request { op, fd, span: Some(span), offset: piece.offset as u64, token });
    }

    pub(super) fn push(&mut self, request: Request) {
        let pushed = self.ring.push(request);
        assert!(pushed.is_ok(), "room was checked before");
    }

    /// Queues a sync; it goes before new pieces.
    pub(super) fn sync(&mut self, pending: Pending, op: Op, fd: Rc<OwnedFd>) {
        let token = self.pending.insert(pending);
        self.syncs.push_back((token, op, fd));
    }

    pub(super) fn complete(&mut self, completion: Completion) {
        match self.pending.remove(completion.token) {
            Pending::Piece { active, piece, bounce } => self.end_piece(active, piece, bounce, completion.result),
            Pending::Slot { active, piece, slot } => self.end_slot(active, piece, slot, completion.result),
            Pending::DataSync { active } => self.data_synced(active, completion.result.map(drop)),
            Pending::SpareSync(number) => self.spares_synced(number, completion.result.map(drop)),
            Pending::DirSync { actives, is_shared } => {
                self.dir_synced(actives, is_shared, completion.result.map(drop));
            }
        }
    }

    pub(super) fn end_piece(
        &mut self,
        active: usize,
        piece: Piece,
        bounce: Option<IoBuffer>,
        result: Result<usize, Errno>,
    ) {
        let lane = self.lane(self.actives[active].class());
        lane.bytes -= piece.len;
        lane.requests -= 1;
        match &mut self.actives[active] {
            Active::Load(load) => load.end_piece(piece, bounce.as_ref(), result),
            Active::Store(store) => store.end_piece(result),
        }
        self.bounce.extend(bounce);
        self.end_transfer(active);
    }

    /// A piece has ended; perhaps its object has.
    pub(super) fn end_transfer(&mut self, active: usize) {
        self.actives[active].transfer().end();
        self.settle_transfer(active);
    }

    /// Ends an object whose pieces have all ended.
    pub(super) fn settle_transfer(&mut self, active: usize) {
        let class = self.actives[active].class();
        let transfer = self.actives[active].transfer();
        if transfer.waits_for_turn() {
            self.lane(class).ready.push_back(active);
        } else if transfer.is_done() {
            self.forget_gate(active);
            let transfer = self.actives[active].transfer();
            if transfer.error.is_some() {
                // A piece has failed with others still to be asked for: its number is another object's soon.
                self.lane(class).ready.retain(|waiting| *waiting != active);
            }
            match &self.actives[active] {
                Active::Load(_) => self.finish_load(active),
                Active::Store(store) if store.is_written() => self.written.push_back(active),
                // The checksum is behind, and goes on (`sum_some`).
                Active::Store(_) => {}
            }
        }
    }
}
