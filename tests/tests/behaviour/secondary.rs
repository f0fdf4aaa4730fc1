//! Directories that others write to as well: what the index lacks is asked of the disk, and everything counts.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use saltern::{
    Adapter, Buffer, Class, Config, Discovery, Engine, Error, EventKind, FsAdapter, Layout, NixlDynamicAdapter,
    ObjectKey,
};
use saltern_tests::{
    Disk, Recorder, assert_books, done, file_name, find, get, key, payload, put, remove, salted, until, varied,
};

use crate::scratch;

const GIB: u64 = 1 << 30;

fn config(dir: &Path, capacity_bytes: u64, discovery: Discovery) -> Config {
    let mut config = NixlDynamicAdapter::config(dir, capacity_bytes);
    (config.pin_shards, config.segment_bytes, config.pool_bytes) = (false, 256 << 10, 16 << 20);
    (config.discovery, config.absent_ttl) = (discovery, Duration::ZERO);
    config
}

fn open(config: Config) -> Box<dyn Adapter> {
    Box::new(NixlDynamicAdapter::open(config).expect("open"))
}

/// Another program stores an object.
fn plant(dir: &Path, layout: Layout, key: &ObjectKey, bytes: &[u8]) {
    let path = dir.join(file_name(layout, key));
    fs::create_dir_all(path.parent().expect("below the volume")).expect("mkdir");
    fs::write(path, bytes).expect("write");
}

/// Usage is what is on disk, however much of it the index knows.
fn assert_counted(engine: &Engine, dir: &Path, layout: Layout) -> Disk {
    let (usage, disk) = (engine.usage(), Disk::read(dir, layout));
    let by_salt: BTreeMap<String, u64> =
        usage.bytes_by_salt.iter().map(|(salt, bytes)| (salt.to_string(), *bytes)).collect();
    assert_eq!((usage.total_bytes_used, by_salt), (disk.bytes, disk.bytes_by_salt.clone()));
    let status = engine.status();
    assert_eq!(status.objects + status.latent_objects, disk.files.len() as u64);
    assert_eq!(status.counters.ledger_underflows, 0);
    disk
}

#[test]
fn what_is_only_counted_is_found_by_whoever_asks() {
    for layout in [Layout::Nixl, Layout::Nixl3, Layout::NixlSharded] {
        let scratch = scratch("ask");
        let keys = varied(layout);
        let content = |n: usize| payload(n as u64, 1000 * n + 1);
        for (n, key) in keys.iter().enumerate() {
            plant(scratch.path(), layout, key, &content(n));
        }
        let mut config = config(scratch.path(), GIB, Discovery::Ask);
        config.layout = layout;
        let adapter = open(config);
        let engine = adapter.engine();
        let heard = Recorder::new();
        adapter.subscribe(heard.clone()).expect("subscribe");
        let report = engine.wait_recovered();
        assert_eq!((report.objects, report.foreign.count), (keys.len() as u64, 0));
        assert_eq!(adapter.status().objects, 0, "{layout}: nobody has asked");
        assert_counted(engine, scratch.path(), layout);
        // Looked up, loaded, stored and deleted without a lookup before.
        for (n, key) in keys.iter().enumerate() {
            let bytes = content(n).len() as u64;
            match n % 4 {
                0 => assert_eq!(find(engine, key), Some(bytes)),
                1 => assert!(get(engine, key, content(n).len()).expect("load") == content(n)),
                2 => assert!(matches!(put(engine, key, b"another"), Ok(0)), "it is there"),
                _ => assert!(matches!(remove(engine, key), Ok(freed) if freed == bytes)),
            }
            assert_counted(engine, scratch.path(), layout);
        }
        assert_eq!(adapter.status().latent_objects, 0);
        let disk = assert_books(engine, scratch.path(), layout);
        until("all is told", || heard.bytes() == disk.bytes);
        adapter.close();
        let recovered = heard.events().iter().filter(|event| event.kind == EventKind::Recovered).count();
        assert_eq!(recovered, keys.len(), "each was entered once");
    }
}

#[test]
fn the_capacity_counts_what_nobody_has_asked_for() {
    for discovery in [Discovery::Ask, Discovery::ScanAndAsk] {
        let scratch = scratch("ask-capacity");
        for n in 0..10 {
            plant(scratch.path(), Layout::Nixl, &key(n), &[0; 1000]);
        }
        let adapter = open(config(scratch.path(), 11_500, discovery));
        let engine = adapter.engine();
        let refused = put(engine, &key(100), &[1; 1600]);
        assert!(matches!(refused, Err(Error::Full { needed: 1600, free: 1500, capacity: 11_500 })), "{refused:?}");
        // Others do not ask whether there is room: what they write counts from the moment that somebody asks for it.
        plant(scratch.path(), Layout::Nixl, &key(50), &[0; 1000]);
        assert_eq!(find(engine, &key(50)), Some(1000));
        assert!(matches!(put(engine, &key(100), &[1; 600]), Err(Error::Full { free: 500, .. })));
        assert!(matches!(put(engine, &key(100), &[1; 500]), Ok(500)));
        assert_counted(engine, scratch.path(), Layout::Nixl);
        assert!(matches!(remove(engine, &key(3)), Ok(1000)), "unknown to the index, and yet it frees its bytes");
        assert!(matches!(put(engine, &key(101), &[1; 1000]), Ok(1000)));
        assert_eq!(assert_counted(engine, scratch.path(), Layout::Nixl).bytes, 11_500);
    }
}

