//! The software device's copies, of one shard: in virtual time made here, when their time has come; on the wall's clock made by the
//! device's engines, and reported from here.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam::channel::{Receiver, Sender, unbounded};

use super::engines::{DIRECT_LIMIT, Ended, Engines, Task};
use super::job::Job;
use super::{Shared, SimFence};
use crate::device::{CopyDone, CopyEngine, DeviceCopy, DeviceError, DirectOp, Direction, Fence};
use crate::mem::Loan;

/// What is queued.
struct Queued {
    job: Job,
    token: usize,
    submitted_ns: u64,
    /// When it ends; known when its turn has come.
    ends_ns: Option<u64>,
    fails: bool,
}

/// What stays until a copy is reported.
struct Held {
    // Dropped first: it waits for who has the memory.
    _loans: Vec<Loan>,
    _fd: Option<Rc<OwnedFd>>,
}

/// See the module.
pub(super) struct SimCopier {
    // What is still queued is dropped before what it was lent.
    queues: [VecDeque<Queued>; 2],
    /// Submitted, and not flushed yet.
    submitted: Vec<Queued>,
    held: HashMap<usize, Held>,
    shared: Arc<Shared>,
    engines: Option<Arc<Engines>>,
    /// What the engines have been handed, and what has come from them.
    handed: usize,
    done: (Sender<Ended>, Receiver<Ended>),
    /// Moved, before the time at which they end.
    early: Vec<Ended>,
    /// Ended, and not reported yet.
    ended: Vec<CopyDone>,
    random: u64,
}

impl SimCopier {
    pub(super) fn new(shared: Arc<Shared>, engines: Option<Arc<Engines>>) -> Self {
        let number = shared.copiers.fetch_add(1, Ordering::Relaxed);
        let random = shared.options.seed ^ number.wrapping_mul(0x2545_f491_4f6c_dd1d);
        Self {
            queues: Default::default(),
            submitted: Vec::new(),
            held: HashMap::new(),
            shared,
            engines,
            handed: 0,
            done: unbounded(),
            early: Vec::new(),
            ended: Vec::new(),
            random,
        }
    }

    /// SplitMix64, as far as 0..below.
    fn random(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.random;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % below
    }

    fn queue(&mut self, job: Job, token: usize, held: Held) {
        let one_in = self.shared.options.fail_one_in;
        let fails = one_in > 0 && self.random(one_in.into()) == 0;
        let submitted_ns = self.shared.clock.now_ns();
        self.held.insert(token, held);
        self.submitted.push(Queued { job, token, submitted_ns, ends_ns: None, fails });
    }

    fn end(&mut self, token: usize, result: Result<(), DeviceError>) {
        self.held.remove(&token);
        self.shared.count(result.is_err());
        self.ended.push(CopyDone::new(token, result));
    }

    /// Ends everything of one direction whose time has come.
    fn advance(&mut self, direction: usize, now: u64) {
        while let Some(first) = self.queues[direction].front_mut() {
            let ends = match first.ends_ns {
                Some(ends) => ends,
                None => {
                    let ends = self.shared.book(first.job.direction, first.submitted_ns, first.job.bytes);
                    *first.ends_ns.insert(ends)
                }
            };
            if ends > now {
                return;
            }
            let Some(Queued { job, token, fails, .. }) = self.queues[direction].pop_front() else { return };
            let result = self.shared.perform(job, fails);
            self.end(token, result);
        }
    }

    /// Ends what the engines have moved, and whose time has come.
    fn take(&mut self, now: u64) {
        let before = self.early.len();
        self.early.extend(self.done.1.try_iter());
        self.handed -= self.early.len() - before;
        let (ended, early) = std::mem::take(&mut self.early).into_iter().partition(|ended| ended.ends_ns <= now);
        self.early = early;
        let ended: Vec<Ended> = ended;
        ended.into_iter().for_each(|Ended { token, result, .. }| self.end(token, result));
    }
}

impl CopyEngine for SimCopier {
    fn has_happened(&mut self, fence: &Fence) -> Result<bool, DeviceError> {
        let fence = fence.downcast_ref::<SimFence>();
        fence.map(SimFence::is_signalled).ok_or_else(|| DeviceError::new("fence", "it is another device's"))
    }

    fn submit(&mut self, copy: DeviceCopy) {
        let token = copy.token;
        let (job, loans) = Job::copy(copy);
        self.queue(job, token, Held { _loans: loans, _fd: None });
    }

    fn submit_direct(&mut self, op: DirectOp) {
        let job = Job::direct(&op);
        self.queue(job, op.token, Held { _loans: Vec::new(), _fd: Some(op.fd) });
    }

    fn flush(&mut self) {
        for queued in self.submitted.drain(..) {
            match &self.engines {
                None => self.queues[queued.job.direction as usize].push_back(queued),
                Some(engines) => {
                    let Queued { job, token, fails, .. } = queued;
                    self.handed += 1;
                    engines.take(&self.shared, Task { job, fails, token, done: self.done.0.clone() });
                }
            }
        }
    }

    fn poll(&mut self, each: &mut dyn FnMut(CopyDone)) {
        self.shared.clock.advance(self.shared.options.look_ns);
        if self.shared.stalled.load(Ordering::Acquire) {
            return;
        }
        let now = self.shared.clock.now_ns();
        for direction in [Direction::ToDevice, Direction::FromDevice] {
            self.advance(direction as usize, now);
        }
        self.take(now);
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
        for _ in 0..self.handed {
            if self.done.1.recv().is_err() {
                return;
            }
        }
    }
}
