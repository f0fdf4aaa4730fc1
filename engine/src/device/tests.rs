//! The pipeline in virtual time: a disk and the software device on one clock, and a loop that does what a shard's does (take what
//! has ended, ask for more, sleep). Slots, copies and the length of the sleeps are the engine's own.

use std::collections::VecDeque;
use std::sync::Arc;

use super::attached::Attached;
use super::lane::{COPY_WAIT_US, Lane};
use super::sim::{Clock, SimDevice, SimMemory, SimOptions};
use super::{Device, DeviceOptions, Direction, Place, RouteChoice};
use crate::mem::IoBuffer;

const MIB: usize = 1 << 20;
const GB: u64 = 1_000_000_000;

/// What a turn of a shard's loop takes.
const TURN_NS: u64 = 2_000;

/// Most bytes in flight on the disk, as the default of `load_inflight_bytes`.
const DISK_BYTES: usize = 32 * MIB;

/// A disk with a queue: requests share its bandwidth, and each takes its latency on top.
struct Disk {
    latency_ns: u64,
    bytes_per_s: u64,
    free_at: u64,
    in_flight: VecDeque<(u64, IoBuffer)>,
}

impl Disk {
    fn submit(&mut self, now: u64, slot: IoBuffer) {
        self.free_at = self.free_at.max(now) + slot.len() as u64 * GB / self.bytes_per_s;
        self.in_flight.push_back((self.free_at + self.latency_ns, slot));
    }

    fn ended(&mut self, now: u64) -> Option<IoBuffer> {
        let is_over = self.in_flight.front().is_some_and(|(at, _)| *at <= now);
        if is_over { self.in_flight.pop_front().map(|(_, slot)| slot) } else { None }
    }

    fn has_room(&self, chunk: usize) -> bool {
        (self.in_flight.len() + 1) * chunk <= DISK_BYTES || self.in_flight.is_empty()
    }
}

#[derive(Debug, Clone, Copy)]
struct Setup {
    direction: Direction,
    chunk: usize,
    transit: usize,
    disk: u64,
    device: u64,
}

/// Moves `chunks` chunks; gives bytes a second.
fn run(setup: Setup, chunks: usize) -> f64 {
    let Setup { direction, chunk, transit, disk, device } = setup;
    let clock = Clock::default();
    let options = SimOptions { bytes_per_s: device, look_ns: 0, weightless: true, ..SimOptions::default() };
    let device = SimDevice::with_clock(options, clock.clone());
    let memory = device.alloc(chunk);
    let mut lane = lane(&device, chunk, transit);
    let mut disk = Disk { latency_ns: 150_000, bytes_per_s: disk, free_at: 0, in_flight: VecDeque::new() };
    let (mut begun, mut done, mut staged) = (0, 0, VecDeque::new());
    while done < chunks {
        let mut ended = Vec::new();
        lane.flush();
        lane.poll(&mut ended);
        for copied in ended {
            assert_eq!(copied.result, Ok(()));
            match direction {
                Direction::ToDevice => done += 1,
                Direction::FromDevice => staged.extend(copied.slot),
            }
        }
        while let Some(slot) = disk.ended(clock.now_ns()) {
            match direction {
                Direction::ToDevice => copy(&mut lane, direction, slot, &memory),
                Direction::FromDevice => done += 1,
            }
        }
        while disk.has_room(chunk)
            && let Some(slot) = staged.pop_front()
        {
            disk.submit(clock.now_ns(), slot);
        }
        while begun < chunks
            && (direction == Direction::FromDevice || disk.has_room(chunk))
            && let Some(slot) = lane.slot(direction, chunk)
        {
            begun += 1;
            match direction {
                Direction::ToDevice => disk.submit(clock.now_ns(), slot),
                Direction::FromDevice => copy(&mut lane, direction, slot, &memory),
            }
        }
        lane.flush();
        clock.advance(TURN_NS);
        // As `Devices::sleep`: the disk wakes at once, the device wakes nobody.
        let wake = disk.in_flight.front().map_or(u64::MAX, |(at, _)| *at);
        let limit = if lane.is_busy() { clock.now_ns() + u64::from(COPY_WAIT_US) * 1000 } else { u64::MAX };
        assert!(done == chunks || wake.min(limit) < u64::MAX, "nothing is under way, and it is not done");
        if done < chunks {
            clock.advance_to(wake.min(limit));
        }
    }
    (chunks * chunk) as f64 / (clock.now_ns() as f64 / GB as f64)
}

fn lane(device: &SimDevice, chunk: usize, transit: usize) -> Lane<()> {
    let device: Arc<dyn Device> = Arc::new(device.clone());
    let options = DeviceOptions {
        chunk_bytes: chunk,
        transit_bytes: transit,
        route: RouteChoice::Pipeline,
        ..DeviceOptions::default()
    };
    Lane::new(Arc::new(Attached::new(device, options, Vec::new(), 1, false).unwrap()), 0).unwrap()
}

fn copy(lane: &mut Lane<()>, direction: Direction, slot: IoBuffer, memory: &SimMemory) {
    let len = slot.len();
    lane.copy(direction, slot, len, Place::Device(memory.buffer().part(0, len)), ());
}

/// What disk and device do alone, the slower of them: each copy costs the device its fixed time as well.
fn bound(setup: Setup) -> f64 {
    let fixed_s = SimOptions::default().fixed_ns as f64 / GB as f64;
    let device = setup.chunk as f64 / (fixed_s + setup.chunk as f64 / setup.device as f64);
    device.min(setup.disk as f64)
}

#[test]
fn the_slower_of_disk_and_device_is_busy_nearly_all_the_time() {
    let transit = DeviceOptions::default().transit_bytes;
    for direction in [Direction::ToDevice, Direction::FromDevice] {
        for chunk in [1, 2, 4, 8, 16].map(|mib| mib * MIB) {
            for (disk, device) in [(3, 25), (7, 12), (14, 55), (25, 25), (60, 12)] {
                let setup = Setup { direction, chunk, transit, disk: disk * GB, device: device * GB };
                let share = run(setup, (2 << 30) / chunk) / bound(setup);
                assert!((0.95..=1.0).contains(&share), "{setup:?}: {share:.3} of the bound");
            }
        }
    }
}

#[test]
fn the_share_shows_a_pipeline_that_is_none() {
    // Room for one chunk at a time: disk and device take turns.
    let transit = DeviceOptions::default().chunk_bytes;
    let setup = Setup { direction: Direction::ToDevice, chunk: transit, transit, disk: 7 * GB, device: 12 * GB };
    let share = run(setup, 100) / bound(setup);
    assert!(share < 0.7, "{share:.3}");
}
