//! Buffers inside the engine: shared between an operation and the requests in flight on it.

use std::rc::Rc;

use super::Buffer;

struct Held {
    ptr: *mut u8,
    len: usize,
    buffer: Buffer,
}

/// A buffer that requests may be in flight on. The operation and each [`Span`] hold it; it can be handed back only
/// when the last span is gone. Stays on one shard's thread.
#[derive(Clone)]
pub(crate) struct IoBuffer(Rc<Held>);

impl IoBuffer {
    pub(crate) fn new(mut buffer: Buffer) -> Self {
        // Taken once, from the unique borrow; moving the `Buffer` does not move what it points to.
        let ptr = buffer.address();
        let len = buffer.len();
        Self(Rc::new(Held { ptr, len, buffer }))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len
    }

    /// Whether the address at this offset is a multiple of `align`.
    pub(crate) fn is_aligned(&self, offset: usize, align: usize) -> bool {
        (self.0.ptr as usize).wrapping_add(offset).is_multiple_of(align)
    }

    /// A view of `len` bytes at `offset`.
    ///
    /// # Panics
    /// When it does not lie inside the buffer.
    pub(crate) fn span(&self, offset: usize, len: usize) -> Span {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.0.len), "span outside its buffer");
        // SAFETY: the assertion above keeps the offset inside the buffer.
        let ptr = unsafe { self.0.ptr.add(offset) };
        Span { ptr, len, _owner: self.clone() }
    }

    /// The buffer itself, when no span holds it any more.
    pub(crate) fn into_buffer(self) -> Result<Buffer, Self> {
        Rc::try_unwrap(self.0).map(|held| held.buffer).map_err(Self)
    }
}

/// A part of a buffer of the CPU's memory, as a request to the kernel or a device's copy names it; keeps the buffer alive.
#[derive(Clone)]
pub struct Span {
    ptr: *mut u8,
    len: usize,
    _owner: IoBuffer,
}

impl Span {
    /// Address of the first byte.
    pub fn ptr(&self) -> *mut u8 {
        self.ptr
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Looks at the bytes, for a checksum.
    pub(crate) fn with_bytes<R>(&self, look: impl FnOnce(&[u8]) -> R) -> R {
        // SAFETY: the span lies inside a buffer that it keeps alive and that the engine has sole use of (the contract of
        // `Buffer`); callers look when no read is in flight on it, and the slice does not outlive this call.
        look(unsafe { std::slice::from_raw_parts(self.ptr, self.len) })
    }

    /// Copies from the start of another span; the shorter one limits.
    pub(crate) fn copy_from(&self, source: &Span) {
        let len = self.len.min(source.len);
        // SAFETY: both spans lie inside buffers that they keep alive, of which the engine has sole use (the contract
        // of `Buffer`); `copy` allows the two to overlap.
        unsafe { std::ptr::copy(source.ptr, self.ptr, len) };
    }

    /// Zeroes everything from `start` on.
    pub(crate) fn zero_from(&self, start: usize) {
        let start = start.min(self.len);
        // SAFETY: as in `copy_from`; `start` is inside the span.
        unsafe { std::ptr::write_bytes(self.ptr.add(start), 0, self.len - start) };
    }
}

impl std::fmt::Debug for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Span({} bytes)", self.len)
    }
}
