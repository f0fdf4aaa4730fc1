//! Random batches in memory of a software device whose copies, direct transfers and fences fail by a seed, against a plain map.
//!
//! An operation answers what the map answers, or that the device has failed, and then nothing has changed. Never wrong bytes, an
//! object that was not acknowledged, a ticket that does not complete, a slot that is held, or books that differ from the disk.
//! `on_device.rs` runs the behaviour suite with copies that fail and go well when they are made again; here there are also those that
//! fail for good. `SALTERN_SEED=n` repeats the choices of a failed run, `SALTERN_LONG=1` makes more of them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use saltern::device::COPY_ATTEMPTS;
use saltern::device::sim::{Clock, SimDevice, SimFence, SimMemory, SimOptions};
use saltern::{DEPTH_RANGE, DeviceBuffer, Engine, Error, Integrity, Layout, LoadReport, StoreReport, Ticket};
use saltern_tests::{
    CHUNK, Deleted, Loaded, Model, Object, Scratch, Seed, Stored, assert_books_of, beside, device_memory, done,
    file_name, is_long, key, over, payload, small_device, unfinished,
};

/// Ends of blocks, chunks and pools of slots.
const SIZES: [usize; 10] = [0, 1, 4095, 4096, 10_000, CHUNK - 1, CHUNK, CHUNK + 1, 200_001, 9 * CHUNK];

const KEYS: u32 = 12;

/// Buffers handed to loads hold this before.
const UNTOUCHED: u8 = 0xee;

/// The caller's work that an object waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    None,
    /// Done when the engine has the object.
    Late,
    Fails,
    Never,
}

/// Key, its work, and whether its memory is pages of a larger block.
type One = (u32, Work, bool);

#[derive(Debug, Clone)]
enum Op {
    /// Stores with their size, and loads of other keys with whether the buffer has the object's size, at the same time. Closed while they are
    /// under way, or not.
    Move {
        stores: Vec<(One, usize)>,
        loads: Vec<(One, bool)>,
        closes: bool,
    },
    Delete(Vec<u32>),
    Reopen,
}

#[derive(Debug, Clone)]
struct Setup {
    volumes: usize,
    shards: usize,
    depth: usize,
    integrity: Integrity,
    /// The device's.
    direct: bool,
    reorder: bool,
    wall: bool,
    late_one_in: u32,
    fail_one_in: u32,
    /// No copy fails as often as it is made.
    none_for_good: bool,
    seed: u64,
}

fn setups() -> impl Strategy<Value = Setup> {
    let engine = (
        prop_oneof![Just((1_usize, 1_usize)), Just((1, 3)), Just((3, 3))],
        prop_oneof![Just(DEPTH_RANGE.0), Just(64)],
        prop::sample::select(&Integrity::ALL[..]),
    );
    let device = (
        any::<(bool, bool, bool, bool)>(),
        prop_oneof![Just(0_u32), Just(4), Just(30)],
        prop_oneof![1 => Just(0_u32), 1 => Just(1), 3 => Just(2), 4 => Just(4), 2 => Just(20)],
        any::<u64>(),
    );
    (engine, device).prop_map(|(engine, device)| {
        let ((volumes, shards), depth, integrity) = engine;
        let ((direct, reorder, wall, none_for_good), late_one_in, fail_one_in, seed) = device;
        Setup {
            volumes,
            shards,
            depth,
            integrity,
            direct,
            reorder,
            wall,
            late_one_in,
            fail_one_in,
            none_for_good,
            seed,
        }
    })
}

fn ops() -> impl Strategy<Value = Op> {
    let work = prop_oneof![
        60 => Just(Work::None),
        20 => Just(Work::Late),
        6 => Just(Work::Fails),
        1 => Just(Work::Never),
    ];
    let one = || (0..KEYS, work.clone(), any::<bool>());
    let size = prop_oneof![12 => 0..SIZES.len() - 1, 1 => Just(SIZES.len() - 1)];
    let stores = prop::collection::vec((one(), size), 0..10);
    let loads = prop::collection::vec((one(), prop::bool::weighted(0.95)), 0..12);
    prop_oneof![
        12 => (stores, loads, prop::bool::weighted(0.1)).prop_map(|(mut stores, mut loads, closes)| {
            // One store a key, and no load beside it: what is first then is anybody's guess.
            let mut keys = Vec::new();
            stores.retain(|((key, ..), _)| !keys.contains(key) && { keys.push(*key); true });
            loads.retain(|((key, ..), _)| !keys.contains(key));
            Op::Move { stores, loads, closes }
        }),
        4 => prop::collection::vec(0..KEYS, 1..5).prop_map(Op::Delete),
        1 => Just(Op::Reopen),
    ]
}

