//! After a restart the engine knows what it holds, and so does everybody who listens.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use macro_rules_attribute::apply;
use rand::Rng;
use rand::seq::SliceRandom;
use saltern::{Buffer, Engine, Error, Event, EventKind, Layout, ObjectKey};
use saltern_tests::{
    Cell, Disk, Host, Mount, Recorder, Seed, done, file_name, find, get, key, payload, put, remove, salted, until,
    varied,
};

use crate::gate::{Gate, OpenOnDrop};
use crate::mount;

/// Files of a directory that takes a while to scan.
fn many(cell: Cell) -> u32 {
    cell.sized(20_000, 1200)
}

/// Their size; they are sparse, so their bytes are zero.
const SPARSE_BYTES: usize = 4096;

fn write_many(mount: &Mount) {
    (0..many(mount.cell)).for_each(|n| mount.plant_sparse(&key(n), SPARSE_BYTES as u64));
}

/// Compares what a listener heard with what is on disk.
fn assert_heard(heard: &Recorder, cell: Cell, disk: &Disk) {
    assert_eq!(heard.resets(), 0);
    let objects: BTreeMap<String, u64> =
        heard.objects().iter().map(|(key, bytes)| (file_name(cell.layout, key), *bytes)).collect();
    assert!(objects == disk.files, "{} objects heard of, {} on disk", objects.len(), disk.files.len());
}

/// An engine whose scan has begun and does not end before the gate is opened.
fn open_held(mount: &Mount) -> (Host, OpenOnDrop) {
    let gate = Gate::new();
    let hold = gate.clone();
    let opener = Engine::opener(mount.config()).background(true).progress(move |_| hold.pass());
    let guard = OpenOnDrop(gate);
    (mount.open_with(opener), guard)
}

#[apply(each_cell!)]
fn everything_is_there_after_a_restart(cell: Cell) {
    let sizes = [0, 1, 511, 4095, 4096, 4097, 70_000, 1_048_577];
    let layout = cell.layout;
    for shards in [1, 3] {
        let mount = mount(cell, "restart");
        let mut config = mount.config();
        config.shards = shards;
        let content = |n: usize| payload(n as u64, sizes[n % sizes.len()]);
        let keys = varied(layout);
        let engine = mount.open_as(config.clone());
        for (n, key) in keys.iter().enumerate() {
            assert!(matches!(put(&engine, key, &content(n)), Ok(bytes) if bytes == content(n).len() as u64));
        }
        let usage = engine.usage();
        engine.close();

        config.shards = 4 - shards;
        let engine = mount.open_as(config);
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
        mount.assert_books(&engine);
    }
}

#[apply(each_cell!)]
fn files_of_other_programs_are_objects_too(cell: Cell) {
    let layout = cell.layout;
    let mount = mount(cell, "other-programs");
    let keys = varied(layout);
    for (n, key) in keys.iter().enumerate() {
        mount.plant(key, &payload(n as u64, 1000 * n + 1));
    }
    let engine = mount.open();
    let disk = mount.assert_books(&engine);
    assert_eq!(disk.files.len(), keys.len());
    for (n, key) in keys.iter().enumerate() {
        assert!(get(&engine, key, 1000 * n + 1).expect("load") == payload(n as u64, 1000 * n + 1), "{layout}: {key}");
    }
}

#[apply(each_cell!)]
fn the_oldest_are_told_first(cell: Cell) {
    let seed = Seed::new("the_oldest_are_told_first");
    let mount = mount(cell, "oldest");
    // Names in another order than times.
    let mut order: Vec<u32> = (0..500).collect();
    order.shuffle(&mut seed.rng(0));
    for (age, n) in order.iter().enumerate() {
        mount.plant(&key(*n), &[0; 10]);
        let path = mount.file(&key(*n));
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000) + Duration::from_micros(age as u64);
        File::options().write(true).open(path).expect("open").set_modified(at).expect("utimens");
    }
    let engine = mount.open();
    let heard = Recorder::new();
    engine.subscribe(heard.clone()).expect("subscribe");
    until("the replay is complete", || heard.events().len() == order.len());
    let expected: Vec<Event> = heard.events();
    assert!(expected.iter().all(|event| event.kind == EventKind::Recovered && event.bytes == 10));
    let told: Vec<ObjectKey> = expected.into_iter().map(|event| event.key).collect();
    assert!(told == order.iter().map(|n| key(*n)).collect::<Vec<_>>(), "oldest first");
}

