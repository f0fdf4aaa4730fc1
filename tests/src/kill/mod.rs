//! SIGKILL under load: a child stores, loads and deletes, and writes what was acknowledged to a journal (a plain file: what
//! `write` took survives the process). The parent kills it, opens the volume at once, and compares.

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
use saltern::{Config, Durability, Engine, Integrity, Layout, ObjectKey};

pub use child::child;
use journal::Journal;
pub use journal::Known;

use crate::{assert_books, config, done, file_name, payload, put, remove, salted, unfinished, until};

/// Keys that the child works on.
const KEYS: u32 = 256;

/// A fifth of what all keys have, and the largest object ten times: it is reached in the first moments.
const CAPACITY_BYTES: u64 = 4 << 20;

/// Keys that only the parent stores.
const PARENTS_KEYS: std::ops::Range<u32> = 10_000..10_040;

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
#[derive(Debug, Clone)]
pub struct Volume {
    /// Its directory.
    pub dir: PathBuf,
    /// How keys become file names.
    pub layout: Layout,
    /// Threads with a ring.
    pub shards: usize,
    /// What a store waits for.
    pub durability: Durability,
    /// Whether payloads have checksums, and loads compare them.
    pub integrity: Integrity,
    /// What the child does most.
    pub mode: Mode,
}

/// What a child does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It stores into new files: none is recycled.
    Fresh,
    /// At a capacity: as much goes as comes, into the files of what has gone, and what finds no room is refused.
    Steady,
    /// More is deleted than stored.
    DeleteHeavy,
}

impl Mode {
    /// All that there are.
    pub const ALL: [Self; 3] = [Self::Fresh, Self::Steady, Self::DeleteHeavy];

    /// Of ten steps of a child, how many store, and how many delete; the others load.
    pub(crate) fn shares(self) -> (u32, u32) {
        match self {
            Self::Fresh => (7, 1),
            Self::Steady => (5, 3),
            Self::DeleteHeavy => (4, 5),
        }
    }

    /// What a child may keep. The parent, who stores beside that, has no limit.
    pub(crate) fn capacity_bytes(self) -> Option<u64> {
        (self == Self::Steady).then_some(CAPACITY_BYTES)
    }
}

impl Volume {
    /// One of the volumes in `parent`: numbers from 0 to 17 have every mode with every durability and both integrities, any five in turn every
    /// layout.
    pub fn numbered(parent: &Path, number: usize) -> Self {
        Self {
            dir: parent.join(format!("volume-{number}")),
            layout: Layout::ALL[number % Layout::ALL.len()],
            shards: 1 + number / 2 % 2,
            mode: Mode::ALL[number % 3],
            durability: [Durability::None, Durability::Data, Durability::Full][number / 3 % 3],
            integrity: [Integrity::Verify, Integrity::Off][number / 9 % 2],
        }
    }

    fn config(&self) -> Config {
        let mut config = config(&self.dir);
        (config.layout, config.shards, config.durability) = (self.layout, self.shards, self.durability);
        config.integrity = self.integrity;
        if self.mode == Mode::Fresh {
            config.spare_bytes = 0;
        }
        config.segment_bytes = 64 << 10;
        config.pool_bytes = 4 << 20;
        config.lock_wait = Duration::from_secs(60);
        config
    }
}

/// Starts children, kills them, and knows what they have acknowledged.
pub struct Killer {
    /// Starts a child, which has to call [`child`].
    command: Box<dyn Fn() -> Command>,
    scratch: PathBuf,
    known: BTreeMap<u32, Known>,
    round: u32,
    /// Stores and deletes that were acknowledged.
    pub acknowledged: u64,
    /// Stores for which there was no room under the capacity.
    pub refused: u64,
}

impl Killer {
    /// `scratch` is a directory for journals, on any file system.
    pub fn new(scratch: &Path, command: impl Fn() -> Command + 'static) -> Self {
        let (command, known) = (Box::new(command), BTreeMap::new());
        Self { command, scratch: scratch.into(), known, round: 0, acknowledged: 0, refused: 0 }
    }

    /// A new volume: nothing is known.
    pub fn begin(&mut self) {
        self.known.clear();
    }

