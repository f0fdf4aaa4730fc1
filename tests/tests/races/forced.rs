//! Each race with the order forced.

use std::fs;
use std::path::Path;
use std::time::Duration;

use saltern::steps::Step;
use saltern::{Adapter, Buffer, Config, Discovery, Engine, Error, EventKind, Layout, NixlDynamicAdapter, ObjectKey};
use saltern_tests::{
    Recorder, Scratch, assert_books, config, done, file_name, find, get, key, payload, put, remove, salted, until,
};

use crate::hold::Hold;
use crate::scratch;

const LAYOUT: Layout = Layout::Nixl;

/// A deadline that has not passed when a thread comes to the step where it is stopped, on a full machine either: what is late before
/// that is given up there.
const REACHED: Duration = Duration::from_secs(4);

/// A directory that others write to as well.
fn shared(dir: &Path, hold: &Hold) -> Config {
    let mut config = config(dir);
    (config.layout, config.discovery, config.capacity_bytes) = (LAYOUT, Discovery::ScanAndAsk, Some(1 << 30));
    (config.absent_ttl, config.steps) = (Default::default(), hold.steps());
    config
}

/// The hold comes last, so that it goes first: an engine whose thread is stopped cannot close.
fn begin(name: &str) -> (Scratch, Engine, Hold) {
    begin_with(name, |_| {})
}

fn begin_with(name: &str, change: impl FnOnce(&mut Config)) -> (Scratch, Engine, Hold) {
    let (scratch, hold) = (scratch(name), Hold::default());
    let mut config = shared(scratch.path(), &hold);
    change(&mut config);
    let engine = Engine::open(config).expect("open");
    (scratch, engine, hold)
}

/// Another program stores an object.
fn plant(scratch: &Scratch, key: &ObjectKey, bytes: &[u8]) {
    fs::write(scratch.join(&file_name(LAYOUT, key)), bytes).expect("write");
}

fn kinds(heard: &Recorder, key: &ObjectKey) -> Vec<(EventKind, u64)> {
    heard.events().into_iter().filter(|event| event.key == *key).map(|event| (event.kind, event.bytes)).collect()
}

#[test]
fn a_store_of_what_is_being_stored_adds_nothing_and_is_a_use() {
    let (scratch, engine, hold) = begin("re-store");
    let heard = Recorder::new();
    engine.subscribe(heard.clone()).expect("subscribe");
    hold.arm(Step::Published, &key(1));
    let first = engine.store(vec![(key(1), payload(1, 5000).into())]);
    hold.wait(Step::Published, &key(1));
    let second = engine.store(vec![(key(1), payload(2, 9000).into())]);
    hold.free(Step::Published, &key(1));
    assert!(matches!(done(first).results[..], [Ok(5000)]));
    assert!(matches!(done(second).results[..], [Ok(0)]));
    assert!(matches!(put(&engine, &key(1), b"third"), Ok(0)));
    assert!(get(&engine, &key(1), 5000).expect("load") == payload(1, 5000));
    assert_books(&engine, scratch.path(), LAYOUT);
    engine.close();
    let used = (EventKind::Accessed, 5000);
    assert_eq!(kinds(&heard, &key(1)), [(EventKind::Stored, 5000), used, used, used]);
}

#[test]
fn a_lookup_that_saw_the_file_of_a_store_in_flight_counts_nothing() {
    let (scratch, engine, hold) = begin("lookup-published");
    hold.arm(Step::Published, &key(1));
    let store = engine.store(vec![(key(1), payload(1, 5000).into())]);
    hold.wait(Step::Published, &key(1));
    assert!(scratch.join(&file_name(LAYOUT, &key(1))).exists(), "it has its name");
    // It is not there before its store has ended, and is pinned by nobody.
    assert_eq!(done(engine.lookup_and_pin(&[key(1)])).sizes, [None]);
    assert_eq!(engine.usage().total_bytes_used, 0);
    hold.free(Step::Published, &key(1));
    assert!(matches!(done(store).results[..], [Ok(5000)]));
    assert_eq!(find(&engine, &key(1)), Some(5000));
    assert_books(&engine, scratch.path(), LAYOUT);
    assert!(remove(&engine, &key(1)).is_ok());
}

