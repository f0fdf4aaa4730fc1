//! The engine's copies: one stream and a line of events for each direction.
//!
//! ```text
//! submit -> queued -> flush: groups -> copies on the stream, then the group's event -> poll, oldest first -> reported
//! ```
//! Small copies share an event, and go to the driver in one call where it has one (cuMemcpyBatchAsync); a copy of
//! [`GROUP_BYTES`] has an event of its own, so that its slot is free as soon as it has ended. A copy that could not be queued is
//! reported when its group's event has happened all the same: what had been queued of it may still run.
//!
//! The engine submits a copy again that has failed (`COPY_ATTEMPTS`), from the same slot. That is right here:
//! - Nothing of the failed one runs any more: it is reported after its group's event, or after the stream was waited for. If it did, the second
//!   one is behind it on the same stream, and moves the same bytes to the same place.
//! - It is a copy as any other: with others in a group, with an event of the group's. Where a group's event fails, all of its copies do, and
//!   each is made again, also those that had gone well: nobody can tell which.
//! - The caller's work had happened before the first one (`has_happened`), and the caller has no answer before the last: nothing else is in
//!   order with it. The caller's thread, and the context that is current there, have no part in it: copies are queued on the shard's, where
//!   each `flush` makes the GPU's context current first, so that one that failed for another's does not meet it again.
//! - After an error that stays (CUDA calls them sticky: the context is dead, and every call says so), nothing is queued, the event cannot be
//!   recorded, waiting for the stream comes back at once, and the copy fails at the next look. So it ends after as many looks as attempts.
//!
//! That a batch which the driver refuses is made copy by copy at once is another thing, and stays: its first copies may be good, and only what
//! then fails by itself counts as an attempt.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use saltern::device::{CopyDone, CopyEngine, DeviceCopy, DeviceError, DirectOp, Direction, Fence, Place};

use super::device::Gpu;
use super::driver::{MemcpyAttributes, NOT_SUPPORTED};
use super::stream::{CudaFence, Event, Stream};
use crate::cufile::{CuFile, DirectQueue};
use crate::error::Result;

/// A group ends when it has this many bytes: 20 us of PCIe 4.0, several times what an event costs.
const GROUP_BYTES: usize = 512 << 10;

/// Most blocks of one call: scattered pages of many objects. What one call costs is shared by then, and the driver's lists stay small.
const BATCH_BLOCKS_MAX: usize = 1024;

/// What cuMemcpyBatchAsync gives for the copy that failed when the error is not one copy's (SIZE_MAX).
const NO_COPY: usize = usize::MAX;

/// One block to be copied: host address, device address, length.
type Block = (u64, u64, usize);

/// Copies that end with one event.
struct Group {
    /// `None`: the stream was waited for, because no event could be had.
    event: Option<Event>,
    /// Each with why it could not be queued.
    copies: Vec<(DeviceCopy, Option<DeviceError>)>,
    /// Of all of them.
    failed: Option<DeviceError>,
}

struct Lane {
    direction: Direction,
    stream: Stream,
    queued: Vec<DeviceCopy>,
    groups: VecDeque<Group>,
    /// The driver has the function, and does not take it for this memory.
    refuses_batches: bool,
}

/// See the module.
pub(super) struct CudaCopier {
    // Dropped first: its threads use the context.
    direct: Option<DirectQueue>,
    lanes: [Lane; 2],
    events: Vec<Event>,
    gpu: Arc<Gpu>,
}

impl CudaCopier {
    pub(super) fn new(gpu: Arc<Gpu>, cufile: Option<Arc<CuFile>>) -> Result<Self> {
        let lane = |direction| {
            let stream = Stream::new(gpu.clone())?;
            Ok(Lane { direction, stream, queued: Vec::new(), groups: VecDeque::new(), refuses_batches: false })
        };
        let lanes = [lane(Direction::ToDevice)?, lane(Direction::FromDevice)?];
        // The shard's own thread: it stays current there.
        gpu.bind()?;
        let slabs = gpu.slabs.clone();
        let direct = cufile
            .map(|cufile| DirectQueue::new(cufile, Some(gpu.clone()), slabs, gpu.batch_deadline()))
            .transpose()?;
        Ok(Self { direct, lanes, events: Vec::new(), gpu })
    }
}

