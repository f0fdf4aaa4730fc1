//! Slots of a device: what they hold when they are back, whose turn it is when there are few, and what rings and devices know of them;
//! and copies: in which order they end, and how many are handed over at once.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use saltern::device::sim::{Clock, SimDevice, SimFence, SimOptions};
use saltern::device::{CopyEngine, Device, DeviceError, DeviceId, DeviceOptions, Registration, Route, RouteChoice};
use saltern::{Config, Engine, Integrity, Layout, Pool};
use saltern_tests::{
    CROWD_BYTES, Scratch, Seed, assert_books, beside_a_crowd, config, crowded_device, device_memory, done, get, key,
    payload, put, small_device, until,
};

const PAGE: usize = 4096;
const MIB: usize = 1 << 20;

fn scratch(name: &str) -> Scratch {
    Scratch::new(env!("CARGO_TARGET_TMPDIR"), name)
}

fn one_shard(scratch: &Scratch) -> Config {
    let mut config = config(scratch.path());
    config.shards = 1;
    config
}

fn open_with(config: Config, device: impl Device + 'static, options: DeviceOptions) -> Engine {
    let engine = Engine::open(config).expect("open");
    engine.attach_device(Arc::new(device), options).expect("attach");
    engine
}

/// The software device; it remembers the pools whose parts are slots.
struct Pools {
    device: SimDevice,
    pools: Arc<Mutex<Vec<Pool>>>,
}

impl Pools {
    fn new(device: &SimDevice) -> (Self, Arc<Mutex<Vec<Pool>>>) {
        let pools = Arc::<Mutex<Vec<Pool>>>::default();
        (Self { device: device.clone(), pools: pools.clone() }, pools)
    }
}

impl Device for Pools {
    fn id(&self) -> DeviceId {
        self.device.id()
    }

    fn name(&self) -> String {
        self.device.name()
    }

    fn register(&self, pool: &Pool) -> Result<Registration, DeviceError> {
        self.pools.lock().expect("not poisoned").push(pool.clone());
        self.device.register(pool)
    }

    fn route(&self, dir: &Path, choice: RouteChoice) -> Result<Route, DeviceError> {
        self.device.route(dir, choice)
    }

    fn copier(&self) -> Result<Box<dyn CopyEngine>, DeviceError> {
        self.device.copier()
    }

    fn poisons_slots(&self) -> bool {
        self.device.poisons_slots()
    }
}

#[test]
fn a_slot_that_is_back_holds_nothing_of_its_object() {
    const BYTES: usize = 300_000;
    for poison in [true, false] {
        let scratch = scratch("poison");
        let mut options = SimOptions::default();
        options.poison = poison;
        let device = SimDevice::new(options);
        let (pools_of, pools) = Pools::new(&device);
        let engine = open_with(one_shard(&scratch), pools_of, small_device());
        for n in 0..8 {
            let (from, into) = (device_memory(&device, &payload(n, BYTES)), device.alloc(BYTES));
            assert!(matches!(
                done(engine.store_from_device(vec![(key(n as u32), from.buffer())])).results[..],
                [Ok(_)]
            ));
            assert!(matches!(done(engine.load_to_device(vec![(key(n as u32), into.buffer())])).results[..], [Ok(_)]));
            assert!(into.read() == payload(n, BYTES));
        }
        let objects: Vec<_> = (0..8).map(|n| payload(n, BYTES)).collect();
        let is_of_an_object =
            |page: &[u8]| objects.iter().any(|object| object.chunks_exact(PAGE).any(|one| one == page));
        let pools = pools.lock().expect("not poisoned");
        assert_eq!(pools.len(), 2, "a pool each way");
        for pool in &*pools {
            // All slots are back: the whole pool is one.
            let slots = pool.alloc(pool.status().bytes).expect("all slots are back");
            let old = slots.chunks_exact(PAGE).filter(|page| is_of_an_object(page)).count();
            let overwritten = slots
                .chunks_exact(PAGE)
                .filter(|page| page[0] != 0 && page.iter().all(|byte| *byte == page[0]))
                .count();
            // Without poison the old bytes are there, or this test would see nothing.
            assert_eq!(
                (overwritten > 0, old > 0),
                (poison, !poison),
                "{overwritten} overwritten, {old} pages of objects"
            );
        }
    }
}

