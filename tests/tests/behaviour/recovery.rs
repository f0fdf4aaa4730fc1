//! After a restart the engine knows what it holds, and so does everybody who listens.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rand::Rng;
use rand::seq::SliceRandom;
use saltern::{Buffer, Engine, Error, Event, EventKind, Layout, ObjectKey};
use saltern_tests::{
    Disk, Recorder, Seed, assert_books, config, done, file_name, find, get, key, open, payload, put, remove, salted,
    until, varied,
};

use crate::gate::{Gate, OpenOnDrop};
use crate::scratch;

/// Files of a directory that takes a while to scan.
const MANY: u32 = 20_000;

/// Their size; they are sparse, so their bytes are zero.
const SPARSE_BYTES: usize = 4096;

fn write(dir: &Path, layout: Layout, key: &ObjectKey, bytes: &[u8]) {
    let path = dir.join(file_name(layout, key));
    fs::create_dir_all(path.parent().expect("below the volume")).expect("mkdir");
    fs::write(path, bytes).expect("write");
}

fn write_many(dir: &Path) {
    for n in 0..MANY {
        let file = File::create(dir.join(file_name(Layout::Fs, &key(n)))).expect("create");
        file.set_len(SPARSE_BYTES as u64).expect("truncate");
    }
}

/// Compares what a listener heard with what is on disk.
fn assert_heard(heard: &Recorder, disk: &Disk) {
    assert_eq!(heard.resets(), 0);
    let objects: BTreeMap<String, u64> =
        heard.objects().iter().map(|(key, bytes)| (file_name(Layout::Fs, key), *bytes)).collect();
    assert!(objects == disk.files, "{} objects heard of, {} on disk", objects.len(), disk.files.len());
}

/// An engine whose scan has begun and does not end before the gate is opened.
fn open_held(dir: &Path) -> (Engine, OpenOnDrop) {
    let gate = Gate::new();
    let hold = gate.clone();
    let opener = Engine::opener(config(dir)).background(true).progress(move |_| hold.pass());
    let guard = OpenOnDrop(gate);
    (opener.open().expect("open"), guard)
}

#[test]
fn everything_is_there_after_a_restart() {
    let sizes = [0, 1, 511, 4095, 4096, 4097, 70_000, 1_048_577];
    for layout in Layout::ALL {
        for shards in [1, 3] {
            let scratch = scratch("restart");
            let mut config = config(scratch.path());
            (config.layout, config.shards) = (layout, shards);
            let content = |n: usize| payload(n as u64, sizes[n % sizes.len()]);
            let keys = varied(layout);
            let engine = Engine::open(config.clone()).expect("open");
            for (n, key) in keys.iter().enumerate() {
                assert!(matches!(put(&engine, key, &content(n)), Ok(bytes) if bytes == content(n).len() as u64));
            }
            let usage = engine.usage();
            engine.close();

            config.shards = 4 - shards;
            let engine = Engine::open(config).expect("open");
            let report = engine.wait_recovered();
            assert_eq!((report.objects, report.bytes), (keys.len() as u64, usage.total_bytes_used));
            assert_eq!((report.foreign.count, report.unfinished), (0, 0));
            assert_eq!(engine.usage(), usage, "by salt, too");
            assert!(engine.status().recovered);
            for (n, key) in keys.iter().enumerate() {
                assert_eq!(find(&engine, key), Some(content(n).len() as u64), "{layout}: {key}");
                assert!(get(&engine, key, content(n).len()).expect("load") == content(n), "{layout}: {key}");
                assert!(matches!(put(&engine, key, b"another"), Ok(0)), "the first store wins, also after a restart");
            }
            assert_books(&engine, scratch.path(), layout);
        }
    }
}

#[test]
fn files_of_other_programs_are_objects_too() {
    for layout in Layout::ALL {
        let scratch = scratch("other-programs");
        let keys = varied(layout);
        for (n, key) in keys.iter().enumerate() {
            write(scratch.path(), layout, key, &payload(n as u64, 1000 * n + 1));
        }
        let mut config = config(scratch.path());
        config.layout = layout;
        let engine = Engine::open(config).expect("open");
        let disk = assert_books(&engine, scratch.path(), layout);
        assert_eq!(disk.files.len(), keys.len());
        for (n, key) in keys.iter().enumerate() {
            assert!(
                get(&engine, key, 1000 * n + 1).expect("load") == payload(n as u64, 1000 * n + 1),
                "{layout}: {key}"
            );
        }
    }
}

