//! Random batches against a plain map: they never differ, in bytes or in usage. A plain test: each case draws its cell, adapter, layout and
//! number of volumes, beside everything else that can be set.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;
use saltern::{
    Adapter, Config, DEPTH_RANGE, DirectIo, Discovery, Durability, Engine, Error, FsAdapter, Integrity, Layout,
    NixlDynamicAdapter, ObjectKey,
};
use saltern_tests::{
    Deleted, Lender, Loaded, Memory, Model, Object, Recorder, Seed, Stored, assert_books_of, beside, done, file_name,
    over, payload, unfinished, varied,
};

use crate::{is_long, scratch};

const MAX_OBJECT_BYTES: usize = (5 << 20) + 3;

/// Ends of blocks, pages and segments, and one byte to either side. The last one is more than the engine takes.
const SIZES: [usize; 14] = [
    0,
    1,
    511,
    512,
    513,
    4095,
    4096,
    4097,
    65_536,
    100_001,
    256 << 10,
    (1 << 20) + 1,
    MAX_OBJECT_BYTES,
    MAX_OBJECT_BYTES + 1,
];

/// A capacity that is never reached.
const AMPLE: u64 = 1 << 40;

/// Number of keys that `varied` gives.
const KEYS: usize = 14;

/// Buffers handed to loads hold this before.
const UNTOUCHED: u8 = 0xee;

/// Size of the buffer for a load, against the object's.
#[derive(Debug, Clone, Copy)]
enum Fit {
    Exact,
    Less(usize),
    More(usize),
}

impl Fit {
    /// A key that is not there has to fit something, too.
    fn buffer_bytes(self, object: Option<Object>) -> usize {
        let bytes = object.map_or(100, |object| object.bytes as usize);
        match self {
            Self::Exact => bytes,
            Self::Less(by) => bytes.saturating_sub(by),
            Self::More(by) => bytes + by,
        }
    }
}

#[derive(Debug, Clone)]
enum Op {
    /// Key, index in `SIZES`, memory.
    Store(Vec<(usize, usize, Memory)>),
    Load(Vec<(usize, Fit, Memory)>),
    LookupAndPin(Vec<usize>),
    Unpin(Vec<usize>),
    Delete(Vec<usize>),
    Reopen,
}

#[derive(Debug, Clone, Copy)]
struct Setup {
    layout: Layout,
    shards: usize,
    capacity: Option<u64>,
    segment_bytes: usize,
    durability: Durability,
    direct_io: DirectIo,
    depth: usize,
    integrity: Integrity,
    spare_bytes: u64,
    open_files: Option<usize>,
    volumes: usize,
}

impl Setup {
    /// Through the adapter of the layout.
    fn open(self, dirs: &[PathBuf]) -> Box<dyn Adapter> {
        let config = self.config(dirs);
        match self.layout {
            Layout::Fs | Layout::Fs3 => Box::new(FsAdapter::open(config).expect("open")),
            _ => Box::new(NixlDynamicAdapter::open(config).expect("open")),
        }
    }

    fn asks(self) -> bool {
        !matches!(self.layout, Layout::Fs | Layout::Fs3)
    }

    fn is_racy(self) -> bool {
        self.asks() && self.capacity.is_some_and(|bytes| bytes < AMPLE)
    }

    fn config(self, dirs: &[PathBuf]) -> Config {
        let mut config = over(dirs);
        if self.asks() {
            config.discovery = Discovery::ScanAndAsk;
        }
        config.layout = self.layout;
        config.shards = self.shards;
        config.capacity_bytes = self.capacity;
        config.segment_bytes = self.segment_bytes;
        config.pool_bytes = config.bounce_bytes() + (12 << 20);
        config.depth = self.depth;
        config.integrity = self.integrity;
        config.spare_bytes = self.spare_bytes;
        config.open_files = self.open_files;
        config.durability = self.durability;
        config.direct_io = self.direct_io;
        config.max_object_bytes = MAX_OBJECT_BYTES as u64;
        config.pin_lease = Duration::from_secs(3600);
        config
    }
}

