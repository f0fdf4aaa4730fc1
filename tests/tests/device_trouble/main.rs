//! Devices that do not do what they should: an attach that fails half way, a caller's work that is never done, copies that never
//! end, that fail or are lost, files that are not direct although their volume is.

mod attempts;
mod odd;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use odd::Odd;
use saltern::device::DeviceOptions;
use saltern::device::sim::{SimDevice, SimFence, SimOptions};
use saltern::{Config, Engine, Error, Integrity, Layout};
use saltern_tests::{
    CHUNK, Scratch, assert_books, config, device_memory, done, get, key, payload, put, small_device, unfinished, until,
};

/// Long enough for a shard to do everything that it can.
const TURNS: Duration = Duration::from_millis(50);

fn scratch(name: &str) -> Scratch {
    Scratch::new(env!("CARGO_TARGET_TMPDIR"), name)
}

fn sim(direct: bool) -> SimDevice {
    let mut options = SimOptions::default();
    options.direct = direct;
    SimDevice::new(options)
}

#[test]
fn an_attach_that_fails_leaves_nothing_and_may_be_tried_again() {
    let scratch = scratch("attach");
    let device = sim(false);
    let mut config = config(scratch.path());
    config.shards = 3;
    let engine = Engine::open(config).expect("open");
    let before = engine.status();
    // The pools of the second shard; the queue of copies of the first, and of the last.
    for (what, which) in [(0, 3), (1, 0), (1, 2)] {
        let mut odd = Odd::new(&device);
        odd.refuses[what] = Some(which);
        let odd = Arc::new(odd);
        let refused = engine.attach_device(odd.clone(), small_device());
        assert!(matches!(&refused, Err(Error::Device { op: "ask", .. })), "{refused:?}");
        assert_eq!(odd.registered.load(Ordering::Relaxed), 0, "memory stays registered");
        assert_eq!(Arc::strong_count(&odd), 1, "the engine holds the device");
        assert!(engine.status().devices.is_empty(), "it is listed");
        let from = device_memory(&device, &payload(1, 1000));
        let stored = done(engine.store_from_device(vec![(key(1), from.buffer())]));
        assert!(matches!(stored.results[..], [Err(Error::NotAttached)]), "{:?}", stored.results);
    }
    let odd = Arc::new(Odd::new(&device));
    engine.attach_device(odd.clone(), small_device()).expect("nothing is in the way");
    assert_eq!((engine.status().devices.len(), odd.registered.load(Ordering::Relaxed)), (1, 6));
    let (from, into) = (device_memory(&device, &payload(1, 300_000)), device.alloc(300_000));
    assert!(matches!(done(engine.store_from_device(vec![(key(1), from.buffer())])).results[..], [Ok(300_000)]));
    assert!(matches!(done(engine.load_to_device(vec![(key(1), into.buffer())])).results[..], [Ok(300_000)]));
    assert!(into.read() == payload(1, 300_000));
    assert_eq!(engine.status().shards.len(), before.shards.len());
    assert_books(&engine, scratch.path(), Layout::Fs);
    engine.close();
    assert_eq!((odd.registered.load(Ordering::Relaxed), Arc::strong_count(&odd)), (0, 1));
}

fn with_objects(scratch: &Scratch, device: &SimDevice, options: DeviceOptions, change: impl Fn(&mut Config)) -> Engine {
    let mut config = config(scratch.path());
    config.integrity = Integrity::Store;
    change(&mut config);
    let engine = Engine::open(config).expect("open");
    for n in 0..4 {
        put(&engine, &key(n), &payload(n.into(), 500_000)).expect("store");
    }
    engine.attach_device(Arc::new(device.clone()), options).expect("attach");
    engine
}

/// Two loads and two stores whose fence is this one; more bytes than there are slots.
fn behind(
    engine: &Engine,
    device: &SimDevice,
    fence: &SimFence,
) -> (Vec<saltern::Ticket<saltern::LoadReport>>, Vec<saltern::Ticket<saltern::StoreReport>>) {
    let loads = (0..2).map(|n| {
        let into = device.alloc(500_000);
        engine.load_to_device(vec![(key(n), device.gather(&[(&into, 0..500_000)], Some(fence)))])
    });
    let loads = loads.collect();
    let stores = (10..12).map(|n| {
        let from = device_memory(device, &payload(n, 500_000));
        engine.store_from_device(vec![(key(n as u32), device.gather(&[(&from, 0..500_000)], Some(fence)))])
    });
    (loads, stores.collect())
}

