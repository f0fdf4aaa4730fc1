//! `saltern usage`, `quota` and `evict`: who has how much, who may have how much, and who goes.

mod common;

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use common::{Ran, saltern, temp_dir};
use saltern::{Config, Engine, ObjectKey};
use serde_json::{Value, json};

const OBJECT_BYTES: usize = 10_000;

fn key(n: u8, salt: &str) -> ObjectKey {
    ObjectKey::new("org/model-8b", 0x0100_0100, 0, &[n; 32], salt).unwrap()
}

/// Objects of an earlier run, number 0 the oldest: file `n` has salt `salts[n]`.
fn fill(dir: &Path, salts: &[&str]) {
    for (n, salt) in salts.iter().enumerate() {
        let salt = if salt.is_empty() { String::new() } else { format!("@{salt}") };
        let hash = format!("{n:02x}").repeat(32);
        let file = File::create(dir.join(format!("org-SEP-model-8b@0x01000100@0@{hash}{salt}.data"))).unwrap();
        file.set_len(OBJECT_BYTES as u64).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + n as u64)).unwrap();
    }
}

/// The numbers of the objects that are there.
fn present(dir: &Path) -> Vec<u8> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let number = |name: String| u8::from_str_radix(&name.split('@').nth(3)?[..2], 16).ok();
    let mut numbers: Vec<u8> = names.filter_map(number).collect();
    numbers.sort_unstable();
    numbers
}

fn good(ran: &Ran) -> Value {
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    ran.json()
}

fn check_width(ran: &Ran) {
    for line in ran.stdout.lines() {
        assert!(line.chars().count() <= 80, "{} columns: {line}", line.chars().count());
    }
}

#[test]
fn usage_tells_salts_models_and_ranks_apart() {
    let dir = temp_dir();
    let long = "l".repeat(128);
    fill(dir.path(), &["", "a", "a", &long]);
    fs::write(dir.path().join("opt-125m@0x02010201@0@0f0f.data"), [0; 77]).unwrap();
    let report = good(&saltern(dir.path(), &["usage", ".", "--json", "-"]));
    assert_eq!((&report["schema"], &report["layout"], &report["objects"]), (&json!(1), &json!("fs"), &json!(5)));
    let salt = |objects, bytes| json!({"objects": objects, "bytes": bytes, "quota_bytes": null});
    assert_eq!(report["by_salt"], json!({"": salt(2, 10_077), "a": salt(2, 20_000), long.as_str(): salt(1, 10_000)}));
    let share = |objects, bytes| json!({"objects": objects, "bytes": bytes});
    assert_eq!(report["by_model"], json!({"org/model-8b": share(4, 40_000), "opt-125m": share(1, 77)}));
    assert_eq!(report["by_rank"], json!({"0x01000100": share(4, 40_000), "0x02010201": share(1, 77)}));
    assert_eq!((&report["owner"], &report["spares"]), (&Value::Null, &share(0, 0)));
    assert!(report["file_system"]["total_bytes"].as_u64() >= report["file_system"]["free_bytes"].as_u64());
    assert!(!dir.path().join(".saltern").exists(), "nothing is made");

    let ran = saltern(dir.path(), &["usage", "."]);
    check_width(&ran);
    for part in ["5 objects", "(none)", "llll…", "org/model-8b", "0x02010201", "no engine runs on it"] {
        assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
    }
}

#[test]
fn usage_shows_quotas_and_who_is_over_them() {
    let dir = temp_dir();
    fill(dir.path(), &["a", "a", "b"]);
    for (salt, size) in [("a", "15KiB"), ("b", "1MiB"), ("nobody", "1GiB")] {
        good(&saltern(dir.path(), &["quota", ".", "set", salt, size, "--json", "-"]));
    }
    let ran = saltern(dir.path(), &["usage", ".", "--json", "-"]);
    assert_eq!(ran.code, 3, "a is over its quota");
    let report = ran.json();
    assert_eq!(report["by_salt"]["a"], json!({"objects": 2, "bytes": 20_000, "quota_bytes": 15_360}));
    assert_eq!(report["by_salt"]["nobody"], json!({"objects": 0, "bytes": 0, "quota_bytes": 1 << 30}));
    let ran = saltern(dir.path(), &["usage", "."]);
    check_width(&ran);
    let row = |salt: &str| ran.stdout.lines().find(|line| line.starts_with(salt)).unwrap_or("").to_owned();
    assert!(row("a ").contains("15KiB") && row("a ").ends_with("130%"), "{}", ran.stdout);
    assert!(row("nobody ").ends_with('-'), "{}", ran.stdout);
}

