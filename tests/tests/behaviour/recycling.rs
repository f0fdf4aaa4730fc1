//! Files that are overwritten in place, and checksums: old bytes never come back under a new key.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};

use rand::Rng;
use rand::rngs::StdRng;
use saltern::{Engine, Error, Integrity, Layout, ObjectKey};
use saltern_tests::{Seed, assert_books, config, done, file_name, find, get, key, open, payload, put, remove, salted};

use crate::scratch;

#[test]
fn what_is_recycled_holds_the_new_bytes_alone() {
    let seed = Seed::new("what_is_recycled_holds_the_new_bytes_alone");
    for (integrity, open_files) in [(Integrity::Off, None), (Integrity::Store, Some(0)), (Integrity::Verify, None)] {
        let mut rng = seed.rng(0);
        let scratch = scratch("recycled");
        let mut config = config(scratch.path());
        (config.integrity, config.open_files, config.shards) = (integrity, open_files, 2);
        config.spare_bytes = 64 << 20;
        let engine = Engine::open(config.clone()).expect("open");
        // All of a tenant's objects go, and another tenant's take their files.
        let mut sizes: Vec<usize> = (0..80).map(|_| rng.random_range(1..600_000)).collect();
        store(&engine, "a", &sizes);
        for round in 0..4_u32 {
            let [old, new] = if round % 2 == 0 { ["a", "b"] } else { ["b", "a"] };
            let keys: Vec<_> = (0..sizes.len() as u32).map(|n| salted(n, old)).collect();
            assert!(done(engine.delete(&keys)).results.iter().all(Result::is_ok));
            sizes.iter_mut().for_each(|size| *size = resized(*size, &mut rng));
            store(&engine, new, &sizes);
            for (n, size) in (0..).zip(&sizes) {
                assert_eq!(find(&engine, &salted(n, old)), None, "round {round}: {n}");
                let bytes = get(&engine, &salted(n, new), *size).expect("load");
                assert!(bytes == content(n, new, *size), "round {round}: {n}: wrong bytes");
            }
            assert_books(&engine, scratch.path(), Layout::Fs);
        }
        let status = engine.status();
        assert!(!status.spares.is_on || status.counters.recycled > 0, "{:?}", status.spares);
        engine.close();
        let engine = Engine::open(config).expect("open");
        for (n, size) in (0..).zip(&sizes) {
            assert!(get(&engine, &salted(n, "a"), *size).expect("load") == content(n, "a", *size), "{n}");
        }
        assert_books(&engine, scratch.path(), Layout::Fs);
    }
}

fn content(n: u32, salt: &str, bytes: usize) -> Vec<u8> {
    payload(u64::from(n) << 32 | u64::from(salt.as_bytes()[0]), bytes)
}

fn store(engine: &Engine, salt: &str, sizes: &[usize]) {
    let batch = (0..).zip(sizes).map(|(n, size)| (salted(n, salt), content(n, salt, *size).into())).collect();
    let results = done(engine.store(batch)).results;
    assert!(results.iter().zip(sizes).all(|(result, size)| matches!(result, Ok(bytes) if *bytes == *size as u64)));
}

/// A size that the same file would serve, or not quite.
fn resized(bytes: usize, rng: &mut StdRng) -> usize {
    match rng.random_range(0..5) {
        0 => bytes,
        1 => (bytes / 2).max(1),
        2 => bytes + rng.random_range(1..5000),
        3 => (bytes - bytes / 10).max(1),
        _ => bytes.next_multiple_of(4096),
    }
}

#[test]
fn a_file_with_another_name_is_never_overwritten() {
    let scratch = scratch("hard-link");
    let volume = scratch.join("volume");
    fs::create_dir(&volume).expect("mkdir");
    let path = |n| volume.join(file_name(Layout::Fs, &key(n)));
    for n in 0..100_u32 {
        fs::write(path(n), payload(n.into(), 50_000)).expect("write");
        fs::set_permissions(path(n), fs::Permissions::from_mode(0o600)).expect("chmod");
        fs::hard_link(path(n), scratch.join(&format!("backup-{n}"))).expect("link");
    }
    let engine = open(&volume);
    for n in 0..100_u32 {
        assert!(get(&engine, &key(n), 50_000).is_ok());
        assert!(matches!(remove(&engine, &key(n)), Ok(50_000)));
    }
    for n in 100..400 {
        put(&engine, &key(n), &payload(n.into(), 50_000)).expect("store");
    }
    for n in 0..100_u32 {
        let backup = fs::read(scratch.join(&format!("backup-{n}"))).expect("read");
        assert!(backup == payload(n.into(), 50_000), "the backup of {n} was overwritten");
    }
    assert_books(&engine, &volume, Layout::Fs);
}

