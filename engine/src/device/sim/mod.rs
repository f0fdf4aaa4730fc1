//! A device of software: memory that is a map of allocations, and for each direction a queue that takes one copy at a time,
//! `fixed + bytes / bandwidth` of a clock that only moves when somebody looks at it.
//!
//! It is stricter than a GPU: bytes move when a copy ends, so a slot that is used again too early shows as wrong bytes;
//! addresses outside of an allocation are an error; failures and the order of completions come from a seed. It also stands
//! in for a GPU where there is none (`saltern bench --target gpu-sim`), on the wall's clock: then threads of its own move the bytes
//! (`engines.rs`). What that measures is the engine, not a GPU.

mod clock;
mod copier;
mod engines;
mod job;
mod memory;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use parking_lot::Mutex;

pub use clock::Clock;
pub use memory::SimMemory;

use self::copier::SimCopier;
use self::engines::Engines;
use self::job::{Job, told_to_fail};
use self::memory::Memory;
use super::{
    CopyEngine, Device, DeviceBuffer, DeviceError, DeviceId, DeviceRange, Direction, Fence, Registration, Route,
    RouteChoice,
};
use crate::mem::Pool;

/// What the device is like.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SimOptions {
    /// What a copy costs beside its bytes, in nanoseconds.
    pub fixed_ns: u64,
    /// Bytes a second, in each direction.
    pub bytes_per_s: u64,
    /// How far each look moves the clock, in nanoseconds: a device whose clock stands still would never be done. 0: somebody else
    /// moves it.
    pub look_ns: u64,
    /// Decides which copies fail and in which order completions are reported.
    pub seed: u64,
    /// One copy of so many fails, half done. 0: none.
    pub fail_one_in: u32,
    /// At most so many copies in a row between one slot and the device fail by `fail_one_in`, so that one which is made again from the same slot
    /// ends well at last. 0: any number. Direct transfers have no slot, and no bound.
    pub fail_in_a_row: u32,
    /// Report completions in any order, some of them at the next look.
    pub reorder: bool,
    /// One completion of so many is reported late: up to 32 looks after its time. 0: none.
    pub late_one_in: u32,
    /// Whether the device moves files directly.
    pub direct: bool,
    /// No bytes move: for measurements in virtual time.
    pub weightless: bool,
    /// Overwrite slots when they are given back, so that who still uses one is found. Costs a shard about as much as a copy.
    pub poison: bool,
}

impl Default for SimOptions {
    /// PCIe 4.0 with 16 lanes, without faults.
    fn default() -> Self {
        Self {
            fixed_ns: 8_000,
            bytes_per_s: 25_000_000_000,
            look_ns: 5_000,
            seed: 1,
            fail_one_in: 0,
            fail_in_a_row: 0,
            reorder: false,
            late_one_in: 0,
            direct: false,
            weightless: false,
            poison: true,
        }
    }
}

/// What is shared by the device, its copiers and its memory.
struct Shared {
    id: DeviceId,
    options: SimOptions,
    clock: Clock,
    memory: Memory,
    /// When each direction's queue has done what it took so far, in nanoseconds of the clock. Held by who makes a copy on the wall's
    /// clock: one at a time.
    turns: [Mutex<u64>; 2],
    /// Copies that have ended, and those of them that failed.
    copies: AtomicU64,
    failures: AtomicU64,
    direct_bytes: AtomicU64,
    batches: AtomicU64,
    overtakings: AtomicU64,
    /// Makes the choices of each copier others than those of the one before.
    copiers: AtomicU64,
    /// Nothing ends while this is set.
    stalled: AtomicBool,
}

impl Shared {
    /// What a copy takes.
    fn cost_ns(&self, bytes: usize) -> u64 {
        let SimOptions { fixed_ns, bytes_per_s, .. } = self.options;
        fixed_ns + (bytes as u128 * 1_000_000_000 / u128::from(bytes_per_s.max(1))) as u64
    }

    /// Takes the next place in a direction's queue for a copy that was there at `from`; gives when it ends.
    fn book(&self, direction: Direction, from: u64, bytes: usize) -> u64 {
        let mut free_at = self.turns[direction as usize].lock();
        *free_at = (*free_at).max(from) + self.cost_ns(bytes);
        *free_at
    }

    /// Makes a copy when it is its turn; gives when it ends, which is when the bytes have moved or later, as the figures say.
    fn take_turn<R>(&self, direction: Direction, bytes: usize, copy: impl FnOnce() -> R) -> (u64, R) {
        let mut free_at = self.turns[direction as usize].lock();
        let ends_ns = (*free_at).max(self.clock.now_ns()) + self.cost_ns(bytes);
        let result = copy();
        *free_at = ends_ns.max(self.clock.now_ns());
        (*free_at, result)
    }

    /// On the wall's clock. Direct transfers are of several threads: the disk is what they take turns at.
    fn move_now(&self, job: Job, fails: bool) -> (u64, Result<(), DeviceError>) {
        let (direction, bytes) = (job.direction, job.bytes);
        if job.is_direct() {
            let result = self.perform(job, fails);
            return (self.book(direction, self.clock.now_ns(), bytes), result);
        }
        self.take_turn(direction, bytes, || self.perform(job, fails))
    }

