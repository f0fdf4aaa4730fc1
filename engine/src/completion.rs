//! Event file descriptors: how a host's event loop learns that tickets have completed.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::error::{Error, Result};

/// One eventfd. Raised only once somebody has asked for it, so that callers who wait otherwise pay nothing.
pub(crate) struct CompletionFd {
    fd: EventFd,
    armed: AtomicBool,
    /// Completed tickets that were not told of yet.
    pending: AtomicU64,
}

impl CompletionFd {
    pub(crate) fn new() -> Result<Self> {
        let fd = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| Error::io("eventfd", "(completion)", errno))?;
        Ok(Self { fd, armed: AtomicBool::new(false), pending: AtomicU64::new(0) })
    }

    /// The descriptor. From now on each completed ticket adds 1 to its counter.
    pub(crate) fn arm(&self) -> BorrowedFd<'_> {
        self.armed.store(true, Ordering::Release);
        self.fd.as_fd()
    }

    /// Notes one completed ticket; [`Self::flush`] tells.
    fn note(&self) {
        self.pending.fetch_add(1, Ordering::AcqRel);
    }

    /// Tells of the tickets noted since the last call: one system call for all of them.
    pub(crate) fn flush(&self) {
        let count = self.pending.swap(0, Ordering::AcqRel);
        if count > 0 && self.armed.load(Ordering::Acquire) {
            match self.fd.write(count) {
                // EAGAIN: the counter is at its maximum, and the descriptor readable already.
                Ok(_) | Err(Errno::EAGAIN) => {}
                Err(errno) => tracing::error!(%errno, "write to a completion eventfd failed"),
            }
        }
    }
}

/// The descriptors of all classes.
pub(crate) struct CompletionFds {
    pub(crate) store: Arc<CompletionFd>,
    pub(crate) lookup: Arc<CompletionFd>,
    pub(crate) load: Arc<CompletionFd>,
}

impl CompletionFds {
    pub(crate) fn new() -> Result<Self> {
        let new = || CompletionFd::new().map(Arc::new);
        Ok(Self { store: new()?, lookup: new()?, load: new()? })
    }

    pub(crate) fn flush(&self) {
        self.load.flush();
        self.store.flush();
        self.lookup.flush();
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

    /// Notes the completion. Whoever completes tickets flushes the descriptors when it has answered all that it can.
    pub(crate) fn note(&self) {
        if let Some(fd) = &self.0 {
            fd.note();
        }
    }
}
