//! What happens when a queue is full, a time is up, or a configuration is at its end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use macro_rules_attribute::apply;
use saltern::{Config, DEPTH_RANGE, EVENT_QUEUE_MAX, Engine, Error, Event, EventKind, Listener, ObjectKey};
use saltern_tests::{Cell, Host, Mount, Recorder, done, find, get, key, payload, put, remove, until};

use crate::gate::{Gate, OpenOnDrop};
use crate::mount;

#[apply(each_cell!)]
fn stores_that_expire_in_the_queue_give_their_room_back(cell: Cell) {
    let mount = mount(cell, "expired");
    let mut config = mount.config();
    config.depth = DEPTH_RANGE.0;
    config.capacity_bytes = Some(1 << 30);
    config.store_deadline = Duration::from_millis(1);
    let engine = mount.open_as(config);
    let stores = (0..300).map(|n| (key(n), payload(n.into(), 1 << 20).into())).collect();
    let report = done(engine.store(stores));
    let expired = report.results.iter().filter(|result| matches!(result, Err(Error::TimedOut { .. }))).count();
    let stored = report.results.iter().filter(|result| matches!(result, Ok(bytes) if *bytes == 1 << 20)).count();
    assert_eq!(expired + stored, 300);
    // Nothing else is done that could bring the books up to date by the way.
    let disk = mount.assert_books(&engine);
    engine.close();
    assert_eq!(mount.disk(), disk);
}

#[apply(each_cell!)]
fn a_store_that_expires_during_the_scan_hides_nothing(cell: Cell) {
    let files = cell.sized(2000, 600);
    let mount = mount(cell, "expired-scan");
    for n in 0..files {
        mount.plant_sparse(&key(n), 5000);
    }
    let gate = Gate::new();
    let hold = gate.clone();
    let mut config = mount.config();
    config.depth = DEPTH_RANGE.0;
    config.store_deadline = Duration::from_millis(1);
    // One thread, which is held after its first few hundred names.
    config.scan_threads = 1;
    let engine = mount.open_with(Engine::opener(config).background(true).progress(move |_| hold.pass()));
    let gate = OpenOnDrop(gate);
    // The large ones keep the shard busy until the others, of keys that the scan has yet to come to, have expired.
    let mut batch: Vec<_> = (0..200).map(|n| (key(files + n), vec![1; 1 << 20].into())).collect();
    batch.extend((0..files).map(|n| (key(n), vec![1; 100].into())));
    let ticket = engine.store(batch);
    drop(gate);
    engine.wait_recovered();
    done(ticket);
    let disk = mount.assert_books(&engine);
    assert!(disk.files.len() >= files as usize);
    for n in 0..files {
        assert_eq!(find(&engine, &key(n)), Some(5000), "{n} was there before");
    }
}

#[apply(each_cell!)]
fn stores_under_a_capacity_wait_for_the_scan(cell: Cell) {
    let files = cell.sized(1000, 900);
    let mount = mount(cell, "deferred");
    for n in 0..files {
        mount.plant_sparse(&key(n), 100);
    }
    let gate = Gate::new();
    let hold = gate.clone();
    let mut config = mount.config();
    config.capacity_bytes = Some(u64::from(files) * 100 + 250);
    let opener = Engine::opener(config).background(true).progress(move |_| hold.pass());
    let engine = mount.open_with(opener);
    let gate = OpenOnDrop(gate);
    // Room for two of the three that are new.
    let batch = [key(5000), key(7), key(5001), key(5000), key(5002)].map(|key| (key, vec![1; 100].into()));
    let mut ticket = engine.store(batch.into());
    assert!(ticket.try_take().is_none(), "what is used is not known");
    drop(gate);
    engine.wait_recovered();
    let results = done(ticket).results;
    let is_full = |result: &Result<u64, Error>| matches!(result, Err(Error::Full { needed: 100, free: 50, .. }));
    if cell.volumes == 1 {
        assert!(matches!(results[..4], [Ok(100), Ok(0), Ok(100), Ok(0)]) && is_full(&results[4]), "{results:?}");
    } else {
        // Each volume's shard takes its stores up again, and whoever is first gets the room.
        let stored = results.iter().filter(|result| matches!(result, Ok(100))).count();
        assert!(stored == 2 && matches!(results[1], Ok(0)), "{results:?}");
        assert!(results.iter().all(|result| matches!(result, Ok(0 | 100)) || is_full(result)), "{results:?}");
    }
    mount.assert_books(&engine);
}

