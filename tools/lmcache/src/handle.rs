//! An engine that any thread may close while others use it.

use parking_lot::{Mutex, RwLock};
use saltern::layout::Layout;
use saltern::{Adapter, Config, Engine, Error, FsAdapter, NixlDynamicAdapter, Result};

/// Lends the engine out for calls that return at once, until it is closed.
pub(crate) struct Handle {
    adapter: RwLock<Option<Box<dyn Adapter>>>,
    /// Held while it closes, so that whoever closes second also returns only when all I/O is over.
    closing: Mutex<()>,
}

impl Handle {
    /// Opens the adapter for the layout, scans its directory, and sets quotas (bytes by salt). Blocks: call without the GIL.
    pub(crate) fn open(config: Config, quotas: &[(String, u64)]) -> Result<Self> {
        let adapter: Box<dyn Adapter> = match config.layout {
            Layout::Fs | Layout::Fs3 => Box::new(FsAdapter::open(config)?),
            Layout::Nixl | Layout::Nixl3 | Layout::NixlSharded => Box::new(NixlDynamicAdapter::open(config)?),
        };
        for (salt, bytes) in quotas {
            // Setting one writes a file, so what is as it should be is left alone.
            if adapter.engine().quota(salt)? != Some(*bytes) {
                adapter.engine().set_quota(salt, *bytes)?;
            }
        }
        Ok(Self { adapter: RwLock::new(Some(adapter)), closing: Mutex::new(()) })
    }

    /// Calls `work`, which does not touch Python, and does not block: so a caller may hold the GIL, whoever waits for this lock. (Lending an
    /// arena takes seconds at most, without the GIL; a close meanwhile waits for it.)
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub(crate) fn with<R>(&self, work: impl FnOnce(&Engine) -> R) -> Result<R> {
        self.adapter.read().as_ref().map(|adapter| work(adapter.engine())).ok_or(Error::Closed)
    }

    /// Closes: blocks until the kernel is done with every buffer, and listeners have heard everything. Call without the
    /// GIL, which listeners need. Closing twice is closing once.
    pub(crate) fn close(&self) {
        // Out of the lock first: closing takes time, and other callers are to hear `Closed` at once.
        let _closing = self.closing.lock();
        let adapter = self.adapter.write().take();
        if let Some(adapter) = adapter {
            adapter.close();
        }
    }
}
