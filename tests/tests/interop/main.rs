//! LMCache's own `nixl_store_dynamic` adapter and ours on one directory: what one has stored, the other loads.
//!
//! Needs LMCache 0.5.6 and nixl 1.5.1: `SALTERN_LMCACHE_PYTHON=/path/to/python`. Without it the test says so and passes;
//! the names alone are compared with LMCache's, from a fixture, by the library's own tests.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use saltern::{Adapter, Discovery, Layout, NixlDynamicAdapter, ObjectKey};
use saltern_tests::{Disk, Scratch, assert_books, file_name, get, payload, put, varied};

const PYTHON: &str = "SALTERN_LMCACHE_PYTHON";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/nixl_dynamic.py");

/// LMCache stores whole pages of its arena.
const PAGE: usize = 4096;

/// An object, as the script's list has it.
struct Row {
    key: ObjectKey,
    bytes: usize,
    seed: u64,
}

fn rows(layout: Layout, seed: u64) -> Vec<Row> {
    varied(layout)
        .into_iter()
        .zip(1..)
        .map(|(key, n)| Row { key, bytes: (n as usize % 5 + 1) * 3 * PAGE, seed: seed + n })
        .collect()
}

fn list(rows: &[Row]) -> String {
    let rows: Vec<String> = rows
        .iter()
        .map(|Row { key, bytes, seed }| {
            format!(
                r#"{{"model": {:?}, "rank": {}, "group": {}, "hash": "{}", "salt": {:?}, "bytes": {bytes}, "seed": {seed}}}"#,
                key.model_name(),
                key.kv_rank(),
                key.object_group_id(),
                key.chunk_hash(),
                key.cache_salt()
            )
        })
        .collect();
    format!("[{}]", rows.join(",\n"))
}

fn lmcache(python: &OsString, mode: &str, dir: &Path, layout: Layout, rows: &[Row]) {
    let listing = dir.with_extension("json");
    fs::write(&listing, list(rows)).expect("write");
    let names = if layout.is_sharded() { "sharded" } else { "flat" };
    let output = Command::new(python)
        .args([SCRIPT.as_ref(), mode.as_ref(), dir.as_os_str(), names.as_ref(), listing.as_os_str()])
        .env("LMCACHE_TRACK_USAGE", "false")
        .env("LMCACHE_DISABLE_BANNER", "1")
        .output()
        .expect("python runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{mode} {layout}: {}{}", text(&output.stdout), text(&output.stderr));
}

fn open(dir: &Path, layout: Layout, discovery: Discovery) -> Box<dyn Adapter> {
    let mut config = NixlDynamicAdapter::config(dir, 1 << 30);
    (config.layout, config.discovery, config.pin_shards) = (layout, discovery, false);
    Box::new(NixlDynamicAdapter::open(config).expect("open"))
}

#[test]
fn what_one_has_stored_the_other_loads() {
    let Some(python) = std::env::var_os(PYTHON) else {
        eprintln!("skipped: {PYTHON} names no python with LMCache and nixl");
        return;
    };
    for layout in [Layout::Nixl, Layout::NixlSharded] {
        for discovery in [Discovery::ScanAndAsk, Discovery::Ask] {
            let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "interop");
            let (ours, theirs) = (rows(layout, 1000), rows(layout, 2000));
            let (ours, theirs) = (&ours[..6], &theirs[6..]);
            let dir = scratch.join("volume");
            let adapter = open(&dir, layout, discovery);
            for Row { key, bytes, seed } in ours {
                assert!(
                    matches!(put(adapter.engine(), key, &payload(*seed, *bytes)), Ok(added) if added == *bytes as u64)
                );
            }
            // While ours is open: it finds what the other writes.
            lmcache(&python, "store", &dir, layout, theirs);
            lmcache(&python, "load", &dir, layout, ours);
            for Row { key, bytes, seed } in theirs {
                let found = saltern_tests::find(adapter.engine(), key);
                assert_eq!(found, Some(*bytes as u64), "{layout}: {key}");
                assert!(get(adapter.engine(), key, *bytes).expect("load") == payload(*seed, *bytes), "{layout}: {key}");
            }
            let disk = assert_books(adapter.engine(), &dir, layout);
            adapter.close();
            assert!(disk.others.is_empty(), "{:?}", disk.others);
            // And after a restart, whatever wrote it.
            let adapter = open(&dir, layout, discovery);
            assert_eq!(adapter.engine().wait_recovered().bytes, disk.bytes);
            for Row { key, bytes, seed } in ours.iter().chain(theirs) {
                assert!(get(adapter.engine(), key, *bytes).expect("load") == payload(*seed, *bytes), "{layout}: {key}");
                assert!(fs::read(dir.join(file_name(layout, key))).expect("read") == payload(*seed, *bytes));
            }
            adapter.close();
            assert_eq!(Disk::read(&dir, layout), disk);
        }
    }
}
