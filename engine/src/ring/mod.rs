//! One io_uring: requests in, completions out, buffers and descriptors held until the kernel is done.
//!
//! All unsafe of the ring is in this module. What goes in is a [`Request`] that owns its memory (a [`Span`]) and
//! its descriptor; both stay in the slot table until the request's own CQE has arrived, whatever happens to the
//! operation that asked for it. Short reads and writes are continued here, interrupted ones repeated (never a sync); what comes
//! out is final. A completion carries the slot's index and generation, never a pointer.
//!
//! Kernel: 5.15 or newer with `EXT_ARG` and `NODROP`; better with 5.19 (registered buffers for memory lent
//! later), 6.1 (`SINGLE_ISSUER`, `DEFER_TASKRUN`), 6.12 (one registration cloned into all rings).
//!
//! Stop: no more requests, [`Ring::drain`], drop. A ring that is dropped with requests in flight waits for them.

#![expect(unsafe_code, reason = "the submission queue takes raw addresses")]

mod buffers;
mod build;
mod priority;
mod slots;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;

use crate::error::{Error, Result};
use crate::mem::Span;

pub(crate) use buffers::{BufferRegistry, FixedBuffers};
pub use build::RingReport;
pub(crate) use build::report;
pub(crate) use priority::Priorities;
use slots::{InFlight, Slots, Step};

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Read,
    Write,
    /// fdatasync
    SyncData,
    /// fsync
    SyncAll,
}

/// One request. Reads and writes need a span; syncs have none.
pub(crate) struct Request {
    pub(crate) op: Op,
    pub(crate) fd: Rc<OwnedFd>,
    pub(crate) span: Option<Span>,
    pub(crate) offset: u64,
    /// Comes back with the completion.
    pub(crate) token: usize,
}

/// A request that has ended.
#[derive(Debug)]
pub(crate) struct Completion {
    pub(crate) token: usize,
    /// Bytes moved: all of them, or fewer where a read met the end of the file.
    pub(crate) result: Result<usize, Errno>,
}

/// How long to wait for completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Hand in and look, without waiting.
    No,
    /// Until something completes or the ring is woken.
    Forever,
    /// As `Forever`, but at most so many microseconds.
    AtMostUs(u32),
}

/// Marks the completion of the wake-up read, which has no slot.
const WAKE: u64 = u64::MAX;

/// A ring, used from the thread that built it.
pub(crate) struct Ring {
    uring: IoUring,
    slots: Slots,
    /// What a continued transfer's offset has to be a multiple of.
    align: usize,
    buffers: FixedBuffers,
    priorities: Priorities,
    wake: Arc<EventFd>,
    /// Where the kernel writes the wake-up counter; boxed, so that it stays where it is.
    wake_count: Box<u64>,
    wake_armed: bool,
    closing: bool,
    again: Vec<u32>,
    features: Vec<&'static str>,
}

impl Ring {
    /// Builds a ring for `depth` requests in flight, woken by writes to `wake`.
    ///
    /// # Errors
    /// [`Error::RingUnavailable`] says why and what to set.
    pub(crate) fn new(depth: usize, align: usize, wake: Arc<EventFd>) -> Result<Self> {
        // One more than the slots: the wake-up read.
        let built = build::build(depth + 1)?;
        Ok(Self {
            uring: built.uring,
            slots: Slots::new(depth),
            align,
            buffers: FixedBuffers::none(),
            priorities: Priorities::default(),
            wake,
            wake_count: Box::new(0),
            wake_armed: false,
            closing: false,
            again: Vec::with_capacity(depth),
            features: built.features,
        })
    }

    pub(crate) fn features(&self) -> &[&'static str] {
        &self.features
    }

    pub(crate) fn buffers(&self) -> &FixedBuffers {
        &self.buffers
    }

    /// Takes over the registered buffers of the engine, those that were registered since the last call included.
    pub(crate) fn adopt(&mut self, registry: &BufferRegistry) {
        self.buffers.adopt(&self.uring.submitter(), registry);
    }

