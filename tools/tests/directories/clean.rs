//! `saltern clean`.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::time::{Duration, SystemTime};

use saltern::{Engine, Layout};
use saltern_tests::{file_name, key};
use serde_json::json;

use crate::common::{saltern, temp_dir};
use crate::{entries, fill, laid_out};

#[test]
fn leftovers_go_and_nothing_else() {
    let dir = temp_dir();
    let outside = temp_dir();
    fill(dir.path(), Layout::Fs, &[key(0), key(1)]);
    let fs_name = file_name(Layout::Fs, &key(2));
    let nixl_name = file_name(Layout::NixlSharded, &key(3));
    let salted = file_name(Layout::Nixl, &saltern_tests::salted(4, "a.tmp.b"));
    let write = |name: &str, hours: u64| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, [7; 100]).unwrap();
        let at = SystemTime::now() - Duration::from_secs(3600 * hours);
        File::options().write(true).open(path).unwrap().set_modified(at).unwrap();
    };
    let old = [
        fs_name.replace(".data", ".tmp"),
        format!("{fs_name}.tmp"),
        format!("{nixl_name}.tmp.0123456789abcdef0123456789abcdef"),
    ];
    old.iter().for_each(|name| write(name, 5));
    let young = format!("{fs_name}.tmp.ff");
    write(&young, 0);
    let ours = [".saltern/tmp/0-1", ".saltern/spares/0-2", ".saltern/index.new"];
    ours.iter().for_each(|name| write(name, 0));
    let others = [&*salted, "notes.tmp", "x.tmp.0f", ".saltern/quarantine/1/x.data"];
    others.iter().for_each(|name| write(name, 5));
    fs::write(outside.path().join("safe"), "safe").unwrap();
    let link = format!("{}.tmp", file_name(Layout::Fs, &key(9)));
    symlink(outside.path().join("safe"), dir.path().join(&link)).unwrap();
    let before = entries(dir.path());

    let dry = saltern(dir.path(), &["clean", ".", "--json", "-"]);
    assert_eq!(dry.code, 0, "{}", dry.stderr);
    let report = dry.json();
    let names = |list: &str| -> Vec<String> {
        report[list].as_array().unwrap().iter().map(|left| left["name"].as_str().unwrap().to_owned()).collect()
    };
    let mut expected: Vec<String> = ours.iter().map(|name| (*name).to_owned()).chain(old.clone()).collect();
    expected.sort();
    let mut removed = names("removed");
    removed.sort();
    assert_eq!((removed, names("young"), &report["applied"]), (expected, vec![young.clone()], &json!(false)));
    assert_eq!(entries(dir.path()), before, "a dry run");
    let text = saltern(dir.path(), &["clean", "."]).stdout;
    assert!(text.contains("6 files, 600B would be removed") && text.contains("1 file left alone"), "{text}");

    let engine = Engine::open(laid_out(dir.path(), Layout::Fs)).unwrap();
    let refused = saltern(dir.path(), &["clean", ".", "--apply"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains(&format!("pid {}", std::process::id())), "{}", refused.stderr);
    engine.close();
    write(".saltern/tmp/0-1", 0);

    assert_eq!(saltern(dir.path(), &["clean", ".", "--only", "lmcache", "--apply"]).code, 0);
    assert!(old.iter().all(|name| !dir.path().join(name).exists()) && dir.path().join(ours[0]).exists());
    let all = saltern(dir.path(), &["clean", ".", "--older-than", "0s", "--apply"]);
    assert_eq!(all.code, 0, "{}", all.stderr);
    assert!(ours.iter().all(|name| !dir.path().join(name).exists()) && !dir.path().join(young).exists());
    assert!(others.iter().all(|name| dir.path().join(name).exists()));
    assert!(fs::symlink_metadata(dir.path().join(link)).is_ok() && outside.path().join("safe").exists());
    let engine = Engine::open(laid_out(dir.path(), Layout::Fs)).unwrap();
    assert_eq!(engine.status().objects, 2);
    assert!(saltern(dir.path(), &["clean", ".", "--only", "lmcache"]).stdout.contains("nothing to clean"));
    for wrong in [&["clean"][..], &["clean", ".", "--older-than", "soon"], &["clean", ".", "--only", "objects"]] {
        assert_eq!(saltern(dir.path(), wrong).code, 2, "{wrong:?}");
    }
}
