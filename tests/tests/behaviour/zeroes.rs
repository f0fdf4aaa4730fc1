//! New files that get written blocks before they are written (FALLOC_FL_WRITE_ZEROES), and where the device cannot.
//!
//! No device of the machines that this was made on can. What a device answers is played by a seccomp filter on `fallocate`, by
//! the length that is asked for; a played success makes no blocks, which a store does not need either. Plain tests: about the device.

use std::collections::BTreeMap;
use std::process::Command;

use nix::libc::{ENOSPC, EOPNOTSUPP, SYS_fallocate};
use saltern::{Engine, Error, Layout};
use saltern_tests::{assert_books, config, get, key, payload, put};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter_all_threads,
};

use crate::scratch;

/// Where the child opens an engine.
const DIR: &str = "SALTERN_ZEROES_DIR";

/// What the engine's probe asks for.
const PROBE_BYTES: usize = 64 << 10;

const LENGTHS: [usize; 5] = [0, 1, PROBE_BYTES, 100_000, 400_003];

#[test]
fn where_the_device_cannot_nothing_changes() {
    let scratch = scratch("zeroes-not");
    let engine = {
        let mut config = config(scratch.path());
        config.write_zeroes = true;
        Engine::open(config).expect("open")
    };
    let status = engine.status();
    assert_eq!(
        status.write_zeroes, status.volumes[0].medium.write_zeroes,
        "on where it was asked for and the device can"
    );
    store_and_load(&engine);
    assert_books(&engine, scratch.path(), Layout::Fs);
    engine.close();
    let default = Engine::open(config(scratch.path())).expect("open");
    assert!(!default.status().write_zeroes, "nobody asked for it");
}

fn store_and_load(engine: &Engine) {
    for (n, len) in (0..).zip(LENGTHS) {
        let content = payload(n.into(), len);
        assert_eq!(put(engine, &key(n), &content).expect("store"), len as u64);
        assert!(get(engine, &key(n), len).expect("load") == content, "{len} bytes");
    }
}

/// The filter cannot be taken off again, so the engine is opened in a process of its own.
#[test]
fn where_the_device_can_new_files_get_blocks_first() {
    let scratch = scratch("zeroes");
    // The module's path without the crate: the suite is part of more than one.
    let child = module_path!().split_once("::").map_or_else(String::new, |(_, path)| format!("{path}::child"));
    let output = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", &child, "--ignored", "--nocapture"])
        .env(DIR, scratch.path())
        .output()
        .expect("the child runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "the child ran its test: {text}");
}

#[test]
#[ignore = "runs in a process of its own, by where_the_device_can_new_files_get_blocks_first"]
fn child() {
    const NO_ROOM: usize = 30_000;
    const REFUSED: usize = 20_000;
    let dir = std::env::var_os(DIR).expect("started by the test that needs it");
    for len in LENGTHS.into_iter().filter(|len| *len > 0) {
        answer_fallocate(len, 0);
    }
    answer_fallocate(NO_ROOM, ENOSPC);
    answer_fallocate(REFUSED, EOPNOTSUPP);
    let mut config = config(&dir);
    config.write_zeroes = true;
    let engine = Engine::open(config).expect("open");
    let status = engine.status();
    assert!(status.write_zeroes && status.volumes[0].medium.write_zeroes, "the probe takes the device's word");
    store_and_load(&engine);
    // That it was asked for: here it says that there is no room, which is no half-written object.
    let refused = put(&engine, &key(100), &payload(100, NO_ROOM));
    assert!(matches!(refused, Err(Error::Full { .. })), "{refused:?}");
    assert!(matches!(get(&engine, &key(100), NO_ROOM), Err(Error::NotFound)));
    // Anything else that goes wrong with it is made good by the write.
    let content = payload(101, REFUSED);
    assert_eq!(put(&engine, &key(101), &content).expect("store"), REFUSED as u64);
    assert!(get(&engine, &key(101), REFUSED).expect("load") == content);
    assert_books(&engine, dir.as_ref(), Layout::Fs);
    assert_eq!(saltern_tests::unfinished(dir.as_ref()), Vec::<std::path::PathBuf>::new());
}

/// From now on `fallocate` with this flag and length does nothing, and answers with this errno.
fn answer_fallocate(len: usize, errno: i32) {
    const WRITE_ZEROES: u64 = 0x80;
    let is = |argument, value| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, value).expect("a condition")
    };
    let conditions = vec![is(1, WRITE_ZEROES), is(3, len as u64)];
    let filter = SeccompFilter::new(
        BTreeMap::from([(SYS_fallocate, vec![SeccompRule::new(conditions).expect("a rule")])]),
        SeccompAction::Allow,
        SeccompAction::Errno(errno as u32),
        std::env::consts::ARCH.try_into().expect("a known architecture"),
    )
    .expect("a valid filter");
    let program: BpfProgram = filter.try_into().expect("a valid filter");
    apply_filter_all_threads(&program).expect("seccomp");
}
