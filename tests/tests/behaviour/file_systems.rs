//! Every kind of memory, size and layout; and every file system that this machine can make, which those tests are about, so that they
//! run on one directory of each.

use std::path::Path;

use macro_rules_attribute::apply;
use nix::errno::Errno;
use saltern::{Config, DirectIo, Durability, Engine, Error, Layout};
use saltern_tests::{
    Cell, Disk, Lender, LoopMount, Memory, Scratch, Unmountable, assert_books, config, done, get, key, open, payload,
    put, remove, unfinished, until, varied,
};

use crate::mount;

/// Odd sizes from every kind of memory, there and back, and after a restart.
fn round_trip(engine: &Engine, layout: Layout) {
    let sizes = [0, 1, 511, 512, 4095, 4096, 4097, 100_003, 262_144, 1_048_577];
    let memories = [
        Memory::Heap,
        Memory::Pool,
        Memory::Foreign(0),
        Memory::Foreign(1),
        Memory::Registered(0),
        Memory::Registered(4095),
    ];
    let mut lender = Lender::new(4 << 20);
    lender.register(engine);
    let keys = varied(layout);
    for (n, key) in keys.iter().enumerate() {
        let (content, memory) = (payload(n as u64, sizes[n % sizes.len()]), memories[n % memories.len()]);
        let (buffer, loan) = lender.lend(engine, memory, &content);
        let mut report = done(engine.store(vec![(key.clone(), buffer)]));
        assert!(matches!(report.results[0], Ok(bytes) if bytes == content.len() as u64), "{key}: {:?}", report.results);
        loan.back(report.buffers.remove(0).expect("comes back"));
        for memory in memories {
            let (buffer, loan) = lender.lend(engine, memory, &vec![0; content.len()]);
            let mut report = done(engine.load(vec![(key.clone(), buffer)]));
            assert!(report.results[0].is_ok(), "{key}: {memory:?}: {:?}", report.results);
            assert!(loan.back(report.buffers.remove(0).expect("comes back")) == content, "{key}: {memory:?}");
        }
    }
}

fn round_trip_twice(config: &Config) {
    let engine = Engine::open(config.clone()).expect("open");
    round_trip(&engine, config.layout);
    assert_books(&engine, &config.dir, config.layout);
    let usage = engine.usage();
    engine.close();
    let engine = Engine::open(config.clone()).expect("open");
    assert_eq!(engine.usage(), usage);
    assert_books(&engine, &config.dir, config.layout);
}

#[apply(each_cell!)]
fn direct_or_not_the_bytes_are_the_same(cell: Cell) {
    for direct in [DirectIo::Off, DirectIo::Auto] {
        let mount = mount(cell, "buffered");
        let mut config = mount.config();
        config.direct_io = direct;
        let engine = mount.open_as(config.clone());
        round_trip(&engine, cell.layout);
        mount.assert_books(&engine);
        let usage = engine.usage();
        engine.close();
        let engine = mount.open_as(config);
        assert_eq!(engine.usage(), usage);
        mount.assert_books(&engine);
        for volume in engine.status().volumes {
            let medium = volume.medium;
            assert!(direct == DirectIo::Auto || !medium.direct_io);
            assert!(!medium.direct_io || medium.offset_align_bytes.is_power_of_two(), "{medium:?}");
        }
    }
}

#[test]
fn tmpfs_works_and_status_says_how() {
    let base = Path::new("/dev/shm");
    if !base.is_dir() {
        eprintln!("skipped: there is no {}", base.display());
        return;
    }
    for direct in [DirectIo::Auto, DirectIo::Off] {
        let scratch = Scratch::exactly_under(base, "saltern-tests");
        let mut config = config(scratch.path());
        config.direct_io = direct;
        round_trip_twice(&config);
        let volume = Engine::open(config).expect("open").status().volumes[0].medium.clone();
        assert_eq!(volume.file_system, "tmpfs");
        assert!(direct == DirectIo::Auto || !volume.direct_io);
    }
}

/// A file system of this kind in a file, or the reason why there is none.
fn mounted(kind: &str, bytes: u64, options: &[&str]) -> Option<LoopMount> {
    match LoopMount::new(env!("CARGO_TARGET_TMPDIR"), kind, bytes, options) {
        Ok(mount) => Some(mount),
        Err(Unmountable(why)) => {
            eprintln!("skipped: no {kind} here: {why}");
            None
        }
    }
}

fn works_on(kind: &str, options: &[&str]) {
    let Some(mount) = mounted(kind, 512 << 20, options) else { return };
    for direct in [DirectIo::Auto, DirectIo::Off] {
        let mut config = config(mount.path().join(if direct == DirectIo::Auto { "auto" } else { "off" }));
        config.direct_io = direct;
        round_trip_twice(&config);
        let status = Engine::open(config).expect("open").status();
        assert_eq!(status.volumes[0].medium.file_system, kind);
    }
}

#[test]
fn ext4_works() {
    works_on("ext4", &["-q", "-b", "1024"]);
}

#[test]
fn xfs_works() {
    works_on("xfs", &["-q"]);
}

#[test]
fn btrfs_works() {
    works_on("btrfs", &["-q"]);
}

#[test]
fn a_disk_without_room_refuses_and_recovers() {
    let Some(mount) = mounted("ext4", 24 << 20, &["-q"]) else { return };
    let dir = mount.path().join("volume");
    let engine = open(&dir);
    let mut stored = Vec::new();
    let refused = (0..200).find(|n| match put(&engine, &key(*n), &payload((*n).into(), 1 << 20)) {
        Ok(bytes) => {
            assert_eq!(bytes, 1 << 20);
            stored.push(*n);
            false
        }
        Err(Error::Full { .. }) => true,
        Err(error) => {
            assert_eq!(error.errno(), Some(Errno::ENOSPC as i32), "{error}");
            true
        }
    });
    let refused = refused.expect("24 MiB do not hold 200");
    assert!(stored.len() > 5, "{stored:?}");
    assert_eq!(unfinished(&dir).len(), 0, "what did not fit leaves nothing");
    assert_books(&engine, &dir, Layout::Fs);
    for n in &stored {
        assert!(get(&engine, &key(*n), 1 << 20).expect("load") == payload((*n).into(), 1 << 20), "object {n}");
    }
    for n in &stored[..3] {
        assert!(matches!(remove(&engine, &key(*n)), Ok(bytes) if bytes == 1 << 20));
    }
    until("there is room again", || put(&engine, &key(refused), &payload(refused.into(), 1 << 20)).is_ok());
    assert!(get(&engine, &key(refused), 1 << 20).expect("load") == payload(refused.into(), 1 << 20));
    assert_books(&engine, &dir, Layout::Fs);
    engine.close();
    assert_eq!(Disk::read(&dir, Layout::Fs).files.len(), stored.len() - 2);
}

#[apply(each_cell!)]
fn every_durability_stores(cell: Cell) {
    for durability in [Durability::None, Durability::Data, Durability::Full] {
        let mount = mount(cell, "durability");
        let mut config = mount.config();
        config.durability = durability;
        let engine = mount.open_as(config);
        assert_eq!(engine.status().durability, durability);
        round_trip(&engine, cell.layout);
        mount.assert_books(&engine);
    }
}
