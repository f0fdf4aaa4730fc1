//! A hundred thousand objects come and go at capacity: the disk holds what it may and no more, and the process does not grow.
//!
//! A process of its own, because it looks at its own memory and descriptors. `SALTERN_LONG=1` for as many on file
//! systems of the test's own, too.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::statvfs::statvfs;
use rand::Rng;
use saltern::{Config, Engine, Layout};
use saltern_tests::{
    LoopMount, Scratch, Seed, Unmountable, assert_books, config, done, get, is_long, key, payload, until,
};

const MIB: u64 = 1 << 20;
const CAPACITY_BYTES: u64 = 64 * MIB;
const SPARE_BYTES: u64 = 16 * MIB;
const OPEN_FILES: usize = 200;

/// Whole blocks, so that bytes and disk space are the same; enough for the directory to be less than a hundredth.
const SIZES: [usize; 4] = [16 << 10, 32 << 10, 48 << 10, 64 << 10];

const BATCH: usize = 64;

/// Batches between two looks at the disk and the process.
const LOOK_EVERY: usize = 16;

/// What the process holds beside the objects' descriptors: rings, directories, eventfds, the test's own.
const OTHER_FILES: usize = 60;

/// Memory that may come and go with the allocator's mood. 100,000 leaks of 42 bytes are more.
const MEMORY_SLACK_BYTES: u64 = 4 * MIB;

/// What a file system that makes inodes as it needs them (xfs, 512 bytes each, in chunks) takes for as many files as fit, and as
/// many again in chunks that are not empty yet.
const INODES_BYTES: u64 = 2 * 512 * (CAPACITY_BYTES + SPARE_BYTES) / SIZE_MEAN;
const SIZE_MEAN: u64 = 40 << 10;

/// File systems of the test's own.
const ROOMY_BYTES: u64 = 400 * MIB;

/// Little more than the volume: a batch or two after the last commit of its journal, ext4 has no blocks left but those of files that
/// were removed since, which it counts as free and does not give out.
const NARROW_BYTES: u64 = 110 * MIB;

struct Cycles {
    engine: Engine,
    config: Config,
    /// Stored objects, the oldest first: numbers and bytes.
    live: VecDeque<(u32, usize)>,
    used: u64,
    next: u32,
    rng: rand::rngs::StdRng,
}

impl Cycles {
    fn new(dir: &Path, seed: &Seed) -> Self {
        let mut config = config(dir);
        (config.capacity_bytes, config.spare_bytes) = (Some(CAPACITY_BYTES), SPARE_BYTES);
        (config.open_files, config.shards) = (Some(OPEN_FILES), 2);
        let engine = Engine::open(config.clone()).expect("open");
        Self { engine, config, live: VecDeque::new(), used: 0, next: 0, rng: seed.rng(0) }
    }

    /// Deletes the oldest objects until a batch of new ones has room, and stores it. Gives the number of deleted ones.
    fn cycle(&mut self) -> usize {
        let new: Vec<(u32, usize)> =
            (self.next..).map(|n| (n, SIZES[self.rng.random_range(0..SIZES.len())])).take(BATCH).collect();
        self.next += BATCH as u32;
        self.used += new.iter().map(|(_, bytes)| *bytes as u64).sum::<u64>();
        let mut old = Vec::new();
        while self.used > CAPACITY_BYTES {
            let (n, bytes) = self.live.pop_front().expect("there is something to delete");
            self.used -= bytes as u64;
            old.push(key(n));
        }
        assert!(done(self.engine.delete(&old)).results.iter().all(Result::is_ok), "deletes");
        let batch = new.iter().map(|(n, bytes)| (key(*n), payload((*n).into(), *bytes).into())).collect();
        for ((n, bytes), result) in new.iter().zip(done(self.engine.store(batch)).results) {
            assert_eq!(result.unwrap_or_else(|error| panic!("store of {n}: {error}")), *bytes as u64);
        }
        self.live.extend(new);
        old.len()
    }

    /// Loads one object of any age.
    fn check_one(&mut self) {
        let (n, bytes) = self.live[self.rng.random_range(0..self.live.len())];
        assert!(get(&self.engine, &key(n), bytes).expect("load") == payload(n.into(), bytes), "{n}: wrong bytes");
    }
}

