//! Copies that fail are made again, and which are not; direct transfers that fail go through slots.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use saltern::device::sim::{SimDevice, SimMemory};
use saltern::device::{COPY_ATTEMPTS, DeviceOptions, Direction};
use saltern::{Config, DeviceBuffer, Engine, Error, Integrity, Layout};
use saltern_tests::{
    CHUNK, CROWD_BYTES, Scratch, assert_books, beside_a_crowd, config, crowded_device, device_memory, done, get, key,
    payload, put, small_device, unfinished, until,
};

use super::odd::{Fate, Fates, Odd, Seen};
use super::{TURNS, scratch, sim};

/// One shard without checksums, so that the bytes of an object are nobody's but the device's.
fn with_odd(scratch: &Scratch, odd: Odd, options: DeviceOptions, change: impl Fn(&mut Config)) -> Engine {
    let mut config = config(scratch.path());
    config.shards = 1;
    config.integrity = Integrity::Off;
    change(&mut config);
    let engine = Engine::open(config).expect("open");
    engine.attach_device(Arc::new(odd), options).expect("attach");
    engine
}

/// A load of the object under key 1, which has so many bytes, and a store under key 2, in device memory of their own.
fn both_ways(
    engine: &Engine,
    device: &SimDevice,
    bytes: usize,
) -> (saltern::Ticket<saltern::LoadReport>, saltern::Ticket<saltern::StoreReport>) {
    let (into, from) = (device.alloc(bytes), device_memory(device, &payload(2, bytes)));
    (engine.load_to_device(vec![(key(1), into.buffer())]), engine.store_from_device(vec![(key(2), from.buffer())]))
}

#[test]
fn a_copy_that_fails_is_made_again_from_its_slot_and_only_so_often() {
    const BYTES: usize = 1000;
    for failures in [COPY_ATTEMPTS - 1, COPY_ATTEMPTS] {
        let scratch = scratch("made-again");
        let device = sim(false);
        let left = [failures, failures].map(|count| AtomicUsize::new(count as usize));
        let fates = Fates::new(move |copy| {
            let left = &left[copy.direction as usize];
            let takes_one = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            if takes_one.is_ok() { Fate::Fails } else { Fate::Good }
        });
        let engine = with_odd(&scratch, Odd::with_fates(&device, &fates), small_device(), |_| {});
        put(&engine, &key(1), &payload(1, BYTES)).expect("store");
        let (into, from) = (device.alloc(BYTES), device_memory(&device, &payload(2, BYTES)));
        let loaded = done(engine.load_to_device(vec![(key(1), into.buffer())])).results.remove(0);
        let stored = done(engine.store_from_device(vec![(key(2), from.buffer())])).results.remove(0);
        let seen = fates.seen();
        for direction in [Direction::ToDevice, Direction::FromDevice] {
            let seen: Vec<_> = seen.iter().filter(|copy| copy.direction == direction).collect();
            assert_eq!(seen.len(), COPY_ATTEMPTS as usize, "{seen:?}");
            assert!(seen.iter().all(|copy| *copy == seen[0]), "another slot, or other memory: {seen:?}");
        }
        if failures < COPY_ATTEMPTS {
            assert!(matches!((&loaded, &stored), (Ok(1000), Ok(1000))), "{loaded:?}, {stored:?}");
            assert!(into.read() == payload(1, BYTES));
            assert!(get(&engine, &key(2), BYTES).expect("load") == payload(2, BYTES));
        } else {
            for result in [loaded, stored] {
                assert!(matches!(&result, Err(Error::Device { op: "as told", .. })), "{result:?}");
            }
            assert!(matches!(get(&engine, &key(2), BYTES), Err(Error::NotFound)));
        }
        let status = engine.status().devices.remove(0);
        assert_eq!(status.repeated_copies, 2 * u64::from(COPY_ATTEMPTS - 1), "{status:?}");
        assert_eq!(status.last_repeat.as_deref(), Some("as told: the test lets it fail"));
        assert_eq!(status.transit_used_bytes, 0, "slots are held");
        assert_books(&engine, scratch.path(), Layout::Fs);
        drop((into, from));
        engine.close();
        assert_eq!(device.allocated_bytes(), 0, "memory of the device is held");
    }
}

