//! The device's ceiling: what the engine's throughput is measured against.
//!
//! Random reads, random overwrites, and a mix of both, of one fully written file, with the size and the number of objects in
//! flight of the phase beside it, from fixed buffers. No names, no metadata, no index: what an object's I/O costs when
//! everything around it is free. Objects larger than a segment are split as the engine splits them, with all segments of
//! an object in flight together. This module uses `io-uring` itself, and nothing of the engine but memory.
//!
//! Memory matters: transfers into few buffers that stay in the CPU's cache are up to 1.4 times faster than into as much
//! memory as a phase moves, above all where the disk is virtual and somebody copies. A cache loads into ever new memory,
//! so the ceiling that ratios refer to does too ([`Memory::Spread`]); the other one is reported beside it.
//!
//! ```text
//! TestFile::create                                   (once a run)
//! Rig::new: ring + registered buffers                (once an object size)
//! Rig::run(file, kind, offsets): submit -> wait -> reap -> submit ... -> drain
//! ```
//! Whatever goes wrong, `run` returns only when no request is in flight: the buffers are then free again.

#![expect(unsafe_code, reason = "requests to the kernel name memory by address")]

use std::collections::VecDeque;
use std::io;
use std::ops::AddAssign;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use io_uring::{IoUring, opcode, squeue, types};
use saltern::PoolBuffer;

use crate::error::{Error, Result};
use crate::memory;
use crate::meter::{Latencies, Meter, Spent};
use crate::payload;
use crate::test_file::TestFile;

/// What O_DIRECT takes on every file system; objects of other sizes are rounded up.
pub const ALIGN_BYTES: usize = 4096;

/// Most requests in flight: larger objects at a larger depth are measured at fewer objects in flight.
const REQUESTS_MAX: usize = 8192;

/// Most buffers that a ring takes (the kernel's IORING_MAX_REG_BUFFERS).
const BUFFERS_MAX: usize = 1 << 14;

/// Which ceiling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Random reads.
    Read,
    /// Random writes over written blocks.
    Overwrite,
    /// Seven random reads to three random writes.
    Mixed,
}

impl Kind {
    /// What the request with this number does: a mix is spread evenly, and begins with reads.
    pub(crate) fn of(self, number: usize) -> Self {
        const STORES_OF_TEN: usize = 3;
        let stores_before = |number: usize| number * STORES_OF_TEN / 10;
        match self {
            Self::Mixed if stores_before(number + 1) > stores_before(number) => Self::Overwrite,
            Self::Mixed => Self::Read,
            other => other,
        }
    }
}

/// Which memory the objects are read into or written from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// As many buffers as the rig has, one after the other.
    Spread,
    /// As few as are in flight.
    Reused,
}

/// One measurement.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    pub(crate) spent: Spent,
    pub(crate) bytes: u64,
}

impl Sample {
    pub(crate) fn bytes_per_s(self) -> f64 {
        self.bytes as f64 / self.spent.seconds.max(1e-9)
    }
}

impl AddAssign for Sample {
    fn add_assign(&mut self, other: Self) {
        self.spent += other.spent;
        self.bytes += other.bytes;
    }
}

/// A ring with buffers for objects of one size. Used on the thread that made it.
pub struct Rig {
    // Dropped in this order: requests name the buffers.
    ring: IoUring,
    /// `None` when it is unknown whether the kernel still uses them; they are leaked then.
    buffers: Option<PoolBuffer>,
    base: *mut u8,
    object_bytes: usize,
    segment_bytes: usize,
    /// Objects in flight.
    depth: usize,
    /// Buffers; at least as many as objects in flight.
    slots: usize,
    fixed: bool,
    /// Of the objects that were read since they were last asked for.
    reads: Latencies,
}

impl Rig {
    /// A ring for objects of `object_bytes`, `depth` of them in flight, with memory for `buffers` of them.
    ///
    /// # Errors
    /// [`Error::Io`] when there is no io_uring, [`Error::Engine`] when there is no memory.
    pub fn new(object_bytes: usize, segment_bytes: usize, depth: usize, buffers: usize) -> Result<Self> {
        let object_bytes = object_bytes.next_multiple_of(ALIGN_BYTES).max(ALIGN_BYTES);
        let segments = object_bytes.div_ceil(segment_bytes);
        let depth = depth.min((REQUESTS_MAX / segments).max(1));
        let slots = buffers.clamp(depth, BUFFERS_MAX);
        let ring = build_ring((depth * segments).next_power_of_two() as u32)?;
        let mut buffers = memory::alone(slots * object_bytes)?;
        // Devices may take zeroes for nothing.
        payload::fill(0, 0, &mut buffers);
        let base = buffers.as_mut_ptr();
        let vectors: Vec<libc::iovec> = (0..slots)
            .map(|slot| libc::iovec { iov_base: slot_address(base, slot, object_bytes).cast(), iov_len: object_bytes })
            .collect();
        // SAFETY: the vectors lie inside `buffers`, which this value drops after the ring.
        let fixed = match unsafe { ring.submitter().register_buffers(&vectors) } {
            Ok(()) => true,
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => false,
            Err(error) => return Err(Error::io("register buffers", "(ceiling)", error)),
        };
        let buffers = Some(buffers);
        Ok(Self { ring, buffers, base, object_bytes, segment_bytes, depth, slots, fixed, reads: Latencies::new() })
    }

