//! The memory that objects are stored from and loaded into, lent to the engine as a daemon lends its arena.
//!
//! One page-aligned allocation, cut into slots of one object each. A slot is at home, where the bench reads and
//! writes it, or lent, where the engine and the kernel do; it changes sides by value, so safe code
//! can never touch memory that I/O is in flight on. A slot that the engine does not give back stays lent.

#![expect(unsafe_code, reason = "the engine takes foreign memory by address")]

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use saltern::{Buffer, Engine, PoolBuffer};

use crate::error::Result;
use crate::memory;

/// Slots start at multiples of this, which every file system takes for O_DIRECT.
const ALIGN_BYTES: usize = 4096;

/// Keeps the allocation mapped; its bytes are only reached through slots.
struct Memory {
    _buffer: PoolBuffer,
    start: *mut u8,
    len: usize,
}

// SAFETY: `start` points into `_buffer`, which is not tied to a thread; who may use which bytes is decided by
// `Arena`, which hands each slot out once.
unsafe impl Send for Memory {}
// SAFETY: as above; a shared `Memory` gives no access to its bytes.
unsafe impl Sync for Memory {}

/// Memory for a number of objects of one size.
pub struct Arena {
    memory: Arc<Memory>,
    object_bytes: usize,
    stride: usize,
    lent: Vec<bool>,
}

impl Arena {
    /// Maps and locks room for `bytes`, as one slot. [`Arena::cut`] says how it is divided.
    ///
    /// # Errors
    /// As [`saltern::Pool::new`].
    pub fn new(bytes: usize) -> Result<Self> {
        let len = bytes.next_multiple_of(ALIGN_BYTES).max(ALIGN_BYTES);
        let mut buffer = memory::alone(len)?;
        let start = buffer.as_mut_ptr();
        let memory = Arc::new(Memory { _buffer: buffer, start, len });
        Ok(Self { memory, object_bytes: len, stride: len, lent: vec![false] })
    }

    /// Room for objects of this size.
    pub fn bytes_needed(object_bytes: usize, slots: usize) -> usize {
        object_bytes.next_multiple_of(ALIGN_BYTES).max(ALIGN_BYTES) * slots
    }

    /// Divides the memory anew.
    ///
    /// # Panics
    /// When it does not suffice, or a slot is lent.
    pub fn cut(&mut self, object_bytes: usize, slots: usize) {
        assert!(!self.lent.contains(&true), "the arena is cut while the engine has a slot");
        assert!(Self::bytes_needed(object_bytes, slots) <= self.memory.len, "the arena is too small");
        self.object_bytes = object_bytes;
        self.stride = Self::bytes_needed(object_bytes, 1);
        self.lent = vec![false; slots];
    }

    /// Whether the engine kept a slot: its deadline passed while the kernel had the memory.
    pub fn has_lost_slots(&self) -> bool {
        self.lent.contains(&true)
    }

    fn address(&self, slot: usize) -> *mut u8 {
        assert!(slot < self.lent.len(), "no such slot");
        // SAFETY: `cut` checked that all slots lie inside the allocation.
        unsafe { self.memory.start.add(slot * self.stride) }
    }

    /// The bytes of a slot at home; `None` while it is lent.
    pub fn get(&self, slot: usize) -> Option<&[u8]> {
        let start = self.address(slot);
        // SAFETY: inside the allocation, initialised by the kernel; the slot is not lent, so only `&mut self` could
        // change it, or let it be lent.
        (!self.lent[slot]).then(|| unsafe { std::slice::from_raw_parts(start, self.object_bytes) })
    }

    /// As [`Arena::get`], to write.
    pub fn get_mut(&mut self, slot: usize) -> Option<&mut [u8]> {
        let start = self.address(slot);
        // SAFETY: as in `get`; `&mut self` makes this the only view.
        (!self.lent[slot]).then(|| unsafe { std::slice::from_raw_parts_mut(start, self.object_bytes) })
    }

    /// Hands a slot to the engine; `None` when it has it already.
    pub fn lend(&mut self, slot: usize) -> Option<Buffer> {
        let start = self.address(slot);
        if std::mem::replace(&mut self.lent[slot], true) {
            return None;
        }
        // SAFETY: the slot is valid for reads and writes, and stays mapped while the keepalive lives; it was
        // not lent, and from now on is, so nobody else reads or writes it until `take_back` got this buffer.
        Some(unsafe { Buffer::foreign(start, self.object_bytes, Some(self.memory.clone())) })
    }