#[test]
fn the_oldest_are_told_first() {
    let seed = Seed::new("the_oldest_are_told_first");
    let scratch = scratch("oldest");
    // Names in another order than times.
    let mut order: Vec<u32> = (0..500).collect();
    order.shuffle(&mut seed.rng(0));
    for (age, n) in order.iter().enumerate() {
        write(scratch.path(), Layout::Fs, &key(*n), &[0; 10]);
        let path = scratch.join(&file_name(Layout::Fs, &key(*n)));
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000) + Duration::from_micros(age as u64);
        File::options().write(true).open(path).expect("open").set_modified(at).expect("utimens");
    }
    let engine = open(scratch.path());
    let heard = Recorder::new();
    engine.subscribe(heard.clone()).expect("subscribe");
    until("the replay is complete", || heard.events().len() == order.len());
    let expected: Vec<Event> = heard.events();
    assert!(expected.iter().all(|event| event.kind == EventKind::Recovered && event.bytes == 10));
    let told: Vec<ObjectKey> = expected.into_iter().map(|event| event.key).collect();
    assert!(told == order.iter().map(|n| key(*n)).collect::<Vec<_>>(), "oldest first");
}

#[test]
fn listeners_hear_of_each_object_once_whenever_they_come() {
    let scratch = scratch("subscribers");
    write_many(scratch.path());
    let (engine, gate) = open_held(scratch.path());
    let [early, during, late] = [(); 3].map(|()| Recorder::new());
    engine.subscribe(early.clone()).expect("subscribe");
    assert!(!engine.status().recovered, "the gate holds the scan");
    // Changes that are made during the scan must be neither lost nor told twice.
    for n in 0..200 {
        assert!(matches!(put(&engine, &key(MANY + n), &[7; 100]), Ok(100)));
        assert!(matches!(remove(&engine, &key(n)), Ok(bytes) if bytes == SPARSE_BYTES as u64), "{n}");
        assert!(matches!(put(&engine, &key(1000 + n), &[7; 100]), Ok(0)));
        assert!(get(&engine, &key(2000 + n), SPARSE_BYTES).is_ok());
        if n == 100 {
            engine.subscribe(during.clone()).expect("subscribe");
        }
    }
    drop(gate);
    let report = engine.wait_recovered();
    assert!(report.objects <= u64::from(MANY) + 200);
    engine.subscribe(late.clone()).expect("subscribe");
    for n in 0..200 {
        assert!(matches!(remove(&engine, &key(MANY + n)), Ok(100)));
    }
    let disk = assert_books(&engine, scratch.path(), Layout::Fs);
    assert_eq!(disk.files.len(), MANY as usize - 200);
    for heard in [&early, &during, &late] {
        until("all is told", || heard.bytes() == disk.bytes);
    }
    engine.close();
    for heard in [&early, &during, &late] {
        assert_heard(heard, &disk);
        let mut recovered: HashMap<ObjectKey, usize> = HashMap::new();
        for event in heard.events().into_iter().filter(|event| event.kind == EventKind::Recovered) {
            *recovered.entry(event.key).or_default() += 1;
        }
        assert!(recovered.values().all(|times| *times == 1));
        for n in 200..MANY {
            assert_eq!(recovered.get(&key(n)), Some(&1), "object {n} was there before");
        }
    }
}

#[test]
fn questions_during_the_scan_are_answered_by_the_disk() {
    let scratch = scratch("during");
    write_many(scratch.path());
    let (engine, gate) = open_held(scratch.path());
    let sparse = SPARSE_BYTES as u64;
    // From both ends and the middle of whatever order the scan takes.
    for n in (0..MANY).step_by(97) {
        assert_eq!(find(&engine, &key(n)), Some(sparse), "{n}");
        assert_eq!(find(&engine, &key(MANY + n)), None, "{n}");
        assert!(get(&engine, &key(n), SPARSE_BYTES).expect("load") == [0; SPARSE_BYTES], "{n}");
        assert!(matches!(get(&engine, &key(n), SPARSE_BYTES + 1), Err(Error::WrongSize { .. })), "{n}");
        assert!(matches!(get(&engine, &key(MANY + n), 10), Err(Error::NotFound)), "{n}");
        assert!(matches!(put(&engine, &key(n + 1), &[1; 5000]), Ok(0)), "{n}: it is on disk already");
        assert!(matches!(remove(&engine, &key(MANY + n)), Err(Error::NotFound)), "{n}");
        assert!(matches!(remove(&engine, &key(n + 2)), Ok(bytes) if bytes == sparse), "{n}");
        assert!(matches!(remove(&engine, &key(n + 2)), Err(Error::NotFound)), "{n}");
        assert_eq!(find(&engine, &key(n + 2)), None, "{n}");
        assert!(matches!(put(&engine, &salted(n, "new"), &[3; 10]), Ok(10)), "{n}");
    }
    assert!(!engine.status().recovered, "the gate holds the scan");
    drop(gate);
    engine.wait_recovered();
    assert!(engine.status().recovered);
    let disk = assert_books(&engine, scratch.path(), Layout::Fs);
    let rounds = (0..MANY).step_by(97).len();
    assert_eq!((disk.files.len(), disk.bytes_by_salt["new"]), (MANY as usize, 10 * rounds as u64));
    for n in (0..MANY).step_by(97) {
        assert_eq!(find(&engine, &key(n + 2)), None, "{n}: the scan does not bring back what was deleted");
    }
}