#[test]
fn usage_works_while_an_engine_runs_and_names_it() {
    let dir = temp_dir();
    let engine = Engine::open(Config::new(dir.path())).unwrap();
    engine.store((0..3).map(|n| (key(n, "s"), vec![n; 5000].into())).collect()).wait();
    engine.delete(&[key(2, "s")]).wait();
    let report = good(&saltern(dir.path(), &["usage", ".", "--json", "-"]));
    assert_eq!(report["owner"], json!(format!("pid {}", std::process::id())));
    assert_eq!(report["by_salt"]["s"], json!({"objects": 2, "bytes": 10_000, "quota_bytes": null}));
    assert_eq!(report["spares"]["objects"], engine.status().spares.count);
    engine.close();
    let report = good(&saltern(dir.path(), &["usage", ".", "--json", "-"]));
    assert_eq!(report["owner"], Value::Null, "the lock went with it");
}

#[test]
fn quotas_are_set_read_and_taken_away() {
    let dir = temp_dir();
    let run = |args: &[&str]| good(&saltern(dir.path(), &[&["quota", "."], args, &["--json", "-"]].concat()));
    assert_eq!(run(&["list"])["quotas"], json!({}));
    assert!(!dir.path().join(".saltern").exists(), "reading makes nothing");
    let one = |salt: &str, quota: Option<u64>, before: Option<u64>| json!({"schema": 1, "dir": ".", "salt": salt, "quota_bytes": quota, "before_bytes": before});
    assert_eq!(run(&["set", "a", "1.5GiB"]), one("a", Some(3 << 29), None));
    assert_eq!(run(&["set", "a", "0"]), one("a", Some(0), Some(3 << 29)));
    assert_eq!(run(&["set", "", "4096"]), one("", Some(4096), None));
    assert_eq!((run(&["get", "a"]), run(&["get", "b"])), (one("a", Some(0), Some(0)), one("b", None, None)));
    assert_eq!(run(&["list"])["quotas"], json!({"": 4096, "a": 0}));
    // What an engine sees.
    let engine = Engine::open(Config::new(dir.path())).unwrap();
    assert_eq!((engine.quota("a").unwrap(), engine.quota("").unwrap()), (Some(0), Some(4096)));
    engine.close();
    assert_eq!(run(&["rm", "a"]), one("a", None, Some(0)));
    assert_eq!(run(&["rm", "a"]), one("a", None, None));
    let text = |args: &[&str]| saltern(dir.path(), &[&["quota", "."], args].concat()).stdout;
    assert_eq!(text(&["list"]), "salt    quota\n-------------\n(none)   4KiB\n");
    assert_eq!(text(&["set", "a", "2KiB"]), "a: 2KiB (was no quota)\n");
    assert_eq!(text(&["get", "b"]), "b: no quota\n");
}

#[test]
fn what_needs_the_directory_says_who_has_it() {
    let dir = temp_dir();
    let engine = Engine::open(Config::new(dir.path())).unwrap();
    engine.set_quota("a", 1000).unwrap();
    engine.store(vec![(key(1, ""), vec![1; 5000].into())]).wait();
    assert_eq!(good(&saltern(dir.path(), &["quota", ".", "get", "a", "--json", "-"]))["quota_bytes"], 1000);
    let owner = format!("owned by pid {}", std::process::id());
    for args in
        [&["quota", ".", "set", "a", "1"][..], &["quota", ".", "rm", "a"], &["evict", ".", "--to", "0", "--apply"]]
    {
        let ran = saltern(dir.path(), args);
        assert_eq!(ran.code, 1, "{args:?}");
        assert!(ran.stderr.starts_with("error: ") && ran.stderr.contains(&owner), "{}", ran.stderr);
    }
    let dry = good(&saltern(dir.path(), &["evict", ".", "--to", "0", "--json", "-"]));
    assert_eq!((&dry["applied"], &dry["evicted"]["objects"]), (&json!(false), &json!(1)));
    assert!(dry["notes"][0].as_str().unwrap().contains(&owner[9..]), "{dry:#}");
    assert_eq!((engine.quota("a").unwrap(), engine.status().objects), (Some(1000), 1), "nothing has changed");
}

