//! `saltern recover` on directories as LMCache leaves them.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::{saltern, temp_dir};
use serde_json::{Value, json};

const H1: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0";
const H2: &str = "a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebfc0";
const H3: &str = "00000000000000000000000000000000000000000000000000000000000000ff";

/// The names of four objects in each layout: no salt, tenant-a (twice), and a salt that looks like a hash.
fn fixtures() -> Vec<(&'static str, [String; 4])> {
    vec![
        (
            "fs",
            [
                format!("meta-llama-SEP-Llama-3.1-8B@0x02010201@0@{H1}.data"),
                format!("meta-llama-SEP-Llama-3.1-8B@0x02010201@0@{H2}@tenant-a.data"),
                format!("opt-125m@0x01000100@0@{H1}@tenant-a.data"),
                format!("opt-125m@0x01000100@0@{H3}@cafe.data"),
            ],
        ),
        (
            "fs3",
            [
                format!("meta-llama-SEP-Llama-3.1-8B@0x02010201@{H1}.data"),
                format!("meta-llama-SEP-Llama-3.1-8B@0x02010201@{H2}@tenant-a.data"),
                format!("opt-125m@0x01000100@{H1}@tenant-a.data"),
                format!("opt-125m@0x01000100@{H3}@cafe.data"),
            ],
        ),
        (
            "nixl",
            [
                format!("meta-llama--Llama-3.1-8B_02010201_0_{H1}.bin"),
                format!("meta-llama--Llama-3.1-8B_02010201_0_{H2}@tenant-a.bin"),
                format!("opt-125m_01000100_0_{H1}@tenant-a.bin"),
                format!("opt-125m_01000100_0_{H3}@cafe.bin"),
            ],
        ),
        (
            "nixl3",
            [
                format!("meta-llama--Llama-3.1-8B_02010201_{H1}.bin"),
                format!("meta-llama--Llama-3.1-8B_02010201_{H2}@tenant-a.bin"),
                format!("opt-125m_01000100_{H1}@tenant-a.bin"),
                format!("opt-125m_01000100_{H3}@cafe.bin"),
            ],
        ),
        (
            "nixl-sharded",
            [
                format!("0f/1e/meta-llama--Llama-3.1-8B_02010201_0_{H1}.bin"),
                format!("a1/a2/meta-llama--Llama-3.1-8B_02010201_0_{H2}@tenant-a.bin"),
                format!("0f/1e/opt-125m_01000100_0_{H1}@tenant-a.bin"),
                format!("00/00/opt-125m_01000100_0_{H3}@cafe.bin"),
            ],
        ),
    ]
}

const SIZES: [usize; 4] = [4096, 100, 0, 70_000];

fn fill(dir: &Path, names: &[String; 4]) {
    for (name, size) in names.iter().zip(SIZES) {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, vec![7; size]).unwrap();
    }
}

