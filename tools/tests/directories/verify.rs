//! `saltern verify`.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::stat::Mode;
use rand::Rng;
use saltern::{Engine, Layout};
use saltern_tests::{Seed, file_name, find, get, key, payload, put, remove, varied};
use serde_json::json;

use crate::common::{saltern, temp_dir};
use crate::{content, entries, fill, laid_out};

#[test]
fn right_objects_are_right_in_every_layout_and_nothing_is_changed() {
    for layout in Layout::ALL {
        let dir = temp_dir();
        let keys = varied(layout);
        fill(dir.path(), layout, &keys);
        let before = entries(dir.path());
        let ran = saltern(dir.path(), &["verify", ".", "--json", "-"]);
        assert_eq!(ran.code, 0, "{layout}: {}{}", ran.stdout, ran.stderr);
        let report = ran.json();
        let bytes: usize = (0..keys.len()).map(|n| content(n).len()).sum();
        assert_eq!((&report["schema"], &report["layout"]), (&json!(1), &json!(layout)));
        assert_eq!((&report["objects"], &report["right"]), (&json!(keys.len()), &json!(keys.len())), "{report:#}");
        assert_eq!((&report["bytes"], &report["damaged"], &report["foreign"]), (&json!(bytes), &json!([]), &json!(0)));
        let text = saltern(dir.path(), &["verify", ".", "--threads", "1", "--depth", "1"]);
        assert!(text.code == 0 && text.stdout.contains("right: as their checksums say"), "{}", text.stdout);
        assert_eq!(entries(dir.path()), before, "{layout}");
    }
}

