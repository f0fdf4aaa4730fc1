//! Devices of software as the tests of devices use them.

use std::collections::VecDeque;

use saltern::Ticket;
use saltern::device::DeviceOptions;
use saltern::device::sim::{SimDevice, SimMemory, SimOptions};

use crate::wait::done;

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

/// Small objects under way beside a large one: more than there are slots for.
const CROWD: usize = 31;

/// Bytes of each.
pub const CROWD_BYTES: usize = 300_000;

/// How many small objects may end in front of a large one: it takes a piece of each gap from the 129th slot on.
const PASSES_MAX: u64 = 3000;

/// Chunks of 1 MiB, room for four of them, and copies that end one at a time, so that no gap is longer than a small object.
pub fn crowded_device() -> (SimOptions, DeviceOptions) {
    let (mut sim, mut options) = (SimOptions::default(), DeviceOptions::default());
    sim.bytes_per_s = 2_000_000_000;
    options.chunk_bytes = 1 << 20;
    options.transit_bytes = 4 * options.chunk_bytes;
    (sim, options)
}

/// Lets small objects keep coming until the large one, which begins behind the first of them, has ended.
///
/// # Panics
/// When the large one does not get its turn, or a small one is not good.
pub fn beside_a_crowd<S, R>(
    mut small: impl FnMut() -> Ticket<S>,
    is_good: impl Fn(&S) -> bool,
    large: impl FnOnce() -> Ticket<R>,
) -> R {
    let mut crowd: VecDeque<_> = (0..CROWD).map(|_| small()).collect();
    let mut large = large();
    let mut passed = 0;
    loop {
        if let Some(report) = large.try_take() {
            assert!(crowd.into_iter().all(|ticket| is_good(&done(ticket))));
            return report;
        }
        assert!(is_good(&done(crowd.pop_front().expect("as many as ever"))));
        crowd.push_back(small());
        passed += 1;
        assert!(passed < PASSES_MAX, "{passed} small objects went past the large one");
    }
}
