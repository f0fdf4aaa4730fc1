//! `saltern export` and `saltern import`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Output, Stdio};

use rand::Rng;
use saltern::layout::wire;
use saltern::{Engine, Layout, ObjectKey, checksum, kv_rank};
use saltern_tests::{Disk, Recorder, Seed, assert_books, file_name, find, get, key, payload, put, until, varied};
use serde_json::json;

use crate::common::{command, saltern, temp_dir};
use crate::{content, entries, fill, laid_out};

/// Keys that have a name in every layout, and two that share one in NIXL's.
fn keys() -> Vec<ObjectKey> {
    let named = |key: &ObjectKey| Layout::ALL.iter().all(|layout| layout.encode(key).is_ok());
    varied(Layout::Fs3).into_iter().filter(named).collect()
}

fn assert_all_there(dir: &Path, layout: Layout, keys: &[ObjectKey]) {
    let engine = Engine::open(laid_out(dir, layout)).unwrap();
    for (n, key) in keys.iter().enumerate() {
        assert!(get(&engine, key, content(n).len()).unwrap() == content(n), "{layout}: {key}");
    }
    assert_books(&engine, dir, layout);
}

#[test]
fn a_cache_goes_from_any_layout_to_any_other() {
    let keys = keys();
    for (at, from) in Layout::ALL.into_iter().enumerate() {
        let to = Layout::ALL[(at + 2) % Layout::ALL.len()];
        let dir = temp_dir();
        fill(&dir.path().join("a"), from, &keys);
        let engine = Engine::open(laid_out(&dir.path().join("a"), from)).unwrap();
        for (n, key) in keys.iter().enumerate().rev() {
            get(&engine, key, content(n).len()).unwrap();
        }
        engine.close();
        let before = entries(&dir.path().join("a"));
        let ran = saltern(dir.path(), &["export", "a", "x.tar", "--json", "-"]);
        assert_eq!(ran.code, 0, "{from}: {}{}", ran.stdout, ran.stderr);
        assert_eq!(ran.json()["objects"], json!(keys.len()));
        assert_eq!(entries(&dir.path().join("a")), before, "exporting changes nothing");
        assert!(!dir.path().join("x.tar.part").exists());

        let import = ["import", "b", "x.tar", "--layout", to.name()];
        let dry = saltern(dir.path(), &import);
        assert!(dry.code == 0 && dry.stdout.contains("The archive is whole."), "{}{}", dry.stdout, dry.stderr);
        assert!(!dir.path().join("b").exists(), "a dry run");
        let ran = saltern(dir.path(), &[&import[..], &["--apply", "--json", "-"]].concat());
        assert_eq!(ran.code, 0, "{from} to {to}: {}{}", ran.stdout, ran.stderr);
        let report = ran.json();
        assert_eq!((&report["stored"], &report["present"]), (&json!(keys.len()), &json!(0)), "{report:#}");
        let verified = saltern(dir.path(), &["verify", "b", "--layout", to.name(), "--json", "-"]);
        assert_eq!(verified.json()["right"], json!(keys.len()), "with checksums");
        assert_all_there(&dir.path().join("b"), to, &keys);

        let again = saltern(dir.path(), &[&import[..], &["--apply", "--json", "-"]].concat()).json();
        assert_eq!((&again["stored"], &again["present"]), (&json!(0), &json!(keys.len())), "{again:#}");
        let engine = Engine::open(laid_out(&dir.path().join("b"), to)).unwrap();
        let heard = Recorder::new();
        engine.subscribe(heard.clone()).unwrap();
        until("the replay is complete", || heard.events().len() == keys.len());
    }
}

