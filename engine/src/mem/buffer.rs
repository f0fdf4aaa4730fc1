//! The memory of one object, as callers hand it in and get it back.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use super::device::DeviceBuffer;
use super::pool::PoolBuffer;

/// Held by the engine for as long as it, or the kernel, may touch foreign memory.
pub type Keepalive = Arc<dyn Any + Send + Sync>;

/// The bytes of one object: owned memory, a buffer of the pool, memory lent by address, or memory of a device.
///
/// Any address and length works. Memory aligned as the file system asks (a page is enough everywhere) moves
/// without a copy; the rest goes through the engine's bounce buffers.
pub struct Buffer(Kind);

enum Kind {
    Heap(Vec<u8>),
    Pool(PoolBuffer),
    Foreign { ptr: *mut u8, len: usize, _keepalive: Option<Keepalive> },
    Device(Box<DeviceBuffer>),
}

// SAFETY: owned memory is `Send`; for foreign memory the caller of `foreign` vouches for use from any thread.
unsafe impl Send for Buffer {}
// SAFETY: `&Buffer` only gives out `&[u8]`.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Lends memory by address, without a copy and without an owner (a daemon's arena, a mapped tensor).
    ///
    /// # Safety
    /// From this call until the buffer is dropped, by the caller who got it back or by the engine:
    /// - `ptr` is valid for reads of `len` bytes, and for writes where the buffer is given to a load;
    /// - nobody else writes these bytes, and, while they are given to a load, nobody reads them either;
    /// - any thread may do so.
    ///
    /// The engine drops a buffer that it does not give back (a ticket past its deadline, a dropped ticket) as soon
    /// as the kernel is done with it, and with it `keepalive`; after [`crate::Engine::close`] it holds none.
    pub unsafe fn foreign(ptr: *mut u8, len: usize, keepalive: Option<Keepalive>) -> Self {
        Self(Kind::Foreign { ptr, len, _keepalive: keepalive })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        match &self.0 {
            Kind::Heap(bytes) => bytes.len(),
            Kind::Pool(buffer) => buffer.len(),
            Kind::Foreign { len, .. } => *len,
            Kind::Device(memory) => memory.len(),
        }
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes.
    ///
    /// # Panics
    /// When they are in a device's memory ([`Buffer::is_device`]), which the CPU cannot look at.
    pub fn as_slice(&self) -> &[u8] {
        match &self.0 {
            Kind::Heap(bytes) => bytes,
            Kind::Pool(buffer) => buffer,
            Kind::Foreign { len: 0, .. } => &[],
            // SAFETY: the contract of `foreign`: valid for reads while this buffer lives, and nobody writes.
            Kind::Foreign { ptr, len, .. } => unsafe { std::slice::from_raw_parts(*ptr, *len) },
            Kind::Device(memory) => panic!("{memory:?} is not memory of the CPU's"),
        }
    }

    /// Whether the bytes are in a device's memory.
    pub fn is_device(&self) -> bool {
        matches!(self.0, Kind::Device(_))
    }

    /// The device's memory.
    ///
    /// # Errors
    /// Gives the buffer back where it is memory of the CPU's.
    pub fn into_device(self) -> Result<DeviceBuffer, Self> {
        match self.0 {
            Kind::Device(memory) => Ok(*memory),
            other => Err(Self(other)),
        }
    }

    pub(crate) fn device(&self) -> Option<&DeviceBuffer> {
        match &self.0 {
            Kind::Device(memory) => Some(memory),
            _ => None,
        }
    }

    /// The bytes as a vector: moved where they were one, copied else.
    ///
    /// # Panics
    /// As [`Buffer::as_slice`].
    pub fn into_vec(self) -> Vec<u8> {
        match self.0 {
            Kind::Heap(bytes) => bytes,
            _ => self.as_slice().to_vec(),
        }
    }

    /// The pool's buffer, where it was one.
    pub fn into_pool(self) -> Option<PoolBuffer> {
        match self.0 {
            Kind::Pool(buffer) => Some(buffer),
            _ => None,
        }
    }

    /// Start address. Takes `&mut` because the kernel will write there: it has to come from a unique borrow.
    pub(super) fn address(&mut self) -> *mut u8 {
        match &mut self.0 {
            Kind::Heap(bytes) => bytes.as_mut_ptr(),
            Kind::Pool(buffer) => buffer.as_ptr(),
            Kind::Foreign { ptr, .. } => *ptr,
            Kind::Device(memory) => panic!("{memory:?} has no address of the CPU's"),
        }
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Kind::Heap(bytes))
    }
}

impl From<&[u8]> for Buffer {
    fn from(bytes: &[u8]) -> Self {
        Self(Kind::Heap(bytes.to_vec()))
    }
}

impl From<PoolBuffer> for Buffer {
    fn from(buffer: PoolBuffer) -> Self {
        Self(Kind::Pool(buffer))
    }
}

impl From<DeviceBuffer> for Buffer {
    fn from(memory: DeviceBuffer) -> Self {
        Self(Kind::Device(Box::new(memory)))
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.0 {
            Kind::Heap(_) => "heap",
            Kind::Pool(_) => "pool",
            Kind::Foreign { .. } => "foreign",
            Kind::Device(_) => "device",
        };
        write!(f, "Buffer({kind}, {} bytes)", self.len())
    }
}