    /// Takes back what [`Arena::lend`] gave out for this slot.
    ///
    /// # Panics
    /// When it is another buffer.
    pub fn take_back(&mut self, slot: usize, buffer: Buffer) {
        let is_same = buffer.as_slice().as_ptr() == self.address(slot).cast_const() || self.object_bytes == 0;
        assert!(is_same && self.lent[slot], "not the buffer of this slot");
        drop(buffer);
        self.lent[slot] = false;
    }

    /// Hands a slot to a baseline, with the bytes that pad it to a whole number of blocks; `None` when it is lent.
    pub fn lend_slot(&mut self, slot: usize) -> Option<Slot> {
        let start = self.address(slot);
        let is_lent = std::mem::replace(&mut self.lent[slot], true);
        (!is_lent).then(|| Slot { start, len: self.stride, _memory: self.memory.clone() })
    }

    /// Takes back what [`Arena::lend_slot`] gave out for this slot.
    ///
    /// # Panics
    /// When it is another slot.
    pub fn take_slot_back(&mut self, number: usize, slot: Slot) {
        assert!(slot.start == self.address(number) && self.lent[number], "not this slot");
        drop(slot);
        self.lent[number] = false;
    }

    /// Registers the whole memory with an engine, for its fixed buffers.
    ///
    /// # Errors
    /// As [`Engine::lend_arena`].
    pub fn lend_to(&self, engine: Engine) -> Result<ArenaEngine> {
        // SAFETY: the memory stays mapped while `_memory` lives; `ArenaEngine` gives the engine out by reference
        // alone, and drops it, which closes it, before `_memory`.
        unsafe { engine.lend_arena(self.memory.start, self.memory.len) }?;
        Ok(ArenaEngine { engine, _memory: self.memory.clone() })
    }
}

/// A slot away from home: the only way to its bytes, until it is taken back. One that is dropped stays lent.
pub struct Slot {
    start: *mut u8,
    len: usize,
    _memory: Arc<Memory>,
}

// SAFETY: the memory is not tied to a thread, and nobody else has these bytes.
unsafe impl Send for Slot {}

impl Deref for Slot {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: inside the allocation, which `_memory` keeps mapped, and initialised; the slot is lent once, to this
        // value alone.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl DerefMut for Slot {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes this the only view.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

/// An engine that has an arena registered.
pub struct ArenaEngine {
    // Dropped in this order: the engine uses the memory.
    engine: Engine,
    _memory: Arc<Memory>,
}

impl ArenaEngine {
    /// Closes the engine: waits for its I/O, and releases the volume.
    pub fn close(self) {
        let Self { engine, _memory } = self;
        engine.close();
    }
}

impl Deref for ArenaEngine {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.engine
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_aligned_apart_and_lent_once() {
        let mut arena = Arena::new(Arena::bytes_needed(5000, 3)).unwrap();
        arena.cut(5000, 3);
        for slot in 0..3 {
            arena.get_mut(slot).unwrap().fill(slot as u8);
        }
        let buffer = arena.lend(1).unwrap();
        assert_eq!((buffer.len(), buffer.as_slice().as_ptr() as usize % ALIGN_BYTES), (5000, 0));
        assert!(buffer.as_slice().iter().all(|byte| *byte == 1));
        assert!(arena.get(1).is_none() && arena.get_mut(1).is_none() && arena.lend(1).is_none());
        assert!(arena.has_lost_slots());
        arena.take_back(1, buffer);
        assert!(arena.get(0).unwrap().iter().all(|byte| *byte == 0));
        assert!(arena.get(2).unwrap().iter().all(|byte| *byte == 2));
        let mut slot = arena.lend_slot(2).unwrap();
        assert!(slot.len() == 8192 && arena.lend(2).is_none() && arena.lend_slot(2).is_none());
        slot.fill(9);
        arena.take_slot_back(2, slot);
        assert!(arena.get(2).unwrap().iter().all(|byte| *byte == 9));
        arena.cut(4096, 6);
        assert_eq!(arena.get(5).unwrap().len(), 4096);
    }

    #[test]
    #[should_panic(expected = "not the buffer of this slot")]
    fn another_slots_buffer_is_refused() {
        let mut arena = Arena::new(8192).unwrap();
        arena.cut(4096, 2);
        let first = arena.lend(0);
        let second = arena.lend(1).unwrap();
        arena.take_back(0, second);
        drop(first);
    }
}
