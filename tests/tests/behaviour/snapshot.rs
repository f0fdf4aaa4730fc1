//! A restart from a snapshot: answers at once, and only the truth.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use rand::Rng;
use saltern::eviction::PolicyKind;
use saltern::{Config, Engine, Error, EventKind, Eviction, Layout, ObjectKey};
use saltern_tests::{
    Disk, Recorder, Seed, assert_books, config, done, file_name, find, get, key, open, payload, put, remove, salted,
    until, varied,
};

use crate::gate::{Gate, OpenOnDrop};
use crate::scratch;

const OBJECT_BYTES: usize = 5000;
const CAPACITY: u64 = 1000 * OBJECT_BYTES as u64;

/// Where the snapshot is, in the volume's directory.
const SNAPSHOT: &str = ".saltern/index";

/// Files of a directory whose scan is held at its first step.
const MANY: u32 = 2500;

/// Names that the scan reads before it can be held.
const SEEN: u64 = 256;

/// Their size; they are sparse, so their bytes are zero.
const SPARSE_BYTES: u64 = 4096;

fn objects(count: u64) -> u64 {
    count * OBJECT_BYTES as u64
}

fn evicting(dir: &Path, policy: PolicyKind) -> Config {
    let mut config = config(dir);
    config.capacity_bytes = Some(CAPACITY);
    config.eviction = Eviction::engine(policy);
    config
}

fn write_sparse(path: &Path, bytes: u64) {
    File::create(path).and_then(|file| file.set_len(bytes)).expect("write");
}

fn path_of(dir: &Path, key: &ObjectKey) -> std::path::PathBuf {
    dir.join(file_name(Layout::Fs, key))
}

/// A directory of [`MANY`] sparse objects, with the snapshot of an engine that was closed.
fn prepare(dir: &Path) {
    for n in 0..MANY {
        write_sparse(&path_of(dir, &key(n)), SPARSE_BYTES);
    }
    open(dir).close();
}

/// An engine whose scan has begun, and does not go on before the gate is opened.
fn open_held(mut config: Config) -> (Engine, OpenOnDrop) {
    config.scan_threads = 1;
    let gate = Gate::new();
    let hold = gate.clone();
    let opener = Engine::opener(config).background(true).progress(move |_| hold.pass());
    let guard = OpenOnDrop(gate);
    (opener.open().expect("open"), guard)
}

/// Compares what a listener heard with what is on disk.
fn assert_heard(heard: &Recorder, disk: &Disk) {
    assert_eq!(heard.resets(), 0);
    let objects: BTreeMap<String, u64> =
        heard.objects().iter().map(|(key, bytes)| (file_name(Layout::Fs, key), *bytes)).collect();
    assert!(objects == disk.files, "{} objects heard of, {} on disk", objects.len(), disk.files.len());
}

#[test]
fn everything_is_answered_before_the_scan_has_come_to_it() {
    let scratch = scratch("snapshot-at-once");
    prepare(scratch.path());
    let (engine, gate) = open_held(config(scratch.path()));
    let status = engine.status();
    assert_eq!((status.objects, status.used_bytes), (u64::from(MANY), u64::from(MANY) * SPARSE_BYTES));
    assert!(!status.recovered && status.snapshot.hinted_objects >= u64::from(MANY) - SEEN, "{:?}", status.snapshot);
    // Listeners do not wait for the scan either.
    let heard = Recorder::new();
    engine.subscribe(heard.clone()).expect("subscribe");
    until("the replay is complete", || heard.events().len() == MANY as usize);
    assert!(heard.events().iter().all(|event| event.kind == EventKind::Recovered && event.bytes == SPARSE_BYTES));

    let keys: Vec<ObjectKey> = (0..MANY).map(key).collect();
    assert!(done(engine.lookup_and_pin(&keys[..1000])).sizes.iter().all(|size| *size == Some(SPARSE_BYTES)));
    assert_eq!(engine.unpin(&keys[..1000]), 1000);
    for n in (1000..2000).step_by(97) {
        assert!(get(&engine, &key(n), SPARSE_BYTES as usize).expect("load") == [0; SPARSE_BYTES as usize], "{n}");
        assert!(matches!(put(&engine, &key(n + 1), &[1; 10]), Ok(0)), "{n}: it is there");
        assert!(matches!(remove(&engine, &key(n + 2)), Ok(SPARSE_BYTES)), "{n}");
        assert_eq!(find(&engine, &key(n + 2)), None, "{n}");
        assert_eq!(find(&engine, &key(MANY + n)), None, "{n}");
        assert!(matches!(put(&engine, &key(MANY + n), &payload(n.into(), 100)), Ok(100)), "{n}");
    }
    assert!(!engine.status().recovered, "the gate holds the scan");
    drop(gate);
    let report = engine.wait_recovered();
    assert_eq!((report.from_snapshot, report.gone, &report.error), (u64::from(MANY), 0, &None));
    assert_eq!(engine.status().snapshot.hinted_objects, 0);
    let disk = assert_books(&engine, scratch.path(), Layout::Fs);
    assert_eq!(disk.files.len(), MANY as usize, "as many stored as deleted");
    engine.close();
    assert_heard(&heard, &disk);
}

