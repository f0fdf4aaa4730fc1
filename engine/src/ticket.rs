//! Tickets: what a batch's caller holds until its results are there.
//!
//! A batch's operations complete on any thread, each through its own [`Part`]; the last one makes the ticket
//! ready. A part that is dropped unanswered (a shard that panicked, a queue that is torn down) answers
//! with an error, and a ticket past its deadline is answered by the [`crate::watchdog`]: so every ticket completes.
//! Results are handed out once. Nothing here blocks but `wait`.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::completion::Signal;
use crate::error::Error;

/// A result set that is filled in key by key.
pub(crate) trait Report: Send + Sized + 'static {
    /// The answer for one key.
    type Answer: Send;

    /// Enters the answer for one key.
    fn enter(&mut self, index: usize, answer: Self::Answer);

    /// The answer for a key that failed.
    fn failure(error: Error) -> Self::Answer;
}

struct State<R> {
    report: Option<R>,
    /// Which keys have no answer yet; empty once the ticket is done.
    open: Vec<bool>,
    open_count: usize,
    waker: Option<Waker>,
}

/// What the engine's side and the caller's side of one batch share.
pub(crate) struct Batch<R: Report> {
    state: Mutex<State<R>>,
    done: AtomicBool,
    changed: Condvar,
    signal: Signal,
    begun: Instant,
}

impl<R: Report> Batch<R> {
    /// False when the deadline was faster: the caller has been told already.
    fn enter(&self, index: usize, answer: R::Answer) -> bool {
        let mut state = self.state.lock();
        if !state.open.get(index).copied().unwrap_or(false) {
            return false;
        }
        state.open[index] = false;
        state.open_count -= 1;
        if let Some(report) = &mut state.report {
            report.enter(index, answer);
        }
        if state.open_count == 0 {
            self.complete(state);
        }
        true
    }

    /// Answers every open key with this error.
    fn fail_open(&self, error: &Error) {
        let mut state = self.state.lock();
        if state.open_count == 0 {
            return;
        }
        for index in 0..state.open.len() {
            if std::mem::take(&mut state.open[index])
                && let Some(report) = &mut state.report
            {
                report.enter(index, R::failure(error.clone()));
            }
        }
        state.open_count = 0;
        self.complete(state);
    }

    fn complete(&self, mut state: parking_lot::MutexGuard<'_, State<R>>) {
        state.open = Vec::new();
        let waker = state.waker.take();
        self.done.store(true, Ordering::Release);
        drop(state);
        self.changed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
        self.signal.note();
    }
}

/// A batch as the watchdog sees it, whatever its results are.
pub(crate) trait Expire: Send + Sync {
    /// Whether all keys are answered.
    fn is_done(&self) -> bool;
    /// Answers every open key with this error.
    fn expire(&self, error: &Error);
}

impl<R: Report> Expire for Batch<R> {
    fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    fn expire(&self, error: &Error) {
        self.fail_open(error);
    }
}

/// The duty to answer one key of a batch. Dropped unanswered, it answers [`Error::ShardFailed`].
pub(crate) struct Part<R: Report> {
    batch: Option<Arc<Batch<R>>>,
    index: usize,
}

impl<R: Report> Part<R> {
    /// Answers; false when the deadline was faster, and the caller has been told otherwise.
    pub(crate) fn answer(mut self, answer: R::Answer) -> bool {
        self.batch.take().is_some_and(|batch| batch.enter(self.index, answer))
    }

    /// Time since the batch was submitted.
    pub(crate) fn age(&self) -> Duration {
        self.batch.as_ref().map_or(Duration::ZERO, |batch| batch.begun.elapsed())
    }

    /// Whether the deadline has answered for this key already.
    pub(crate) fn is_expired(&self) -> bool {
        self.batch.as_ref().is_none_or(|batch| Expire::is_done(&**batch))
    }
}

impl<R: Report> Drop for Part<R> {
    fn drop(&mut self) {
        if let Some(batch) = self.batch.take() {
            batch.enter(self.index, R::failure(Error::ShardFailed));
        }
    }
}

