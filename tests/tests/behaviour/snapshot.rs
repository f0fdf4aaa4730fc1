//! A restart from a snapshot: answers at once, and only the truth.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use macro_rules_attribute::apply;
use rand::Rng;
use saltern::eviction::PolicyKind;
use saltern::{Config, Engine, Error, EventKind, Eviction, ObjectKey};
use saltern_tests::{
    Cell, Disk, Host, Mount, Recorder, Seed, done, file_name, find, get, key, payload, put, remove, salted, until,
    varied,
};

use crate::gate::{Gate, OpenOnDrop};
use crate::{mount, policies};

const OBJECT_BYTES: usize = 5000;
const CAPACITY: u64 = 1000 * OBJECT_BYTES as u64;

/// Where the snapshot is, in the volume's directory.
const SNAPSHOT: &str = ".saltern/index";

/// Where a volume's number is, where there are several.
const NUMBER: &str = ".saltern/volume";

/// Files of a directory whose scan is held at its first step.
const MANY: u32 = 2500;

/// Names that the scan of a volume reads before it can be held.
const SEEN: u64 = 256;

/// Their size; they are sparse, so their bytes are zero.
const SPARSE_BYTES: u64 = 4096;

fn objects(count: u64) -> u64 {
    count * OBJECT_BYTES as u64
}

fn evicting(mount: &Mount, policy: PolicyKind) -> Config {
    let mut config = mount.config();
    config.capacity_bytes = Some(CAPACITY);
    config.eviction = Eviction::engine(policy);
    config
}

/// A directory of [`MANY`] sparse objects, with the snapshot of an engine that was closed.
fn prepare(mount: &Mount) {
    (0..MANY).for_each(|n| mount.plant_sparse(&key(n), SPARSE_BYTES));
    mount.open().close();
}

/// An engine whose scan has begun, and does not go on before the gate is opened.
fn open_held(mount: &Mount, mut config: Config) -> (Host, OpenOnDrop) {
    config.scan_threads = 1;
    let gate = Gate::new();
    let hold = gate.clone();
    let opener = Engine::opener(config).background(true).progress(move |_| hold.pass());
    let guard = OpenOnDrop(gate);
    (mount.open_with(opener), guard)
}

/// Compares what a listener heard with what is on disk.
fn assert_heard(heard: &Recorder, cell: Cell, disk: &Disk) {
    assert_eq!(heard.resets(), 0);
    let objects: BTreeMap<String, u64> =
        heard.objects().iter().map(|(key, bytes)| (file_name(cell.layout, key), *bytes)).collect();
    assert!(objects == disk.files, "{} objects heard of, {} on disk", objects.len(), disk.files.len());
}

#[apply(each_cell_without_capacity!)]
fn everything_is_answered_before_the_scan_has_come_to_it(cell: Cell) {
    let mount = mount(cell, "snapshot-at-once");
    prepare(&mount);
    let (engine, gate) = open_held(&mount, mount.config());
    let status = engine.status();
    assert_eq!((status.objects, status.used_bytes), (u64::from(MANY), u64::from(MANY) * SPARSE_BYTES));
    assert!(
        !status.recovered && status.snapshot.hinted_objects >= u64::from(MANY) - SEEN * cell.volumes as u64,
        "{:?}",
        status.snapshot
    );
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
    let disk = mount.assert_books(&engine);
    assert_eq!(disk.files.len(), MANY as usize, "as many stored as deleted");
    engine.close();
    assert_heard(&heard, cell, &disk);
}

