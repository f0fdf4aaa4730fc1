//! `tools/gpu/run`, the one command on a machine with a GPU, with programs that play those of the bundle: what it needs of the machine, what
//! it says, and how it ends. That the bundle itself works is tried by hand (`gds/README.md`): it takes a build.

#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// All that `run` may use beside bash and the bundle's own programs.
const COREUTILS: [&str; 8] = ["cat", "date", "dirname", "ls", "mkdir", "nproc", "tee", "uname"];

/// Plays `saltern`: a GPU is there unless NO_GPU is set, and cuFile is direct.
const SALTERN: &str = r#"#!/bin/bash
echo "saltern $*" >>"$CALLS"
case "$*" in
    *"--sizes 4KiB --total 4KiB"*)
        [ -z "${NO_GPU:-}" ] || { echo "error: no library" >&2; exit 1; }
        [ -z "${BAD_TRIAL:-}" ] || { echo "wrong bytes" >&2; exit 3; }
        ;;
    *bench*)
        while [ $# -gt 0 ]; do [ "$1" = --json ] && echo '{"way": "direct"}' >"$2"; shift; done
        echo "the table"
        [ -z "${BAD_BENCH:-}" ] || exit 3
        ;;
    *) echo "the diagnosis" ;;
esac
"#;

/// Plays a test program, as libtest prints it.
const TESTS: &str = r#"#!/bin/bash
echo "${0##*/} $*" >>"$CALLS"
if [[ $0 = */gpu && -n ${NO_GPU:-} ]]; then
    printf 'test first_of_the_gpu ... skipped: no library\nok\ntest second_of_the_gpu ... \nskipped: no library\nok\n'
fi
if [[ $0 = */device && -n ${BAD_TEST:-} ]]; then echo "test it ... FAILED"; echo "test result: FAILED."; exit 101; fi
echo "test result: ok. 2 passed"
"#;

struct Bundle(TempDir);

impl Bundle {
    /// `None`, said, where there is no bash.
    fn new() -> Option<Self> {
        let find =
            |name: &str| ["/bin", "/usr/bin"].map(|dir| Path::new(dir).join(name)).into_iter().find(|at| at.exists());
        let Some(bash) = find("bash") else {
            eprintln!("skipped: no bash");
            return None;
        };
        let bundle = Self(tempfile::tempdir().expect("a directory"));
        let at = |name: &str| bundle.0.path().join(name);
        for dir in ["bin", "saltern-gpu", "saltern-gpu/tests"] {
            fs::create_dir(at(dir)).expect("mkdir");
        }
        symlink(bash, at("bin/bash")).expect("symlink");
        for name in COREUTILS {
            symlink(find(name).expect("coreutils"), at("bin").join(name)).expect("symlink");
        }
        fs::write(at("saltern-gpu/VERSION"), "the version\n").expect("write");
        let programs = ["gpu", "device", "device_slots", "device_trouble", "device_model", "on_device"]
            .map(|name| format!("tests/{name}"));
        for (name, text) in programs
            .iter()
            .map(|name| (name.as_str(), TESTS))
            .chain([("saltern", SALTERN), ("saltern-gds-probe", TESTS)])
        {
            let path = at("saltern-gpu").join(name);
            fs::write(&path, text).expect("write");
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
        }
        let run = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/gpu/run");
        fs::copy(run, at("saltern-gpu/run")).expect("copy");
        Some(bundle)
    }

    /// Runs it; gives the exit code, all that it printed, and what it has called.
    fn run(&self, environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
        let (root, calls) = (self.0.path(), self.0.path().join("calls"));
        let ran = Command::new(root.join("bin/bash"))
            .args([root.join("saltern-gpu/run"), root.join("disk")])
            .env_clear()
            .env("PATH", root.join("bin"))
            .env("CALLS", &calls)
            .envs(environment.iter().copied())
            .output()
            .expect("bash runs");
        let called = fs::read_to_string(&calls).expect("it calls programs");
        fs::remove_file(calls).expect("unlink");
        let text = [ran.stdout, ran.stderr].map(|bytes| String::from_utf8(bytes).expect("text")).concat();
        assert!(!text.contains("command not found"), "it uses more than it says: {text}");
        (ran.status.code(), text, called)
    }
}

#[test]
fn with_a_gpu_everything_runs_and_the_table_is_printed() {
    let Some(bundle) = Bundle::new() else { return };
    let (code, text, called) = bundle.run(&[]);
    assert_eq!(code, Some(0), "{text}");
    for word in ["the version", "the diagnosis", "the table", "== bench, cuFile in compatibility mode"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert_eq!(text.matches("test result: ok").count(), 6, "{text}");
    assert!(called.contains("gpu --test-threads 1") && called.contains("--target gpu:0"), "{called}");
    assert!(called.contains("--no-direct") && !called.contains("gpu-sim"), "{called}");
    assert!(bundle.0.path().join("disk/saltern-gpu-results/bench.txt").exists());
}

#[test]
fn without_one_it_says_what_was_skipped_and_ends_with_3() {
    let Some(bundle) = Bundle::new() else { return };
    let (code, text, called) = bundle.run(&[("NO_GPU", "1")]);
    assert_eq!(code, Some(3), "{text}");
    for word in [
        "NO GPU WAS FOUND: error: no library",
        "SKIPPED: first_of_the_gpu: no library",
        "SKIPPED: second_of_the_gpu: no library",
        "no GPU was found: 2 tests of it were skipped; everything else was run",
        "the table",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(called.contains("--target gpu-sim") && !called.contains("--no-direct"), "{called}");
}

#[test]
fn what_fails_is_named_and_it_ends_with_1() {
    let Some(bundle) = Bundle::new() else { return };
    for (trouble, word) in [("BAD_TEST", "test it ... FAILED"), ("BAD_BENCH", "some tests failed")] {
        for no_gpu in [&[][..], &[("NO_GPU", "1")]] {
            let (code, text, called) = bundle.run(&[&[(trouble, "1")], no_gpu].concat());
            assert_eq!(code, Some(1), "{text}");
            assert!(text.contains(word) && called.contains("on_device"), "{text}");
        }
    }
}

#[test]
fn a_gpu_on_which_the_first_trial_goes_wrong_is_no_missing_gpu() {
    let Some(bundle) = Bundle::new() else { return };
    let (code, text, called) = bundle.run(&[("BAD_TRIAL", "1")]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("A TRIAL OF 4 KiB ON THE GPU FAILED: wrong bytes") && !text.contains("NO GPU"), "{text}");
    // Everything else runs there all the same.
    let benches = called.lines().filter(|line| line.contains("bench --target gpu:0")).count();
    assert!(benches == 3 && called.contains("gpu --test-threads 1") && !called.contains("gpu-sim"), "{called}");
}