#[test]
fn what_the_snapshot_says_wrongly_is_never_answered() {
    let scratch = scratch("snapshot-wrong");
    prepare(scratch.path());
    let path = |n| path_of(scratch.path(), &key(n));
    for n in 0..500 {
        fs::remove_file(path(n)).expect("unlink");
    }
    for n in 500..1000 {
        fs::write(path(n), payload(n.into(), 1000)).expect("write");
    }
    for n in 1000..1100 {
        fs::remove_file(path(n)).and_then(|()| fs::create_dir(path(n))).expect("mkdir");
    }
    for n in MANY..MANY + 500 {
        fs::write(path(n), payload(n.into(), 2000)).expect("write");
    }
    let (engine, gate) = open_held(config(scratch.path()));
    let heard = Recorder::new();
    engine.subscribe(heard.clone()).expect("subscribe");
    for n in (0..100).chain(1000..1020) {
        assert_eq!(find(&engine, &key(n)), None, "{n}");
    }
    let is_miss = |result: Result<_, Error>| matches!(result, Err(Error::NotFound));
    for n in (100..200).chain(1020..1040) {
        assert!(is_miss(get(&engine, &key(n), SPARSE_BYTES as usize).map(drop)), "{n}");
    }
    for n in (200..300).chain(1040..1060) {
        assert!(is_miss(remove(&engine, &key(n)).map(drop)), "{n}");
    }
    for n in 300..400 {
        assert!(matches!(put(&engine, &key(n), &payload(n.into(), 3000)), Ok(3000)), "{n}: stored, not there already");
    }
    for n in 500..600 {
        assert_eq!(find(&engine, &key(n)), Some(1000), "{n}");
    }
    for n in 600..700 {
        // A buffer for the size that the snapshot knew: the object is another one now, and stays.
        assert!(matches!(
            get(&engine, &key(n), SPARSE_BYTES as usize),
            Err(Error::WrongSize { object_bytes: 1000, .. })
        ));
        assert!(get(&engine, &key(n), 1000).expect("load") == payload(n.into(), 1000), "{n}");
    }
    for n in 700..800 {
        assert!(matches!(remove(&engine, &key(n)), Ok(1000)), "{n}");
    }
    for n in MANY..MANY + 100 {
        assert!(get(&engine, &key(n), 2000).expect("load") == payload(n.into(), 2000), "{n}: added meanwhile");
    }
    assert_eq!(engine.status().counters.damaged, 0);
    drop(gate);
    let report = engine.wait_recovered();
    assert!(report.gone >= 50 && report.error.is_none(), "{report:?}");
    let mut disk = assert_books(&engine, scratch.path(), Layout::Fs);
    assert_eq!((disk.files.len(), disk.others.len()), (MANY as usize - 500 - 100 - 100 + 100 + 500, 100));
    disk.others.clear();
    assert_eq!(engine.status().snapshot.hinted_objects, 0);
    engine.close();
    assert_heard(&heard, &disk);
}