#[apply(each_cell_without_capacity!)]
fn listeners_hear_of_each_object_once_whenever_they_come(cell: Cell) {
    let mount = mount(cell, "subscribers");
    let many = many(cell);
    write_many(&mount);
    let (engine, gate) = open_held(&mount);
    let [early, during, late] = [(); 3].map(|()| Recorder::new());
    engine.subscribe(early.clone()).expect("subscribe");
    assert!(!engine.status().recovered, "the gate holds the scan");
    // Changes that are made during the scan must be neither lost nor told twice.
    for n in 0..200 {
        assert!(matches!(put(&engine, &key(many + n), &[7; 100]), Ok(100)));
        assert!(matches!(remove(&engine, &key(n)), Ok(bytes) if bytes == SPARSE_BYTES as u64), "{n}");
        assert!(matches!(put(&engine, &key(300 + n), &[7; 100]), Ok(0)));
        assert!(get(&engine, &key(600 + n), SPARSE_BYTES).is_ok());
        if n == 100 {
            engine.subscribe(during.clone()).expect("subscribe");
        }
    }
    drop(gate);
    let report = engine.wait_recovered();
    assert!(report.objects <= u64::from(many) + 200);
    engine.subscribe(late.clone()).expect("subscribe");
    for n in 0..200 {
        assert!(matches!(remove(&engine, &key(many + n)), Ok(100)));
    }
    let disk = mount.assert_books(&engine);
    assert_eq!(disk.files.len(), many as usize - 200);
    for heard in [&early, &during, &late] {
        until("all is told", || heard.bytes() == disk.bytes);
    }
    engine.close();
    for heard in [&early, &during, &late] {
        assert_heard(heard, cell, &disk);
        let mut recovered: HashMap<ObjectKey, usize> = HashMap::new();
        for event in heard.events().into_iter().filter(|event| event.kind == EventKind::Recovered) {
            *recovered.entry(event.key).or_default() += 1;
        }
        assert!(recovered.values().all(|times| *times == 1));
        for n in 200..many {
            assert_eq!(recovered.get(&key(n)), Some(&1), "object {n} was there before");
        }
    }
}

#[apply(each_cell_without_capacity!)]
fn questions_during_the_scan_are_answered_by_the_disk(cell: Cell) {
    let mount = mount(cell, "during");
    let many = many(cell);
    write_many(&mount);
    let (engine, gate) = open_held(&mount);
    let sparse = SPARSE_BYTES as u64;
    // From both ends and the middle of whatever order the scan takes.
    for n in (0..many).step_by(97) {
        assert_eq!(find(&engine, &key(n)), Some(sparse), "{n}");
        assert_eq!(find(&engine, &key(many + n)), None, "{n}");
        assert!(get(&engine, &key(n), SPARSE_BYTES).expect("load") == [0; SPARSE_BYTES], "{n}");
        assert!(matches!(get(&engine, &key(n), SPARSE_BYTES + 1), Err(Error::WrongSize { .. })), "{n}");
        assert!(matches!(get(&engine, &key(many + n), 10), Err(Error::NotFound)), "{n}");
        assert!(matches!(put(&engine, &key(n + 1), &[1; 5000]), Ok(0)), "{n}: it is on disk already");
        assert!(matches!(remove(&engine, &key(many + n)), Err(Error::NotFound)), "{n}");
        assert!(matches!(remove(&engine, &key(n + 2)), Ok(bytes) if bytes == sparse), "{n}");
        assert!(matches!(remove(&engine, &key(n + 2)), Err(Error::NotFound)), "{n}");
        assert_eq!(find(&engine, &key(n + 2)), None, "{n}");
        assert!(matches!(put(&engine, &salted(n, "new"), &[3; 10]), Ok(10)), "{n}");
    }
    assert!(!engine.status().recovered, "the gate holds the scan");
    drop(gate);
    engine.wait_recovered();
    assert!(engine.status().recovered);
    let disk = mount.assert_books(&engine);
    let rounds = (0..many).step_by(97).len();
    assert_eq!((disk.files.len(), disk.bytes_by_salt["new"]), (many as usize, 10 * rounds as u64));
    for n in (0..many).step_by(97) {
        assert_eq!(find(&engine, &key(n + 2)), None, "{n}: the scan does not bring back what was deleted");
    }
}

#[apply(each_cell!)]
fn a_pin_taken_during_the_scan_holds_after_it(cell: Cell) {
    let mount = mount(cell, "pinned-scan");
    let many = many(cell);
    write_many(&mount);
    let (engine, gate) = open_held(&mount);
    assert_eq!(done(engine.lookup_and_pin(&[key(5), key(many - 1)])).hits(), 2);
    drop(gate);
    engine.wait_recovered();
    for n in [5, many - 1] {
        assert!(matches!(remove(&engine, &key(n)), Err(Error::Pinned { pins: 1, .. })), "{n}");
        assert_eq!(engine.unpin(&[key(n)]), 1);
        assert!(remove(&engine, &key(n)).is_ok());
    }
}

