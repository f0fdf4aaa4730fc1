//! Engines over several volumes: homes, volumes that come and go, keys with two files, capacities, one set of books. Each test says
//! which volumes it is about, so these are plain tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use saltern::steps::{Step, Steps};
use saltern::{
    Config, Discovery, Engine, Error, Eviction, Layout, NixlDynamicAdapter, ObjectKey, eviction::PolicyKind,
};
use saltern_tests::{
    Disk, LoopMount, Recorder, assert_books_of, beside, config, done, file_name, find, get, key, over, payload, put,
    remove, salted, until,
};

use crate::scratch;

const OBJECTS: u32 = 60;

/// Small objects of different sizes and two salts.
fn object(n: u32) -> (ObjectKey, Vec<u8>) {
    (salted(n, if n.is_multiple_of(3) { "tenant" } else { "" }), payload(n.into(), 500 + n as usize))
}

fn fill(engine: &Engine, numbers: impl Iterator<Item = u32>) {
    for n in numbers {
        let (key, bytes) = object(n);
        assert_eq!(put(engine, &key, &bytes).expect("store"), bytes.len() as u64, "{key}");
    }
}

fn assert_there(engine: &Engine, numbers: impl Iterator<Item = u32>) {
    for n in numbers {
        let (key, bytes) = object(n);
        assert_eq!(find(engine, &key), Some(bytes.len() as u64), "{key}");
        assert!(get(engine, &key, bytes.len()).expect("load") == bytes, "{key}: wrong bytes");
    }
}

/// The directory that has a key's file, among these.
fn place(dirs: &[PathBuf], layout: Layout, key: &ObjectKey) -> Option<usize> {
    let has: Vec<_> = (0..dirs.len()).filter(|n| dirs[*n].join(file_name(layout, key)).exists()).collect();
    assert!(has.len() <= 1, "{key} is on {has:?}");
    has.first().copied()
}

fn places(dirs: &[PathBuf], layout: Layout) -> Vec<Option<PathBuf>> {
    (0..OBJECTS).map(|n| place(dirs, layout, &object(n).0).map(|place| dirs[place].clone())).collect()
}

#[test]
fn keys_have_their_homes_whatever_the_order_of_the_directories() {
    let scratch = scratch("order");
    let mut dirs = beside(&scratch.join("volume"), 3);
    let engine = Engine::open(over(&dirs)).expect("open");
    assert_eq!(engine.status().shards.iter().map(|shard| shard.volume).collect::<Vec<_>>(), [0, 1, 2]);
    fill(&engine, 0..OBJECTS);
    assert_books_of(&engine, &dirs, Layout::Fs);
    engine.close();
    let before = places(&dirs, Layout::Fs);
    for dir in &dirs {
        let count = before.iter().flatten().filter(|place| *place == dir).count();
        assert!(count >= 8, "{count} of {OBJECTS} objects are on one of three volumes");
    }
    dirs.reverse();
    let engine = Engine::open(over(&dirs)).expect("open");
    assert_eq!(engine.wait_recovered().objects, u64::from(OBJECTS));
    assert_there(&engine, 0..OBJECTS);
    for n in 0..OBJECTS {
        remove(&engine, &object(n).0).expect("delete");
    }
    fill(&engine, 0..OBJECTS);
    assert_books_of(&engine, &dirs, Layout::Fs);
    assert_eq!(places(&dirs, Layout::Fs), before, "the same homes");
    assert_eq!(engine.status().counters.twins, 0);
}