#[test]
fn a_lookup_before_a_store_of_the_same_key_counts_the_file_once() {
    let (scratch, engine, hold) = begin("lookup-then-store");
    plant(&scratch, &key(1), &payload(1, 7000));
    hold.arm(Step::Looked, &key(1));
    let lookup = engine.lookup_and_pin(&[key(1)]);
    hold.wait(Step::Looked, &key(1));
    // The lookup has seen the file, and the store finds it, too: it is there, and stays what it is.
    assert!(matches!(put(&engine, &key(1), &payload(2, 9000)), Ok(0)));
    hold.free(Step::Looked, &key(1));
    assert_eq!(done(lookup).sizes, [Some(7000)]);
    assert_eq!(engine.unpin(&[key(1)]), 1);
    assert!(get(&engine, &key(1), 7000).expect("load") == payload(1, 7000));
    assert_books(&engine, scratch.path(), LAYOUT);
}

#[test]
fn a_delete_during_a_load_is_refused_and_the_load_is_whole() {
    const BYTES: usize = 3_000_001;
    // One piece at a time, so that the shard takes the delete between two of them.
    let (scratch, engine, hold) = begin_with("delete-load", |config| {
        (config.segment_bytes, config.load_inflight_bytes) = (64 << 10, 1);
    });
    put(&engine, &key(1), &payload(1, BYTES)).expect("store");
    hold.arm(Step::Loading, &key(1));
    let load = engine.load(vec![(key(1), vec![0; BYTES].into())]);
    hold.wait(Step::Loading, &key(1));
    let delete = engine.delete(&[key(1)]);
    hold.free(Step::Loading, &key(1));
    assert!(matches!(done(delete).results[..], [Err(Error::Pinned { pins: 0, loads: 1 })]));
    let mut report = done(load);
    assert!(matches!(report.results[..], [Ok(bytes)] if bytes == BYTES as u64));
    assert!(report.buffers.remove(0).expect("comes back").as_slice() == payload(1, BYTES));
    assert!(matches!(remove(&engine, &key(1)), Ok(bytes) if bytes == BYTES as u64));
    assert_books(&engine, scratch.path(), LAYOUT);
}

#[test]
fn a_delete_leaves_no_ghost_of_a_lookup_that_saw_the_file() {
    let (scratch, engine, hold) = begin("ghost");
    plant(&scratch, &salted(1, "s"), &payload(1, 7000));
    hold.arm(Step::Looked, &salted(1, "s"));
    let lookup = engine.lookup_and_pin(&[salted(1, "s")]);
    hold.wait(Step::Looked, &salted(1, "s"));
    assert!(matches!(remove(&engine, &salted(1, "s")), Ok(7000)));
    hold.free(Step::Looked, &salted(1, "s"));
    assert_eq!(done(lookup).sizes, [None]);
    assert!(matches!(get(&engine, &salted(1, "s"), 7000), Err(Error::NotFound)));
    assert_books(&engine, scratch.path(), LAYOUT);
    assert!(matches!(put(&engine, &salted(1, "s"), &payload(2, 100)), Ok(100)), "stored, not there already");
    assert_books(&engine, scratch.path(), LAYOUT);
}

#[test]
fn a_lookup_that_the_disk_does_not_answer_is_a_miss_in_time() {
    let (scratch, engine, hold) = begin_with("slow-stat", |config| config.lookup_deadline = REACHED);
    plant(&scratch, &key(1), &payload(1, 7000));
    hold.arm(Step::Looked, &key(1));
    let lookup = engine.lookup_and_pin(&[key(1), key(2)]);
    hold.wait(Step::Looked, &key(1));
    assert_eq!(done(lookup).sizes, [None, None], "answered although the thread that asks still stands there");
    hold.free(Step::Looked, &key(1));
    // It was told a miss, so it will not unpin: the object is nobody's.
    until("the late answer has come", || engine.usage().total_bytes_used == 7000);
    until("its pin is gone", || remove(&engine, &key(1)).is_ok());
    assert_books(&engine, scratch.path(), LAYOUT);
}

#[test]
fn a_delete_during_the_scan_leaves_no_ghost() {
    let (scratch, hold) = (scratch("ghost-scan"), Hold::default());
    plant(&scratch, &key(1), &payload(1, 7000));
    hold.arm(Step::Looked, &key(1));
    let opener = Engine::opener(shared(scratch.path(), &hold)).background(true);
    let (engine, hold) = (opener.open().expect("open"), hold);
    hold.wait(Step::Looked, &key(1));
    assert!(matches!(remove(&engine, &key(1)), Ok(7000)));
    assert_eq!(engine.usage().total_bytes_used, 0);
    hold.free(Step::Looked, &key(1));
    assert_eq!(engine.wait_recovered().objects, 0);
    assert_eq!(find(&engine, &key(1)), None);
    assert_books(&engine, scratch.path(), LAYOUT);
}

