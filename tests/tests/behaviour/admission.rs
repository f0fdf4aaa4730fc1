//! The filter in front of the disk: what nobody has asked for often enough is not written.

use macro_rules_attribute::apply;
use saltern::{Admission, Buffer, Config, Discovery, Error, Eviction};
use saltern_tests::{Cell, Exposition, Mount, Recorder, done, find, get, key, payload, put, salted};

use crate::mount;

fn filtered(mount: &Mount) -> Config {
    let mut config = mount.config();
    config.admission = Admission::frequent();
    config
}

fn is_turned_away(result: &Result<u64, Error>) -> bool {
    matches!(result, Err(Error::NotAdmitted { seen: 1, needed: 2 }))
}

#[apply(each_cell!)]
fn by_default_everything_is_written(cell: Cell) {
    let mount = mount(cell, "admission-off");
    let engine = mount.open();
    assert_eq!(engine.status().admission, Admission::All);
    assert!(matches!(put(&engine, &key(1), b"first"), Ok(5)));
}

#[apply(each_cell!)]
fn the_first_store_of_a_key_leaves_nothing_and_the_second_is_written(cell: Cell) {
    let discoveries =
        if cell.is_shared() { &[Discovery::ScanAndAsk][..] } else { &[Discovery::Scan, Discovery::ScanAndAsk] };
    for discovery in discoveries.iter().copied() {
        let mount = mount(cell, "admission");
        let mut config = filtered(&mount);
        (config.discovery, config.capacity_bytes) = (discovery, Some(1 << 20));
        let engine = mount.open_as(config);
        let heard = Recorder::new();
        engine.subscribe(heard.clone()).expect("subscribe");
        let batch = |from: u32| (from..from + 10).map(|n| (key(n), Buffer::from(payload(n.into(), 5000)))).collect();
        let first = done(engine.store(batch(0)));
        assert!(first.results.iter().all(is_turned_away), "{:?}", first.results);
        let back = first
            .buffers
            .iter()
            .zip(0..)
            .all(|(buffer, n)| buffer.as_ref().is_some_and(|buffer| buffer.as_slice() == payload(n, 5000)));
        assert!(back, "the buffers come back as they were");
        assert_eq!(mount.assert_books(&engine).files.len(), 0);
        assert_eq!((find(&engine, &key(0)), heard.events().len()), (None, 0));
        // Half of them are offered again.
        let second = done(engine.store(batch(5))).results;
        assert!(second[..5].iter().all(|result| matches!(result, Ok(5000))), "{second:?}");
        assert!(second[5..].iter().all(is_turned_away), "{second:?}");
        assert_eq!(get(&engine, &key(5), 5000).expect("load"), payload(5, 5000));
        let status = engine.status();
        assert_eq!((status.counters.stores, status.counters.stores_not_admitted), (5, 15));
        assert_eq!((status.counters.store_errors, status.counters.stores_refused), (0, 0), "no failures");
        let metrics = Exposition::parse(&engine.metrics()).expect("metrics");
        assert_eq!(metrics.value("saltern_stores_total", &[("result", "not_admitted")]), 15.0);
        mount.assert_books(&engine);
    }
}

#[apply(each_cell!)]
fn a_host_that_looks_up_before_it_stores_has_to_ask_twice(cell: Cell) {
    let mount = mount(cell, "admission-lookups");
    let engine = mount.open_as(filtered(&mount));
    assert_eq!(find(&engine, &key(1)), None);
    assert!(is_turned_away(&put(&engine, &key(1), b"wanted once")));
    assert_eq!(find(&engine, &key(1)), None);
    assert!(matches!(put(&engine, &key(1), b"wanted twice"), Ok(12)));
    // Asked for twice, never offered: the first offer is taken. Another salt has asked for nothing.
    assert_eq!((find(&engine, &key(2)), find(&engine, &key(2))), (None, None));
    assert!(is_turned_away(&put(&engine, &salted(2, "other"), b"another salt's")));
    assert!(matches!(put(&engine, &key(2), b"x"), Ok(1)));
    mount.assert_books(&engine);
}

#[apply(each_cell!)]
fn what_is_there_is_not_filtered(cell: Cell) {
    let mount = mount(cell, "admission-present");
    mount.plant(&key(1), &payload(1, 5000));
    let mut config = filtered(&mount);
    config.discovery = Discovery::ScanAndAsk;
    let engine = mount.open_as(config);
    // One that the scan has found, one that another program has stored since: the disk is asked before the filter.
    mount.plant(&key(2), &payload(2, 6000));
    for n in 1..=2 {
        assert!(matches!(put(&engine, &key(n), b"again"), Ok(0)), "a use of what is there");
    }
    assert_eq!(engine.status().counters.stores_not_admitted, 0);
    mount.assert_books(&engine);
}

#[apply(each_cell!)]
fn what_is_turned_away_makes_nobody_go(cell: Cell) {
    let mount = mount(cell, "admission-full");
    let mut config = filtered(&mount);
    (config.capacity_bytes, config.eviction) = (Some(50_000), Eviction::engine(Default::default()));
    let engine = mount.open_as(config);
    for n in (0..4).chain(0..4) {
        let _ = put(&engine, &key(n), &payload(n.into(), 10_000));
    }
    for n in 4..50 {
        assert!(is_turned_away(&put(&engine, &key(n), &payload(n.into(), 10_000))));
    }
    let counters = engine.status().counters;
    assert_eq!((counters.stores, counters.evictions, counters.stores_not_admitted), (4, 0, 50));
    assert_eq!(mount.assert_books(&engine).files.len(), 4);
}

#[apply(each_cell!)]
fn two_stores_of_a_key_at_once_are_two(cell: Cell) {
    let mount = mount(cell, "admission-twice");
    let engine = mount.open_as(filtered(&mount));
    let batch = (0..2).map(|_| (key(1), Buffer::from(payload(1, 5000)))).collect();
    let results = done(engine.store(batch)).results;
    assert!(is_turned_away(&results[0]) && matches!(results[1], Ok(5000)), "{results:?}");
    mount.assert_books(&engine);
}

#[apply(each_cell!)]
fn wrong_limits_are_named(cell: Cell) {
    let mount = mount(cell, "admission-limits");
    let mut config = mount.config();
    config.admission = Admission::Frequent { uses: 1, window: 1 << 20 };
    assert!(matches!(mount.try_open(config), Err(Error::Config { option: "admission", .. })));
}
