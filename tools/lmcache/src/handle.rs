//! An engine that any thread may close while others use it.

use parking_lot::{Mutex, RwLock};
use saltern::{Config, Engine, Error, Result};

/// Lends the engine out for calls that return at once, until it is closed.
pub(crate) struct Handle {
    engine: RwLock<Option<Engine>>,
    /// Held while it closes, so that whoever closes second also returns only when all I/O is over.
    closing: Mutex<()>,
}

impl Handle {
    /// Opens the engine, and scans its directory. Blocks: call without the GIL.
    pub(crate) fn open(config: Config) -> Result<Self> {
        Ok(Self { engine: RwLock::new(Some(Engine::open(config)?)), closing: Mutex::new(()) })
    }

    /// Calls `work`, which neither blocks nor touches Python: so a caller may hold the GIL, whoever waits for this lock.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub(crate) fn with<R>(&self, work: impl FnOnce(&Engine) -> R) -> Result<R> {
        self.engine.read().as_ref().map(work).ok_or(Error::Closed)
    }

    /// Closes: blocks until the kernel is done with every buffer, and listeners have heard everything. Call without the
    /// GIL, which listeners need. Closing twice is closing once.
    pub(crate) fn close(&self) {
        // Out of the lock first: closing takes time, and other callers are to hear `Closed` at once.
        let _closing = self.closing.lock();
        let engine = self.engine.write().take();
        drop(engine);
    }
}
