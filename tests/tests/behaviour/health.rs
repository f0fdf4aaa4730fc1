//! What is broken is said, holds nobody up, and is not hidden by going on: a shard that panics, a machine that went down, a
//! directory that is not there any more.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use saltern::steps::{Step, Steps};
use saltern::{Config, Engine, Error, Integrity, Layout};
use saltern_tests::{
    Scratch, assert_books, config, done, file_name, find, get, key, open, payload, put, remove, until,
};

use crate::scratch;

const BYTES: usize = 100_000;

fn store(engine: &Engine, numbers: std::ops::Range<u32>) {
    for n in numbers {
        assert_eq!(put(engine, &key(n), &payload(n.into(), BYTES)).expect("store"), BYTES as u64);
    }
}

/// An engine whose shards panic at a step, once `armed`.
fn panicking(dir: &Path, at: Step, armed: &Arc<AtomicBool>) -> Engine {
    let mut config = config(dir);
    config.shards = 2;
    let armed = armed.clone();
    config.steps = Steps::new(move |step, _| {
        assert!(step != at || !armed.swap(false, Ordering::SeqCst), "the test wants this shard to panic");
    });
    Engine::open(config).expect("open")
}

#[test]
fn a_shard_that_panics_answers_for_all_it_had() {
    for at in [Step::Published, Step::Loading, Step::Removed] {
        let scratch = scratch("panic");
        let armed = Arc::new(AtomicBool::new(false));
        let engine = panicking(scratch.path(), at, &armed);
        store(&engine, 0..40);
        armed.store(true, Ordering::SeqCst);
        let keys: Vec<_> = (0..40).map(key).collect();
        let loads = engine.load(keys.iter().map(|key| (key.clone(), vec![0; BYTES].into())).collect());
        let stores = (100..140).map(|n| (key(n), payload(n.into(), BYTES).into())).collect();
        let stores = engine.store(stores);
        let deletes = engine.delete(&keys[..10]);
        // `done` fails on a ticket that does not complete.
        let loads = done(loads);
        let (stores, deletes) = (done(stores), done(deletes));
        let answers = loads.results.iter().chain(&stores.results).chain(&deletes.results);
        assert!(answers.clone().any(|answer| matches!(answer, Err(Error::ShardFailed))), "{at:?}");
        for (n, (result, buffer)) in loads.results.iter().zip(&loads.buffers).enumerate() {
            let is_right = || buffer.as_ref().is_some_and(|buffer| buffer.as_slice() == payload(n as u64, BYTES));
            assert!(result.is_err() || is_right(), "{at:?}: load {n}: {result:?}");
        }
        until("the engine says so", || !engine.status().is_healthy);
        assert!(engine.status().problems.iter().any(|problem| problem.contains("shard")), "{at:?}");
        // Whoever comes now is told at once.
        until("everything is refused", || matches!(put(&engine, &key(500), b"x"), Err(Error::ShardFailed)));
        assert!(matches!(get(&engine, &key(1), BYTES), Err(Error::ShardFailed)));
        assert!(matches!(remove(&engine, &key(1)), Err(Error::ShardFailed)));
        let _ = find(&engine, &key(1));
        let acknowledged: Vec<u32> = (100..140).filter(|n| stores.results[*n as usize - 100].is_ok()).collect();
        engine.close();
        let engine = open(scratch.path());
        for n in acknowledged {
            assert!(
                get(&engine, &key(n), BYTES).expect("it was acknowledged") == payload(n.into(), BYTES),
                "{at:?}: {n}"
            );
        }
        assert_books(&engine, scratch.path(), Layout::Fs);
    }
}

#[test]
fn a_scan_that_panics_is_an_error_and_nobody_waits_for_it() {
    let scratch = scratch("scan-panic");
    let engine = open(scratch.path());
    store(&engine, 0..3);
    engine.close();
    let mut config = config(scratch.path());
    config.steps = Steps::new(|step, _| assert!(step != Step::Looked, "the test wants the scan to panic"));
    let engine = Engine::opener(config).background(true).open().expect("open");
    let report = engine.wait_recovered();
    assert!(report.error.is_some(), "{report:?}");
    assert!(!engine.status().is_healthy);
}

/// As a machine that went down leaves a directory: the mark of its engine is there, and names another boot.
fn go_down(scratch: &Scratch) {
    fs::write(scratch.join(".saltern/running-of-a-boot-before"), b"").expect("write");
}

fn damage(scratch: &Scratch, n: u32) {
    let file = File::options().write(true).open(scratch.join(&file_name(Layout::Fs, &key(n)))).expect("open");
    file.write_all_at(b"torn", 5000).expect("write");
}

fn with(dir: &Path, integrity: Integrity) -> Config {
    let mut config = config(dir);
    config.integrity = integrity;
    config
}

fn marks(scratch: &Scratch) -> Vec<String> {
    let names = fs::read_dir(scratch.join(".saltern")).expect("readdir");
    let names = names.map(|entry| entry.expect("readdir").file_name().into_string().expect("text"));
    names.filter(|name| name.starts_with("running-") || name == "unverified").collect()
}

