//! `saltern doctor` on the machine that runs the tests.

mod common;

use std::fs;

use common::{saltern, temp_dir};

#[test]
fn every_item_has_a_line_and_nothing_stays() {
    let dir = temp_dir();
    let text = saltern(dir.path(), &["doctor", "."]);
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
        "free space",
        "open files",
        "CPUs",
        "engine",
    ] {
        assert!(items.contains(&item), "{item} is missing in {items:?}");
    }
    for check in checks {
        let (status, value) = (check["status"].as_str().unwrap(), check["value"].as_str().unwrap());
        assert!(["ok", "note", "warn"].contains(&status) && !value.is_empty(), "{check}");
        assert_eq!(check["advice"].is_string(), status != "ok", "{check}");
    }
    let lines: Vec<_> = text.stdout.lines().skip(1).collect();
    assert_eq!(lines.len(), checks.len(), "{}", text.stdout);
    assert!(lines.iter().zip(&items).all(|(line, item)| line.contains(item)), "{}", text.stdout);
    assert!(!text.stdout.contains('\u{1b}'), "no colours into a pipe");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_missing_directory_is_a_failure_with_a_hint() {
    let dir = temp_dir();
    let ran = saltern(dir.path(), &["doctor", "no-such"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.starts_with("error: no-such: ") && ran.stderr.contains("\nhint: "), "{}", ran.stderr);
}
