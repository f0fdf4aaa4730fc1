//! Registered (fixed) buffers: memory that the kernel has pinned once, instead of for each request.
//!
//! The engine registers the pool and every lent arena with a ring of its own that does no I/O; each shard's ring
//! clones that registration (6.12), or repeats it where cloning is not possible. Where the kernel has no room for
//! pinned memory, plain buffers do the same work at some CPU more.

use std::os::fd::AsRawFd;

use io_uring::types::CloneBuffersFlags;
use io_uring::{IoUring, Submitter};
use parking_lot::Mutex;

use crate::error::Result;

/// Largest registered buffer (Linux: io_uring/rsrc.c, `io_buffer_validate`).
pub(crate) const FIXED_BUFFER_MAX_BYTES: usize = 1 << 30;

/// Most registered buffers of one engine: 1 TiB of arenas.
const FIXED_BUFFERS_MAX: u32 = 1024;

#[derive(Debug, Clone, Copy)]
struct Area {
    start: usize,
    len: usize,
}

/// All memory that rings may use as fixed buffers, each with its index.
pub(crate) struct BufferRegistry {
    /// Not a shard's: with SINGLE_ISSUER a ring cannot be cloned from by another thread.
    source: Option<IoUring>,
    areas: Mutex<Vec<Area>>,
}

impl BufferRegistry {
    pub(crate) fn new() -> Self {
        let source = IoUring::new(1).ok();
        let source = source.filter(|ring| ring.submitter().register_buffers_sparse(FIXED_BUFFERS_MAX).is_ok());
        Self { source, areas: Mutex::default() }
    }

    /// Adds memory, in pieces of at most [`FIXED_BUFFER_MAX_BYTES`]. Rings see it at their next `adopt`.
    ///
    /// # Safety
    /// The memory stays mapped until every ring that adopts this registry is gone.
    pub(crate) unsafe fn add(&self, ptr: *mut u8, len: usize) -> Result<()> {
        let mut areas = self.areas.lock();
        let mut start = ptr as usize;
        let end = start.saturating_add(len);
        while start < end && areas.len() < FIXED_BUFFERS_MAX as usize {
            let area = Area { start, len: (end - start).min(FIXED_BUFFER_MAX_BYTES) };
            if let Some(source) = &self.source
                // SAFETY: the caller keeps the memory mapped.
                && let Err(error) = unsafe { update(&source.submitter(), areas.len() as u32, area) }
            {
                tracing::warn!(%error, bytes = area.len, "registering buffers failed: using plain ones, at more CPU; raise the \
                     locked-memory limit (ulimit -l, LimitMEMLOCK=infinity)");
                return Ok(());
            }
            areas.push(area);
            start += area.len;
        }
        Ok(())
    }
}

/// Registers one area at one index of a sparse table.
///
/// # Safety
/// The memory stays mapped for as long as the ring lives.
unsafe fn update(submitter: &Submitter<'_>, index: u32, area: Area) -> std::io::Result<()> {
    let iovec = libc::iovec { iov_base: area.start as *mut libc::c_void, iov_len: area.len };
    // SAFETY: the caller keeps the memory mapped.
    unsafe { submitter.register_buffers_update(index, &[iovec], None) }
}

/// Whether this kernel can clone a registration.
pub(super) fn can_clone(source: &IoUring, ring: &IoUring) -> bool {
    source.submitter().register_buffers_sparse(1).is_ok()
        && ring.submitter().register_buffers_clone(source.as_raw_fd()).is_ok()
}

/// How a ring got its registered buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Means {
    None,
    Cloned,
    Own,
    Plain,
}

/// The registered buffers of one ring.
pub(crate) struct FixedBuffers {
    areas: Vec<Area>,
    means: Means,
}

impl FixedBuffers {
    pub(super) fn none() -> Self {
        Self { areas: Vec::new(), means: Means::None }
    }

    /// `cloned`, `own`, `plain` (the kernel refused) or `none`.
    pub(crate) fn means(&self) -> &'static str {
        match self.means {
            Means::None => "none",
            Means::Cloned => "cloned",
            Means::Own => "own",
            Means::Plain => "plain",
        }
    }

    pub(super) fn adopt(&mut self, submitter: &Submitter<'_>, registry: &BufferRegistry) {
        let areas = registry.areas.lock();
        if self.means == Means::Plain || areas.len() == self.areas.len() {
            return;
        }
        if matches!(self.means, Means::None | Means::Cloned)
            && let Some(source) = &registry.source
        {
            // Replacing the table is safe under way: requests in flight hold the buffers that they use.
            let replace = CloneBuffersFlags::DST_REPLACE;
            let flags = if self.areas.is_empty() { CloneBuffersFlags::empty() } else { replace };
            if submitter.register_buffers_clone_offset(source.as_raw_fd(), 0, 0, 0, flags).is_ok() {
                (self.areas, self.means) = (areas.clone(), Means::Cloned);
                return;
            }
        }
        if self.means == Means::None && submitter.register_buffers_sparse(FIXED_BUFFERS_MAX).is_err() {
            self.means = Means::Plain;
            return;
        }
        for area in &areas[self.areas.len()..] {
            // SAFETY: `BufferRegistry::add` has it from its caller that the memory outlives the rings.
            if let Err(error) = unsafe { update(submitter, self.areas.len() as u32, *area) } {
                tracing::warn!(%error, "registering buffers with a shard's ring failed: using plain ones");
                break;
            }
            self.areas.push(*area);
        }
        self.means = if self.areas.is_empty() { Means::Plain } else { Means::Own };
    }

    /// The index of the registered buffer that holds this memory.
    pub(super) fn find(&self, start: usize, len: usize) -> Option<u16> {
        // Few areas: a pool and an arena or two.
        let inside = |area: &Area| start >= area.start && start - area.start + len <= area.len;
        self.areas.iter().position(inside).map(|index| index as u16)
    }
}
