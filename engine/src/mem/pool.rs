//! The bounded pool of page-aligned, locked host buffers.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use offset_allocator::{Allocation, Allocator};
use parking_lot::{Condvar, Mutex};
use serde::Serialize;

use super::region::{PAGE_BYTES, PageKind, Region};
use crate::error::{Error, Result};

/// Most buffers that one pool can have handed out at a time (bookkeeping of the allocator).
const POOL_BUFFERS_MAX: u32 = 64 << 10;

/// What a poisoned buffer holds.
const POISON: u8 = 0xd5;

struct Free {
    allocator: Allocator<u32>,
    used_pages: u32,
}

struct Shared {
    region: Region,
    free: Mutex<Free>,
    returned: Condvar,
    /// Overwrite what comes back: who still uses it then is found.
    poison: bool,
}

/// A fixed amount of pinned memory, handed out in page-aligned buffers. Clones share it. Thread-safe.
///
/// Bounded: when nothing is left, [`Pool::alloc`] says so and [`Pool::alloc_timeout`] waits for a buffer to
/// come back; the pool never grows.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

/// What a pool looks like at one moment.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct PoolStatus {
    /// Size of the pool.
    pub bytes: usize,
    /// Bytes handed out.
    pub used_bytes: usize,
    /// What pages it is made of.
    pub pages: PageKind,
    /// Whether it is locked into memory (needs RLIMIT_MEMLOCK or CAP_IPC_LOCK).
    pub locked: bool,
}

impl Pool {
    /// Maps, populates and locks `bytes` (rounded up to 2 MiB). Blocks for about 0.1 s a GiB.
    ///
    /// # Errors
    /// [`Error::Config`] for 0 bytes or more than 16 TiB, [`Error::Io`] when the mapping fails. Memory that cannot be
    /// locked is no error: see [`PoolStatus::locked`].
    pub fn new(bytes: usize) -> Result<Self> {
        Self::make(bytes, false)
    }

    /// As [`Pool::new`]; `poison` overwrites each buffer when it comes back.
    pub(crate) fn make(bytes: usize, poison: bool) -> Result<Self> {
        let region = Region::map(bytes)?;
        let Ok(pages) = u32::try_from(region.len() / PAGE_BYTES) else {
            return Err(Error::Config { option: "pool_bytes", reason: format!("{bytes} is more than 16 TiB") });
        };
        let allocator = Allocator::with_max_allocs(pages, POOL_BUFFERS_MAX.min(pages.max(8)));
        let free = Mutex::new(Free { allocator, used_pages: 0 });
        Ok(Self(Arc::new(Shared { region, free, returned: Condvar::new(), poison })))
    }

    /// A buffer of `len` bytes, aligned to a page. Does not block. Its contents are unspecified (what an earlier
    /// buffer left).
    ///
    /// # Errors
    /// [`Error::PoolExhausted`].
    pub fn alloc(&self, len: usize) -> Result<PoolBuffer> {
        let pages = len.div_ceil(PAGE_BYTES).max(1);
        let exhausted = || Error::PoolExhausted { bytes: len, pool_bytes: self.0.region.len() };
        let pages = u32::try_from(pages).map_err(|_| exhausted())?;
        let mut free = self.0.free.lock();
        let allocation = free.allocator.allocate(pages).ok_or_else(exhausted)?;
        free.used_pages += pages;
        drop(free);
        Ok(PoolBuffer { pool: self.clone(), allocation, pages, len })
    }

    /// As [`Pool::alloc`], but waits up to `timeout` for buffers to come back.
    ///
    /// # Errors
    /// [`Error::PoolExhausted`] when there was no room in time.
    pub fn alloc_timeout(&self, len: usize, timeout: Duration) -> Result<PoolBuffer> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.alloc(len) {
                Err(Error::PoolExhausted { .. }) => {}
                other => return other,
            }
            let mut free = self.0.free.lock();
            // Looks again under the lock that a returning buffer takes, so that no wake-up is lost; the
            // allocation is undone because `alloc` takes the lock itself.
            let pages = u32::try_from(len.div_ceil(PAGE_BYTES).max(1)).unwrap_or(u32::MAX);
            if let Some(allocation) = free.allocator.allocate(pages) {
                free.allocator.free(allocation);
                continue;
            }
            if self.0.returned.wait_until(&mut free, deadline).timed_out() {
                drop(free);
                return self.alloc(len);
            }
        }
    }

    /// Size, use and kind of memory.
    pub fn status(&self) -> PoolStatus {
        PoolStatus {
            bytes: self.0.region.len(),
            used_bytes: self.0.free.lock().used_pages as usize * PAGE_BYTES,
            pages: self.0.region.pages,
            locked: self.0.region.locked,
        }
    }

    /// Address and length of the whole pool, to register it with a ring or a device. Mapped for as long as a clone of the pool
    /// lives.
    pub fn span(&self) -> (*mut u8, usize) {
        (self.0.region.ptr().as_ptr(), self.0.region.len())
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.status().fmt(f)
    }
}

/// A page-aligned buffer of a [`Pool`]; it goes back to the pool when it is dropped.
pub struct PoolBuffer {
    pool: Pool,
    allocation: Allocation<u32>,
    pages: u32,
    len: usize,
}

impl PoolBuffer {
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        // SAFETY: the allocator gave out `offset` within the region's pages.
        unsafe { self.pool.0.region.ptr().as_ptr().add(self.allocation.offset as usize * PAGE_BYTES) }
    }
}

impl Deref for PoolBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the allocator gave these pages to this buffer alone, they are mapped and initialised (zeroed by the
        // kernel), and the region lives as long as `self.pool`.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len) }
    }
}

impl DerefMut for PoolBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes this the only view.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.len) }
    }
}

impl Drop for PoolBuffer {
    fn drop(&mut self) {
        if self.pool.0.poison {
            self.fill(POISON);
        }
        let mut free = self.pool.0.free.lock();
        free.allocator.free(self.allocation);
        free.used_pages -= self.pages;
        drop(free);
        self.pool.0.returned.notify_all();
    }
}

impl fmt::Debug for PoolBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PoolBuffer({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_bounded_and_come_back() {
        let pool = Pool::new(2 << 20).unwrap();
        let mut first = pool.alloc(5000).unwrap();
        assert_eq!((first.as_ptr() as usize % PAGE_BYTES, first.len()), (0, 5000));
        first.fill(7);
        let rest = pool.alloc(1 << 20).unwrap();
        assert!(matches!(pool.alloc(1 << 20), Err(Error::PoolExhausted { .. })));
        assert_eq!(pool.status().used_bytes, 8192 + (1 << 20));
        assert!(first.iter().all(|byte| *byte == 7));
        drop((first, rest));
        assert_eq!(pool.status().used_bytes, 0);
        assert_eq!(pool.alloc(2 << 20).unwrap().len(), 2 << 20);
    }

    #[test]
    fn a_waiting_allocation_gets_what_comes_back() {
        let pool = Pool::new(2 << 20).unwrap();
        let all = pool.alloc(2 << 20).unwrap();
        assert!(pool.alloc_timeout(1, Duration::from_millis(1)).is_err());
        let waiter = std::thread::spawn({
            let pool = pool.clone();
            move || pool.alloc_timeout(2 << 20, Duration::from_secs(60)).map(|buffer| buffer.len())
        });
        drop(all);
        assert_eq!(waiter.join().unwrap().unwrap(), 2 << 20);
    }
}