#[test]
fn a_copy_is_not_made_again_for_an_object_that_has_failed() {
    const END: usize = 1000;
    let scratch = scratch("failed-object");
    let device = sim(false);
    let fates = Fates::new(|_| Fate::FailsLate);
    let engine = with_odd(&scratch, Odd::with_fates(&device, &fates), small_device(), |_| {});
    put(&engine, &key(1), &payload(1, CHUNK + END)).expect("store");
    let tickets = both_ways(&engine, &device, CHUNK + END);
    let count = |len: usize| fates.seen().iter().filter(|copy| copy.len == len).count();
    until("both chunks are under way, and both ends", || (count(CHUNK), count(END)) == (2, 2));
    fates.end_late(|copy| copy.host.len() == CHUNK);
    until("both chunks are made for the last time", || count(CHUNK) == 2 * COPY_ATTEMPTS as usize);
    std::thread::sleep(TURNS);
    fates.end_late(|_| true);
    let (loaded, stored) = (done(tickets.0).results, done(tickets.1).results);
    assert!(matches!(&loaded[..], [Err(Error::Device { op: "as told", .. })]), "{loaded:?}");
    assert!(matches!(&stored[..], [Err(Error::Device { op: "as told", .. })]), "{stored:?}");
    assert_eq!((count(CHUNK), count(END)), (2 * COPY_ATTEMPTS as usize, 2), "copies of a failed object");
    assert_eq!(engine.status().devices[0].transit_used_bytes, 0, "slots are held");
    assert_books(&engine, scratch.path(), Layout::Fs);
    engine.close();
    assert_eq!(device.allocated_bytes(), 0, "memory of the device is held");
}

#[test]
fn a_copy_is_not_made_again_when_nobody_waits_for_its_object() {
    let scratch = scratch("expired-copy");
    let device = sim(false);
    let fates = Fates::new(|_| Fate::FailsLate);
    let engine = with_odd(&scratch, Odd::with_fates(&device, &fates), small_device(), |config| {
        config.load_deadline = Duration::from_millis(300);
        config.store_deadline = Duration::from_millis(300);
    });
    put(&engine, &key(1), &payload(1, 1000)).expect("store");
    let (loading, storing) = both_ways(&engine, &device, 1000);
    assert!(matches!(done(loading).results[..], [Err(Error::TimedOut { .. })]));
    assert!(matches!(done(storing).results[..], [Err(Error::TimedOut { .. })]));
    assert!(device.allocated_bytes() > 0, "a copy may still run: its memory stays");
    fates.end_late(|_| true);
    until("slots and memory are free", || {
        device.allocated_bytes() == 0 && engine.status().devices[0].transit_used_bytes == 0
    });
    assert_eq!(fates.seen().len(), 2, "{:?}", fates.seen());
    assert_eq!(engine.status().devices[0].repeated_copies, 0);
    assert_books(&engine, scratch.path(), Layout::Fs);
}

#[test]
fn a_copy_that_is_lost_is_not_made_again_and_nobody_uses_its_memory_any_more() {
    const BYTES: usize = 1000;
    let scratch = scratch("lost");
    let device = sim(false);
    // One of each direction.
    let left = [AtomicBool::new(true), AtomicBool::new(true)];
    let fates = Fates::new(move |copy| {
        let is_lost = left[copy.direction as usize].swap(false, Ordering::Relaxed);
        if is_lost { Fate::Lost } else { Fate::Good }
    });
    let engine = with_odd(&scratch, Odd::with_fates(&device, &fates), small_device(), |_| {});
    put(&engine, &key(1), &payload(1, BYTES)).expect("store");
    let (loading, storing) = both_ways(&engine, &device, BYTES);
    let (loaded, stored) = (done(loading), done(storing));
    for (result, buffer) in [(&loaded.results[0], &loaded.buffers[0]), (&stored.results[0], &stored.buffers[0])] {
        assert!(matches!(result, Err(Error::Device { op: "as told", .. })), "{result:?}");
        assert!(buffer.is_none(), "memory that the device may still write to was given back");
    }
    let lost = fates.seen();
    assert_eq!(lost.len(), 2, "{lost:?}");
    assert_eq!(device.allocated_bytes(), 2 * BYTES, "the memory of both");
    let held = engine.status().devices[0].transit_used_bytes;
    assert!(held >= 2 * BYTES, "{held} bytes of slots are held");
    // Others use every slot that there is, and none of those.
    for n in 10..30 {
        let (from, into) = (device_memory(&device, &payload(n, 3 * CHUNK)), device.alloc(3 * CHUNK));
        assert!(matches!(done(engine.store_from_device(vec![(key(n as u32), from.buffer())])).results[..], [Ok(_)]));
        assert!(matches!(done(engine.load_to_device(vec![(key(n as u32), into.buffer())])).results[..], [Ok(_)]));
        assert!(into.read() == payload(n, 3 * CHUNK), "object {n}");
    }
    let is_of = |lost: &Seen, copy: &Seen| copy.host < lost.host + lost.len && lost.host < copy.host + copy.len;
    let seen = fates.seen();
    let again: Vec<_> = seen[2..].iter().filter(|copy| lost.iter().any(|lost| is_of(lost, copy))).collect();
    assert!(again.is_empty(), "slots of lost copies are used again: {again:?}");
    let status = engine.status().devices.remove(0);
    assert_eq!((status.repeated_copies, status.transit_used_bytes), (0, held));
    assert_books(&engine, scratch.path(), Layout::Fs);
    engine.close();
    assert_eq!(device.allocated_bytes(), 2 * BYTES, "the memory of both, for good");
}

