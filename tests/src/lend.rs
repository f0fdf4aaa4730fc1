//! Memory that tests lend to the engine by address: at any alignment, with guard bytes around it.

#![expect(
    unsafe_code,
    reason = "foreign buffers are addresses; this module is the only one of the suites that makes them"
)]

use std::alloc::{alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Arc;

use saltern::{Buffer, Engine};

/// Guard bytes before and after each loan: more than one device block, so that a read that was rounded up shows.
pub const GUARD_BYTES: usize = 8192;

const GUARD: u8 = 0xa5;
const ALIGN: usize = 4096;

/// Page-aligned memory of its own.
struct Slab {
    ptr: NonNull<u8>,
    layout: std::alloc::Layout,
}

// SAFETY: the memory belongs to this value and is not tied to a thread; loans of it do not overlap (`Arena::lend`).
unsafe impl Send for Slab {}
// SAFETY: as above; a shared `Slab` gives out no references.
unsafe impl Sync for Slab {}

impl Slab {
    fn new(len: usize) -> Self {
        let layout = std::alloc::Layout::from_size_align(len, ALIGN).expect("a valid layout");
        assert!(len > 0, "an arena needs room");
        // SAFETY: the layout is not empty.
        let ptr = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        Self { ptr, layout }
    }

    fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset <= self.layout.size(), "inside the slab");
        // SAFETY: at most one past the end of the allocation, by the assertion.
        unsafe { self.ptr.as_ptr().add(offset) }
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout; every loan holds an `Arc` of the slab, so none is left.
        unsafe { dealloc(self.ptr.as_ptr(), self.layout) };
    }
}

/// Held by a loan's buffer, so by the engine and the kernel, and by its watch.
struct Hold {
    slab: Arc<Slab>,
    _live: Arc<()>,
}

/// Memory to lend from. Space is used again when no loan is left.
pub struct Arena {
    slab: Arc<Slab>,
    next: usize,
    live: Arc<()>,
    is_permanent: bool,
}

impl Arena {
    /// An arena of `len` bytes.
    pub fn new(len: usize) -> Self {
        Self { slab: Arc::new(Slab::new(len)), next: 0, live: Arc::new(()), is_permanent: false }
    }

    /// An arena that is never freed, so that it can be registered with engines.
    pub fn permanent(len: usize) -> Self {
        let mut arena = Self::new(len);
        std::mem::forget(arena.slab.clone());
        arena.is_permanent = true;
        arena
    }

    /// Registers it with an engine, as a daemon registers its arena.
    ///
    /// # Panics
    /// When the arena is not permanent, or the engine refuses it.
    pub fn register(&self, engine: &Engine) {
        assert!(self.is_permanent, "registered memory has to outlive the engine");
        // SAFETY: a permanent arena is never unmapped.
        unsafe { engine.lend_arena(self.slab.at(0), self.slab.layout.size()) }.expect("lend_arena");
    }

    /// Lends memory that holds `content`, at an address that is `offset` past a page. `None` when there is no room.
    pub fn lend(&mut self, offset: usize, content: &[u8]) -> Option<(Buffer, Watch)> {
        if Arc::get_mut(&mut self.live).is_some() {
            self.next = 0;
        }
        let start = self.next.next_multiple_of(ALIGN) + GUARD_BYTES + offset % ALIGN;
        let end = start + content.len();
        if end + GUARD_BYTES > self.slab.layout.size() {
            return None;
        }
        self.next = end + GUARD_BYTES;
        let ptr = self.slab.at(start);
        // SAFETY: from one guard to the other the bytes lie inside the slab (checked above), and in no loan that
        // lives: `next` only goes back when `live` shows that there is none.
        unsafe {
            self.slab.at(start - GUARD_BYTES).write_bytes(GUARD, GUARD_BYTES);
            ptr.copy_from_nonoverlapping(content.as_ptr(), content.len());
            self.slab.at(end).write_bytes(GUARD, GUARD_BYTES);
        }
        let hold = Arc::new(Hold { slab: self.slab.clone(), _live: self.live.clone() });
        // SAFETY: the bytes stay allocated while `hold` lives, which the buffer keeps; nobody else touches them until
        // then (see above; `Watch` reads the guards only).
        let buffer = unsafe { Buffer::foreign(ptr, content.len(), Some(hold.clone())) };
        Some((buffer, Watch { hold, start, end }))
    }
}