#[test]
fn a_delete_before_a_store_in_flight_finds_nothing() {
    // Where nobody else writes, the caller's thread claims and reserves.
    let (scratch, engine, hold) = begin_with("delete-store", |config| config.discovery = Discovery::Scan);
    hold.arm(Step::Reserved, &key(1));
    std::thread::scope(|scope| {
        let store = scope.spawn(|| put(&engine, &key(1), &payload(1, 5000)));
        hold.wait(Step::Reserved, &key(1));
        assert!(matches!(remove(&engine, &key(1)), Err(Error::NotFound)));
        hold.free(Step::Reserved, &key(1));
        assert!(matches!(store.join().expect("no panic"), Ok(5000)));
    });
    assert!(get(&engine, &key(1), 5000).expect("load") == payload(1, 5000));
    assert_books(&engine, scratch.path(), LAYOUT);
}

#[test]
fn a_delete_behind_a_store_that_has_its_name_deletes_it() {
    let (scratch, engine, hold) = begin("store-delete");
    hold.arm(Step::Published, &key(1));
    let store = engine.store(vec![(key(1), payload(1, 5000).into())]);
    hold.wait(Step::Published, &key(1));
    let delete = engine.delete(&[key(1)]);
    hold.free(Step::Published, &key(1));
    assert!(matches!(done(store).results[..], [Ok(5000)]));
    assert!(matches!(done(delete).results[..], [Ok(5000)]));
    assert_eq!(find(&engine, &key(1)), None);
    assert_books(&engine, scratch.path(), LAYOUT);
}

/// Found by the fault lab (a rename and a sync that took longer than the deadline): a delete had found nothing, and the object appeared.
#[test]
fn a_store_that_was_given_up_does_not_appear_later() {
    let (scratch, engine, hold) = begin_with("late-published", |config| config.store_deadline = REACHED);
    hold.arm(Step::Published, &key(1));
    let store = engine.store(vec![(key(1), payload(1, 5000).into())]);
    hold.wait(Step::Published, &key(1));
    assert!(matches!(done(store).results[..], [Err(Error::TimedOut { .. })]));
    let delete = engine.delete(&[key(1)]);
    hold.free(Step::Published, &key(1));
    assert!(matches!(done(delete).results[..], [Err(Error::NotFound)]), "it was said that it is not stored");
    assert_eq!(find(&engine, &key(1)), None);
    assert!(!scratch.join(&file_name(LAYOUT, &key(1))).exists(), "its name is taken back");
    assert_books(&engine, scratch.path(), LAYOUT);
}

#[test]
fn a_store_during_a_delete_waits_for_it_and_stores() {
    let (scratch, engine, hold) = begin("delete-then-store");
    put(&engine, &key(1), &payload(1, 5000)).expect("store");
    hold.arm(Step::Removed, &key(1));
    let delete = engine.delete(&[key(1)]);
    hold.wait(Step::Removed, &key(1));
    let store = engine.store(vec![(key(1), payload(2, 9000).into())]);
    hold.free(Step::Removed, &key(1));
    assert!(matches!(done(delete).results[..], [Ok(5000)]));
    assert!(matches!(done(store).results[..], [Ok(9000)]));
    assert!(get(&engine, &key(1), 9000).expect("load") == payload(2, 9000));
    assert_books(&engine, scratch.path(), LAYOUT);
}

#[test]
fn bytes_that_are_reserved_are_nobody_elses() {
    let (scratch, engine, hold) = begin_with("reserved", |config| {
        (config.capacity_bytes, config.discovery) = (Some(10_000), Discovery::Scan);
    });
    hold.arm(Step::Reserved, &key(1));
    std::thread::scope(|scope| {
        let store = scope.spawn(|| put(&engine, &key(1), &payload(1, 6000)));
        hold.wait(Step::Reserved, &key(1));
        let refused = put(&engine, &key(2), &payload(2, 6000));
        assert!(matches!(refused, Err(Error::Full { needed: 6000, free: 4000, capacity: 10_000 })), "{refused:?}");
        assert!(matches!(put(&engine, &salted(3, "s"), &payload(3, 4000)), Ok(4000)), "what is left is");
        hold.free(Step::Reserved, &key(1));
        assert!(matches!(store.join().expect("no panic"), Ok(6000)));
    });
    assert_eq!(assert_books(&engine, scratch.path(), LAYOUT).bytes, 10_000);
}

