//! An eventfd that tickets ring when they complete.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use nix::sys::eventfd::{EfdFlags, EventFd};
use pyo3::PyResult;
use pyo3::exceptions::PyOSError;
use saltern::Ticket;

/// Rings once for any number of completions, until it is reset.
pub(crate) struct Bell {
    fd: EventFd,
    is_rung: AtomicBool,
}

impl Bell {
    pub(crate) fn new() -> PyResult<Arc<Self>> {
        let fd = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| PyOSError::new_err((errno as i32, errno.desc())))?;
        Ok(Arc::new(Self { fd, is_rung: AtomicBool::new(false) }))
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.fd.as_fd().as_raw_fd()
    }

    pub(crate) fn ring(&self) {
        if !self.is_rung.swap(true, Ordering::AcqRel) {
            ring_fd(self.fd.as_fd());
        }
    }

    /// To be called before results are collected: what completes later rings again.
    pub(crate) fn reset(&self) {
        // In this order: a ring between the two is not written, and is seen by the caller's collecting. EAGAIN: it had not rung.
        let _ = self.fd.read();
        self.is_rung.swap(false, Ordering::AcqRel);
    }
}

/// Makes an eventfd readable.
pub(crate) fn ring_fd(fd: BorrowedFd<'_>) {
    // EAGAIN means that its counter is full, and so that it is readable.
    let _ = nix::unistd::write(fd, &1u64.to_ne_bytes());
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }
}

/// A ticket that rings a bell, or its results.
pub(crate) enum Pending<R> {
    Open(Ticket<R>),
    Done(R),
}

impl<R: Unpin> Pending<R> {
    /// Rings when the ticket is complete, at once where it is.
    pub(crate) fn new(mut ticket: Ticket<R>, bell: &Arc<Bell>) -> Self {
        let waker = Waker::from(bell.clone());
        match std::pin::Pin::new(&mut ticket).poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(report) => {
                bell.ring();
                Self::Done(report)
            }
            Poll::Pending => Self::Open(ticket),
        }
    }

    /// The results, when they are there.
    pub(crate) fn take(self) -> Result<R, Self> {
        match self {
            Self::Done(report) => Ok(report),
            Self::Open(mut ticket) => ticket.try_take().ok_or(Self::Open(ticket)),
        }
    }
}
