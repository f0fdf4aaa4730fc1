//! Files that are overwritten in place, and checksums: old bytes never come back under a new key.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};

use macro_rules_attribute::apply;
use rand::Rng;
use rand::rngs::StdRng;
use saltern::{Error, Integrity, ObjectKey};
use saltern_tests::{Cell, Host, Seed, done, find, get, key, payload, put, remove, salted, until};

use crate::mount;

/// Keys from here on are of no test's own objects.
const PROBES: u32 = 1 << 20;

#[apply(each_cell!)]
fn what_is_recycled_holds_the_new_bytes_alone(cell: Cell) {
    let seed = Seed::new("what_is_recycled_holds_the_new_bytes_alone");
    let modes = [(Integrity::Off, None), (Integrity::Store, Some(0)), (Integrity::Verify, None)];
    for (integrity, open_files) in cell.sized(&modes[..], &modes[2..]).iter().copied() {
        let mut rng = seed.rng(0);
        let mount = mount(cell, "recycled");
        let mut config = mount.config();
        (config.integrity, config.open_files, config.shards) = (integrity, open_files, 2);
        config.spare_bytes = 64 << 20;
        let engine = mount.open_as(config.clone());
        // All of a tenant's objects go, and another tenant's take their files.
        let objects = cell.sized(80, 24);
        let mut sizes: Vec<usize> = (0..objects).map(|_| rng.random_range(1..600_000)).collect();
        store(&engine, "a", &sizes);
        for round in 0..cell.sized(4_u32, 2) {
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
            mount.assert_books(&engine);
        }
        recycle_some(&engine, 20_000);
        engine.close();
        let engine = mount.open_as(config);
        for (n, size) in (0..).zip(&sizes) {
            assert!(get(&engine, &salted(n, "a"), *size).expect("load") == content(n, "a", *size), "{n}");
        }
        mount.assert_books(&engine);
    }
}

/// Stores until a store has taken a deleted file: these become clean whenever their sync is done, and no store waits for it.
fn recycle_some(engine: &Host, bytes: usize) {
    let mut numbers = PROBES..;
    until("a deleted file is used again", || {
        let status = engine.status();
        !status.spares.is_on || status.counters.recycled > 0 || {
            let probe = key(numbers.next().expect("a number"));
            assert!(put(engine, &probe, &payload(0, bytes)).is_ok());
            assert!(remove(engine, &probe).is_ok());
            false
        }
    });
}

fn content(n: u32, salt: &str, bytes: usize) -> Vec<u8> {
    payload(u64::from(n) << 32 | u64::from(salt.as_bytes()[0]), bytes)
}

fn store(engine: &Host, salt: &str, sizes: &[usize]) {
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

#[apply(each_cell!)]
fn a_file_with_another_name_is_never_overwritten(cell: Cell) {
    let mount = mount(cell, "hard-link");
    let files = cell.sized(100, 30);
    let path = |n| mount.file(&key(n));
    for n in 0..files {
        mount.plant(&key(n), &payload(n.into(), 50_000));
        fs::set_permissions(path(n), fs::Permissions::from_mode(0o600)).expect("chmod");
        fs::hard_link(path(n), mount.join(&format!("backup-{n}"))).expect("link");
    }
    let engine = mount.open();
    for n in 0..files {
        assert!(get(&engine, &key(n), 50_000).is_ok());
        assert!(matches!(remove(&engine, &key(n)), Ok(50_000)));
    }
    for n in files..4 * files {
        put(&engine, &key(n), &payload(n.into(), 50_000)).expect("store");
    }
    for n in 0..files {
        let backup = fs::read(mount.join(&format!("backup-{n}"))).expect("read");
        assert!(backup == payload(n.into(), 50_000), "the backup of {n} was overwritten");
    }
    mount.assert_books(&engine);
}

#[apply(each_cell!)]
fn a_file_too_large_to_keep_costs_no_spares(cell: Cell) {
    let mount = mount(cell, "too-large-to-keep");
    let mut config = mount.config();
    config.spare_bytes = 500_000;
    let engine = mount.open_as(config.clone());
    for n in 0..10 {
        put(&engine, &key(n), &payload(n.into(), 10_000)).expect("store");
    }
    put(&engine, &key(100), &payload(100, 600_000)).expect("store");
    let keys: Vec<ObjectKey> = (0..10).map(key).collect();
    assert!(done(engine.delete(&keys)).results.iter().all(Result::is_ok));
    engine.close();
    // All that an earlier run has left can be used at once.
    let engine = mount.open_as(config);
    let before = engine.status().spares;
    remove(&engine, &key(100)).expect("delete");
    mount.assert_books(&engine);
    assert_eq!(engine.status().spares.count, before.count);
}

#[apply(each_cell!)]
fn recycled_files_are_private_again(cell: Cell) {
    let files = cell.sized(100, 30);
    let mount = mount(cell, "recycled-mode");
    for n in 0..files {
        mount.plant(&key(n), &[1; 10_000]);
        let path = mount.file(&key(n));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
    }
    let engine = mount.open();
    let keys: Vec<ObjectKey> = (0..files).map(key).collect();
    assert!(done(engine.delete(&keys)).results.iter().all(Result::is_ok));
    for n in files..3 * files {
        put(&engine, &key(n), &[2; 10_000]).expect("store");
        let metadata = fs::metadata(mount.file(&key(n))).expect("stat");
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{n}");
    }
}

#[apply(each_cell!)]
fn a_changed_byte_is_never_loaded_when_loads_verify(cell: Cell) {
    for open_files in [Some(0), None] {
        for at in cell.sized(&[0, 4096, 99_998, 99_999, 250_000, 299_999][..], &[4096, 299_999]).iter().copied() {
            let mount = mount(cell, "corrupt");
            let mut config = mount.config();
            (config.integrity, config.open_files) = (Integrity::Verify, open_files);
            let engine = mount.open_as(config);
            if engine.status().integrity != Integrity::Verify {
                eprintln!("skipped: no user attributes on this file system");
                return;
            }
            put(&engine, &key(1), &payload(1, 300_000)).expect("store");
            put(&engine, &key(2), &payload(2, 300_000)).expect("store");
            let object = File::options().read(true).write(true).open(mount.file(&key(1)));
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
            mount.assert_books(&engine);
        }
    }
}

#[apply(each_cell!)]
fn files_without_a_checksum_load_when_loads_verify(cell: Cell) {
    let mount = mount(cell, "no-stamp");
    for n in 0..10 {
        mount.plant(&key(n), &payload(n.into(), 10_000 + n as usize));
    }
    let mut config = mount.config();
    config.integrity = Integrity::Verify;
    let engine = mount.open_as(config);
    for n in 0..10 {
        let bytes = get(&engine, &key(n), 10_000 + n as usize).expect("load");
        assert!(bytes == payload(n.into(), 10_000 + n as usize), "{n}");
    }
}

#[apply(each_cell!)]
fn a_checksum_of_earlier_contents_does_not_stay(cell: Cell) {
    let mount = mount(cell, "stale-stamp");
    let mut config = mount.config();
    // Written with checksums, recycled without, and checked after that.
    for (round, integrity) in [Integrity::Store, Integrity::Off, Integrity::Verify].into_iter().enumerate() {
        config.integrity = integrity;
        let engine = mount.open_as(config.clone());
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
            recycle_some(&engine, 20_000);
            (0..100_u32).for_each(|n| assert!(put(&engine, &key(n), &payload(u64::from(n) + 1000, 20_000)).is_ok()));
        }
    }
}
