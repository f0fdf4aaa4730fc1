//! Objects in a device's memory: how their pieces pass through slots.
//!
//! ```text
//! load:   slot, read by the ring -> (checksum) -> copy to the device -> end of the piece
//! store:  slot, copy from the device -> (checksum) -> staged -> written by the ring -> end of the piece
//!         a copy that fails is made again from the same slot, up to `COPY_ATTEMPTS` times in all
//! direct: one transfer between file and device, without a slot and without a checksum; through a slot after all, where that fails
//! ```
//! Nothing touches an object's memory before its caller's work is done (`gate.rs`).
//! Everything before and after is as for host memory. Without a device nothing here is called but for a look at an empty list.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;

use super::gate::Gate;
use super::transfer::{Grid, Piece, Target, Transfer};
use super::{Active, Class, LoadOp, Pending, Shard, StoreOp};
use crate::device::attached::Attached;
use crate::device::lane::{COPY_WAIT_US, Copied, Lane, given_up};
use crate::device::{COPY_ATTEMPTS, DIRECT_ALIGN_BYTES, DeviceError, DirectOp, Direction, Fence, Place};
use crate::error::{Error, Result};
use crate::integrity::Sum;
use crate::mem::{Buffer, DeviceBuffer, DeviceId, IoBuffer};
use crate::ring::{Op, Request, Wait};

/// How late a shard with a device may wake from its short sleeps, in nanoseconds; the kernel's default is as long as they are.
const TIMER_SLACK_NS: u64 = 2_000;

/// After so many looks at which nothing had ended the shard's sleeps double, as often as this: 50 us for the first 3 ms, which is longer
/// than any chunk takes, and at last 1.6 ms.
const IDLE_LOOKS: u32 = 64;
const IDLE_DOUBLINGS_MAX: u32 = 5;

/// A chunk that found no slot while others got this many, for each place of the shard, takes a shorter one: small objects that keep coming
/// would have every gap before there is one of its length. In turn with chunks like it, none waits for more than one slot a place.
const PASSES_PER_PLACE: u64 = 2;

/// The shortest slot is this long, or as the file system aligns.
const SLOT_BYTES_MIN: usize = 4096;

/// What a copy belongs to.
pub(super) struct Tag {
    active: usize,
    piece: Piece,
    /// How often it has failed.
    failures: u32,
}

impl Tag {
    pub(super) fn new(active: usize, piece: Piece) -> Self {
        Self { active, piece, failures: 0 }
    }
}

/// What came of a piece that was to begin.
pub(super) enum Issued {
    Yes,
    /// Not before something that is under way has ended.
    NoRoom,
    /// Not before its gate is open, which gives the object its turn again.
    Parked,
}

/// Bytes of a store that have come from the device, and wait for room in the ring.
struct Staged {
    active: usize,
    piece: Piece,
    slot: IoBuffer,
}

/// The devices of one shard.
#[derive(Default)]
pub(super) struct Devices {
    pub(super) lanes: Vec<Lane<Tag>>,
    /// Made, and not in use before all shards have theirs.
    unsettled: Vec<Lane<Tag>>,
    staged: VecDeque<Staged>,
    /// Pieces whose direct transfer has failed, to go through slots.
    again: VecDeque<(usize, Piece)>,
    /// Objects that wait for their caller's work, and by lane the bytes that loads among them have asked of the disk.
    pub(super) gated: Vec<usize>,
    pub(super) ahead: Vec<usize>,
    /// Objects of devices that wait for a place.
    pub(super) waiting_loads: VecDeque<LoadOp>,
    pub(super) waiting_stores: VecDeque<StoreOp>,
    /// When the engine began to close.
    pub(super) closing: Option<Instant>,
    /// Looks in a row at which nothing had ended, although something was under way.
    idle_looks: u32,
}

