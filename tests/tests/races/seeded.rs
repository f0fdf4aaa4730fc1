//! A thousand histories of each race, in orders chosen by a seed.
//!
//! The shards of an engine answer for all keys, so each history has keys of its own. The model says what may be answered;
//! when the threads are gone the accounts, the directory and what listeners heard have to agree with it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::Rng;
use rand::rngs::StdRng;
use saltern::{Adapter, Buffer, Discovery, Engine, Error, EventKind, Layout, ObjectKey};
use saltern_tests::{
    Model, Object, Recorder, Seed, Stored, assert_books_of, beside, done, file_name, over, payload, salted,
};

use crate::history::{Event, Op, explain};
use crate::schedule::Schedule;
use crate::scratch;

const HISTORIES: u64 = 1000;

/// Histories on three volumes, of each race, beside those on one.
const HISTORIES_OF_SEVERAL: u64 = 200;
const THREADS: usize = 3;
const LAYOUT: Layout = Layout::NixlSharded;

/// What the keys of a history are before it begins.
#[derive(Clone, Copy, PartialEq)]
enum Before {
    Absent,
    /// Stored by the engine.
    Stored,
    /// On disk, and unknown to the engine.
    Planted,
}

/// What the threads of a race do.
struct Race {
    name: &'static str,
    keys: usize,
    before: &'static [Before],
    /// One of these each time.
    ops: &'static [Kind],
    /// Operations of each thread.
    length: usize,
    capacity: Option<u64>,
    discovery: Discovery,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Store,
    /// All keys of the history in one call.
    StoreAll,
    Load,
    Find,
    Delete,
    /// A store and a load whose keys and buffers do not pair.
    Mismatch,
}

fn key_of(history: u64, key: usize) -> ObjectKey {
    salted((history * 8 + key as u64) as u32, if key.is_multiple_of(2) { "" } else { "tenant" })
}

/// What a key holds before its history, if anything.
fn object_before(history: u64, key: usize) -> Object {
    Object { bytes: bytes_of(key) as u64, seed: history * 8 + key as u64 }
}

/// Another program stores an object.
fn plant(dir: &Path, key: &ObjectKey, object: Object) {
    let path = dir.join(file_name(LAYOUT, key));
    fs::create_dir_all(path.parent().expect("below the volume")).expect("mkdir");
    fs::write(path, payload(object.seed, object.bytes as usize)).expect("write");
}

/// Where other programs store the objects of a history: on whichever volume.
fn planting_ground(dirs: &[PathBuf], history: u64) -> &Path {
    &dirs[history as usize % dirs.len()]
}

impl Race {
    /// Whether the keys of a history were planted before the engine was opened: then it has counted them.
    fn is_early(&self, history: u64) -> bool {
        self.discovery == Discovery::Ask && history.is_multiple_of(3)
    }
}

/// All objects of a history's key have one size, so that loads need not know which store has won.
fn bytes_of(key: usize) -> usize {
    [5000, 70_000, 4096][key % 3]
}

/// An engine as a host sees it.
#[derive(Debug)]
struct Lent<'a>(&'a Engine);

impl Adapter for Lent<'_> {
    fn kind(&self) -> &'static str {
        "lent"
    }

    fn engine(&self) -> &Engine {
        self.0
    }

    fn close(self: Box<Self>) {}
}

/// What one thread does: the kind, the key, and the seed of what it stores.
type Plan = Vec<(Kind, usize, u64)>;

struct Histories<'a> {
    race: &'a Race,
    engine: &'a Engine,
    dirs: &'a [PathBuf],
    clock: AtomicU64,
    schedule: Schedule,
    /// Answers by key of all histories: objects added, uses, deletes, and whether it was planted.
    answers: HashMap<ObjectKey, Answers>,
    /// Bytes of later histories that were planted before the engine was opened.
    planted_bytes: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Answers {
    stored: u64,
    used: u64,
    deleted: u64,
    planted: bool,
}

