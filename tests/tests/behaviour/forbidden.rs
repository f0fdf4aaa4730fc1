//! Where io_uring is forbidden, opening says so and what to do; it does not hang. Plain tests: nothing is mounted.

use std::collections::BTreeMap;
use std::process::Command;

use saltern::{Engine, Error};
use saltern_tests::{Scratch, config};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter_all_threads};

use crate::scratch;

/// Where the child opens an engine.
const DIR: &str = "SALTERN_FORBIDDEN_DIR";

/// The filter cannot be taken off again, so the engine is opened in a process of its own.
#[test]
fn a_sandbox_without_io_uring_is_named() {
    let scratch: Scratch = scratch("forbidden");
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
#[ignore = "runs in a process of its own, by a_sandbox_without_io_uring_is_named"]
fn child() {
    let dir = std::env::var_os(DIR).expect("started by the test that needs it");
    let filter = SeccompFilter::new(
        BTreeMap::from([(nix::libc::SYS_io_uring_setup, vec![])]),
        SeccompAction::Allow,
        SeccompAction::Errno(nix::libc::EPERM as u32),
        std::env::consts::ARCH.try_into().expect("a known architecture"),
    )
    .expect("a valid filter");
    let program: BpfProgram = filter.try_into().expect("a valid filter");
    apply_filter_all_threads(&program).expect("seccomp");
    match Engine::open(config(dir)).map(|_| ()) {
        Err(error @ Error::RingUnavailable { .. }) => {
            let message = error.to_string();
            for word in ["seccomp", "io_uring_disabled"] {
                assert!(message.contains(word), "{word:?} is not in {message:?}");
            }
        }
        other => panic!("{other:?}"),
    }
}
