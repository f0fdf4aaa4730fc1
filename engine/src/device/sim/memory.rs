//! The software device's memory: allocations by address, every access checked.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::SimDevice;
use crate::device::{DeviceBuffer, DeviceError, DeviceRange};

/// Where the first allocation lies: no address of the host's, so that one taken for the other is found.
const FIRST_ADDRESS: u64 = 0xdead_0000_0000_0000;

/// What allocations are aligned to, as cuMemAlloc does.
const ALIGN: u64 = 4096;

#[derive(Default)]
pub(super) struct Memory {
    blocks: BTreeMap<u64, Vec<u8>>,
    next: u64,
}

impl Memory {
    pub(super) fn alloc(&mut self, len: usize) -> u64 {
        let address = self.next.max(FIRST_ADDRESS);
        // A gap after each block: an access past its end meets nothing.
        self.next = (address + len as u64).next_multiple_of(ALIGN) + ALIGN;
        self.blocks.insert(address, vec![0; len]);
        address
    }

    fn free(&mut self, address: u64) {
        self.blocks.remove(&address);
    }

    pub(super) fn allocated_bytes(&self) -> usize {
        self.blocks.values().map(Vec::len).sum()
    }

    /// The bytes of a range.
    pub(super) fn bytes(&mut self, range: DeviceRange) -> Result<&mut [u8], DeviceError> {
        let outside = || DeviceError::new("copy", format!("{range:?} is not inside of an allocation"));
        let (start, block) = self.blocks.range_mut(..=range.address).next_back().ok_or_else(outside)?;
        let from = (range.address - start) as usize;
        from.checked_add(range.len).and_then(|to| block.get_mut(from..to)).ok_or_else(outside)
    }
}

struct Block {
    device: SimDevice,
    address: u64,
    len: usize,
}

impl Drop for Block {
    fn drop(&mut self) {
        self.device.0.memory.lock().free(self.address);
    }
}

/// A block of the software device's memory; freed when the last clone, and the last buffer made of it, is gone.
#[derive(Clone)]
pub struct SimMemory(Arc<Block>);

impl SimMemory {
    pub(super) fn new(device: SimDevice, address: u64, len: usize) -> Self {
        Self(Arc::new(Block { device, address, len }))
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
        self.0.device.gather(&[(self, 0..self.len())], None)
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

    fn with<R>(&self, work: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut memory = self.0.device.0.memory.lock();
        work(memory.blocks.get_mut(&self.0.address).expect("allocated while this lives"))
    }
}

impl fmt::Debug for SimMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimMemory({} bytes at {:#x})", self.len(), self.0.address)
    }
}