#[test]
fn a_snapshot_of_any_age_brings_nothing_back() {
    let seed = Seed::new("a_snapshot_of_any_age_brings_nothing_back");
    for round in 0..2 {
        let scratch = scratch("snapshot-old");
        let mut rng = seed.rng(round);
        let mut config = config(scratch.path());
        config.shards = 2;
        let fill = |engine: &Engine, rng: &mut rand::rngs::StdRng, count: u32| {
            for _ in 0..count {
                let n = rng.random_range(0..900);
                if rng.random_range(0..3) == 0 {
                    drop(remove(engine, &salted(n, ["", "a"][n as usize % 2])));
                } else {
                    let bytes = rng.random_range(0..3 * OBJECT_BYTES);
                    put(engine, &salted(n, ["", "a"][n as usize % 2]), &vec![n as u8; bytes]).expect("store");
                }
            }
        };
        let engine = Engine::open(config.clone()).expect("open");
        fill(&engine, &mut rng, 700);
        engine.close();
        let old = fs::read(scratch.join(SNAPSHOT)).expect("written at close");
        let engine = Engine::open(config.clone()).expect("open");
        fill(&engine, &mut rng, 700);
        engine.close();
        // As after a crash: the snapshot is from before.
        fs::write(scratch.join(SNAPSHOT), old).expect("write");
        let before = Disk::read(scratch.path(), Layout::Fs);

        let engine = Engine::opener(config).background(true).open().expect("open");
        let heard = Recorder::new();
        engine.subscribe(heard.clone()).expect("subscribe");
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (mut rng, engine, is_over, before) = (seed.rng(100 + thread), &engine, &is_over, &before);
                scope.spawn(move || {
                    // Each thread has keys of its own, so that it knows the answers.
                    let mut mine: BTreeMap<u32, Option<u64>> = BTreeMap::new();
                    for step in 0.. {
                        if is_over.load(Ordering::Relaxed) && step > 200 {
                            return;
                        }
                        let n = 3 * rng.random_range(0..300) + thread as u32;
                        let key = salted(n, ["", "a"][n as usize % 2]);
                        let on_disk = before.files.get(&file_name(Layout::Fs, &key)).copied();
                        let there = mine.entry(n).or_insert(on_disk);
                        match rng.random_range(0..4) {
                            0 => match (remove(engine, &key), *there) {
                                (Ok(bytes), Some(known)) if bytes == known => *there = None,
                                (Err(Error::NotFound), None) => {}
                                (result, known) => panic!("delete {n}: {result:?}, {known:?}"),
                            },
                            1 => {
                                let stored = put(engine, &key, &[n as u8; 700]).expect("store");
                                assert_eq!(stored, if there.is_some() { 0 } else { 700 }, "store {n}: {there:?}");
                                there.get_or_insert(700);
                            }
                            2 => {
                                let loaded = get(engine, &key, there.unwrap_or(1) as usize);
                                assert_eq!(loaded.is_ok(), there.is_some(), "load {n}: {loaded:?}");
                                assert!(loaded.unwrap_or_default().iter().all(|byte| *byte == n as u8), "{n}");
                            }
                            _ => assert_eq!(find(engine, &key), *there, "lookup {n}"),
                        }
                    }
                });
            }
            engine.wait_recovered();
            is_over.store(true, Ordering::Relaxed);
        });
        let disk = assert_books(&engine, scratch.path(), Layout::Fs);
        engine.close();
        assert_heard(&heard, &disk);
    }
}