    fn perform(&self, job: Job, fails: bool) -> Result<(), DeviceError> {
        let (is_direct, bytes) = (job.is_direct(), job.bytes as u64);
        let result = match self.options.weightless {
            true if fails => Err(told_to_fail()),
            true => Ok(()),
            false => job.perform(&self.memory, fails),
        };
        if is_direct && result.is_ok() {
            self.direct_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        result
    }

    /// Counts a copy that has ended.
    fn count(&self, has_failed: bool) {
        self.copies.fetch_add(1, Ordering::Relaxed);
        self.failures.fetch_add(u64::from(has_failed), Ordering::Relaxed);
    }
}

/// See the module. Clones are the same device.
#[derive(Clone)]
pub struct SimDevice {
    shared: Arc<Shared>,
    /// On the wall's clock.
    engines: Option<Arc<Engines>>,
}

impl SimDevice {
    /// A device with a clock of its own.
    pub fn new(options: SimOptions) -> Self {
        Self::with_clock(options, Clock::default())
    }

    /// A device on a clock that others look at, too. On the wall's, threads of the device's move the bytes.
    pub fn with_clock(options: SimOptions, clock: Clock) -> Self {
        let shared = Arc::new(Shared {
            id: DeviceId::new(),
            options,
            clock,
            memory: Memory::default(),
            turns: Default::default(),
            copies: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            direct_bytes: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            overtakings: AtomicU64::new(0),
            copiers: AtomicU64::new(0),
            stalled: AtomicBool::new(false),
        });
        let engines = shared.clock.is_wall().then(|| Arc::new(Engines::start(&shared)));
        Self { shared, engines }
    }

    /// A block of device memory, zeroed.
    pub fn alloc(&self, len: usize) -> SimMemory {
        SimMemory::new(self.shared.clone(), len)
    }

    /// Parts of several blocks as the memory of one object; the engine does not begin before `after`.
    pub fn gather(&self, parts: &[(&SimMemory, std::ops::Range<usize>)], after: Option<&SimFence>) -> DeviceBuffer {
        let ranges = parts.iter().map(|(memory, part)| memory.range(part.clone())).collect();
        let owners: Vec<SimMemory> = parts.iter().map(|(memory, _)| (*memory).clone()).collect();
        // One fence for all objects that wait for it, as callers have it: it is asked once for all of them.
        let after = after.map(|fence| fence.0.clone() as Fence);
        DeviceBuffer::checked(self.shared.id, ranges, after, Some(Arc::new(owners)))
    }

    /// Memory at any address, as the memory of one object; what is no allocation fails when it is copied.
    pub fn at(&self, ranges: Vec<DeviceRange>) -> DeviceBuffer {
        DeviceBuffer::checked(self.shared.id, ranges, None, None)
    }

    /// The clock.
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    /// Copies that have ended, and how many of them failed.
    pub fn counts(&self) -> (u64, u64) {
        (self.shared.copies.load(Ordering::Relaxed), self.shared.failures.load(Ordering::Relaxed))
    }

    /// How often copies were handed over, any number at once.
    pub fn batches(&self) -> u64 {
        self.shared.batches.load(Ordering::Relaxed)
    }

    /// Completions that were reported before that of a copy which its shard had submitted earlier, in the same direction.
    pub fn overtakings(&self) -> u64 {
        self.shared.overtakings.load(Ordering::Relaxed)
    }

    /// Bytes that have gone directly between files and the device.
    pub fn direct_bytes(&self) -> u64 {
        self.shared.direct_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of device memory that are allocated.
    pub fn allocated_bytes(&self) -> usize {
        self.shared.memory.allocated_bytes()
    }

    /// Lets nothing end while `stalled`: a device that hangs.
    pub fn stall(&self, stalled: bool) {
        self.shared.stalled.store(stalled, Ordering::Release);
    }
}

impl fmt::Debug for SimDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimDevice({:?})", self.shared.options)
    }
}

impl Device for SimDevice {
    fn id(&self) -> DeviceId {
        self.shared.id
    }

    fn name(&self) -> String {
        "software device".to_owned()
    }

    fn register(&self, pool: &Pool) -> Result<Registration, DeviceError> {
        Ok(Box::new(pool.clone()))
    }

    fn route(&self, _dir: &Path, choice: RouteChoice) -> Result<Route, DeviceError> {
        match (choice, self.shared.options.direct) {
            (RouteChoice::Pipeline, _) => Ok(Route::Pipeline { why: "it was asked for".to_owned() }),
            (_, true) => Ok(Route::Direct { by: "software".to_owned() }),
            (RouteChoice::Auto, false) => Ok(Route::Pipeline { why: "this software device is not direct".to_owned() }),
            (RouteChoice::Direct, false) => Err(DeviceError::new("probe", "this software device is not direct")),
        }
    }

    fn copier(&self) -> Result<Box<dyn CopyEngine>, DeviceError> {
        Ok(Box::new(SimCopier::new(self.shared.clone(), self.engines.clone())))
    }

    fn poisons_slots(&self) -> bool {
        self.shared.options.poison && !self.shared.options.weightless
    }
}

/// Work of a caller's stream that has, or has not yet, happened, or has failed.
#[derive(Debug, Clone, Default)]
pub struct SimFence(Arc<AtomicU8>);

const HAPPENED: u8 = 1;
const FAILED: u8 = 2;

impl SimFence {
    /// Work that has not happened.
    pub fn new() -> Self {
        Self::default()
    }

    /// It has happened.
    pub fn signal(&self) {
        self.0.store(HAPPENED, Ordering::Release);
    }

    /// It has failed.
    pub fn fail(&self) {
        self.0.store(FAILED, Ordering::Release);
    }

    fn has_happened(fence: &Fence) -> Result<bool, DeviceError> {
        let state = fence.downcast_ref::<AtomicU8>();
        match state.ok_or_else(|| DeviceError::new("fence", "it is another device's"))?.load(Ordering::Acquire) {
            FAILED => Err(DeviceError::new("fence", "the work that it stands for has failed")),
            state => Ok(state == HAPPENED),
        }
    }
}