/// That those behind a fence fail, and say so.
fn assert_late(
    (loads, stores): (Vec<saltern::Ticket<saltern::LoadReport>>, Vec<saltern::Ticket<saltern::StoreReport>>),
) {
    for ticket in loads {
        let results = done(ticket).results;
        assert!(matches!(&results[..], [Err(Error::Device { op: "fence", .. })]), "{results:?}");
    }
    for ticket in stores {
        let results = done(ticket).results;
        assert!(matches!(&results[..], [Err(Error::Device { op: "fence", .. })]), "{results:?}");
    }
}

#[test]
fn work_that_is_never_done_holds_up_its_own_objects_alone() {
    let scratch = scratch("never-done");
    let device = sim(false);
    let mut options = small_device();
    options.fence_deadline = Duration::from_secs(1);
    let engine = with_objects(&scratch, &device, options, |_| {});
    let never = SimFence::new();
    let waiting = behind(&engine, &device, &never);
    std::thread::sleep(TURNS);
    let status = &engine.status().devices[0];
    assert!(status.transit_used_bytes <= 2 * CHUNK, "{} bytes of slots", status.transit_used_bytes);
    // Others go past them, both ways.
    for n in 2..4 {
        let (into, from) = (device.alloc(500_000), device_memory(&device, &payload(n + 20, 500_000)));
        assert!(matches!(done(engine.load_to_device(vec![(key(n as u32), into.buffer())])).results[..], [Ok(_)]));
        assert!(into.read() == payload(n, 500_000));
        let stored = done(engine.store_from_device(vec![(key(n as u32 + 20), from.buffer())]));
        assert!(matches!(stored.results[..], [Ok(_)]));
    }
    assert_late(waiting);
    assert_eq!(engine.status().devices[0].transit_used_bytes, 0, "slots are held");
    assert!(unfinished(scratch.path()).is_empty());
    // The same keys, with work that is done.
    let (loads, stores) = {
        let soon = SimFence::new();
        let behind = behind(&engine, &device, &soon);
        std::thread::sleep(TURNS);
        soon.signal();
        behind
    };
    assert!(loads.into_iter().all(|ticket| done(ticket).results[0].is_ok()));
    assert!(stores.into_iter().all(|ticket| done(ticket).results[0].is_ok()));
    assert!(get(&engine, &key(11), 500_000).expect("load") == payload(11, 500_000));
    assert_books(&engine, scratch.path(), Layout::Fs);
    engine.close();
    assert_eq!(device.allocated_bytes(), 0, "memory of the device is held");
}

#[test]
fn a_tickets_deadline_ends_the_wait_for_a_fence() {
    let scratch = scratch("expired");
    let device = sim(false);
    let engine = with_objects(&scratch, &device, small_device(), |config| {
        config.load_deadline = Duration::from_millis(300);
        config.store_deadline = Duration::from_millis(300);
    });
    let (loads, stores) = behind(&engine, &device, &SimFence::new());
    assert!(loads.into_iter().all(|ticket| matches!(done(ticket).results[0], Err(Error::TimedOut { .. }))));
    assert!(stores.into_iter().all(|ticket| matches!(done(ticket).results[0], Err(Error::TimedOut { .. }))));
    until("slots and memory are free", || {
        device.allocated_bytes() == 0 && engine.status().devices[0].transit_used_bytes == 0
    });
    assert_books(&engine, scratch.path(), Layout::Fs);
}

#[test]
fn closing_waits_no_longer_than_its_deadline_for_work_that_is_never_done() {
    let scratch = scratch("close-fence");
    let device = sim(false);
    let mut options = small_device();
    options.fence_deadline = Duration::from_secs(600);
    options.close_deadline = Duration::from_millis(300);
    let engine = with_objects(&scratch, &device, options, |config| {
        config.load_deadline = Duration::from_secs(600);
        config.store_deadline = Duration::from_secs(600);
    });
    let waiting = behind(&engine, &device, &SimFence::new());
    std::thread::sleep(TURNS);
    // Without the deadline this does not return.
    engine.close();
    assert_late(waiting);
    assert_eq!(device.allocated_bytes(), 0, "nothing was begun, so nothing has to be kept");
    assert!(unfinished(scratch.path()).is_empty());
}

