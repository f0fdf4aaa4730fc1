//! One shard's side of a device: slots, and what is under way between them and the device.
//!
//! A slot is owned by who has it from [`Lane::slot`], then by the ring's request, then by the copy; it goes back to its pool
//! when the last of them is done. So neither a failed object nor an expired ticket frees memory under a DMA engine. Where a device
//! never ends what it has begun, all of that is given up for good ([`Lane::abandon`]), and not freed.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use slab::Slab;

use super::attached::{Attached, Transit};
use super::{CopyDone, CopyEngine, DeviceCopy, DeviceError, DeviceId, DirectOp, Direction, Fence, Place};
use crate::mem::IoBuffer;

/// How long a shard sleeps at most while copies are under way: their end wakes nobody. Longer waits would leave the device idle
/// between two copies, shorter ones cost CPU; a chunk of 4 MiB takes 80 to 300 us over PCIe.
pub(crate) const COPY_WAIT_US: u32 = 50;

/// Something under way on the device.
struct Flight<T> {
    /// Kept until the device says that it is done with it.
    slot: Option<IoBuffer>,
    tag: T,
}

/// A copy that has ended. The slot, where there was one, is free for what comes next.
pub(crate) struct Copied<T> {
    pub(crate) slot: Option<IoBuffer>,
    pub(crate) tag: T,
    pub(crate) result: Result<(), DeviceError>,
    /// The device may still be at work on the object's memory. Its slot was given up.
    pub(crate) is_lost: bool,
    /// It had no slot.
    pub(crate) is_direct: bool,
}

/// See the module. `T` says what a copy belongs to.
pub(crate) struct Lane<T> {
    // Dropped first: it waits for its copies, and only then the slots may go. `None`: the device was given up.
    copier: Option<Box<dyn CopyEngine>>,
    flights: Slab<Flight<T>>,
    /// What came after the device was given up.
    refused: Vec<Copied<T>>,
    transit: Transit,
    /// Slots that were given out, by direction.
    given: [u64; 2],
    directs: usize,
    /// When something last ended, or began where nothing was under way.
    moved: Instant,
    attached: Arc<Attached>,
}

impl<T> Lane<T> {
    /// On the shard's own thread.
    pub(crate) fn new(attached: Arc<Attached>, shard: usize) -> Result<Self, DeviceError> {
        let copier = Some(attached.device.copier()?);
        let transit = attached.transit(shard);
        let moved = Instant::now();
        Ok(Self {
            copier,
            flights: Slab::new(),
            refused: Vec::new(),
            transit,
            given: [0; 2],
            directs: 0,
            moved,
            attached,
        })
    }

    pub(crate) fn attached(&self) -> &Attached {
        &self.attached
    }

    pub(crate) fn id(&self) -> DeviceId {
        self.attached.id()
    }

    /// Whether the device was given up: nothing can be asked of it any more, and its slots do not come back.
    pub(crate) fn is_given_up(&self) -> bool {
        self.copier.is_none()
    }

    /// Whether the device has something to do.
    pub(crate) fn is_busy(&self) -> bool {
        !self.flights.is_empty() || !self.refused.is_empty()
    }

    /// Since when nothing has ended, although something is under way.
    pub(crate) fn is_stuck_since(&self) -> Option<Instant> {
        (!self.flights.is_empty()).then_some(self.moved)
    }

    /// Whether the caller's work is done.
    pub(crate) fn has_happened(&mut self, fence: &Fence) -> Result<bool, DeviceError> {
        self.copier.as_mut().map_or_else(|| Err(given_up()), |copier| copier.has_happened(fence))
    }

    /// A free slot of `len` bytes; `None` until something that is under way ends.
    pub(crate) fn slot(&mut self, direction: Direction, len: usize) -> Option<IoBuffer> {
        let pool = match direction {
            Direction::ToDevice => &self.transit.to_device,
            Direction::FromDevice => &self.transit.from_device,
        };
        let slot = pool.alloc(len).ok().map(|buffer| IoBuffer::new(buffer.into()));
        self.given[direction as usize] += u64::from(slot.is_some());
        slot
    }

    /// How many slots of a direction were given out so far.
    pub(crate) fn slots_given(&self, direction: Direction) -> u64 {
        self.given[direction as usize]
    }

    /// Copies the first `len` bytes of a slot.
    pub(crate) fn copy(&mut self, direction: Direction, slot: IoBuffer, len: usize, place: Place, tag: T) {
        let host = slot.span(0, len);
        self.begin(Some(slot), tag, |copier, token| copier.submit(DeviceCopy { direction, host, place, token }));
    }

    /// Whether a file goes directly.
    pub(crate) fn admit_direct(&mut self, fd: &Rc<OwnedFd>) -> Result<(), DeviceError> {
        self.copier.as_mut().map_or_else(|| Err(given_up()), |copier| copier.admit_direct(fd))
    }

    /// Whether another direct transfer may go.
    pub(crate) fn has_direct_room(&self) -> bool {
        self.copier.as_ref().is_none_or(|copier| self.directs < copier.direct_limit())
    }

    /// A direct transfer; the token in `op` is set here.
    pub(crate) fn direct(&mut self, op: DirectOp, tag: T) {
        self.directs += 1;
        self.begin(None, tag, |copier, token| copier.submit_direct(DirectOp { token, ..op }));
    }

    fn begin(&mut self, slot: Option<IoBuffer>, tag: T, submit: impl FnOnce(&mut dyn CopyEngine, usize)) {
        let Some(copier) = &mut self.copier else {
            let is_direct = slot.is_none();
            self.directs -= usize::from(is_direct);
            return self.refused.push(Copied { slot, tag, result: Err(given_up()), is_lost: false, is_direct });
        };
        if self.flights.is_empty() {
            self.moved = Instant::now();
        }
        let token = self.flights.insert(Flight { slot, tag });
        submit(&mut **copier, token);
    }

    /// Hands over what is queued.
    pub(crate) fn flush(&mut self) {
        if let (false, Some(copier)) = (self.flights.is_empty(), &mut self.copier) {
            copier.flush();
        }
    }

    /// Takes what has ended.
    pub(crate) fn poll(&mut self, ended: &mut Vec<Copied<T>>) {
        ended.append(&mut self.refused);
        let Self { copier: Some(copier), flights, directs, moved, .. } = self else { return };
        if flights.is_empty() {
            return;
        }
        let mut any = false;
        copier.poll(&mut |done| {
            let CopyDone { token, result, is_lost } = done;
            let Flight { mut slot, tag } = flights.remove(token);
            let is_direct = slot.is_none();
            *directs -= usize::from(is_direct);
            any = true;
            if is_lost {
                std::mem::forget(slot.take());
            }
            ended.push(Copied { slot, tag, result, is_lost, is_direct });
        });
        if any {
            *moved = Instant::now();
        }
    }

    /// Gives the device up, with what is under way on it: gives what that belongs to, and whether it was direct. Its slots, its queue and its pinned memory are
    /// never freed, because it may still write to them.
    pub(crate) fn abandon(&mut self) -> Vec<(T, bool)> {
        let give_up = |flight: Flight<T>| {
            let is_direct = flight.slot.is_none();
            std::mem::forget(flight.slot);
            (flight.tag, is_direct)
        };
        if let Some(copier) = self.copier.take() {
            std::mem::forget(copier);
            // Keeps the pools mapped, and registered.
            std::mem::forget(self.attached.clone());
        }
        self.directs = 0;
        self.flights.drain().map(give_up).collect()
    }
}

pub(crate) fn given_up() -> DeviceError {
    DeviceError::new("copy", "the device ends nothing any more, and was given up")
}