/// A batch on its way: wait for it, poll it, or await it. The results are handed out once.
///
/// Dropping a ticket abandons the results, never the work: memory stays with the engine until the kernel is done.
#[must_use = "a ticket is the only way to the results"]
pub struct Ticket<R> {
    id: u64,
    inner: Inner<R>,
}

enum Inner<R> {
    Ready(Option<R>),
    Pending(Arc<dyn Outcome<R>>),
}

/// Erases the engine's side of a batch, so that callers need not see it.
trait Outcome<R>: Send + Sync {
    fn is_done(&self) -> bool;
    fn take(&self) -> Option<R>;
    fn wait_until(&self, deadline: Option<Instant>) -> Option<R>;
    fn poll(&self, cx: &mut Context<'_>) -> Poll<R>;
}

impl<R: Report> Outcome<R> for Batch<R> {
    fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    fn take(&self) -> Option<R> {
        if !self.done.load(Ordering::Acquire) {
            return None;
        }
        self.state.lock().report.take()
    }

    fn wait_until(&self, deadline: Option<Instant>) -> Option<R> {
        let mut state = self.state.lock();
        while state.open_count > 0 {
            match deadline {
                None => self.changed.wait(&mut state),
                Some(at) => {
                    if self.changed.wait_until(&mut state, at).timed_out() && state.open_count > 0 {
                        return None;
                    }
                }
            }
        }
        state.report.take()
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<R> {
        let mut state = self.state.lock();
        if state.open_count > 0 {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.report.take().map_or(Poll::Pending, Poll::Ready)
    }
}

impl<R> Ticket<R> {
    pub(crate) fn ready(id: u64, report: R) -> Self {
        Self { id, inner: Inner::Ready(Some(report)) }
    }

    /// A number that no other ticket of this engine has.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whether the results are there (or were taken already). Does not block.
    pub fn is_done(&self) -> bool {
        match &self.inner {
            Inner::Ready(_) => true,
            Inner::Pending(batch) => batch.is_done(),
        }
    }

    /// The results, if they are there and were not taken yet. Does not block.
    pub fn try_take(&mut self) -> Option<R> {
        match &mut self.inner {
            Inner::Ready(report) => report.take(),
            Inner::Pending(batch) => batch.take(),
        }
    }

    /// Blocks until the results are there, at most until the engine's deadline for this kind of operation.
    ///
    /// # Panics
    /// When [`Ticket::try_take`] or [`Ticket::wait_timeout`] has handed the results out before.
    pub fn wait(self) -> R {
        match self.inner {
            Inner::Ready(report) => report,
            Inner::Pending(batch) => batch.wait_until(None),
        }
        .expect("the results of a ticket are handed out once")
    }

    /// Blocks for at most this long; `None` when the results are not there by then, or were taken before.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<R> {
        match &mut self.inner {
            Inner::Ready(report) => report.take(),
            Inner::Pending(batch) => batch.wait_until(Some(Instant::now() + timeout)),
        }
    }
}

impl<R: Unpin> Future for Ticket<R> {
    type Output = R;

    /// Polled again after it was ready, it stays pending for ever.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<R> {
        match &mut self.inner {
            Inner::Ready(report) => report.take().map_or(Poll::Pending, Poll::Ready),
            Inner::Pending(batch) => batch.poll(cx),
        }
    }
}

impl<R> fmt::Debug for Ticket<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("id", &self.id).field("done", &self.is_done()).finish()
    }
}

/// Opens a batch of `count` keys: the caller's ticket, a part for each key, and the handle for the watchdog.
pub(crate) fn open_batch<R: Report>(
    id: u64,
    report: R,
    count: usize,
    signal: Signal,
) -> (Ticket<R>, Vec<Part<R>>, Arc<Batch<R>>) {
    let batch = Arc::new(Batch {
        state: Mutex::new(State { report: Some(report), open: vec![true; count], open_count: count, waker: None }),
        done: AtomicBool::new(count == 0),
        changed: Condvar::new(),
        signal,
        begun: Instant::now(),
    });
    if count == 0 {
        batch.signal.note();
    }
    let parts = (0..count).map(|index| Part { batch: Some(batch.clone()), index }).collect();
    (Ticket { id, inner: Inner::Pending(batch.clone()) }, parts, batch)
}