/// All of a block's memory, in parts of so many bytes: where a chunk has several, it does not go directly.
fn in_parts(device: &SimDevice, memory: &SimMemory, bytes: usize) -> DeviceBuffer {
    let parts: Vec<_> = (0..memory.len()).step_by(bytes).map(|at| (memory, at..memory.len().min(at + bytes))).collect();
    device.gather(&parts, None)
}

#[test]
fn a_failed_direct_transfer_that_waits_for_a_slot_ends_with_its_device() {
    let scratch = scratch("again-given-up");
    let device = sim(true);
    // All slots are in copies that never end.
    let fates = Fates::new(|_| Fate::FailsLate);
    let mut odd = Odd::with_fates(&device, &fates);
    odd.failed_directs_one_in = 1;
    let mut options = small_device();
    options.close_deadline = Duration::from_millis(300);
    let engine = with_odd(&scratch, odd, options, |config| {
        config.load_deadline = Duration::from_secs(600);
        config.store_deadline = Duration::from_secs(600);
    });
    if !engine.status().volumes[0].medium.direct_io {
        return eprintln!("skipped: this file system takes no O_DIRECT");
    }
    // As many chunks as there are slots in each direction.
    let bytes = engine.status().devices[0].transit_bytes / 2;
    let (into, from, chunks) = (device.alloc(bytes), device.alloc(bytes), bytes / CHUNK);
    put(&engine, &key(1), &payload(1, CHUNK)).expect("store");
    put(&engine, &key(4), &payload(4, bytes)).expect("store");
    let stuck = (
        engine.load_to_device(vec![(key(4), in_parts(&device, &into, CHUNK / 2))]),
        engine.store_from_device(vec![(key(3), in_parts(&device, &from, CHUNK / 2))]),
    );
    until("all slots are in copies", || fates.seen().len() == 2 * chunks);
    // Of one piece, so that no other piece of theirs is refused.
    let behind = both_ways(&engine, &device, CHUNK);
    until("the direct transfers have failed", || engine.status().devices[0].refused_files == 2);
    // Without an end of theirs this does not return.
    engine.close();
    for ticket in [stuck.0, behind.0] {
        let results = done(ticket).results;
        assert!(matches!(&results[..], [Err(Error::Device { .. })]), "{results:?}");
    }
    for ticket in [stuck.1, behind.1] {
        let results = done(ticket).results;
        assert!(matches!(&results[..], [Err(Error::Device { .. })]), "{results:?}");
    }
    assert_eq!(fates.seen().len(), 2 * chunks, "copies that a device was asked for after it was given up");
    assert!(unfinished(scratch.path()).is_empty());
}