/// Every entry below a directory, with what a change would change.
fn snapshot(dir: &Path) -> BTreeMap<String, (u64, i64, i64, u32)> {
    let mut entries = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(next) = open.pop() {
        let meta = fs::metadata(&next).unwrap();
        let about = (meta.len(), meta.mtime_nsec(), meta.ctime_nsec(), meta.mode());
        entries.insert(next.display().to_string(), about);
        if meta.is_dir() {
            open.extend(fs::read_dir(&next).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    entries
}

fn key(model: &str, rank: u32, hash: &str, salt: &str, bytes: usize) -> Value {
    json!({"model_name": model, "kv_rank": rank, "object_group_id": 0, "chunk_hash": hash, "cache_salt": salt, "bytes": bytes})
}

/// The keys of a report without their times, in a fixed order.
fn keys(report: &Value) -> Vec<String> {
    let mut keys: Vec<_> = report["keys"].as_array().unwrap().to_vec();
    keys.iter_mut().for_each(|key| {
        assert!(key.as_object_mut().unwrap().remove("modified_unix_ns").unwrap().as_u64().unwrap() > 0);
    });
    let mut keys: Vec<_> = keys.iter().map(Value::to_string).collect();
    keys.sort();
    keys
}

#[test]
fn every_layout_gives_exactly_its_keys_and_bytes_and_is_left_alone() {
    let expected_keys = {
        let mut keys = [
            key("meta-llama/Llama-3.1-8B", 0x0201_0201, H1, "", 4096),
            key("meta-llama/Llama-3.1-8B", 0x0201_0201, H2, "tenant-a", 100),
            key("opt-125m", 0x0100_0100, H1, "tenant-a", 0),
            key("opt-125m", 0x0100_0100, H3, "cafe", 70_000),
        ]
        .map(|key| key.to_string());
        keys.sort();
        keys
    };
    for (layout, names) in fixtures() {
        let dir = temp_dir();
        fill(dir.path(), &names);
        fs::write(dir.path().join("README.txt"), "not an object").unwrap();
        fs::write(dir.path().join(names[0].rsplit('/').next().unwrap().to_owned() + ".tmp"), "half").unwrap();
        fs::create_dir_all(dir.path().join(".saltern/tmp")).unwrap();
        fs::write(dir.path().join(".saltern/tmp/1-2"), "unfinished").unwrap();
        let before = snapshot(dir.path());

        for choice in ["auto", layout] {
            let args = ["recover", ".", "--layout", choice, "--keys", "--json", "-"];
            let ran = saltern(dir.path(), &args);
            assert_eq!(ran.code, 0, "{layout}: {}", ran.stderr);
            let report = ran.json();
            assert_eq!((&report["schema"], &report["layout"]), (&json!(1), &json!(layout)), "{report:#}");
            assert_eq!((&report["objects"], &report["bytes"]), (&json!(4), &json!(74_196)), "{report:#}");
            let share = |objects: u64, bytes: u64| json!({"objects": objects, "bytes": bytes});
            assert_eq!(
                report["by_salt"],
                json!({"": share(1, 4096), "tenant-a": share(2, 100), "cafe": share(1, 70_000)})
            );
            assert_eq!(
                report["by_model"],
                json!({"meta-llama/Llama-3.1-8B": share(2, 4196), "opt-125m": share(2, 70_000)})
            );
            assert_eq!(report["by_rank"], json!({"0x02010201": share(2, 4196), "0x01000100": share(2, 70_000)}));
            assert_eq!((&report["unfinished"], &report["foreign"]), (&json!(1), &json!(2)), "{report:#}");
            let reasons = report["foreign_examples"].as_array().unwrap();
            assert!(reasons.iter().all(|file| !file["reason"].as_str().unwrap().is_empty()), "{report:#}");
            assert!(reasons.iter().any(|file| file["name"] == "README.txt"), "{report:#}");
            assert!(!report["layout_reason"].as_str().unwrap().is_empty());
            assert_eq!(keys(&report), expected_keys, "{layout} as {choice}");
        }

        let ran = saltern(dir.path(), &["recover", ".", "--threads", "1"]);
        assert_eq!(ran.code, 0);
        for part in
            ["4 objects", "72.5KiB", "1 unfinished store", "2 foreign entries", "tenant-a", "(none)", "README.txt: "]
        {
            assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
        }
        assert!(ran.stdout.contains(&format!("layout {layout} (")), "{}", ran.stdout);
        assert_eq!(snapshot(dir.path()), before, "{layout}: something was changed");
    }
}

#[test]
fn an_engines_directory_can_be_read_while_it_runs() {
    let dir = temp_dir();
    let engine = saltern::Engine::open(saltern::Config::new(dir.path())).unwrap();
    let key = saltern::ObjectKey::new("m/n", 1, 2, &[9; 32], "s").unwrap();
    engine.store(vec![(key, vec![1; 5000].into())]).wait();
    let before = snapshot(dir.path());
    let report = saltern(dir.path(), &["recover", ".", "--json", "-"]).json();
    assert_eq!(report["by_salt"], json!({"s": {"objects": 1, "bytes": 5000}}));
    assert_eq!((&report["foreign"], &report["unfinished"]), (&json!(0), &json!(0)));
    assert_eq!(snapshot(dir.path()), before);
    engine.close();
}

#[test]
fn empty_foreign_and_missing_directories() {
    let dir = temp_dir();
    let empty = saltern(dir.path(), &["recover", ".", "--json", "-"]);
    assert_eq!((empty.code, &empty.json()["objects"]), (0, &json!(0)));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

    fs::write(dir.path().join("a\u{1b}[31mb\nc"), "").unwrap();
    let foreign = saltern(dir.path(), &["recover", "."]);
    assert_eq!(foreign.code, 3, "{}", foreign.stderr);
    assert!(foreign.stdout.contains("a\\u{1b}[31mb\\nc") && !foreign.stdout.contains('\u{1b}'), "{}", foreign.stdout);

    for (missing, message) in [("no-such", "No such file"), ("a\u{1b}[31mb\nc", "Not a directory")] {
        let ran = saltern(dir.path(), &["recover", missing]);
        assert_eq!(ran.code, 1);
        assert!(ran.stderr.starts_with("error: ") && ran.stderr.contains(message), "{}", ran.stderr);
        assert!(ran.stderr.contains("\nhint: "), "{}", ran.stderr);
    }
    assert_eq!(saltern(dir.path(), &["recover"]).code, 2);
    assert_eq!(saltern(dir.path(), &["recover", ".", "--layout", "zip"]).code, 2);
    assert_eq!(saltern(dir.path(), &["recover", ".", "--threads", "0"]).code, 2);
}
