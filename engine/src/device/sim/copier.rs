//! The software device's copies, of one shard: in virtual time made here, when their time has come; on the wall's clock made by the
//! device's engines, and reported from here.

use std::collections::{BTreeSet, HashMap, VecDeque};
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

/// What stays until a copy has ended.
struct Held {
    // Dropped first: it waits for who has the memory.
    _loans: Vec<Loan>,
    _fd: Option<Rc<OwnedFd>>,
    direction: Direction,
    /// Its place among all that were submitted.
    number: u64,
}

/// Ended, and not reported yet.
struct Unreported {
    done: CopyDone,
    direction: Direction,
    number: u64,
    /// Not before so many looks.
    looks: u64,
}

/// Most looks by which a completion is late.
const LATE_LOOKS: u64 = 32;

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
    ended: Vec<Unreported>,
    numbers: u64,
    /// By direction, the numbers of what was submitted and not reported.
    unreported: [BTreeSet<u64>; 2],
    /// By the address of a slot, how many copies in a row have been told to fail; where that is bounded, and not 0.
    failures: HashMap<usize, u32>,
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
            numbers: 0,
            unreported: Default::default(),
            failures: HashMap::new(),
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

    fn is_one_in(&mut self, one_in: u32) -> bool {
        one_in > 0 && self.random(one_in.into()) == 0
    }

    /// Whether the next copy between this slot and the device is to fail.
    fn is_to_fail(&mut self, slot: usize) -> bool {
        let fails = self.is_one_in(self.shared.options.fail_one_in);
        let most = self.shared.options.fail_in_a_row;
        if most == 0 {
            return fails;
        }
        let before = self.failures.remove(&slot).unwrap_or(0);
        if fails && before < most {
            self.failures.insert(slot, before + 1);
        }
        fails && before < most
    }

    fn queue(&mut self, job: Job, fails: bool, token: usize, loans: Vec<Loan>, fd: Option<Rc<OwnedFd>>) {
        let submitted_ns = self.shared.clock.now_ns();
        let (direction, number) = (job.direction, self.numbers);
        self.numbers += 1;
        self.unreported[direction as usize].insert(number);
        self.held.insert(token, Held { _loans: loans, _fd: fd, direction, number });
        self.submitted.push(Queued { job, token, submitted_ns, ends_ns: None, fails });
    }

    fn end(&mut self, token: usize, result: Result<(), DeviceError>) {
        let Some(Held { direction, number, .. }) = self.held.remove(&token) else { return };
        self.shared.count(result.is_err());
        let is_late = self.is_one_in(self.shared.options.late_one_in);
        let looks = if is_late { self.random(LATE_LOOKS) + 1 } else { 0 };
        self.ended.push(Unreported { done: CopyDone::new(token, result), direction, number, looks });
    }

    fn report(&mut self, ended: Unreported, each: &mut dyn FnMut(CopyDone)) {
        let unreported = &mut self.unreported[ended.direction as usize];
        let is_overtaking = unreported.first() != Some(&ended.number);
        unreported.remove(&ended.number);
        self.shared.overtakings.fetch_add(u64::from(is_overtaking), Ordering::Relaxed);
        each(ended.done);
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
        SimFence::has_happened(fence)
    }

    fn submit(&mut self, copy: DeviceCopy) {
        let (token, fails) = (copy.token, self.is_to_fail(copy.host.ptr() as usize));
        let (job, loans) = Job::copy(copy);
        self.queue(job, fails, token, loans, None);
    }

    fn submit_direct(&mut self, op: DirectOp) {
        let (job, fails) = (Job::direct(&op), self.is_one_in(self.shared.options.fail_one_in));
        self.queue(job, fails, op.token, Vec::new(), Some(op.fd));
    }

    fn flush(&mut self) {
        self.shared.batches.fetch_add(u64::from(!self.submitted.is_empty()), Ordering::Relaxed);
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
        let reorder = self.shared.options.reorder;
        let mut ended = std::mem::take(&mut self.ended);
        if reorder {
            for last in (1..ended.len()).rev() {
                ended.swap(last, self.random(last as u64 + 1) as usize);
            }
        }
        for mut one in ended {
            // Late ones, and, where the order is any, some others, stay until the next look.
            if one.looks > 0 || (reorder && self.random(4) == 0) {
                one.looks = one.looks.saturating_sub(1);
                self.ended.push(one);
            } else {
                self.report(one, each);
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
