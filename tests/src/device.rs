//! Devices of software as the tests of devices use them.

use saltern::device::DeviceOptions;
use saltern::device::sim::{SimDevice, SimMemory};

/// Bytes of a chunk of [`small_device`]: objects of a few hundred KiB have several.
pub const CHUNK: usize = 64 << 10;

/// Small chunks, and room for four of them each way.
pub fn small_device() -> DeviceOptions {
    let mut options = DeviceOptions::default();
    options.chunk_bytes = CHUNK;
    options.transit_bytes = 4 * CHUNK;
    options
}

/// Memory of the device that holds these bytes.
pub fn device_memory(device: &SimDevice, bytes: &[u8]) -> SimMemory {
    let memory = device.alloc(bytes.len());
    memory.write(bytes);
    memory
}