#[apply(each_cell!)]
fn load_during_a_running_scan_changes_nothing_in_the_books(cell: Cell) {
    let seed = Seed::new("load_during_a_running_scan_changes_nothing_in_the_books");
    let mount = mount(cell, "racing-scan");
    let many = many(cell);
    write_many(&mount);
    let mut config = mount.config();
    config.shards = 2;
    let engine = mount.open_with(Engine::opener(config).background(true));
    let heard = Recorder::new();
    engine.subscribe(heard.clone()).expect("subscribe");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (mut rng, engine, is_over) = (seed.rng(thread), &engine, &is_over);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    // Each thread has keys of its own, so that it knows the answers.
                    let n = 3 * rng.random_range(0..many / 3) + thread as u32;
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
    let disk = mount.assert_books(&engine);
    until("all is told", || heard.bytes() == disk.bytes);
    engine.close();
    assert_heard(&heard, cell, &disk);
}

#[apply(each_cell!)]
fn an_engine_can_be_closed_while_it_scans(cell: Cell) {
    let mount = mount(cell, "close-scan");
    let many = many(cell);
    write_many(&mount);
    let before = mount.disk();
    let engine = mount.open_with(Engine::opener(mount.config()).background(true));
    let heard = Recorder::new();
    engine.subscribe(heard.clone()).expect("subscribe");
    let ticket = engine.lookup_and_pin(&[key(0)]);
    engine.close();
    assert_eq!(done(ticket).sizes.len(), 1);
    assert!(mount.disk() == before);
    let engine = mount.open();
    assert_eq!(engine.wait_recovered().objects, u64::from(many));
}

#[apply(each_cell!)]
fn progress_is_reported(cell: Cell) {
    let mount = mount(cell, "progress");
    let many = many(cell);
    write_many(&mount);
    let most = Arc::new(AtomicU64::new(0));
    let seen = most.clone();
    let opener = Engine::opener(mount.config()).progress(move |entries| {
        seen.fetch_max(entries, Ordering::Relaxed);
    });
    let engine = mount.open_with(opener);
    assert!(engine.status().recovered, "open waits for the scan unless it is told not to");
    let most = most.load(Ordering::Relaxed);
    // Each volume has a directory of its own in it; objects may lie in two directories that are entries, too.
    let most_a_name = if cell.layout == Layout::NixlSharded { 3 } else { 1 };
    assert!(most > 0 && most <= most_a_name * u64::from(many) + cell.volumes as u64, "{most}");
}

#[apply(each_cell!)]
fn recovered_objects_count_against_the_capacity(cell: Cell) {
    let mount = mount(cell, "over");
    for n in 0..10 {
        mount.plant(&key(n), &[0; 100]);
    }
    let mut config = mount.config();
    config.capacity_bytes = Some(750);
    let engine = mount.open_as(config);
    assert_eq!(engine.usage().usage_fraction, 1000.0 / 750.0);
    let full = |result| matches!(result, Err(Error::Full { needed: 60, free: 0 | 50, capacity: 750 }));
    assert!(full(put(&engine, &key(100), &[1; 60])));
    assert!(matches!(put(&engine, &key(0), &[1; 60]), Ok(0)), "there already, however full it is");
    assert!(done(engine.delete(&[key(0), key(1), key(2)])).results.iter().all(Result::is_ok));
    assert!(full(put(&engine, &key(100), &[1; 60])));
    assert!(matches!(put(&engine, &key(100), &[1; 50]), Ok(50)));
    mount.assert_books(&engine);
}

#[apply(each_cell!)]
fn events_of_a_key_are_in_order_under_load(cell: Cell) {
    const KEYS: u32 = 12;
    let seed = Seed::new("events_of_a_key_are_in_order_under_load");
    let rounds = cell.sized(400, 100);
    let mount = mount(cell, "order");
    let mut config = mount.config();
    config.shards = 2;
    let engine = mount.open_as(config);
    let (first, second) = (Recorder::new(), Recorder::new());
    engine.subscribe(first.clone()).expect("subscribe");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (mut rng, engine) = (seed.rng(thread), &engine);
            scope.spawn(move || {
                for _ in 0..rounds {
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
    let disk = mount.assert_books(&engine);
    assert_eq!(engine.usage().total_bytes_used, disk.bytes);
    engine.close();
    for heard in [first, second] {
        assert_eq!(heard.bytes(), disk.bytes, "the events add up to what is there");
        assert_heard(&heard, cell, &disk);
    }
}

#[apply(each_cell!)]
fn a_listener_that_panics_does_not_deafen_the_others(cell: Cell) {
    struct Broken;
    impl saltern::Listener for Broken {
        fn on_events(&self, _: &[Event]) {
            std::panic::panic_any("a listener's defect");
        }
    }
    let mount = mount(cell, "broken-listener");
    let engine = mount.open();
    let heard = Recorder::new();
    engine.subscribe(Arc::new(Broken)).expect("subscribe");
    engine.subscribe(heard.clone()).expect("subscribe");
    for n in 0..10 {
        put(&engine, &key(n), &[1; 10]).expect("store");
    }
    until("the other one hears it", || heard.bytes() == 100);
    engine.close();
}

#[apply(each_cell!)]
fn a_store_of_what_is_there_is_an_access(cell: Cell) {
    let mount = mount(cell, "kinds");
    let engine = mount.open();
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
