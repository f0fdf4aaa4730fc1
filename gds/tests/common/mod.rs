//! What the tests of this crate share: libraries of software, directories, keys and payloads.

#![allow(dead_code, reason = "not every test file uses all of it")]
#![expect(unsafe_code, reason = "the software driver is asked for its counts")]

use std::path::{Path, PathBuf};
use std::process::Command;

use saltern::device::DeviceOptions;
use saltern::{Config, ObjectKey};
use tempfile::TempDir;

/// Libraries built for one test.
pub(crate) struct Fakes(TempDir);

impl Fakes {
    /// Builds each as `lib<name>.so` from `fake/<source>.c` with these options; `None`, said, where there is no C compiler.
    pub(crate) fn build(libraries: &[(&str, &str, &[&str])]) -> Option<Self> {
        if Command::new("cc").arg("--version").output().is_err() {
            eprintln!("skipped: no C compiler (cc) to build the libraries of software with");
            return None;
        }
        let fakes = Self(tempfile::tempdir().expect("a directory"));
        for (name, source, options) in libraries {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fake/{source}.c"));
            let built = Command::new("cc")
                .args(["-shared", "-fPIC", "-O1", "-o"])
                .arg(fakes.path(name))
                .args(*options)
                .arg(&source)
                .output()
                .expect("cc runs");
            assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        }
        Some(fakes)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(format!("lib{name}.so"))
    }

    /// Loads one before anybody else does, and keeps it.
    pub(crate) fn load(&self, name: &str) {
        // SAFETY: a library of this crate, whose loading does nothing.
        std::mem::forget(unsafe { libloading::Library::new(self.path(name)).expect("it was built") });
    }

    /// One of the counts that the software driver keeps.
    pub(crate) fn count(&self, name: &str, symbol: &str) -> i32 {
        // SAFETY: a library of this crate, loaded before; its counts are functions without arguments.
        unsafe {
            let library = libloading::Library::new(self.path(name)).expect("it is loaded already");
            let count = library.get::<unsafe extern "C" fn() -> i32>(symbol.as_bytes()).expect("it has this count");
            count()
        }
    }

    /// From now on no copy can be queued that touches this address; 0: all can.
    pub(crate) fn break_at(&self, name: &str, address: u64) {
        // SAFETY: as above; the function takes one number.
        unsafe {
            let library = libloading::Library::new(self.path(name)).expect("it is loaded already");
            library.get::<unsafe extern "C" fn(u64)>(b"fake_break").expect("it has this function")(address);
        }
    }
}

/// A directory on the disk that the build is on.
pub(crate) fn dir() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// A root with these files of the kernel's, each with what follows a `=`.
pub(crate) fn machine(files: &[&str]) -> TempDir {
    let root = tempfile::tempdir().expect("a directory");
    for file in files {
        let (path, content) = file.split_once('=').unwrap_or((file, ""));
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().expect("it is below the root")).expect("mkdir");
        std::fs::write(path, content).expect("write");
    }
    root
}

pub(crate) fn key(n: u32) -> ObjectKey {
    ObjectKey::new("model", saltern::kv_rank(1, 0, 1, 0), 0, &n.to_be_bytes(), "").expect("a valid key")
}

/// Bytes that belong to `seed` alone.
pub(crate) fn payload(seed: u32, len: usize) -> Vec<u8> {
    let mut state = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Few and small slots.
pub(crate) fn small() -> DeviceOptions {
    let mut options = DeviceOptions::default();
    options.chunk_bytes = 1 << 20;
    options.transit_bytes = 4 << 20;
    options
}

/// An engine that leaves room for the tests beside it.
pub(crate) fn config(dir: &Path) -> Config {
    let mut config = Config::new(dir);
    config.pin_shards = false;
    config.pool_bytes = 16 << 20;
    config
}