#[test]
fn what_others_take_away_stops_counting_when_somebody_asks() {
    let scratch = scratch("ask-vanished");
    for n in 0..4 {
        plant(scratch.path(), Layout::Nixl, &salted(n, "s"), &[0; 1000]);
    }
    let adapter = open(config(scratch.path(), GIB, Discovery::Ask));
    let engine = adapter.engine();
    engine.wait_recovered();
    for n in 0..4 {
        fs::remove_file(scratch.join(&file_name(Layout::Nixl, &salted(n, "s")))).expect("unlink");
    }
    // And may have come back with another size.
    plant(scratch.path(), Layout::Nixl, &salted(3, "s"), &[0; 1234]);
    assert_eq!(find(engine, &salted(0, "s")), None);
    assert!(matches!(get(engine, &salted(1, "s"), 1000), Err(Error::NotFound)));
    assert!(matches!(put(engine, &salted(2, "s"), &[1; 77]), Ok(77)));
    assert_eq!(find(engine, &salted(3, "s")), Some(1234));
    assert_books(engine, scratch.path(), Layout::Nixl);
}

#[test]
fn a_miss_is_remembered_briefly_and_hides_nothing_of_our_own() {
    let scratch = scratch("absent");
    let mut remembering = config(scratch.path(), GIB, Discovery::ScanAndAsk);
    remembering.absent_ttl = Duration::from_secs(3600);
    let adapter = open(remembering);
    let engine = adapter.engine();
    assert_eq!(find(engine, &key(1)), None);
    plant(scratch.path(), Layout::Nixl, &key(1), &[1; 100]);
    assert_eq!(find(engine, &key(1)), None, "asked a moment ago");
    // Loads and stores ask the disk always, and lookups find what they have found.
    assert!(get(engine, &key(1), 100).expect("load") == [1; 100]);
    assert_eq!(find(engine, &key(1)), Some(100));
    assert_eq!(find(engine, &key(2)), None);
    assert!(matches!(put(engine, &key(2), &[2; 200]), Ok(200)));
    assert_eq!(find(engine, &key(2)), Some(200));
    adapter.close();

    let adapter = open(config(scratch.path(), GIB, Discovery::ScanAndAsk));
    assert_eq!(find(adapter.engine(), &key(3)), None);
    plant(scratch.path(), Layout::Nixl, &key(3), &[1; 100]);
    assert_eq!(find(adapter.engine(), &key(3)), Some(100), "without a memory it is found at once");
}

#[test]
fn names_that_look_like_temporary_ones_are_safe() {
    let scratch = scratch("temp-names");
    let odd = [salted(1, "x.tmp.0123456789abcdef"), salted(2, ".saltern"), salted(3, "a.bin.tmp.0")];
    let adapter = open(config(scratch.path(), GIB, Discovery::ScanAndAsk));
    for key in &odd {
        put(adapter.engine(), key, b"stays").expect("store");
    }
    // What LMCache leaves when it is killed during a store.
    let theirs = format!("{}.tmp.0123456789abcdef0123456789abcdef", file_name(Layout::Nixl, &key(9)));
    fs::write(scratch.join(&theirs), b"half of it").expect("write");
    adapter.close();
    let adapter = open(config(scratch.path(), GIB, Discovery::ScanAndAsk));
    let report = adapter.engine().wait_recovered();
    assert_eq!((report.objects, report.unfinished, report.foreign.count), (3, 0, 1));
    for key in &odd {
        assert!(get(adapter.engine(), key, 5).expect("load") == b"stays", "{key}");
    }
    adapter.close();
    assert!(scratch.join(&theirs).exists(), "not ours");
}