impl Devices {
    /// How long the shard may sleep: copies that end wake nobody.
    pub(super) fn sleep(&self) -> Wait {
        match self.is_busy() {
            // A fence that takes its time, or a device that hangs: no reason to look 20,000 times a second.
            true => Wait::AtMostUs(COPY_WAIT_US << (self.idle_looks / IDLE_LOOKS).min(IDLE_DOUBLINGS_MAX)),
            false => Wait::Forever,
        }
    }

    fn is_busy(&self) -> bool {
        !self.gated.is_empty() || self.lanes.iter().any(Lane::is_busy)
    }

    /// From now on what waits for a device waits no longer than its `close_deadline`.
    pub(super) fn close(&mut self) {
        self.closing = Some(Instant::now());
    }

    /// Hands queued copies over.
    pub(super) fn flush(&mut self) {
        self.lanes.iter_mut().for_each(Lane::flush);
    }

    /// The lane of a buffer's memory; `None` for memory of the host's.
    pub(super) fn lane_of(&self, buffer: &Buffer) -> Result<Option<usize>> {
        match buffer.device() {
            Some(memory) => {
                let found = self.lanes.iter().position(|lane| lane.id() == memory.device());
                found.map(Some).ok_or(Error::NotAttached)
            }
            None => Ok(self.lanes.iter().position(|lane| lane.attached().loopback)),
        }
    }

    /// The memory of an object as a transfer uses it, with the lane that `lane_of` has found. `direct_on`: the volume, where no
    /// checksum has to see the bytes.
    pub(super) fn target(&self, buffer: Buffer, lane: Option<usize>, direct_on: Option<usize>, grid: Grid) -> Target {
        let Some(lane) = lane else { return Target::Host(IoBuffer::new(buffer)) };
        let attached = self.lanes[lane].attached();
        let memory = match buffer.into_device() {
            Ok(memory) => Memory::Lent(memory),
            Err(buffer) => Memory::Loopback(IoBuffer::new(buffer)),
        };
        let direct = direct_on.is_some_and(|volume| attached.is_direct(volume));
        let direct = direct.then(|| DIRECT_ALIGN_BYTES.max(grid.offset_align));
        let chunk = attached.options.chunk_bytes;
        let gate = Gate::new(memory.after());
        let unsummed = Vec::new();
        let (is_given_up, waits_since) = (false, None);
        Target::Device(Box::new(DeviceTarget { lane, chunk, direct, memory, gate, is_given_up, waits_since, unsummed }))
    }
}

/// The far side of a transfer.
enum Memory {
    Lent(DeviceBuffer),
    Loopback(IoBuffer),
}

impl Memory {
    fn after(&self) -> Option<Fence> {
        match self {
            Self::Lent(memory) => memory.after().cloned(),
            Self::Loopback(_) => None,
        }
    }
}

/// An object's memory on a device.
pub(super) struct DeviceTarget {
    pub(super) lane: usize,
    chunk: usize,
    /// What direct pieces are multiples of, where they are allowed.
    direct: Option<usize>,
    memory: Memory,
    /// The caller's work that has to be done before.
    pub(super) gate: Gate,
    /// The device was given up with copies of this object under way: its memory is nobody's any more.
    is_given_up: bool,
    /// How many slots its direction had given when there was none for it; until there is one as long as it asks for.
    waits_since: Option<u64>,
    /// Slots whose bytes the checksum has not come to, by offset: pieces come in any order.
    unsummed: Vec<(usize, IoBuffer)>,
}

impl DeviceTarget {
    /// Whether it is a caller's memory of a device, not of the host's that stands for one.
    pub(super) fn is_lent(&self) -> bool {
        matches!(self.memory, Memory::Lent(_))
    }

    pub(super) fn len(&self) -> usize {
        match &self.memory {
            Memory::Lent(memory) => memory.len(),
            Memory::Loopback(buffer) => buffer.len(),
        }
    }

    pub(super) fn into_buffer(self) -> Option<Buffer> {
        if self.is_given_up {
            std::mem::forget(self.memory);
            return None;
        }
        match self.memory {
            Memory::Lent(memory) => Some(memory.into()),
            Memory::Loopback(buffer) => buffer.into_buffer().ok(),
        }
    }

