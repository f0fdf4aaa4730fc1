//! `saltern top`, and the socket that it asks.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use saltern::{Engine, Layout};
use saltern_tests::{find, get, key, put, salted};
use serde_json::{Value, json};

use crate::common::{command, saltern, temp_dir};
use crate::laid_out;

const SOCKET: &str = ".saltern/status";

#[test]
fn a_running_engine_is_shown_once() {
    let dir = temp_dir();
    let mut config = laid_out(dir.path(), Layout::Fs);
    config.capacity_bytes = Some(1 << 20);
    let engine = Engine::open(config).unwrap();
    engine.set_quota("tenant-1", 500_000).unwrap();
    for n in 0..4 {
        put(&engine, &salted(n, "tenant-1"), &[1; 50_000]).unwrap();
        put(&engine, &key(n), &[1; 10_000]).unwrap();
        get(&engine, &key(n), 10_000).unwrap();
        assert!(find(&engine, &key(n)).is_some() && find(&engine, &key(100 + n)).is_none());
    }
    let ran = saltern(dir.path(), &["top", ".", "--once", "--json", "-"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let served = ran.json();
    let status = &served["status"];
    assert_eq!((&served["schema"], &served["pid"]), (&json!(1), &json!(std::process::id())));
    assert_eq!((&status["objects"], &status["used_bytes"]), (&json!(8), &json!(240_000)));
    assert_eq!((&status["counters"]["loads"], &status["counters"]["lookup_hits"]), (&json!(4), &json!(4)));
    let salts: Vec<_> = served["salts"].as_array().unwrap().iter().map(|salt| &salt["salt"]).collect();
    assert_eq!(salts, [&json!("tenant-1"), &json!("")], "the largest first");
    assert_eq!(served["salts"][0]["quota_bytes"], json!(500_000));

    let text = saltern(dir.path(), &["top", ".", "--once"]);
    assert_eq!(text.code, 0);
    for part in ["healthy", "tenant-1", "(none)", "234.4KiB of 1MiB (22.9%)", "8 objects", "50.0% hits", "83.3%"] {
        assert!(text.stdout.contains(part), "{part}: {}", text.stdout);
    }
    assert!(text.stdout.lines().all(|line| line.chars().count() <= 80), "{}", text.stdout);
    engine.close();
    assert!(!dir.path().join(SOCKET).exists());
    let gone = saltern(dir.path(), &["top", ".", "--once"]);
    assert!(gone.code == 1 && gone.stderr.contains("hint: is an engine running"), "{}", gone.stderr);
    assert_eq!(saltern(dir.path(), &["top", "missing", "--once"]).code, 1);
    assert_eq!(saltern(dir.path(), &["top"]).code, 2);
}

#[test]
fn it_follows_until_it_is_told_to_stop() {
    let dir = temp_dir();
    let engine = Engine::open(laid_out(dir.path(), Layout::Fs)).unwrap();
    let mut child = command(dir.path(), &["top", ".", "--json", "-", "--interval", "0s"]);
    let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut objects = || -> u64 {
        let served: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        served["status"]["objects"].as_u64().unwrap()
    };
    assert_eq!(objects(), 0);
    put(&engine, &key(1), &[1; 10]).unwrap();
    // It comes to see the change, however many looks later.
    while objects() == 0 {}
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    // What it has written until then is read, so that it is not stopped by a full pipe.
    std::thread::scope(|scope| {
        scope.spawn(move || lines.count());
        assert_eq!(child.wait().unwrap().code(), Some(0));
    });
}

#[test]
fn the_socket_is_private_and_a_dead_engines_is_replaced() {
    let dir = temp_dir();
    fs::create_dir(dir.path().join(".saltern")).unwrap();
    drop(UnixListener::bind(dir.path().join(SOCKET)).unwrap());
    assert_eq!(saltern(dir.path(), &["top", ".", "--once"]).code, 1, "nobody listens there");
    let engine = Engine::open(laid_out(dir.path(), Layout::Fs)).unwrap();
    let meta = fs::metadata(dir.path().join(SOCKET)).unwrap();
    assert!(
        meta.file_type().is_socket() && meta.permissions().mode() & 0o777 == 0o600,
        "{:o}",
        meta.permissions().mode()
    );
    assert_eq!(engine.status().notes, [""; 0]);
    // Clients that do not read, or do not stay, are no matter.
    let idle: Vec<_> = (0..5).map(|_| UnixStream::connect(dir.path().join(SOCKET)).unwrap()).collect();
    drop(UnixStream::connect(dir.path().join(SOCKET)).unwrap());
    assert_eq!(saltern(dir.path(), &["top", ".", "--once"]).code, 0);
    engine.close();
    drop(idle);
}

#[test]
fn without_a_socket_the_engine_runs_and_says_so() {
    let dir = temp_dir();
    let mut config = laid_out(dir.path(), Layout::Fs);
    config.status_socket = false;
    let engine = Engine::open(config).unwrap();
    assert!(!dir.path().join(SOCKET).exists() && engine.status().notes.is_empty());
    engine.close();
    // Something that is not a socket has the name: it stays.
    fs::write(dir.path().join(SOCKET), "mine").unwrap();
    let engine = Engine::open(laid_out(dir.path(), Layout::Fs)).unwrap();
    let notes = engine.status().notes;
    assert!(notes.len() == 1 && notes[0].contains("no status socket"), "{notes:?}");
    put(&engine, &key(1), &[1; 10]).unwrap();
    engine.close();
    assert_eq!(fs::read(dir.path().join(SOCKET)).unwrap(), b"mine");
}

#[test]
fn paths_longer_than_a_sockets_name_work() {
    let dir = temp_dir();
    let deep = dir.path().join("d".repeat(100)).join("e".repeat(100));
    let engine = Engine::open(laid_out(&deep, Layout::Fs)).unwrap();
    assert_eq!(engine.status().notes, [""; 0]);
    let ran = saltern(dir.path(), &["top", deep.to_str().unwrap(), "--once", "--json", "-"]);
    assert_eq!((ran.code, &ran.json()["status"]["is_healthy"]), (0, &json!(true)), "{}", ran.stderr);
}