fn setups() -> impl Strategy<Value = Setup> {
    let volume = (
        prop::sample::select(&Layout::ALL[..]),
        prop_oneof![Just(None), Just(Some(0)), Just(Some(200_000)), Just(Some(6 << 20))],
        prop_oneof![4 => Just(Durability::None), 1 => Just(Durability::Data), 1 => Just(Durability::Full)],
        prop_oneof![4 => Just(DirectIo::Auto), 1 => Just(DirectIo::Off)],
    );
    let shards = (
        prop_oneof![Just((1_usize, 1_usize)), Just((3, 1)), Just((1, 3)), Just((4, 3))],
        prop_oneof![Just(64_usize << 10), Just(256 << 10), Just(1 << 20)],
        prop_oneof![Just(DEPTH_RANGE.0), Just(64)],
    );
    let files = (
        prop::sample::select(&[Integrity::Off, Integrity::Store, Integrity::Verify][..]),
        prop_oneof![1 => Just(0), 1 => Just(300_000), 3 => Just(1 << 30)],
        prop_oneof![Just(Some(0)), Just(Some(3)), Just(None)],
    );
    (volume, shards, files).prop_map(|(volume, shards, files)| {
        let (layout, capacity, durability, direct_io) = volume;
        let ((shards, volumes), segment_bytes, depth) = shards;
        let is_shared = !matches!(layout, Layout::Fs | Layout::Fs3);
        // A capacity is mandatory there.
        let capacity = if is_shared { Some(capacity.unwrap_or(AMPLE).max(1)) } else { capacity };
        let (integrity, spare_bytes, open_files) = files;
        Setup {
            layout,
            shards,
            capacity,
            segment_bytes,
            durability,
            direct_io,
            depth,
            integrity,
            spare_bytes,
            open_files,
            volumes,
        }
    })
}

fn memories() -> impl Strategy<Value = Memory> {
    let offsets = || prop_oneof![Just(0_usize), Just(512), Just(4095), 0..4096_usize];
    prop_oneof![
        2 => Just(Memory::Heap),
        1 => Just(Memory::Pool),
        2 => offsets().prop_map(Memory::Foreign),
        2 => offsets().prop_map(Memory::Registered),
    ]
}

fn batches<T: Clone + std::fmt::Debug>(of: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    prop::collection::vec(of, 0..7)
}

fn ops() -> impl Strategy<Value = Op> {
    let keys = || 0..KEYS;
    // Large objects are rare, or the disk is all that this measures.
    let sizes = prop_oneof![24 => 0..SIZES.len() - 3, 2 => Just(SIZES.len() - 3), 1 => SIZES.len() - 2..SIZES.len()];
    let fits = prop_oneof![
        6 => Just(Fit::Exact),
        1 => prop_oneof![Just(1_usize), Just(4096), 1..8192_usize].prop_map(Fit::Less),
        1 => prop_oneof![Just(1_usize), Just(4096), 1..8192_usize].prop_map(Fit::More),
    ];
    prop_oneof![
        6 => batches((keys(), sizes, memories())).prop_map(Op::Store),
        5 => batches((keys(), fits, memories())).prop_map(Op::Load),
        2 => batches(keys()).prop_map(Op::LookupAndPin),
        3 => batches(keys()).prop_map(Op::Unpin),
        3 => batches(keys()).prop_map(Op::Delete),
        1 => Just(Op::Reopen),
    ]
}

/// The engine and the map, side by side.
struct Pair<'a> {
    adapter: Option<Box<dyn Adapter>>,
    heard: std::sync::Arc<Recorder>,
    setup: Setup,
    dirs: Vec<PathBuf>,
    keys: Vec<ObjectKey>,
    model: Model,
    lender: &'a mut Lender,
    /// Every store brings bytes of its own, so that it shows which one won.
    stores: u64,
    /// Bytes of the pool that are in use while nothing is done.
    pool_bytes: usize,
}

impl<'a> Pair<'a> {
    fn new(setup: Setup, dir: PathBuf, lender: &'a mut Lender) -> Self {
        let (keys, model) = (varied(setup.layout), Model::new(setup.capacity));
        let dirs = beside(&dir, setup.volumes);
        let heard = Recorder::new();
        let mut pair = Self { adapter: None, heard, setup, dirs, keys, model, lender, stores: 0, pool_bytes: 0 };
        pair.open();
        pair
    }

    fn engine(&self) -> &Engine {
        self.adapter.as_ref().expect("open").engine()
    }

    fn open(&mut self) {
        // In whatever order.
        self.dirs.rotate_left(self.stores as usize % self.setup.volumes);
        let adapter = self.setup.open(&self.dirs);
        let engine = adapter.engine();
        let report = engine.wait_recovered();
        assert_eq!((report.objects, report.bytes), (self.model.objects().count() as u64, self.model.bytes()));
        assert_eq!((report.foreign.count, report.unfinished), (0, 0));
        self.lender.register(engine);
        self.heard = Recorder::new();
        engine.subscribe(self.heard.clone()).expect("subscribe");
        self.pool_bytes = engine.pool().status().used_bytes;
        self.adapter = Some(adapter);
    }

