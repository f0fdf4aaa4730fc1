//! Objects in a device's memory, on the software device: bytes, pages, order, faults, deadlines and the end of an engine.
//!
//! The behaviour suite runs on it as a whole in `on_device.rs`; here is what only devices have.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use rand::seq::SliceRandom;
use saltern::device::sim::{Clock, SimDevice, SimFence, SimOptions};
use saltern::device::{DeviceOptions, Route, RouteChoice};
use saltern::{Buffer, Config, DeviceBuffer, Engine, Error, Integrity, Layout, ObjectKey};
use saltern_tests::{
    CHUNK, Scratch, Seed, assert_books, config, device_memory, done, get, key, payload, put, small_device, unfinished,
    until,
};

fn scratch(name: &str) -> Scratch {
    Scratch::new(env!("CARGO_TARGET_TMPDIR"), name)
}

fn sim(change: impl FnOnce(&mut SimOptions)) -> SimDevice {
    let mut options = SimOptions::default();
    change(&mut options);
    SimDevice::new(options)
}

fn open_with(config: Config, device: &SimDevice, options: DeviceOptions) -> Engine {
    let engine = Engine::open(config).expect("open");
    engine.attach_device(Arc::new(device.clone()), options).expect("attach");
    engine
}

fn store(engine: &Engine, key: &ObjectKey, buffer: DeviceBuffer) -> Result<u64, Error> {
    done(engine.store(vec![(key.clone(), buffer.into())])).results.remove(0)
}

fn load(engine: &Engine, key: &ObjectKey, buffer: DeviceBuffer) -> Result<u64, Error> {
    done(engine.load(vec![(key.clone(), buffer.into())])).results.remove(0)
}

/// Ends of blocks and chunks, and one byte to either side.
const SIZES: [usize; 11] =
    [0, 1, 511, 4096, 4097, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 100, 700_001, (2 << 20) + 3];

#[test]
fn what_the_device_stores_the_host_loads_and_the_other_way_round() {
    for integrity in Integrity::ALL {
        let scratch = scratch("both-ways");
        let mut config = config(scratch.path());
        config.integrity = integrity;
        config.shards = 2;
        let device = sim(|options| options.reorder = true);
        let engine = open_with(config, &device, small_device());
        for (n, bytes) in (0..).zip(SIZES) {
            let (ours, theirs) = (payload(n, bytes), payload(n + 100, bytes));
            let (from_device, from_host) = (key(n as u32), key(n as u32 + 100));
            assert_eq!(
                store(&engine, &from_device, device_memory(&device, &ours).buffer()).expect("store"),
                bytes as u64
            );
            assert!(get(&engine, &from_device, bytes).expect("load") == ours, "{bytes} bytes from the device");
            assert_eq!(put(&engine, &from_host, &theirs).expect("store"), bytes as u64);
            let into = device_memory(&device, &vec![0xee; bytes]);
            assert_eq!(load(&engine, &from_host, into.buffer()).expect("load"), bytes as u64);
            assert!(into.read() == theirs, "{bytes} bytes to the device, integrity {integrity}");
        }
        assert_books(&engine, scratch.path(), Layout::Fs);
        assert_eq!(engine.status().devices[0].transit_used_bytes, 0, "all slots are back");
        engine.close();
        assert_eq!(device.allocated_bytes(), 0, "no memory of the device is held");
    }
}

#[test]
fn a_batch_may_mix_both_kinds_and_buffers_come_back() {
    let scratch = scratch("mixed");
    let device = sim(|_| {});
    let engine = open_with(config(scratch.path()), &device, small_device());
    let on_device = device_memory(&device, &payload(1, 100_000));
    let batch = vec![
        (key(0), Buffer::from(payload(0, 100_000))),
        (key(1), on_device.buffer().into()),
        (key(2), Buffer::from(payload(2, 100_000))),
    ];
    let report = done(engine.store(batch));
    assert!(report.results.iter().all(|result| matches!(result, Ok(100_000))), "{:?}", report.results);
    let kinds: Vec<_> = report.buffers.iter().map(|buffer| buffer.as_ref().expect("comes back").is_device()).collect();
    assert_eq!(kinds, [false, true, false]);
    let back = report.buffers.into_iter().nth(1).flatten().expect("comes back").into_device().expect("the device's");
    assert_eq!(back.ranges(), on_device.buffer().ranges());
    let into = device.alloc(100_000);
    let batch =
        vec![(key(1), Buffer::from(vec![0; 100_000])), (key(2), into.buffer().into()), (key(3), into.buffer().into())];
    let report = done(engine.load(batch));
    assert!(matches!(report.results[..], [Ok(100_000), Ok(100_000), Err(Error::NotFound)]), "{:?}", report.results);
    assert!(report.buffers[0].as_ref().expect("comes back").as_slice() == payload(1, 100_000));
    assert!(into.read() == payload(2, 100_000));
}

