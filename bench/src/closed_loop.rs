//! A closed loop: a fixed number of tickets in flight, the next one submitted when one completes.
//!
//! Waits as a host's event loop does: poll on the engine's event descriptor, then look which tickets are done.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use saltern::{Buffer, Class, Engine, LoadReport, StoreReport, Ticket};

use crate::error::{Error, Result};
use crate::meter::{Latencies, Meter, Spent};

/// Well above every deadline of the engine: nothing completes any more.
const STUCK_SECONDS: u64 = 120;

const POLL_MS: u16 = 500;

/// What an operation on one object gives back: the bytes it moved, and its buffer.
pub(crate) type Results = (Result<u64, saltern::Error>, Option<Buffer>);

/// A ticket for one object.
pub(crate) enum Operation {
    Store(Ticket<StoreReport>),
    Load(Ticket<LoadReport>),
}

impl Operation {
    fn try_take(&mut self) -> Option<Results> {
        match self {
            Self::Store(ticket) => {
                ticket.try_take().map(|mut report| (report.results.remove(0), report.buffers.remove(0)))
            }
            Self::Load(ticket) => {
                ticket.try_take().map(|mut report| (report.results.remove(0), report.buffers.remove(0)))
            }
        }
    }
}

/// What a loop measured.
pub(crate) struct Outcome {
    pub(crate) spent: Spent,
    pub(crate) loads: Latencies,
    pub(crate) stores: Latencies,
}

/// How a loop runs.
pub(crate) struct ClosedLoop<'a> {
    pub(crate) engine: &'a Engine,
    /// The classes of the operations that will be submitted.
    pub(crate) classes: &'a [Class],
    pub(crate) depth: usize,
    pub(crate) cancel: &'a AtomicBool,
    /// Submits nothing more once this is set; what is in flight is waited for.
    pub(crate) stop: Option<&'a AtomicBool>,
}

struct InFlight {
    number: usize,
    operation: Operation,
    submitted: Instant,
}

impl ClosedLoop<'_> {
    /// Submits `count` operations, and hands each one's results to `done`, in the order of completion; then calls `end`.
    /// `submit`, `done` and `end` are part of what is timed: they only move buffers, and wait for what belongs to it.
    ///
    /// # Errors
    /// [`Error::Interrupted`] and [`Error::Stuck`]; results of operations are no errors here.
    pub(crate) fn run<C>(
        &self,
        context: &mut C,
        count: usize,
        mut submit: impl FnMut(&mut C, usize) -> Operation,
        mut done: impl FnMut(&mut C, usize, Results),
        end: impl FnOnce(&mut C),
    ) -> Result<Outcome> {
        let mut in_flight: Vec<InFlight> = Vec::with_capacity(self.depth);
        let (mut loads, mut stores) = (Latencies::new(), Latencies::new());
        let mut next = 0;
        // Before the first submission: an engine raises a descriptor only from the time on that it was asked for.
        let events: Vec<_> = self.classes.iter().map(|class| self.engine.event_fd(*class)).collect();
        let meter = Meter::process();
        loop {
            let is_stopped = self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed));
            while in_flight.len() < self.depth && next < count && !is_stopped {
                let submitted = Instant::now();
                in_flight.push(InFlight { number: next, operation: submit(context, next), submitted });
                next += 1;
            }
            if in_flight.is_empty() {
                break;
            }
            self.wait(&events, in_flight.len())?;
            let mut at = 0;
            while at < in_flight.len() {
                let Some(results) = in_flight[at].operation.try_take() else {
                    at += 1;
                    continue;
                };
                let finished = in_flight.swap_remove(at);
                let latencies = match finished.operation {
                    Operation::Load(_) => &mut loads,
                    Operation::Store(_) => &mut stores,
                };
                latencies.record(finished.submitted.elapsed());
                done(context, finished.number, results);
            }
        }
        end(context);
        Ok(Outcome { spent: meter.stop(), loads, stores })
    }

    /// Blocks until a ticket of these classes has completed since the last call.
    fn wait(&self, events: &[BorrowedFd<'_>], in_flight: usize) -> Result<()> {
        let mut polled: Vec<_> = events.iter().map(|event| PollFd::new(event.as_fd(), PollFlags::POLLIN)).collect();
        let started = Instant::now();
        loop {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            match poll(&mut polled, PollTimeout::from(POLL_MS)) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return take_events(&polled, events),
                Err(errno) => return Err(Error::io("poll", "eventfd", errno)),
            }
            if started.elapsed() > Duration::from_secs(STUCK_SECONDS) {
                return Err(Error::Stuck { seconds: STUCK_SECONDS, in_flight });
            }
        }
    }
}

/// Resets the descriptors that are readable.
fn take_events(polled: &[PollFd<'_>], events: &[BorrowedFd<'_>]) -> Result<()> {
    for (polled, event) in polled.iter().zip(events) {
        if polled.any() == Some(false) {
            continue;
        }
        let mut counter = [0; 8];
        match nix::unistd::read(event, &mut counter) {
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(Error::io("read", "eventfd", errno)),
        }
    }
    Ok(())
}
