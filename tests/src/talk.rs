//! One object at a time: the short way to ask an engine something.

use std::path::{Path, PathBuf};

use saltern::device::sim::{SimDevice, SimOptions};
use saltern::steps::Steps;
use saltern::{Buffer, Config, Engine, Error, ObjectKey};

use crate::cell::Called;
use crate::disk::checked;
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
        let mut options = SimOptions::default();
        options.reorder = true;
        config.loopback = Some(SimDevice::new(options));
    }
    config
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
