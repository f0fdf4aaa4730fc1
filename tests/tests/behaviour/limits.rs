//! What happens when a queue is full, a time is up, or a configuration is at its end.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use saltern::{Config, DEPTH_RANGE, EVENT_QUEUE_MAX, Engine, Error, Event, EventKind, Layout, Listener, ObjectKey};
use saltern_tests::{
    Disk, Recorder, assert_books, config, done, file_name, find, get, key, open, payload, put, remove, until,
};

use crate::gate::{Gate, OpenOnDrop};
use crate::scratch;

#[test]
fn stores_that_expire_in_the_queue_give_their_room_back() {
    let scratch = scratch("expired");
    let mut config = config(scratch.path());
    config.depth = DEPTH_RANGE.0;
    config.capacity_bytes = Some(1 << 30);
    config.store_deadline = Duration::from_millis(1);
    let engine = Engine::open(config).expect("open");
    let stores = (0..300).map(|n| (key(n), payload(n.into(), 1 << 20).into())).collect();
    let report = done(engine.store(stores));
    let expired = report.results.iter().filter(|result| matches!(result, Err(Error::TimedOut { .. }))).count();
    let stored = report.results.iter().filter(|result| matches!(result, Ok(bytes) if *bytes == 1 << 20)).count();
    assert_eq!(expired + stored, 300);
    // Nothing else is done that could bring the books up to date by the way.
    let disk = assert_books(&engine, scratch.path(), Layout::Fs);
    engine.close();
    assert_eq!(Disk::read(scratch.path(), Layout::Fs), disk);
}

#[test]
fn a_store_that_expires_during_the_scan_hides_nothing() {
    const FILES: u32 = 2000;
    let scratch = scratch("expired-scan");
    for n in 0..FILES {
        let file = File::create(scratch.join(&file_name(Layout::Fs, &key(n)))).expect("create");
        file.set_len(5000).expect("truncate");
    }
    let gate = Gate::new();
    let hold = gate.clone();
    let mut config = config(scratch.path());
    config.depth = DEPTH_RANGE.0;
    config.store_deadline = Duration::from_millis(1);
    // One thread, which is held after its first few hundred names.
    config.scan_threads = 1;
    let engine = Engine::opener(config).background(true).progress(move |_| hold.pass()).open().expect("open");
    let gate = OpenOnDrop(gate);
    // The large ones keep the shard busy until the others, of keys that the scan has yet to come to, have expired.
    let mut batch: Vec<_> = (0..200).map(|n| (key(FILES + n), vec![1; 1 << 20].into())).collect();
    batch.extend((0..FILES).map(|n| (key(n), vec![1; 100].into())));
    let ticket = engine.store(batch);
    drop(gate);
    engine.wait_recovered();
    done(ticket);
    let disk = assert_books(&engine, scratch.path(), Layout::Fs);
    assert!(disk.files.len() >= FILES as usize);
    for n in 0..FILES {
        assert_eq!(find(&engine, &key(n)), Some(5000), "{n} was there before");
    }
}

#[test]
fn stores_under_a_capacity_wait_for_the_scan() {
    let scratch = scratch("deferred");
    for n in 0..1000 {
        let file = File::create(scratch.join(&file_name(Layout::Fs, &key(n)))).expect("create");
        file.set_len(100).expect("truncate");
    }
    let gate = Gate::new();
    let hold = gate.clone();
    let mut config = config(scratch.path());
    config.capacity_bytes = Some(100_250);
    let opener = Engine::opener(config).background(true).progress(move |_| hold.pass());
    let engine = opener.open().expect("open");
    let gate = OpenOnDrop(gate);
    // Room for two of the three that are new.
    let batch = [key(5000), key(7), key(5001), key(5000), key(5002)].map(|key| (key, vec![1; 100].into()));
    let mut ticket = engine.store(batch.into());
    assert!(ticket.try_take().is_none(), "what is used is not known");
    drop(gate);
    engine.wait_recovered();
    let results = done(ticket).results;
    assert!(
        matches!(results[..], [Ok(100), Ok(0), Ok(100), Ok(0), Err(Error::Full { needed: 100, free: 50, .. })]),
        "{results:?}"
    );
    assert_books(&engine, scratch.path(), Layout::Fs);
}

#[test]
fn the_smallest_limits_still_let_objects_through() {
    for (inflight, depth) in [(0, 64), (1, DEPTH_RANGE.0), (1, 64), (usize::MAX, DEPTH_RANGE.1)] {
        let scratch = scratch("small");
        let mut config = config(scratch.path());
        (config.load_inflight_bytes, config.store_inflight_bytes, config.depth) = (inflight, inflight, depth);
        config.segment_bytes = 64 << 10;
        config.scan_threads = 1;
        let Some(engine) = opened_or_refused(config) else { continue };
        let stores = (0..20).map(|n| (key(n), payload(n.into(), 300_001).into())).collect();
        let results = done(engine.store(stores)).results;
        if !results.iter().all(|result| matches!(result, Ok(300_001))) {
            // What is stuck would keep it from closing.
            std::mem::forget(engine);
            panic!("{inflight}, {depth}: {results:?}");
        }
        let loads = (0..20).map(|n| (key(n), vec![0; 300_001].into())).collect();
        let report = done(engine.load(loads));
        for (n, buffer) in (0..).zip(report.buffers) {
            assert!(buffer.expect("comes back").as_slice() == payload(n, 300_001), "{inflight}, {depth}: object {n}");
        }
    }
}