impl Histories<'_> {
    /// Brings the keys into their state; gives the model of it.
    fn prepare(&mut self, history: u64, rng: &mut StdRng) -> Model {
        let mut model = Model::new(self.race.capacity);
        for key in 0..self.race.keys {
            let (name, object) = (key_of(history, key), object_before(history, key));
            let before = self.race.before[rng.random_range(0..self.race.before.len())];
            match before {
                // It would not fit.
                _ if model.clone().store(key, object) == Stored::Full => continue,
                _ if self.race.is_early(history) => self.planted_bytes -= object.bytes,
                Before::Absent => continue,
                Before::Stored => {
                    let content = payload(object.seed, bytes_of(key));
                    let stored = done(self.engine.store(vec![(name.clone(), content.into())])).results;
                    assert!(stored[0].is_ok(), "{stored:?}");
                    self.answers.entry(name.clone()).or_default().stored += 1;
                }
                Before::Planted => plant(planting_ground(self.dirs, history), &name, object),
            }
            let planted = self.race.is_early(history) || before == Before::Planted;
            self.answers.entry(name).or_default().planted = planted;
            model.store(key, object);
        }
        model
    }

    /// One operation; gives what it was answered, an event a key.
    fn run(&self, history: u64, plans: &[Plan], (kind, key, seed): (Kind, usize, u64)) -> Vec<Event> {
        let name = || key_of(history, key);
        self.schedule.step();
        let called = self.clock.fetch_add(1, Ordering::SeqCst);
        let ops: Vec<(usize, Op)> = match kind {
            Kind::Store | Kind::StoreAll => {
                let keys = if kind == Kind::Store { key..key + 1 } else { 0..self.race.keys };
                let batch = keys.clone().map(|key| (key_of(history, key), payload(seed, bytes_of(key)).into()));
                let results = done(self.engine.store(batch.collect())).results;
                let object = |key| Object { bytes: bytes_of(key) as u64, seed };
                keys.zip(results).map(|(key, result)| (key, Op::Store(object(key), result))).collect()
            }
            Kind::Load => {
                let mut report = done(self.engine.load(vec![(name(), vec![0; bytes_of(key)].into())]));
                let bytes = report.buffers.remove(0).expect("comes back").into_vec();
                let seeds = plans.iter().flatten().map(|(_, _, seed)| *seed).chain([object_before(history, key).seed]);
                let seed = seeds.into_iter().find(|seed| payload(*seed, bytes.len()) == bytes);
                vec![(key, Op::Load(seed.unwrap_or(u64::MAX), report.results.remove(0)))]
            }
            Kind::Find => {
                let size = done(self.engine.lookup_and_pin(&[name()])).sizes[0];
                self.schedule.step();
                if size.is_some() {
                    assert_eq!(self.engine.unpin(&[name()]), 1);
                }
                vec![(key, Op::Find(size))]
            }
            Kind::Mismatch => {
                self.mismatch(name());
                Vec::new()
            }
            Kind::Delete => vec![(key, Op::Delete(done(self.engine.delete(&[name()])).results.remove(0)))],
        };
        let answered = self.clock.fetch_add(1, Ordering::SeqCst);
        ops.into_iter().map(|(key, op)| Event { key, called, answered, op }).collect()
    }

    /// Calls that are refused as a whole, and change nothing.
    fn mismatch(&self, key: ObjectKey) {
        let (adapter, buffers) = (Lent(self.engine), || vec![Buffer::from(vec![0; 100]), Buffer::from(vec![1; 100])]);
        let keys = std::slice::from_ref(&key);
        for refused in [adapter.store(keys, buffers()).map(drop), adapter.load(keys, buffers()).map(drop)] {
            let refused = refused.expect_err("they do not pair");
            assert!(matches!(refused.error, Error::LengthMismatch { keys: 1, buffers: 2 }), "{refused:?}");
            assert_eq!(refused.buffers.len(), 2, "they come back");
        }
    }

    fn history(&mut self, history: u64, seed: &Seed) {
        let mut rng = seed.rng(history);
        self.schedule.reseed(seed.rng(history ^ (1 << 40)));
        let model = self.prepare(history, &mut rng);
        let race = self.race;
        let plans: Vec<Plan> = (0..THREADS)
            .map(|_| {
                let plan = (0..race.length).map(|_| {
                    let kind = race.ops[rng.random_range(0..race.ops.len())];
                    (kind, rng.random_range(0..race.keys), rng.random::<u64>() >> 1)
                });
                plan.collect()
            })
            .collect();
        let events = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            let (races, plans, events) = (&*self, &plans, &events);
            for plan in plans {
                scope.spawn(move || {
                    for planned in plan {
                        let answered = races.run(history, plans, *planned);
                        events.lock().expect("not poisoned").extend(answered);
                    }
                });
            }
        });
        let mut events = events.into_inner().expect("not poisoned");
        // When all is quiet, what is there is what the model has.
        for key in 0..race.keys {
            events.extend(self.run(history, &[], (Kind::Find, key, 0)));
        }
        events.sort_by_key(|event| event.called);
        self.note(history, &events);
        let end = explain(&model, &events).unwrap_or_else(|| panic!("{}: {history}: {events:#?}", race.name));
        self.clean_up(history, &end);
    }

    fn note(&mut self, history: u64, events: &[Event]) {
        for event in events {
            let name = key_of(history, event.key);
            let answers = self.answers.entry(name).or_default();
            match &event.op {
                Op::Store(_, Ok(0)) | Op::Load(_, Ok(_)) => answers.used += 1,
                Op::Store(_, Ok(_)) => answers.stored += 1,
                Op::Delete(Ok(_)) => answers.deleted += 1,
                _ => {}
            }
        }
    }

    /// Usage is that of the model, and nothing when all is deleted.
    fn clean_up(&mut self, history: u64, end: &Model) {
        let used = || self.engine.usage().total_bytes_used - self.planted_bytes;
        assert_eq!(used(), end.bytes(), "{}: {history}", self.race.name);
        for (key, object) in end.objects() {
            let name = key_of(history, key);
            let deleted = done(self.engine.delete(std::slice::from_ref(&name))).results.remove(0);
            assert!(
                matches!(deleted, Ok(bytes) if bytes == object.bytes),
                "{}: {history}: {deleted:?}",
                self.race.name
            );
            self.answers.entry(name).or_default().deleted += 1;
        }
        assert_eq!(self.engine.usage().total_bytes_used, self.planted_bytes, "{}: {history}", self.race.name);
    }
}