    /// Lets a child work, and kills it after this time.
    ///
    /// # Panics
    /// When the child finds something wrong, or does not start.
    pub fn kill(&mut self, volume: &Volume, rng: &mut StdRng, after: Duration) {
        self.round += 1;
        let round = self.round;
        let journal = self.scratch.join(format!("journal-{round}"));
        let stderr = self.scratch.join(format!("stderr-{round}"));
        let work = child::Work { volume: volume.clone(), seed: rng.random(), journal: journal.clone() };
        let mut command = (self.command)();
        work.hand_over(&mut command);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&stderr).expect("a file"));
        let mut child = command.spawn().expect("the child starts");
        until("the child works", || {
            assert_alive(&mut child, &stderr);
            Journal::has_begun(&journal)
        });
        std::thread::sleep(after);
        assert_alive(&mut child, &stderr);
        child.kill().expect("kill");
        let status = child.wait().expect("wait");
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{}", text(&stderr));
        let (acknowledged, refused) = Journal::read(&journal, &mut self.known);
        self.acknowledged += acknowledged;
        self.refused += refused;
        fs::remove_file(&journal).expect("unlink");
        fs::remove_file(&stderr).expect("unlink");
    }

    /// Opens at once, compares, and takes what is there now for the next round. Then the successor works: it stores into
    /// the spares that there are. `landed` waits until nothing of the dead process can land any more; what the successor
    /// has stored has to be right after that. Gives the number of spares.
    ///
    /// # Panics
    /// When something is wrong.
    pub fn check(&mut self, volume: &Volume, rng: &mut StdRng, landed: impl FnOnce()) -> u64 {
        let round = self.round;
        let engine = Engine::open(volume.config()).expect("open waits for the I/O of the dead");
        let report = engine.wait_recovered();
        assert_eq!(unfinished(&volume.dir), Vec::<PathBuf>::new(), "round {round}");
        assert_eq!(report.foreign.count, 0, "round {round}: {:?}", report.foreign.examples);
        let disk = assert_books(&engine, &volume.dir, volume.layout);
        assert_eq!(disk.others, Vec::<PathBuf>::new(), "round {round}");
        let spares = engine.status().spares.count;

        let mut present = BTreeMap::new();
        let mut files = disk.files.len();
        for n in 0..KEYS {
            let name = file_name(volume.layout, &object(n).0);
            let is_there = disk.files.contains_key(&name);
            files -= usize::from(is_there);
            match self.known.get(&n) {
                Some(Known::Present) => assert!(is_there, "round {round}: {n} was acknowledged, and is gone"),
                Some(Known::Absent) => assert!(!is_there, "round {round}: {n} was deleted, and is back"),
                Some(Known::Unclear) | None => {}
            }
            present.insert(n, if is_there { Known::Present } else { Known::Absent });
        }
        assert_eq!(files, 0, "round {round}: files that nobody stored");

        for n in PARENTS_KEYS {
            put(&engine, &object(n).0, &content(n)).expect("store");
        }
        let sample: Vec<u32> = (0..40).map(|_| rng.random_range(0..KEYS)).collect();
        let batch = sample.iter().map(|n| (object(*n).0, vec![0; object(*n).1].into())).collect();
        let report = done(engine.load(batch));
        for ((n, result), buffer) in sample.iter().zip(report.results).zip(report.buffers) {
            assert_eq!(result.is_ok(), present[n] == Known::Present, "round {round}: {n}: {result:?}");
            assert!(result.is_err() || buffer.expect("comes back").as_slice() == content(*n), "round {round}: {n}");
        }
        landed();
        let there = present.iter().filter(|(_, known)| **known == Known::Present).map(|(n, _)| *n);
        for n in there.chain(PARENTS_KEYS) {
            let found = fs::read(volume.dir.join(file_name(volume.layout, &object(n).0))).expect("read");
            assert!(found == content(n), "round {round}: {n}: wrong bytes on disk, {} of them", found.len());
        }
        for n in PARENTS_KEYS {
            remove(&engine, &object(n).0).expect("delete");
        }
        engine.close();
        self.known = present;
        spares
    }
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
