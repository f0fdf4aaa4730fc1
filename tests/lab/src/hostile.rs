//! A directory that somebody has prepared: links, pipes, devices, names of every kind, in place of objects and of the engine's
//! own files. They are skipped or refused with reasons; nothing outside the directory is read, written or removed, and
//! permissions never widen.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use nix::sys::stat::{Mode, SFlag, mknod};
use nix::unistd::mkfifo;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use saltern::{Engine, Error, Integrity, Layout};
use saltern_power::Lab;
use saltern_tests::{config, done, get, put, remove, until};

use crate::content::{bytes, key, name, size};
use crate::context::Context;
use crate::kills::said;
use crate::table::Row;

/// Objects that the hostile things stand in place of start here; below are good ones.
const GOOD: u32 = 20;

/// All cases.
pub fn run(cx: &Context) -> Row {
    let mut row = Row::new(
        "hostile directories: links, pipes, devices, names, other users, files that change while they are read",
    );
    let lab = match cx.lab(&[]) {
        Ok(lab) => lab,
        Err(error) => return row.stopped(&error),
    };
    let mut attempt = |what: String, faults: u64, work: &mut dyn FnMut()| {
        row.cases += 1;
        row.faults += faults;
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            row.bad(format!("{what}: {}", said(&*panic)));
        }
    };
    for layout in [Layout::Fs, Layout::NixlSharded] {
        attempt(format!("in place of objects, {layout}"), 20, &mut || in_place_of_objects(&lab, layout));
    }
    for (number, (what, opening, own)) in OWN.iter().enumerate() {
        attempt((*what).into(), 1, &mut || in_place_of_own_files(&lab, number, *opening, own));
    }
    for round in 0..cx.times(4, 40) {
        let seed = cx.seed.wrapping_add(round);
        attempt(format!("files that change, seed {seed}"), 400, &mut || changing(&lab, round, seed));
    }
    row.done()
}

/// What there is of a file or directory, and what it may.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    /// Of files.
    contents: Option<(u64, Vec<u8>)>,
    /// When it was last read; only of files with one name, all others are looked at by right.
    read_s: Option<i64>,
}

/// What a tree of files looks like. Does not leave a trace.
fn tree(at: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![at.to_path_buf()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).expect("readdir") {
            let path = entry.expect("readdir").path();
            let metadata = fs::symlink_metadata(&path).expect("stat");
            let contents = metadata.is_file().then(|| {
                let mut start = Vec::new();
                let file = File::options().read(true).custom_flags(nix::libc::O_NOATIME).open(&path).expect("open");
                file.take(1 << 20).read_to_end(&mut start).expect("read");
                (metadata.len(), start)
            });
            let read_s = (metadata.is_file() && metadata.nlink() == 1).then(|| metadata.atime());
            if metadata.is_dir() {
                waiting.push(path.clone());
            }
            found.insert(path, Seen { mode: metadata.mode(), contents, read_s });
        }
    }
    found
}

/// Files of somebody else, that nobody may touch. Read times are so old that a read would change them.
fn make_outside(at: &Path) {
    fs::create_dir(at).expect("mkdir");
    fs::create_dir(at.join("dir")).expect("mkdir");
    for n in 0..3 {
        fs::write(at.join(format!("secret-{n}")), vec![n; 5000]).expect("write");
        fs::write(at.join(format!("dir/secret-{n}")), vec![n; 5000]).expect("write");
    }
    mkfifo(&at.join("pipe"), Mode::S_IRWXU).expect("mkfifo");
}

/// Makes the times of access old: the next read of the file changes them.
fn age(at: &Path) {
    let old = SystemTime::now() - Duration::from_secs(7 * 24 * 3600);
    for path in tree(at).keys().filter(|path| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file())) {
        File::options()
            .write(true)
            .open(path)
            .and_then(|file| file.set_times(fs::FileTimes::new().set_accessed(old)))
            .expect("utimens");
    }
}

