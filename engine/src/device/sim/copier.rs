//! The software device's copies: two queues in virtual time.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Shared, SimFence};
use crate::device::{CopyDone, CopyEngine, DeviceCopy, DeviceError, DirectOp, Direction, Fence, Place};

/// Most direct transfers under way.
const DIRECT_LIMIT: usize = 8;

/// What is queued.
enum Work {
    Copy(DeviceCopy),
    Direct(DirectOp),
}

impl Work {
    fn parts(&self) -> (Direction, usize, usize) {
        match self {
            Self::Copy(copy) => (copy.direction, copy.host.len(), copy.token),
            Self::Direct(op) => (op.direction, op.range.len, op.token),
        }
    }
}

struct Queued {
    work: Work,
    submitted_ns: u64,
    /// When it ends; known when its turn has come.
    ends_ns: Option<u64>,
    fails: bool,
}

/// See the module.
pub(super) struct SimCopier {
    shared: Arc<Shared>,
    queues: [VecDeque<Queued>; 2],
    /// Submitted, and not flushed yet.
    held: Vec<Queued>,
    /// Ended, and not reported yet.
    ended: Vec<CopyDone>,
    random: u64,
}

impl SimCopier {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let number = shared.copiers.fetch_add(1, Ordering::Relaxed);
        let random = shared.options.seed ^ number.wrapping_mul(0x2545_f491_4f6c_dd1d);
        Self { shared, queues: Default::default(), held: Vec::new(), ended: Vec::new(), random }
    }

    /// SplitMix64, as far as 0..below.
    fn random(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.random;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % below
    }

    fn queue(&mut self, work: Work) {
        let one_in = self.shared.options.fail_one_in;
        let fails = one_in > 0 && self.random(one_in.into()) == 0;
        let submitted_ns = self.shared.clock.now_ns();
        self.held.push(Queued { work, submitted_ns, ends_ns: None, fails });
    }

    /// Ends everything of one direction whose time has come.
    fn advance(&mut self, direction: usize, now: u64) {
        while let Some(first) = self.queues[direction].front_mut() {
            let (way, bytes, token) = first.work.parts();
            let ends = match first.ends_ns {
                Some(ends) => ends,
                None => {
                    let ends = self.shared.book(way, first.submitted_ns, bytes);
                    *first.ends_ns.insert(ends)
                }
            };
            if ends > now {
                return;
            }
            let Some(Queued { work, fails, .. }) = self.queues[direction].pop_front() else { return };
            let result = self.perform(work, fails);
            self.shared.copies.fetch_add(1, Ordering::Relaxed);
            self.shared.failures.fetch_add(u64::from(result.is_err()), Ordering::Relaxed);
            self.ended.push(CopyDone { token, result });
        }
    }

    /// Moves the bytes, or half of them.
    fn perform(&self, work: Work, fails: bool) -> Result<(), DeviceError> {
        match work {
            _ if self.shared.options.weightless => {}
            Work::Copy(copy) => self.copy(&copy, fails)?,
            Work::Direct(op) => self.direct(&op, fails)?,
        }
        if fails { Err(DeviceError::new("copy", "the software device was told to fail")) } else { Ok(()) }
    }

    fn copy(&self, copy: &DeviceCopy, half: bool) -> Result<(), DeviceError> {
        let share = if half { 2 } else { 1 };
        match &copy.place {
            Place::Loopback(place) => {
                let (from, to) = match copy.direction {
                    Direction::ToDevice => (&copy.host, place),
                    Direction::FromDevice => (place, &copy.host),
                };
                to.copy_from(&from.part(0, from.len() / share));
            }
            Place::Device(ranges) => {
                let mut memory = self.shared.memory.lock();
                let mut at = 0;
                for range in ranges {
                    let bytes = memory.bytes(*range)?;
                    let host = copy.host.part(at, range.len / share);
                    match copy.direction {
                        Direction::ToDevice => {
                            host.with_bytes(|from| bytes[..from.len()].copy_from_slice(from));
                        }
                        Direction::FromDevice => host.write(&bytes[..host.len()]),
                    }
                    at += range.len;
                }
            }
        }
        Ok(())
    }

    fn direct(&self, op: &DirectOp, half: bool) -> Result<(), DeviceError> {
        let failed = |error: std::io::Error| DeviceError::new("direct transfer", error);
        let file = File::from(op.fd.try_clone().map_err(failed)?);
        let mut memory = self.shared.memory.lock();
        let bytes = memory.bytes(op.range)?;
        // O_DIRECT wants aligned memory, which a vector is not: through an aligned copy.
        let mut aligned = vec![0_u8; op.range.len + 4096];
        let skip = aligned.as_ptr().align_offset(4096);
        let aligned = &mut aligned[skip..skip + op.range.len];
        let part = if half { (op.range.len / 8192) * 4096 } else { op.range.len };
        match op.direction {
            Direction::ToDevice => {
                file.read_exact_at(&mut aligned[..part], op.offset).map_err(failed)?;
                bytes[..part].copy_from_slice(&aligned[..part]);
            }
            Direction::FromDevice => {
                aligned.copy_from_slice(bytes);
                file.write_all_at(&aligned[..part], op.offset).map_err(failed)?;
            }
        }
        self.shared.direct_bytes.fetch_add(part as u64, Ordering::Relaxed);
        Ok(())
    }
}

impl CopyEngine for SimCopier {
    fn has_happened(&mut self, fence: &Fence) -> Result<bool, DeviceError> {
        let fence = fence.downcast_ref::<SimFence>();
        fence.map(SimFence::is_signalled).ok_or_else(|| DeviceError::new("fence", "it is another device's"))
    }

    fn submit(&mut self, copy: DeviceCopy) {
        self.queue(Work::Copy(copy));
    }

    fn submit_direct(&mut self, op: DirectOp) {
        self.queue(Work::Direct(op));
    }

    fn flush(&mut self) {
        for queued in self.held.drain(..) {
            self.queues[queued.work.parts().0 as usize].push_back(queued);
        }
    }

    fn poll(&mut self, each: &mut dyn FnMut(CopyDone)) {
        self.shared.clock.advance(self.shared.options.look_ns);
        if self.shared.stalled.load(Ordering::Acquire) {
            return;
        }
        let now = self.shared.clock.now_ns();
        for direction in 0..2 {
            self.advance(direction, now);
        }
        if !self.shared.options.reorder {
            return self.ended.drain(..).for_each(each);
        }
        // Any of them, in any order; some stay until the next look.
        for _ in 0..self.ended.len() {
            let index = self.random(self.ended.len() as u64) as usize;
            let done = self.ended.swap_remove(index);
            if self.random(4) == 0 {
                self.ended.push(done);
            } else {
                each(done);
            }
        }
    }

    fn direct_limit(&self) -> usize {
        if self.shared.options.direct { DIRECT_LIMIT } else { 0 }
    }
}

impl Drop for SimCopier {
    fn drop(&mut self) {
        // As a GPU does: what was begun ends, before the memory may go.
        self.flush();
        for direction in 0..2 {
            self.advance(direction, u64::MAX);
        }
    }
}
