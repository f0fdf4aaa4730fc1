//! What a cache daemon mounts: one interface, whichever names are on disk.
//!
//! An adapter is an [`Engine`] that was opened for one kind of directory. It checks that its configuration makes sense for that
//! kind, takes keys and buffers as hosts have them, in two lists, and adds nothing else: batches, tickets,
//! pins, usage and events are the engine's.

mod fs;
mod nixl_dynamic;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use thiserror::Error;

pub use fs::FsAdapter;
pub use nixl_dynamic::NixlDynamicAdapter;

use crate::engine::{Class, Engine};
use crate::error::{Error, Result};
use crate::events::Listener;
use crate::key::ObjectKey;
use crate::ledger::AdapterUsage;
use crate::mem::Buffer;
use crate::report::{DeleteReport, LoadReport, LookupReport, StoreReport};
use crate::status::Status;
use crate::ticket::Ticket;

/// A store of objects as its host sees it. Thread-safe; every submit returns at once, and every ticket completes.
pub trait Adapter: Send + Sync + fmt::Debug {
    /// `fs` or `nixl-dynamic`.
    fn kind(&self) -> &'static str;

    /// The engine beneath: for its pool, for lending it memory, and for what its scan found.
    fn engine(&self) -> &Engine;

    /// Stores `buffers[i]` under `keys[i]`; as [`Engine::store`].
    ///
    /// # Errors
    /// [`Refused`] when the lists differ in length: nothing is stored, and the buffers come back.
    fn store(&self, keys: &[ObjectKey], buffers: Vec<Buffer>) -> Result<Ticket<StoreReport>, Refused> {
        Ok(self.engine().store(paired(keys, buffers)?))
    }

    /// Looks keys up and pins what is found; as [`Engine::lookup_and_pin`].
    fn lookup_and_pin(&self, keys: &[ObjectKey]) -> Ticket<LookupReport> {
        self.engine().lookup_and_pin(keys)
    }

    /// Loads `keys[i]` into `buffers[i]`; as [`Engine::load`].
    ///
    /// # Errors
    /// [`Refused`] when the lists differ in length: nothing is loaded, and the buffers come back.
    fn load(&self, keys: &[ObjectKey], buffers: Vec<Buffer>) -> Result<Ticket<LoadReport>, Refused> {
        Ok(self.engine().load(paired(keys, buffers)?))
    }

    /// Releases one pin of each key; gives how many were released. Does not block.
    fn unpin(&self, keys: &[ObjectKey]) -> usize {
        self.engine().unpin(keys)
    }

    /// Deletes what is neither pinned nor being loaded; as [`Engine::delete`].
    fn delete(&self, keys: &[ObjectKey]) -> Ticket<DeleteReport> {
        self.engine().delete(keys)
    }

    /// Bytes in use, in total and by salt, what earlier runs have left included.
    fn usage(&self) -> AdapterUsage {
        self.engine().usage()
    }

    /// Health and counters. Makes a system call or two.
    fn status(&self) -> Status {
        self.engine().status()
    }

    /// Tells a listener of everything that is there, and of every change from now on; as [`Engine::subscribe`].
    ///
    /// # Errors
    /// [`Error::Io`] when no thread can be had.
    fn subscribe(&self, listener: Arc<dyn Listener>) -> Result<()> {
        self.engine().subscribe(listener)
    }

    /// An eventfd that becomes readable when stores, lookups or loads complete; three distinct ones.
    fn event_fd(&self, class: Class) -> BorrowedFd<'_> {
        self.engine().event_fd(class)
    }

    /// Closes: I/O that has begun ends, what has not is answered with [`Error::Closed`]. Blocks until the kernel is done with
    /// every buffer. With [`Config::persist`](crate::Config::persist) off, removes what this adapter has stored.
    fn close(self: Box<Self>);
}

/// A call was refused as a whole; nothing was done.
#[derive(Debug, Error)]
#[error("{error}")]
#[non_exhaustive]
pub struct Refused {
    /// Why: [`Error::LengthMismatch`].
    #[source]
    pub error: Error,
    /// The buffers, as they were handed in.
    pub buffers: Vec<Buffer>,
}

fn paired(keys: &[ObjectKey], buffers: Vec<Buffer>) -> Result<Vec<(ObjectKey, Buffer)>, Refused> {
    if keys.len() != buffers.len() {
        let error = Error::LengthMismatch { keys: keys.len(), buffers: buffers.len() };
        return Err(Refused { error, buffers });
    }
    Ok(keys.iter().cloned().zip(buffers).collect())
}

/// Checks that an option has one of the values that an adapter can work with.
fn require(is_so: bool, option: &'static str, reason: impl Into<String>) -> Result<()> {
    if is_so { Ok(()) } else { Err(Error::Config { option, reason: reason.into() }) }
}