fn in_place_of_objects(lab: &Lab, layout: Layout) {
    let (dir, outside) = (lab.path(&format!("hostile-{layout}")), lab.path(&format!("outside-{layout}")));
    make_outside(&outside);
    let mut config = config(&dir);
    (config.layout, config.integrity) = (layout, Integrity::Verify);
    let engine = Engine::open(config.clone()).expect("open");
    for n in 0..GOOD {
        put(&engine, &key(n), &bytes(n)).expect("store");
    }
    engine.close();
    let place = |n: u32| {
        let path = dir.join(name(layout, n));
        fs::create_dir_all(path.parent().expect("it has one")).expect("mkdir");
        path
    };
    symlink(outside.join("secret-0"), place(100)).expect("symlink");
    symlink(outside.join("nothing"), place(101)).expect("symlink");
    symlink(&outside, place(102)).expect("symlink");
    symlink("/dev/zero", place(103)).expect("symlink");
    mkfifo(&place(104), Mode::S_IRWXU).expect("mkfifo");
    mknod(&place(105), SFlag::S_IFCHR, Mode::S_IRWXU, nix::sys::stat::makedev(1, 5)).expect("mknod");
    mknod(&place(106), SFlag::S_IFBLK, Mode::S_IRWXU, nix::sys::stat::makedev(7, 0)).expect("mknod");
    fs::create_dir(place(107)).expect("mkdir");
    drop(std::os::unix::net::UnixListener::bind(dir.join("s")).expect("a socket"));
    fs::rename(dir.join("s"), place(108)).expect("rename");
    let strangers = 100..109;
    // A hard link is a file like any other, but it is somebody's: never overwritten.
    fs::hard_link(outside.join("secret-1"), place(110)).expect("link");
    File::create(place(111)).and_then(|file| file.set_len(1 << 40)).expect("a huge sparse file");
    fs::write(place(112), vec![1; 5000]).expect("write");
    fs::set_permissions(place(112), fs::Permissions::from_mode(0o777)).expect("chmod");
    fs::write(place(113), vec![2; 5000]).expect("write");
    chown(place(113), Some(12_345), Some(12_345)).expect("chown");
    for odd in odd_names() {
        fs::write(dir.join(std::ffi::OsStr::from_bytes(&odd)), b"odd").expect("write");
    }
    age(&outside);
    let (outside_before, modes_before) = (tree(&outside), tree(&dir));

    let engine = Engine::open(config.clone()).expect("open");
    let foreign = engine.wait_recovered().foreign;
    assert_foreign(layout, &foreign);
    for n in strangers.clone() {
        assert_eq!(saltern_tests::find(&engine, &key(n)), None, "{n}");
        assert!(matches!(get(&engine, &key(n), size(n)), Err(Error::NotFound)), "load {n}");
        assert!(matches!(remove(&engine, &key(n)), Err(Error::NotFound)), "delete {n}");
        // A store replaces what has the name, or fails; it goes through nothing.
        let _ = put(&engine, &key(n), &bytes(n));
    }
    assert_eq!(saltern_tests::find(&engine, &key(111)), Some(1 << 40));
    assert!(matches!(get(&engine, &key(111), 4096), Err(Error::WrongSize { .. })));
    for n in [110, 112, 113] {
        let loaded = get(&engine, &key(n), 5000).expect("a file without a checksum");
        assert_eq!(loaded.len(), 5000);
    }
    for n in [110, 111, 112, 113] {
        remove(&engine, &key(n)).expect("delete");
    }
    // Stores of these lengths would take the files just deleted, were they not somebody's.
    for n in 200..240 {
        engine_store(&engine, n);
    }
    for n in 0..GOOD {
        assert!(get(&engine, &key(n), size(n)).expect("a good one") == bytes(n), "{n}");
    }
    engine.close();
    drop(Engine::open(config).expect("open again"));

    assert_same(&outside_before, &tree(&outside));
    for (path, Seen { mode, .. }) in tree(&dir) {
        let metadata = fs::symlink_metadata(&path).expect("stat");
        let allowed = match modes_before.get(&path) {
            Some(before) if before.mode & 0o170_000 == mode & 0o170_000 => before.mode,
            _ if metadata.is_dir() => 0o700,
            _ => 0o600,
        };
        assert_eq!(mode & 0o7777 & !allowed, 0, "{}: {mode:o}, at most {allowed:o}", path.display());
    }
}

fn engine_store(engine: &Engine, n: u32) {
    put(engine, &key(n), &saltern_tests::payload(n.into(), 5000)).expect("store");
}

fn assert_same(before: &BTreeMap<PathBuf, Seen>, after: &BTreeMap<PathBuf, Seen>) {
    for (path, seen) in before {
        let now = after.get(path).unwrap_or_else(|| panic!("{} was removed", path.display()));
        let is_read = seen.read_s.is_some() && now.read_s.is_some() && seen.read_s != now.read_s;
        assert!(!is_read, "{} was read", path.display());
        assert_eq!((seen.mode, &seen.contents), (now.mode, &now.contents), "{} was changed", path.display());
    }
    assert_eq!(before.len(), after.len(), "something was added outside");
}

