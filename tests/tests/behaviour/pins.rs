//! Pins: counted leases that hold an object against deletion, but not for ever.

use std::time::Duration;

use macro_rules_attribute::apply;
use rand::Rng;
use saltern::Error;
use saltern_tests::{Cell, Seed, done, find, get, key, payload, put, remove, until};

use crate::mount;

#[apply(each_cell!)]
fn pins_are_counted(cell: Cell) {
    let mount = mount(cell, "counted");
    let engine = mount.open();
    put(&engine, &key(1), b"x").expect("store");
    for _ in 0..3 {
        assert_eq!(done(engine.lookup_and_pin(&[key(1)])).hits(), 1);
    }
    for pins in (1..=3).rev() {
        assert!(matches!(remove(&engine, &key(1)), Err(Error::Pinned { pins: found, loads: 0 }) if found == pins));
        assert_eq!(engine.unpin(&[key(1)]), 1);
    }
    assert!(matches!(remove(&engine, &key(1)), Ok(1)));
    assert_eq!(engine.unpin(&[key(1)]), 0);
}

#[apply(each_cell!)]
fn a_key_in_a_batch_twice_is_pinned_twice(cell: Cell) {
    let mount = mount(cell, "twice");
    let engine = mount.open();
    put(&engine, &key(1), b"x").expect("store");
    assert_eq!(done(engine.lookup_and_pin(&[key(1), key(1)])).hits(), 2);
    assert!(matches!(remove(&engine, &key(1)), Err(Error::Pinned { pins: 2, .. })));
    assert_eq!(engine.unpin(&[key(1), key(1), key(1)]), 2, "no more than there are");
    assert!(matches!(remove(&engine, &key(1)), Ok(1)));
}

#[apply(each_cell!)]
fn a_miss_pins_nothing(cell: Cell) {
    let mount = mount(cell, "miss");
    let engine = mount.open();
    assert_eq!(done(engine.lookup_and_pin(&[key(1)])).sizes, [None]);
    put(&engine, &key(1), b"x").expect("store");
    assert_eq!(engine.unpin(&[key(1)]), 0);
    assert!(matches!(remove(&engine, &key(1)), Ok(1)));
}

#[apply(each_cell!)]
fn only_pinned_objects_of_a_batch_are_refused(cell: Cell) {
    let mount = mount(cell, "some");
    let engine = mount.open();
    for n in 0..4 {
        put(&engine, &key(n), &payload(n.into(), 100)).expect("store");
    }
    assert_eq!(done(engine.lookup_and_pin(&[key(1), key(3)])).hits(), 2);
    let keys = [key(0), key(1), key(2), key(3), key(4)];
    let results = done(engine.delete(&keys)).results;
    assert!(
        matches!(
            results[..],
            [Ok(100), Err(Error::Pinned { .. }), Ok(100), Err(Error::Pinned { .. }), Err(Error::NotFound)]
        ),
        "{results:?}"
    );
    assert_eq!(engine.usage().total_bytes_used, 200);
    assert_eq!(engine.status().counters.deletes_refused, 2);
    mount.assert_books(&engine);
}