    fn apply(&mut self, op: &Op) {
        match op {
            // Where the disk is asked, shards ask side by side, and whoever is first gets the last room.
            Op::Store(batch) if self.setup.is_racy() => batch.chunks(1).for_each(|one| self.store(one)),
            Op::Store(batch) => self.store(batch),
            Op::Load(batch) => self.load(batch),
            Op::LookupAndPin(keys) => {
                let expected: Vec<_> = keys.iter().map(|key| self.model.lookup_and_pin(*key)).collect();
                assert_eq!(done(self.engine().lookup_and_pin(&self.named(keys))).sizes, expected);
            }
            Op::Unpin(keys) => {
                let expected = keys.iter().filter(|key| self.model.unpin(**key)).count();
                assert_eq!(self.engine().unpin(&self.named(keys)), expected, "pins released");
            }
            Op::Delete(keys) => self.delete(keys),
            Op::Reopen => {
                self.close();
                self.model.reopen();
                self.open();
            }
        }
        self.check_usage();
    }

    fn named(&self, keys: &[usize]) -> Vec<ObjectKey> {
        keys.iter().map(|key| self.keys[*key].clone()).collect()
    }

    fn store(&mut self, batch: &[(usize, usize, Memory)]) {
        let (mut lent, mut loans) = (Vec::new(), Vec::new());
        for (key, size, memory) in batch {
            self.stores += 1;
            let content = payload(self.stores, SIZES[*size]);
            let (buffer, loan) = self.lender.lend(self.adapter.as_ref().expect("open").engine(), *memory, &content);
            lent.push((self.keys[*key].clone(), buffer));
            loans.push((*key, Object { bytes: content.len() as u64, seed: self.stores }, loan));
        }
        let report = done(self.engine().store(lent));
        assert_eq!((report.results.len(), report.buffers.len()), (loans.len(), loans.len()));
        for ((result, buffer), (key, object, loan)) in report.results.iter().zip(report.buffers).zip(loans) {
            self.check_store(key, object, result);
            let bytes = loan.back(buffer.expect("the buffer comes back"));
            assert!(bytes == payload(object.seed, object.bytes as usize), "a store changed its buffer");
        }
    }

    fn check_store(&mut self, key: usize, object: Object, result: &Result<u64, Error>) {
        if object.bytes > MAX_OBJECT_BYTES as u64 {
            match result {
                Err(Error::TooLarge { bytes, .. }) => assert_eq!(*bytes, object.bytes),
                Ok(0) if self.model.object(key).is_some() => {}
                other => panic!("{}: too large: {other:?}", self.keys[key]),
            }
            return;
        }
        match (self.model.store(key, object), result) {
            (Stored::Added(bytes), Ok(added)) => assert_eq!(*added, bytes, "{}", self.keys[key]),
            (Stored::Present, Ok(0)) => {}
            (Stored::Full, Err(Error::Full { needed, free, capacity })) => {
                assert_eq!((*needed, Some(*capacity)), (object.bytes, self.setup.capacity));
                assert!(free < needed);
            }
            (expected, other) => panic!("{}: {object:?}: {expected:?}, not {other:?}", self.keys[key]),
        }
    }

    fn load(&mut self, batch: &[(usize, Fit, Memory)]) {
        let (mut lent, mut loans) = (Vec::new(), Vec::new());
        for (key, fit, memory) in batch {
            let content = vec![UNTOUCHED; fit.buffer_bytes(self.model.object(*key))];
            let (buffer, loan) = self.lender.lend(self.adapter.as_ref().expect("open").engine(), *memory, &content);
            lent.push((self.keys[*key].clone(), buffer));
            loans.push((*key, content.len() as u64, loan));
        }
        let report = done(self.engine().load(lent));
        assert_eq!((report.results.len(), report.buffers.len()), (loans.len(), loans.len()));
        for ((result, buffer), (key, buffer_bytes, loan)) in report.results.iter().zip(report.buffers).zip(loans) {
            let bytes = loan.back(buffer.expect("the buffer comes back"));
            let name = &self.keys[key];
            match (self.model.load(key, buffer_bytes), result) {
                (Loaded::Bytes(object), Ok(loaded)) => {
                    assert_eq!(*loaded, object.bytes, "{name}");
                    assert!(bytes == payload(object.seed, object.bytes as usize), "{name}: wrong bytes");
                    continue;
                }
                (Loaded::WrongSize(size), Err(Error::WrongSize { object_bytes, buffer_bytes: given })) => {
                    assert_eq!((*object_bytes, *given), (size, buffer_bytes), "{name}");
                }
                (Loaded::Miss, Err(Error::NotFound)) => {}
                (expected, other) => panic!("{name}: buffer of {buffer_bytes}: {expected:?}, not {other:?}"),
            }
            assert!(bytes.iter().all(|byte| *byte == UNTOUCHED), "{name}: {result:?}, and yet the buffer was written");
        }
    }