#[test]
fn a_pin_taken_during_the_scan_holds_after_it() {
    let scratch = scratch("pinned-scan");
    write_many(scratch.path());
    let (engine, gate) = open_held(scratch.path());
    assert_eq!(done(engine.lookup_and_pin(&[key(5), key(MANY - 1)])).hits(), 2);
    drop(gate);
    engine.wait_recovered();
    for n in [5, MANY - 1] {
        assert!(matches!(remove(&engine, &key(n)), Err(Error::Pinned { pins: 1, .. })), "{n}");
        assert_eq!(engine.unpin(&[key(n)]), 1);
        assert!(remove(&engine, &key(n)).is_ok());
    }
}

#[test]
fn load_during_a_running_scan_changes_nothing_in_the_books() {
    let seed = Seed::new("load_during_a_running_scan_changes_nothing_in_the_books");
    let scratch = scratch("racing-scan");
    write_many(scratch.path());
    let mut config = config(scratch.path());
    config.shards = 2;
    let engine = Engine::opener(config).background(true).open().expect("open");
    let heard = Recorder::new();
    engine.subscribe(heard.clone()).expect("subscribe");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (mut rng, engine, is_over) = (seed.rng(thread), &engine, &is_over);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    // Each thread has keys of its own, so that it knows the answers.
                    let n = 3 * rng.random_range(0..MANY / 3) + thread as u32;
                    match rng.random_range(0..4) {
                        0 => drop(remove(engine, &key(n))),
                        1 => {
                            let there = find(engine, &key(n));
                            let added = put(engine, &key(n), &[0; SPARSE_BYTES]).expect("store");
                            assert_eq!(there.is_none(), added == SPARSE_BYTES as u64, "{n}: {there:?}, {added}");
                        }
                        2 => {
                            let there = find(engine, &key(n)).is_some();
                            assert_eq!(get(engine, &key(n), SPARSE_BYTES).is_ok(), there, "{n}");
                        }
                        _ => drop(find(engine, &key(n))),
                    }
                }
            });
        }
        engine.wait_recovered();
        is_over.store(true, Ordering::Relaxed);
    });
    let disk = assert_books(&engine, scratch.path(), Layout::Fs);
    until("all is told", || heard.bytes() == disk.bytes);
    engine.close();
    assert_heard(&heard, &disk);
}

#[test]
fn an_engine_can_be_closed_while_it_scans() {
    let scratch = scratch("close-scan");
    write_many(scratch.path());
    let before = Disk::read(scratch.path(), Layout::Fs);
    let engine = Engine::opener(config(scratch.path())).background(true).open().expect("open");
    let heard = Recorder::new();
    engine.subscribe(heard.clone()).expect("subscribe");
    let ticket = engine.lookup_and_pin(&[key(0)]);
    engine.close();
    assert_eq!(done(ticket).sizes.len(), 1);
    assert!(Disk::read(scratch.path(), Layout::Fs) == before);
    let engine = open(scratch.path());
    assert_eq!(engine.wait_recovered().objects, u64::from(MANY));
}

#[test]
fn progress_is_reported() {
    let scratch = scratch("progress");
    write_many(scratch.path());
    let most = Arc::new(AtomicU64::new(0));
    let seen = most.clone();
    let opener = Engine::opener(config(scratch.path())).progress(move |entries| {
        seen.fetch_max(entries, Ordering::Relaxed);
    });
    let engine = opener.open().expect("open");
    assert!(engine.status().recovered, "open waits for the scan unless it is told not to");
    let most = most.load(Ordering::Relaxed);
    assert!(most > 0 && most <= u64::from(MANY) + 1, "{most}");
}