/// An object's memory on the device, and the fence that its copies wait for.
struct Lent {
    memory: SimMemory,
    /// Where its bytes are in `memory`, in order.
    parts: Vec<std::ops::Range<usize>>,
    work: Work,
    fence: Option<SimFence>,
}

impl Lent {
    fn new(device: &SimDevice, (_, work, in_pages): One, bytes: &[u8]) -> Self {
        let page = if in_pages { 4096 } else { bytes.len().max(1) };
        // Every other page, from the last to the first.
        let pages = bytes.len().div_ceil(page);
        let part = |n: usize| {
            let from = 2 * (pages - 1 - n) * page;
            from..from + page.min(bytes.len() - n * page)
        };
        let parts: Vec<_> = (0..pages).map(part).collect();
        let memory = device_memory(device, &vec![UNTOUCHED; 2 * pages * page]);
        let lent = Self { memory, parts, work, fence: (work != Work::None).then(SimFence::new) };
        lent.write(bytes);
        lent
    }

    fn write(&self, bytes: &[u8]) {
        let (mut all, mut from) = (self.memory.read(), 0);
        for part in &self.parts {
            all[part.clone()].copy_from_slice(&bytes[from..from + part.len()]);
            from += part.len();
        }
        self.memory.write(&all);
    }

    /// Its bytes; what lies between its pages is as it was.
    fn read(&self) -> Vec<u8> {
        let mut all = self.memory.read();
        let bytes = self.parts.iter().flat_map(|part| all[part.clone()].to_vec()).collect();
        self.parts.iter().for_each(|part| all[part.clone()].fill(UNTOUCHED));
        assert!(all.iter().all(|byte| *byte == UNTOUCHED), "bytes beside the object's were written");
        bytes
    }

    fn buffer(&self, device: &SimDevice) -> DeviceBuffer {
        let parts: Vec<_> = self.parts.iter().map(|part| (&self.memory, part.clone())).collect();
        device.gather(&parts, self.fence.as_ref())
    }

    /// What the caller's work comes to.
    fn settle(&self) {
        match (&self.fence, self.work) {
            (Some(fence), Work::Late) => fence.signal(),
            (Some(fence), Work::Fails) => fence.fail(),
            _ => {}
        }
    }
}

/// What was seen in all cases.
#[derive(Default)]
struct Seen {
    good: Cell<u64>,
    /// Operations that failed by a copy, and by a fence.
    copies: Cell<u64>,
    fences: Cell<u64>,
    /// Copies that failed, and those of them that were made again.
    failures: Cell<u64>,
    repeats: Cell<u64>,
    overtakings: Cell<u64>,
    direct_bytes: Cell<u64>,
}

fn add(to: &Cell<u64>, count: u64) {
    to.set(to.get() + count);
}

/// The engine and the map, side by side.
struct Pair<'a> {
    engine: Option<Engine>,
    device: SimDevice,
    setup: Setup,
    dirs: Vec<PathBuf>,
    model: Model,
    stores: u64,
    seen: &'a Seen,
}

impl<'a> Pair<'a> {
    fn new(setup: Setup, dir: &std::path::Path, seen: &'a Seen) -> Self {
        let mut options = SimOptions::default();
        (options.seed, options.reorder, options.direct) = (setup.seed, setup.reorder, setup.direct);
        (options.fail_one_in, options.late_one_in) = (setup.fail_one_in, setup.late_one_in);
        options.fail_in_a_row = if setup.none_for_good { COPY_ATTEMPTS - 1 } else { 0 };
        let clock = if setup.wall { Clock::wall() } else { Clock::default() };
        let device = SimDevice::with_clock(options, clock);
        let dirs = beside(&dir.join("volume"), setup.volumes);
        let mut pair = Self { engine: None, device, setup, dirs, model: Model::new(None), stores: 0, seen };
        pair.open();
        pair
    }