#[test]
fn objects_are_gathered_from_pages_and_scattered_to_them() {
    let scratch = scratch("pages");
    let device = sim(|_| {});
    let engine = open_with(config(scratch.path()), &device, small_device());
    let seed = Seed::new("pages");
    let mut random = seed.rng(0);
    for round in 0..20 {
        let page = [1, 100, 4096, 10_000, CHUNK][random.random_range(0..5)];
        let pages = random.random_range(1..40);
        let (heap, bytes) = (device.alloc(2 * pages * page), payload(round, pages * page));
        // Every other page of the heap, in any order.
        let mut order: Vec<usize> = (0..pages).collect();
        order.shuffle(&mut random);
        let parts: Vec<_> = order.iter().map(|at| (&heap, 2 * at * page..(2 * at + 1) * page)).collect();
        let mut content = vec![0xee; 2 * pages * page];
        for (bytes, (_, part)) in bytes.chunks(page).zip(&parts) {
            content[part.clone()].copy_from_slice(bytes);
        }
        heap.write(&content);
        let key = key(round as u32);
        store(&engine, &key, device.gather(&parts, None)).expect("store");
        assert!(get(&engine, &key, bytes.len()).expect("load") == bytes, "{pages} pages of {page}");
        heap.write(&vec![0xee; content.len()]);
        load(&engine, &key, device.gather(&parts, None)).expect("load");
        assert!(heap.read() == content, "{pages} pages of {page}, or bytes between them");
    }
}

#[test]
fn nothing_is_read_or_written_before_the_callers_work_is_done() {
    let scratch = scratch("fences");
    let device = sim(|_| {});
    let engine = open_with(config(scratch.path()), &device, small_device());
    let (memory, fence) = (device_memory(&device, &payload(1, 300_000)), SimFence::new());
    let mut storing = engine.store(vec![(key(0), device.gather(&[(&memory, 0..300_000)], Some(&fence)).into())]);
    // The shard has had turns enough to do it.
    assert!(storing.wait_timeout(Duration::from_millis(50)).is_none());
    memory.write(&payload(2, 300_000));
    fence.signal();
    assert!(matches!(done(storing).results[..], [Ok(300_000)]));
    assert!(get(&engine, &key(0), 300_000).expect("load") == payload(2, 300_000));
    let fence = SimFence::new();
    let mut loading = engine.load(vec![(key(0), device.gather(&[(&memory, 0..300_000)], Some(&fence)).into())]);
    memory.write(&payload(3, 300_000));
    assert!(loading.wait_timeout(Duration::from_millis(50)).is_none());
    assert!(memory.read() == payload(3, 300_000), "written before its time");
    fence.signal();
    assert!(matches!(done(loading).results[..], [Ok(300_000)]));
    assert!(memory.read() == payload(2, 300_000));
}

#[test]
fn failed_copies_fail_their_object_alone_and_free_every_slot() {
    some_copies_fail("failures", Clock::default());
}

#[test]
fn so_they_do_where_threads_of_the_device_copy() {
    some_copies_fail("failures-of-threads", Clock::wall());
}