#[test]
fn after_an_unclean_reboot_objects_are_checked_before_their_first_use() {
    let scratch = scratch("unclean");
    let engine = Engine::open(with(scratch.path(), Integrity::Store)).expect("open");
    assert_eq!(marks(&scratch).len(), 1, "a running engine has its mark");
    store(&engine, 0..6);
    engine.close();
    assert_eq!(marks(&scratch), [""; 0], "a clean close takes it away");
    damage(&scratch, 2);
    damage(&scratch, 3);
    // Without a reboot `store` does not look.
    let engine = Engine::open(with(scratch.path(), Integrity::Store)).expect("open");
    assert!(get(&engine, &key(2), BYTES).expect("nobody looks") != payload(2, BYTES));
    engine.close();

    go_down(&scratch);
    // Another program's file, from before, without a checksum.
    fs::write(scratch.join(&file_name(Layout::Fs, &key(50))), payload(50, BYTES)).expect("write");
    let past = File::options().write(true).open(scratch.join(&file_name(Layout::Fs, &key(50)))).expect("open");
    past.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(60)).expect("utimens");
    let engine = Engine::open(with(scratch.path(), Integrity::Store)).expect("open");
    assert!(engine.status().volumes[0].checks_first_use);
    assert!(!engine.status().notes.is_empty());
    assert!(get(&engine, &key(1), BYTES).expect("it is right") == payload(1, BYTES));
    for _ in 0..2 {
        let again = get(&engine, &key(2), BYTES);
        assert!(matches!(again, Err(Error::Corrupt { .. } | Error::NotFound)), "{:?}", again.map(|bytes| bytes.len()));
    }
    assert!(matches!(get(&engine, &key(50), BYTES), Err(Error::Unverifiable { .. })));
    assert!(matches!(get(&engine, &key(50), BYTES), Err(Error::NotFound)));
    // What is stored since is served, and so is another program's newer file.
    store(&engine, 10..12);
    assert!(get(&engine, &key(10), BYTES).expect("load") == payload(10, BYTES));
    assert_books(&engine, scratch.path(), Layout::Fs);
    engine.close();

    // Not everything was looked at: the doubt outlives a clean close.
    assert_eq!(marks(&scratch), ["unverified"]);
    let engine = Engine::open(with(scratch.path(), Integrity::Store)).expect("open");
    assert!(matches!(get(&engine, &key(3), BYTES), Err(Error::Corrupt { .. })));
    for n in [0, 1, 4, 5, 10, 11] {
        assert!(get(&engine, &key(n), BYTES).expect("it is right") == payload(n.into(), BYTES));
    }
    engine.close();
    assert_eq!(marks(&scratch), [""; 0], "everything that is there was checked");
    assert!(!open(scratch.path()).status().volumes[0].checks_first_use);
}

#[test]
fn where_objects_have_no_checksums_an_unclean_reboot_drops_none() {
    let scratch = scratch("unclean-off");
    let engine = Engine::open(with(scratch.path(), Integrity::Off)).expect("open");
    store(&engine, 0..3);
    engine.close();
    go_down(&scratch);
    let engine = Engine::open(with(scratch.path(), Integrity::Off)).expect("open");
    for n in 0..3 {
        assert!(get(&engine, &key(n), BYTES).expect("load") == payload(n.into(), BYTES));
    }
    engine.close();
    assert_eq!(marks(&scratch), [""; 0]);
}

#[test]
fn a_kill_without_a_reboot_casts_no_doubt() {
    let scratch = scratch("killed");
    let mut config = config(scratch.path());
    config.boot_id = Some("one".into());
    let engine = Engine::open(config.clone()).expect("open");
    store(&engine, 0..1);
    engine.close();
    // As a kill leaves it.
    fs::write(scratch.join(".saltern/running-one"), b"").expect("write");
    let engine = Engine::open(config).expect("open");
    assert!(!engine.status().volumes[0].checks_first_use);
}

#[test]
fn a_directory_that_is_gone_takes_no_stores() {
    for is_moved in [false, true] {
        let scratch = scratch("gone");
        let dir = scratch.join("volume");
        let engine = open(&dir);
        store(&engine, 0..2);
        match is_moved {
            true => fs::rename(&dir, scratch.join("elsewhere")).expect("rename"),
            false => fs::remove_dir_all(&dir).expect("remove"),
        }
        let mut n = 10;
        until("stores are refused", || {
            n += 1;
            matches!(put(&engine, &key(n), b"x"), Err(Error::ReadOnly { .. }))
        });
        let status = engine.status();
        assert!(!status.is_healthy && status.volumes[0].read_only.is_some(), "{:?}", status.problems);
        // Back in its place, it stays as it was: what was lost meanwhile is not known.
        if is_moved {
            fs::rename(scratch.join("elsewhere"), &dir).expect("rename");
            assert!(matches!(put(&engine, &key(1000), b"x"), Err(Error::ReadOnly { .. })));
            assert!(get(&engine, &key(1), BYTES).expect("loads go on") == payload(1, BYTES));
            assert_eq!(remove(&engine, &key(1)).expect("deletes go on"), BYTES as u64);
            assert_books(&engine, &dir, Layout::Fs);
        }
    }
}
