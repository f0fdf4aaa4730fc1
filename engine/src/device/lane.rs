//! One shard's side of a device: slots, and what is under way between them and the device.
//!
//! A slot is owned by who has it from [`Lane::slot`], then by the ring's request, then by the copy; it goes back to its pool
//! when the last of them is done. So neither a failed object nor an expired ticket frees memory under a DMA engine.

use std::sync::Arc;

use slab::Slab;

use super::attached::{Attached, Transit};
use super::{CopyEngine, DeviceCopy, DeviceError, DeviceId, DirectOp, Direction, Fence, Place};
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
}

/// See the module. `T` says what a copy belongs to.
pub(crate) struct Lane<T> {
    // Dropped first: it waits for its copies, and only then the slots may go.
    copier: Box<dyn CopyEngine>,
    flights: Slab<Flight<T>>,
    transit: Transit,
    directs: usize,
    attached: Arc<Attached>,
}

impl<T> Lane<T> {
    /// On the shard's own thread.
    pub(crate) fn new(attached: Arc<Attached>, shard: usize) -> Result<Self, DeviceError> {
        let copier = attached.device.copier()?;
        Ok(Self { copier, flights: Slab::new(), transit: attached.transit(shard), directs: 0, attached })
    }

    pub(crate) fn attached(&self) -> &Attached {
        &self.attached
    }

    pub(crate) fn id(&self) -> DeviceId {
        self.attached.id()
    }

    /// Whether the device has something to do.
    pub(crate) fn is_busy(&self) -> bool {
        !self.flights.is_empty()
    }

    /// A free slot of `len` bytes; `None` until something that is under way ends.
    pub(crate) fn slot(&self, direction: Direction, len: usize) -> Option<IoBuffer> {
        let pool = match direction {
            Direction::ToDevice => &self.transit.to_device,
            Direction::FromDevice => &self.transit.from_device,
        };
        pool.alloc(len).ok().map(|buffer| IoBuffer::new(buffer.into()))
    }

    /// Copies the first `len` bytes of a slot.
    pub(crate) fn copy(
        &mut self,
        direction: Direction,
        slot: IoBuffer,
        len: usize,
        place: Place,
        after: Option<Fence>,
        tag: T,
    ) {
        let host = slot.span(0, len);
        let token = self.flights.insert(Flight { slot: Some(slot), tag });
        self.copier.submit(DeviceCopy { direction, host, place, after, token });
    }

    /// Whether another direct transfer may go.
    pub(crate) fn has_direct_room(&self) -> bool {
        self.directs < self.copier.direct_limit()
    }

    /// A direct transfer; the token in `op` is set here.
    pub(crate) fn direct(&mut self, op: DirectOp, tag: T) {
        self.directs += 1;
        let token = self.flights.insert(Flight { slot: None, tag });
        self.copier.submit_direct(DirectOp { token, ..op });
    }

    /// Hands over what is queued.
    pub(crate) fn flush(&mut self) {
        if self.is_busy() {
            self.copier.flush();
        }
    }

    /// Takes what has ended.
    pub(crate) fn poll(&mut self, ended: &mut Vec<Copied<T>>) {
        let Self { copier, flights, directs, .. } = self;
        if flights.is_empty() {
            return;
        }
        copier.poll(&mut |done| {
            let Flight { slot, tag } = flights.remove(done.token);
            *directs -= usize::from(slot.is_none());
            ended.push(Copied { slot, tag, result: done.result });
        });
    }
}