#[test]
fn only_what_was_stored_goes_where_nothing_is_to_stay() {
    for (discovery, layout) in [(Discovery::Ask, Layout::NixlSharded), (Discovery::ScanAndAsk, Layout::Nixl)] {
        let scratch = scratch("persist");
        let kept = |n: u32| salted(n, "theirs");
        for n in 0..3 {
            plant(scratch.path(), layout, &kept(n), &payload(n.into(), 5000));
        }
        fs::write(scratch.join("README"), b"theirs").expect("write");
        let mut config = config(scratch.path(), GIB, discovery);
        (config.persist, config.layout) = (false, layout);
        let adapter = open(config.clone());
        let engine = adapter.engine();
        for n in 0..20 {
            put(engine, &salted(n, "ours"), &payload(n.into(), 70_000)).expect("store");
        }
        // Found, and stored again, it is still theirs; deleted and stored again, it is ours.
        assert!(matches!(put(engine, &kept(0), b"x"), Ok(0)));
        assert_eq!(find(engine, &kept(1)), Some(5000));
        remove(engine, &kept(2)).expect("delete");
        put(engine, &kept(2), b"ours").expect("store");
        for n in 0..5 {
            remove(engine, &salted(n, "ours")).expect("delete");
        }
        plant(scratch.path(), layout, &kept(7), b"written by somebody else meanwhile");
        adapter.close();
        let disk = Disk::read(scratch.path(), layout);
        let names: Vec<_> = disk.files.keys().cloned().collect();
        let mut expected = [0, 1, 7].map(|n| file_name(layout, &kept(n)));
        expected.sort();
        assert_eq!(names, expected);
        assert!(scratch.join("README").exists());
        assert_eq!(fs::read_dir(scratch.join(".saltern/spares")).expect("readdir").count(), 0, "spares are ours");
        // The directory can be used again, and by default everything stays.
        config.persist = true;
        let adapter = open(config.clone());
        put(adapter.engine(), &key(1), b"stays").expect("store");
        adapter.close();
        assert_eq!(find(open(config).engine(), &key(1)), Some(5));
    }
}

#[test]
fn adapters_refuse_what_they_cannot_work_with() {
    let scratch = scratch("adapter-config");
    let refused = |config: Config, expected: &str| match NixlDynamicAdapter::open(config).map(drop) {
        Err(Error::Config { option, reason }) => {
            assert!(option == expected && !reason.is_empty(), "{option}: {reason}")
        }
        other => panic!("{other:?}"),
    };
    let good = config(scratch.path(), GIB, Discovery::ScanAndAsk);
    for capacity in [None, Some(0)] {
        let mut config = good.clone();
        config.capacity_bytes = capacity;
        refused(config, "capacity_bytes");
    }
    let mut fs_names = good.clone();
    fs_names.layout = Layout::Fs;
    refused(fs_names, "layout");
    let mut deaf = good.clone();
    deaf.discovery = Discovery::Scan;
    refused(deaf, "discovery");
    assert!(matches!(FsAdapter::open(good).map(drop), Err(Error::Config { option: "layout", .. })));
    assert_eq!(fs::read_dir(scratch.path()).expect("readdir").count(), 0, "nothing is made before that");
}

#[test]
fn both_adapters_are_used_the_same_way() {
    let scratch = scratch("adapters");
    let mut fs_config = FsAdapter::config(scratch.join("fs"));
    fs_config.pin_shards = false;
    let adapters: [Box<dyn Adapter>; 2] = [
        Box::new(FsAdapter::open(fs_config).expect("open")),
        open(config(&scratch.join("nixl"), GIB, Discovery::ScanAndAsk)),
    ];
    assert_eq!(adapters.iter().map(|adapter| adapter.kind()).collect::<Vec<_>>(), ["fs", "nixl-dynamic"]);
    for adapter in adapters {
        let fds = [Class::Store, Class::Lookup, Class::Load].map(|class| adapter.event_fd(class).as_raw_fd());
        assert!(fds[0] != fds[1] && fds[1] != fds[2] && fds[0] != fds[2]);
        let heard = Recorder::new();
        adapter.subscribe(heard.clone()).expect("subscribe");
        let keys = [key(1), salted(2, "s")];
        let lent = |n: usize| keys.iter().map(|_| Buffer::from(payload(7, n))).collect::<Vec<_>>();
        assert!(matches!(done(adapter.store(&keys, lent(5000)).expect("paired")).results[..], [Ok(5000), Ok(5000)]));
        assert_eq!(done(adapter.lookup_and_pin(&[key(1), key(9)])).sizes, [Some(5000), None]);
        let mut report = done(adapter.load(&keys, lent(5000)).expect("paired"));
        assert!(report.buffers.remove(1).expect("comes back").as_slice() == payload(7, 5000));
        assert!(matches!(done(adapter.delete(&keys)).results[..], [Err(Error::Pinned { pins: 1, .. }), Ok(5000)]));
        assert_eq!(adapter.unpin(&keys), 1);
        assert_eq!(adapter.usage().total_bytes_used, 5000);
        assert!(adapter.status().is_healthy);
        // A name that is too long is a miss, and not a lookup that never ends.
        let long = ObjectKey::new(&"m".repeat(300), 0, 0, &[1; 32], "").expect("a valid key");
        assert_eq!(done(adapter.lookup_and_pin(&[long])).sizes, [None]);
        adapter.close();
        assert_eq!(heard.bytes(), 5000);
    }
}
