//! One of several volumes fails while the engine runs: its reads, or a sync. It is taken out, and the others go on. And what is promised of what
//! is there, when a sync of the only volume has failed.
//!
//! The last volume is on a FUSE file system that makes trouble when it is told to; without FUSE and root these tests are skipped.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use saltern::{Discovery, Durability, Engine, Error, Integrity, Layout};
use saltern_lab::Context;
use saltern_lab::child::THROUGH;
use saltern_power::trouble::{Call, Rule, Trouble};
use saltern_power::{Lab, Served};
use saltern_tests::{
    Exposition, Recorder, assert_books_of, file_name, find, get, key, over, payload, put, remove, until,
};

const OBJECTS: u32 = 90;
const BYTES: usize = 20_000;

/// Reads that fail in a row, and take a volume out (`READ_ERRORS_MAX` of the engine).
const ENOUGH: u32 = 32;

/// The volume that fails.
const BROKEN: usize = 2;

/// Some directories, the last of which is in trouble.
struct Stage {
    served: Served,
    dirs: Vec<PathBuf>,
    // All lies in it.
    _lab: Lab,
}

impl Stage {
    fn new() -> Option<Self> {
        Self::beside(BROKEN)
    }

    /// With so many directories beside the one that fails.
    fn beside(others: usize) -> Option<Self> {
        let program = env!("CARGO_BIN_EXE_saltern-lab").into();
        let cx = Context { seed: 0, is_long: false, program, plot: None, images: None, soak_s: None };
        let staged = cx.lab(&[]).and_then(|lab| {
            let (below, through) = (lab.dir("below")?, lab.dir("through")?);
            let served = Served::start(&cx.role(THROUGH), [&below, &through].map(OsString::from))?;
            let mut dirs: Vec<_> = (0..others).map(|n| lab.path(&format!("volume-{n}"))).collect();
            dirs.push(through.join("volume"));
            Ok(Self { served, dirs, _lab: lab })
        });
        staged.inspect_err(|error| eprintln!("SKIPPED: no file system in user space: {error}")).ok()
    }

    fn open(&self, durability: Durability) -> Engine {
        let mut config = over(&self.dirs);
        // Each load opens its file and reads it, in one piece.
        (config.durability, config.integrity, config.open_files) = (durability, Integrity::Off, Some(0));
        Engine::open(config).expect("open")
    }

    /// From now on all calls of these kinds fail on the last volume.
    fn fails(&self, calls: impl IntoIterator<Item = Call>) {
        let trouble = Trouble::Error(Errno::EIO as i32);
        let rules: Vec<_> = calls.into_iter().map(|call| Rule { call, trouble, per_million: 1_000_000 }).collect();
        self.served.trouble(1, &rules).expect("it is served");
    }

    /// Numbers of the objects whose files are on the third volume, and of the others.
    fn places(&self) -> (Vec<u32>, Vec<u32>) {
        let is_there = |n: &u32| self.dirs[BROKEN].join(file_name(Layout::Fs, &key(*n))).exists();
        (0..OBJECTS).partition(is_there)
    }
}

fn store(engine: &Engine) {
    for n in 0..OBJECTS {
        assert_eq!(put(engine, &key(n), &payload(n.into(), BYTES)).expect("store"), BYTES as u64);
    }
}

fn assert_there(engine: &Engine, numbers: &[u32]) {
    for n in numbers {
        assert_eq!(find(engine, &key(*n)), Some(BYTES as u64), "{n}");
        assert!(get(engine, &key(*n), BYTES).expect("load") == payload((*n).into(), BYTES), "{n}: wrong bytes");
    }
}

/// The volume is out, with this reason; `lost` are misses and can be stored again, `kept` are there.
fn assert_taken_out(engine: &Engine, stage: &Stage, heard: &Arc<Recorder>, reason: &str, lost: &[u32], kept: &[u32]) {
    until("the volume is taken out", || !engine.status().volumes[BROKEN].is_up);
    until("its bytes are free", || engine.status().volumes[BROKEN].used_bytes == 0);
    let status = engine.status();
    assert!(!status.is_healthy && status.volumes[0].is_up && status.volumes[1].is_up, "{:?}", status.problems);
    let problems = &status.volumes[BROKEN].problems;
    assert!(problems.iter().any(|problem| problem.contains(reason)), "{reason:?} is not in {problems:?}");
    let metrics = Exposition::parse(&engine.metrics()).expect("metrics");
    let value = |name: &str, volume: usize| {
        let labels = [("volume", &*volume.to_string()), ("dir", stage.dirs[volume].to_str().expect("text"))];
        metrics.value(name, &labels)
    };
    assert_eq!([0, 1, BROKEN].map(|volume| value("saltern_volume_up", volume)), [1.0, 1.0, 0.0]);
    assert_eq!(value("saltern_volume_writable", BROKEN), 0.0);
    assert_eq!(value("saltern_volume_used_bytes", BROKEN), 0.0);
    for n in lost {
        assert_eq!(find(engine, &key(*n)), None, "{n}");
        assert!(matches!(get(engine, &key(*n), BYTES), Err(Error::NotFound)), "{n}");
    }
    assert_there(engine, kept);
    assert_books_of(engine, &stage.dirs[..BROKEN], Layout::Fs);
    engine.event_mark().wait();
    assert_eq!(heard.objects().len(), kept.len(), "listeners hear of each object that went");
    for n in lost {
        assert_eq!(put(engine, &key(*n), &payload((*n).into(), BYTES)).expect("elsewhere"), BYTES as u64, "{n}");
    }
    assert_there(engine, lost);
    assert_eq!(remove(engine, &key(kept[0])).expect("delete"), BYTES as u64);
    assert_books_of(engine, &stage.dirs[..BROKEN], Layout::Fs);
}

