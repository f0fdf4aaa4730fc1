//! The directory: whose it is, what lies in it, and what other programs do to it.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use macro_rules_attribute::apply;
use nix::sys::stat::{Mode, umask};
use saltern::layout::NameError;
use saltern::{DirectIo, Error, Layout, ObjectKey};
use saltern_tests::{
    Cell, Host, Lender, Memory, Mount, Recorder, TMP, done, file_name, find, get, key, payload, put, remove, salted,
    until,
};

use crate::{mount, scratch};

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("stat").mode() & 0o7777
}

#[apply(each_cell!)]
fn a_second_engine_is_refused_and_told_who_is_first(cell: Cell) {
    let mount = mount(cell, "owner");
    let first = mount.open();
    put(&first, &key(1), b"x").expect("store");
    for _ in 0..2 {
        match mount.try_open(mount.config()).map(drop) {
            Err(Error::VolumeOwned { dir, owner }) => {
                let whole = |dir: &Path| dir.canonicalize().expect("it exists");
                assert!(mount.dirs().iter().any(|one| whole(one) == whole(&dir)), "{}", dir.display());
                assert!(owner.contains(&std::process::id().to_string()), "{owner}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(get(&first, &key(1), 1).is_ok(), "the first one is not disturbed");
    first.close();
    let second = mount.open();
    assert_eq!(find(&second, &key(1)), Some(1));
}

#[apply(each_cell!)]
fn a_second_engine_is_refused_under_another_name_of_the_directory(cell: Cell) {
    let mount = mount(cell, "alias");
    fs::create_dir(&mount.dirs()[0]).expect("mkdir");
    symlink(&mount.dirs()[0], mount.join("alias")).expect("symlink");
    let _first = mount.open();
    let mut config = mount.config();
    config.dir = mount.join("alias");
    let second = mount.try_open(config).map(drop);
    assert!(second.is_err(), "{second:?}");
}

#[apply(each_cell!)]
fn files_are_private_whatever_the_umask(cell: Cell) {
    // For the whole process; other tests do not mind.
    umask(Mode::empty());
    let mount = Mount::below(cell, scratch("modes"), "created/too");
    let engine = mount.open();
    put(&engine, &key(1), &payload(1, 10_000)).expect("store");
    let object = mount.file(&key(1));
    assert_eq!(mode(&object), 0o600, "{}", object.display());
    let mut above = object.parent().expect("below the volume");
    while above.starts_with(mount.join("created")) && above != mount.join("created") {
        assert_eq!(mode(above), 0o700, "{}", above.display());
        above = above.parent().expect("below the root");
    }
    for dir in mount.each(".saltern") {
        let mut dirs = vec![dir];
        while let Some(path) = dirs.pop() {
            let metadata = fs::symlink_metadata(&path).expect("stat");
            let expected = if metadata.is_dir() { 0o700 } else { 0o600 };
            assert_eq!(mode(&path), expected, "{}", path.display());
            if metadata.is_dir() {
                dirs.extend(fs::read_dir(&path).expect("readdir").map(|entry| entry.expect("readdir").path()));
            }
        }
    }
    engine.close();
}

#[apply(each_cell!)]
fn modes_of_what_exists_are_left_alone(cell: Cell) {
    let mount = mount(cell, "existing");
    mount.plant(&key(1), b"old");
    fs::set_permissions(mount.file(&key(1)), Permissions::from_mode(0o644)).expect("chmod");
    for dir in mount.dirs() {
        fs::create_dir_all(dir).expect("mkdir");
        fs::set_permissions(dir, Permissions::from_mode(0o755)).expect("chmod");
    }
    let engine = mount.open();
    assert!(get(&engine, &key(1), 3).expect("load") == b"old");
    engine.close();
    assert!(mount.dirs().iter().all(|dir| mode(dir) == 0o755));
    assert_eq!(mode(&mount.file(&key(1))), 0o644);
}

#[apply(each_cell!)]
fn a_link_in_place_of_an_object_is_never_followed(cell: Cell) {
    for planted_before in [true, false] {
        let mount = mount(cell, "symlink");
        let target = mount.join("secret");
        fs::write(&target, b"secret").expect("write");
        fs::set_permissions(&target, Permissions::from_mode(0o640)).expect("chmod");
        let plant = || symlink(&target, mount.ground(&key(1))).expect("symlink");
        if planted_before {
            plant();
        }
        let engine = mount.open();
        if !planted_before {
            plant();
        }
        assert_eq!(find(&engine, &key(1)), None);
        let load = get(&engine, &key(1), 6).map(|bytes| bytes.len());
        assert!(load.is_err(), "{load:?}");
        let stored = put(&engine, &key(1), b"public");
        match stored {
            // In its place, then, and not through it.
            Ok(6) => assert!(get(&engine, &key(1), 6).expect("load") == b"public"),
            Ok(_) => panic!("{stored:?}, but nothing is there"),
            Err(_) => assert_eq!(find(&engine, &key(1)), None),
        }
        let deleted = remove(&engine, &key(1));
        assert_eq!(deleted.is_ok(), stored.is_ok(), "{deleted:?} after {stored:?}");
        engine.close();
        assert_eq!(fs::read(&target).expect("read"), b"secret");
        assert_eq!((mode(&target), fs::metadata(&target).expect("stat").nlink()), (0o640, 1));
    }
}

#[apply(each_cell!)]
fn directories_of_the_volume_are_not_followed_either(cell: Cell) {
    for planted in [".saltern", TMP] {
        let mount = mount(cell, "symlink-dir");
        let elsewhere = mount.join("elsewhere");
        fs::create_dir_all(elsewhere.join("tmp")).expect("mkdir");
        fs::write(elsewhere.join("precious"), b"x").expect("write");
        fs::write(elsewhere.join("tmp/precious"), b"x").expect("write");
        for link in mount.each(planted) {
            fs::create_dir_all(link.parent().expect("below the volume")).expect("mkdir");
            symlink(&elsewhere, link).expect("symlink");
        }
        if let Ok(engine) = mount.try_open(mount.config()) {
            let _ = put(&engine, &key(1), b"x");
            engine.close();
        }
        let mut names: Vec<_> =
            fs::read_dir(&elsewhere).expect("readdir").map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["precious", "tmp"], "{planted}");
        assert!(elsewhere.join("tmp/precious").exists(), "{planted}");
    }
}

#[apply(each_cell_with_shard_directories!)]
fn a_shard_directory_is_not_followed_either(cell: Cell) {
    let mount = mount(cell, "symlink-shard");
    let elsewhere = mount.join("elsewhere");
    fs::create_dir_all(&elsewhere).expect("mkdir");
    for dir in mount.dirs() {
        fs::create_dir(dir).expect("mkdir");
        symlink(&elsewhere, dir.join(&file_name(cell.layout, &key(1))[..2])).expect("symlink");
    }
    let engine = mount.open();
    let stored = put(&engine, &key(1), b"x");
    assert!(stored.is_err(), "{stored:?}");
    assert_eq!(engine.usage().total_bytes_used, 0);
    engine.close();
    assert_eq!(fs::read_dir(&elsewhere).expect("readdir").count(), 0);
}

#[apply(each_cell!)]
fn unfinished_stores_go_at_the_next_start(cell: Cell) {
    let mount = mount(cell, "unfinished");
    mount.open().close();
    for tmp in mount.each(TMP) {
        for name in ["1.tmp", "0-17", "x"] {
            fs::write(tmp.join(name), b"half of it").expect("write");
        }
    }
    let engine = mount.open();
    assert_eq!(engine.wait_recovered().unfinished, 3 * cell.volumes as u64);
    assert_eq!(mount.unfinished().len(), 0);
    assert_eq!(engine.usage().total_bytes_used, 0);
}

#[apply(each_cell!)]
fn foreign_files_are_counted_named_and_left_alone(cell: Cell) {
    let mount = mount(cell, "foreign");
    let mut files: Vec<&OsStr> =
        ["README.txt", "x.data", "m@0x1@0@ab.data", "line\nbreak", ".hidden"].map(OsStr::new).into();
    files.push(OsStr::from_bytes(b"\xff\xfe.data"));
    // As another layout writes it, so that is what it is here.
    let other = file_name(if cell.is_shared() { Layout::Fs } else { Layout::Nixl }, &key(1));
    files.push(OsStr::new(&other));
    let dir = &mount.dirs()[cell.volumes - 1];
    fs::create_dir(dir).expect("mkdir");
    for name in &files {
        fs::write(dir.join(name), b"not yours").expect("write");
    }
    fs::create_dir(dir.join("lost+found")).expect("mkdir");
    fs::write(dir.join("lost+found/inside"), b"not yours").expect("write");
    // A directory with the name of an object, wherever that would be.
    let taken = mount.each(&file_name(cell.layout, &key(2)));
    taken.iter().for_each(|path| fs::create_dir_all(path).expect("mkdir"));
    mount.plant(&key(3), b"an object");

    // Unchecked at close: the suites' own reading of names takes less for foreign than the layout does.
    let mut config = mount.config();
    config.steps = Default::default();
    let engine = mount.open_as(config);
    let report = engine.wait_recovered();
    assert_eq!((report.objects, report.foreign.count), (1, (files.len() + 1 + cell.volumes) as u64), "{report:?}");
    for name in ["README.txt", "x.data", "m@0x1@0@ab.data", "line\nbreak", ".hidden", &other, "lost+found"] {
        let reason = report.foreign.examples.iter().find(|(foreign, _)| foreign == name);
        assert!(
            reason.is_some_and(|(_, reason)| !reason.is_empty()),
            "{name:?} is not in {:?}",
            report.foreign.examples
        );
    }
    assert_eq!(find(&engine, &key(2)), None);
    assert!(get(&engine, &key(2), 4096).is_err());
    assert!(put(&engine, &key(2), b"x").is_err(), "its name is taken");
    assert!(remove(&engine, &key(2)).is_err());
    engine.close();
    for name in &files {
        assert_eq!(fs::read(dir.join(name)).expect("read"), b"not yours", "{name:?}");
    }
    assert!(dir.join("lost+found/inside").exists() && taken.iter().all(|path| path.is_dir()));
}

#[apply(each_cell!)]
fn a_name_that_is_too_long_is_refused_alone(cell: Cell) {
    let mount = mount(cell, "name-max");
    let engine = mount.open();
    let long = ObjectKey::new(&"m".repeat(300), 0, 0, &[1; 32], "").expect("a valid key");
    let report = done(engine.store(vec![
        (key(1), vec![1; 10].into()),
        (long.clone(), vec![2; 10].into()),
        (key(2), vec![3; 10].into()),
    ]));
    match &report.results[..] {
        [Ok(10), Err(Error::Name(NameError::TooLong { bytes, .. })), Ok(10)] => assert!(*bytes > 300),
        other => panic!("{other:?}"),
    }
    assert_eq!(report.buffers[1].as_ref().expect("comes back").as_slice(), [2; 10]);
    assert!(matches!(get(&engine, &long, 10), Err(Error::Name(_) | Error::NotFound)));
    assert_eq!(find(&engine, &long), None);
    let results = done(engine.delete(&[key(1), long, key(2)])).results;
    assert!(matches!(results[..], [Ok(10), Err(Error::Name(_) | Error::NotFound), Ok(10)]), "{results:?}");

    // The longest name that there is: 255 bytes.
    let path = file_name(cell.layout, &ObjectKey::new("m", 0, 0, &[1; 32], "").expect("a valid key"));
    let rest = path.rsplit('/').next().expect("a name").len() - 1;
    for (chars, fits) in [(255 - rest, true), (256 - rest, false)] {
        let key = ObjectKey::new(&"m".repeat(chars), 0, 0, &[1; 32], "").expect("a valid key");
        assert_eq!(put(&engine, &key, b"x").is_ok(), fits, "{} bytes", rest + chars);
    }
    mount.assert_books(&engine);
}

#[apply(each_cell!)]
fn keys_that_would_share_a_name_are_never_confused(cell: Cell) {
    let (layout, other) = (cell.layout, if cell.is_shared() { "a--b" } else { "a-SEP-b" });
    let mount = mount(cell, "collision");
    let engine = mount.open();
    let [slash, spelled] = ["a/b", other].map(|model| ObjectKey::new(model, 7, 0, &[1; 32], "").expect("a valid key"));
    let report = done(engine.store(vec![(slash.clone(), vec![1; 10].into()), (spelled.clone(), vec![2; 10].into())]));
    match &report.results[..] {
        [Ok(10), Err(error @ Error::Name(NameError::Collision { .. }))] => {
            let message = error.to_string();
            assert!(message.contains("a/b") && message.contains(other), "{message}");
        }
        other => panic!("{layout}: {other:?}"),
    }
    for _ in 0..2 {
        let found = get(&engine, &spelled, 10);
        assert!(matches!(found, Err(Error::Name(_) | Error::NotFound)), "{layout}: {found:?}");
        assert_eq!(find(&engine, &spelled), None, "{layout}");
    }
    assert!(remove(&engine, &spelled).is_err());
    engine.close();
    let engine = mount.open();
    assert_eq!((find(&engine, &slash), find(&engine, &spelled)), (Some(10), None), "{layout}");
    assert!(get(&engine, &slash, 10).expect("load") == [1; 10]);
}

/// Descriptors that an engine keeps open must not change what it says of files that others have changed.
const OPEN_FILES: [Option<usize>; 2] = [Some(0), None];

fn open_keeping(mount: &Mount, open_files: Option<usize>) -> Host {
    let mut config = mount.config();
    config.open_files = open_files;
    mount.open_as(config)
}

#[apply(each_cell!)]
fn a_file_that_vanished_is_a_miss_and_not_counted(cell: Cell) {
    for open_files in OPEN_FILES {
        let mount = mount(cell, "vanished");
        let engine = open_keeping(&mount, open_files);
        for n in 0..3 {
            put(&engine, &salted(n, "s"), &payload(n.into(), 5000)).expect("store");
            fs::remove_file(mount.file(&salted(n, "s"))).expect("unlink");
        }
        put(&engine, &salted(3, "s"), b"stays").expect("store");
        let loaded = get(&engine, &salted(0, "s"), 5000).map(|bytes| bytes.len());
        assert!(matches!(loaded, Err(Error::NotFound | Error::Damaged { .. })), "{open_files:?}: {loaded:?}");
        assert_eq!(find(&engine, &salted(0, "s")), None);
        assert_eq!(engine.usage().total_bytes_used, 10_005);
        let removed = remove(&engine, &salted(1, "s"));
        assert!(matches!(removed, Ok(5000) | Err(Error::NotFound)), "{removed:?}");
        assert!(get(&engine, &salted(2, "s"), 5000).is_err());
        // What is gone can be stored again.
        assert!(matches!(put(&engine, &salted(0, "s"), &payload(9, 6000)), Ok(6000)));
        assert!(get(&engine, &salted(0, "s"), 6000).expect("load") == payload(9, 6000));
        let disk = mount.assert_books(&engine);
        assert_eq!(disk.bytes_by_salt["s"], 6005);
    }
}

#[apply(each_cell!)]
fn a_vanished_file_is_told_to_listeners(cell: Cell) {
    for open_files in OPEN_FILES {
        let mount = mount(cell, "vanished-told");
        let engine = open_keeping(&mount, open_files);
        let heard = Recorder::new();
        engine.subscribe(heard.clone()).expect("subscribe");
        put(&engine, &key(1), &[1; 77]).expect("store");
        fs::remove_file(mount.file(&key(1))).expect("unlink");
        assert!(get(&engine, &key(1), 77).is_err(), "{open_files:?}");
        engine.close();
        assert_eq!((heard.bytes(), heard.objects().len()), (0, 0));
    }
}

#[apply(each_cell!)]
fn a_file_that_was_cut_or_grew_never_gives_wrong_bytes(cell: Cell) {
    let sizes = cell.sized(&[0, 1, 4096, 9999, 10_001, 50_000][..], &[0, 9999, 50_000]);
    let modes =
        OPEN_FILES.iter().flat_map(|open_files| [DirectIo::Auto, DirectIo::Off].map(|direct| (*open_files, direct)));
    for ((open_files, direct), found) in modes.flat_map(|mode| sizes.iter().map(move |found| (mode, *found))) {
        let mount = mount(cell, "damaged");
        let mut config = mount.config();
        (config.direct_io, config.open_files) = (direct, open_files);
        let engine = mount.open_as(config);
        put(&engine, &key(1), &payload(1, 10_000)).expect("store");
        let object = File::options().write(true).open(mount.file(&key(1))).expect("open");
        object.set_len(found).expect("truncate");
        for _ in 0..2 {
            match get(&engine, &key(1), 10_000) {
                Ok(bytes) => assert!(found > 10_000 && bytes == payload(1, 10_000), "cut to {found}"),
                Err(Error::Damaged { expected, .. }) => assert_eq!(expected, 10_000),
                Err(Error::NotFound | Error::WrongSize { .. }) => {}
                Err(error) => panic!("{found} bytes: {error}"),
            }
        }
        let usage = engine.usage();
        assert_eq!(usage.bytes_by_salt.values().sum::<u64>(), usage.total_bytes_used);
        assert!([0, found, 10_000].contains(&usage.total_bytes_used), "{usage:?}");
        assert_eq!(engine.status().counters.ledger_underflows, 0);
    }
}

/// Plants something at a path.
type Plant = fn(&Path);

#[apply(each_cell!)]
fn something_else_in_the_place_of_an_object_is_a_miss(cell: Cell) {
    let plants: [(&str, Plant); 4] = [
        // To something of the very size.
        ("link", |path| {
            fs::write(path.with_file_name("target"), [9; 5000]).expect("write");
            symlink("target", path).expect("symlink");
        }),
        ("pipe", |path| nix::unistd::mkfifo(path, Mode::S_IRWXU).expect("mkfifo")),
        ("directory", |path| fs::create_dir(path).expect("mkdir")),
        ("socket", |path| drop(UnixListener::bind(path).expect("bind"))),
    ];
    let modes = [(DirectIo::Auto, Some(0)), (DirectIo::Off, Some(0)), (DirectIo::Auto, None)];
    for ((direct, open_files), (what, plant)) in modes.into_iter().flat_map(|mode| plants.map(|plant| (mode, plant))) {
        let mount = mount(cell, "replaced");
        let mut config = mount.config();
        (config.direct_io, config.open_files) = (direct, open_files);
        // A short name, for the socket's sake.
        let short = ObjectKey::new("m", 0, 0, &[1], "").expect("a valid key");
        let engine = mount.open_as(config);
        put(&engine, &short, &[1; 5000]).expect("store");
        let path = mount.file(&short);
        fs::remove_file(&path).expect("unlink");
        plant(&path);
        let loaded = get(&engine, &short, 5000).map(|bytes| bytes.len());
        let mode = format!("{what}, {direct:?}, {open_files:?}");
        assert!(matches!(loaded, Err(Error::NotFound | Error::Damaged { .. })), "{mode}: {loaded:?}");
        assert_eq!(find(&engine, &short), None, "{mode}");
        assert_eq!(engine.usage().total_bytes_used, 0, "{mode}");
        assert!(fs::symlink_metadata(&path).is_ok_and(|metadata| !metadata.is_file()), "{mode}: it is not ours");
    }
}

#[apply(each_cell!)]
fn a_delete_takes_nothing_away_but_objects(cell: Cell) {
    for open_files in OPEN_FILES {
        let mount = mount(cell, "replaced-delete");
        let engine = open_keeping(&mount, open_files);
        put(&engine, &key(1), &[1; 5000]).expect("store");
        let path = mount.file(&key(1));
        fs::remove_file(&path).expect("unlink");
        fs::create_dir(&path).expect("mkdir");
        fs::write(path.join("precious"), b"x").expect("write");
        let deleted = remove(&engine, &key(1));
        assert!(path.join("precious").exists(), "{open_files:?}: {deleted:?}");
        engine.close();
        let engine = mount.open();
        mount.assert_books(&engine);
    }
}

#[apply(each_cell!)]
fn padded_files_load_when_that_is_wanted(cell: Cell) {
    let mount = mount(cell, "padded");
    let mut file_bytes = payload(1, 10_000);
    file_bytes.resize(12_288, 0xdd);
    mount.plant(&key(1), &file_bytes);

    let strict = mount.open();
    for len in [10_000, 12_287, 12_289] {
        assert!(matches!(get(&strict, &key(1), len), Err(Error::WrongSize { object_bytes: 12_288, .. })), "{len}");
    }
    strict.close();

    for direct in [DirectIo::Auto, DirectIo::Off] {
        let mut config = mount.config();
        config.padding_bytes = 4096;
        config.direct_io = direct;
        let engine = mount.open_as(config);
        let mut lender = Lender::new(1 << 20);
        lender.register(&engine);
        for memory in [
            Memory::Heap,
            Memory::Pool,
            Memory::Foreign(0),
            Memory::Foreign(5),
            Memory::Registered(0),
            Memory::Registered(512),
        ] {
            for len in [10_000, 8193, 12_288] {
                let (buffer, loan) = lender.lend(&engine, memory, &vec![0; len]);
                let mut report = done(engine.load(vec![(key(1), buffer)]));
                assert!(
                    matches!(report.results[0], Ok(bytes) if bytes == len as u64),
                    "{memory:?}: {:?}",
                    report.results
                );
                assert!(
                    loan.back(report.buffers.remove(0).expect("comes back")) == file_bytes[..len],
                    "{memory:?}: {len}"
                );
            }
        }
        for len in [8192, 1, 12_289] {
            assert!(matches!(get(&engine, &key(1), len), Err(Error::WrongSize { .. })), "{len}");
        }
        assert_eq!(engine.usage().total_bytes_used, 12_288, "what it takes on disk");
        mount.assert_books(&engine);
        engine.close();
    }
}

#[apply(each_cell!)]
fn an_object_that_is_too_large_is_refused(cell: Cell) {
    let mount = mount(cell, "too-large");
    let mut config = mount.config();
    config.max_object_bytes = 10_000;
    let engine = mount.open_as(config);
    assert!(matches!(put(&engine, &key(1), &[0; 10_001]), Err(Error::TooLarge { bytes: 10_001, limit: 10_000 })));
    assert!(matches!(put(&engine, &key(1), &[0; 10_000]), Ok(10_000)));
    mount.assert_books(&engine);
}

#[apply(each_cell!)]
fn a_volume_that_was_moved_away_is_unhealthy(cell: Cell) {
    let mount = mount(cell, "moved");
    let engine = mount.open();
    put(&engine, &key(1), b"x").expect("store");
    assert!(engine.status().is_healthy, "{:?}", engine.status().problems);
    fs::rename(&mount.dirs()[0], mount.join("moved")).expect("rename");
    until("the engine notices", || !engine.status().is_healthy);
    assert!(!engine.status().problems.is_empty());
}

#[apply(each_cell!)]
fn a_directory_that_cannot_be_one_is_an_error(cell: Cell) {
    let mount = mount(cell, "not-a-directory");
    fs::write(mount.join("file"), b"x").expect("write");
    for path in ["file", "file/below"] {
        let mut config = mount.config();
        config.dir = mount.join(path);
        let opened = mount.try_open(config).map(drop);
        assert!(matches!(opened, Err(Error::Io { .. } | Error::Config { .. })), "{opened:?}");
    }
    // A directory that comes after it was made already.
    let mount = crate::mount(cell, "not-a-configuration");
    let mut config = mount.config();
    config.shards = 0;
    assert!(matches!(mount.try_open(config).map(drop), Err(Error::Config { option: "shards", .. })));
    assert!(
        mount.dirs().iter().all(|dir| !dir.exists()),
        "nothing is made before the configuration is known to be good"
    );
}