impl Lane {
    /// Queues the next copies on the stream, as many as share an event.
    fn next_group(&self, count: usize) -> usize {
        let mut bytes = 0;
        let mut blocks = 0;
        for (index, copy) in self.queued[..count].iter().enumerate() {
            bytes += copy.host.len();
            blocks += match &copy.place {
                Place::Device(ranges) => ranges.len(),
                Place::Loopback(_) => 1,
            };
            if bytes >= GROUP_BYTES || blocks >= BATCH_BLOCKS_MAX {
                return index + 1;
            }
        }
        count
    }

    fn flush(&mut self, gpu: &Arc<Gpu>, events: &mut Vec<Event>) {
        while !self.queued.is_empty() {
            let count = self.next_group(self.queued.len());
            let copies: Vec<_> = self.queued.drain(..count).collect();
            let queued = self.queue(gpu, &copies);
            let event = events.pop().map_or_else(|| Event::new(gpu.clone()), Ok);
            let event = event.and_then(|event| event.record(self.stream.raw).map(|()| event));
            let event = event.map_err(|error| {
                tracing::error!(%error, "copies without an event: they are waited for");
                // Whatever this says, nothing runs on the stream afterwards: a context that has failed runs nothing.
                self.stream.synchronize()
            });
            let (event, late) = match event {
                Ok(event) => (Some(event), None),
                Err(waited) => (None, waited.err()),
            };
            let failed = late.map(DeviceError::from);
            let failures = queued.into_iter().map(|queued| queued.err().map(DeviceError::from));
            let copies = copies.into_iter().zip(failures).collect();
            self.groups.push_back(Group { event, copies, failed });
        }
    }

    /// Gives copies to the driver: in one call where that saves any. Says of each whether it was queued, all of it.
    fn queue(&mut self, gpu: &Gpu, copies: &[DeviceCopy]) -> Vec<Result<()>> {
        let mut blocks = Vec::new();
        copies.iter().for_each(|copy| push_blocks(copy, &mut blocks));
        // One copy may have more blocks than a call takes.
        if blocks.chunks(BATCH_BLOCKS_MAX).all(|blocks| self.queue_together(gpu, blocks)) {
            return copies.iter().map(|_| Ok(())).collect();
        }
        let each = copies.iter().map(|copy| {
            blocks.clear();
            push_blocks(copy, &mut blocks);
            self.queue_each(gpu, &blocks)
        });
        each.collect()
    }

    /// One call for all blocks; `false` when they are to be copied one by one, whatever it has queued of them: twice the same bytes, on
    /// the same stream.
    fn queue_together(&mut self, gpu: &Gpu, blocks: &[Block]) -> bool {
        let (false, Some(batch), 2..) = (self.refuses_batches, gpu.driver.memcpy_batch_async, blocks.len()) else {
            return false;
        };
        let host = blocks.iter().map(|block| block.0);
        let device = blocks.iter().map(|block| block.1);
        let (mut from, mut to): (Vec<u64>, Vec<u64>) = match self.direction {
            Direction::ToDevice => (host.collect(), device.collect()),
            Direction::FromDevice => (device.collect(), host.collect()),
        };
        let mut sizes: Vec<usize> = blocks.iter().map(|block| block.2).collect();
        let mut attributes = MemcpyAttributes::in_order();
        let (mut first, mut failed) = (0, NO_COPY);
        let (count, stream) = (blocks.len(), self.stream.raw);
        // SAFETY: the lists have `count` entries and are read before the call returns; slots and device memory stay until the
        // group's event has happened (`CopyEngine` keeps the copies).
        let code = unsafe {
            let (to, from, sizes) = (to.as_mut_ptr(), from.as_mut_ptr(), sizes.as_mut_ptr());
            batch(to, from, sizes, count, &mut attributes, &mut first, 1, &mut failed, stream)
        };
        let Err(error) = gpu.driver.check("cuMemcpyBatchAsync", code) else { return true };
        // The driver's documentation does not say what is queued of a batch that failed, not even of what is before `failed`. So nothing of
        // it counts, and copies one by one show which fail. When no copy is to blame, the function is not for this memory.
        self.refuses_batches = code == NOT_SUPPORTED || failed == NO_COPY;
        if code != NOT_SUPPORTED {
            tracing::warn!(%error, count, failed, "a batch of copies was refused: they are made one by one");
        }
        false
    }