#[test]
fn stores_under_a_capacity_wait_for_the_truth() {
    let scratch = scratch("snapshot-capacity");
    prepare(scratch.path());
    // The snapshot knows of a full directory, the truth has room; and the other way round.
    fs::remove_file(path_of(scratch.path(), &key(0))).expect("unlink");
    let mut config = config(scratch.path());
    config.capacity_bytes = Some(u64::from(MANY) * SPARSE_BYTES);
    let (engine, gate) = open_held(config.clone());
    let store = engine.store(vec![(key(MANY), vec![1; SPARSE_BYTES as usize].into())]);
    assert!(!store.is_done(), "nobody knows yet whether there is room");
    drop(gate);
    assert!(matches!(done(store).results[..], [Ok(SPARSE_BYTES)]));
    assert_books(&engine, scratch.path(), Layout::Fs);
    engine.close();

    write_sparse(&path_of(scratch.path(), &key(0)), SPARSE_BYTES);
    let (engine, gate) = open_held(config);
    assert!(matches!(remove(&engine, &key(1)), Ok(SPARSE_BYTES)));
    let store = engine.store(vec![(key(MANY + 1), vec![1; SPARSE_BYTES as usize].into())]);
    drop(gate);
    assert!(matches!(done(store).results[..], [Err(Error::Full { free: 0, .. })]));
    assert_books(&engine, scratch.path(), Layout::Fs);
}

#[test]
fn snapshots_are_written_at_intervals_and_serve_after_a_crash() {
    let scratch = scratch("snapshot-interval");
    let mut config = config(scratch.path());
    config.snapshot_interval = Duration::from_millis(5);
    let engine = Engine::open(config).expect("open");
    for (n, key) in varied(Layout::Fs).iter().enumerate() {
        put(&engine, key, &payload(n as u64, OBJECT_BYTES)).expect("store");
    }
    let count = varied(Layout::Fs).len() as u64;
    until("all are in a snapshot", || engine.status().snapshot.written_objects == count);
    // What a crash leaves, in another place.
    let crashed = crate::scratch("snapshot-crashed");
    fs::create_dir(crashed.join(".saltern")).expect("mkdir");
    fs::copy(scratch.join(SNAPSHOT), crashed.join(SNAPSHOT)).expect("copy");
    for name in Disk::read(scratch.path(), Layout::Fs).files.keys() {
        fs::copy(scratch.join(name), crashed.join(name)).expect("copy");
    }
    let written = |engine: &Engine| engine.status().snapshot.written_unix_ns;
    let first = written(&engine);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(written(&engine), first, "nothing has changed, so nothing is written");
    get(&engine, &varied(Layout::Fs)[0], OBJECT_BYTES).expect("load");
    until("a use is a change", || written(&engine) != first);
    engine.close();

    let engine = open(crashed.path());
    assert_eq!(engine.wait_recovered().from_snapshot, count);
    assert_books(&engine, crashed.path(), Layout::Fs);
}

#[test]
fn an_engine_that_is_closed_while_it_scans_leaves_a_good_snapshot() {
    let scratch = scratch("snapshot-close");
    prepare(scratch.path());
    for _ in 0..3 {
        let opener = Engine::opener(config(scratch.path())).background(true);
        opener.open().expect("open").close();
        let engine = open(scratch.path());
        let report = engine.wait_recovered();
        assert_eq!((report.from_snapshot, report.objects), (u64::from(MANY), u64::from(MANY)));
        assert_books(&engine, scratch.path(), Layout::Fs);
        engine.close();
    }
}

#[test]
fn what_stays_for_the_host_to_evict_is_known_at_once_where_files_do_not_stay() {
    let scratch = scratch("snapshot-persist");
    prepare(scratch.path());
    let mut config = config(scratch.path());
    config.persist = false;
    let engine = Engine::open(config).expect("open");
    put(&engine, &key(MANY), &[1; 10]).expect("store");
    engine.close();
    let engine = open(scratch.path());
    assert_eq!(engine.wait_recovered().from_snapshot, u64::from(MANY), "the snapshot before it serves still");
    assert_books(&engine, scratch.path(), Layout::Fs);
}