#[test]
fn a_volume_whose_reads_fail_is_taken_out_and_the_others_go_on() {
    let Some(stage) = Stage::new() else { return };
    let engine = stage.open(Durability::None);
    let heard = Recorder::new();
    engine.subscribe(heard.clone()).expect("subscribe");
    store(&engine);
    let (lost, kept) = stage.places();
    assert!(lost.len() > 10 && kept.len() > 30, "{} and {}", lost.len(), kept.len());
    let fail = |times: u32| {
        stage.fails(Some(Call::Read));
        for (n, _) in lost.iter().cycle().zip(0..times) {
            let error = get(&engine, &key(*n), BYTES).expect_err("it cannot be read");
            assert_eq!(error.errno(), Some(Errno::EIO as i32), "{error}");
        }
        stage.fails(None);
    };
    // One less than enough, twice, with one that succeeds between.
    for _ in 0..2 {
        fail(ENOUGH - 1);
        assert_there(&engine, &lost[..1]);
    }
    assert!(engine.status().is_healthy, "{:?}", engine.status().problems);
    assert_there(&engine, &lost);
    // Reads of the other volumes, which succeed, are no comfort.
    fail(ENOUGH / 2);
    assert_there(&engine, &kept);
    fail(ENOUGH / 2);
    assert_taken_out(&engine, &stage, &heard, "32 reads in a row", &lost, &kept);
    engine.close();
    // Opened again, it has its files still: those that were stored again are second files.
    let engine = stage.open(Durability::None);
    assert_eq!(engine.status().objects, u64::from(OBJECTS) - 1);
    assert_there(&engine, &lost);
    assert_there(&engine, &kept[1..]);
    assert_books_of(&engine, &stage.dirs, Layout::Fs);
}

#[test]
fn a_sync_that_fails_on_one_volume_takes_it_out_and_the_others_go_on() {
    let Some(stage) = Stage::new() else { return };
    let engine = stage.open(Durability::Full);
    let heard = Recorder::new();
    engine.subscribe(heard.clone()).expect("subscribe");
    store(&engine);
    let (lost, kept) = stage.places();
    assert!(lost.len() > 10 && kept.len() > 30, "{} and {}", lost.len(), kept.len());
    stage.fails(Some(Call::Sync));
    // Stores of the other volumes' keys succeed; the first of its own is not acknowledged, once.
    let mut refused = Vec::new();
    for n in 1000..1200 {
        match put(&engine, &key(n), b"x") {
            Ok(_) => assert_eq!(remove(&engine, &key(n)).expect("delete"), 1),
            Err(error) => refused.push(error),
        }
        if !engine.status().volumes[BROKEN].is_up {
            break;
        }
    }
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_taken_out(&engine, &stage, &heard, "sync", &lost, &kept);
    stage.fails(None);
    assert!(!engine.status().volumes[BROKEN].is_up, "for good");
    engine.close();
    let engine = stage.open(Durability::Full);
    assert_there(&engine, &lost);
    assert_there(&engine, &kept[1..]);
    assert_books_of(&engine, &stage.dirs, Layout::Fs);
}

/// Stores of one key, one behind the other, whose sync may fail: with `full`, the second must not be told that its object is there
/// because of a name that the first could neither make durable nor take back.
#[test]
fn what_a_failed_sync_leaves_is_no_acknowledgement_for_the_store_behind() {
    // Half of the syncs fail: of a store's two, its data's and its directory's, the second alone in a quarter of the rounds.
    const ROUNDS: u32 = 80;
    let Some(stage) = Stage::beside(0) else { return };
    let mut left = 0;
    for round in 0..ROUNDS {
        let mut config = over(&stage.dirs);
        // Others may have made the file: so the second store asks the disk when the first has given its key up.
        (config.durability, config.discovery) = (Durability::Full, Discovery::ScanAndAsk);
        let engine = Engine::open(config).expect("open");
        let error = Trouble::Error(Errno::EIO as i32);
        let rules = [(Call::Sync, 500_000), (Call::Unlink, 1_000_000)].map(|(call, per_million)| Rule {
            call,
            trouble: error,
            per_million,
        });
        stage.served.trouble(round.into(), &rules).expect("it is served");
        let tickets = [2, 3].map(|n| engine.store(vec![(key(round), payload(n, BYTES).into())]));
        let [first, second] = tickets.map(|ticket| ticket.wait().results.remove(0));
        assert!(first.is_ok() || second.is_err(), "round {round}: {first:?}, and then {second:?}");
        let is_there = stage.dirs[0].join(file_name(Layout::Fs, &key(round))).exists();
        left += u32::from(first.is_err() && is_there);
        stage.fails(None);
        engine.close();
        if left >= 3 {
            return;
        }
    }
    panic!("in {ROUNDS} rounds only {left} stores have left something behind");
}
