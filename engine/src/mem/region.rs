//! One anonymous mapping: page-aligned, populated, locked, not inherited by children.

use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use serde::Serialize;

use crate::error::{Error, Result};

/// Pages of the pool's bookkeeping, and the least alignment of its buffers: the base page of x86-64 and of
/// most arm64 kernels.
pub(super) const PAGE_BYTES: usize = 4096;

const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Linux: include/uapi/asm-generic/mman-common.h; not in every libc.
const MADV_COLLAPSE: libc::c_int = 25;

/// Merged in one call: 32 MiB are some milliseconds.
const MERGED_BYTES: usize = 16 * HUGE_PAGE_BYTES;

/// How long merging a caller's memory may take: it is copied page by page where it is populated, about 1 to 2 GB a second.
const MERGE_TIME: Duration = Duration::from_secs(10);

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

/// Merges the pages of a caller's memory into huge ones, as far as the kernel does it (MADV_COLLAPSE, Linux 6.1) and [`MERGE_TIME`] lasts;
/// gives how many bytes it has merged. Contents stay, and other threads may use them meanwhile. A device's queue takes so many segments a
/// request (128 on loop devices): of single pages that is 512 KiB. What others have pinned cannot be merged, and the first refusal ends it.
pub(crate) fn merge_pages(ptr: *mut u8, len: usize) -> usize {
    let began = Instant::now();
    let (start, end) = (ptr as usize, (ptr as usize).saturating_add(len));
    let (first, end) = (start.next_multiple_of(HUGE_PAGE_BYTES), end - end % HUGE_PAGE_BYTES);
    let mut at = first;
    while at < end && began.elapsed() < MERGE_TIME {
        let len = (end - at).min(MERGED_BYTES);
        // SAFETY: MADV_COLLAPSE changes which pages hold the memory, and none of its contents; what is not mapped is an error.
        if unsafe { libc::madvise(at as *mut libc::c_void, len, MADV_COLLAPSE) } != 0 {
            break;
        }
        at += len;
    }
    at.saturating_sub(first)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of huge pages in the mapping that an address is in, as the kernel tells them.
    fn huge_bytes(ptr: *const u8) -> usize {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_here = false;
        for line in smaps.lines() {
            if let Some((range, _)) = line.split_once(' ')
                && let Some((from, to)) = range.split_once('-')
                && let (Ok(from), Ok(to)) = (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16))
            {
                is_here = (from..to).contains(&(ptr as usize));
            } else if is_here && let Some(kib) = line.strip_prefix("AnonHugePages:") {
                return kib.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10;
            }
        }
        0
    }

    #[test]
    fn merged_pages_have_what_was_in_them() {
        const LEN: usize = 5 * HUGE_PAGE_BYTES;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let size = NonZeroUsize::new(LEN).unwrap();
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no existing memory.
        let mapped = unsafe { mmap_anonymous(None, size, protection, MapFlags::MAP_PRIVATE) }.unwrap();
        // SAFETY: the range is the mapping made above; its pages are to be small ones at first (a kernel without huge ones refuses to be told).
        let _ = unsafe { madvise(mapped, LEN, MmapAdvise::MADV_NOHUGEPAGE) };
        // SAFETY: the mapping made above, which nobody else knows.
        let memory = unsafe { std::slice::from_raw_parts_mut(mapped.cast::<u8>().as_ptr(), LEN) };
        memory.iter_mut().enumerate().for_each(|(at, byte)| *byte = ((at * 2_654_435_761) >> 13) as u8);
        let is_as_written =
            |memory: &[u8]| memory.iter().enumerate().all(|(at, byte)| *byte == ((at * 2_654_435_761) >> 13) as u8);
        assert_eq!(huge_bytes(memory.as_ptr()), 0);
        // Where it was said that there may be none, none are made.
        assert_eq!((merge_pages(memory.as_mut_ptr(), LEN), huge_bytes(memory.as_ptr())), (0, 0));
        // SAFETY: as above.
        if unsafe { madvise(mapped, LEN, MmapAdvise::MADV_HUGEPAGE) }.is_ok() {
            // An odd range inside: what lies in it whole is merged.
            let merged = merge_pages(memory[1000..].as_mut_ptr(), LEN - 2000);
            // The kernel may count a neighbour's with them (another test's pool).
            assert!(huge_bytes(memory.as_ptr()) >= merged, "{merged}");
            if merged == 0 {
                eprintln!("SKIPPED in part: this kernel has merged nothing");
            }
        }
        assert!(is_as_written(memory));
        // SAFETY: the mapping made above, which nobody uses any more.
        unsafe { munmap(mapped, LEN) }.unwrap();
    }
}
