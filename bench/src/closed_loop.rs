//! A closed loop: a fixed number of tickets in flight, the next one submitted when one completes.
//!
//! Waits as a host's event loop does: poll on the engine's event descriptor, then look which tickets are done.

use std::os::fd::AsFd;
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

/// The results of a batch of one key.
pub(crate) trait Transfer {
    fn into_parts(self) -> (Result<u64, saltern::Error>, Option<Buffer>);
}

impl Transfer for StoreReport {
    fn into_parts(mut self) -> (Result<u64, saltern::Error>, Option<Buffer>) {
        (self.results.remove(0), self.buffers.remove(0))
    }
}

impl Transfer for LoadReport {
    fn into_parts(mut self) -> (Result<u64, saltern::Error>, Option<Buffer>) {
        (self.results.remove(0), self.buffers.remove(0))
    }
}

/// What a loop measured.
pub(crate) struct Outcome {
    pub(crate) spent: Spent,
    pub(crate) latencies: Latencies,
}

/// How a loop runs.
pub(crate) struct ClosedLoop<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) class: Class,
    pub(crate) depth: usize,
    pub(crate) cancel: &'a AtomicBool,
    /// Submits nothing more once this is set; what is in flight is waited for.
    pub(crate) stop: Option<&'a AtomicBool>,
}

struct InFlight<R> {
    number: usize,
    ticket: Ticket<R>,
    submitted: Instant,
}

impl ClosedLoop<'_> {
    /// Submits `count` operations, and hands each one's results to `done`, in the order of completion. `submit`
    /// and `done` are part of what is timed: they only move buffers.
    ///
    /// # Errors
    /// [`Error::Interrupted`] and [`Error::Stuck`]; results of operations are no errors here.
    pub(crate) fn run<R: Transfer, C>(
        &self,
        context: &mut C,
        count: usize,
        mut submit: impl FnMut(&mut C, usize) -> Ticket<R>,
        mut done: impl FnMut(&mut C, usize, Result<u64, saltern::Error>, Option<Buffer>),
    ) -> Result<Outcome> {
        let mut in_flight: Vec<InFlight<R>> = Vec::with_capacity(self.depth);
        let mut latencies = Latencies::new();
        let mut next = 0;
        let meter = Meter::process();
        loop {
            let is_stopped = self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed));
            while in_flight.len() < self.depth && next < count && !is_stopped {
                let submitted = Instant::now();
                in_flight.push(InFlight { number: next, ticket: submit(context, next), submitted });
                next += 1;
            }
            if in_flight.is_empty() {
                break;
            }
            self.wait(in_flight.len())?;
            let mut at = 0;
            while at < in_flight.len() {
                let Some(report) = in_flight[at].ticket.try_take() else {
                    at += 1;
                    continue;
                };
                let finished = in_flight.swap_remove(at);
                latencies.record(finished.submitted.elapsed());
                let (result, buffer) = report.into_parts();
                done(context, finished.number, result, buffer);
            }
        }
        Ok(Outcome { spent: meter.stop(), latencies })
    }

    /// Blocks until a ticket of this class has completed since the last call.
    fn wait(&self, in_flight: usize) -> Result<()> {
        let fd = self.engine.event_fd(self.class);
        let started = Instant::now();
        loop {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], PollTimeout::from(POLL_MS)) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => {
                    let mut counter = [0; 8];
                    match nix::unistd::read(fd, &mut counter) {
                        Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
                        Err(errno) => return Err(Error::io("read", "eventfd", errno)),
                    }
                }
                Err(errno) => return Err(Error::io("poll", "eventfd", errno)),
            }
            if started.elapsed() > Duration::from_secs(STUCK_SECONDS) {
                return Err(Error::Stuck { seconds: STUCK_SECONDS, in_flight });
            }
        }
    }
}