#[test]
fn copies_of_independent_objects_end_in_another_order_where_that_is_asked_for() {
    let seed = Seed::new("order of copies");
    let overtakings = |name: &str, clock: Clock, change: fn(&mut SimOptions)| {
        let scratch = scratch(name);
        let mut options = SimOptions::default();
        options.seed = seed.value();
        change(&mut options);
        let device = SimDevice::with_clock(options, clock);
        let engine = open_with(one_shard(&scratch), device.clone(), DeviceOptions::default());
        let memories: Vec<_> = (0..64).map(|n| device_memory(&device, &payload(n, 5000))).collect();
        let batch = |memories: &[saltern::device::sim::SimMemory]| {
            (0..).zip(memories).map(|(n, memory)| (key(n), memory.buffer())).collect()
        };
        assert!(done(engine.store_from_device(batch(&memories))).results.iter().all(Result::is_ok));
        memories.iter().for_each(|memory| memory.write(&[0; 5000]));
        assert!(done(engine.load_to_device(batch(&memories))).results.iter().all(Result::is_ok));
        assert!((0..).zip(&memories).all(|(n, memory)| memory.read() == payload(n, 5000)));
        assert_eq!(device.counts(), (128, 0));
        device.overtakings()
    };
    for clock in [Clock::default, Clock::wall] {
        assert_eq!(overtakings("in-order", clock(), |_| {}), 0, "one direction's copies end in their order");
        assert!(overtakings("any-order", clock(), |options| options.reorder = true) > 0);
        assert!(overtakings("late", clock(), |options| options.late_one_in = 4) > 0);
    }
}

/// Objects of the test of batches: fewer than a shard has places for those of devices.
const SMALL_OBJECTS: u32 = 24;

#[test]
fn copies_of_small_objects_are_handed_over_together() {
    let scratch = scratch("batches");
    let device = SimDevice::new(SimOptions::default());
    let engine = open_with(one_shard(&scratch), device.clone(), DeviceOptions::default());
    let memories: Vec<_> = (0..SMALL_OBJECTS).map(|n| device_memory(&device, &payload(n.into(), 1000))).collect();
    let batch = |fence: &SimFence| {
        let gather = |memory| device.gather(&[(memory, 0..1000)], Some(fence));
        (0..).zip(&memories).map(|(n, memory)| (key(n), gather(memory))).collect()
    };
    // Behind one fence, so that all of them are there when the first copy may begin.
    let fence = SimFence::new();
    let stores = engine.store_from_device(batch(&fence));
    until("all stores wait for the fence", || {
        engine.status().shards[0].queues.active_stores == u64::from(SMALL_OBJECTS)
    });
    assert_eq!((device.counts().0, device.batches()), (0, 0));
    fence.signal();
    assert!(done(stores).results.iter().all(Result::is_ok));
    assert_eq!((device.counts().0, device.batches()), (SMALL_OBJECTS.into(), 1), "copies, and batches");
    memories.iter().for_each(|memory| memory.write(&[0; 1000]));
    let fence = SimFence::new();
    let loads = engine.load_to_device(batch(&fence));
    // Of queues each number is told by itself, so that one may be older than the other; and slots are taken before the reads begin.
    let are_ahead = || {
        let status = engine.status();
        let (queues, slots) = (status.shards[0].queues, status.devices[0].transit_used_bytes / PAGE);
        (queues.active_loads, queues.requests_in_flight, slots) == (SMALL_OBJECTS.into(), 0, SMALL_OBJECTS as usize)
    };
    until("all loads have been read ahead, and wait for the fence", || {
        are_ahead() && {
            std::thread::sleep(Duration::from_millis(20));
            are_ahead()
        }
    });
    assert_eq!(device.batches(), 1);
    fence.signal();
    assert!(done(loads).results.iter().all(Result::is_ok));
    assert_eq!((device.counts().0, device.batches()), ((2 * SMALL_OBJECTS).into(), 2), "copies, and batches");
    assert!((0..).zip(&memories).all(|(n, memory)| memory.read() == payload(n, 1000)));
}

/// The fixed buffers of each ring of this process, as the kernel lists them: address and length.
fn fixed_buffers() -> Vec<Vec<(usize, usize)>> {
    let mut rings = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").expect("readdir") {
        let entry = entry.expect("readdir");
        if std::fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().contains("io_uring")) {
            let about = Path::new("/proc/self/fdinfo").join(entry.file_name());
            let Ok(about) = std::fs::read_to_string(about) else { continue };
            let buffers = about.lines().skip_while(|line| !line.starts_with("UserBufs:")).skip(1);
            let parse = |line: &str| {
                let (address, len) = line.split_once(": 0x")?.1.split_once('/')?;
                Some((usize::from_str_radix(address, 16).ok()?, len.trim().parse().ok()?))
            };
            rings.push(buffers.map_while(parse).collect());
        }
    }
    rings
}

