//! `saltern migrate`.

use std::fs::{self, File};
use std::time::Duration;

use rand::Rng;
use saltern::{Engine, Layout, ObjectKey, kv_rank};
use saltern_tests::{Disk, Recorder, Seed, assert_books, file_name, get, key, salted, until, varied};
use serde_json::json;

use crate::common::{command, saltern, temp_dir};
use crate::{content, entries, fill, laid_out};

const ROUND: [Layout; 6] = [Layout::Fs, Layout::NixlSharded, Layout::Nixl3, Layout::Fs3, Layout::Nixl, Layout::Fs];

/// Keys that have a name in every layout.
fn portable() -> Vec<ObjectKey> {
    varied(Layout::Fs3).into_iter().filter(|key| Layout::ALL.iter().all(|layout| layout.encode(key).is_ok())).collect()
}

#[test]
fn objects_go_through_all_layouts_with_bytes_checksums_and_order() {
    let dir = temp_dir();
    let keys = portable();
    assert!(keys.len() > 8);
    fill(dir.path(), Layout::Fs, &keys);
    // Uses in another order than the files' times.
    let engine = Engine::open(laid_out(dir.path(), Layout::Fs)).unwrap();
    for (n, key) in keys.iter().enumerate().rev() {
        get(&engine, key, content(n).len()).unwrap();
    }
    engine.close();
    for pair in ROUND.windows(2) {
        let (from, to) = (pair[0].name(), pair[1].name());
        let before = entries(dir.path());
        let dry = saltern(dir.path(), &["migrate", ".", "--from", from, "--to", to]);
        assert_eq!(dry.code, 0, "{from} to {to}: {}{}", dry.stdout, dry.stderr);
        assert!(dry.stdout.contains("would be renamed") && dry.stdout.contains("--apply acts"), "{}", dry.stdout);
        assert_eq!(entries(dir.path()), before, "a dry run");
        let ran = saltern(dir.path(), &["migrate", ".", "--from", from, "--to", to, "--apply", "--json", "-"]);
        assert_eq!(ran.code, 0, "{from} to {to}: {}{}", ran.stdout, ran.stderr);
        let report = ran.json();
        assert_eq!((&report["renamed"], &report["refused"]), (&json!(keys.len()), &json!([])), "{report:#}");
        let disk = Disk::read(dir.path(), pair[1]);
        assert_eq!((disk.files.len(), disk.others.len()), (keys.len(), 0), "shard directories go: {:?}", disk.others);
        let verified = saltern(dir.path(), &["verify", ".", "--layout", to, "--json", "-"]);
        assert_eq!(verified.json()["right"], json!(keys.len()), "{from} to {to}");
    }
    let engine = Engine::open(laid_out(dir.path(), Layout::Fs)).unwrap();
    assert_eq!(engine.status().notes, [""; 0], "the snapshot went along");
    let heard = Recorder::new();
    engine.subscribe(heard.clone()).unwrap();
    until("the replay is complete", || heard.events().len() == keys.len());
    let told: Vec<ObjectKey> = heard.events().into_iter().map(|event| event.key).collect();
    assert!(told.iter().eq(keys.iter().rev()), "the order of use survives");
    for (n, key) in keys.iter().enumerate() {
        assert!(get(&engine, key, content(n).len()).unwrap() == content(n), "{key}");
    }
}

/// Key `n`, of one of three salts.
fn numbered(n: u32) -> ObjectKey {
    salted(n, ["", "s", "cafe"][n as usize % 3])
}

