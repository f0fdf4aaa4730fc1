//! What is broken is said, holds nobody up, and is not hidden by going on: a shard that panics, a machine that went down, a
//! directory that is not there any more.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use macro_rules_attribute::apply;
use saltern::steps::{Step, Steps};
use saltern::{Config, Engine, Error, Integrity};
use saltern_tests::{Cell, Host, Mount, done, find, get, key, payload, put, remove, until};

use crate::mount;

const BYTES: usize = 100_000;

fn store(engine: &Host, numbers: std::ops::Range<u32>) {
    for n in numbers {
        assert_eq!(put(engine, &key(n), &payload(n.into(), BYTES)).expect("store"), BYTES as u64);
    }
}

/// An engine whose shards panic at a step, once `armed`.
fn panicking(mount: &Mount, at: Step, armed: &Arc<AtomicBool>) -> Host {
    let mut config = mount.config();
    config.shards = 2;
    let armed = armed.clone();
    config.steps = Steps::new(move |step, _| {
        assert!(step != at || !armed.swap(false, Ordering::SeqCst), "the test wants this shard to panic");
    });
    mount.open_as(config)
}

#[apply(each_cell_of_one_volume!)]
fn a_shard_that_panics_answers_for_all_it_had(cell: Cell) {
    for at in [Step::Published, Step::Loading, Step::Removed] {
        let mount = mount(cell, "panic");
        let armed = Arc::new(AtomicBool::new(false));
        let engine = panicking(&mount, at, &armed);
        store(&engine, 0..50);
        armed.store(true, Ordering::SeqCst);
        let keys: Vec<_> = (0..40).map(key).collect();
        let loads = engine.load(keys.iter().map(|key| (key.clone(), vec![0; BYTES].into())).collect());
        let stores = (100..140).map(|n| (key(n), payload(n.into(), BYTES).into())).collect();
        let stores = engine.store(stores);
        // Of others than those that are loaded: a load under way refuses its object's removal.
        let deletes = engine.delete(&(40..50).map(key).collect::<Vec<_>>());
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
        let engine = mount.open();
        for n in acknowledged {
            assert!(
                get(&engine, &key(n), BYTES).expect("it was acknowledged") == payload(n.into(), BYTES),
                "{at:?}: {n}"
            );
        }
        mount.assert_books(&engine);
    }
}

#[apply(each_cell!)]
fn a_scan_that_panics_is_an_error_and_nobody_waits_for_it(cell: Cell) {
    let mount = mount(cell, "scan-panic");
    let engine = mount.open();
    store(&engine, 0..3);
    engine.close();
    let mut config = mount.config();
    config.steps = Steps::new(|step, _| assert!(step != Step::Looked, "the test wants the scan to panic"));
    let engine = mount.open_with(Engine::opener(config).background(true));
    let report = engine.wait_recovered();
    assert!(report.error.is_some(), "{report:?}");
    assert!(!engine.status().is_healthy);
}

/// As a machine that went down leaves a directory: the mark of its engine is there, and names another boot.
fn go_down(mount: &Mount) {
    for mark in mount.each(".saltern/running-of-a-boot-before") {
        fs::write(mark, b"").expect("write");
    }
}

fn damage(mount: &Mount, n: u32) {
    let file = File::options().write(true).open(mount.file(&key(n))).expect("open");
    file.write_all_at(b"torn", 5000).expect("write");
}

fn with(mount: &Mount, integrity: Integrity) -> Config {
    let mut config = mount.config();
    config.integrity = integrity;
    config
}

fn marks(mount: &Mount) -> Vec<String> {
    let names = mount.each(".saltern").into_iter().flat_map(|dir| fs::read_dir(dir).expect("readdir"));
    let names = names.map(|entry| entry.expect("readdir").file_name().into_string().expect("text"));
    names.filter(|name| name.starts_with("running-") || name == "unverified").collect()
}

