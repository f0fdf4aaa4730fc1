//! The software device's memory: allocations by address, every access checked. Each has a lock of its own, so that copies of
//! several go on at once.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Shared;
use crate::device::{DeviceBuffer, DeviceError, DeviceRange, Direction};

/// Where the first allocation lies: no address of the host's, so that one taken for the other is found.
const FIRST_ADDRESS: u64 = 0xdead_0000_0000_0000;

/// What allocations are aligned to, as cuMemAlloc does; so are the host's bytes that play them.
pub(super) const ALIGN: u64 = 4096;

/// The bytes of an allocation.
struct Bytes {
    /// As many more as it takes to begin at a multiple of [`ALIGN`].
    allocated: Vec<u8>,
    skipped: usize,
    len: usize,
}

impl Bytes {
    fn new(len: usize) -> Arc<Mutex<Self>> {
        let allocated = vec![0; len + ALIGN as usize];
        let skipped = allocated.as_ptr().align_offset(ALIGN as usize);
        Arc::new(Mutex::new(Self { allocated, skipped, len }))
    }

    fn all(&mut self) -> &mut [u8] {
        &mut self.allocated[self.skipped..self.skipped + self.len]
    }
}

#[derive(Default)]
struct Blocks {
    by_address: BTreeMap<u64, Arc<Mutex<Bytes>>>,
    next: u64,
}

#[derive(Default)]
pub(super) struct Memory(Mutex<Blocks>);

impl Memory {
    pub(super) fn alloc(&self, len: usize) -> u64 {
        let mut blocks = self.0.lock();
        let address = blocks.next.max(FIRST_ADDRESS);
        // A gap after each block: an access past its end meets nothing.
        blocks.next = (address + len as u64).next_multiple_of(ALIGN) + ALIGN;
        blocks.by_address.insert(address, Bytes::new(len));
        address
    }

    fn free(&self, address: u64) {
        self.0.lock().by_address.remove(&address);
    }

    pub(super) fn allocated_bytes(&self) -> usize {
        self.0.lock().by_address.values().map(|bytes| bytes.lock().len).sum()
    }

    /// Works on the bytes of a range; nobody else works on its block meanwhile.
    ///
    /// # Errors
    /// It does not lie inside of an allocation.
    pub(super) fn with<R>(&self, range: DeviceRange, work: impl FnOnce(&mut [u8]) -> R) -> Result<R, DeviceError> {
        let outside = || DeviceError::new("copy", format!("{range:?} is not inside of an allocation"));
        let found =
            self.0.lock().by_address.range(..=range.address).next_back().map(|(at, bytes)| (*at, bytes.clone()));
        let (start, block) = found.ok_or_else(outside)?;
        let from = (range.address - start) as usize;
        let mut block = block.lock();
        let bytes = from.checked_add(range.len).and_then(|to| block.all().get_mut(from..to));
        bytes.map(work).ok_or_else(outside)
    }
}

struct Block {
    shared: Arc<Shared>,
    address: u64,
    len: usize,
}

impl Drop for Block {
    fn drop(&mut self) {
        self.shared.memory.free(self.address);
    }
}

/// A block of the software device's memory; freed when the last clone, and the last buffer made of it, is gone.
#[derive(Clone)]
pub struct SimMemory(Arc<Block>);

impl SimMemory {
    pub(super) fn new(shared: Arc<Shared>, len: usize) -> Self {
        let address = shared.memory.alloc(len);
        Self(Arc::new(Block { shared, address, len }))
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    pub(super) fn range(&self, part: Range<usize>) -> DeviceRange {
        DeviceRange { address: self.0.address + part.start as u64, len: part.len() }
    }

    /// All of it as the memory of an object.
    pub fn buffer(&self) -> DeviceBuffer {
        DeviceBuffer::checked(self.0.shared.id, vec![self.range(0..self.len())], None, Some(Arc::new(self.clone())))
    }

    /// Writes all of it, at once.
    ///
    /// # Panics
    /// When the length is another.
    pub fn write(&self, bytes: &[u8]) {
        self.with(|memory| memory.copy_from_slice(bytes));
    }

    /// Reads all of it, at once.
    pub fn read(&self) -> Vec<u8> {
        self.with(|memory| memory.to_vec())
    }

    /// As [`SimMemory::write`], by a copy that the caller waits for: it takes its turn in the direction's queue, beside the engine's, and
    /// as long as the device's figures say.
    ///
    /// # Panics
    /// As [`SimMemory::write`].
    pub fn copy_in(&self, bytes: &[u8]) {
        self.in_turn(Direction::ToDevice, || self.write(bytes));
    }

    /// As [`SimMemory::copy_in`], the other way.
    ///
    /// # Panics
    /// When the length is another.
    pub fn copy_out(&self, bytes: &mut [u8]) {
        self.in_turn(Direction::FromDevice, || self.with(|memory| bytes.copy_from_slice(memory)));
    }

    fn in_turn(&self, direction: Direction, copy: impl FnOnce()) {
        let shared = &self.0.shared;
        let ends_ns = shared.take_turn(direction, self.len(), copy).0;
        shared.clock.wait_until(ends_ns);
    }

    fn with<R>(&self, work: impl FnOnce(&mut [u8]) -> R) -> R {
        let range = self.range(0..self.len());
        self.0.shared.memory.with(range, work).expect("allocated while this lives")
    }
}

impl fmt::Debug for SimMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimMemory({} bytes at {:#x})", self.len(), self.0.address)
    }
}