#[test]
fn the_order_of_use_goes_along() {
    let dir = temp_dir();
    let keys: Vec<ObjectKey> = (0..10).map(key).collect();
    fill(&dir.path().join("a"), Layout::Fs, &keys);
    let engine = Engine::open(laid_out(&dir.path().join("a"), Layout::Fs)).unwrap();
    for (n, key) in keys.iter().enumerate().rev() {
        get(&engine, key, content(n).len()).unwrap();
    }
    engine.close();
    assert_eq!(saltern(dir.path(), &["export", "a", "x.tar"]).code, 0);
    let archived: Vec<String> = read_entries(&fs::read(dir.path().join("x.tar")).unwrap())
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| !name.starts_with(".saltern"))
        .collect();
    let expected: Vec<String> = keys.iter().rev().map(|key| file_name(Layout::Fs, key)).collect();
    assert_eq!(archived, expected, "the oldest use first");
}

fn read_entries(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().unwrap();
    let read = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (entry.path().unwrap().display().to_string(), bytes)
    };
    entries.map(read).collect()
}

#[test]
fn any_tar_unpacks_it_into_a_directory_of_its_layout() {
    let dir = temp_dir();
    let keys = varied(Layout::Fs);
    fill(&dir.path().join("a"), Layout::Fs, &keys);
    assert_eq!(saltern(dir.path(), &["export", "a", "x.tar"]).code, 0);
    tar::Archive::new(fs::File::open(dir.path().join("x.tar")).unwrap()).unpack(dir.path().join("b")).unwrap();
    let (a, b) = ["a", "b"].map(|name| Disk::read(&dir.path().join(name), Layout::Fs)).into();
    assert!(a.files == b.files && a.files.len() == keys.len());
    for name in a.files.keys() {
        assert!(
            fs::read(dir.path().join("a").join(name)).unwrap() == fs::read(dir.path().join("b").join(name)).unwrap()
        );
    }
}

#[test]
fn salts_and_models_are_picked_and_pipes_work() {
    let dir = temp_dir();
    let keys = varied(Layout::Fs);
    fill(&dir.path().join("a"), Layout::Fs, &keys);
    let wanted = |key: &ObjectKey| key.cache_salt() == "tenant-a" || key.cache_salt().is_empty();
    let export = command(dir.path(), &["export", "a", "-", "--salt", "tenant-a", "--salt", ""]).output().unwrap();
    assert!(export.status.success() && String::from_utf8_lossy(&export.stderr).contains("objects"), "{export:?}");
    let pipe = |args: &[&str], archive: &[u8]| -> Output {
        let mut child = command(dir.path(), args);
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        std::thread::scope(|scope| {
            // The other end may stop reading.
            scope.spawn(move || drop(stdin.write_all(archive)));
            child.wait_with_output().unwrap()
        })
    };
    let ran = pipe(&["import", "b", "-", "--apply"], &export.stdout);
    assert!(ran.status.success(), "{ran:?}");
    let only = keys.iter().filter(|key| wanted(key)).count();
    assert_eq!(Disk::read(&dir.path().join("b"), Layout::Fs).files.len(), only);
    let ran = pipe(&["import", "c", "-", "--apply", "--model", "long"], &export.stdout);
    assert!(ran.status.success(), "{ran:?}");
    let engine = Engine::open(laid_out(&dir.path().join("c"), Layout::Fs)).unwrap();
    for key in &keys {
        let is_there = wanted(key) && key.model_name() == "long";
        assert_eq!(find(&engine, key).is_some(), is_there, "{key}");
    }
}

