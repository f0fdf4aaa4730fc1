//! Objects in a device's memory: how their pieces pass through slots.
//!
//! ```text
//! load:   slot, read by the ring -> (checksum) -> copy to the device -> end of the piece
//! store:  slot, copy from the device -> (checksum) -> staged -> written by the ring -> end of the piece
//! direct: one transfer between file and device, without a slot and without a checksum
//! ```
//! Everything before and after is as for host memory. Without a device nothing here is called but for a look at an empty list.

use std::collections::VecDeque;
use std::sync::Arc;

use nix::errno::Errno;

use super::transfer::{Grid, Piece, Target, Transfer};
use super::{Active, Class, Pending, Shard};
use crate::device::attached::Attached;
use crate::device::lane::{COPY_WAIT_US, Copied, Lane};
use crate::device::{DIRECT_ALIGN_BYTES, DirectOp, Direction, Fence, Place};
use crate::error::{Error, Result};
use crate::integrity::Sum;
use crate::mem::{Buffer, DeviceBuffer, IoBuffer};
use crate::ring::{Op, Request, Wait};

/// How late a shard with a device may wake from its short sleeps, in nanoseconds; the kernel's default is as long as they are.
const TIMER_SLACK_NS: u64 = 2_000;

/// After so many looks at which nothing had ended the shard's sleeps double, as often as this: 50 us for the first 3 ms, which is longer
/// than any chunk takes, and at last 1.6 ms.
const IDLE_LOOKS: u32 = 64;
const IDLE_DOUBLINGS_MAX: u32 = 5;

/// What a copy belongs to.
struct Tag {
    active: usize,
    piece: Piece,
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
    lanes: Vec<Lane<Tag>>,
    staged: VecDeque<Staged>,
    /// Looks in a row at which nothing had ended, although something was under way.
    idle_looks: u32,
}

impl Devices {
    /// How long the shard may sleep: copies that end wake nobody.
    pub(super) fn sleep(&self) -> Wait {
        match self.lanes.iter().any(Lane::is_busy) {
            // A fence that takes its time, or a device that hangs: no reason to look 20,000 times a second.
            true => Wait::AtMostUs(COPY_WAIT_US << (self.idle_looks / IDLE_LOOKS).min(IDLE_DOUBLINGS_MAX)),
            false => Wait::Forever,
        }
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

    /// The memory of an object as a transfer uses it, with the lane that `lane_of` has found. `may_be_direct`: no checksum has to
    /// see the bytes.
    pub(super) fn target(&self, buffer: Buffer, lane: Option<usize>, may_be_direct: bool, grid: Grid) -> Target {
        let Some(lane) = lane else { return Target::Host(IoBuffer::new(buffer)) };
        let attached = self.lanes[lane].attached();
        let memory = match buffer.into_device() {
            Ok(memory) => Memory::Lent(memory),
            Err(buffer) => Memory::Loopback(IoBuffer::new(buffer)),
        };
        let direct = may_be_direct && attached.route.is_direct();
        let direct = direct.then(|| DIRECT_ALIGN_BYTES.max(grid.offset_align));
        let chunk = attached.options.chunk_bytes;
        Target::Device(DeviceTarget { lane, chunk, direct, memory, unsummed: Vec::new() })
    }
}

/// The far side of a transfer.
enum Memory {
    Lent(DeviceBuffer),
    Loopback(IoBuffer),
}

/// An object's memory on a device.
pub(super) struct DeviceTarget {
    lane: usize,
    chunk: usize,
    /// What direct pieces are multiples of, where they are allowed.
    direct: Option<usize>,
    memory: Memory,
    /// Slots whose bytes the checksum has not come to, by offset: pieces come in any order.
    unsummed: Vec<(usize, IoBuffer)>,
}

impl DeviceTarget {
    pub(super) fn len(&self) -> usize {
        match &self.memory {
            Memory::Lent(memory) => memory.len(),
            Memory::Loopback(buffer) => buffer.len(),
        }
    }