#[test]
fn a_volume_that_is_added_hides_nothing_and_takes_its_share() {
    for layout in [Layout::Fs3, Layout::NixlSharded] {
        for discovery in [Discovery::Scan, Discovery::Ask] {
            let scratch = scratch("added");
            let dirs = beside(&scratch.join("volume"), 3);
            let open = |dirs: &[PathBuf]| {
                let mut config = over(dirs);
                (config.layout, config.discovery, config.absent_ttl) = (layout, discovery, Duration::ZERO);
                config.capacity_bytes = Some(1 << 30);
                let engine = Engine::open(config).expect("open");
                let found = engine.wait_recovered();
                assert_eq!((found.error, found.foreign.count), (None, 0));
                engine
            };
            // First one alone, which has no number yet; then two; then three.
            let engine = open(&dirs[..1]);
            fill(&engine, 0..20);
            engine.close();
            let engine = open(&dirs[..2]);
            assert_there(&engine, 0..20);
            fill(&engine, 20..40);
            engine.close();
            let before = places(&dirs, layout);
            let engine = open(&dirs);
            assert_there(&engine, 0..40);
            assert_eq!(places(&dirs, layout), before, "what is there stays where it is");
            fill(&engine, 40..OBJECTS);
            assert_there(&engine, 0..OBJECTS);
            // A store of what is elsewhere is a use of it.
            let (stray, bytes) = object(3);
            assert_eq!(put(&engine, &stray, &bytes).expect("store"), 0);
            assert_books_of(&engine, &dirs, layout);
            assert!(!Disk::read(&dirs[2], layout).files.is_empty(), "the new one has its share");
            for n in 0..OBJECTS {
                let (key, bytes) = object(n);
                assert_eq!(remove(&engine, &key).expect("delete"), bytes.len() as u64);
            }
            assert_eq!(assert_books_of(&engine, &dirs, layout).bytes, 0);
        }
    }
}

#[test]
fn a_key_on_two_volumes_keeps_the_file_of_its_home() {
    for discovery in [Discovery::Scan, Discovery::ScanAndAsk, Discovery::Ask] {
        let scratch = scratch("twins");
        let layout = Layout::Nixl;
        let dirs = beside(&scratch.join("volume"), 3);
        // Used together once, so that they have their numbers; then one by one.
        Engine::open(over(&dirs)).expect("open").close();
        for (at, dir) in dirs.iter().enumerate() {
            let mut alone = config(dir);
            alone.layout = layout;
            let engine = Engine::open(alone).expect("open");
            for n in 0..30 {
                // Even ones are the same on each, odd ones are not, and some are on two alone.
                if n % 5 == 0 && at == 1 {
                    continue;
                }
                let len = 100 + n as usize + if n % 2 == 1 { at * 10 } else { 0 };
                put(&engine, &key(n), &payload(n.into(), len)).expect("store");
            }
            engine.close();
        }
        let mut config = over(&dirs);
        (config.layout, config.discovery, config.absent_ttl) = (layout, discovery, Duration::ZERO);
        let engine = Engine::open(config).expect("open");
        let heard = Recorder::new();
        engine.subscribe(heard.clone()).expect("subscribe");
        let removed = 30 * 3 - 6 - 30;
        assert_eq!(engine.status().counters.twins, removed, "{discovery:?}");
        let disk = assert_books_of(&engine, &dirs, layout);
        assert_eq!(disk.files.len(), 30);
        for n in 0..30 {
            let kept = place(&dirs, layout, &key(n)).expect("one is there");
            let len = 100 + n as usize + if n % 2 == 1 { kept * 10 } else { 0 };
            assert_eq!(find(&engine, &key(n)), Some(len as u64));
            assert!(get(&engine, &key(n), len).expect("load") == payload(n.into(), len), "{n}");
            remove(&engine, &key(n)).expect("delete");
            put(&engine, &key(n), &payload(n.into(), len)).expect("store");
            if n % 5 != 0 {
                assert_eq!(place(&dirs, layout, &key(n)), Some(kept), "{n}: its home");
            }
        }
        assert_books_of(&engine, &dirs, layout);
        engine.close();
        assert_eq!(heard.objects().len(), 30);
    }
}

/// The objects of these directories are misses, all others are there, and the engine goes on, for all keys.
fn assert_taken_out(engine: &Engine, dirs: &[PathBuf], lost: usize, before: &[Option<usize>]) {
    until("the volume is taken out", || !engine.status().volumes[lost].is_up);
    let mine = |n: &u32| before[*n as usize] == Some(lost);
    let gone = (0..OBJECTS).filter(mine).count() as u64;
    assert!(gone > 0);
    until("its objects are gone", || engine.status().objects == u64::from(OBJECTS) - gone);
    for n in (0..OBJECTS).filter(mine) {
        let (key, bytes) = object(n);
        assert_eq!(find(engine, &key), None, "{key}");
        assert!(matches!(get(engine, &key, bytes.len()), Err(Error::NotFound)), "{key}");
        assert!(matches!(remove(engine, &key), Err(Error::NotFound)), "{key}");
    }
    assert_there(engine, (0..OBJECTS).filter(|n| !mine(n)));
    let others: Vec<_> = dirs.iter().enumerate().filter(|(n, _)| *n != lost).map(|(_, dir)| dir.clone()).collect();
    assert_books_of(engine, &others, Layout::Fs);
    let status = engine.status();
    assert_eq!(status.counters.lost_objects, gone);
    assert!(!status.is_healthy && !status.volumes[lost].problems.is_empty(), "{status:?}");
    assert_eq!((status.volumes[lost].used_bytes, status.volumes[lost].spares.count), (0, 0));
    fill(engine, (0..OBJECTS).filter(mine));
    assert_there(engine, 0..OBJECTS);
    assert_books_of(engine, &others, Layout::Fs);
    assert!((0..OBJECTS).all(|n| place(&others, Layout::Fs, &object(n).0).is_some()));
}

