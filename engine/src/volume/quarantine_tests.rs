//! The quarantine, step by step. `quarantine_model.rs` has its threads.

use std::time::{Duration, Instant};

use super::quarantine::{LOADS_LAST, Quarantine, REST, REST_BESIDE_LOADS, REST_MAX};

#[test]
fn a_file_waits_for_a_sync_that_began_after_it_came() {
    let quarantine = Quarantine::default();
    let now = Instant::now();
    let before = quarantine.enter();
    let sync = quarantine.try_begin(now, 0).unwrap();
    let during = quarantine.enter();
    assert!(before >= quarantine.clean_below(), "nothing has ended");
    quarantine.end(sync, true, now);
    assert!(before < quarantine.clean_below() && during >= quarantine.clean_below());
}

#[test]
fn syncs_come_one_at_a_time_and_rest_in_proportion() {
    let quarantine = Quarantine::default();
    let begin = Instant::now();
    let after = |ms| begin + Duration::from_millis(ms);
    let sync = quarantine.try_begin(begin, 0).unwrap();
    assert!(quarantine.try_begin(after(1), 0).is_none(), "one runs");
    quarantine.end(sync, true, after(10));
    assert!(quarantine.try_begin(after(10 + 10 * u64::from(REST) - 1), 0).is_none(), "it rests");
    let long = quarantine.try_begin(after(10 + 10 * u64::from(REST)), 0).unwrap();
    quarantine.end(long, true, after(1_000_000));
    assert!(quarantine.try_begin(after(1_000_000) + REST_MAX, 0).is_some(), "no rest is longer than the longest");
}

#[test]
fn beside_loads_syncs_rest_longer() {
    let quarantine = Quarantine::default();
    let begin = Instant::now();
    let after = |ms| begin + Duration::from_millis(ms);
    let sync = quarantine.try_begin(begin, 0).unwrap();
    quarantine.end(sync, true, after(10));
    let (rest, long) = (10 * u64::from(REST), 10 * u64::from(REST_BESIDE_LOADS));
    assert!(quarantine.try_begin(after(10 + rest), 1).is_none(), "something was loaded");
    assert!(quarantine.try_begin(after(10 + long - 1), 2).is_none(), "and again");
    let sync = quarantine.try_begin(after(10 + long), 3).unwrap();
    quarantine.end(sync, true, after(20 + long));
    let last = after(20 + long + rest);
    assert!(quarantine.try_begin(last, 4).is_none());
    assert!(quarantine.try_begin(last + LOADS_LAST, 4).is_some(), "nothing was loaded since");
}

#[test]
fn after_a_failed_sync_there_is_none() {
    let quarantine = Quarantine::default();
    let now = Instant::now();
    let entered = quarantine.enter();
    let sync = quarantine.try_begin(now, 0).unwrap();
    quarantine.end(sync, false, now);
    assert!(quarantine.has_failed() && entered >= quarantine.clean_below());
    assert!(quarantine.try_begin(now + REST_MAX, 0).is_none());
}
