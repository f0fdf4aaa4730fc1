//! The filter in front of the disk: what nobody has asked for often enough is not written.

use saltern::{Admission, Buffer, Config, Discovery, Engine, Error, Eviction, Layout};
use saltern_tests::{
    Exposition, Recorder, assert_books, config, done, file_name, find, get, key, payload, put, salted,
};

use crate::scratch;

fn filtered(dir: &std::path::Path) -> Config {
    let mut config = config(dir);
    config.admission = Admission::frequent();
    config
}

fn is_turned_away(result: &Result<u64, Error>) -> bool {
    matches!(result, Err(Error::NotAdmitted { seen: 1, needed: 2 }))
}

#[test]
fn by_default_everything_is_written() {
    let scratch = scratch("admission-off");
    let engine = Engine::open(config(scratch.path())).expect("open");
    assert_eq!(engine.status().admission, Admission::All);
    assert!(matches!(put(&engine, &key(1), b"first"), Ok(5)));
}

#[test]
fn the_first_store_of_a_key_leaves_nothing_and_the_second_is_written() {
    for discovery in [Discovery::Scan, Discovery::ScanAndAsk] {
        let scratch = scratch("admission");
        let mut config = filtered(scratch.path());
        (config.discovery, config.capacity_bytes) = (discovery, Some(1 << 20));
        let engine = Engine::open(config).expect("open");
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
        assert_eq!(assert_books(&engine, scratch.path(), Layout::Fs).files.len(), 0);
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
        assert_books(&engine, scratch.path(), Layout::Fs);
    }
}

#[test]
fn a_host_that_looks_up_before_it_stores_has_to_ask_twice() {
    let scratch = scratch("admission-lookups");
    let engine = Engine::open(filtered(scratch.path())).expect("open");
    assert_eq!(find(&engine, &key(1)), None);
    assert!(is_turned_away(&put(&engine, &key(1), b"wanted once")));
    assert_eq!(find(&engine, &key(1)), None);
    assert!(matches!(put(&engine, &key(1), b"wanted twice"), Ok(12)));
    // Asked for twice, never offered: the first offer is taken. Another salt has asked for nothing.
    assert_eq!((find(&engine, &key(2)), find(&engine, &key(2))), (None, None));
    assert!(is_turned_away(&put(&engine, &salted(2, "other"), b"another salt's")));
    assert!(matches!(put(&engine, &key(2), b"x"), Ok(1)));
    assert_books(&engine, scratch.path(), Layout::Fs);
}

#[test]
fn what_is_there_is_not_filtered() {
    let scratch = scratch("admission-present");
    std::fs::write(scratch.join(&file_name(Layout::Fs, &key(1))), payload(1, 5000)).expect("write");
    let mut config = filtered(scratch.path());
    config.discovery = Discovery::ScanAndAsk;
    let engine = Engine::open(config).expect("open");
    // One that the scan has found, one that another program has stored since: the disk is asked before the filter.
    std::fs::write(scratch.join(&file_name(Layout::Fs, &key(2))), payload(2, 6000)).expect("write");
    for n in 1..=2 {
        assert!(matches!(put(&engine, &key(n), b"again"), Ok(0)), "a use of what is there");
    }
    assert_eq!(engine.status().counters.stores_not_admitted, 0);
    assert_books(&engine, scratch.path(), Layout::Fs);
}

#[test]
fn what_is_turned_away_makes_nobody_go() {
    let scratch = scratch("admission-full");
    let mut config = filtered(scratch.path());
    (config.capacity_bytes, config.eviction) = (Some(50_000), Eviction::engine(Default::default()));
    let engine = Engine::open(config).expect("open");
    for n in (0..4).chain(0..4) {
        let _ = put(&engine, &key(n), &payload(n.into(), 10_000));
    }
    for n in 4..50 {
        assert!(is_turned_away(&put(&engine, &key(n), &payload(n.into(), 10_000))));
    }
    let counters = engine.status().counters;
    assert_eq!((counters.stores, counters.evictions, counters.stores_not_admitted), (4, 0, 50));
    assert_eq!(assert_books(&engine, scratch.path(), Layout::Fs).files.len(), 4);
}

#[test]
fn two_stores_of_a_key_at_once_are_two() {
    let scratch = scratch("admission-twice");
    let engine = Engine::open(filtered(scratch.path())).expect("open");
    let batch = (0..2).map(|_| (key(1), Buffer::from(payload(1, 5000)))).collect();
    let results = done(engine.store(batch)).results;
    assert!(is_turned_away(&results[0]) && matches!(results[1], Ok(5000)), "{results:?}");
    assert_books(&engine, scratch.path(), Layout::Fs);
}

#[test]
fn wrong_limits_are_named() {
    let scratch = scratch("admission-limits");
    let mut config = config(scratch.path());
    config.admission = Admission::Frequent { uses: 1, window: 1 << 20 };
    assert!(matches!(Engine::open(config), Err(Error::Config { option: "admission", .. })));
}