#[test]
fn when_objects_were_used_survives_a_clean_restart() {
    for policy in PolicyKind::ALL {
        let scratch = scratch("use-restart");
        let engine = Engine::open(evicting(scratch.path(), policy)).expect("open");
        for n in 0..20 {
            put(&engine, &key(n), &payload(n.into(), OBJECT_BYTES)).expect("store");
        }
        for n in (0..10).rev() {
            get(&engine, &key(n), OBJECT_BYTES).expect("load");
        }
        engine.close();
        let told = |engine: &Engine| {
            let heard = Recorder::new();
            engine.subscribe(heard.clone()).expect("subscribe");
            until("the replay is complete", || heard.events().len() == 20);
            heard.events().into_iter().map(|event| event.key).collect::<Vec<_>>()
        };
        let expected: Vec<ObjectKey> = (10..20).chain((0..10).rev()).map(key).collect();
        for _ in 0..2 {
            let engine = Engine::open(evicting(scratch.path(), policy)).expect("open");
            assert!(told(&engine) == expected, "{policy}: without a use the order stays");
            assert_eq!(engine.status().notes, [""; 0]);
            engine.close();
        }
        let engine = Engine::open(evicting(scratch.path(), policy)).expect("open");
        engine.evict_to(objects(5)).expect("evict");
        assert_eq!(
            (0..20).filter(|n| find(&engine, &key(*n)).is_some()).collect::<Vec<_>>(),
            [0, 1, 2, 3, 4],
            "{policy}"
        );
        assert_books(&engine, scratch.path(), Layout::Fs);
    }
}

#[test]
fn a_snapshot_that_cannot_be_used_is_ignored_with_a_note() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/fixtures");
    let cases =
        [("index-v1-cut", "damaged"), ("index-v1-flipped", "damaged"), ("index-v2", "version 2"), ("index-v1", "nixl")];
    for (name, reason) in cases {
        let scratch = scratch("snapshot");
        let engine = Engine::open(config(scratch.path())).expect("open");
        for n in 0..5 {
            put(&engine, &key(n), &payload(n.into(), OBJECT_BYTES)).expect("store");
        }
        get(&engine, &key(0), OBJECT_BYTES).expect("load");
        engine.close();
        fs::copy(fixtures.join(name), scratch.join(SNAPSHOT)).expect("copy");
        let engine = Engine::open(config(scratch.path())).expect("open");
        let status = engine.status();
        assert!(status.notes.len() == 1 && status.notes[0].contains(reason), "{name}: {:?}", status.notes);
        assert!(status.is_healthy && status.objects == 5);
        assert_books(&engine, scratch.path(), Layout::Fs);
        engine.close();
        // Closing in good order has written a good one.
        let engine = Engine::open(config(scratch.path())).expect("open");
        assert_eq!(engine.status().notes, [""; 0]);
    }
}

#[test]
fn what_changed_while_it_was_away_is_as_the_directory_says() {
    let scratch = scratch("snapshot-stale");
    let engine = Engine::open(config(scratch.path())).expect("open");
    for n in 0..5 {
        put(&engine, &key(n), &payload(n.into(), OBJECT_BYTES)).expect("store");
    }
    engine.close();
    let path = |n| scratch.join(&file_name(Layout::Fs, &key(n)));
    fs::remove_file(path(0)).expect("unlink");
    // Number 1 is written anew, with its old size: used then, whatever the snapshot says. Times are set: the kernel's are coarse.
    let now = SystemTime::now();
    for (n, bytes) in [(1, OBJECT_BYTES), (2, 10), (7, 20)] {
        fs::write(path(n), vec![9; bytes]).expect("write");
        let file = fs::File::options().write(true).open(path(n)).expect("open");
        file.set_modified(now + Duration::from_secs(n.into())).expect("utimens");
    }
    let engine = Engine::open(config(scratch.path())).expect("open");
    assert_books(&engine, scratch.path(), Layout::Fs);
    assert_eq!((find(&engine, &key(0)), find(&engine, &key(2)), find(&engine, &key(7))), (None, Some(10), Some(20)));
    let heard = Recorder::new();
    engine.subscribe(heard.clone()).expect("subscribe");
    until("the replay is complete", || heard.events().len() == 5);
    let told: Vec<ObjectKey> = heard.events().into_iter().map(|event| event.key).collect();
    assert!(told == [3, 4, 1, 2, 7].map(key), "{told:?}");
}
