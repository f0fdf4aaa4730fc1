//! Directories that others write to as well: what the index lacks is asked of the disk, and everything counts.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::time::Duration;

use macro_rules_attribute::apply;
use saltern::{Buffer, Class, Config, Discovery, Error, EventKind, FsAdapter, Layout, NixlDynamicAdapter, ObjectKey};
use saltern_tests::{
    Cell, Disk, Host, Mount, Recorder, done, file_name, find, get, key, payload, put, remove, salted, until, varied,
};

use crate::mount;

const GIB: u64 = 1 << 30;

fn config(mount: &Mount, capacity_bytes: u64, discovery: Discovery) -> Config {
    let mut config = mount.config();
    (config.capacity_bytes, config.discovery, config.absent_ttl) = (Some(capacity_bytes), discovery, Duration::ZERO);
    config
}

/// Usage is what is on disk, however much of it the index knows.
fn assert_counted(engine: &Host, mount: &Mount) -> Disk {
    let (usage, disk) = (engine.usage(), mount.disk());
    let by_salt: BTreeMap<String, u64> =
        usage.bytes_by_salt.iter().map(|(salt, bytes)| (salt.to_string(), *bytes)).collect();
    assert_eq!((usage.total_bytes_used, by_salt), (disk.bytes, disk.bytes_by_salt.clone()));
    let status = engine.status();
    assert_eq!(status.objects + status.latent_objects, disk.files.len() as u64);
    assert_eq!(status.counters.ledger_underflows, 0);
    disk
}

#[apply(each_cell_of_nixl!)]
fn what_is_only_counted_is_found_by_whoever_asks(cell: Cell) {
    let layout = cell.layout;
    let mount = mount(cell, "ask");
    let keys = varied(layout);
    let content = |n: usize| payload(n as u64, 1000 * n + 1);
    for (n, key) in keys.iter().enumerate() {
        mount.plant(key, &content(n));
    }
    let engine = mount.open_as(config(&mount, GIB, Discovery::Ask));
    let heard = Recorder::new();
    engine.subscribe(heard.clone()).expect("subscribe");
    let report = engine.wait_recovered();
    assert_eq!((report.objects, report.foreign.count), (keys.len() as u64, 0));
    assert_eq!(engine.status().objects, 0, "{layout}: nobody has asked");
    assert_counted(&engine, &mount);
    // Looked up, loaded, stored and deleted without a lookup before.
    for (n, key) in keys.iter().enumerate() {
        let bytes = content(n).len() as u64;
        match n % 4 {
            0 => assert_eq!(find(&engine, key), Some(bytes)),
            1 => assert!(get(&engine, key, content(n).len()).expect("load") == content(n)),
            2 => assert!(matches!(put(&engine, key, b"another"), Ok(0)), "it is there"),
            _ => assert!(matches!(remove(&engine, key), Ok(freed) if freed == bytes)),
        }
        assert_counted(&engine, &mount);
    }
    assert_eq!(engine.status().latent_objects, 0);
    let disk = mount.assert_books(&engine);
    until("all is told", || heard.bytes() == disk.bytes);
    engine.close();
    let recovered = heard.events().iter().filter(|event| event.kind == EventKind::Recovered).count();
    assert_eq!(recovered, keys.len(), "each was entered once");
}

#[apply(each_cell_of_nixl!)]
fn the_capacity_counts_what_nobody_has_asked_for(cell: Cell) {
    for discovery in [Discovery::Ask, Discovery::ScanAndAsk] {
        let mount = mount(cell, "ask-capacity");
        for n in 0..10 {
            mount.plant(&key(n), &[0; 1000]);
        }
        let engine = mount.open_as(config(&mount, 11_500, discovery));
        let refused = put(&engine, &key(100), &[1; 1600]);
        assert!(matches!(refused, Err(Error::Full { needed: 1600, free: 1500, capacity: 11_500 })), "{refused:?}");
        // Others do not ask whether there is room: what they write counts from the moment that somebody asks for it.
        mount.plant(&key(50), &[0; 1000]);
        assert_eq!(find(&engine, &key(50)), Some(1000));
        assert!(matches!(put(&engine, &key(100), &[1; 600]), Err(Error::Full { free: 500, .. })));
        assert!(matches!(put(&engine, &key(100), &[1; 500]), Ok(500)));
        assert_counted(&engine, &mount);
        assert!(matches!(remove(&engine, &key(3)), Ok(1000)), "unknown to the index, and yet it frees its bytes");
        assert!(matches!(put(&engine, &key(101), &[1; 1000]), Ok(1000)));
        assert_eq!(assert_counted(&engine, &mount).bytes, 11_500);
    }
}

#[apply(each_cell_of_nixl!)]
fn what_others_take_away_stops_counting_when_somebody_asks(cell: Cell) {
    let mount = mount(cell, "ask-vanished");
    for n in 0..4 {
        mount.plant(&salted(n, "s"), &[0; 1000]);
    }
    let engine = mount.open_as(config(&mount, GIB, Discovery::Ask));
    engine.wait_recovered();
    for n in 0..4 {
        fs::remove_file(mount.file(&salted(n, "s"))).expect("unlink");
    }
    // And may have come back with another size.
    mount.plant(&salted(3, "s"), &[0; 1234]);
    assert_eq!(find(&engine, &salted(0, "s")), None);
    assert!(matches!(get(&engine, &salted(1, "s"), 1000), Err(Error::NotFound)));
    assert!(matches!(put(&engine, &salted(2, "s"), &[1; 77]), Ok(77)));
    assert_eq!(find(&engine, &salted(3, "s")), Some(1234));
    mount.assert_books(&engine);
}