#[apply(each_cell!)]
fn a_lease_expires(cell: Cell) {
    let mount = mount(cell, "lease");
    let mut config = mount.config();
    config.pin_lease = Duration::from_millis(50);
    let engine = mount.open_as(config);
    for n in 0..2 {
        put(&engine, &key(n), b"0123").expect("store");
    }
    // The client that looked these up is never heard of again.
    assert_eq!(done(engine.lookup_and_pin(&[key(0), key(0), key(1)])).hits(), 3);
    for n in 0..2 {
        until("the lease has expired", || match remove(&engine, &key(n)) {
            Ok(4) => true,
            Err(Error::Pinned { .. }) => false,
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(engine.unpin(&[key(0), key(1)]), 0);
    mount.assert_books(&engine);
}

#[apply(each_cell!)]
fn an_expired_pin_is_not_released_twice(cell: Cell) {
    let mount = mount(cell, "expired");
    let mut config = mount.config();
    config.pin_lease = Duration::from_millis(20);
    let engine = mount.open_as(config);
    for n in 0..2 {
        put(&engine, &key(n), b"0123").expect("store");
    }
    assert_eq!(done(engine.lookup_and_pin(&[key(0), key(1)])).hits(), 2);
    // Key 1 has the same lease: when it is free, so is key 0.
    until("the lease has expired", || remove(&engine, &key(1)).is_ok());
    assert_eq!(engine.unpin(&[key(0)]), 0, "it is over, so there is nothing to release");
    assert!(matches!(remove(&engine, &key(0)), Ok(4)));
}

#[apply(each_cell!)]
fn pins_end_with_the_engine(cell: Cell) {
    let mount = mount(cell, "reopen");
    let engine = mount.open();
    put(&engine, &key(1), b"x").expect("store");
    assert_eq!(done(engine.lookup_and_pin(&[key(1)])).hits(), 1);
    engine.close();
    let engine = mount.open();
    assert!(matches!(remove(&engine, &key(1)), Ok(1)));
}

#[apply(each_cell!)]
fn a_load_in_flight_is_never_torn_by_a_delete(cell: Cell) {
    let seed = Seed::new("a_load_in_flight_is_never_torn_by_a_delete");
    let mut rng = seed.rng(0);
    let mount = mount(cell, "load-delete");
    let mut config = mount.config();
    config.shards = 2;
    let engine = mount.open_as(config);
    for round in 0..cell.sized(60, 15) {
        let content = payload(round, rng.random_range(1..3_000_000));
        let key = key(rng.random_range(0..4));
        put(&engine, &key, &content).expect("store");
        let len = content.len() as u64;
        assert_eq!(find(&engine, &key), Some(len));
        let load = engine.load(vec![(key.clone(), vec![0; content.len()].into())]);
        let result = remove(&engine, &key);
        let mut report = done(load);
        // Tickets that are in flight together have no order: a load is whole, or comes too late.
        match &report.results[0] {
            Ok(_) => assert!(report.buffers.remove(0).expect("comes back").as_slice() == content, "wrong bytes"),
            Err(Error::NotFound) => assert!(result.is_ok(), "{result:?}"),
            other => panic!("{other:?}, and the delete {result:?}"),
        }
        match result {
            Err(Error::Pinned { pins: 0, loads: 1 }) => assert!(matches!(remove(&engine, &key), Ok(n) if n == len)),
            other => assert!(matches!(other, Ok(n) if n == len), "{other:?}"),
        }
        assert!(matches!(get(&engine, &key, content.len()), Err(Error::NotFound)));
    }
    mount.assert_books(&engine);
}

#[apply(each_cell!)]
fn a_file_is_never_recycled_under_a_load(cell: Cell) {
    const OBJECTS: u32 = 24;
    const BYTES: usize = 2_000_001;
    let mount = mount(cell, "load-recycle");
    let mut config = mount.config();
    // Loads go one small piece at a time, so that deletes and stores get between them.
    (config.segment_bytes, config.load_inflight_bytes) = (64 << 10, 1);
    let engine = mount.open_as(config);
    let mut refused = 0;
    for round in 0..60 {
        let name = |n: u32| key(1000 * (round % 2) + n);
        let other = |n: u32| key(1000 * (1 - round % 2) + n);
        for n in 0..OBJECTS {
            let stored = put(&engine, &name(n), &payload(n.into(), BYTES));
            assert!(matches!(stored, Ok(bytes) if bytes == BYTES as u64 || bytes == 0), "{stored:?}");
        }
        let before = engine.status().counters.loads;
        let loads = engine.load((0..OBJECTS).map(|n| (name(n), vec![0; BYTES].into())).collect());
        until("the loads are under way", || engine.status().counters.loads > before);
        let deleted = done(engine.delete(&(0..OBJECTS).map(name).collect::<Vec<_>>())).results;
        let stores = (0..OBJECTS).map(|n| (other(n), payload(u64::from(n) + 500, BYTES).into())).collect();
        done(engine.store(stores));
        let report = done(loads);
        for ((n, result), buffer) in (0..OBJECTS).zip(report.results).zip(report.buffers) {
            match result {
                Ok(_) => assert!(buffer.expect("comes back").as_slice() == payload(n.into(), BYTES), "{round}: {n}"),
                Err(error) => assert!(matches!(error, Error::NotFound), "{round}: {n}: {error}"),
            }
        }
        refused += deleted.iter().filter(|result| matches!(result, Err(Error::Pinned { pins: 0, loads: 1 }))).count();
        let all: Vec<_> = (0..OBJECTS).flat_map(|n| [name(n), other(n)]).collect();
        done(engine.delete(&all));
        if refused > cell.sized(20, 0) && round > cell.sized(3, 0) {
            break;
        }
    }
    assert!(refused > 0, "no delete met a load in flight");
    mount.assert_books(&engine);
}