/// A value may be refused at once, but not be taken and then not work.
fn opened_or_refused(config: Config) -> Option<Engine> {
    match Engine::open(config) {
        Ok(engine) => Some(engine),
        Err(Error::Config { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn times_without_an_end_are_that() {
    for forever in [Duration::from_secs(u64::from(u32::MAX)), Duration::MAX] {
        let scratch = scratch("forever");
        let mut config = config(scratch.path());
        (config.pin_lease, config.lock_wait) = (forever, forever);
        (config.store_deadline, config.load_deadline, config.lookup_deadline) = (forever, forever, forever);
        let Some(engine) = opened_or_refused(config) else { continue };
        assert!(matches!(put(&engine, &key(1), b"x"), Ok(1)));
        assert!(get(&engine, &key(1), 1).expect("load") == b"x");
        assert_eq!(done(engine.lookup_and_pin(&[key(1)])).hits(), 1);
        assert!(matches!(remove(&engine, &key(1)), Err(Error::Pinned { pins: 1, .. })), "{forever:?}");
        assert_eq!(engine.unpin(&[key(1)]), 1);
        assert!(remove(&engine, &key(1)).is_ok());
    }
}

#[test]
fn times_of_nothing_end_at_once_and_break_nothing() {
    let scratch = scratch("no-time");
    let mut config = config(scratch.path());
    (config.pin_lease, config.lock_wait) = (Duration::ZERO, Duration::ZERO);
    (config.store_deadline, config.load_deadline, config.lookup_deadline) = Default::default();
    let Some(engine) = opened_or_refused(config) else { return };
    for n in 0..50 {
        let stored = put(&engine, &key(n), &payload(n.into(), 5000));
        assert!(matches!(stored, Ok(5000) | Err(Error::TimedOut { .. })), "{stored:?}");
        match get(&engine, &key(n), 5000) {
            Ok(bytes) => assert!(bytes == payload(n.into(), 5000)),
            Err(Error::TimedOut { .. } | Error::NotFound) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_books(&engine, scratch.path(), Layout::Fs);
}

/// Blocks the engine's event thread until the gate opens, then remembers.
struct Slow {
    gate: Arc<Gate>,
    heard: Arc<Recorder>,
}

impl Listener for Slow {
    fn on_events(&self, events: &[Event]) {
        self.gate.pass();
        self.heard.on_events(events);
    }

    fn on_reset(&self) {
        self.heard.on_reset();
    }
}

#[test]
fn a_listener_that_is_too_slow_starts_over() {
    const KEYS: u32 = 1000;
    let scratch = scratch("slow-listener");
    let engine = open(scratch.path());
    let all: Vec<ObjectKey> = (0..KEYS).map(key).collect();
    let stores = |bytes: usize| all.iter().map(|key| (key.clone(), vec![1; bytes].into())).collect::<Vec<_>>();
    let gate = OpenOnDrop(Gate::new());
    let heard = Recorder::new();
    engine.subscribe(Arc::new(Slow { gate: gate.0.clone(), heard: heard.clone() })).expect("subscribe");
    assert!(done(engine.store(stores(10))).results.iter().all(|result| matches!(result, Ok(10))));
    for _ in 0..EVENT_QUEUE_MAX / KEYS as usize + 2 {
        assert!(done(engine.store(stores(0))).results.iter().all(|result| matches!(result, Ok(0))));
    }
    // Lost to the listener, but not to what it is told then.
    for key in &all[..100] {
        remove(&engine, key).expect("delete");
    }
    put(&engine, &key(KEYS), &[2; 20]).expect("store");
    drop(gate);
    until("the listener is told to start over", || heard.resets() == 1);
    put(&engine, &key(KEYS + 1), &[2; 20]).expect("store");
    let disk = assert_books(&engine, scratch.path(), Layout::Fs);
    engine.close();
    let objects = heard.objects();
    assert_eq!(objects.values().sum::<u64>(), disk.bytes);
    assert_eq!(objects.len(), disk.files.len());
}

/// What a host's eviction does: on each store it deletes the object before, and waits for that.
struct Evicting {
    engine: OnceLock<Weak<Engine>>,
    last: Mutex<Option<ObjectKey>>,
    freed: AtomicU64,
}

impl Listener for Evicting {
    fn on_events(&self, events: &[Event]) {
        let Some(engine) = self.engine.get().and_then(Weak::upgrade) else { return };
        for event in events.iter().filter(|event| event.kind == EventKind::Stored) {
            assert!(engine.usage().total_bytes_used <= 200 * 1000 && engine.status().is_healthy);
            if let Some(before) = self.last.lock().expect("not poisoned").replace(event.key.clone()) {
                self.freed.fetch_add(remove(&engine, &before).expect("delete"), Ordering::Relaxed);
            }
        }
    }
}

#[test]
fn a_listener_may_call_the_engine() {
    let scratch = scratch("evicting");
    let engine = Arc::new(open(scratch.path()));
    let listener = Arc::new(Evicting { engine: OnceLock::new(), last: Mutex::default(), freed: AtomicU64::new(0) });
    listener.engine.set(Arc::downgrade(&engine)).expect("the first time");
    engine.subscribe(listener.clone()).expect("subscribe");
    for n in 0..200 {
        put(&engine, &key(n), &payload(n.into(), 1000)).expect("store");
    }
    until("all but the last are evicted", || listener.freed.load(Ordering::Relaxed) == 199 * 1000);
    assert_eq!(find(&engine, &key(199)), Some(1000));
    assert_books(&engine, scratch.path(), Layout::Fs);
    // The listener may be the last to hold the engine for a moment, and must not be the one that closes it.
    let mut engine = engine;
    let engine = loop {
        match Arc::try_unwrap(engine) {
            Ok(engine) => break engine,
            Err(shared) => engine = shared,
        }
        std::thread::yield_now();
    };
    engine.close();
}