#[apply(each_cell_of_nixl!)]
fn a_miss_is_remembered_briefly_and_hides_nothing_of_our_own(cell: Cell) {
    let mount = mount(cell, "absent");
    let mut remembering = config(&mount, GIB, Discovery::ScanAndAsk);
    remembering.absent_ttl = Duration::from_secs(3600);
    let engine = mount.open_as(remembering);
    assert_eq!(find(&engine, &key(1)), None);
    mount.plant(&key(1), &[1; 100]);
    assert_eq!(find(&engine, &key(1)), None, "asked a moment ago");
    // Loads and stores ask the disk always, and lookups find what they have found.
    assert!(get(&engine, &key(1), 100).expect("load") == [1; 100]);
    assert_eq!(find(&engine, &key(1)), Some(100));
    assert_eq!(find(&engine, &key(2)), None);
    assert!(matches!(put(&engine, &key(2), &[2; 200]), Ok(200)));
    assert_eq!(find(&engine, &key(2)), Some(200));
    engine.close();

    let engine = mount.open_as(config(&mount, GIB, Discovery::ScanAndAsk));
    assert_eq!(find(&engine, &key(3)), None);
    mount.plant(&key(3), &[1; 100]);
    assert_eq!(find(&engine, &key(3)), Some(100), "without a memory it is found at once");
}

#[apply(each_cell_of_nixl!)]
fn names_that_look_like_temporary_ones_are_safe(cell: Cell) {
    let mount = mount(cell, "temp-names");
    let odd = [salted(1, "x.tmp.0123456789abcdef"), salted(2, ".saltern"), salted(3, "a.bin.tmp.0")];
    let engine = mount.open_as(config(&mount, GIB, Discovery::ScanAndAsk));
    for key in &odd {
        put(&engine, key, b"stays").expect("store");
    }
    // What LMCache leaves when it is killed during a store.
    let theirs = format!("{}.tmp.0123456789abcdef0123456789abcdef", file_name(cell.layout, &key(9)));
    let theirs = mount.dirs()[0].join(theirs);
    fs::create_dir_all(theirs.parent().expect("below the volume")).expect("mkdir");
    fs::write(&theirs, b"half of it").expect("write");
    engine.close();
    let engine = mount.open_as(config(&mount, GIB, Discovery::ScanAndAsk));
    let report = &engine.wait_recovered();
    assert_eq!((report.objects, report.unfinished, report.foreign.count), (3, 0, 1));
    for key in &odd {
        assert!(get(&engine, key, 5).expect("load") == b"stays", "{key}");
    }
    engine.close();
    assert!(theirs.exists(), "not ours");
}

#[apply(each_cell!)]
fn only_what_was_stored_goes_where_nothing_is_to_stay(cell: Cell) {
    let layout = cell.layout;
    for discovery in [Discovery::Ask, Discovery::ScanAndAsk] {
        let mount = mount(cell, "persist");
        let kept = |n: u32| salted(n, "theirs");
        for n in 0..3 {
            mount.plant(&kept(n), &payload(n.into(), 5000));
        }
        let readme = mount.dirs()[0].join("README");
        fs::create_dir_all(&mount.dirs()[0]).expect("mkdir");
        fs::write(&readme, b"theirs").expect("write");
        let mut config = config(&mount, GIB, discovery);
        config.persist = false;
        let engine = mount.open_as(config.clone());
        for n in 0..20 {
            put(&engine, &salted(n, "ours"), &payload(n.into(), 70_000)).expect("store");
        }
        // Found, and stored again, it is still theirs; deleted and stored again, it is ours.
        assert!(matches!(put(&engine, &kept(0), b"x"), Ok(0)));
        assert_eq!(find(&engine, &kept(1)), Some(5000));
        remove(&engine, &kept(2)).expect("delete");
        put(&engine, &kept(2), b"ours").expect("store");
        for n in 0..5 {
            remove(&engine, &salted(n, "ours")).expect("delete");
        }
        mount.plant(&kept(7), b"written by somebody else meanwhile");
        engine.close();
        let disk = mount.disk();
        let names: Vec<_> = disk.files.keys().cloned().collect();
        let mut expected = [0, 1, 7].map(|n| file_name(layout, &kept(n)));
        expected.sort();
        assert_eq!(names, expected);
        assert!(readme.exists());
        for spares in mount.each(".saltern/spares") {
            assert_eq!(fs::read_dir(spares).expect("readdir").count(), 0, "spares are ours");
        }
        // The directory can be used again, and by default everything stays.
        config.persist = true;
        let engine = mount.open_as(config.clone());
        put(&engine, &key(1), b"stays").expect("store");
        engine.close();
        assert_eq!(find(&mount.open_as(config), &key(1)), Some(5));
    }
}

#[apply(each_cell_of_nixl!)]
fn adapters_refuse_what_they_cannot_work_with(cell: Cell) {
    let mount = mount(cell, "adapter-config");
    let refused = |config: Config, expected: &str| match NixlDynamicAdapter::open(config).map(drop) {
        Err(Error::Config { option, reason }) => {
            assert!(option == expected && !reason.is_empty(), "{option}: {reason}")
        }
        other => panic!("{other:?}"),
    };
    let good = config(&mount, GIB, Discovery::ScanAndAsk);
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
    assert!(mount.dirs().iter().all(|dir| !dir.exists()), "nothing is made before that");
}

#[apply(each_cell!)]
fn both_adapters_are_used_the_same_way(cell: Cell) {
    let mount = mount(cell, "adapters");
    let host = mount.open();
    let adapter = host.adapter();
    assert_eq!(adapter.kind(), if cell.is_shared() { "nixl-dynamic" } else { "fs" });
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
    host.close();
    assert_eq!(heard.bytes(), 5000);
}