    pub(super) fn into_buffer(self) -> Option<Buffer> {
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

    fn place(&self, piece: Piece) -> Place {
        match &self.memory {
            Memory::Lent(memory) => Place::Device(memory.part(piece.offset, piece.len)),
            Memory::Loopback(buffer) => Place::Loopback(buffer.span(piece.offset, piece.len)),
        }
    }

    fn after(&self) -> Option<Fence> {
        match &self.memory {
            Memory::Lent(memory) => memory.after().cloned(),
            Memory::Loopback(_) => None,
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
    /// Takes a device into use.
    pub(super) fn attach(&mut self, attached: Arc<Attached>) -> Result<()> {
        self.ring.adopt(&self.core.registry);
        if let Err(errno) = nix::sys::prctl::set_timerslack(TIMER_SLACK_NS) {
            tracing::warn!(%errno, "the shard's timer slack stays as it is: copies may be noticed later");
        }
        let lane = Lane::new(attached.clone(), self.me).map_err(|error| Error::device(&*attached.device, error))?;
        self.devices.lanes.push(lane);
        Ok(())
    }

    /// Takes what the devices have done.
    pub(super) fn poll_devices(&mut self) {
        for index in 0..self.devices.lanes.len() {
            let lane = &mut self.devices.lanes[index];
            if lane.is_busy() {
                let mut ended = Vec::new();
                lane.flush();
                lane.poll(&mut ended);
                let idle_looks = self.devices.idle_looks.saturating_add(1);
                self.devices.idle_looks = if ended.is_empty() { idle_looks } else { 0 };
                ended.into_iter().for_each(|copied| self.copied(index, copied));
            }
        }
    }

    /// Begins a piece of a device's object; false when there is no slot for it now.
    pub(super) fn issue_device_piece(&mut self, class: Class, active: usize, piece: Piece) -> bool {
        let direction = if class == Class::Load { Direction::ToDevice } else { Direction::FromDevice };
        let transfer = self.actives[active].transfer();
        let (fd, align) = (transfer.fd.clone(), transfer.grid.offset_align);
        let device = device_of(transfer);
        let lane = &mut self.devices.lanes[device.lane];
        if !piece.bounce {
            if !lane.has_direct_room() {
                return false;
            }
            let Place::Device(ranges) = device.place(piece) else { return false };
            let (offset, after) = (piece.offset as u64, device.after());
            let op = DirectOp { direction, fd, offset, range: ranges[0], after, token: 0 };
            lane.direct(op, Tag { active, piece });
            self.begun(class, active, piece);
            return true;
        }
        let Some(slot) = lane.slot(direction, piece.len.next_multiple_of(align)) else { return false };
        match class {
            Class::Load => self.push_slot(class, active, piece, slot),
            Class::Store => {
                let (place, after) = (device.place(piece), device.after());
                lane.copy(direction, slot, piece.len, place, after, Tag { active, piece });
            }
        }
        self.begun(class, active, piece);
        true
    }

    /// A piece is under way; what comes after it waits for its turn.
    fn begun(&mut self, class: Class, active: usize, piece: Piece) {
        let transfer = self.actives[active].transfer();
        transfer.issue(piece);
        if transfer.next().is_some() {
            self.lane(class).ready.push_back(active);
        }
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
                    let (place, after) = (device.place(piece), device.after());
                    let lane = &mut self.devices.lanes[device.lane];
                    return lane.copy(Direction::ToDevice, slot, piece.len, place, after, Tag { active, piece });
                }
            }
        }
        drop(slot);
        self.end_transfer(active);
    }

    /// The device is done with a copy, or with a direct transfer.
    fn copied(&mut self, lane: usize, copied: Copied<Tag>) {
        let Copied { slot, tag: Tag { active, piece }, result } = copied;
        if let Err(error) = result {
            let device = &*self.devices.lanes[lane].attached().device;
            self.actives[active].transfer().fail(Error::device(device, error));
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
}
