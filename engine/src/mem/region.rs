//! One anonymous mapping: page-aligned, populated, locked, not inherited by children.

use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use serde::Serialize;

use crate::error::{Error, Result};

/// Pages of the pool's bookkeeping, and the least alignment of its buffers: the base page of x86-64 and of
/// most arm64 kernels.
pub(super) const PAGE_BYTES: usize = 4096;

const HUGE_PAGE_BYTES: usize = 2 << 20;

/// What pages a mapping got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PageKind {
    /// Reserved huge pages (`vm.nr_hugepages`).
    Huge,
    /// Ordinary pages; the kernel was asked to merge them into transparent huge pages where it can.
    Base,
}

/// A mapping that is released on drop.
pub(crate) struct Region {
    ptr: NonNull<u8>,
    len: usize,
    pub(crate) pages: PageKind,
    pub(crate) locked: bool,
}

// SAFETY: the mapping belongs to this value alone and is not tied to a thread; who may touch which bytes is
// decided by the pool's allocator.
unsafe impl Send for Region {}
// SAFETY: as above; a shared `Region` gives out addresses only.
unsafe impl Sync for Region {}

impl Region {
    /// Maps at least `len` bytes. Pages are populated by this thread, so that they are on its NUMA node.
    pub(crate) fn map(len: usize) -> Result<Self> {
        let len = len.next_multiple_of(HUGE_PAGE_BYTES);
        let Some(size) = NonZeroUsize::new(len) else {
            return Err(Error::Config { option: "pool_bytes", reason: "has to be larger than 0".into() });
        };
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let base = MapFlags::MAP_PRIVATE;
        // Reserved at once: a huge page that is missing later would be a SIGBUS.
        let huge = base | MapFlags::MAP_HUGETLB | MapFlags::MAP_POPULATE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no existing memory.
        let (ptr, pages) = match unsafe { mmap_anonymous(None, size, protection, huge) } {
            Ok(ptr) => (ptr, PageKind::Huge),
            Err(_) => {
                // SAFETY: as above.
                let mapped = unsafe { mmap_anonymous(None, size, protection, base) };
                (mapped.map_err(|errno| Error::io("mmap", "(buffer pool)", errno))?, PageKind::Base)
            }
        };
        if pages == PageKind::Base {
            // Best effort: kernels without transparent huge pages refuse.
            // SAFETY: the range is the mapping made above; MADV_HUGEPAGE changes no contents.
            let _ = unsafe { madvise(ptr, len, MmapAdvise::MADV_HUGEPAGE) };
        }
        // A child that inherits pages under DMA would make copy-on-write copies of them.
        // SAFETY: the range is the mapping made above; MADV_DONTFORK changes no contents.
        let _ = unsafe { madvise(ptr, len, MmapAdvise::MADV_DONTFORK) };
        // SAFETY: the range is the mapping made above.
        let locked = unsafe { mlock(ptr, len) };
        if matches!(locked, Err(errno) if errno != Errno::ENOMEM && errno != Errno::EPERM && errno != Errno::EAGAIN) {
            tracing::warn!(?locked, "mlock of the buffer pool failed");
        }
        Ok(Self { ptr: ptr.cast(), len, pages, locked: locked.is_ok() })
    }

    pub(crate) fn ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the range is the mapping that `map` made; every buffer in it holds the pool, and so this
        // region, alive, so nothing refers to it any more.
        if let Err(errno) = unsafe { munmap(self.ptr.cast(), self.len) } {
            tracing::error!(%errno, "munmap of the buffer pool failed");
        }
    }
}
