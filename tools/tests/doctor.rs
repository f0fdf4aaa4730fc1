//! `saltern doctor` on the machine that runs the tests.

mod common;

use std::fs;

use common::{saltern, temp_dir};

#[test]
fn every_item_has_a_line_and_nothing_stays() {
    let dir = temp_dir();
    let text = saltern(dir.path(), &["doctor", "--quick", "."]);
    let json = saltern(dir.path(), &["doctor", ".", "--json", "-"]);
    assert_eq!((text.code, json.code), (0, 0), "{}{}", text.stdout, text.stderr);
    let report = json.json();
    assert_eq!((report["schema"].as_u64(), report["status"].as_str().is_some()), (Some(1), true));
    let checks = report["checks"].as_array().unwrap();
    let items: Vec<_> = checks.iter().map(|check| check["item"].as_str().unwrap()).collect();
    for item in [
        "kernel",
        "io_uring",
        "memlock limit",
        "huge pages",
        "file system",
        "O_DIRECT",
        "user attributes",
        "write zeroes",
        "free space",
        "open files",
        "CPUs",
        "shards",
        "CUDA driver",
        "engine",
    ] {
        assert!(items.contains(&item), "{item} is missing in {items:?}");
    }
    for check in checks {
        let (status, value) = (check["status"].as_str().unwrap(), check["value"].as_str().unwrap());
        assert!(["ok", "note", "warn"].contains(&status) && !value.is_empty(), "{check}");
        assert_eq!(check["advice"].is_string(), status != "ok", "{check}");
    }
    let starts_item = |line: &&str| ["ok ", "note ", "warn "].iter().any(|word| line.starts_with(word));
    let lines: Vec<_> = text.stdout.lines().skip(1).filter(starts_item).collect();
    assert_eq!(lines.len(), checks.len(), "{}", text.stdout);
    assert!(lines.iter().zip(&items).all(|(line, item)| line.contains(item)), "{}", text.stdout);
    let too_long = |line: &&str| line.chars().count() > 80 && line.split_whitespace().count() > 1;
    assert_eq!(text.stdout.lines().skip(1).find(too_long), None);
    assert!(!text.stdout.contains('\u{1b}'), "no colours into a pipe");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn the_number_of_shards_is_measured_unless_it_should_be_quick() {
    let dir = temp_dir();
    let measured = saltern(dir.path(), &["doctor", ".", "--json", "-"]).json();
    let trials = measured["recommended"]["trials"].as_array().unwrap();
    let tried: Vec<_> = trials.iter().map(|trial| trial["shards"].as_u64().unwrap()).collect();
    assert!(tried.contains(&measured["recommended"]["shards"].as_u64().unwrap()), "{measured}");
    let moves = |trial: &serde_json::Value| {
        ["store_mib_per_s", "load_mib_per_s"].iter().all(|rate| trial[rate].as_f64().unwrap() > 0.0)
    };
    assert!(tried[0] == 1 && trials.iter().all(moves), "{measured}");
    let guessed = saltern(dir.path(), &["doctor", ".", "--quick", "--json", "-"]).json();
    assert!(guessed["recommended"]["trials"].as_array().unwrap().is_empty(), "{guessed}");
    assert!(guessed["recommended"]["shards"].as_u64().unwrap() >= 1, "{guessed}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_missing_directory_is_a_failure_with_a_hint() {
    let dir = temp_dir();
    let ran = saltern(dir.path(), &["doctor", "no-such"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.starts_with("error: no-such: ") && ran.stderr.contains("\nhint: "), "{}", ran.stderr);
}