    /// The piece at this offset; it goes directly if it is not marked `bounce`.
    pub(super) fn piece(&self, offset: usize) -> Piece {
        let len = (self.len() - offset).min(self.chunk);
        if let (Some(align), Memory::Lent(memory)) = (self.direct, &self.memory)
            && offset.is_multiple_of(align)
            && len >= align
            && let [range] = memory.part(offset, len)[..]
            && range.address.is_multiple_of(DIRECT_ALIGN_BYTES as u64)
        {
            return Piece { offset, len: len - len % align, bounce: false };
        }
        Piece { offset, len, bounce: true }
    }

    pub(super) fn place(&self, piece: Piece) -> Place {
        match &self.memory {
            Memory::Lent(memory) => Place::Device(memory.part(piece.offset, piece.len)),
            Memory::Loopback(buffer) => Place::Loopback(buffer.span(piece.offset, piece.len)),
        }
    }

    /// Adds a piece, whose bytes are in `slot`, to a checksum.
    fn sum_slot(&mut self, sum: &mut Sum, piece: Piece, slot: &IoBuffer) {
        self.unsummed.push((piece.offset, slot.clone()));
        let unsummed = &self.unsummed;
        sum.add(piece.offset, piece.len, |offset, len, take| {
            for (_, slot) in unsummed.iter().filter(|(at, _)| *at == offset) {
                slot.span(0, len).with_bytes(|bytes| take(bytes));
            }
        });
        self.unsummed.retain(|(offset, _)| *offset >= sum.upto());
    }
}

fn device_of(transfer: &mut Transfer) -> &mut DeviceTarget {
    match &mut transfer.target {
        Target::Device(device) => device,
        Target::Host(_) => unreachable!("a piece in a slot, or on a device, is of a device's object"),
    }
}

impl Shard {
    /// Makes a device's queue of copies.
    pub(super) fn attach(&mut self, attached: Arc<Attached>) -> Result<()> {
        let lane = Lane::new(attached.clone(), self.me).map_err(|error| Error::device(&*attached.device, error))?;
        self.devices.unsettled.push(lane);
        Ok(())
    }

    /// Takes a device into use, or gives up what was made for it.
    pub(super) fn settle_device(&mut self, device: DeviceId, keep: bool) {
        let Some(index) = self.devices.unsettled.iter().position(|lane| lane.id() == device) else { return };
        let lane = self.devices.unsettled.swap_remove(index);
        if !keep {
            return;
        }
        self.ring.adopt(&self.core.registry);
        if let Err(errno) = nix::sys::prctl::set_timerslack(TIMER_SLACK_NS) {
            tracing::warn!(%errno, "the shard's timer slack stays as it is: copies may be noticed later");
        }
        self.devices.lanes.push(lane);
        self.devices.ahead.push(0);
    }

    /// Takes what the devices have done, and looks at what is waited for.
    pub(super) fn poll_devices(&mut self) {
        if !self.devices.is_busy() {
            return;
        }
        let mut has_moved = self.open_gates();
        for index in 0..self.devices.lanes.len() {
            let lane = &mut self.devices.lanes[index];
            if lane.is_busy() {
                let mut ended = Vec::new();
                lane.flush();
                lane.poll(&mut ended);
                has_moved |= !ended.is_empty();
                ended.into_iter().for_each(|copied| self.copied(index, copied));
            }
        }
        let idle_looks = self.devices.idle_looks.saturating_add(1);
        self.devices.idle_looks = if has_moved { 0 } else { idle_looks };
    }