#[test]
fn eviction_takes_the_oldest_and_a_dry_run_says_which() {
    let dir = temp_dir();
    fill(dir.path(), &["", "a", "", "a", "", "a", "", "a", "", "a"]);
    let args = |rest: &[&'static str]| [&["evict", ".", "--to", "65%", "--json", "-"], rest].concat();
    let dry = good(&saltern(dir.path(), &args(&[])));
    assert_eq!(present(dir.path()).len(), 10, "a dry run");
    assert!(!dir.path().join(".saltern").exists(), "a dry run makes nothing");
    assert_eq!((&dry["target_bytes"], &dry["after_bytes"]), (&json!(65_000), &json!(60_000)));
    let share = |objects, bytes| json!({"objects": objects, "bytes": bytes});
    assert_eq!((&dry["before"], &dry["evicted"]), (&share(10, 100_000), &share(4, 40_000)));
    assert_eq!(dry["evicted_by_salt"], json!({"": share(2, 20_000), "a": share(2, 20_000)}));
    let ran = saltern(dir.path(), &["evict", ".", "--to", "65%"]);
    check_width(&ran);
    assert!(ran.stdout.contains("would evict 4 objects") && ran.stdout.contains("--apply"), "{}", ran.stdout);

    let done = good(&saltern(dir.path(), &args(&["--apply"])));
    let without = |mut report: Value| {
        report.as_object_mut().unwrap().remove("applied");
        report
    };
    assert_eq!(without(done), without(dry), "what was said was done");
    assert_eq!(present(dir.path()), [4, 5, 6, 7, 8, 9]);
    assert_eq!(saltern::probe::spares(dir.path()).unwrap(), (0, 0), "their room is free");
    // Once more: there is nothing to do for a size that is not reached.
    let again = good(&saltern(dir.path(), &["evict", ".", "--to", "60000", "--apply", "--json", "-"]));
    assert_eq!((&again["evicted"], present(dir.path()).len()), (&share(0, 0), 6));
    let share_of = good(&saltern(dir.path(), &["evict", ".", "--to", "50%", "--capacity", "100000", "--json", "-"]));
    assert_eq!(share_of["evicted"], share(1, 10_000));
}

#[test]
fn eviction_knows_when_objects_were_used() {
    let dir = temp_dir();
    fill(dir.path(), &["", "", "", "", ""]);
    let engine = Engine::open(Config::new(dir.path())).unwrap();
    engine.load(vec![(key(0, ""), vec![0; OBJECT_BYTES].into())]).wait();
    engine.load(vec![(key(2, ""), vec![0; OBJECT_BYTES].into())]).wait();
    engine.close();
    let dry = good(&saltern(dir.path(), &["evict", ".", "--to", "20000", "--json", "-"]));
    assert_eq!((&dry["evicted"]["objects"], &dry["notes"]), (&json!(3), &json!([])));
    good(&saltern(dir.path(), &["evict", ".", "--to", "20000", "--apply", "--json", "-"]));
    assert_eq!(present(dir.path()), [0, 2]);
    // A snapshot that is damaged is no reason to stop.
    fs::write(dir.path().join(".saltern/index"), "damaged").unwrap();
    let dry = good(&saltern(dir.path(), &["evict", ".", "--to", "0", "--json", "-"]));
    assert_eq!(dry["evicted"]["objects"], 2, "{dry:#}");
}

#[test]
fn salts_over_their_quota_give_up_their_own_first() {
    let dir = temp_dir();
    fill(dir.path(), &["", "a", "", "a", "", "a", "", "a"]);
    good(&saltern(dir.path(), &["quota", ".", "set", "a", "20KiB", "--json", "-"]));
    let args = |rest: &[&'static str]| [&["evict", ".", "--to", "50000", "--json", "-"], rest].concat();
    let (dry, done) = (good(&saltern(dir.path(), &args(&[]))), good(&saltern(dir.path(), &args(&["--apply"]))));
    assert_eq!(dry["evicted_for_quota"], json!({"objects": 2, "bytes": 20_000}));
    assert_eq!((&dry["evicted"], &dry["after_bytes"]), (&done["evicted"], &done["after_bytes"]));
    assert_eq!(present(dir.path()), [2, 4, 5, 6, 7], "1 and 3 for the quota, then the oldest of all");
}

#[test]
fn wrong_usage_and_missing_directories() {
    let dir = temp_dir();
    for args in [&["usage", "no-such"][..], &["quota", "no-such", "set", "a", "1"], &["evict", "no-such", "--to", "0"]]
    {
        let ran = saltern(dir.path(), args);
        assert_eq!(ran.code, 1, "{args:?}");
        assert!(ran.stderr.contains("No such file") && ran.stderr.contains("\nhint: "), "{}", ran.stderr);
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is made of a misspelt name");
    let forbidden = saltern(dir.path(), &["quota", ".", "set", "a/b", "1"]);
    assert!(forbidden.code == 1 && forbidden.stderr.contains("cache_salt"), "{}", forbidden.stderr);
    for args in [
        &["evict", "."][..],
        &["evict", ".", "--to", "101%"],
        &["evict", ".", "--to", "much"],
        &["quota", "."],
        &["quota", ".", "set", "a"],
        &["usage", ".", "--layout", "zip"],
    ] {
        assert_eq!(saltern(dir.path(), args).code, 2, "{args:?}");
    }
}
