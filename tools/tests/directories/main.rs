//! The commands that work on directories, through the binary.
//!
//! `SALTERN_SEED=n` repeats the random choices of a failed run.

mod archive;
mod clean;
#[path = "../common/mod.rs"]
mod common;
mod manual;
mod migrate;
mod top;
mod verify;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use saltern::{Config, Engine, Layout, ObjectKey};
use saltern_tests::{config, payload, put};

fn laid_out(dir: &Path, layout: Layout) -> Config {
    let mut config = config(dir);
    config.layout = layout;
    config
}

/// The bytes of object `n`, of a size of its own.
fn content(n: usize) -> Vec<u8> {
    const SIZES: [usize; 8] = [0, 1, 4095, 4096, 70_000, 1 << 20, (1 << 20) + 1, 2_500_000];
    payload(n as u64, SIZES[n % SIZES.len()])
}

/// Stores these keys, each with its content, and closes the engine.
fn fill(dir: &Path, layout: Layout, keys: &[ObjectKey]) {
    let engine = Engine::open(laid_out(dir, layout)).unwrap();
    for (n, key) in keys.iter().enumerate() {
        put(&engine, key, &content(n)).unwrap();
    }
    engine.close();
}

/// All entries below a directory but the lock's contents, with what a change would change.
fn entries(dir: &Path) -> BTreeMap<String, (u64, i64, i64, u64)> {
    let mut entries = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(next) = open.pop() {
        let meta = fs::symlink_metadata(&next).unwrap();
        entries.insert(next.display().to_string(), (meta.len(), meta.mtime(), meta.mtime_nsec(), meta.ino()));
        if meta.is_dir() {
            open.extend(fs::read_dir(&next).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    entries
}