    /// While the engine closes: gives up devices on which nothing has ended for as long as `close_deadline`. Whether it has: then what waits
    /// for their slots has to be failed ([`Shard::issue`]).
    pub(super) fn give_up_devices(&mut self) -> bool {
        let Some(closing) = self.devices.closing else { return false };
        let mut has_given_up = false;
        for index in 0..self.devices.lanes.len() {
            let lane = &mut self.devices.lanes[index];
            let deadline = lane.attached().options.close_deadline;
            if lane.is_stuck_since().is_none_or(|since| since.max(closing).elapsed() <= deadline) {
                continue;
            }
            let name = lane.attached().device.name();
            let reason = format!("nothing ended on it for {} s, and it was given up", deadline.as_secs_f64());
            tracing::error!(device = name, "{reason}; slots and buffers of its copies are never freed");
            let error = Error::Device { device: name, op: "copy", reason };
            for (Tag { active, piece, .. }, is_direct) in lane.abandon() {
                if is_direct {
                    self.end_direct(active, piece);
                }
                self.give_up_piece(active, error.clone());
            }
            has_given_up = true;
        }
        has_given_up
    }

    /// Fails an object whose device was given up before all of its pieces were asked for: no slot comes back for them.
    fn fail_unasked(&mut self, active: usize, lane: usize) {
        let error = Error::device(&*self.devices.lanes[lane].attached().device, given_up());
        self.actives[active].transfer().fail(error);
        self.drop_held(active);
        self.settle_transfer(active);
    }

    /// Ends a piece that the device may still be at work on: its object fails, and its memory is not given back.
    fn give_up_piece(&mut self, active: usize, error: Error) {
        let transfer = self.actives[active].transfer();
        device_of(transfer).is_given_up = true;
        transfer.fail(error);
        self.drop_held(active);
        self.end_transfer(active);
    }

    /// Begins a piece of a device's object.
    pub(super) fn issue_device_piece(&mut self, class: Class, active: usize, piece: Piece) -> Issued {
        let lane = device_of(self.actives[active].transfer()).lane;
        if self.devices.lanes[lane].is_given_up() {
            self.fail_unasked(active, lane);
            return Issued::Yes;
        }
        let piece = self.admit(active, piece);
        if !self.pass_gate(class, active, piece) {
            return Issued::Parked;
        }
        let begun = if piece.bounce {
            self.fill_slot(class, active, piece)
        } else {
            self.transfer_directly(class, active, piece).then_some(piece)
        };
        self.take_back_ahead(active, piece.len - begun.map_or(0, |begun| begun.len));
        let Some(piece) = begun else { return Issued::NoRoom };
        let transfer = self.actives[active].transfer();
        transfer.issue(piece);
        if transfer.next().is_some() {
            self.lane(class).ready.push_back(active);
        }
        Issued::Yes
    }

    /// Where a piece is to go directly, but its file does not: the piece as it goes instead, as all that follow do.
    fn admit(&mut self, active: usize, piece: Piece) -> Piece {
        if piece.bounce {
            return piece;
        }
        let transfer = self.actives[active].transfer();
        let fd = transfer.fd.clone();
        let device = device_of(transfer);
        let lane = &mut self.devices.lanes[device.lane];
        let Err(error) = lane.admit_direct(&fd) else { return piece };
        lane.attached().refuse(&error);
        device.direct = None;
        device.piece(piece.offset)
    }

    /// Begins a direct transfer; false when there are as many as there may be.
    fn transfer_directly(&mut self, class: Class, active: usize, piece: Piece) -> bool {
        let transfer = self.actives[active].transfer();
        let fd = transfer.fd.clone();
        let device = device_of(transfer);
        let lane = &mut self.devices.lanes[device.lane];
        let Place::Device(ranges) = device.place(piece) else { return false };
        if !lane.has_direct_room() {
            return false;
        }
        let op = DirectOp { direction: direction(class), fd, offset: piece.offset as u64, range: ranges[0], token: 0 };
        lane.direct(op, Tag::new(active, piece));
        // Bounded as requests of the ring are, so that loads go before stores here, too.
        let lane = self.lane(class);
        lane.bytes += piece.len;
        lane.requests += 1;
        true
    }

    /// A direct transfer is over, or given up.
    fn end_direct(&mut self, active: usize, piece: Piece) {
        let lane = self.lane(self.actives[active].class());
        lane.bytes -= piece.len;
        lane.requests -= 1;
    }

