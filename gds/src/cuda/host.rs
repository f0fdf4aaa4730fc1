//! Host memory of the kinds that copies are compared with: pageable, pinned, and write-combined.

use std::sync::Arc;

use super::device::{CudaDevice, Gpu};
use super::driver::{HOST_ALLOC_PORTABLE, HOST_ALLOC_WRITE_COMBINED};
use super::slice::DeviceSlice;
use super::stream::Stream;
use crate::error::Result;

/// How memory is had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostKind {
    /// From the allocator: CUDA copies it once more.
    Pageable,
    /// Pinned by CUDA.
    Pinned,
    /// Pinned, and not cached by the CPU: good to write, slow to read.
    WriteCombined,
}

impl HostKind {
    /// All that there are.
    pub const ALL: [Self; 3] = [Self::Pageable, Self::Pinned, Self::WriteCombined];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pageable => "pageable",
            Self::Pinned => "pinned",
            Self::WriteCombined => "write-combined",
        }
    }
}

enum Owner {
    Heap(Vec<u8>),
    Cuda(Arc<Gpu>),
}

/// A block of host memory.
pub struct HostMemory {
    owner: Owner,
    ptr: *mut u8,
    len: usize,
}

// SAFETY: the block is this value's alone, and no thread's: `copy` and `drop` make the context current wherever they are called.
unsafe impl Send for HostMemory {}

impl HostMemory {
    /// A block of `len` bytes (not 0), zeroed.
    ///
    /// # Errors
    /// [`crate::GdsError::Cuda`], when so much cannot be pinned among others.
    pub fn alloc(device: &CudaDevice, kind: HostKind, len: usize) -> Result<Self> {
        let flags = match kind {
            HostKind::Pageable => {
                let mut bytes = vec![0; len];
                let ptr = bytes.as_mut_ptr();
                return Ok(Self { owner: Owner::Heap(bytes), ptr, len });
            }
            HostKind::Pinned => HOST_ALLOC_PORTABLE,
            HostKind::WriteCombined => HOST_ALLOC_PORTABLE | HOST_ALLOC_WRITE_COMBINED,
        };
        let gpu = device.0.clone();
        let current = gpu.enter()?;
        let mut ptr = std::ptr::null_mut();
        // SAFETY: writes one address.
        let code = unsafe { (gpu.driver.mem_host_alloc)(&mut ptr, len, flags) };
        gpu.driver.check("cuMemHostAlloc", code)?;
        let ptr: *mut u8 = ptr.cast();
        // SAFETY: `len` bytes were allocated.
        unsafe { ptr.write_bytes(0, len) };
        drop(current);
        Ok(Self { owner: Owner::Cuda(gpu), ptr, len })
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: allocated with this length and initialised; freed when this value is dropped.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }

    /// The bytes, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and `&mut self` makes this the only view.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.len) }
    }

    /// Copies to (or from) memory of the GPU `times` times in chunks, all queued on one stream, and waits for them.
    ///
    /// # Errors
    /// [`crate::GdsError::Cuda`].
    ///
    /// # Panics
    /// When the two differ in length.
    pub fn copy(&mut self, slice: &DeviceSlice, to_device: bool, chunk: usize, times: usize) -> Result<()> {
        assert_eq!(self.len, slice.len(), "both sides have the same length");
        let stream = Stream::new(slice.gpu().clone())?;
        let _current = stream.gpu.enter()?;
        let driver = &stream.gpu.driver;
        let queue = || -> Result<()> {
            for start in (0..times).flat_map(|_| (0..self.len).step_by(chunk)) {
                let (host, len) = (self.ptr.wrapping_add(start), chunk.min(self.len - start));
                let device = slice.address() + start as u64;
                // SAFETY: both sides have `len` bytes at `start`, and the stream is waited for below, whatever happens.
                let code = unsafe {
                    match to_device {
                        true => (driver.memcpy_htod_async)(device, host.cast_const().cast(), len, stream.raw),
                        false => (driver.memcpy_dtoh_async)(host.cast(), device, len, stream.raw),
                    }
                };
                driver.check(if to_device { "cuMemcpyHtoDAsync" } else { "cuMemcpyDtoHAsync" }, code)?;
            }
            Ok(())
        };
        let queued = queue();
        stream.synchronize().and(queued)
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        match &self.owner {
            Owner::Heap(bytes) => debug_assert_eq!(bytes.len(), self.len),
            Owner::Cuda(gpu) => {
                if let Ok(_current) = gpu.enter() {
                    // SAFETY: allocated in `alloc`; `copy` waits for its copies.
                    unsafe { (gpu.driver.mem_free_host)(self.ptr.cast()) };
                }
            }
        }
    }
}
