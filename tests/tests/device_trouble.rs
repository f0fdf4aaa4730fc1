//! Devices that do not do what they should: an attach that fails half way, a caller's work that is never done, copies that never
//! end, that fail or are lost, files that are not direct although their volume is.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use saltern::device::sim::{SimDevice, SimFence, SimMemory, SimOptions};
use saltern::device::{
    COPY_ATTEMPTS, CopyDone, CopyEngine, Device, DeviceCopy, DeviceError, DeviceId, DeviceOptions, DirectOp, Direction,
    Fence, Place, Registration, Route, RouteChoice,
};
use saltern::{Config, DeviceBuffer, Engine, Error, Integrity, Layout, Pool};
use saltern_tests::{
    CHUNK, CROWD_BYTES, Scratch, assert_books, beside_a_crowd, config, crowded_device, device_memory, done, get, key,
    payload, put, small_device, unfinished, until,
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

/// What is to become of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Good,
    Fails,
    /// It is not ended before the test says so, and then fails.
    FailsLate,
    Lost,
}

/// A copy as it was submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    direction: Direction,
    host: usize,
    len: usize,
    /// Of its first block.
    address: u64,
}

type Which = Box<dyn Fn(&DeviceCopy) -> bool + Send + Sync>;

/// What the copiers of a device do with copies, and what they were given.
struct Fates {
    fate: Box<dyn Fn(&DeviceCopy) -> Fate + Send + Sync>,
    /// Which of those that end late may end now.
    may_end: Mutex<Which>,
    seen: Mutex<Vec<Seen>>,
}

impl Fates {
    fn new(fate: impl Fn(&DeviceCopy) -> Fate + Send + Sync + 'static) -> Arc<Self> {
        let may_end: Which = Box::new(|_| false);
        Arc::new(Self { fate: Box::new(fate), may_end: Mutex::new(may_end), seen: Mutex::default() })
    }

    fn end_late(&self, which: impl Fn(&DeviceCopy) -> bool + Send + Sync + 'static) {
        *self.may_end.lock().expect("not poisoned") = Box::new(which);
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("not poisoned").clone()
    }
}

/// The software device, with trouble.
struct Odd {
    device: SimDevice,
    /// Memory that it still knows.
    registered: Arc<AtomicUsize>,
    /// Which registration, and which queue of copies, it refuses, counted from 0.
    refuses: [Option<usize>; 2],
    asked: [AtomicUsize; 2],
    /// The only directory whose files go directly, if there is one.
    direct_dir: Option<PathBuf>,
    /// One file of so many is not direct when it is asked about; one direct transfer of so many fails.
    refused_files_one_in: usize,
    failed_directs_one_in: usize,
    fates: Arc<Fates>,
}

impl Odd {
    fn new(device: &SimDevice) -> Self {
        Self {
            device: device.clone(),
            registered: Arc::default(),
            refuses: [None, None],
            asked: Default::default(),
            direct_dir: None,
            refused_files_one_in: usize::MAX,
            failed_directs_one_in: usize::MAX,
            fates: Fates::new(|_| Fate::Good),
        }
    }

    fn with_fates(device: &SimDevice, fates: &Arc<Fates>) -> Self {
        Self { fates: fates.clone(), ..Self::new(device) }
    }

    fn ask(&self, what: usize) -> Result<(), DeviceError> {
        match Some(self.asked[what].fetch_add(1, Ordering::Relaxed)) == self.refuses[what] {
            true => Err(DeviceError::new("ask", "the test refuses this one")),
            false => Ok(()),
        }
    }
}

struct Counted(Arc<AtomicUsize>, #[expect(dead_code, reason = "kept, not looked at")] Registration);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Device for Odd {
    fn id(&self) -> DeviceId {
        self.device.id()
    }

    fn name(&self) -> String {
        "odd device".into()
    }

    fn register(&self, pool: &Pool) -> Result<Registration, DeviceError> {
        self.ask(0)?;
        self.registered.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Counted(self.registered.clone(), self.device.register(pool)?)))
    }

    fn route(&self, dir: &Path, choice: RouteChoice) -> Result<Route, DeviceError> {
        let is_direct = self.direct_dir.as_deref().is_none_or(|direct| direct == dir);
        if is_direct { self.device.route(dir, choice) } else { self.device.route(dir, RouteChoice::Pipeline) }
    }

    fn copier(&self) -> Result<Box<dyn CopyEngine>, DeviceError> {
        self.ask(1)?;
        let (files, directs) = (self.refused_files_one_in, self.failed_directs_one_in);
        let (inner, fates) = (self.device.copier()?, self.fates.clone());
        let (asked, moved, failed, late) = (0, 0, Vec::new(), Vec::new());
        Ok(Box::new(OddCopier { inner, files, directs, asked, moved, failed, fates, late }))
    }

    fn poisons_slots(&self) -> bool {
        self.device.poisons_slots()
    }
}

struct OddCopier {
    inner: Box<dyn CopyEngine>,
    files: usize,
    directs: usize,
    asked: usize,
    moved: usize,
    failed: Vec<CopyDone>,
    fates: Arc<Fates>,
    late: Vec<DeviceCopy>,
}

fn as_told() -> DeviceError {
    DeviceError::new("as told", "the test lets it fail")
}

impl CopyEngine for OddCopier {
    fn has_happened(&mut self, fence: &Fence) -> Result<bool, DeviceError> {
        self.inner.has_happened(fence)
    }

    fn submit(&mut self, copy: DeviceCopy) {
        let Place::Device(ranges) = &copy.place else { unreachable!("no loopback here") };
        let (host, len, address) = (copy.host.ptr() as usize, copy.host.len(), ranges[0].address);
        let seen = Seen { direction: copy.direction, host, len, address };
        self.fates.seen.lock().expect("not poisoned").push(seen);
        match (self.fates.fate)(&copy) {
            Fate::Good => self.inner.submit(copy),
            Fate::Fails => self.failed.push(CopyDone::new(copy.token, Err(as_told()))),
            Fate::FailsLate => self.late.push(copy),
            Fate::Lost => self.failed.push(CopyDone::lost(copy.token, as_told())),
        }
    }

    fn admit_direct(&mut self, _: &Rc<OwnedFd>) -> Result<(), DeviceError> {
        self.asked += 1;
        match self.asked.is_multiple_of(self.files) {
            true => Err(DeviceError::new("register", "the test says that this file is not direct")),
            false => Ok(()),
        }
    }

    fn submit_direct(&mut self, op: DirectOp) {
        self.moved += 1;
        match self.moved.is_multiple_of(self.directs) {
            true => self.failed.push(CopyDone::new(op.token, Err(as_told()))),
            false => self.inner.submit_direct(op),
        }
    }

    fn flush(&mut self) {
        self.inner.flush();
    }

    fn poll(&mut self, each: &mut dyn FnMut(CopyDone)) {
        self.failed.drain(..).for_each(&mut *each);
        let may_end = self.fates.may_end.lock().expect("not poisoned");
        let ended = self.late.extract_if(.., |copy| may_end(copy));
        ended.for_each(|copy| each(CopyDone::new(copy.token, Err(as_told()))));
        self.inner.poll(each);
    }

    fn direct_limit(&self) -> usize {
        self.inner.direct_limit()
    }
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