    /// Begins to fill a slot with a piece, or with its first part; gives what was begun, and nothing when there is no slot now.
    fn fill_slot(&mut self, class: Class, active: usize, piece: Piece) -> Option<Piece> {
        let passes = PASSES_PER_PLACE * self.core.config.depth as u64;
        let transfer = self.actives[active].transfer();
        let align = transfer.grid.offset_align;
        let device = device_of(transfer);
        let lane = &mut self.devices.lanes[device.lane];
        let (direction, mut piece) = (direction(class), piece);
        let given = lane.slots_given(direction);
        let mut slot = lane.slot(direction, piece.len.next_multiple_of(align));
        if slot.is_some() {
            device.waits_since = None;
        } else if given - *device.waits_since.get_or_insert(given) > passes {
            let unit = SLOT_BYTES_MIN.next_multiple_of(align);
            while slot.is_none() && piece.len > unit {
                piece.len = (piece.len / 2).next_multiple_of(unit);
                slot = lane.slot(direction, piece.len);
            }
        }
        let slot = slot?;
        match class {
            Class::Load => self.push_slot(class, active, piece, slot),
            Class::Store => lane.copy(direction, slot, piece.len, device.place(piece), Tag::new(active, piece)),
        }
        Some(piece)
    }

    /// Begins a piece whose direct transfer has failed once more, through a slot; false when there is none, or no room for it.
    pub(super) fn issue_again(&mut self, class: Class) -> bool {
        let is_of_class = |(active, _): &(usize, Piece)| self.actives[*active].class() == class;
        let Some(index) = self.devices.again.iter().position(is_of_class) else { return false };
        let (active, piece) = self.devices.again[index];
        let lane = &self.devices.lanes[device_of(self.actives[active].transfer()).lane];
        if lane.is_given_up() {
            // No slot comes back for it.
            let error = Error::device(&*lane.attached().device, given_up());
            self.actives[active].transfer().fail(error);
        }
        if self.actives[active].transfer().error.is_some() {
            self.devices.again.remove(index);
            self.end_transfer(active);
            return true;
        }
        if !self.lane(class).has_room() {
            return false;
        }
        let Some(begun) = self.fill_slot(class, active, piece) else { return false };
        if begun.len < piece.len {
            self.actives[active].transfer().split();
            let (offset, len) = (piece.offset + begun.len, piece.len - begun.len);
            self.devices.again[index].1 = Piece { offset, len, ..piece };
        } else {
            self.devices.again.remove(index);
        }
        true
    }

    /// Writes the next piece that has come from a device; false when there is none, or no room for it.
    pub(super) fn issue_staged(&mut self) -> bool {
        if !self.stores.has_room() {
            return false;
        }
        let Some(Staged { active, piece, slot }) = self.devices.staged.pop_front() else { return false };
        if self.actives[active].transfer().error.is_some() {
            drop(slot);
            self.end_transfer(active);
        } else {
            self.push_slot(Class::Store, active, piece, slot);
        }
        true
    }

    fn push_slot(&mut self, class: Class, active: usize, piece: Piece, slot: IoBuffer) {
        let transfer = self.actives[active].transfer();
        let span = slot.span(0, piece.len.next_multiple_of(transfer.grid.offset_align));
        let fd = transfer.fd.clone();
        let lane = self.lane(class);
        lane.bytes += piece.len;
        lane.requests += 1;
        let token = self.pending.insert(Pending::Slot { active, piece, slot });
        let op = if class == Class::Load { Op::Read } else { Op::Write };
        self.push(Request { op, fd, span: Some(span), offset: piece.offset as u64, token });
    }