#[test]
fn a_file_too_large_to_keep_costs_no_spares() {
    let scratch = scratch("too-large-to-keep");
    let mut config = config(scratch.path());
    config.spare_bytes = 500_000;
    let engine = Engine::open(config.clone()).expect("open");
    for n in 0..10 {
        put(&engine, &key(n), &payload(n.into(), 10_000)).expect("store");
    }
    put(&engine, &key(100), &payload(100, 600_000)).expect("store");
    let keys: Vec<ObjectKey> = (0..10).map(key).collect();
    assert!(done(engine.delete(&keys)).results.iter().all(Result::is_ok));
    engine.close();
    // All that an earlier run has left can be used at once.
    let engine = Engine::open(config).expect("open");
    let before = engine.status().spares;
    remove(&engine, &key(100)).expect("delete");
    assert_books(&engine, scratch.path(), Layout::Fs);
    assert_eq!(engine.status().spares.count, before.count);
}

#[test]
fn recycled_files_are_private_again() {
    let scratch = scratch("recycled-mode");
    for n in 0..100 {
        let path = scratch.join(&file_name(Layout::Fs, &key(n)));
        fs::write(&path, [1; 10_000]).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
    }
    let engine = open(scratch.path());
    let keys: Vec<ObjectKey> = (0..100).map(key).collect();
    assert!(done(engine.delete(&keys)).results.iter().all(Result::is_ok));
    for n in 100..300 {
        put(&engine, &key(n), &[2; 10_000]).expect("store");
        let metadata = fs::metadata(scratch.join(&file_name(Layout::Fs, &key(n)))).expect("stat");
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{n}");
    }
}

#[test]
fn a_changed_byte_is_never_loaded_when_loads_verify() {
    for open_files in [Some(0), None] {
        for at in [0, 4096, 99_998, 99_999, 250_000, 299_999] {
            let scratch = scratch("corrupt");
            let mut config = config(scratch.path());
            (config.integrity, config.open_files) = (Integrity::Verify, open_files);
            let engine = Engine::open(config).expect("open");
            if engine.status().integrity != Integrity::Verify {
                eprintln!("skipped: no user attributes on this file system");
                return;
            }
            put(&engine, &key(1), &payload(1, 300_000)).expect("store");
            put(&engine, &key(2), &payload(2, 300_000)).expect("store");
            let object = File::options().read(true).write(true).open(scratch.join(&file_name(Layout::Fs, &key(1))));
            let (object, mut byte) = (object.expect("open"), [0]);
            object.read_exact_at(&mut byte, at).expect("read");
            object.write_all_at(&[byte[0] ^ 1], at).expect("write");
            object.sync_all().expect("fsync");
            let loaded = get(&engine, &key(1), 300_000).map(|bytes| bytes.len());
            assert!(matches!(loaded, Err(Error::Corrupt { .. })), "byte {at}: {loaded:?}");
            assert_eq!(engine.status().counters.checksum_failures, 1);
            assert!(matches!(get(&engine, &key(1), 300_000), Err(Error::NotFound)), "then it is a miss");
            assert!(get(&engine, &key(2), 300_000).expect("load") == payload(2, 300_000));
            // And can be stored again.
            assert!(matches!(put(&engine, &key(1), &payload(3, 300_000)), Ok(300_000)));
            assert!(get(&engine, &key(1), 300_000).expect("load") == payload(3, 300_000));
            assert_books(&engine, scratch.path(), Layout::Fs);
        }
    }
}

#[test]
fn files_without_a_checksum_load_when_loads_verify() {
    let scratch = scratch("no-stamp");
    for n in 0..10 {
        let path = scratch.join(&file_name(Layout::Fs, &key(n)));
        fs::write(path, payload(n.into(), 10_000 + n as usize)).expect("write");
    }
    let mut config = config(scratch.path());
    config.integrity = Integrity::Verify;
    let engine = Engine::open(config).expect("open");
    for n in 0..10 {
        let bytes = get(&engine, &key(n), 10_000 + n as usize).expect("load");
        assert!(bytes == payload(n.into(), 10_000 + n as usize), "{n}");
    }
}

#[test]
fn a_checksum_of_earlier_contents_does_not_stay() {
    let scratch = scratch("stale-stamp");
    let mut config = config(scratch.path());
    // Written with checksums, recycled without, and checked after that.
    for (round, integrity) in [Integrity::Store, Integrity::Off, Integrity::Verify].into_iter().enumerate() {
        config.integrity = integrity;
        let engine = Engine::open(config.clone()).expect("open");
        if round == 0 {
            (0..100_u32).for_each(|n| assert!(put(&engine, &key(n), &payload(n.into(), 20_000)).is_ok()));
        }
        for n in 0..100 {
            let expected = payload(n + if round == 2 { 1000 } else { 0 }, 20_000);
            assert!(get(&engine, &key(n as u32), 20_000).expect("load") == expected, "round {round}: {n}");
        }
        if round == 1 {
            let keys: Vec<ObjectKey> = (0..100).map(key).collect();
            assert!(done(engine.delete(&keys)).results.iter().all(Result::is_ok));
            let spare = |n: u32| put(&engine, &key(1000 + n), &payload(0, 20_000));
            (0..10).for_each(|n| assert!(spare(n).is_ok()));
            (0..100_u32).for_each(|n| assert!(put(&engine, &key(n), &payload(u64::from(n) + 1000, 20_000)).is_ok()));
            let status = engine.status();
            assert!(!status.spares.is_on || status.counters.recycled > 0);
        }
    }
}