/// Bytes of disk blocks below a directory, itself included.
fn blocks(dir: &Path) -> u64 {
    let own = fs::symlink_metadata(dir).expect("stat").blocks() * 512;
    fs::read_dir(dir).expect("readdir").fold(own, |sum, entry| {
        let entry = entry.expect("readdir");
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => sum + blocks(&entry.path()),
            Ok(metadata) => sum + metadata.blocks() * 512,
            Err(_) => sum,
        }
    })
}

fn resident_bytes() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").expect("statm");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("resident pages") * 4096
}

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").expect("proc").count()
}

/// Cycles at capacity; `used_elsewhere` is another way to ask how much of the disk is used.
fn run(dir: &Path, cycles: usize, seed: &Seed, used_elsewhere: impl Fn() -> u64) {
    let files_before = open_files();
    let bound = (CAPACITY_BYTES + SPARE_BYTES) * 101 / 100;
    let mut run = Cycles::new(dir, seed);
    let (mut memory, mut deleted, mut most) = (Vec::new(), 0, 0);
    for batch in 0.. {
        deleted += run.cycle();
        if deleted == 0 || batch % LOOK_EVERY != 0 {
            continue;
        }
        run.check_one();
        let (used, spares) = (blocks(dir), run.engine.status().spares.bytes);
        assert!(spares <= SPARE_BYTES, "{spares} bytes of spares after {deleted} cycles");
        assert!(used <= bound, "{used} bytes of disk after {deleted} cycles, {bound} are allowed");
        // xfs frees the blocks of unlinked files in the background.
        until("the file system has the space of removed files back", || used_elsewhere() <= bound + INODES_BYTES);
        let files = open_files();
        assert!(files <= OPEN_FILES + OTHER_FILES, "{files} open files after {deleted} cycles");
        memory.push(resident_bytes());
        most = most.max(used);
        if deleted >= cycles {
            break;
        }
    }
    // The first fifth is for warming up.
    let later = &memory[memory.len() / 5..];
    let (early, late) = later.split_at(later.len() / 2);
    let (early, late) = (early.iter().max().expect("looks"), late.iter().min().expect("looks"));
    assert!(*late <= early + MEMORY_SLACK_BYTES, "resident bytes grew from {early} to {late}: {memory:?}");
    let status = run.engine.status();
    let recycled = status.counters.recycled as f64 / deleted as f64;
    // How many depends on what a flush of this device takes: syncs rest in proportion.
    assert!(!status.spares.is_on || status.counters.recycled > 0, "none of the cycles is recycled: {status:?}");
    assert_books(&run.engine, dir, Layout::Fs);
    eprintln!(
        "{deleted} cycles, {recycled:.2} recycled, {} MiB of disk at most, {early} then {late} bytes resident",
        most / MIB
    );
    let Cycles { engine, config, live, .. } = run;
    engine.close();
    assert_eq!(open_files(), files_before, "descriptors after the close");
    let engine = Engine::open(config).expect("open");
    assert_eq!(engine.status().objects, live.len() as u64, "after a restart");
    assert_books(&engine, dir, Layout::Fs);
}

#[test]
fn disk_memory_and_descriptors_stay_within_bounds() {
    let seed = Seed::new("disk_memory_and_descriptors_stay_within_bounds");
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "endurance");
    run(&scratch.join("volume"), 100_000, &seed, || 0);
    // One after the other: both look at this process. Whole file systems say what they use themselves.
    for (kind, size) in [("ext4", ROOMY_BYTES), ("ext4", NARROW_BYTES), ("xfs", ROOMY_BYTES)] {
        let mount = match LoopMount::new(env!("CARGO_TARGET_TMPDIR"), kind, size, &["-q"]) {
            Ok(mount) => mount,
            Err(Unmountable(why)) => {
                eprintln!("SKIPPED: no {kind} of its own: {why}");
                continue;
            }
        };
        let used = || {
            let stat = statvfs(mount.path()).expect("statvfs");
            (stat.blocks() - stat.blocks_free()) * stat.fragment_size()
        };
        let before = used();
        let cycles = if is_long() { 100_000 } else { 10_000 };
        run(&mount.path().join("volume"), cycles, &seed, || used().saturating_sub(before));
    }
}