    /// Stops at the first block that cannot be queued.
    fn queue_each(&self, gpu: &Gpu, blocks: &[Block]) -> Result<()> {
        for &(host, device, len) in blocks {
            // SAFETY: slots and device memory stay until the group's event has happened (`CopyEngine` keeps the copies).
            let (call, code) = unsafe {
                match self.direction {
                    Direction::ToDevice => (
                        "cuMemcpyHtoDAsync",
                        (gpu.driver.memcpy_htod_async)(device, host as *const _, len, self.stream.raw),
                    ),
                    Direction::FromDevice => (
                        "cuMemcpyDtoHAsync",
                        (gpu.driver.memcpy_dtoh_async)(host as *mut _, device, len, self.stream.raw),
                    ),
                }
            };
            gpu.driver.check(call, code)?;
        }
        Ok(())
    }

    fn poll(&mut self, events: &mut Vec<Event>, each: &mut dyn FnMut(CopyDone)) {
        while let Some(group) = self.groups.front_mut() {
            match group.event.as_ref().map_or(Ok(true), Event::is_done) {
                Ok(false) => return,
                Ok(true) => {}
                // The context has failed: nothing runs on it any more, and nothing that ran on it can be trusted.
                Err(error) => {
                    group.failed.get_or_insert(error.into());
                }
            }
            let Some(Group { event, copies, failed }) = self.groups.pop_front() else { return };
            events.extend(event);
            for (copy, refused) in copies {
                let result = refused.or_else(|| failed.clone()).map_or(Ok(()), Err);
                let token = copy.token;
                drop(copy);
                each(CopyDone::new(token, result));
            }
        }
    }
}

fn push_blocks(copy: &DeviceCopy, blocks: &mut Vec<Block>) {
    let mut host = copy.host.ptr() as u64;
    match &copy.place {
        Place::Device(ranges) => {
            for range in ranges {
                blocks.push((host, range.address, range.len));
                host += range.len as u64;
            }
        }
        // Unified addressing: host memory has an address on the device as well. Only tests come here.
        Place::Loopback(place) => blocks.push((host, place.ptr() as u64, place.len())),
    }
}

impl CopyEngine for CudaCopier {
    fn has_happened(&mut self, fence: &Fence) -> Result<bool, DeviceError> {
        let fence =
            fence.downcast_ref::<CudaFence>().ok_or_else(|| DeviceError::new("fence", "it is another device's"))?;
        self.gpu.bind()?;
        Ok(fence.is_done()?)
    }

    fn admit_direct(&mut self, fd: &Rc<OwnedFd>) -> Result<(), DeviceError> {
        match &mut self.direct {
            Some(direct) => {
                self.gpu.bind()?;
                Ok(direct.admit(fd)?)
            }
            None => Err(DeviceError::new("cuFile", "it was not open when the device was attached")),
        }
    }

    fn submit(&mut self, copy: DeviceCopy) {
        self.lanes[copy.direction as usize].queued.push(copy);
    }

    fn submit_direct(&mut self, op: DirectOp) {
        match &mut self.direct {
            Some(direct) => direct.submit(op),
            None => unreachable!("the limit of direct transfers is 0"),
        }
    }

    fn flush(&mut self) {
        if self.lanes.iter().any(|lane| !lane.queued.is_empty()) {
            if let Err(error) = self.gpu.bind() {
                tracing::error!(%error, "the context cannot be made current");
            }
            for lane in &mut self.lanes {
                lane.flush(&self.gpu, &mut self.events);
            }
        }
    }

    fn poll(&mut self, each: &mut dyn FnMut(CopyDone)) {
        // Another GPU's context may have become current on this thread since.
        if self.lanes.iter().any(|lane| !lane.groups.is_empty())
            && let Err(error) = self.gpu.bind()
        {
            tracing::error!(%error, "the context cannot be made current");
        }
        for lane in &mut self.lanes {
            lane.poll(&mut self.events, each);
        }
        if let Some(direct) = &mut self.direct {
            direct.poll(each);
        }
    }

    fn direct_limit(&self) -> usize {
        self.direct.as_ref().map_or(0, DirectQueue::limit)
    }
}

impl Drop for CudaCopier {
    fn drop(&mut self) {
        self.direct = None;
        for lane in &mut self.lanes {
            if let Err(error) = lane.stream.synchronize() {
                tracing::error!(%error, "a stream failed with copies under way; a failed context runs none");
            }
        }
    }
}