#[test]
fn damage_is_found_by_key_and_repair_moves_it_away() {
    let dir = temp_dir();
    let keys: Vec<_> = (0..16).map(key).collect();
    fill(dir.path(), Layout::Fs, &keys);
    let path = |n: usize| dir.path().join(file_name(Layout::Fs, &keys[n]));
    // The last byte of a piece, and the first of the one after it; a byte less; a byte more.
    for (n, at) in [(5, (1 << 20) - 1), (6, 1 << 20)] {
        let mut bytes = content(n);
        bytes[at] ^= 1;
        fs::write(path(n), bytes).unwrap();
    }
    fs::write(path(3), &content(3)[..4095]).unwrap();
    fs::write(path(4), [content(4), vec![0]].concat()).unwrap();
    let before = entries(dir.path());
    let ran = saltern(dir.path(), &["verify", ".", "--json", "-"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    let report = ran.json();
    let damaged = report["damaged"].as_array().unwrap();
    let troubles: Vec<_> = [3, 4, 5, 6]
        .iter()
        .map(|n| {
            let hash = keys[*n].chunk_hash().to_string();
            damaged.iter().find(|found| found["chunk_hash"] == hash).unwrap_or_else(|| panic!("{n}: {report:#}"))
        })
        .collect();
    assert_eq!((damaged.len(), &report["right"]), (4, &json!(12)));
    assert_eq!((&troubles[0]["trouble"], &troubles[0]["found_bytes"]), (&json!("size"), &json!(4095)));
    assert_eq!((&troubles[1]["trouble"], &troubles[1]["found_bytes"]), (&json!("size"), &json!(70_001)));
    assert_eq!((&troubles[2]["trouble"], &troubles[3]["trouble"]), (&json!("checksum"), &json!("checksum")));
    assert_eq!(entries(dir.path()), before, "without --repair nothing is changed");

    let engine = Engine::open(laid_out(dir.path(), Layout::Fs)).unwrap();
    let refused = saltern(dir.path(), &["verify", ".", "--repair"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains(&format!("pid {}", std::process::id())), "{}", refused.stderr);
    assert_eq!(saltern(dir.path(), &["verify", "."]).code, 3, "reading works beside an engine");
    engine.close();

    let repaired = saltern(dir.path(), &["verify", ".", "--repair", "--json", "-"]);
    assert_eq!(repaired.code, 3);
    for found in repaired.json()["damaged"].as_array().unwrap() {
        let (name, moved) = (found["name"].as_str().unwrap(), found["moved_to"].as_str().unwrap());
        assert!(!dir.path().join(name).exists() && moved.starts_with(".saltern/quarantine/"), "{found}");
        assert!(fs::metadata(dir.path().join(moved)).unwrap().len() > 4000, "moved, not emptied");
    }
    assert_eq!(saltern(dir.path(), &["verify", "."]).code, 0);
    let engine = Engine::open(laid_out(dir.path(), Layout::Fs)).unwrap();
    for (n, key) in keys.iter().enumerate() {
        let is_there = ![3, 4, 5, 6].contains(&n);
        assert_eq!(find(&engine, key), is_there.then_some(content(n).len() as u64), "{n}");
    }
}

#[test]
fn objects_without_a_checksum_are_told_and_can_be_given_one() {
    let dir = temp_dir();
    fill(dir.path(), Layout::Nixl, &[key(0), key(1)]);
    let foreign = dir.path().join(file_name(Layout::Nixl, &key(2)));
    fs::write(&foreign, payload(9, 3_000_000)).unwrap();
    fs::write(dir.path().join(file_name(Layout::Nixl, &key(3))), "").unwrap();
    let report = saltern(dir.path(), &["verify", ".", "--json", "-"]).json();
    assert_eq!((&report["right"], &report["unstamped"], &report["stamped"]), (&json!(2), &json!(2), &json!(0)));
    let ran = saltern(dir.path(), &["verify", ".", "--stamp", "--json", "-"]);
    assert_eq!((ran.code, &ran.json()["stamped"]), (0, &json!(2)));
    let report = saltern(dir.path(), &["verify", ".", "--json", "-"]).json();
    assert_eq!((&report["right"], &report["unstamped"]), (&json!(4), &json!(0)), "{report:#}");
    // From now on damage shows.
    let mut bytes = payload(9, 3_000_000);
    bytes[2_999_999] ^= 0x80;
    fs::write(&foreign, bytes).unwrap();
    assert_eq!(saltern(dir.path(), &["verify", "."]).code, 3);
}

#[test]
fn what_is_no_object_is_neither_opened_nor_found_fault_with() {
    let dir = temp_dir();
    let outside = temp_dir();
    fill(dir.path(), Layout::Fs, &[key(0)]);
    let path = |n| dir.path().join(file_name(Layout::Fs, &key(n)));
    // Opening a FIFO for reading would wait for ever.
    nix::unistd::mkfifo(&path(1), Mode::S_IRUSR).unwrap();
    fs::write(outside.path().join("secret"), "not for saltern").unwrap();
    symlink(outside.path().join("secret"), path(2)).unwrap();
    fs::create_dir(path(3)).unwrap();
    fs::write(dir.path().join(OsStr::from_bytes(b"\xff\xfe\n.data")), "x").unwrap();
    fs::write(dir.path().join("a\u{1b}[31m\nb"), "x").unwrap();
    let before = entries(outside.path());
    for args in [&["verify", "."][..], &["verify", ".", "--repair", "--stamp"]] {
        let ran = saltern(dir.path(), args);
        assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
        assert!(ran.stdout.contains("1 object read") && !ran.stdout.contains('\u{1b}'), "{}", ran.stdout);
    }
    assert_eq!(entries(outside.path()), before);
    assert!(path(1).exists() && path(3).exists());
    assert_eq!(saltern(dir.path(), &["verify", "missing"]).code, 1);
    assert_eq!(saltern(dir.path(), &["verify", ".", "--depth", "0"]).code, 2);
}

#[test]
fn an_engine_at_work_is_not_found_fault_with() {
    let seed = Seed::new("an_engine_at_work_is_not_found_fault_with");
    let dir = temp_dir();
    let engine = Engine::open(laid_out(dir.path(), Layout::Fs)).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Files of deleted objects are overwritten with others.
            let mut rng = seed.rng(0);
            while !is_over.load(Ordering::Relaxed) {
                let n: u32 = rng.random_range(0..40);
                if rng.random_range(0..2) == 0 {
                    drop(remove(&engine, &key(n)));
                } else {
                    put(&engine, &key(n), &payload(n.into(), 300_000)).unwrap();
                }
            }
        });
        let codes: Vec<_> = (0..8).map(|_| saltern(dir.path(), &["verify", "."])).collect();
        is_over.store(true, Ordering::Relaxed);
        for ran in codes {
            assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
        }
    });
    assert!(engine.status().counters.recycled > 0 || !engine.status().spares.is_on);
    for n in 0..40 {
        if find(&engine, &key(n)).is_some() {
            assert!(get(&engine, &key(n), 300_000).unwrap() == payload(n.into(), 300_000));
        }
    }
}