/// Names in the hostile directory that no layout gives.
fn odd_names() -> Vec<Vec<u8>> {
    let mut odd: Vec<Vec<u8>> =
        [&b"line\nbreak@x.data"[..], NOT_TEXT, b" ", b"..data", b".data", b"@@@@.data"].map(<[u8]>::to_vec).into();
    odd.push("n".repeat(255).into());
    odd.push(format!("{}.data", "@".repeat(250)).into());
    odd
}

const NOT_TEXT: &[u8] = b"\xff\xfe\xfd.data";

/// Exactly what is no object is foreign, each with its own reason.
fn assert_foreign(layout: Layout, foreign: &saltern::scan::Foreign) {
    let strangers = (100..109).map(|n| {
        let reason = match n {
            100..=103 => "a symbolic link",
            107 => "a directory",
            _ => "not a regular file",
        };
        (name(layout, n), reason)
    });
    let odd = odd_names().into_iter().map(|odd| {
        let reason = if odd == NOT_TEXT { "not UTF-8" } else { "the name" };
        (String::from_utf8_lossy(&odd).into_owned(), reason)
    });
    let mut expected: BTreeMap<String, &str> = strangers.chain(odd).collect();
    assert_eq!(foreign.count, expected.len() as u64, "{foreign:?}");
    for (path, said) in &foreign.examples {
        let reason = expected.remove(path).unwrap_or_else(|| panic!("{path} is foreign: {said}"));
        assert!(said.contains(reason), "{path}: {said}, not {reason}");
    }
    assert!(expected.is_empty(), "not told to be foreign: {expected:?}");
}

/// Something in place of one of the engine's own files or directories.
type Own = fn(&Path, &Path);

/// What an engine does on such a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opening {
    /// It works there all the same.
    Works,
    /// It says what is in its way.
    Refused,
}
use Opening::{Refused, Works};

const OWN: [(&str, Opening, Own); 24] = [
    ("a link in place of .saltern", Refused, |dir, outside| symlink(outside, dir.join(".saltern")).expect("symlink")),
    ("a file in place of .saltern", Refused, |dir, _| fs::write(dir.join(".saltern"), b"x").expect("write")),
    ("a link in place of the lock", Refused, |dir, outside| link(dir, outside.join("secret-0"), "lock")),
    ("a pipe in place of the lock", Refused, |dir, _| {
        state(dir);
        mkfifo(&dir.join(".saltern/lock"), Mode::S_IRWXU).expect("mkfifo");
    }),
    ("a link in place of the unfinished", Refused, |dir, outside| link(dir, outside.join("dir"), "tmp")),
    ("a link in place of the spares", Refused, |dir, outside| link(dir, outside.join("dir"), "spares")),
    ("links among the spares and the unfinished", Works, |dir, outside| {
        for below in ["tmp", "spares"] {
            fs::create_dir_all(dir.join(".saltern").join(below)).expect("mkdir");
            symlink(outside.join("secret-0"), dir.join(".saltern").join(below).join("0-1")).expect("symlink");
            fs::hard_link(outside.join("secret-1"), dir.join(".saltern").join(below).join("0-2")).expect("link");
            mkfifo(&dir.join(".saltern").join(below).join("0-3"), Mode::S_IRWXU).expect("mkfifo");
            fs::create_dir(dir.join(".saltern").join(below).join("0-4")).expect("mkdir");
        }
    }),
    ("a link in place of the snapshot", Works, |dir, outside| link(dir, outside.join("secret-0"), "index")),
    ("a directory in place of the snapshot", Works, |dir, _| directory(dir, "index")),
    ("a link in place of the new snapshot", Works, |dir, outside| link(dir, outside.join("secret-0"), "index.new")),
    ("a directory in place of the new snapshot", Works, |dir, _| directory(dir, "index.new")),
    ("a link in place of the quotas", Refused, |dir, outside| link(dir, outside.join("secret-0"), "quotas")),
    ("a link in place of the new quotas", Works, |dir, outside| link(dir, outside.join("secret-0"), "quotas.new")),
    ("a link in place of the volume's number", Works, |dir, outside| link(dir, outside.join("secret-0"), "volume")),
    ("a link in place of its new number", Works, |dir, outside| link(dir, outside.join("secret-0"), "volume.new")),
    ("a link in place of the status socket", Works, |dir, outside| link(dir, outside.join("secret-0"), "status")),
    ("a link in place of the new socket", Works, |dir, outside| link(dir, outside.join("secret-0"), "status.new")),
    ("a link in place of the quarantine", Works, |dir, outside| link(dir, outside.join("dir"), "quarantine")),
    ("a directory with the beginning of a mark of a close", Works, |dir, _| directory(dir, "closed-1")),
    ("a directory in place of a mark of a close", Works, |dir, _| directory(dir, "closed-1-1")),
    ("a directory in place of a mark of a boot", Works, |dir, _| directory(dir, "running-1")),
    ("a link in place of a mark of a boot", Works, |dir, outside| link(dir, outside.join("secret-0"), "running-1")),
    ("a link in place of the mark of doubt", Works, |dir, outside| link(dir, outside.join("secret-0"), "unverified")),
    ("a directory in place of the mark of doubt", Works, |dir, _| directory(dir, "unverified")),
];