/// Looks after the bytes around a loan.
pub struct Watch {
    hold: Arc<Hold>,
    start: usize,
    end: usize,
}

impl Watch {
    /// Takes the loan back: its bytes.
    ///
    /// # Panics
    /// When it is another buffer, or a guard byte has changed.
    pub fn back(self, buffer: Buffer) -> Vec<u8> {
        assert_eq!(buffer.as_slice().len(), self.end - self.start, "the buffer that was lent comes back");
        if !buffer.is_empty() {
            assert_eq!(buffer.as_slice().as_ptr(), self.hold.slab.at(self.start).cast_const(), "at its address");
        }
        self.check();
        buffer.into_vec()
    }

    /// Checks the guards.
    ///
    /// # Panics
    /// When a guard byte has changed.
    pub fn check(&self) {
        for (side, from) in [("before", self.start - GUARD_BYTES), ("after", self.end)] {
            // SAFETY: guards lie inside the slab, were written in `lend`, and belong to no buffer.
            let guard = unsafe { std::slice::from_raw_parts(self.hold.slab.at(from), GUARD_BYTES) };
            let first = guard.iter().position(|byte| *byte != GUARD);
            assert_eq!(first, None, "a byte {side} the buffer of {} bytes was written", self.end - self.start);
        }
    }
}

/// What memory an object is handed in with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// A vector.
    Heap,
    /// The engine's pool, while it has room; else a vector.
    Pool,
    /// An address so far past a page, unknown to the engine.
    Foreign(usize),
    /// An address so far past a page, in a registered arena.
    Registered(usize),
}

/// Lends every kind of memory.
pub struct Lender {
    foreign: Arena,
    registered: Arena,
}

impl Lender {
    /// With `len` bytes of each kind of arena; the registered one is never freed.
    pub fn new(len: usize) -> Self {
        Self { foreign: Arena::new(len), registered: Arena::permanent(len) }
    }

    /// Registers the arena for it with an engine.
    pub fn register(&self, engine: &Engine) {
        self.registered.register(engine);
    }

    /// Memory of this kind that holds `content`; a vector where there is no room.
    pub fn lend(&mut self, engine: &Engine, memory: Memory, content: &[u8]) -> (Buffer, Loan) {
        let watched = match memory {
            Memory::Heap => None,
            Memory::Pool => {
                if let Ok(mut buffer) = engine.pool().alloc(content.len()) {
                    buffer.copy_from_slice(content);
                    return (buffer.into(), Loan(None));
                }
                None
            }
            Memory::Foreign(offset) => self.foreign.lend(offset, content),
            Memory::Registered(offset) => self.registered.lend(offset, content),
        };
        match watched {
            Some((buffer, watch)) => (buffer, Loan(Some(watch))),
            None => (content.into(), Loan(None)),
        }
    }
}

/// A loan of any kind.
pub struct Loan(Option<Watch>);

impl Loan {
    /// Takes the memory back: its bytes.
    ///
    /// # Panics
    /// As [`Watch::back`].
    pub fn back(self, buffer: Buffer) -> Vec<u8> {
        match self.0 {
            Some(watch) => watch.back(buffer),
            None => buffer.into_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_comes_back_when_no_loan_is_left() {
        let mut arena = Arena::new(64 << 10);
        let (buffer, watch) = arena.lend(3, &[7; 20_000]).unwrap();
        assert_eq!(buffer.as_slice().as_ptr() as usize % ALIGN, 3);
        assert!(arena.lend(0, &[1; 20_000]).is_none());
        assert_eq!(watch.back(buffer), [7; 20_000]);
        assert!(arena.lend(0, &[1; 20_000]).is_some());
    }
}
