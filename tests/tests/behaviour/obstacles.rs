//! What stands in the way of the engine's own files: found by the fault lab, each once. About one directory and its file system, so
//! that they run on one.

use std::fs::{self, File};

use saltern::{Error, Layout};
use saltern_tests::{LoopMount, Unmountable, assert_books, get, key, open, payload, put, remove, until};

use crate::scratch;

/// What has the name of an unfinished store and cannot be removed failed the store that came to that name.
#[test]
fn what_cannot_be_removed_from_among_the_unfinished_fails_no_store() {
    let scratch = scratch("stuck");
    for n in 0..20 {
        // A directory with something in it.
        fs::create_dir_all(scratch.join(&format!(".saltern/tmp/0-{n}/x"))).expect("mkdir");
    }
    let engine = open(scratch.path());
    for n in 0..40 {
        assert_eq!(put(&engine, &key(n), &payload(n.into(), 5000)).expect("store"), 5000);
    }
    for n in 0..40 {
        assert!(get(&engine, &key(n), 5000).expect("load") == payload(n.into(), 5000), "object {n}");
    }
    assert_books(&engine, scratch.path(), Layout::Fs);
}

/// On a disk without inodes the engine did not open.
#[test]
fn a_disk_without_inodes_refuses_opens_and_recovers() {
    const BYTES: usize = 20_000;
    let mount = match LoopMount::new(env!("CARGO_TARGET_TMPDIR"), "ext4", 64 << 20, &["-q", "-N", "64"]) {
        Ok(mount) => mount,
        Err(Unmountable(why)) => return eprintln!("skipped: no ext4 here: {why}"),
    };
    let dir = mount.path().join("volume");
    let engine = open(&dir);
    let mut stored = Vec::new();
    let refused = (0..100).find(|n| match put(&engine, &key(*n), &payload((*n).into(), BYTES)) {
        Ok(_) => {
            stored.push(*n);
            false
        }
        Err(error) => {
            assert!(matches!(error, Error::Full { .. }), "{error}");
            true
        }
    });
    let refused = refused.expect("64 inodes do not hold 100");
    engine.close();
    // What the close has left is taken as well.
    let mut others = 0;
    while File::create(mount.path().join(format!("other-{others}"))).is_ok() {
        others += 1;
    }
    let engine = open(&dir);
    for n in &stored {
        assert!(get(&engine, &key(*n), BYTES).expect("load") == payload((*n).into(), BYTES), "object {n}");
    }
    assert!(remove(&engine, &key(stored[0])).is_ok(), "deletes need no inode");
    until("there is an inode again", || put(&engine, &key(refused), &payload(refused.into(), BYTES)).is_ok());
    assert_books(&engine, &dir, Layout::Fs);
}
