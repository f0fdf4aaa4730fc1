//! Event file descriptors: how a host's event loop learns that tickets have completed.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::error::{Error, Result};

/// One eventfd. Raised only once somebody has asked for it, so that callers who wait otherwise pay nothing.
pub(crate) struct CompletionFd {
    fd: EventFd,
    armed: AtomicBool,
}

impl CompletionFd {
    pub(crate) fn new() -> Result<Self> {
        let fd = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| Error::io("eventfd", "(completion)", errno))?;
        Ok(Self { fd, armed: AtomicBool::new(false) })
    }

    /// The descriptor. From now on each completed ticket adds 1 to its counter.
    pub(crate) fn arm(&self) -> BorrowedFd<'_> {
        self.armed.store(true, Ordering::Release);
        self.fd.as_fd()
    }

    fn raise(&self) {
        if self.armed.load(Ordering::Acquire) {
            match self.fd.write(1) {
                // EAGAIN: the counter is at its maximum, and the descriptor readable already.
                Ok(_) | Err(Errno::EAGAIN) => {}
                Err(errno) => tracing::error!(%errno, "write to a completion eventfd failed"),
            }
        }
    }
}

/// What a batch raises when it is done: nothing, or one of the engine's descriptors.
#[derive(Clone)]
pub(crate) struct Signal(Option<Arc<CompletionFd>>);

impl Signal {
    pub(crate) fn none() -> Self {
        Self(None)
    }

    pub(crate) fn to(fd: &Arc<CompletionFd>) -> Self {
        Self(Some(fd.clone()))
    }

    pub(crate) fn raise(&self) {
        if let Some(fd) = &self.0 {
            fd.raise();
        }
    }
}