    /// Keeps a descriptor open for as long as the ring, or a request of it, lives: beyond the end of the process.
    pub(crate) fn hold<'a>(&self, fds: impl Iterator<Item = BorrowedFd<'a>>) -> Result<()> {
        let fds: Vec<_> = fds.map(|fd| fd.as_raw_fd()).collect();
        self.uring.submitter().register_files(&fds).map_err(|error| Error::RingUnavailable {
            cause: format!("registering a file failed: {error}"),
            remedy: "update the kernel (5.15 or newer)",
        })
    }

    /// Requests that can be pushed now.
    pub(crate) fn room(&self) -> usize {
        self.slots.free()
    }

    /// Whether nothing is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.slots.busy() == 0
    }

    /// Queues a request; it is handed to the kernel by the next [`Ring::submit`].
    ///
    /// # Errors
    /// Gives the request back when [`Ring::room`] is 0.
    pub(crate) fn push(&mut self, request: Request) -> Result<(), Request> {
        let len = request.span.as_ref().map_or(0, Span::len);
        let fixed = request.span.as_ref().and_then(|span| self.buffers.find(span.ptr() as usize, len));
        let slot = self.slots.insert(InFlight { request, fixed, done: 0, rounds: 0 })?;
        self.queue(slot);
        Ok(())
    }

    /// Puts the rest of a slot's request into the submission queue.
    fn queue(&mut self, slot: u32) {
        let (flight, user_data) = self.slots.get(slot);
        let fd = types::Fd(flight.request.fd.as_raw_fd());
        let entry = match (flight.request.op, &flight.request.span) {
            (Op::SyncData, _) => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            (Op::SyncAll, _) => opcode::Fsync::new(fd).build(),
            (op, Some(span)) => {
                let (rest, ioprio) = (&flight.rest(span), self.priorities.of(op));
                match (op, flight.fixed) {
                    (Op::Read, Some(index)) => {
                        let read = opcode::ReadFixed::new(fd, rest.ptr, rest.len, index);
                        read.offset(rest.offset).ioprio(ioprio).build()
                    }
                    (Op::Read, None) => {
                        opcode::Read::new(fd, rest.ptr, rest.len).offset(rest.offset).ioprio(ioprio).build()
                    }
                    (_, Some(index)) => {
                        let write = opcode::WriteFixed::new(fd, rest.ptr, rest.len, index);
                        write.offset(rest.offset).ioprio(ioprio).build()
                    }
                    (_, None) => opcode::Write::new(fd, rest.ptr, rest.len).offset(rest.offset).ioprio(ioprio).build(),
                }
            }
            (_, None) => opcode::Nop::new().build(),
        };
        self.enqueue(&entry.user_data(user_data));
    }

    fn enqueue(&mut self, entry: &squeue::Entry) {
        // SAFETY: the entry's descriptor and memory are held by its slot (or, for the wake-up, by `self`) until its
        // completion has been seen, and `Drop` waits for all completions.
        let pushed = unsafe { self.uring.submission().push(entry) };
        assert!(pushed.is_ok(), "the submission queue is as large as the slot table, so it has room");
    }

    fn arm_wake(&mut self) {
        if !self.wake_armed && !self.closing {
            let fd = types::Fd(self.wake.as_fd().as_raw_fd());
            let ptr: *mut u64 = &mut *self.wake_count;
            let entry = opcode::Read::new(fd, ptr.cast(), size_of::<u64>() as u32).build().user_data(WAKE);
            self.enqueue(&entry);
            self.wake_armed = true;
        }
    }

    /// Hands queued requests to the kernel, waits as told, and passes every ended request to `each`.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel refuses to go on: the ring is not usable any more.
    pub(crate) fn submit(&mut self, wait: Wait, mut each: impl FnMut(Completion)) -> Result<()> {
        while let Some(slot) = self.again.pop() {
            self.queue(slot);
        }
        self.arm_wake();
        self.enter(wait)?;
        for entry in self.uring.completion() {
            if entry.user_data() == WAKE {
                self.wake_armed = false;
                continue;
            }
            match self.slots.complete(entry.user_data(), entry.result(), self.align) {
                Some(Step::Ended(completion)) => each(completion),
                Some(Step::Again(slot)) => self.again.push(slot),
                None => {}
            }
        }
        Ok(())
    }

    /// Hands queued requests to the kernel when they are at least as many as it has: the device is about to have nothing to do. So
    /// the first of a batch goes at once, and each batch of them after it is twice as long. Takes no completions.
    ///
    /// # Errors
    /// As [`Ring::submit`].
    pub(crate) fn feed(&mut self) -> Result<()> {
        let queued = self.uring.submission().len();
        if queued == 0 || 2 * queued < self.slots.busy() {
            return Ok(());
        }
        // SAFETY: no signal mask is passed; all queued entries uphold the contract of `enqueue`.
        let handed = unsafe { self.uring.submitter().enter::<libc::sigset_t>(queued as u32, 0, 0, None) };
        match handed.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)) {
            // What the kernel did not take now goes with the next `submit`.
            Ok(_) | Err(Errno::EINTR | Errno::EAGAIN | Errno::EBUSY) => Ok(()),
            Err(errno) => Err(Error::io("io_uring_enter", "(ring)", errno)),
        }
    }

    fn enter(&mut self, wait: Wait) -> Result<()> {
        const GET_EVENTS: u32 = 1; // IORING_ENTER_GETEVENTS: with DEFER_TASKRUN, completions are run only then.
        loop {
            let result = match wait {
                Wait::No => {
                    let queued = self.uring.submission().len() as u32;
                    // SAFETY: no signal mask is passed; all queued entries uphold the contract of `enqueue`.
                    unsafe { self.uring.submitter().enter::<libc::sigset_t>(queued, 0, GET_EVENTS, None) }
                }
                Wait::Forever => self.uring.submitter().submit_and_wait(1),
                Wait::AtMostUs(us) => {
                    let time = types::Timespec::from(Duration::from_micros(us.into()));
                    self.uring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&time))
                }
            };
            match result.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)) {
                // ETIME: the time is up, and what was queued has been handed in.
                Ok(_) | Err(Errno::ETIME) => return Ok(()),
                Err(Errno::EINTR | Errno::EAGAIN | Errno::EBUSY) => {}
                Err(errno) => return Err(Error::io("io_uring_enter", "(ring)", errno)),
            }
        }
    }

    /// Waits until nothing is in flight.
    ///
    /// # Errors
    /// As [`Ring::submit`].
    pub(crate) fn drain(&mut self, mut each: impl FnMut(Completion)) -> Result<()> {
        while !self.is_idle() {
            self.submit(Wait::Forever, &mut each)?;
        }
        Ok(())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The memory of requests in flight must not be freed under the kernel's hands: it is waited for, and
        // should the ring be broken, leaked.
        if let Err(error) = self.drain(|_| {}) {
            tracing::error!(%error, "a ring failed with requests in flight; their memory is leaked");
            self.slots.leak();
        }
        // The wake-up read ends with the ring; its memory must outlive the kernel's (asynchronous) clean-up.
        self.closing = true;
        let _ = self.wake.write(1);
        while self.wake_armed && self.submit(Wait::Forever, |_| {}).is_ok() {}
    }
}