    fn delete(&mut self, keys: &[usize]) {
        let report = done(self.engine().delete(&self.named(keys)));
        assert_eq!(report.results.len(), keys.len());
        for (key, result) in keys.iter().zip(&report.results) {
            match (self.model.delete(*key), result) {
                (Deleted::Freed(bytes), Ok(freed)) => assert_eq!(*freed, bytes),
                (Deleted::Pinned(expected), Err(Error::Pinned { pins, loads: 0 })) => assert_eq!(*pins, expected),
                (Deleted::Miss, Err(Error::NotFound)) => {}
                (expected, other) => panic!("{}: {expected:?}, not {other:?}", self.keys[*key]),
            }
        }
    }

    fn check_usage(&self) {
        let usage = self.engine().usage();
        let by_salt: BTreeMap<String, u64> =
            usage.bytes_by_salt.iter().map(|(salt, bytes)| (salt.to_string(), *bytes)).collect();
        assert_eq!(by_salt, self.model.bytes_by_salt(&self.keys));
        assert_eq!(usage.total_bytes_used, self.model.bytes());
        assert_eq!(usage.total_capacity_bytes, self.setup.capacity.unwrap_or(0));
        let fraction = match self.setup.capacity {
            None | Some(0) => -1.0,
            Some(capacity) => usage.total_bytes_used as f64 / capacity as f64,
        };
        assert_eq!(usage.usage_fraction, fraction);
    }

    /// Closes, and compares what is on disk, name by name and byte by byte, and what the listener heard.
    fn close(&mut self) {
        let adapter = self.adapter.take().expect("open");
        let engine = adapter.engine();
        let disk = assert_books_of(engine, &self.dirs, self.setup.layout);
        assert_eq!(engine.pool().status().used_bytes, self.pool_bytes, "buffers of the pool are back");
        adapter.close();
        assert!(self.dirs.iter().all(|dir| unfinished(dir).is_empty()));
        let expected: BTreeMap<String, u64> =
            self.model.objects().map(|(key, object)| (self.file(key), object.bytes)).collect();
        assert_eq!(disk.files, expected);
        assert_eq!(disk.others, [""; 0].map(PathBuf::from));
        for (key, object) in self.model.objects() {
            let found = self.dirs.iter().find_map(|dir| fs::read(dir.join(self.file(key))).ok()).expect("read");
            assert!(found == payload(object.seed, object.bytes as usize), "{}: wrong bytes on disk", self.keys[key]);
        }
        assert_eq!(self.heard.resets(), 0);
        let heard: BTreeMap<String, u64> =
            self.heard.objects().iter().map(|(key, bytes)| (file_name(self.setup.layout, key), *bytes)).collect();
        assert_eq!(heard, expected, "the objects that the listener heard of");
    }

    fn file(&self, key: usize) -> String {
        file_name(self.setup.layout, &self.keys[key])
    }

    fn finish(mut self) {
        let all: Vec<_> = (0..KEYS).map(|key| (key, Fit::Exact, Memory::Foreign(key))).collect();
        for op in [Op::Reopen, Op::Load(all)] {
            self.apply(&op);
        }
        self.close();
    }
}

#[test]
fn engine_and_model_never_differ() {
    let seed = Seed::new("engine_and_model_never_differ");
    let lender = RefCell::new(Lender::new(24 << 20));
    let cases = (setups(), prop::collection::vec(ops(), 1..30));
    seed.try_cases(if is_long() { 10_000 } else { 400 }, 400, cases, |(setup, ops)| {
        let scratch = scratch("model");
        let mut lender = lender.try_borrow_mut().expect("given back by the last case");
        let mut pair = Pair::new(setup, scratch.join("volume"), &mut lender);
        for op in &ops {
            pair.apply(op);
        }
        pair.finish();
    });
}