#[apply(each_cell_without_capacity!)]
fn what_the_snapshot_says_wrongly_is_never_answered(cell: Cell) {
    let mount = mount(cell, "snapshot-wrong");
    prepare(&mount);
    let path = |n| mount.file(&key(n));
    for n in 0..500 {
        fs::remove_file(path(n)).expect("unlink");
    }
    for n in 500..1000 {
        mount.plant(&key(n), &payload(n.into(), 1000));
    }
    for n in 1000..1100 {
        fs::remove_file(path(n)).and_then(|()| fs::create_dir(path(n))).expect("mkdir");
    }
    for n in MANY..MANY + 500 {
        mount.plant(&key(n), &payload(n.into(), 2000));
    }
    let (engine, gate) = open_held(&mount, mount.config());
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
    let mut disk = mount.assert_books(&engine);
    assert_eq!((disk.files.len(), disk.others.len()), (MANY as usize - 500 - 100 - 100 + 100 + 500, 100));
    disk.others.clear();
    assert_eq!(engine.status().snapshot.hinted_objects, 0);
    engine.close();
    assert_heard(&heard, cell, &disk);
}

#[apply(each_cell!)]
fn a_snapshot_of_any_age_brings_nothing_back(cell: Cell) {
    let seed = Seed::new("a_snapshot_of_any_age_brings_nothing_back");
    for round in 0..cell.sized(2, 1) {
        let mount = mount(cell, "snapshot-old");
        let mut rng = seed.rng(round);
        let mut config = mount.config();
        config.shards = 2;
        let fill = |engine: &Host, rng: &mut rand::rngs::StdRng, count: u32| {
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
        let engine = mount.open_as(config.clone());
        fill(&engine, &mut rng, cell.sized(700, 200));
        engine.close();
        let old = mount.each(SNAPSHOT).iter().map(|path| fs::read(path).expect("written at close")).collect::<Vec<_>>();
        let engine = mount.open_as(config.clone());
        fill(&engine, &mut rng, cell.sized(700, 200));
        engine.close();
        // As after a crash: the snapshot is from before.
        mount.each(SNAPSHOT).iter().zip(old).for_each(|(path, old)| fs::write(path, old).expect("write"));
        let before = mount.disk();

        let engine = mount.open_with(Engine::opener(config).background(true));
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
                        let on_disk = before.files.get(&file_name(cell.layout, &key)).copied();
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
        let disk = mount.assert_books(&engine);
        engine.close();
        assert_heard(&heard, cell, &disk);
    }
}

#[apply(each_cell!)]
fn stores_under_a_capacity_wait_for_the_truth(cell: Cell) {
    let mount = mount(cell, "snapshot-capacity");
    prepare(&mount);
    // The snapshot knows of a full directory, the truth has room; and the other way round.
    fs::remove_file(mount.file(&key(0))).expect("unlink");
    let mut config = mount.config();
    config.capacity_bytes = Some(u64::from(MANY) * SPARSE_BYTES);
    let (engine, gate) = open_held(&mount, config.clone());
    let store = engine.store(vec![(key(MANY), vec![1; SPARSE_BYTES as usize].into())]);
    assert!(!store.is_done(), "nobody knows yet whether there is room");
    drop(gate);
    assert!(matches!(done(store).results[..], [Ok(SPARSE_BYTES)]));
    mount.assert_books(&engine);
    engine.close();

    mount.plant_sparse(&key(0), SPARSE_BYTES);
    let (engine, gate) = open_held(&mount, config);
    assert!(matches!(remove(&engine, &key(1)), Ok(SPARSE_BYTES)));
    let store = engine.store(vec![(key(MANY + 1), vec![1; SPARSE_BYTES as usize].into())]);
    drop(gate);
    assert!(matches!(done(store).results[..], [Err(Error::Full { free: 0, .. })]));
    mount.assert_books(&engine);
}

#[apply(each_cell!)]
fn snapshots_are_written_at_intervals_and_serve_after_a_crash(cell: Cell) {
    let mount = mount(cell, "snapshot-interval");
    let mut config = mount.config();
    config.snapshot_interval = Duration::from_millis(5);
    let engine = mount.open_as(config);
    for (n, key) in varied(cell.layout).iter().enumerate() {
        put(&engine, key, &payload(n as u64, OBJECT_BYTES)).expect("store");
    }
    let count = varied(cell.layout).len() as u64;
    until("all are in a snapshot", || engine.status().snapshot.written_objects == count);
    // What a crash leaves, in another place.
    let crashed = crate::mount(cell, "snapshot-crashed");
    for (from, to) in mount.dirs().iter().zip(crashed.dirs()) {
        // The number of a volume, if there are several, stays what it is.
        let names = Disk::read(from, cell.layout).files.into_keys().chain([SNAPSHOT, NUMBER].map(str::to_owned));
        for name in names.filter(|name| from.join(name).exists()) {
            fs::create_dir_all(to.join(&name).parent().expect("below the volume")).expect("mkdir");
            fs::copy(from.join(&name), to.join(&name)).expect("copy");
        }
    }
    let written = |engine: &Host| engine.status().snapshot.written_unix_ns;
    let first = written(&engine);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(written(&engine), first, "nothing has changed, so nothing is written");
    get(&engine, &varied(cell.layout)[0], OBJECT_BYTES).expect("load");
    until("a use is a change", || written(&engine) != first);
    engine.close();

    let engine = crashed.open();
    assert_eq!(engine.wait_recovered().from_snapshot, count);
    crashed.assert_books(&engine);
}

#[apply(each_cell!)]
fn an_engine_that_is_closed_while_it_scans_leaves_a_good_snapshot(cell: Cell) {
    let mount = mount(cell, "snapshot-close");
    prepare(&mount);
    for _ in 0..cell.sized(3, 1) {
        let opener = Engine::opener(mount.config()).background(true);
        mount.open_with(opener).close();
        let engine = mount.open();
        let report = engine.wait_recovered();
        assert_eq!((report.from_snapshot, report.objects), (u64::from(MANY), u64::from(MANY)));
        mount.assert_books(&engine);
        engine.close();
    }
}

#[apply(each_cell!)]
fn what_stays_for_the_host_to_evict_is_known_at_once_where_files_do_not_stay(cell: Cell) {
    let mount = mount(cell, "snapshot-persist");
    prepare(&mount);
    let mut config = mount.config();
    config.persist = false;
    let engine = mount.open_as(config);
    put(&engine, &key(MANY), &[1; 10]).expect("store");
    engine.close();
    let engine = mount.open();
    assert_eq!(engine.wait_recovered().from_snapshot, u64::from(MANY), "the snapshot before it serves still");
    mount.assert_books(&engine);
}

#[apply(each_cell!)]
fn when_objects_were_used_survives_a_clean_restart(cell: Cell) {
    for policy in policies(cell) {
        let mount = mount(cell, "use-restart");
        let engine = mount.open_as(evicting(&mount, policy));
        for n in 0..20 {
            put(&engine, &key(n), &payload(n.into(), OBJECT_BYTES)).expect("store");
        }
        for n in (0..10).rev() {
            get(&engine, &key(n), OBJECT_BYTES).expect("load");
        }
        engine.close();
        let told = |engine: &Host| {
            let heard = Recorder::new();
            engine.subscribe(heard.clone()).expect("subscribe");
            until("the replay is complete", || heard.events().len() == 20);
            heard.events().into_iter().map(|event| event.key).collect::<Vec<_>>()
        };
        let expected: Vec<ObjectKey> = (10..20).chain((0..10).rev()).map(key).collect();
        for _ in 0..2 {
            let engine = mount.open_as(evicting(&mount, policy));
            assert!(told(&engine) == expected, "{policy}: without a use the order stays");
            assert_eq!(engine.status().notes, [""; 0]);
            engine.close();
        }
        let engine = mount.open_as(evicting(&mount, policy));
        engine.evict_to(objects(5)).expect("evict");
        assert_eq!(
            (0..20).filter(|n| find(&engine, &key(*n)).is_some()).collect::<Vec<_>>(),
            [0, 1, 2, 3, 4],
            "{policy}"
        );
        mount.assert_books(&engine);
    }
}

#[apply(each_cell!)]
fn a_snapshot_that_cannot_be_used_is_ignored_with_a_note(cell: Cell) {
    let fixtures = saltern_tests::fixtures();
    let cases =
        [("index-v1-cut", "damaged"), ("index-v1-flipped", "damaged"), ("index-v2", "version 2"), ("index-v1", "nixl")];
    // The last one is right where names are NIXL's.
    for (name, reason) in cases.into_iter().filter(|(_, reason)| *reason != cell.layout.name()) {
        let mount = mount(cell, "snapshot");
        let engine = mount.open();
        for n in 0..5 {
            put(&engine, &key(n), &payload(n.into(), OBJECT_BYTES)).expect("store");
        }
        get(&engine, &key(0), OBJECT_BYTES).expect("load");
        engine.close();
        for path in mount.each(SNAPSHOT) {
            fs::copy(fixtures.join(name), path).expect("copy");
        }
        let engine = mount.open();
        let status = engine.status();
        assert_eq!(status.notes.len(), cell.volumes, "{name}: {:?}", status.notes);
        assert!(status.notes.iter().all(|note| note.contains(reason)), "{name}: {:?}", status.notes);
        assert!(status.is_healthy && status.objects == 5);
        mount.assert_books(&engine);
        engine.close();
        // Closing in good order has written a good one.
        let engine = mount.open();
        assert_eq!(engine.status().notes, [""; 0]);
    }
}

/// Programs that write into files, which LMCache does not.
fn write_into(mount: &Mount, n: u32, bytes: &[u8]) {
    fs::write(mount.file(&key(n)), bytes).expect("write");
}

/// Whether an engine vouches for its snapshot: not with many directories, and not where others may write to the file system.
fn vouches(engine: &Engine, cell: Cell) -> bool {
    let medium = &engine.status().volumes[0].medium;
    !cell.layout.is_sharded() && ["ext4", "xfs", "btrfs"].contains(&medium.file_system.as_str())
}

#[apply(each_cell!)]
fn after_a_close_a_file_that_was_written_into_shows_its_size_when_it_is_used(cell: Cell) {
    let mount = mount(cell, "snapshot-unseen");
    prepare(&mount);
    let engine = mount.open();
    if !vouches(&engine, cell) {
        return;
    }
    for n in [MANY, MANY + 1] {
        put(&engine, &key(n), &payload(n.into(), 3000)).expect("store");
    }
    engine.close();
    (0..30).chain([MANY]).for_each(|n| write_into(&mount, n, &payload(n.into(), 1000)));
    // One thread reads the snapshot before it scans; what others meet before its record is read is looked at.
    let mut config = mount.config();
    config.scan_threads = 1;
    let engine = mount.open_as(config);
    let heard = Recorder::new();
    engine.subscribe(heard.clone()).expect("subscribe");
    until("the replay is complete", || heard.events().len() == MANY as usize + 2);
    for n in 0..30 {
        assert_eq!(find(&engine, &key(n)), Some(SPARSE_BYTES), "{n}: no name has changed, so nobody has looked");
        engine.unpin(&[key(n)]);
    }
    for n in 0..10 {
        let loaded = get(&engine, &key(n), SPARSE_BYTES as usize);
        assert!(matches!(loaded, Err(Error::WrongSize { object_bytes: 1000, .. })), "{n}: {loaded:?}");
    }
    for n in 0..20 {
        assert!(get(&engine, &key(n), 1000).expect("load") == payload(n.into(), 1000), "{n}: whoever knows better");
        assert_eq!(find(&engine, &key(n)), Some(1000), "{n}");
    }
    for n in 20..30 {
        assert!(matches!(remove(&engine, &key(n)), Ok(SPARSE_BYTES)), "{n}");
        assert!(matches!(put(&engine, &key(n), &payload(n.into(), 3000)), Ok(3000)), "{n}");
    }
    assert_eq!(engine.status().counters.damaged, 0);
    // A file that says how long it was, cut while nobody looked, and after it was loaded.
    assert!(get(&engine, &key(MANY + 1), 3000).expect("load") == payload(u64::from(MANY) + 1, 3000));
    write_into(&mount, MANY + 1, &payload(u64::from(MANY) + 1, 1000));
    for n in [MANY, MANY + 1] {
        let loaded = get(&engine, &key(n), 1000);
        assert!(matches!(loaded, Err(Error::WrongSize { object_bytes: 3000, .. })), "{n}: {loaded:?}");
        let loaded = get(&engine, &key(n), 3000);
        assert!(matches!(loaded, Err(Error::Damaged { expected: 3000, found: 1000, .. })), "{n}: {loaded:?}");
        assert_eq!(find(&engine, &key(n)), None, "{n}");
    }
    let disk = mount.assert_books(&engine);
    engine.close();
    assert_heard(&heard, cell, &disk);
}

#[apply(each_cell!)]
fn where_anything_but_a_close_came_last_every_file_is_looked_at(cell: Cell) {
    let mount = mount(cell, "snapshot-looked");
    let marks = || {
        let entries = mount.dirs().iter().flat_map(|dir| fs::read_dir(dir.join(".saltern")).expect("readdir"));
        let paths = entries.map(|entry| entry.expect("readdir").path());
        let is_mark =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"closed-"));
        paths.filter(is_mark).collect::<Vec<_>>()
    };
    prepare(&mount);
    let engine = mount.open();
    let expected = if vouches(&engine, cell) { cell.volumes } else { 0 };
    engine.close();
    assert_eq!(marks().len(), expected);
    // As an engine that was killed leaves it; another program stores what it has just deleted, on the same inode where that is free; or it has
    // only been there.
    let killed = |_| marks().iter().for_each(|mark| fs::remove_file(mark).expect("unlink"));
    let anew = |n| {
        let path = mount.file(&key(n));
        fs::remove_file(&path).and_then(|()| fs::write(&path, payload(n.into(), 1000))).expect("unlink and write");
    };
    let visited = |_| {
        mount.dirs().iter().for_each(|dir| {
            let path = dir.join("a visitor");
            fs::write(&path, "").and_then(|()| fs::remove_file(&path)).expect("write and unlink");
        });
    };
    for (round, change) in [&killed as &dyn Fn(u32), &anew, &visited].into_iter().enumerate() {
        let numbers = || (0..10).map(|n| 10 * round as u32 + n);
        numbers().for_each(|n| write_into(&mount, n, &payload(n.into(), 1000)));
        numbers().for_each(change);
        let engine = mount.open();
        for n in numbers() {
            assert_eq!(find(&engine, &key(n)), Some(1000), "{n}");
        }
        assert!(marks().is_empty(), "while it runs nobody vouches");
        mount.assert_books(&engine);
        engine.close();
    }
}