#[test]
fn closing_gives_up_a_device_that_hangs_and_keeps_what_it_may_still_touch() {
    let scratch = scratch("close-hang");
    let device = sim(false);
    let mut options = small_device();
    options.close_deadline = Duration::from_millis(300);
    let engine = with_objects(&scratch, &device, options, |config| {
        config.load_deadline = Duration::from_secs(600);
        config.store_deadline = Duration::from_secs(600);
    });
    device.stall(true);
    let loads: Vec<_> = (0..3)
        .map(|n| {
            let into = device.alloc(500_000);
            engine.load(vec![(key(n), into.buffer().into()), (key(3), vec![0; 500_000].into())])
        })
        .collect();
    let from = device_memory(&device, &payload(9, 500_000));
    let store = engine.store_from_device(vec![(key(9), from.buffer())]);
    drop(from);
    std::thread::sleep(TURNS);
    let began = Instant::now();
    engine.close();
    assert!(began.elapsed() < Duration::from_secs(60), "the deadline of closing is {:?}", Duration::from_millis(300));
    for ticket in loads {
        let report = done(ticket);
        assert!(matches!(&report.results[0], Err(Error::Device { .. } | Error::Closed)), "{:?}", report.results);
        assert!(matches!(report.results[1], Ok(500_000)), "the host's memory needs no device");
    }
    let stored = done(store);
    assert!(matches!(&stored.results[..], [Err(Error::Device { .. })]), "{:?}", stored.results);
    assert!(device.allocated_bytes() > 0, "a copy may still run: its memory is not given back");
    assert!(unfinished(scratch.path()).is_empty());
    // The directory is as good as before.
    let engine = Engine::open(config(scratch.path())).expect("open");
    for n in 0..4 {
        assert!(get(&engine, &key(n), 500_000).expect("load") == payload(n.into(), 500_000));
    }
    assert_books(&engine, scratch.path(), Layout::Fs);
}

/// More objects than there are slots, or places in a shard, each way.
const CROWD: u32 = 80;

fn crowd(
    engine: &Engine,
    device: &SimDevice,
    fence: Option<&SimFence>,
) -> (Vec<saltern::Ticket<saltern::LoadReport>>, Vec<saltern::Ticket<saltern::StoreReport>>) {
    let loads = (0..CROWD).map(|n| {
        let into = device.alloc(500_000);
        engine.load_to_device(vec![(key(n % 4), device.gather(&[(&into, 0..500_000)], fence))])
    });
    let loads = loads.collect();
    let stores = (100..100 + CROWD).map(|n| {
        let from = device_memory(device, &payload(n.into(), 150_000));
        engine.store_from_device(vec![(key(n), device.gather(&[(&from, 0..150_000)], fence))])
    });
    (loads, stores.collect())
}

#[test]
fn memory_of_the_hosts_goes_past_any_number_of_objects_that_wait_for_a_device() {
    for is_fenced in [false, true] {
        let scratch = scratch(if is_fenced { "crowd-fence" } else { "crowd-hang" });
        let device = sim(false);
        let mut options = small_device();
        options.fence_deadline = Duration::from_secs(600);
        options.close_deadline = Duration::from_millis(300);
        let engine = with_objects(&scratch, &device, options, |config| {
            config.shards = 1;
            config.load_deadline = Duration::from_secs(600);
            config.store_deadline = Duration::from_secs(600);
        });
        device.stall(!is_fenced);
        let never = SimFence::new();
        let (loads, stores) = crowd(&engine, &device, is_fenced.then_some(&never));
        std::thread::sleep(TURNS);
        // Without a place of their own these wait for as long as the device does.
        for n in 0..4 {
            assert!(get(&engine, &key(n), 500_000).expect("load") == payload(n.into(), 500_000), "object {n}");
            assert!(matches!(put(&engine, &key(n + 10), &payload(n.into(), 500_000)), Ok(500_000)), "object {n}");
        }
        // What waits for slots that never come back ends as well.
        engine.close();
        let is_over = |error: &Error| matches!(error, Error::Device { .. } | Error::Closed);
        for ticket in loads {
            let results = done(ticket).results;
            assert!(matches!(&results[..], [Err(error)] if is_over(error)), "{results:?}");
        }
        for ticket in stores {
            let results = done(ticket).results;
            assert!(matches!(&results[..], [Err(error)] if is_over(error)), "{results:?}");
        }
        assert!(unfinished(scratch.path()).is_empty());
        let engine = Engine::open(config(scratch.path())).expect("open");
        assert_eq!(assert_books(&engine, scratch.path(), Layout::Fs).files.len(), 8);
    }
}