fn open_filled(
    dirs: &[PathBuf],
    change: impl FnOnce(&mut Config),
) -> (Engine, std::sync::Arc<Recorder>, Vec<Option<usize>>) {
    let mut config = over(dirs);
    config.capacity_bytes = Some(1 << 30);
    change(&mut config);
    let engine = Engine::open(config).expect("open");
    let heard = Recorder::new();
    engine.subscribe(heard.clone()).expect("subscribe");
    fill(&engine, 0..OBJECTS);
    let before = (0..OBJECTS).map(|n| place(dirs, Layout::Fs, &object(n).0)).collect();
    (engine, heard, before)
}

#[test]
fn a_directory_that_goes_takes_its_objects_along_and_the_others_go_on() {
    let scratch = scratch("gone");
    let dirs = beside(&scratch.join("volume"), 3);
    let (engine, heard, before) = open_filled(&dirs, |_| {});
    // Pinned or not.
    let keys: Vec<_> = (0..OBJECTS).map(|n| object(n).0).collect();
    assert!(done(engine.lookup_and_pin(&keys)).sizes.iter().all(Option::is_some));
    fs::remove_dir_all(&dirs[1]).expect("remove");
    until("the volume is taken out", || !engine.status().volumes[1].is_up);
    engine.unpin(&keys);
    assert_taken_out(&engine, &dirs, 1, &before);
    engine.close();
    assert_eq!(heard.objects().len(), OBJECTS as usize);
    // It comes back empty, and everything is found where it is.
    let engine = Engine::open(over(&dirs)).expect("open");
    assert_eq!(engine.wait_recovered().objects, u64::from(OBJECTS));
    assert_there(&engine, 0..OBJECTS);
    assert_books_of(&engine, &dirs, Layout::Fs);
    assert!(engine.status().is_healthy);
}

#[test]
fn what_was_only_counted_goes_with_its_volume() {
    let scratch = scratch("latent");
    let dirs = beside(&scratch.join("volume"), 3);
    let open = |dirs: &[PathBuf]| {
        let mut config = over(dirs);
        (config.layout, config.discovery) = (Layout::Nixl, Discovery::Ask);
        config.absent_ttl = Duration::ZERO;
        Engine::open(config).expect("open")
    };
    let engine = open(&dirs);
    fill(&engine, 0..OBJECTS);
    engine.close();
    let before: Vec<_> = (0..OBJECTS).map(|n| place(&dirs, Layout::Nixl, &object(n).0)).collect();
    let engine = open(&dirs);
    assert_eq!((engine.status().objects, engine.status().latent_objects), (0, u64::from(OBJECTS)));
    // Some are known by now.
    assert_there(&engine, 0..20);
    fs::rename(&dirs[2], scratch.join("away")).expect("rename");
    until("the volume is taken out", || !engine.status().volumes[2].is_up);
    until("nothing of it is counted", || engine.status().volumes[2].used_bytes == 0);
    let lost = |n: &u32| before[*n as usize] == Some(2);
    assert!((0..OBJECTS).filter(lost).all(|n| find(&engine, &object(n).0).is_none()));
    assert_there(&engine, (0..OBJECTS).filter(|n| !lost(n)));
    assert_books_of(&engine, &dirs[..2], Layout::Nixl);
}