#[apply(each_cell!)]
fn the_smallest_limits_still_let_objects_through(cell: Cell) {
    for (inflight, depth) in [(0, 64), (1, DEPTH_RANGE.0), (1, 64), (usize::MAX, DEPTH_RANGE.1)] {
        let mount = mount(cell, "small");
        let mut config = mount.config();
        (config.load_inflight_bytes, config.store_inflight_bytes, config.depth) = (inflight, inflight, depth);
        config.segment_bytes = 64 << 10;
        config.scan_threads = 1;
        let Some(engine) = opened_or_refused(&mount, config) else { continue };
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
fn opened_or_refused(mount: &Mount, config: Config) -> Option<Host> {
    match mount.try_open(config) {
        Ok(engine) => Some(engine),
        Err(Error::Config { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

#[apply(each_cell!)]
fn times_without_an_end_are_that(cell: Cell) {
    for forever in [Duration::from_secs(u64::from(u32::MAX)), Duration::MAX] {
        let mount = mount(cell, "forever");
        let mut config = mount.config();
        (config.pin_lease, config.lock_wait) = (forever, forever);
        (config.store_deadline, config.load_deadline, config.lookup_deadline) = (forever, forever, forever);
        let Some(engine) = opened_or_refused(&mount, config) else { continue };
        assert!(matches!(put(&engine, &key(1), b"x"), Ok(1)));
        assert!(get(&engine, &key(1), 1).expect("load") == b"x");
        assert_eq!(done(engine.lookup_and_pin(&[key(1)])).hits(), 1);
        assert!(matches!(remove(&engine, &key(1)), Err(Error::Pinned { pins: 1, .. })), "{forever:?}");
        assert_eq!(engine.unpin(&[key(1)]), 1);
        assert!(remove(&engine, &key(1)).is_ok());
    }
}

#[apply(each_cell!)]
fn times_of_nothing_end_at_once_and_break_nothing(cell: Cell) {
    let mount = mount(cell, "no-time");
    let mut config = mount.config();
    (config.pin_lease, config.lock_wait) = (Duration::ZERO, Duration::ZERO);
    (config.store_deadline, config.load_deadline, config.lookup_deadline) = Default::default();
    let Some(engine) = opened_or_refused(&mount, config) else { return };
    for n in 0..50 {
        let stored = put(&engine, &key(n), &payload(n.into(), 5000));
        assert!(matches!(stored, Ok(5000) | Err(Error::TimedOut { .. })), "{stored:?}");
        match get(&engine, &key(n), 5000) {
            Ok(bytes) => assert!(bytes == payload(n.into(), 5000)),
            Err(Error::TimedOut { .. } | Error::NotFound) => {}
            other => panic!("{other:?}"),
        }
    }
    mount.assert_books(&engine);
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

#[apply(one_cell!)]
fn a_listener_that_is_too_slow_starts_over(cell: Cell) {
    const KEYS: u32 = 1000;
    let mount = mount(cell, "slow-listener");
    let engine = mount.open();
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
    let disk = mount.assert_books(&engine);
    engine.close();
    let objects = heard.objects();
    assert_eq!(objects.values().sum::<u64>(), disk.bytes);
    assert_eq!(objects.len(), disk.files.len());
}

/// What a host's eviction does: on each store it deletes the object before, and waits for that.
struct Evicting {
    engine: OnceLock<Weak<Host>>,
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

#[apply(each_cell!)]
fn a_listener_may_call_the_engine(cell: Cell) {
    let mount = mount(cell, "evicting");
    let engine = Arc::new(mount.open());
    let listener = Arc::new(Evicting { engine: OnceLock::new(), last: Mutex::default(), freed: AtomicU64::new(0) });
    listener.engine.set(Arc::downgrade(&engine)).expect("the first time");
    engine.subscribe(listener.clone()).expect("subscribe");
    for n in 0..200 {
        put(&engine, &key(n), &payload(n.into(), 1000)).expect("store");
    }
    until("all but the last are evicted", || listener.freed.load(Ordering::Relaxed) == 199 * 1000);
    assert_eq!(find(&engine, &key(199)), Some(1000));
    mount.assert_books(&engine);
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
