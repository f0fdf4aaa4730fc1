//! SIGKILL at random moments under load: no wrong byte, nothing unfinished, books that are right, and everything
//! that was acknowledged.
//!
//! The test runs itself again as a child, which stores, loads and deletes, and writes what was acknowledged to a
//! journal (a plain file: what `write` took survives the process). The parent kills it, opens the volume at once, and
//! compares. `SALTERN_SEED=n` repeats the choices of a failed run, though not its timing; `SALTERN_LONG=1` kills more.

mod child;
mod journal;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use rand::Rng;
use rand::rngs::StdRng;
use saltern::{Config, Durability, Engine, Layout, ObjectKey};
use saltern_tests::{Scratch, Seed, assert_books, config, done, file_name, payload, salted, unfinished, until};

use crate::journal::{Journal, Known};

/// Keys that the child works on.
const KEYS: u32 = 256;

/// The volume is another one after so many kills.
const KILLS_PER_VOLUME: u32 = 10;

const SALTS: [&str; 3] = ["", "tenant-a", "b"];
const SIZES: [usize; 10] = [0, 1, 4095, 4096, 4097, 20_000, 65_536, 65_537, 262_144, 400_003];

/// Key, and by it the size and every byte: whatever is found under it can be checked.
fn object(n: u32) -> (ObjectKey, usize) {
    (salted(n, SALTS[n as usize % SALTS.len()]), SIZES[n as usize % SIZES.len()])
}

fn content(n: u32) -> Vec<u8> {
    payload(n.into(), object(n).1)
}

/// How a volume is opened, by the child and by the parent.
#[derive(Clone)]
struct Volume {
    dir: PathBuf,
    layout: Layout,
    shards: usize,
    durability: Durability,
}

impl Volume {
    fn config(&self) -> Config {
        let mut config = config(&self.dir);
        (config.layout, config.shards, config.durability) = (self.layout, self.shards, self.durability);
        config.segment_bytes = 64 << 10;
        config.pool_bytes = 4 << 20;
        config
    }
}

#[test]
fn nothing_is_wrong_after_fifty_kills() {
    let seed = Seed::new("nothing_is_wrong_after_fifty_kills");
    let mut rng = seed.rng(0);
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "kill");
    let kills = if std::env::var_os("SALTERN_LONG").is_some_and(|value| value == "1") { 1000 } else { 50 };
    let mut known = BTreeMap::new();
    let (mut acknowledged, mut spares) = (0, 0);
    for round in 0..kills {
        let volume = volume(&scratch, round / KILLS_PER_VOLUME);
        if round % KILLS_PER_VOLUME == 0 {
            known.clear();
        }
        let journal = scratch.join(&format!("journal-{round}"));
        let stderr = scratch.join(&format!("stderr-{round}"));
        let mut child = start(&volume, rng.random(), &journal, &stderr);
        until("the child works", || {
            assert_alive(&mut child, &stderr);
            Journal::has_begun(&journal)
        });
        std::thread::sleep(Duration::from_millis(rng.random_range(1..=150)));
        assert_alive(&mut child, &stderr);
        child.kill().expect("kill");
        let status = child.wait().expect("wait");
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{}", text(&stderr));

        acknowledged += Journal::read(&journal, &mut known);
        spares += check(&volume, &mut known, &mut rng, round);
        fs::remove_file(&journal).expect("unlink");
    }
    assert!(acknowledged > u64::from(kills), "the children did something: {acknowledged} stores and deletes");
    eprintln!("{kills} kills, {acknowledged} acknowledged stores and deletes, {spares} spares found");
}

fn volume(scratch: &Scratch, number: u32) -> Volume {
    let number = number as usize;
    Volume {
        dir: scratch.join(&format!("volume-{number}")),
        layout: Layout::ALL[number % Layout::ALL.len()],
        shards: 1 + number % 2,
        durability: [Durability::None, Durability::None, Durability::Full][number % 3],
    }
}

fn start(volume: &Volume, seed: u64, journal: &Path, stderr: &Path) -> Child {
    let work = child::Work { volume: volume.clone(), seed, journal: journal.to_owned() };
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args(["--exact", "child::child", "--ignored", "--nocapture"]);
    work.hand_over(&mut command);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(stderr).expect("a file"));
    command.spawn().expect("the child starts")
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A child only ends by the signal; when it finds something wrong, it panics.
fn assert_alive(child: &mut Child, stderr: &Path) {
    if let Some(status) = child.try_wait().expect("wait") {
        panic!("the child ended by itself, {status}:\n{}", text(stderr));
    }
}

/// Opens at once, compares, and takes what is there now for the next round. Gives the number of spares.
fn check(volume: &Volume, known: &mut BTreeMap<u32, Known>, rng: &mut StdRng, round: u32) -> u64 {
    let engine = Engine::open(volume.config()).expect("open waits for the I/O of the dead");
    let report = engine.wait_recovered();
    assert_eq!(unfinished(&volume.dir), Vec::<PathBuf>::new(), "round {round}");
    assert_eq!(report.foreign.count, 0, "round {round}: {:?}", report.foreign.examples);
    let disk = assert_books(&engine, &volume.dir, volume.layout);
    assert_eq!(disk.others, Vec::<PathBuf>::new(), "round {round}");

    let mut present = BTreeMap::new();
    let mut files = disk.files.len();
    for n in 0..KEYS {
        let name = file_name(volume.layout, &object(n).0);
        let is_there = disk.files.contains_key(&name);
        files -= usize::from(is_there);
        match known.get(&n) {
            Some(Known::Present) => assert!(is_there, "round {round}: {n} was acknowledged, and is gone"),
            Some(Known::Absent) => assert!(!is_there, "round {round}: {n} was deleted, and is back"),
            Some(Known::Unclear) | None => {}
        }
        if is_there {
            let found = fs::read(volume.dir.join(&name)).expect("read");
            assert!(found == content(n), "round {round}: {n}: wrong bytes on disk, {} of them", found.len());
        }
        present.insert(n, if is_there { Known::Present } else { Known::Absent });
    }
    assert_eq!(files, 0, "round {round}: files that nobody stored");

    let sample: Vec<u32> = (0..40).map(|_| rng.random_range(0..KEYS)).collect();
    let batch = sample.iter().map(|n| (object(*n).0, vec![0; object(*n).1].into())).collect();
    let report = done(engine.load(batch));
    for ((n, result), buffer) in sample.iter().zip(report.results).zip(report.buffers) {
        assert_eq!(result.is_ok(), present[n] == Known::Present, "round {round}: {n}: {result:?}");
        assert!(result.is_err() || buffer.expect("comes back").as_slice() == content(*n), "round {round}: {n}");
    }
    let spares = engine.status().spares.count;
    engine.close();
    *known = present;
    spares
}