#[test]
fn the_last_volume_is_not_taken_out_but_read_only() {
    let scratch = scratch("last");
    let dirs = beside(&scratch.join("volume"), 2);
    let (engine, _, before) = open_filled(&dirs, |_| {});
    fs::rename(&dirs[1], scratch.join("away-1")).expect("rename");
    assert_taken_out(&engine, &dirs, 1, &before);
    fs::rename(&dirs[0], scratch.join("away-0")).expect("rename");
    until("stores are refused", || matches!(put(&engine, &key(999), b"x"), Err(Error::ReadOnly { .. })));
    assert_there(&engine, 0..OBJECTS);
    let status = engine.status();
    assert!(status.volumes[0].is_up && !status.is_healthy && status.counters.ledger_underflows == 0, "{status:?}");
    // Those that were stored before it was noticed are there, too.
    let objects = status.objects;
    assert!(objects >= u64::from(OBJECTS));
    engine.close();
    assert_eq!(Disk::read(&scratch.join("away-0"), Layout::Fs).files.len() as u64, objects, "nothing was removed");
}

/// The loop device that a directory is mounted from, by the name that its file system has in /sys.
fn device(dir: &Path) -> String {
    let mounts = fs::read_to_string("/proc/mounts").expect("read");
    let mount = mounts.lines().find(|line| line.split(' ').nth(1) == dir.to_str()).expect("mounted");
    mount.split(' ').next().and_then(|device| device.rsplit('/').next()).expect("a device").to_owned()
}

#[test]
fn a_file_system_that_turns_read_only_is_taken_out() {
    let mount = match LoopMount::new(env!("CARGO_TARGET_TMPDIR"), "ext4", 64 << 20, &["-q", "-e", "remount-ro"]) {
        Ok(mount) => mount,
        Err(why) => return eprintln!("skipped: {}", why.0),
    };
    let trigger = PathBuf::from(format!("/sys/fs/ext4/{}/trigger_fs_error", device(mount.path())));
    if !trigger.exists() {
        return eprintln!("skipped: this kernel has no {}", trigger.display());
    }
    let scratch = scratch("read-only");
    let mut dirs = beside(&scratch.join("volume"), 2);
    dirs.push(mount.path().join("volume"));
    let (engine, heard, before) = open_filled(&dirs, |_| {});
    fs::write(trigger, "a test").expect("write");
    // Stores there fail, or go elsewhere, until it is out.
    let mut n = 1000;
    until("the volume is taken out", || {
        let key = key(n);
        n += 1;
        match put(&engine, &key, b"x") {
            Ok(_) => drop(remove(&engine, &key).expect("delete")),
            Err(error) => assert!(
                matches!(error, Error::Io { .. } | Error::VolumeFailed { .. } | Error::ReadOnly { .. }),
                "{error}"
            ),
        }
        !engine.status().volumes[2].is_up
    });
    assert_taken_out(&engine, &dirs, 2, &before);
    engine.close();
    assert_eq!(heard.objects().len(), OBJECTS as usize);
}