#[test]
fn of_a_batch_only_what_was_stored_is_told() {
    let (scratch, engine, _hold) = begin_with("partial", |config| {
        (config.capacity_bytes, config.max_object_bytes) = (Some(20_000), 8000);
    });
    put(&engine, &key(1), &payload(1, 1000)).expect("store");
    let heard = Recorder::new();
    engine.subscribe(heard.clone()).expect("subscribe");
    let nameless = ObjectKey::new(&"m".repeat(300), 0, 0, &[1; 32], "s").expect("a valid key");
    let batch: Vec<(ObjectKey, usize)> = vec![
        (salted(2, "s"), 5000),
        (salted(3, "s"), 8001),
        (nameless, 10),
        (key(1), 77),
        (salted(2, "s"), 6000),
        (key(4), 8000),
        (key(5), 8000),
        (key(6), 6000),
    ];
    let buffers = batch.iter().map(|(key, bytes)| (key.clone(), Buffer::from(payload(9, *bytes)))).collect();
    let report = done(engine.store(buffers));
    assert!(
        matches!(
            report.results[..],
            [
                Ok(5000),
                Err(Error::TooLarge { .. }),
                Err(Error::Name(_)),
                Ok(0),
                Ok(0),
                Ok(8000),
                Err(Error::Full { needed: 8000, free: 6000, .. }),
                Ok(6000)
            ]
        ),
        "{:?}",
        report.results
    );
    assert!(report.buffers.iter().all(Option::is_some), "the buffers come back");
    let disk = assert_books(&engine, scratch.path(), LAYOUT);
    until("all is told", || heard.bytes() == disk.bytes);
    engine.close();
    let stored: Vec<_> = heard.events().into_iter().filter(|event| event.kind == EventKind::Stored).collect();
    let mut told: Vec<_> = stored.iter().map(|event| (event.key.clone(), event.bytes)).collect();
    told.sort_by_key(|(_, bytes)| *bytes);
    assert_eq!(
        told,
        [(key(1), 1000), (salted(2, "s"), 5000), (key(6), 6000), (key(4), 8000)],
        "the first was there at subscription"
    );
}

#[test]
fn what_is_taken_away_twice_is_counted_once() {
    let (scratch, engine, hold) = begin("underflow");
    for salt in ["a", "b"] {
        for n in 0..4 {
            put(&engine, &salted(n, salt), &payload(n.into(), 1000)).expect("store");
        }
    }
    // Twice in one batch; by somebody else before; by somebody else while a load is about to open it.
    let twice = done(engine.delete(&[salted(0, "a"), salted(0, "a")])).results;
    assert!(matches!(twice[..], [Ok(1000), Err(Error::NotFound)]), "{twice:?}");
    fs::remove_file(scratch.join(&file_name(LAYOUT, &salted(1, "a")))).expect("unlink");
    assert!(matches!(remove(&engine, &salted(1, "a")), Ok(1000)));
    assert!(matches!(remove(&engine, &salted(1, "a")), Err(Error::NotFound)));
    hold.arm(Step::Loading, &salted(2, "a"));
    let load = engine.load(vec![(salted(2, "a"), vec![0; 1000].into())]);
    hold.wait(Step::Loading, &salted(2, "a"));
    fs::remove_file(scratch.join(&file_name(LAYOUT, &salted(2, "a")))).expect("unlink");
    let delete = engine.delete(&[salted(2, "a")]);
    hold.free(Step::Loading, &salted(2, "a"));
    let (load, delete) = (done(load).results.remove(0), done(delete).results.remove(0));
    // The load may have the file open from the store: then it is whole, and the delete comes too early.
    assert!(matches!(load, Ok(1000) | Err(Error::NotFound)), "{load:?}");
    assert!(matches!(delete, Ok(1000) | Err(Error::NotFound | Error::Pinned { .. })), "{delete:?}");
    let _ = remove(&engine, &salted(2, "a"));
    let disk = assert_books(&engine, scratch.path(), LAYOUT);
    assert_eq!((disk.bytes_by_salt["a"], disk.bytes_by_salt["b"]), (1000, 4000));
}

