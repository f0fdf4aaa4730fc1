//! What a batch gives back: one result a key, in the order of the batch, and the buffers lent for it.

use serde::Serialize;

use crate::error::Error;
use crate::mem::Buffer;
use crate::ticket::Report;

/// Results of one [`crate::Engine::store`].
#[derive(Debug)]
#[non_exhaustive]
pub struct StoreReport {
    /// For each key the bytes that were added: its size, or 0 where it was present already.
    pub results: Vec<Result<u64, Error>>,
    /// The buffers, as they were handed in. `None` where the kernel may still read one (after
    /// [`Error::TimedOut`]): it is dropped when the kernel is done.
    pub buffers: Vec<Option<Buffer>>,
}

/// Results of one [`crate::Engine::load`].
#[derive(Debug)]
#[non_exhaustive]
pub struct LoadReport {
    /// For each key the bytes loaded; [`Error::NotFound`] is a miss.
    pub results: Vec<Result<u64, Error>>,
    /// The buffers, filled where the result is `Ok`. `None` where the kernel may still write into one (after
    /// [`Error::TimedOut`]): it is dropped when the kernel is done.
    pub buffers: Vec<Option<Buffer>>,
}

/// Results of one [`crate::Engine::lookup_and_pin`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LookupReport {
    /// For each key the size of its object, which is pinned now; `None` is a miss.
    pub sizes: Vec<Option<u64>>,
}

impl LookupReport {
    /// Number of keys found.
    pub fn hits(&self) -> usize {
        self.sizes.iter().flatten().count()
    }
}

/// Results of one [`crate::Engine::delete`].
#[derive(Debug)]
#[non_exhaustive]
pub struct DeleteReport {
    /// For each key the bytes freed; [`Error::NotFound`] and [`Error::Pinned`] say why not.
    pub results: Vec<Result<u64, Error>>,
}

/// What one [`crate::Engine::evict_to`] did; evictions that went on beside it are counted, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct EvictionReport {
    /// Objects that were evicted.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of the objects that are left.
    pub used_bytes: u64,
    /// How often an object was passed over because it was in use.
    pub in_use: u64,
    /// Objects that could not be evicted.
    pub errors: u64,
}

impl StoreReport {
    pub(crate) fn open(count: usize) -> Self {
        Self { results: vec![Err(Error::ShardFailed); count], buffers: (0..count).map(|_| None).collect() }
    }
}

impl Report for StoreReport {
    type Answer = (Result<u64, Error>, Option<Buffer>);

    fn enter(&mut self, index: usize, (result, buffer): Self::Answer) {
        self.results[index] = result;
        self.buffers[index] = buffer;
    }

    fn failure(error: Error) -> Self::Answer {
        (Err(error), None)
    }
}

impl LoadReport {
    pub(crate) fn open(count: usize) -> Self {
        Self { results: vec![Err(Error::ShardFailed); count], buffers: (0..count).map(|_| None).collect() }
    }
}

impl Report for LoadReport {
    type Answer = (Result<u64, Error>, Option<Buffer>);

    fn enter(&mut self, index: usize, (result, buffer): Self::Answer) {
        self.results[index] = result;
        self.buffers[index] = buffer;
    }

    fn failure(error: Error) -> Self::Answer {
        (Err(error), None)
    }
}

impl Report for LookupReport {
    type Answer = Option<u64>;

    fn enter(&mut self, index: usize, size: Self::Answer) {
        self.sizes[index] = size;
    }

    /// A lookup that could not be answered is a miss.
    fn failure(_: Error) -> Self::Answer {
        None
    }
}

impl DeleteReport {
    pub(crate) fn open(count: usize) -> Self {
        Self { results: vec![Err(Error::ShardFailed); count] }
    }
}

impl Report for DeleteReport {
    type Answer = Result<u64, Error>;

    fn enter(&mut self, index: usize, result: Self::Answer) {
        self.results[index] = result;
    }

    fn failure(error: Error) -> Self::Answer {
        Err(error)
    }
}