    /// Bytes of one object, as the device sees it.
    pub fn object_bytes(&self) -> usize {
        self.object_bytes
    }

    /// Whether the kernel registered the buffers; it refuses where memlock is short.
    pub fn has_fixed_buffers(&self) -> bool {
        self.fixed
    }

    /// Latencies of what was read since the last call, each from its submission until the ring was seen to have it.
    pub(crate) fn take_reads(&mut self) -> Latencies {
        std::mem::replace(&mut self.reads, Latencies::new())
    }

    /// Reads or overwrites one object at each offset, in this order, and measures all of it.
    ///
    /// # Errors
    /// [`Error::Io`] for the first request that failed or was short, [`Error::Interrupted`].
    pub fn run(
        &mut self,
        file: &TestFile,
        kind: Kind,
        memory: Memory,
        offsets: &[u64],
        cancel: &AtomicBool,
    ) -> Result<Sample> {
        let slots = if memory == Memory::Spread { self.slots } else { self.depth };
        let mut run = Run { offsets, next: 0, in_flight: 0, slots: Slots::new(slots), failure: None };
        let mut completed: Vec<(u64, i32)> = Vec::with_capacity(self.depth);
        let meter = Meter::process();
        for _ in 0..self.depth {
            self.begin(&mut run, file, kind)?;
        }
        while run.in_flight > 0 {
            self.wait(file)?;
            completed.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
            for (user_data, result) in completed.drain(..) {
                run.in_flight -= 1;
                let slot = (user_data >> 32) as usize;
                let wanted = user_data as u32 as i32;
                match result {
                    result if result == wanted => {}
                    result if result < 0 => run.fail(file, io::Error::from_raw_os_error(-result)),
                    _ => run.fail(file, io::Error::from(io::ErrorKind::UnexpectedEof)),
                }
                if let Some(ended) = run.slots.completed(slot) {
                    if let Some(began) = ended.reading_since {
                        self.reads.record(began.elapsed());
                    }
                    if run.failure.is_none() {
                        self.begin(&mut run, file, kind)?;
                    }
                }
            }
            if cancel.load(Ordering::Relaxed) {
                run.failure.get_or_insert(Error::Interrupted);
            }
        }
        let spent = meter.stop();
        match run.failure {
            Some(error) => Err(error),
            None => Ok(Sample { spent, bytes: (run.next * self.object_bytes) as u64 }),
        }
    }

    /// Queues all segments of the next object, from a free slot's memory.
    fn begin(&mut self, run: &mut Run<'_>, file: &TestFile, kind: Kind) -> Result<()> {
        let Some(&offset) = run.offsets.get(run.next) else { return Ok(()) };
        let writes = kind.of(run.next) == Kind::Overwrite;
        run.next += 1;
        let slot = run.slots.take((!writes).then(Instant::now));
        for start in (0..self.object_bytes).step_by(self.segment_bytes) {
            let len = self.segment_bytes.min(self.object_bytes - start);
            let address = slot_address(self.base, slot, self.object_bytes).wrapping_add(start);
            let entry = self.request(file, writes, slot, address, len, offset + start as u64);
            // The length is the expected result; it comes back in the low half.
            let entry = entry.user_data(((slot as u64) << 32) | len as u64);
            // SAFETY: the memory is this slot's, inside `buffers`; `run` does not return, nor drop `buffers`, before the
            // completion was reaped, except by `abandon`, which leaks them. The queue holds all requests in flight.
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                self.abandon();
                return Err(Error::io("submit to", file.path(), io::Error::other("the submission queue is full")));
            }
            run.slots.begun(slot);
            run.in_flight += 1;
        }
        Ok(())
    }

    fn request(
        &self,
        file: &TestFile,
        writes: bool,
        slot: usize,
        address: *mut u8,
        len: usize,
        offset: u64,
    ) -> squeue::Entry {
        let (fd, len, index) = (types::Fd(file.as_file().as_raw_fd()), len as u32, slot as u16);
        match (writes, self.fixed) {
            (false, true) => opcode::ReadFixed::new(fd, address, len, index).offset(offset).build(),
            (false, false) => opcode::Read::new(fd, address, len).offset(offset).build(),
            (true, true) => opcode::WriteFixed::new(fd, address, len, index).offset(offset).build(),
            (true, false) => opcode::Write::new(fd, address, len).offset(offset).build(),
        }
    }

    fn wait(&mut self, file: &TestFile) -> Result<()> {
        match self.ring.submit_and_wait(1) {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => Ok(()),
            Err(error) => {
                self.abandon();
                Err(Error::io("io_uring_enter for", file.path(), error))
            }
        }
    }

    /// Gives the buffers up for good: the kernel may still use them.
    fn abandon(&mut self) {
        std::mem::forget(self.buffers.take());
    }
}