#[apply(each_cell!)]
fn after_an_unclean_reboot_objects_are_checked_before_their_first_use(cell: Cell) {
    let mount = mount(cell, "unclean");
    let engine = mount.open_as(with(&mount, Integrity::Store));
    assert_eq!(marks(&mount).len(), cell.volumes, "a running engine has its mark");
    store(&engine, 0..6);
    engine.close();
    assert_eq!(marks(&mount), [""; 0], "a clean close takes it away");
    damage(&mount, 2);
    damage(&mount, 3);
    // Without a reboot `store` does not look.
    let engine = mount.open_as(with(&mount, Integrity::Store));
    assert!(get(&engine, &key(2), BYTES).expect("nobody looks") != payload(2, BYTES));
    engine.close();

    go_down(&mount);
    // Another program's file, from before, without a checksum.
    mount.plant(&key(50), &payload(50, BYTES));
    let past = File::options().write(true).open(mount.file(&key(50))).expect("open");
    past.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(60)).expect("utimens");
    let engine = mount.open_as(with(&mount, Integrity::Store));
    assert!(engine.status().volumes.iter().all(|volume| volume.checks_first_use));
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
    mount.assert_books(&engine);
    engine.close();

    // Not everything was looked at: the doubt outlives a clean close.
    let doubts = marks(&mount);
    assert!(!doubts.is_empty() && doubts.iter().all(|mark| mark == "unverified"), "{doubts:?}");
    let engine = mount.open_as(with(&mount, Integrity::Store));
    assert!(matches!(get(&engine, &key(3), BYTES), Err(Error::Corrupt { .. })));
    for n in [0, 1, 4, 5, 10, 11] {
        assert!(get(&engine, &key(n), BYTES).expect("it is right") == payload(n.into(), BYTES));
    }
    engine.close();
    assert_eq!(marks(&mount), [""; 0], "everything that is there was checked");
    assert!(mount.open().status().volumes.iter().all(|volume| !volume.checks_first_use));
}

#[apply(each_cell!)]
fn where_objects_have_no_checksums_an_unclean_reboot_drops_none(cell: Cell) {
    let mount = mount(cell, "unclean-off");
    let engine = mount.open_as(with(&mount, Integrity::Off));
    store(&engine, 0..3);
    engine.close();
    go_down(&mount);
    let engine = mount.open_as(with(&mount, Integrity::Off));
    for n in 0..3 {
        assert!(get(&engine, &key(n), BYTES).expect("load") == payload(n.into(), BYTES));
    }
    engine.close();
    assert_eq!(marks(&mount), [""; 0]);
}

#[apply(each_cell!)]
fn a_kill_without_a_reboot_casts_no_doubt(cell: Cell) {
    let mount = mount(cell, "killed");
    let mut config = mount.config();
    config.boot_id = Some("one".into());
    let engine = mount.open_as(config.clone());
    store(&engine, 0..1);
    engine.close();
    // As a kill leaves it.
    mount.each(".saltern/running-one").iter().for_each(|mark| fs::write(mark, b"").expect("write"));
    let engine = mount.open_as(config);
    assert!(engine.status().volumes.iter().all(|volume| !volume.checks_first_use));
}

#[apply(each_cell_of_one_volume!)]
fn a_directory_that_is_gone_takes_no_stores(cell: Cell) {
    for is_moved in [false, true] {
        let mount = mount(cell, "gone");
        let dir = mount.join("volume");
        let engine = mount.open();
        store(&engine, 0..2);
        match is_moved {
            true => fs::rename(&dir, mount.join("elsewhere")).expect("rename"),
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
            fs::rename(mount.join("elsewhere"), &dir).expect("rename");
            assert!(matches!(put(&engine, &key(1000), b"x"), Err(Error::ReadOnly { .. })));
            assert!(get(&engine, &key(1), BYTES).expect("loads go on") == payload(1, BYTES));
            assert_eq!(remove(&engine, &key(1)).expect("deletes go on"), BYTES as u64);
            mount.assert_books(&engine);
        }
    }
}