#[apply(each_cell!)]
fn what_changed_while_it_was_away_is_as_the_directory_says(cell: Cell) {
    let mount = mount(cell, "snapshot-stale");
    let engine = mount.open();
    for n in 0..5 {
        put(&engine, &key(n), &payload(n.into(), OBJECT_BYTES)).expect("store");
    }
    engine.close();
    let path = |n| mount.file(&key(n));
    fs::remove_file(path(0)).expect("unlink");
    // Number 1 is written anew, with its old size: used then, whatever the snapshot says. Times are set: the kernel's are coarse.
    let now = SystemTime::now();
    for (n, bytes) in [(1, OBJECT_BYTES), (2, 10), (7, 20)] {
        mount.plant(&key(n), &vec![9; bytes]);
        let file = fs::File::options().write(true).open(path(n)).expect("open");
        file.set_modified(now + Duration::from_secs(n.into())).expect("utimens");
    }
    let engine = mount.open();
    mount.assert_books(&engine);
    assert_eq!((find(&engine, &key(0)), find(&engine, &key(2)), find(&engine, &key(7))), (None, Some(10), Some(20)));
    let heard = Recorder::new();
    engine.subscribe(heard.clone()).expect("subscribe");
    until("the replay is complete", || heard.events().len() == 5);
    let told: Vec<ObjectKey> = heard.events().into_iter().map(|event| event.key).collect();
    assert!(told == [3, 4, 1, 2, 7].map(key), "{told:?}");
}