#[test]
fn a_shard_that_panics_takes_its_volume_out() {
    let scratch = scratch("panic");
    let dirs = beside(&scratch.join("volume"), 3);
    let steps = Steps::new(|step, key| assert!(step != Step::Published || key.cache_salt() != "poison", "on purpose"));
    let (engine, _, before) = open_filled(&dirs, |config| (config.steps, config.shards) = (steps, 6));
    assert!(matches!(put(&engine, &salted(0, "poison"), b"x"), Err(Error::ShardFailed)));
    until("a volume is taken out", || engine.status().volumes.iter().any(|volume| !volume.is_up));
    let lost = engine.status().volumes.iter().position(|volume| !volume.is_up).expect("just seen");
    until("its objects are gone", || engine.status().volumes[lost].used_bytes == 0);
    let mut refused = 0;
    for n in 0..OBJECTS {
        let (key, bytes) = object(n);
        let was_there = before[n as usize] == Some(lost);
        assert_eq!(find(&engine, &key).is_none(), was_there, "{key}");
        if was_there {
            // The keys of the shard itself have nobody; those of the volume's other shard go elsewhere.
            match put(&engine, &key, &bytes) {
                Ok(_) => assert!(get(&engine, &key, bytes.len()).expect("load") == bytes),
                Err(Error::ShardFailed) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
    }
    let gone = before.iter().filter(|place| **place == Some(lost)).count();
    assert!(refused > 0 && refused < gone, "{refused} of {gone}");
}

#[test]
fn volumes_that_do_not_open_are_errors_unless_they_may_be_missing() {
    let scratch = scratch("missing");
    let dirs = beside(&scratch.join("volume"), 3);
    fs::write(&dirs[1], "a file").expect("write");
    let mut config = over(&dirs);
    let refused = Engine::open(config.clone()).map(drop).expect_err("not a directory");
    assert!(refused.to_string().contains(dirs[1].to_str().expect("text")), "{refused}");
    config.require_volumes = false;
    let engine = Engine::open(config.clone()).expect("open");
    fill(&engine, 0..OBJECTS);
    assert_there(&engine, 0..OBJECTS);
    let status = engine.status();
    assert!(!status.is_healthy && status.problems.iter().any(|problem| problem.contains("volume-1")), "{status:?}");
    assert_eq!(status.volumes.len(), 2);
    assert_books_of(&engine, &[dirs[0].clone(), dirs[2].clone()], Layout::Fs);
    engine.close();
    (config.dir, config.more_dirs) = (dirs[1].clone(), vec![dirs[1].join("below")]);
    assert!(Engine::open(config.clone()).is_err(), "none opens");
    (config.dir, config.more_dirs) = (dirs[0].clone(), vec![dirs[2].clone(), dirs[0].clone()]);
    assert!(matches!(Engine::open(config).map(drop), Err(Error::Config { option: "more_dirs", .. })));
}

#[test]
fn copies_and_damaged_numbers_are_refused() {
    let scratch = scratch("identity");
    let dirs = beside(&scratch.join("volume"), 2);
    Engine::open(over(&dirs)).expect("open").close();
    let number = |dir: &PathBuf| dir.join(".saltern/volume");
    fs::copy(number(&dirs[0]), number(&dirs[1])).expect("copy");
    let refused = Engine::open(over(&dirs)).map(drop).expect_err("a copy");
    assert!(matches!(&refused, Error::Volume { dir, .. } if *dir == dirs[1]), "{refused}");
    fs::write(number(&dirs[1]), "saltern volume, version 1, crc64 0\n{}").expect("write");
    assert!(matches!(Engine::open(over(&dirs)).map(drop), Err(Error::Volume { .. })));
    // A volume that is alone needs none.
    Engine::open(config(&dirs[1])).expect("open").close();
    fs::remove_file(number(&dirs[1])).expect("remove");
    Engine::open(over(&dirs)).expect("open").close();
}

#[test]
fn no_volume_passes_its_capacity_and_what_does_not_fit_goes_to_the_next() {
    let scratch = scratch("capacities");
    let dirs = beside(&scratch.join("volume"), 3);
    let mut config = over(&dirs);
    (config.volume_capacity_bytes, config.capacity_bytes) = (Some(10_000), Some(29_500));
    let engine = Engine::open(config.clone()).expect("open");
    for n in 0..29 {
        put(&engine, &key(n), &payload(n.into(), 1000)).expect("some volume has room");
    }
    assert!(matches!(put(&engine, &key(29), &[0; 1000]), Err(Error::Full { free: 500, capacity: 29_500, .. })));
    let used = |engine: &Engine| engine.status().volumes.iter().map(|volume| volume.used_bytes).collect::<Vec<_>>();
    assert!(used(&engine).iter().all(|used| *used <= 10_000), "{:?}", used(&engine));
    assert_books_of(&engine, &dirs, Layout::Fs);
    engine.close();
    // All have room together, and none by itself.
    config.capacity_bytes = Some(30_500);
    let engine = Engine::open(config).expect("open");
    put(&engine, &key(29), &[0; 900]).expect("store");
    assert!(matches!(put(&engine, &key(30), &[0; 200]), Err(Error::Full { capacity: 10_000, .. })));
    assert_eq!(assert_books_of(&engine, &dirs, Layout::Fs).files.len(), 30);
}

#[test]
fn an_engine_that_evicts_makes_room_where_it_is_needed() {
    for (capacity, volume_capacity) in [(30_000, None), (30_000, Some(10_000)), (1 << 20, Some(10_000))] {
        let scratch = scratch("evicts");
        let dirs = beside(&scratch.join("volume"), 3);
        let mut config = over(&dirs);
        (config.volume_capacity_bytes, config.capacity_bytes) = (volume_capacity, Some(capacity));
        config.eviction = Eviction::Engine { policy: PolicyKind::Lru, watermark: 1.0, ratio: 0.0 };
        let engine = Engine::open(config).expect("open");
        for n in 0..150 {
            put(&engine, &key(n), &payload(n.into(), 900 + n as usize)).expect("room is made");
            assert!(engine.usage().total_bytes_used <= capacity);
        }
        assert_books_of(&engine, &dirs, Layout::Fs);
        assert!(engine.status().volumes.iter().all(|volume| volume.used_bytes <= volume_capacity.unwrap_or(capacity)));
        fs::rename(&dirs[1], scratch.join("away")).expect("rename");
        until("the volume is taken out", || !engine.status().volumes[1].is_up);
        for n in 200..300 {
            put(&engine, &key(n), &payload(n.into(), 900)).expect("the others go on, and evict");
        }
        assert_books_of(&engine, &[dirs[0].clone(), dirs[2].clone()], Layout::Fs);
    }
}

#[test]
fn quotas_and_uses_outlive_the_loss_of_a_volume() {
    let scratch = scratch("kept");
    let dirs = beside(&scratch.join("volume"), 3);
    let engine = Engine::open(over(&dirs)).expect("open");
    engine.set_quota("tenant", 4000).expect("set");
    fs::remove_dir_all(&dirs[0]).expect("remove");
    until("the volume is taken out", || !engine.status().volumes[0].is_up);
    engine.set_quota("tenant", 5000).expect("set");
    engine.set_quota("other", 1).expect("set");
    engine.close();
    // A new disk in its place learns them.
    let engine = Engine::open(over(&dirs)).expect("open");
    let quotas = engine.quotas().expect("good");
    assert_eq!(quotas.into_iter().collect::<Vec<_>>(), [("other".to_owned(), 1), ("tenant".to_owned(), 5000)]);
    // One over all volumes: not a share of it on each.
    for n in 0..5 {
        put(&engine, &salted(n, "tenant"), &[0; 1000]).expect("store");
    }
    assert!(matches!(put(&engine, &salted(9, "tenant"), &[0; 1000]), Err(Error::OverQuota { quota: 5000, .. })));
    assert_books_of(&engine, &dirs, Layout::Fs);
    engine.close();
    for dir in &dirs {
        let kept = saltern::quotas::read(dir).expect("read");
        assert_eq!(kept.get("tenant"), Some(&5000), "{}", dir.display());
    }
}

#[test]
fn the_order_of_use_goes_over_a_restart_on_each_volume() {
    let scratch = scratch("uses");
    let dirs = beside(&scratch.join("volume"), 3);
    let mut config = over(&dirs);
    config.capacity_bytes = Some(1 << 20);
    config.eviction = Eviction::Engine { policy: PolicyKind::Lru, watermark: 1.0, ratio: 0.0 };
    let engine = Engine::open(config.clone()).expect("open");
    for n in 0..30 {
        put(&engine, &key(n), &[1; 1000]).expect("store");
    }
    for n in 0..10 {
        get(&engine, &key(n), 1000).expect("load");
    }
    engine.close();
    config.more_dirs.reverse();
    let engine = Engine::open(config).expect("open");
    engine.evict_to(10_000).expect("evict");
    let left: BTreeSet<_> = (0..30).filter(|n| find(&engine, &key(*n)).is_some()).collect();
    assert_eq!(left, (0..10).collect(), "the last used");
    assert_books_of(&engine, &dirs, Layout::Fs);
}

#[test]
fn the_shared_adapter_runs_over_several_directories() {
    let scratch = scratch("shared");
    let dirs = beside(&scratch.join("volume"), 2);
    let mut config = NixlDynamicAdapter::config(&dirs[0], 1 << 20);
    config.more_dirs = dirs[1..].to_vec();
    (config.pin_shards, config.absent_ttl) = (false, Duration::ZERO);
    let adapter = NixlDynamicAdapter::open(config).expect("open");
    let engine = saltern::Adapter::engine(&adapter);
    // Another program writes to either.
    for n in 0..10 {
        let path = dirs[n as usize % 2].join(file_name(Layout::Nixl, &key(n)));
        fs::write(path, payload(n.into(), 700)).expect("write");
        assert_eq!(find(engine, &key(n)), Some(700), "{n}");
        assert!(get(engine, &key(n), 700).expect("load") == payload(n.into(), 700), "{n}");
        assert_eq!(put(engine, &key(n), &[0; 5]).expect("store"), 0, "{n} is there");
    }
    assert_books_of(engine, &dirs, Layout::Nixl);
}