fn some_copies_fail(name: &str, clock: Clock) {
    let seed = Seed::new("failed copies");
    let scratch = scratch(name);
    let mut options = SimOptions::default();
    // A copy fails for good when it fails as often as it is made.
    options.fail_one_in = 2;
    options.reorder = true;
    options.seed = seed.rng(0).random();
    let device = SimDevice::with_clock(options, clock);
    let mut config = config(scratch.path());
    config.shards = 2;
    config.integrity = Integrity::Verify;
    let engine = open_with(config, &device, small_device());
    let bytes = |n: u32| [1, 5000, CHUNK, 200_000, 900_000][n as usize % 5];
    let (mut stored, mut failed) = (BTreeSet::new(), 0);
    let memories: Vec<_> = (0..60).map(|n| device_memory(&device, &payload(n.into(), bytes(n)))).collect();
    let report = done(engine.store((0..60).map(|n| (key(n), memories[n as usize].buffer().into())).collect()));
    for (n, result) in (0..60).zip(&report.results) {
        match result {
            Ok(_) => drop(stored.insert(n)),
            Err(Error::Device { op: "copy", .. }) => failed += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(!stored.is_empty() && failed > 0, "{} stored, {failed} failed", stored.len());
    assert!(unfinished(scratch.path()).is_empty(), "unfinished stores are left");
    let mut loaded = 0;
    for n in stored.iter().copied().cycle().take(200) {
        let into = device_memory(&device, &vec![0xee; bytes(n)]);
        match load(&engine, &key(n), into.buffer()) {
            Ok(_) => {
                assert!(into.read() == payload(n.into(), bytes(n)), "object {n} has wrong bytes");
                loaded += 1;
            }
            Err(Error::Device { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert!(loaded > 0 && loaded < 200, "{loaded} of 200 loaded");
    let status = engine.status().devices.remove(0);
    assert!(status.repeated_copies > 0 && status.last_repeat.is_some(), "{status:?}");
    for n in stored {
        assert!(
            get(&engine, &key(n), bytes(n)).expect("the host's memory needs no device") == payload(n.into(), bytes(n))
        );
    }
    assert_books(&engine, scratch.path(), Layout::Fs);
    assert_eq!(engine.status().devices[0].transit_used_bytes, 0, "slots are held");
    drop((engine, memories, report));
    assert_eq!(device.allocated_bytes(), 0, "memory of the device is held");
}

#[test]
fn a_device_that_hangs_keeps_its_slots_and_nothing_else() {
    let scratch = scratch("hang");
    let device = sim(|_| {});
    let engine = Engine::open(config(scratch.path())).expect("open");
    put(&engine, &key(0), &payload(0, 100_000)).expect("store");
    engine.close();
    let mut config = config(scratch.path());
    config.load_deadline = Duration::from_secs(1);
    config.store_deadline = Duration::from_secs(1);
    let engine = open_with(config, &device, small_device());
    device.stall(true);
    let (into, from) = (device.alloc(100_000), device_memory(&device, &payload(1, 100_000)));
    assert!(matches!(load(&engine, &key(0), into.buffer()), Err(Error::TimedOut { .. })));
    assert!(matches!(store(&engine, &key(1), from.buffer()), Err(Error::TimedOut { .. })));
    drop((into, from));
    assert!(device.allocated_bytes() > 0, "a copy may still run: its memory stays");
    assert!(engine.status().devices[0].transit_used_bytes > 0, "and its slots");
    assert!(get(&engine, &key(0), 100_000).expect("the host's memory needs no device") == payload(0, 100_000));
    device.stall(false);
    until("the copies have ended, and what they held is free", || {
        device.allocated_bytes() == 0 && engine.status().devices[0].transit_used_bytes == 0
    });
    assert!(matches!(get(&engine, &key(1), 100_000), Err(Error::NotFound)), "late is not stored");
    assert_books(&engine, scratch.path(), Layout::Fs);
}

#[test]
fn closing_ends_what_has_begun() {
    let scratch = scratch("close");
    let device = sim(|_| {});
    let engine = open_with(config(scratch.path()), &device, small_device());
    let memories: Vec<_> = (0..100).map(|n| device_memory(&device, &payload(n, 150_000))).collect();
    let tickets: Vec<_> =
        (0..).zip(&memories).map(|(n, memory)| engine.store(vec![(key(n), memory.buffer().into())])).collect();
    engine.close();
    let mut stored = Vec::new();
    for (n, ticket) in (0..).zip(tickets) {
        match done(ticket).results.remove(0) {
            Ok(_) => stored.push(n),
            Err(Error::Closed) => {}
            Err(error) => panic!("{error}"),
        }
    }
    drop(memories);
    assert_eq!(device.allocated_bytes(), 0);
    let engine = Engine::open(config(scratch.path())).expect("open");
    for n in stored {
        assert!(get(&engine, &key(n), 150_000).expect("it was acknowledged") == payload(n.into(), 150_000));
    }
}

#[test]
fn unknown_memory_is_refused_and_comes_back() {
    let scratch = scratch("unknown");
    let engine = Engine::open(config(scratch.path())).expect("open");
    let device = sim(|_| {});
    let memory = device_memory(&device, &payload(1, 5000));
    assert!(matches!(store(&engine, &key(0), memory.buffer()), Err(Error::NotAttached)));
    put(&engine, &key(0), &payload(0, 5000)).expect("store");
    let report = done(engine.load(vec![(key(0), memory.buffer().into())]));
    assert!(matches!(report.results[..], [Err(Error::NotAttached)]));
    assert!(report.buffers[0].as_ref().expect("comes back").is_device());
    assert!(memory.read() == payload(1, 5000), "and untouched");
    engine.attach_device(Arc::new(device.clone()), small_device()).expect("attach");
    let again = engine.attach_device(Arc::new(device.clone()), small_device());
    assert!(matches!(again, Err(Error::Config { option: "device", .. })), "{again:?}");
    let mut options = small_device();
    options.transit_bytes = 0;
    let refused = engine.attach_device(Arc::new(sim(|_| {})), options);
    assert!(matches!(refused, Err(Error::Config { option: "transit_bytes", .. })), "{refused:?}");
    assert_eq!(load(&engine, &key(0), memory.buffer()).expect("attached now"), 5000);
    assert!(memory.read() == payload(0, 5000));
    // An address that is none fails its object alone.
    let freed = device.alloc(5000);
    let dangling = device.at(freed.buffer().ranges().to_vec());
    drop(freed);
    assert!(matches!(load(&engine, &key(0), dangling), Err(Error::Device { .. })));
    assert!(get(&engine, &key(0), 5000).expect("unharmed") == payload(0, 5000));
}

#[test]
fn damaged_bytes_do_not_pass_for_good_ones_on_the_way_to_a_device() {
    let scratch = scratch("damaged");
    let device = sim(|_| {});
    let mut config = config(scratch.path());
    config.integrity = Integrity::Verify;
    let engine = open_with(config, &device, small_device());
    let from = device_memory(&device, &payload(0, 300_000));
    store(&engine, &key(0), from.buffer()).expect("store");
    let path = std::fs::read_dir(scratch.path()).expect("readdir").map(|entry| entry.expect("readdir").path());
    let path = path.into_iter().find(|path| path.is_file()).expect("one object");
    let mut bytes = std::fs::read(&path).expect("read");
    assert!(bytes == payload(0, 300_000));
    bytes[200_000] ^= 1;
    // In place: the stamp stays.
    std::os::unix::fs::FileExt::write_all_at(
        &std::fs::OpenOptions::new().write(true).open(&path).expect("open"),
        &bytes,
        0,
    )
    .expect("write");
    let into = device.alloc(300_000);
    assert!(matches!(load(&engine, &key(0), into.buffer()), Err(Error::Corrupt { .. })));
    assert!(matches!(load(&engine, &key(0), into.buffer()), Err(Error::NotFound)));
}

#[test]
fn direct_where_no_checksum_needs_the_bytes() {
    for (integrity, stores_are_direct, loads_are_direct) in
        [(Integrity::Off, true, true), (Integrity::Store, false, true), (Integrity::Verify, false, false)]
    {
        let scratch = scratch("direct");
        let device = sim(|options| options.direct = true);
        let mut config = config(scratch.path());
        config.integrity = integrity;
        let engine = open_with(config, &device, small_device());
        if !engine.status().volumes[0].medium.direct_io || engine.status().integrity != integrity {
            return eprintln!("skipped: this file system takes no O_DIRECT, or no attributes");
        }
        assert_eq!(engine.status().devices[0].routes[0].route, Route::Direct { by: "software".into() });
        for (n, bytes) in (0..).zip(SIZES) {
            let whole = bytes / 4096 * 4096;
            let before = device.direct_bytes();
            let from = device_memory(&device, &payload(n, bytes));
            store(&engine, &key(n as u32), from.buffer()).expect("store");
            let stored = device.direct_bytes() - before;
            assert_eq!(stored, if stores_are_direct { whole as u64 } else { 0 }, "{integrity}: a store of {bytes}");
            assert!(get(&engine, &key(n as u32), bytes).expect("load") == payload(n, bytes), "{bytes} bytes");
            let (into, before) = (device.alloc(bytes), device.direct_bytes());
            load(&engine, &key(n as u32), into.buffer()).expect("load");
            assert!(into.read() == payload(n, bytes), "{integrity}: {bytes} bytes");
            let loaded = device.direct_bytes() - before;
            assert_eq!(loaded, if loads_are_direct { whole as u64 } else { 0 }, "{integrity}: a load of {bytes}");
        }
        assert_books(&engine, scratch.path(), Layout::Fs);
    }
}

#[test]
fn a_route_can_be_forced_and_is_told() {
    let scratch = scratch("route");
    let engine = Engine::open(config(scratch.path())).expect("open");
    let with = |route| {
        let mut options = small_device();
        options.route = route;
        options
    };
    let cannot = engine.attach_device(Arc::new(sim(|_| {})), with(RouteChoice::Direct));
    assert!(matches!(cannot, Err(Error::Device { op: "probe", .. })), "{cannot:?}");
    assert!(engine.status().devices.is_empty());
    let direct = sim(|options| options.direct = true);
    engine.attach_device(Arc::new(direct), with(RouteChoice::Pipeline)).expect("attach");
    assert_eq!(engine.status().devices[0].routes[0].route, Route::Pipeline { why: "it was asked for".into() });
}
