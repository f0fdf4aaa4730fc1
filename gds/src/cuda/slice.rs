//! Memory of a GPU.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use saltern::device::{DeviceBuffer, DeviceRange, Fence};

use super::device::{CudaDevice, Gpu};
use crate::error::Result;

struct Allocation {
    gpu: Arc<Gpu>,
    address: u64,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if let Ok(_current) = self.gpu.enter() {
            // SAFETY: allocated in `alloc`; every buffer of it that the engine has holds this value, so no copy is under way.
            unsafe { (self.gpu.driver.mem_free)(self.address) };
        }
    }
}

/// A block of a GPU's memory, or a part of one; freed with the last clone, the last part, and the last buffer made of it.
#[derive(Clone)]
pub struct DeviceSlice {
    allocation: Arc<Allocation>,
    start: usize,
    len: usize,
}

impl DeviceSlice {
    pub(super) fn alloc(gpu: Arc<Gpu>, len: usize) -> Result<Self> {
        let current = gpu.enter()?;
        let mut address = 0;
        // SAFETY: writes one address.
        let code = unsafe { (gpu.driver.mem_alloc)(&mut address, len.max(1)) };
        gpu.driver.check("cuMemAlloc", code)?;
        drop(current);
        Ok(Self { allocation: Arc::new(Allocation { gpu, address }), start: 0, len })
    }

    pub(super) fn gpu(&self) -> &Arc<Gpu> {
        &self.allocation.gpu
    }

    /// What keeps the memory.
    pub(super) fn keepalive(&self) -> saltern::Keepalive {
        self.allocation.clone()
    }

    /// A part of it.
    ///
    /// # Panics
    /// When it does not lie inside.
    pub fn slice(&self, part: Range<usize>) -> Self {
        assert!(part.start <= part.end && part.end <= self.len, "a part outside of its memory");
        Self { allocation: self.allocation.clone(), start: self.start + part.start, len: part.len() }
    }

    /// The GPU's address of the first byte.
    pub fn address(&self) -> u64 {
        self.allocation.address + self.start as u64
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of it as the memory of an object. Who writes it meanwhile gets, or stores, any mix of bytes.
    pub fn buffer(&self) -> DeviceBuffer {
        self.part(0..self.len(), None)
    }

    /// A part of it as the memory of one object; the engine does not begin before `after`.
    ///
    /// # Panics
    /// When it does not lie inside.
    pub fn part(&self, part: Range<usize>, after: Option<Fence>) -> DeviceBuffer {
        self.parts(std::slice::from_ref(&part), after)
    }

    /// Parts of it, in this order, as the memory of one object; the engine does not begin before `after`.
    ///
    /// # Panics
    /// When a part does not lie inside.
    pub fn parts(&self, parts: &[Range<usize>], after: Option<Fence>) -> DeviceBuffer {
        let range = |part: &Range<usize>| {
            assert!(part.start <= part.end && part.end <= self.len(), "a part outside of its memory");
            DeviceRange { address: self.address() + part.start as u64, len: part.len() }
        };
        let device = CudaDevice(self.gpu().clone());
        // SAFETY: the ranges lie in an allocation that the buffer keeps alive.
        unsafe { device.lend(parts.iter().map(range).collect(), after, Some(self.keepalive())) }
    }

    /// Writes all of it; blocks.
    ///
    /// # Errors
    /// [`crate::GdsError::Cuda`].
    ///
    /// # Panics
    /// When the length is another.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        assert_eq!(bytes.len(), self.len(), "all of it is written");
        let gpu = self.gpu();
        let _current = gpu.enter()?;
        // SAFETY: both sides have `len` bytes, and the call returns when they are copied.
        let code = unsafe { (gpu.driver.memcpy_htod)(self.address(), bytes.as_ptr().cast(), bytes.len()) };
        gpu.driver.check("cuMemcpyHtoD", code)
    }

    /// Reads all of it; blocks.
    ///
    /// # Errors
    /// [`crate::GdsError::Cuda`].
    pub fn read(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.len()];
        self.read_into(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads all of it into memory that is there; blocks.
    ///
    /// # Errors
    /// [`crate::GdsError::Cuda`].
    ///
    /// # Panics
    /// When the length is another.
    pub fn read_into(&self, bytes: &mut [u8]) -> Result<()> {
        assert_eq!(bytes.len(), self.len(), "all of it is read");
        let gpu = self.gpu();
        let _current = gpu.enter()?;
        // SAFETY: as in `write`.
        let code = unsafe { (gpu.driver.memcpy_dtoh)(bytes.as_mut_ptr().cast(), self.address(), bytes.len()) };
        gpu.driver.check("cuMemcpyDtoH", code)
    }
}

impl fmt::Debug for DeviceSlice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceSlice({} bytes at {:#x})", self.len(), self.address())
    }
}