#[test]
fn a_failed_direct_transfer_goes_through_several_short_slots_where_no_long_one_is_free() {
    const BYTES: usize = 2 << 20;
    const BLOCKER: usize = 256 << 10;
    const BLOCKERS: usize = 16;
    let scratch = scratch("split");
    let (mut sim, options) = crowded_device();
    (sim.direct, sim.reorder, sim.fail_one_in, sim.fail_in_a_row) = (true, true, 4, COPY_ATTEMPTS - 2);
    let chunk = options.chunk_bytes;
    assert_eq!(BLOCKERS * BLOCKER, options.transit_bytes, "they fill it");
    let device = SimDevice::new(sim);
    let holds = Arc::new(AtomicBool::new(true));
    let holding = holds.clone();
    let fates = Fates::new(move |_| if holding.load(Ordering::Relaxed) { Fate::FailsLate } else { Fate::Good });
    let mut odd = Odd::with_fates(&device, &fates);
    odd.failed_directs_one_in = 1;
    let engine = with_odd(&scratch, odd, options, |config| config.depth = 128);
    if !engine.status().volumes[0].medium.direct_io {
        return eprintln!("skipped: this file system takes no O_DIRECT");
    }
    put(&engine, &key(1), &payload(1, CROWD_BYTES)).expect("store");
    put(&engine, &key(2), &payload(2, BLOCKER)).expect("store");
    // All slots are in copies of a quarter of a chunk; then three of four are free again, and stay so: no gap is as long as a chunk.
    let (blocked, blocker) = (device.alloc(BLOCKER), device_memory(&device, &payload(2, BLOCKER)));
    let batch = |first: usize, memory| {
        (0..BLOCKERS).map(|n| (key((first + n) as u32), in_parts(&device, memory, BLOCKER / 2))).collect()
    };
    let loading =
        engine.load_to_device((0..BLOCKERS).map(|_| (key(2), in_parts(&device, &blocked, BLOCKER / 2))).collect());
    let storing = engine.store_from_device(batch(1_000_000, &blocker));
    until("all slots are in copies", || fates.seen().len() == 2 * BLOCKERS);
    let stay: Vec<usize> = [Direction::ToDevice, Direction::FromDevice]
        .into_iter()
        .flat_map(|direction| {
            let mut slots: Vec<_> = fates.seen().into_iter().filter(|copy| copy.direction == direction).collect();
            slots.sort_by_key(|copy| copy.host);
            slots.into_iter().map(|copy| copy.host).step_by(4)
        })
        .collect();
    holds.store(false, Ordering::Relaxed);
    let staying = stay.len() * BLOCKER;
    fates.end_late(move |copy| !stay.contains(&(copy.host.ptr() as usize)));
    until("the others are free", || engine.status().devices[0].transit_used_bytes == staying);
    // What has come through slots, by address: whole, each byte once, and not in whole chunks.
    let assert_split = |address: u64| {
        let parts: BTreeMap<_, _> = fates.seen().iter().map(|copy| (copy.address, copy.len)).collect();
        let parts: Vec<_> =
            parts.range(address..address + BYTES as u64).map(|(at, len)| (*at - address, *len)).collect();
        let end = parts.iter().fold(0, |end, (at, len)| {
            assert_eq!(*at, end, "{parts:?}");
            end + *len as u64
        });
        assert_eq!(end, BYTES as u64, "{parts:?}");
        assert!(parts.len() > BYTES / chunk && parts.iter().all(|(_, len)| *len < chunk), "{parts:?}");
    };
    let small = device_memory(&device, &payload(1, CROWD_BYTES));
    let from = device_memory(&device, &payload(0, BYTES));
    let mut keys = 10..;
    let stored = beside_a_crowd(
        || {
            let key = key(keys.next().expect("endless"));
            engine.store_from_device(vec![(key, in_parts(&device, &small, CROWD_BYTES / 2))])
        },
        |report| report.results[0].is_ok(),
        || engine.store_from_device(vec![(key(0), from.buffer())]),
    );
    assert!(matches!(stored.results[..], [Ok(_)]), "{:?}", stored.results);
    assert_split(from.buffer().ranges()[0].address);
    assert!(get(&engine, &key(0), BYTES).expect("load") == payload(0, BYTES));
    let into = device.alloc(BYTES);
    let loaded = beside_a_crowd(
        || engine.load_to_device(vec![(key(1), in_parts(&device, &small, CROWD_BYTES / 2))]),
        |report| report.results[0].is_ok(),
        || engine.load_to_device(vec![(key(0), into.buffer())]),
    );
    assert!(matches!(loaded.results[..], [Ok(_)]), "{:?}", loaded.results);
    assert_split(into.buffer().ranges()[0].address);
    assert!(into.read() == payload(0, BYTES));
    assert_eq!(device.direct_bytes(), 0);
    fates.end_late(|_| true);
    let (unblocked, blockers) = (done(loading), done(storing));
    assert!(unblocked.results.iter().chain(&blockers.results).all(Result::is_ok));
    let status = engine.status().devices.remove(0);
    assert!(status.refused_files >= 2 && status.repeated_copies > 0, "{status:?}");
    assert_eq!(status.transit_used_bytes, 0, "slots are held");
    assert_books(&engine, scratch.path(), Layout::Fs);
    drop((engine, from, into, small, blocked, blocker));
    drop((stored, loaded, unblocked, blockers));
    assert_eq!(device.allocated_bytes(), 0, "memory of the device is held");
}