#[test]
fn killed_at_any_moment_it_goes_on_where_it_stopped() {
    const OBJECTS: u32 = 3000;
    let seed = Seed::new("killed_at_any_moment_it_goes_on_where_it_stopped");
    let mut rng = seed.rng(0);
    let dir = temp_dir();
    for n in 0..OBJECTS {
        let path = dir.path().join(file_name(Layout::Fs3, &numbered(n)));
        File::create(path).unwrap().set_len(u64::from(n) + 1).unwrap();
    }
    let mut killed = 0;
    for pair in [[Layout::Fs3, Layout::Fs], [Layout::Fs, Layout::NixlSharded], [Layout::NixlSharded, Layout::Fs3]] {
        let args = ["migrate", ".", "--from", pair[0].name(), "--to", pair[1].name(), "--apply"];
        for _ in 0..4 {
            let mut child = command(dir.path(), &args).stdout(std::process::Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(rng.random_range(0..60)));
            killed += u32::from(child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
            for n in 0..OBJECTS {
                let names = pair.map(|layout| dir.path().join(file_name(layout, &numbered(n))).exists());
                assert!(names[0] != names[1], "{n} has one name: {names:?}");
            }
        }
        let ran = saltern(dir.path(), &args);
        assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
        let disk = Disk::read(dir.path(), pair[1]);
        for n in 0..OBJECTS {
            let name = file_name(pair[1], &numbered(n));
            assert_eq!(disk.files.get(&name), Some(&(u64::from(n) + 1)), "{name}");
        }
        assert_eq!((disk.files.len(), disk.others.len()), (OBJECTS as usize, 0));
    }
    assert!(killed > 0, "no run was interrupted");
    let engine = Engine::open(laid_out(dir.path(), Layout::Fs3)).unwrap();
    assert_books(&engine, dir.path(), Layout::Fs3);
}

#[test]
fn what_cannot_be_renamed_stays_and_is_named_with_both_names() {
    let dir = temp_dir();
    let make = |model: &str, group, hash: &[u8], salt: &str| {
        ObjectKey::new(model, kv_rank(1, 0, 1, 0), group, hash, salt).unwrap()
    };
    let (fine, grouped, short, taken) =
        (key(1), make("m", 7, &[1; 32], ""), make("m", 0, &[0xab], &"cd".repeat(32)), key(2));
    fill(dir.path(), Layout::Fs, &[fine.clone(), grouped.clone(), short.clone(), taken.clone()]);
    let in_the_way = dir.path().join(file_name(Layout::Fs3, &taken));
    fs::write(&in_the_way, "another's").unwrap();
    let args = ["migrate", ".", "--from", "fs", "--to", "fs3"];
    for apply in [false, true] {
        let args: Vec<&str> = args.iter().copied().chain(apply.then_some("--apply")).collect();
        let ran = saltern(dir.path(), &args);
        assert_eq!(ran.code, 3, "{}{}", ran.stdout, ran.stderr);
        for (key, reason) in [(&grouped, "object group"), (&short, "reads as"), (&taken, "is taken")] {
            assert!(ran.stdout.contains(&file_name(Layout::Fs, key)), "{}", ran.stdout);
            assert!(ran.stdout.replace("\n    ", " ").contains(reason), "{reason}: {}", ran.stdout);
        }
        let text: String = ran.stdout.split_whitespace().collect();
        for key in [&short, &taken] {
            assert!(text.contains(&file_name(Layout::Fs3, key)), "the other name of {key}: {}", ran.stdout);
        }
    }
    assert!(dir.path().join(file_name(Layout::Fs3, &fine)).exists());
    for key in [&grouped, &short, &taken] {
        assert!(dir.path().join(file_name(Layout::Fs, key)).exists(), "{key}");
    }
    assert_eq!(fs::read(in_the_way).unwrap(), b"another's");

    // Two models that NIXL's layouts would write alike.
    let dir = temp_dir();
    let twins = [make("a/b", 0, &[1; 32], ""), make("a--b", 0, &[1; 32], "")];
    fill(dir.path(), Layout::Fs, &twins);
    let ran = saltern(dir.path(), &["migrate", ".", "--from", "fs", "--to", "nixl", "--apply"]);
    assert!(ran.code == 3 && ran.stdout.contains("a--b@"), "{}", ran.stdout);
    assert!(dir.path().join(file_name(Layout::Nixl, &twins[0])).exists());
    assert!(dir.path().join(file_name(Layout::Fs, &twins[1])).exists());
}

#[test]
fn an_owner_is_named_and_wrong_usage_is_told() {
    let dir = temp_dir();
    let engine = Engine::open(laid_out(dir.path(), Layout::Fs)).unwrap();
    let refused = saltern(dir.path(), &["migrate", ".", "--from", "fs", "--to", "nixl", "--apply"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains(&format!("pid {}", std::process::id())), "{}", refused.stderr);
    assert_eq!(saltern(dir.path(), &["migrate", ".", "--from", "fs", "--to", "nixl"]).code, 0);
    engine.close();
    for args in [&["migrate", "."][..], &["migrate", ".", "--from", "fs", "--to", "fs"]] {
        assert_eq!(saltern(dir.path(), args).code, 2, "{args:?}");
    }
    assert_eq!(saltern(dir.path(), &["migrate", "missing", "--from", "fs", "--to", "nixl", "--apply"]).code, 1);
    assert!(!dir.path().join("missing").exists());
}