fn state(dir: &Path) {
    fs::create_dir_all(dir.join(".saltern")).expect("mkdir");
}

fn directory(dir: &Path, name: &str) {
    fs::create_dir_all(dir.join(".saltern").join(name)).expect("mkdir");
}

fn link(dir: &Path, to: PathBuf, name: &str) {
    state(dir);
    symlink(to, dir.join(".saltern").join(name)).expect("symlink");
}

fn in_place_of_own_files(lab: &Lab, number: usize, opening: Opening, make: &Own) {
    let (dir, outside) = (lab.path(&format!("own-{number}")), lab.path(&format!("own-outside-{number}")));
    make_outside(&outside);
    fs::create_dir(&dir).expect("mkdir");
    make(&dir, &outside);
    age(&outside);
    let before = tree(&outside);
    match Engine::open(config(&dir)) {
        Ok(engine) => {
            assert_eq!(opening, Works, "the engine opens");
            for n in 0..40 {
                put(&engine, &key(n), &bytes(n)).expect("store");
            }
            for n in 0..20 {
                remove(&engine, &key(n)).expect("delete");
            }
            for n in 40..60 {
                put(&engine, &key(n), &bytes(n)).expect("store");
            }
            for n in 20..60 {
                assert!(get(&engine, &key(n), size(n)).expect("load") == bytes(n), "{n}");
            }
            let _ = engine.set_quota("tenant-a", 1 << 30);
            engine.close();
        }
        Err(error) => {
            let names_it = error.to_string().contains(".saltern");
            assert!(opening == Refused && names_it && matches!(error, Error::Io { .. }), "it does not open: {error:?}");
        }
    }
    assert_same(&before, &tree(&outside));
}

/// Files that are cut, grown, replaced, filled with garbage and removed while they are loaded: with checksums a load is right or an
/// error.
fn changing(lab: &Lab, round: u64, seed: u64) {
    const OBJECTS: u32 = 40;
    let dir = lab.path(&format!("changing-{round}"));
    let mut config = config(&dir);
    config.integrity = Integrity::Verify;
    config.segment_bytes = 64 << 10;
    let engine = Engine::open(config).expect("open");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut rng = StdRng::seed_from_u64(seed);
            for _ in 0..400 {
                disturb(&dir.join(name(Layout::Fs, rng.random_range(0..OBJECTS))), &mut rng);
                std::thread::sleep(Duration::from_micros(rng.random_range(0..2000)));
            }
            over.store(true, Ordering::Release);
        });
        while !over.load(Ordering::Acquire) {
            let stores = done(engine.store((0..OBJECTS).map(|n| (key(n), bytes(n).into())).collect()));
            assert_eq!(stores.results.len(), OBJECTS as usize);
            let report = done(engine.load((0..OBJECTS).map(|n| (key(n), vec![0; size(n)].into())).collect()));
            for (n, (result, buffer)) in (0..OBJECTS).zip(report.results.iter().zip(&report.buffers)) {
                let is_right = || buffer.as_ref().is_some_and(|buffer| buffer.as_slice() == bytes(n));
                assert!(result.is_err() || is_right(), "WRONG BYTES under {n}");
            }
        }
    });
    until("nothing is in hand", || engine.status().queued_objects == 0);
}

fn disturb(path: &Path, rng: &mut StdRng) {
    // There may be a pipe by now: nobody waits for its other end.
    let open = || File::options().write(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
    // Whether it works is not the point.
    let _ = match rng.random_range(0..7) {
        0 => open().and_then(|file| file.set_len(rng.random_range(0..70_000))),
        1 => open().and_then(|file| file.write_all_at(b"more", file.metadata()?.len())),
        2 => fs::remove_file(path),
        3 => open().and_then(|file| {
            // A byte inside, not past the end.
            let len = file.metadata()?.len();
            if len == 0 { Ok(()) } else { file.write_all_at(&[rng.random()], rng.random_range(0..len)) }
        }),
        4 => fs::remove_file(path).and_then(|()| symlink("/etc/passwd", path)),
        5 => fs::remove_file(path).and_then(|()| mkfifo(path, Mode::S_IRWXU).map_err(Into::into)),
        _ => fs::remove_file(path).and_then(|()| fs::create_dir(path)),
    };
}