    /// The disk is done with a slot.
    pub(super) fn end_slot(&mut self, active: usize, piece: Piece, slot: IoBuffer, result: Result<usize, Errno>) {
        let lane = self.lane(self.actives[active].class());
        lane.bytes -= piece.len;
        lane.requests -= 1;
        match &mut self.actives[active] {
            Active::Store(store) => store.end_piece(result),
            Active::Load(load) => {
                load.check_read(piece, result);
                if load.transfer.error.is_none() {
                    let device = device_of(&mut load.transfer);
                    if let Some((_, sum)) = &mut load.check {
                        device.sum_slot(sum, piece, &slot);
                    }
                    if !device.gate.is_open() {
                        return device.gate.hold(piece, slot);
                    }
                    let place = device.place(piece);
                    let lane = &mut self.devices.lanes[device.lane];
                    return lane.copy(Direction::ToDevice, slot, piece.len, place, Tag::new(active, piece));
                }
            }
        }
        drop(slot);
        if self.actives[active].transfer().error.is_some() {
            self.drop_held(active);
        }
        self.end_transfer(active);
    }

    /// The device is done with a copy, or with a direct transfer.
    fn copied(&mut self, lane: usize, copied: Copied<Tag>) {
        let Copied { mut slot, tag, result, is_lost, is_direct } = copied;
        let Tag { active, piece, .. } = tag;
        if is_direct {
            self.end_direct(active, piece);
        }
        if let Err(error) = result {
            let attached = self.devices.lanes[lane].attached();
            if is_lost {
                attached.refuse(&error);
                let error = Error::device(&*attached.device, error);
                return self.give_up_piece(active, error);
            }
            if is_direct {
                attached.refuse(&error);
                return self.copy_instead(active, piece);
            }
            let tag = Tag { failures: tag.failures + 1, ..tag };
            if let Some(slot) = slot.take_if(|_| self.may_copy_again(lane, &tag)) {
                return self.copy_again(lane, slot, tag, &error);
            }
            let error = Error::device(&*self.devices.lanes[lane].attached().device, error);
            self.actives[active].transfer().fail(error);
        }
        if let (Some(slot), Active::Store(store)) = (&slot, &mut self.actives[active])
            && store.transfer.error.is_none()
        {
            if let Some(sum) = &mut store.sum {
                device_of(&mut store.transfer).sum_slot(sum, piece, slot);
            }
            let align = store.transfer.grid.offset_align;
            slot.span(0, piece.len.next_multiple_of(align)).zero_from(piece.len);
            return self.devices.staged.push_back(Staged { active, piece, slot: slot.clone() });
        }
        drop(slot);
        self.end_transfer(active);
    }

    /// Whether a copy that has failed is made once more: as long as somebody waits for its object, and for the device.
    fn may_copy_again(&mut self, lane: usize, tag: &Tag) -> bool {
        let lane = &self.devices.lanes[lane];
        let deadline = lane.attached().options.close_deadline;
        let active = &mut self.actives[tag.active];
        tag.failures < COPY_ATTEMPTS
            && !lane.is_given_up()
            && self.devices.closing.is_none_or(|closing| closing.elapsed() <= deadline)
            && active.transfer().error.is_none()
            && !active.is_expired()
    }

    /// Makes a copy again that has failed. The slot is still the piece's: of a load it has what came from the disk, of a store nothing that
    /// anybody has looked at. Of the object's memory a load has written some, which it writes again.
    fn copy_again(&mut self, lane: usize, slot: IoBuffer, tag: Tag, error: &DeviceError) {
        let active = &mut self.actives[tag.active];
        let (direction, place) = (direction(active.class()), device_of(active.transfer()).place(tag.piece));
        let lane = &mut self.devices.lanes[lane];
        lane.attached().repeat(error);
        lane.copy(direction, slot, tag.piece.len, place, tag);
    }

    /// A direct transfer has failed: its piece goes through a slot, and so does what comes after it.
    fn copy_instead(&mut self, active: usize, piece: Piece) {
        device_of(self.actives[active].transfer()).direct = None;
        self.devices.again.push_back((active, Piece { bounce: true, ..piece }));
    }
}

fn direction(class: Class) -> Direction {
    match class {
        Class::Load => Direction::ToDevice,
        Class::Store => Direction::FromDevice,
    }
}
