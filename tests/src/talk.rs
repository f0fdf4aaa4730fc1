//! One object at a time: the short way to ask an engine something.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use rand::Rng;
use saltern::device::COPY_ATTEMPTS;
use saltern::device::sim::{Clock, SimDevice, SimOptions};
use saltern::steps::Steps;
use saltern::{Buffer, Config, Engine, Error, ObjectKey};

use crate::cell::Called;
use crate::disk::checked;
use crate::seed::process_seed;
use crate::wait::done;

const UNTOUCHED: u8 = 0xee;

/// A configuration that many tests can use at a time: little memory, threads not pinned. When its engine closes, its accounts are
/// compared with the directory; tests that have changed that behind its back set other `steps`.
pub fn config(dir: impl Into<PathBuf>) -> Config {
    let mut config = Config::new(dir);
    config.pin_shards = false;
    config.segment_bytes = 256 << 10;
    config.pool_bytes = 16 << 20;
    config.steps = checked(Steps::default());
    if on_device() {
        config.loopback = Some(any_device());
    }
    config
}

/// A software device with a seed, failures, an order of completions, delays and a clock that are the process's choice, by the name of the
/// test and the number of devices that it has made.
///
/// One copy of 2 to 20 fails, but none as often in a row as the engine makes it: these tests say what an operation has to answer, and that is
/// everything that an engine has to take from a device without an answer changing. What it answers when a copy fails for good is in
/// `tests/device_model.rs`, whose model allows for it.
fn any_device() -> SimDevice {
    thread_local! { static MADE: Cell<u64> = const { Cell::new(0) }; }
    let thread = std::thread::current();
    // FNV-1a: the same in every process.
    let test = thread.name().unwrap_or_default().bytes();
    let test = test.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let made = MADE.replace(MADE.get() + 1);
    let mut random = process_seed().rng(test ^ made);
    let mut options = SimOptions::default();
    options.seed = random.random();
    options.fail_one_in = random.random_range(2..=20);
    options.fail_in_a_row = COPY_ATTEMPTS - 1;
    options.reorder = true;
    options.late_one_in = [0, 8, 64][random.random_range(0..3)];
    options.fixed_ns = [1_000, 8_000, 40_000][random.random_range(0..3)];
    options.bytes_per_s = [5, 25, 100][random.random_range(0..3)] * 1_000_000_000;
    // Copied when the shard looks, or by threads of the device.
    let clock = if random.random() { Clock::wall() } else { Clock::default() };
    SimDevice::with_clock(options, clock)
}

/// Directories of several volumes: this one, and others beside it. Nothing is created.
pub fn beside(dir: &Path, volumes: usize) -> Vec<PathBuf> {
    let name = dir.file_name().expect("a name").to_str().expect("text");
    (0..volumes).map(|n| if n == 0 { dir.to_owned() } else { dir.with_file_name(format!("{name}-{n}")) }).collect()
}

/// As [`config`], over several directories.
pub fn over(dirs: &[PathBuf]) -> Config {
    let mut config = config(&dirs[0]);
    config.more_dirs = dirs[1..].to_vec();
    config
}

/// Whether this is a suite of host memory that runs again on the software device: every buffer plays memory of it.
pub fn on_device() -> bool {
    let name = std::env::current_exe().ok().and_then(|path| Some(path.file_name()?.to_str()?.starts_with(ON_DEVICE)));
    name.unwrap_or(false)
}

/// How the test binaries begin that do so.
const ON_DEVICE: &str = "on_device";

/// Opens with [`config`].
pub fn open(dir: &Path) -> Engine {
    Engine::open(config(dir)).expect("open")
}

/// Stores one object.
///
/// # Errors
/// The engine's answer.
pub fn put(host: &impl Called, key: &ObjectKey, bytes: &[u8]) -> Result<u64, Error> {
    let mut report = done(host.stores(vec![(key.clone(), Buffer::from(bytes))]));
    report.results.remove(0)
}

/// Loads one object into a buffer of `len` bytes.
///
/// # Errors
/// The engine's answer.
///
/// # Panics
/// When the buffer does not come back, or was touched although the size was wrong or the object not there.
pub fn get(host: &impl Called, key: &ObjectKey, len: usize) -> Result<Vec<u8>, Error> {
    let mut report = done(host.loads(vec![(key.clone(), Buffer::from(vec![UNTOUCHED; len]))]));
    let result = report.results.remove(0);
    let buffer = report.buffers.remove(0);
    if matches!(result, Err(Error::TimedOut { .. })) {
        return Err(result.unwrap_err());
    }
    let bytes = buffer.expect("the buffer comes back").into_vec();
    match result {
        Ok(loaded) => {
            assert_eq!(loaded, len as u64, "bytes loaded");
            Ok(bytes)
        }
        Err(error) => {
            if matches!(error, Error::WrongSize { .. } | Error::NotFound) {
                assert!(bytes.iter().all(|byte| *byte == UNTOUCHED), "{error}, and yet the buffer was written");
            }
            Err(error)
        }
    }
}

/// Looks one object up, and lets its pin go again.
pub fn find(host: &impl Called, key: &ObjectKey) -> Option<u64> {
    let size = done(host.looks_up(std::slice::from_ref(key))).sizes[0];
    assert_eq!(host.unpins(std::slice::from_ref(key)), usize::from(size.is_some()), "pins released");
    size
}

/// Deletes one object.
///
/// # Errors
/// The engine's answer.
pub fn remove(host: &impl Called, key: &ObjectKey) -> Result<u64, Error> {
    done(host.deletes(std::slice::from_ref(key))).results.remove(0)
}