#[test]
fn recovered_objects_count_against_the_capacity() {
    let scratch = scratch("over");
    for n in 0..10 {
        write(scratch.path(), Layout::Fs, &key(n), &[0; 100]);
    }
    let mut config = config(scratch.path());
    config.capacity_bytes = Some(750);
    let engine = Engine::open(config).expect("open");
    assert_eq!(engine.usage().usage_fraction, 1000.0 / 750.0);
    let full = |result| matches!(result, Err(Error::Full { needed: 60, free: 0 | 50, capacity: 750 }));
    assert!(full(put(&engine, &key(100), &[1; 60])));
    assert!(matches!(put(&engine, &key(0), &[1; 60]), Ok(0)), "there already, however full it is");
    assert!(done(engine.delete(&[key(0), key(1), key(2)])).results.iter().all(Result::is_ok));
    assert!(full(put(&engine, &key(100), &[1; 60])));
    assert!(matches!(put(&engine, &key(100), &[1; 50]), Ok(50)));
    assert_books(&engine, scratch.path(), Layout::Fs);
}

#[test]
fn events_of_a_key_are_in_order_under_load() {
    const KEYS: u32 = 12;
    let seed = Seed::new("events_of_a_key_are_in_order_under_load");
    let scratch = scratch("order");
    let mut config = config(scratch.path());
    config.shards = 2;
    let engine = Engine::open(config).expect("open");
    let (first, second) = (Recorder::new(), Recorder::new());
    engine.subscribe(first.clone()).expect("subscribe");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (mut rng, engine) = (seed.rng(thread), &engine);
            scope.spawn(move || {
                for _ in 0..400 {
                    let n = rng.random_range(0..KEYS);
                    // Sizes differ, so that an event out of order shows in them, too.
                    let bytes = 100 * n as usize + 100;
                    match rng.random_range(0..3) {
                        0 => drop(done(engine.store(vec![(key(n), Buffer::from(payload(n.into(), bytes)))]))),
                        1 => match get(engine, &key(n), bytes) {
                            Ok(found) => assert!(found == payload(n.into(), bytes), "object {n}"),
                            Err(error) => assert!(matches!(error, Error::NotFound), "{error}"),
                        },
                        _ => match remove(engine, &key(n)) {
                            Ok(_) | Err(Error::NotFound | Error::Pinned { .. }) => {}
                            other => panic!("{other:?}"),
                        },
                    }
                }
            });
        }
        engine.subscribe(second.clone()).expect("subscribe");
    });
    let disk = assert_books(&engine, scratch.path(), Layout::Fs);
    assert_eq!(engine.usage().total_bytes_used, disk.bytes);
    engine.close();
    for heard in [first, second] {
        assert_eq!(heard.bytes(), disk.bytes, "the events add up to what is there");
        assert_heard(&heard, &disk);
    }
}

#[test]
fn a_listener_that_panics_does_not_deafen_the_others() {
    struct Broken;
    impl saltern::Listener for Broken {
        fn on_events(&self, _: &[Event]) {
            std::panic::panic_any("a listener's defect");
        }
    }
    let scratch = scratch("broken-listener");
    let engine = open(scratch.path());
    let heard = Recorder::new();
    engine.subscribe(Arc::new(Broken)).expect("subscribe");
    engine.subscribe(heard.clone()).expect("subscribe");
    for n in 0..10 {
        put(&engine, &key(n), &[1; 10]).expect("store");
    }
    until("the other one hears it", || heard.bytes() == 100);
    engine.close();
}

#[test]
fn a_store_of_what_is_there_is_an_access() {
    let scratch = scratch("kinds");
    let engine = open(scratch.path());
    let heard = Recorder::new();
    engine.subscribe(heard.clone()).expect("subscribe");
    put(&engine, &key(1), &[1; 10]).expect("store");
    put(&engine, &key(1), &[2; 20]).expect("store");
    get(&engine, &key(1), 10).expect("load");
    get(&engine, &key(2), 10).expect_err("a miss");
    find(&engine, &key(1));
    remove(&engine, &key(1)).expect("delete");
    engine.close();
    let kinds: Vec<_> = heard.events().iter().map(|event| (event.kind, event.bytes)).collect();
    let accessed = (EventKind::Accessed, 10);
    assert_eq!(kinds, [(EventKind::Stored, 10), accessed, accessed, (EventKind::Deleted, 10)]);
}