#[test]
fn slots_are_fixed_buffers_of_every_shards_ring() {
    const SHARDS: usize = 3;
    let scratch = scratch("fixed");
    let device = SimDevice::new(SimOptions::default());
    let (pools_of, pools) = Pools::new(&device);
    let mut config = config(scratch.path());
    config.shards = SHARDS;
    let engine = open_with(config, pools_of, small_device());
    if engine.status().shards.iter().any(|shard| !["cloned", "own"].contains(&shard.fixed_buffers)) {
        return eprintln!("skipped: this kernel pins no buffers for rings, or not so many bytes");
    }
    let rings = fixed_buffers();
    if rings.iter().all(Vec::is_empty) {
        return eprintln!("skipped: this kernel does not list the fixed buffers of rings");
    }
    let pools = pools.lock().expect("not poisoned");
    assert_eq!(pools.len(), 2 * SHARDS);
    for pool in &*pools {
        let (start, len) = pool.span();
        let know = |ring: &&Vec<(usize, usize)>| {
            ring.iter().any(|(at, bytes)| *at <= start as usize && start as usize + len <= at + bytes)
        };
        // Beside the shards' there may be the ring that the registration is cloned from.
        let know = rings.iter().filter(know).count();
        assert!(know >= SHARDS, "{know} rings know of {len} bytes at {start:?}: {rings:x?}");
    }
}

/// An engine of [`crowded_device`].
fn crowded(scratch: &Scratch, integrity: Integrity) -> (SimDevice, Engine) {
    let (sim, options) = crowded_device();
    let device = SimDevice::new(sim);
    let mut config = one_shard(scratch);
    config.depth = 64;
    config.integrity = integrity;
    let engine = open_with(config, device.clone(), options);
    (device, engine)
}

#[test]
fn a_large_load_has_its_turn_while_small_ones_keep_coming() {
    let scratch = scratch("loads-passed-by");
    let (device, engine) = crowded(&scratch, Integrity::Verify);
    put(&engine, &key(0), &payload(0, MIB)).expect("store");
    put(&engine, &key(1), &payload(1, CROWD_BYTES)).expect("store");
    let (memory, into) = (device.alloc(CROWD_BYTES), device.alloc(MIB));
    let report = beside_a_crowd(
        || engine.load_to_device(vec![(key(1), memory.buffer())]),
        |report| report.results[0].is_ok(),
        || engine.load_to_device(vec![(key(0), into.buffer())]),
    );
    assert!(matches!(report.results[..], [Ok(_)]), "{:?}", report.results);
    assert!(into.read() == payload(0, MIB));
    assert!(memory.read() == payload(1, CROWD_BYTES));
    assert_eq!(engine.status().devices[0].transit_used_bytes, 0, "slots are held");
    assert_books(&engine, scratch.path(), Layout::Fs);
}

#[test]
fn a_large_store_has_its_turn_while_small_ones_keep_coming() {
    const BYTES: usize = 2 * MIB + 5;
    let scratch = scratch("stores-passed-by");
    let (device, engine) = crowded(&scratch, Integrity::Store);
    let (memory, from) = (device_memory(&device, &payload(1, CROWD_BYTES)), device_memory(&device, &payload(0, BYTES)));
    let mut keys = 1..;
    let report = beside_a_crowd(
        || engine.store_from_device(vec![(key(keys.next().expect("endless")), memory.buffer())]),
        |report| report.results[0].is_ok(),
        || engine.store_from_device(vec![(key(0), from.buffer())]),
    );
    assert!(matches!(report.results[..], [Ok(_)]), "{:?}", report.results);
    assert_eq!(engine.status().devices[0].transit_used_bytes, 0, "slots are held");
    assert!(get(&engine, &key(0), BYTES).expect("load") == payload(0, BYTES));
    assert!((1..keys.start).all(|n| get(&engine, &key(n), CROWD_BYTES).expect("load") == payload(1, CROWD_BYTES)));
    assert_books(&engine, scratch.path(), Layout::Fs);
}