/// Listeners heard of what was answered, no more and no less.
fn check_heard(heard: &Recorder, answered: &HashMap<ObjectKey, Answers>) {
    assert_eq!((heard.objects().len(), heard.resets()), (0, 0), "all was deleted");
    let mut told: HashMap<ObjectKey, (Answers, u64)> = HashMap::new();
    // A delete that finds nothing says so, and changes nothing.
    for event in heard.events().into_iter().filter(|event| event.kind != EventKind::Absent) {
        let (told, recovered) = told.entry(event.key).or_default();
        match event.kind {
            EventKind::Stored => told.stored += 1,
            EventKind::Accessed => told.used += 1,
            EventKind::Deleted => told.deleted += 1,
            EventKind::Recovered => *recovered += 1,
            other => panic!("{other:?}"),
        }
    }
    for (key, answers) in answered {
        let (told, recovered) = told.remove(key).unwrap_or_default();
        assert_eq!((told.stored, told.deleted), (answers.stored, answers.deleted), "{key}");
        // A store that finds the file of somebody else answers as a use, and is told as what it found.
        let found = u64::from(answers.planted);
        assert!(recovered <= found && told.used + recovered >= answers.used, "{key}: {told:?}, {answers:?}");
        assert!(told.used <= answers.used, "{key}: {told:?}, {answers:?}");
    }
    assert!(told.is_empty(), "told of objects that were never there: {told:?}");
}

fn race(race: &Race) {
    race_on(race, 1, HISTORIES);
    race_on(race, 3, HISTORIES_OF_SEVERAL);
}

