//! Waiting for conditions, never for time. The bound only turns a hang into a failure.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use saltern::Ticket;

/// When a test gives up on something that has to happen.
pub const WAIT_MAX: Duration = Duration::from_secs(60);

/// Polls until it is so.
///
/// # Panics
/// When it is not so for [`WAIT_MAX`].
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < WAIT_MAX, "not within {WAIT_MAX:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The results of a ticket.
///
/// # Panics
/// When it does not complete within [`WAIT_MAX`].
#[track_caller]
pub fn done<R>(mut ticket: Ticket<R>) -> R {
    match ticket.wait_timeout(WAIT_MAX) {
        Some(report) => report,
        None => panic!("{ticket:?} did not complete within {WAIT_MAX:?}"),
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread.
///
/// # Panics
/// When it is not ready within [`WAIT_MAX`].
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut cx = Context::from_waker(&waker);
    let start = Instant::now();
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
        let left = WAIT_MAX.checked_sub(start.elapsed()).expect("the future was never woken");
        std::thread::park_timeout(left);
    }
}