fn slot_address(base: *mut u8, slot: usize, object_bytes: usize) -> *mut u8 {
    base.wrapping_add(slot * object_bytes)
}

fn build_ring(entries: u32) -> Result<IoUring> {
    let modern = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(entries);
    // Kernels before 6.1 refuse the flags.
    let ring = modern.or_else(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => IoUring::new(entries),
        _ => Err(error),
    });
    ring.map_err(|error| Error::io("set up", "io_uring", error))
}

/// The state of one [`Rig::run`].
struct Run<'a> {
    offsets: &'a [u64],
    next: usize,
    in_flight: usize,
    slots: Slots,
    /// Set once; nothing new is begun then.
    failure: Option<Error>,
}

impl Run<'_> {
    fn fail(&mut self, file: &TestFile, error: io::Error) {
        self.failure.get_or_insert_with(|| Error::io("read or write", file.path(), error));
    }
}

/// Which buffers are in use. The one that has been free for longest is taken first.
struct Slots {
    free: VecDeque<usize>,
    /// Each slot's object.
    objects: Vec<InSlot>,
}

/// An object on its way.
#[derive(Clone, Copy, Default)]
struct InSlot {
    /// Requests in flight.
    left: usize,
    /// When it was submitted, if it is read.
    reading_since: Option<Instant>,
}

impl Slots {
    fn new(count: usize) -> Self {
        Self { free: (0..count).collect(), objects: vec![InSlot::default(); count] }
    }

    fn take(&mut self, reading_since: Option<Instant>) -> usize {
        let slot = self.free.pop_front().expect("there are at least as many slots as objects in flight");
        self.objects[slot] = InSlot { left: 0, reading_since };
        slot
    }

    fn begun(&mut self, slot: usize) {
        self.objects[slot].left += 1;
    }

    /// A request completed; the object, if it was its last.
    fn completed(&mut self, slot: usize) -> Option<InSlot> {
        let object = &mut self.objects[slot];
        object.left -= 1;
        let ended = (object.left == 0).then_some(*object);
        if ended.is_some() {
            self.free.push_back(slot);
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn overwrites_land_where_they_should_and_reads_come_back() {
        let dir = crate::test_dir();
        let path = dir.path().join("file");
        let cancel = AtomicBool::new(false);
        let file = TestFile::create(&path, 3 << 20, Duration::MAX, &cancel).unwrap();
        assert_eq!((file.bytes(), std::fs::metadata(&path).unwrap().len()), (3 << 20, 3 << 20));
        let zero = |at: usize| std::fs::read(&path).unwrap()[at..at + 4096].iter().all(|byte| *byte == 0);
        assert!(!zero(0) && !zero((3 << 20) - 4096), "the file is fully written");

        // Three segments, the last one short; more objects than slots.
        let mut rig = Rig::new(150_000, 65_536, 2, 3).unwrap();
        assert_eq!(rig.object_bytes(), 151_552);
        rig.buffers.as_mut().unwrap().fill(0);
        let offsets = [0, 1 << 20, 2 << 20, 1 << 19, 151_552];
        let sample = rig.run(&file, Kind::Overwrite, Memory::Spread, &offsets, &cancel).unwrap();
        assert_eq!(sample.bytes, 5 * 151_552);
        for offset in offsets {
            assert!(zero(offset as usize) && zero(offset as usize + 151_552 - 4096));
        }
        assert!(!zero(2 * 151_552) && !zero((1 << 20) - 4096));

        rig.buffers.as_mut().unwrap().fill(9);
        rig.run(&file, Kind::Read, Memory::Reused, &[0, 151_552], &cancel).unwrap();
        let (read, untouched) = rig.buffers.as_ref().unwrap().split_at(2 * 151_552);
        assert!(read.iter().all(|byte| *byte == 0) && untouched[..151_552].iter().all(|byte| *byte == 9));
    }

    #[test]
    fn three_of_ten_are_writes() {
        let writes = |kind: Kind| (0..1000).filter(|number| kind.of(*number) == Kind::Overwrite).count();
        assert_eq!([Kind::Read, Kind::Overwrite, Kind::Mixed].map(writes), [0, 1000, 300]);
        assert_eq!(Kind::Mixed.of(0), Kind::Read);
    }

    #[test]
    fn a_short_read_and_a_request_to_stop_end_it() {
        let dir = crate::test_dir();
        let cancel = AtomicBool::new(false);
        let file = TestFile::create(&dir.path().join("file"), 1 << 20, Duration::MAX, &cancel).unwrap();
        let mut rig = Rig::new(65_536, 65_536, 4, 1).unwrap();
        let past_the_end = rig.run(&file, Kind::Read, Memory::Spread, &[0, 1 << 20, 0, 0, 0, 0], &cancel);
        assert!(matches!(past_the_end, Err(Error::Io { .. })), "{past_the_end:?}");
        cancel.store(true, Ordering::Relaxed);
        let stopped = rig.run(&file, Kind::Read, Memory::Spread, &vec![0; 100], &cancel);
        assert!(matches!(stopped, Err(Error::Interrupted)), "{stopped:?}");
    }
}