    fn open(&mut self) {
        let mut config = over(&self.dirs);
        config.shards = self.setup.shards;
        config.depth = self.setup.depth;
        config.integrity = self.setup.integrity;
        let engine = Engine::open(config).expect("open");
        let report = engine.wait_recovered();
        assert_eq!((report.objects, report.bytes), (self.model.objects().count() as u64, self.model.bytes()));
        assert_eq!((report.foreign.count, report.unfinished), (0, 0));
        let mut options = small_device();
        options.fence_deadline = Duration::from_millis(50);
        options.close_deadline = Duration::from_secs(60);
        engine.attach_device(Arc::new(self.device.clone()), options).expect("attach");
        self.engine = Some(engine);
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("open")
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Move { stores, loads, closes } => self.move_both(stores, loads, *closes),
            Op::Delete(keys) => self.delete(keys),
            Op::Reopen => {
                self.close();
                self.open();
            }
        }
        assert_eq!(self.engine().status().devices[0].transit_used_bytes, 0, "slots are held");
        assert_eq!(self.device.allocated_bytes(), 0, "memory of the device is held");
        assert_eq!(self.engine().usage().total_bytes_used, self.model.bytes());
    }

    fn move_both(&mut self, stores: &[(One, usize)], loads: &[(One, bool)], closes: bool) {
        let stored: Vec<_> = stores.iter().map(|(one, size)| self.lend_store(*one, SIZES[*size])).collect();
        let loaded: Vec<_> = loads.iter().map(|(one, fits)| self.lend_load(*one, *fits)).collect();
        let store_batch = stored.iter().map(|(key_of, _, lent)| (key(*key_of), lent.buffer(&self.device))).collect();
        let load_batch = loaded.iter().map(|(key_of, lent)| (key(*key_of), lent.buffer(&self.device))).collect();
        let store: Ticket<StoreReport> = self.engine().store_from_device(store_batch);
        let load: Ticket<LoadReport> = self.engine().load_to_device(load_batch);
        for (_, lent) in loaded.iter().filter(|(_, lent)| lent.fence.is_some()) {
            assert!(lent.read().iter().all(|byte| *byte == UNTOUCHED), "written before the caller's work was done");
        }
        // The objects' bytes are there only when the caller's work is done.
        for (_, object, lent) in stored.iter().filter(|(_, _, lent)| lent.fence.is_some()) {
            lent.write(&payload(object.seed, object.bytes as usize));
        }
        let lent = stored.iter().map(|(_, _, lent)| lent).chain(loaded.iter().map(|(_, lent)| lent));
        lent.for_each(Lent::settle);
        if closes {
            let engine = self.engine.take().expect("open");
            self.count_repeats(&engine);
            engine.close();
        }
        let (stores, loads) = (done(store), done(load));
        assert_eq!((stores.results.len(), loads.results.len()), (stored.len(), loaded.len()));
        // Buffers hold memory of the device.
        drop((stores.buffers, loads.buffers));
        // Loads first: the stores are of other keys.
        for (result, (key, lent)) in loads.results.iter().zip(&loaded) {
            self.check_load(*key, lent, result, closes);
        }
        for (result, (key, object, lent)) in stores.results.iter().zip(&stored) {
            self.check_store(*key, *object, lent, result, closes);
        }
        drop((stored, loaded));
        if closes {
            self.check_disk();
            self.open();
        }
    }

    fn lend_store(&mut self, one: One, bytes: usize) -> (u32, Object, Lent) {
        self.stores += 1;
        let object = Object { bytes: bytes as u64, seed: self.stores };
        let is_late = one.1 != Work::None;
        let content = if is_late { vec![UNTOUCHED; bytes] } else { payload(object.seed, bytes) };
        (one.0, object, Lent::new(&self.device, one, &content))
    }

    fn lend_load(&self, one: One, fits: bool) -> (u32, Lent) {
        let bytes = self.model.object(one.0 as usize).map_or(5000, |object| object.bytes as usize);
        let bytes = if fits { bytes } else { bytes + 4096 };
        (one.0, Lent::new(&self.device, one, &vec![UNTOUCHED; bytes]))
    }

    /// Whether the device, or the end of the engine, was in the way.
    fn has_failed(&self, lent: &Lent, error: &Error, closes: bool) -> bool {
        match error {
            Error::Device { op: "fence", .. } => {
                // A machine that is busy enough is late with any fence.
                assert_ne!(lent.work, Work::None, "{error}");
                add(&self.seen.fences, 1);
                true
            }
            Error::Device { .. } => {
                assert!(self.setup.fail_one_in > 0 && !self.setup.none_for_good, "{error}");
                add(&self.seen.copies, 1);
                true
            }
            Error::Closed => closes,
            _ => false,
        }
    }

    fn check_store(&mut self, key: u32, object: Object, lent: &Lent, result: &Result<u64, Error>, closes: bool) {
        assert!(lent.read() == payload(object.seed, object.bytes as usize), "a store changed its memory");
        if let Err(error) = result
            && self.has_failed(lent, error, closes)
        {
            return;
        }
        assert!(
            object.bytes == 0 || matches!(result, Ok(0)) || !matches!(lent.work, Work::Fails | Work::Never),
            "object {key}: stored, although the caller's work was not done"
        );
        match (self.model.store(key as usize, object), result) {
            (Stored::Added(bytes), Ok(added)) => assert_eq!(*added, bytes, "object {key}"),
            (Stored::Present, Ok(0)) => {}
            (expected, other) => panic!("object {key}: {object:?}: {expected:?}, not {other:?}"),
        }
        add(&self.seen.good, 1);
    }

    fn check_load(&self, key: u32, lent: &Lent, result: &Result<u64, Error>, closes: bool) {
        let bytes = lent.read();
        if let Err(error) = result
            && self.has_failed(lent, error, closes)
        {
            return;
        }
        match (self.model.load(key as usize, bytes.len() as u64), result) {
            (Loaded::Bytes(object), Ok(loaded)) => {
                assert!(
                    object.bytes == 0 || !matches!(lent.work, Work::Fails | Work::Never),
                    "object {key}: loaded, although the caller's work was not done"
                );
                assert_eq!(*loaded, object.bytes, "object {key}");
                assert!(bytes == payload(object.seed, object.bytes as usize), "object {key}: wrong bytes");
                return add(&self.seen.good, 1);
            }
            (Loaded::WrongSize(size), Err(Error::WrongSize { object_bytes, .. })) => assert_eq!(*object_bytes, size),
            (Loaded::Miss, Err(Error::NotFound)) => {}
            (expected, other) => panic!("object {key}: {expected:?}, not {other:?}"),
        }
        assert!(bytes.iter().all(|byte| *byte == UNTOUCHED), "object {key}: {result:?}, and yet it was written");
    }

    fn delete(&mut self, keys: &[u32]) {
        let named: Vec<_> = keys.iter().map(|n| key(*n)).collect();
        let report = done(self.engine().delete(&named));
        for (key, result) in keys.iter().zip(&report.results) {
            match (self.model.delete(*key as usize), result) {
                (Deleted::Freed(bytes), Ok(freed)) => assert_eq!(*freed, bytes),
                (Deleted::Miss, Err(Error::NotFound)) => {}
                (expected, other) => panic!("object {key}: {expected:?}, not {other:?}"),
            }
        }
    }

    fn close(&mut self) {
        let engine = self.engine.take().expect("open");
        assert_books_of(&engine, &self.dirs, Layout::Fs);
        self.count_repeats(&engine);
        engine.close();
        self.check_disk();
    }

    fn count_repeats(&self, engine: &Engine) {
        add(&self.seen.repeats, engine.status().devices[0].repeated_copies);
    }

    /// Compares what is on disk, name by name and byte by byte.
    fn check_disk(&self) {
        assert!(self.dirs.iter().all(|dir| unfinished(dir).is_empty()), "unfinished stores are left");
        let file = |n: usize| file_name(Layout::Fs, &key(n as u32));
        let expected: BTreeMap<_, _> = self.model.objects().map(|(n, object)| (file(n), object)).collect();
        let mut found = 0;
        for dir in &self.dirs {
            for entry in fs::read_dir(dir).expect("readdir").map(|entry| entry.expect("readdir").path()) {
                if entry.is_file() {
                    let name = entry.file_name().expect("a name").to_string_lossy().into_owned();
                    let Some(object) = expected.get(&name) else { panic!("{name} was never acknowledged") };
                    let bytes = fs::read(&entry).expect("read");
                    assert!(bytes == payload(object.seed, object.bytes as usize), "{name}: wrong bytes on disk");
                    found += 1;
                }
            }
        }
        assert_eq!(found, expected.len(), "objects on disk");
    }

    fn finish(mut self) {
        self.close();
        add(&self.seen.failures, self.device.counts().1);
        add(&self.seen.overtakings, self.device.overtakings());
        add(&self.seen.direct_bytes, self.device.direct_bytes());
    }
}

#[test]
fn a_device_that_fails_changes_no_answer_but_to_an_error_of_its_own() {
    let seed = Seed::new("a_device_that_fails");
    let seen = Seen::default();
    let cases = (setups(), prop::collection::vec(ops(), 1..16));
    seed.try_cases(if is_long() { 5_000 } else { 150 }, 100, cases, |(setup, ops)| {
        let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "device-model");
        let mut pair = Pair::new(setup, scratch.path(), &seen);
        for op in &ops {
            pair.apply(op);
        }
        pair.finish();
    });
    let Seen { good, copies, fences, failures, repeats, overtakings, direct_bytes } = seen;
    let seen = [good, copies, fences, failures, repeats, overtakings, direct_bytes].map(Cell::into_inner);
    eprintln!(
        "good, failed by copies, failed by fences, failures of the device, copies made again, overtakings, direct bytes: {seen:?}"
    );
    let enough = [100, 10, 10, 100, 100, 1, 0];
    assert!(
        seen.iter().zip(enough).all(|(count, enough)| *count >= enough),
        "{seen:?}: what this is about did not happen, or less than {enough:?} times"
    );
}