#[test]
fn what_is_damaged_stays_out_and_is_named() {
    let dir = temp_dir();
    let keys: Vec<ObjectKey> = (0..8).map(key).collect();
    let a = dir.path().join("a");
    fill(&a, Layout::Fs, &keys);
    let mut bytes = content(4);
    bytes[69_999] ^= 1;
    fs::write(a.join(file_name(Layout::Fs, &keys[4])), bytes).unwrap();
    let ran = saltern(dir.path(), &["export", "a", "x.tar", "--json", "-"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    let report = ran.json();
    assert_eq!((&report["objects"], report["damaged"].as_array().unwrap().len()), (&json!(7), 1));
    assert_eq!(report["damaged"][0]["chunk_hash"], json!(keys[4].chunk_hash().to_string()));

    let exists = saltern(dir.path(), &["export", "a", "x.tar"]);
    assert!(exists.code == 1 && exists.stderr.contains("--force"), "{}", exists.stderr);
    assert_eq!(saltern(dir.path(), &["export", "a", "x.tar", "--force"]).code, 3);

    // On its way, one bit of a payload flips.
    let mut archive = fs::read(dir.path().join("x.tar")).unwrap();
    let part = &content(5)[..64];
    let at = archive.windows(64).position(|window| window == part).unwrap();
    archive[at + 100_000] ^= 4;
    fs::write(dir.path().join("y.tar"), archive).unwrap();
    let ran = saltern(dir.path(), &["import", "b", "y.tar", "--apply", "--json", "-"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    let report = ran.json();
    assert_eq!((&report["stored"], report["problems"].as_array().unwrap().len()), (&json!(6), 1), "{report:#}");
    assert_eq!(saltern(dir.path(), &["import", "b", "x.tar", "--apply"]).code, 0, "the whole one goes on");
    let engine = Engine::open(laid_out(&dir.path().join("b"), Layout::Fs)).unwrap();
    for (n, key) in keys.iter().enumerate().filter(|(n, _)| *n != 4) {
        assert!(get(&engine, key, content(n).len()).unwrap() == content(n), "{n}");
    }
}

#[test]
fn an_archive_that_was_cut_short_leaves_nothing_wrong_and_goes_on() {
    let seed = Seed::new("an_archive_that_was_cut_short_leaves_nothing_wrong_and_goes_on");
    let mut rng = seed.rng(0);
    let dir = temp_dir();
    let keys: Vec<ObjectKey> = (0..12).map(key).collect();
    fill(&dir.path().join("a"), Layout::Fs, &keys);
    assert_eq!(saltern(dir.path(), &["export", "a", "x.tar"]).code, 0);
    let whole = fs::read(dir.path().join("x.tar")).unwrap();
    for _ in 0..6 {
        // The last 1024 bytes are padding.
        let len = rng.random_range(0..whole.len() - 2048);
        fs::write(dir.path().join("cut.tar"), &whole[..len]).unwrap();
        let ran = saltern(dir.path(), &["import", "b", "cut.tar", "--apply"]);
        assert!(ran.code == 1 && ran.stderr.starts_with("error: cut.tar: "), "{len}: {}", ran.stderr);
        if dir.path().join("b").exists() {
            let verified = saltern(dir.path(), &["verify", "b", "--json", "-"]);
            assert_eq!((verified.code, &verified.json()["unstamped"]), (0, &json!(0)), "{len}");
        }
    }
    assert_eq!(saltern(dir.path(), &["import", "b", "x.tar", "--apply"]).code, 0);
    assert_all_there(&dir.path().join("b"), Layout::Fs, &keys);
}

/// Name in the archive, key and checksum records, payload.
type Forged<'a> = (&'a str, Option<(&'a str, u64)>, &'a [u8]);

/// An archive with these entries.
fn forge(entries: &[Forged<'_>], version: u32) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut append = |name: &str, labels: Option<(&str, u64)>, bytes: &[u8]| {
        if let Some((key, sum)) = labels {
            let (key, sum) = (json!(key).to_string(), format!("{sum:016x}"));
            archive
                .append_pax_extensions([("SALTERN.key", key.as_bytes()), ("SALTERN.crc64", sum.as_bytes())])
                .unwrap();
        }
        let mut header = tar::Header::new_ustar();
        // `set_path` would refuse what a forger writes.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(bytes.len() as u64);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        archive.append(&header, bytes).unwrap();
    };
    append(".saltern-archive", None, json!({"version": version, "layout": "fs"}).to_string().as_bytes());
    entries.iter().for_each(|(name, labels, bytes)| append(name, *labels, bytes));
    let bytes: usize = entries.iter().map(|(_, _, bytes)| bytes.len()).sum();
    let tail = json!({"objects": entries.len(), "bytes": bytes}).to_string();
    append(".saltern-archive-end", None, tail.as_bytes());
    archive.into_inner().unwrap()
}

#[test]
fn hostile_archives_reach_nothing_outside_and_foreign_ones_are_told() {
    let dir = temp_dir();
    let bytes = payload(1, 100);
    let good = ObjectKey::new("m", kv_rank(1, 0, 1, 0), 0, &[7; 32], "s").unwrap();
    let wire_key = wire::encode(&good);
    let archive = forge(
        &[
            ("../../evil", Some((&wire_key, checksum(&bytes))), &bytes),
            ("/etc/evil", Some(("../../m@00000001@0@ab", checksum(&bytes))), &bytes),
            ("no-labels", None, &bytes),
            ("bad-key", Some(("what", checksum(&bytes))), &bytes),
            ("bad-sum", Some(("m@00000001@0@cd", 1)), &bytes),
        ],
        1,
    );
    fs::create_dir(dir.path().join("in")).unwrap();
    fs::write(dir.path().join("x.tar"), archive).unwrap();
    let ran = saltern(dir.path(), &["import", "in/b", "x.tar", "--apply", "--json", "-"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    let b = Disk::read(&dir.path().join("in/b"), Layout::Fs);
    let traversal = "..-SEP-..-SEP-m@0x00000001@0@ab.data".to_owned();
    assert_eq!(b.files, BTreeMap::from([(file_name(Layout::Fs, &good), 100), (traversal, 100)]));
    assert_eq!(ran.json()["problems"].as_array().unwrap().len(), 3);
    let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["in", "x.tar"]);

    fs::write(dir.path().join("newer.tar"), forge(&[], 2)).unwrap();
    let newer = saltern(dir.path(), &["import", "in/b", "newer.tar"]);
    assert!(newer.code == 1 && newer.stderr.contains("version 2"), "{}", newer.stderr);
    for foreign in [&b"not a tar"[..], b""] {
        fs::write(dir.path().join("foreign.tar"), foreign).unwrap();
        let ran = saltern(dir.path(), &["import", "in/b", "foreign.tar"]);
        assert!(ran.code == 1 && ran.stderr.contains("not an archive of saltern"), "{}", ran.stderr);
    }
    assert_eq!(saltern(dir.path(), &["import", "in/b", "missing.tar"]).code, 1);
    assert_eq!(saltern(dir.path(), &["export", "in/b", "-", "--json", "-"]).code, 2);
}

#[test]
fn an_owner_is_named_and_what_does_not_fit_is_told() {
    let dir = temp_dir();
    let keys: Vec<ObjectKey> = (0..8).map(key).collect();
    fill(&dir.path().join("a"), Layout::Fs, &keys);
    assert_eq!(saltern(dir.path(), &["export", "a", "x.tar"]).code, 0);
    let engine = Engine::open(laid_out(&dir.path().join("b"), Layout::Fs)).unwrap();
    put(&engine, &key(100), &[1; 10]).unwrap();
    let refused = saltern(dir.path(), &["import", "b", "x.tar", "--apply"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains(&format!("pid {}", std::process::id())), "{}", refused.stderr);
    let beside = saltern(dir.path(), &["export", "b", "y.tar"]);
    assert_eq!(beside.code, 0, "exporting works beside an engine: {}", beside.stderr);
    engine.close();
    let full = saltern(dir.path(), &["import", "b", "x.tar", "--apply", "--capacity", "100KiB"]);
    assert!(full.code == 1 && full.stderr.contains("full: ") && full.stderr.contains("hint: "), "{}", full.stderr);
    assert_eq!(saltern(dir.path(), &["import", "b", "x.tar", "--apply"]).code, 0);
    assert_all_there(&dir.path().join("b"), Layout::Fs, &[]);
    assert_eq!(Disk::read(&dir.path().join("b"), Layout::Fs).files.len(), 9);
}