#[test]
fn files_that_are_not_direct_and_direct_transfers_that_fail_go_through_slots() {
    let scratch = scratch("not-direct");
    let device = sim(true);
    let mut config = config(scratch.path());
    config.integrity = Integrity::Off;
    let engine = Engine::open(config).expect("open");
    if !engine.status().volumes[0].medium.direct_io {
        return eprintln!("skipped: this file system takes no O_DIRECT");
    }
    let mut odd = Odd::new(&device);
    (odd.refused_files_one_in, odd.failed_directs_one_in) = (7, 5);
    engine.attach_device(Arc::new(odd), small_device()).expect("attach");
    for n in 0..40_u32 {
        let bytes = [500_000, 8192, 3 * CHUNK, 70_001][n as usize % 4];
        let (from, into) = (device_memory(&device, &payload(n.into(), bytes)), device.alloc(bytes));
        let stored = done(engine.store_from_device(vec![(key(n), from.buffer())]));
        assert!(matches!(stored.results[..], [Ok(_)]), "{:?}", stored.results);
        assert!(get(&engine, &key(n), bytes).expect("load") == payload(n.into(), bytes), "object {n}");
        let loaded = done(engine.load_to_device(vec![(key(n), into.buffer())]));
        assert!(matches!(loaded.results[..], [Ok(_)]), "{:?}", loaded.results);
        assert!(into.read() == payload(n.into(), bytes), "object {n}");
    }
    let status = engine.status().devices.remove(0);
    assert!(status.refused_files > 10 && device.direct_bytes() > 0, "{status:?}");
    assert!(status.last_refusal.is_some_and(|why| why.contains("the test")));
    assert_eq!(status.transit_used_bytes, 0, "slots are held");
    assert_books(&engine, scratch.path(), Layout::Fs);
}

#[test]
fn each_volume_has_its_own_route() {
    let scratch = scratch("routes");
    let dirs = ["a", "b"].map(|name| scratch.path().join(name));
    for dir in &dirs {
        std::fs::create_dir(dir).expect("mkdir");
    }
    let device = sim(true);
    let mut config = Config::over(dirs.iter().cloned());
    config.pin_shards = false;
    config.pool_bytes = 16 << 20;
    config.integrity = Integrity::Off;
    let engine = Engine::open(config).expect("open");
    if !engine.status().volumes[0].medium.direct_io {
        return eprintln!("skipped: this file system takes no O_DIRECT");
    }
    let mut odd = Odd::new(&device);
    odd.direct_dir = Some(engine.status().volumes[0].medium.dir.clone().into());
    engine.attach_device(Arc::new(odd), small_device()).expect("attach");
    let routes = engine.status().devices.remove(0).routes;
    assert!(routes[0].route.is_direct() && !routes[1].route.is_direct(), "{routes:?}");
    for n in 0..40 {
        let (from, into, before) =
            (device_memory(&device, &payload(n, 128 << 10)), device.alloc(128 << 10), device.direct_bytes());
        let stored = done(engine.store_from_device(vec![(key(n as u32), from.buffer())]));
        assert!(matches!(stored.results[..], [Ok(_)]), "{:?}", stored.results);
        let loaded = done(engine.load_to_device(vec![(key(n as u32), into.buffer())]));
        assert!(matches!(loaded.results[..], [Ok(_)]), "{:?}", loaded.results);
        assert!(into.read() == payload(n, 128 << 10));
        assert!([0, 2 * (128 << 10)].contains(&(device.direct_bytes() - before)), "both ways alike");
    }
    let direct = device.direct_bytes() / (2 * (128 << 10));
    assert!((1..40).contains(&direct), "{direct} of 40 went directly");
}