#[test]
fn keys_and_buffers_that_do_not_pair_are_refused_as_a_whole() {
    let scratch = scratch("mismatch");
    let mut config = NixlDynamicAdapter::config(scratch.path(), 1 << 20);
    config.pin_shards = false;
    let adapter: Box<dyn Adapter> = Box::new(NixlDynamicAdapter::open(config).expect("open"));
    for (keys, buffers) in [(vec![key(1), key(2)], 1), (vec![key(1)], 2), (vec![], 1), (vec![key(1)], 0)] {
        let lent = || (0..buffers).map(|n| Buffer::from(payload(n, 100))).collect::<Vec<_>>();
        for refused in [adapter.store(&keys, lent()).map(drop), adapter.load(&keys, lent()).map(drop)] {
            let refused = refused.expect_err("they do not pair");
            let expected = (keys.len(), buffers as usize);
            assert!(matches!(refused.error, Error::LengthMismatch { keys, buffers } if (keys, buffers) == expected));
            assert_eq!(refused.buffers.len(), buffers as usize, "they come back");
            assert!(refused.buffers.iter().zip(0..).all(|(buffer, n)| buffer.as_slice() == payload(n, 100)));
        }
    }
    assert_eq!(adapter.status().objects, 0);
    assert_books(adapter.engine(), scratch.path(), LAYOUT);
    adapter.close();
}

/// An engine that was closed, with objects 1 and 2; its successor's scan has looked at one of them, and stands there.
fn reopen_held(name: &str, at: u32, change: impl FnOnce(&Scratch)) -> (Scratch, Engine, Hold) {
    let (scratch, engine, hold) = begin(name);
    for n in [1, 2] {
        put(&engine, &key(n), &payload(n.into(), 5000)).expect("store");
    }
    engine.close();
    change(&scratch);
    let mut config = shared(scratch.path(), &hold);
    (config.discovery, config.capacity_bytes) = (Discovery::Scan, None);
    hold.arm(Step::Looked, &key(at));
    let engine = Engine::opener(config).background(true).open().expect("open");
    hold.wait(Step::Looked, &key(at));
    (scratch, engine, hold)
}

#[test]
fn two_who_look_at_a_changed_object_of_the_snapshot_count_it_once() {
    let (scratch, engine, hold) = reopen_held("hint-changed", 1, |scratch| plant(scratch, &key(1), &payload(1, 7000)));
    let heard = Recorder::new();
    engine.subscribe(heard.clone()).expect("subscribe");
    assert_eq!(find(&engine, &key(1)), Some(7000), "asked of the disk while the scan stands");
    hold.free(Step::Looked, &key(1));
    engine.wait_recovered();
    assert_books(&engine, scratch.path(), LAYOUT);
    engine.close();
    assert_eq!(
        kinds(&heard, &key(1)),
        [(EventKind::Recovered, 5000), (EventKind::Deleted, 5000), (EventKind::Recovered, 7000)]
    );
}

#[test]
fn a_store_of_what_only_the_snapshot_has_is_not_undone_by_who_saw_nothing() {
    let (scratch, engine, hold) = reopen_held("hint-gone", 2, |scratch| {
        fs::remove_file(scratch.join(&file_name(LAYOUT, &key(2)))).expect("unlink")
    });
    assert!(matches!(put(&engine, &key(2), &payload(3, 300)), Ok(300)), "stored, not there already");
    hold.free(Step::Looked, &key(2));
    engine.wait_recovered();
    assert_eq!((find(&engine, &key(1)), find(&engine, &key(2))), (Some(5000), Some(300)));
    assert!(get(&engine, &key(2), 300).expect("load") == payload(3, 300));
    assert_books(&engine, scratch.path(), LAYOUT);
}

#[test]
fn a_delete_of_an_object_of_the_snapshot_leaves_no_ghost_of_who_saw_its_file() {
    let (scratch, engine, hold) = reopen_held("hint-ghost", 1, |_| {});
    assert!(matches!(remove(&engine, &key(1)), Ok(5000)));
    hold.free(Step::Looked, &key(1));
    engine.wait_recovered();
    assert_eq!(find(&engine, &key(1)), None);
    assert!(matches!(put(&engine, &key(1), &payload(2, 100)), Ok(100)), "stored, not there already");
    assert_books(&engine, scratch.path(), LAYOUT);
}