fn race_on(race: &Race, volumes: usize, count: u64) {
    let seed = Seed::new(race.name);
    let scratch = scratch(race.name);
    let dirs = beside(&scratch.join("volume"), volumes);
    let schedule = Schedule::new(seed.rng(0));
    let mut config = over(&dirs);
    (config.layout, config.discovery, config.capacity_bytes) = (LAYOUT, race.discovery, race.capacity);
    (config.absent_ttl, config.steps, config.shards) = (Default::default(), schedule.steps(), 2 * volumes);
    let early = (0..count).filter(|history| race.is_early(*history));
    let early = early.flat_map(|history| (0..race.keys).map(move |key| (history, key)));
    let planted = early.map(|(history, key)| {
        plant(planting_ground(&dirs, history), &key_of(history, key), object_before(history, key));
        bytes_of(key) as u64
    });
    let planted_bytes = planted.sum();
    let engine = Engine::open(config).expect("open");
    let heard = Recorder::new();
    engine.subscribe(heard.clone()).expect("subscribe");
    let (clock, answers) = (AtomicU64::new(0), HashMap::new());
    let mut histories = Histories { race, engine: &engine, dirs: &dirs, clock, schedule, answers, planted_bytes };
    for history in 0..count {
        histories.history(history, &seed);
    }
    let answers = histories.answers;
    assert_books_of(&engine, &dirs, LAYOUT);
    engine.close();
    check_heard(&heard, &answers);
}

/// A race of one key in a directory that others write to.
const SHARED: Race = Race {
    name: "",
    keys: 1,
    before: &[],
    ops: &[],
    length: 2,
    capacity: Some(1 << 40),
    discovery: Discovery::ScanAndAsk,
};

#[test]
fn stores_of_what_is_there() {
    race(&Race {
        name: "stores_of_what_is_there",
        before: &[Before::Stored],
        ops: &[Kind::Store, Kind::Store, Kind::Load, Kind::Find],
        ..SHARED
    });
}

#[test]
fn store_against_lookup() {
    race(&Race {
        name: "store_against_lookup",
        before: &[Before::Absent, Before::Absent, Before::Planted],
        ops: &[Kind::Store, Kind::Find, Kind::Find],
        ..SHARED
    });
}

#[test]
fn delete_against_load() {
    race(&Race {
        name: "delete_against_load",
        before: &[Before::Stored, Before::Planted],
        ops: &[Kind::Delete, Kind::Load, Kind::Load],
        ..SHARED
    });
}

#[test]
fn delete_against_lookup() {
    race(&Race {
        name: "delete_against_lookup",
        before: &[Before::Stored, Before::Planted, Before::Planted],
        ops: &[Kind::Delete, Kind::Find, Kind::Find],
        ..SHARED
    });
}

#[test]
fn delete_against_store() {
    race(&Race {
        name: "delete_against_store",
        before: &[Before::Absent, Before::Stored],
        ops: &[Kind::Delete, Kind::Store],
        ..SHARED
    });
}

#[test]
fn stores_against_the_capacity() {
    // Two of the three objects fit, whichever.
    race(&Race {
        name: "stores_against_the_capacity",
        keys: 3,
        before: &[Before::Absent],
        ops: &[Kind::Store, Kind::Store, Kind::Delete],
        capacity: Some(75_500),
        ..SHARED
    });
}

#[test]
fn partial_batches() {
    race(&Race {
        name: "partial_batches",
        keys: 3,
        before: &[Before::Absent, Before::Absent, Before::Stored],
        ops: &[Kind::StoreAll, Kind::StoreAll, Kind::Delete, Kind::Load],
        length: 1,
        capacity: Some(75_500),
        discovery: Discovery::Scan,
    });
}

#[test]
fn deletes_at_once() {
    // What is taken away twice is counted once, in total and by salt: the books at the end say so.
    race(&Race {
        name: "deletes_at_once",
        keys: 2,
        before: &[Before::Stored, Before::Stored, Before::Planted],
        ops: &[Kind::Delete, Kind::Delete, Kind::Delete, Kind::Store],
        ..SHARED
    });
}

#[test]
fn calls_that_do_not_pair() {
    race(&Race {
        name: "calls_that_do_not_pair",
        keys: 2,
        before: &[Before::Absent, Before::Stored],
        ops: &[Kind::Mismatch, Kind::Mismatch, Kind::StoreAll, Kind::Load, Kind::Delete],
        capacity: Some(75_500),
        ..SHARED
    });
}

#[test]
fn everything_against_what_was_only_counted() {
    race(&Race {
        name: "everything_against_what_was_only_counted",
        before: &[Before::Absent, Before::Stored, Before::Planted],
        ops: &[Kind::Store, Kind::Load, Kind::Find, Kind::Delete],
        discovery: Discovery::Ask,
        ..SHARED
    });
}
