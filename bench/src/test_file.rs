//! The file that the ceiling is measured on: preallocated, and fully written, so that no later write allocates.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::ceiling::{Kind, Memory, Rig};
use crate::error::{Error, Result};

/// Size of the requests, and their number in flight, that fill the file.
const FILL_BYTES: usize = 1 << 20;
const FILL_DEPTH: usize = 16;

/// The file that the ceiling is measured on.
pub struct TestFile {
    file: File,
    path: PathBuf,
    bytes: u64,
    direct: bool,
    fill_seconds: f64,
}

impl TestFile {
    /// Allocates and writes a file of `bytes`, or of less when that takes longer than `patience`. Blocks until it is
    /// on the device.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be written, [`Error::Interrupted`].
    pub fn create(path: &Path, bytes: u64, patience: Duration, cancel: &AtomicBool) -> Result<Self> {
        let bytes = bytes.next_multiple_of(FILL_BYTES as u64);
        let open = |flags| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .custom_flags(flags)
                .open(path)
        };
        let (file, direct) = match open(libc::O_DIRECT) {
            Ok(file) => (file, true),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                (open(0).map_err(|error| Error::io("create", path, error))?, false)
            }
            Err(error) => return Err(Error::io("create", path, error)),
        };
        match fallocate(&file, FallocateFlags::empty(), 0, bytes as i64) {
            Ok(()) | Err(Errno::EOPNOTSUPP) => {}
            Err(errno) => return Err(Error::io("allocate", path, errno)),
        }
        let mut this = Self { file, path: path.to_owned(), bytes, direct, fill_seconds: 0.0 };
        this.fill(patience, cancel)?;
        Ok(this)
    }

    fn fill(&mut self, patience: Duration, cancel: &AtomicBool) -> Result<()> {
        let mut rig = Rig::new(FILL_BYTES, FILL_BYTES, FILL_DEPTH, FILL_DEPTH)?;
        let offsets: Vec<u64> = (0..self.bytes).step_by(FILL_BYTES).collect();
        let started = Instant::now();
        let mut written = 0;
        for step in offsets.chunks(4 * FILL_DEPTH) {
            rig.run(self, Kind::Overwrite, Memory::Reused, step, cancel)?;
            written += step.len() * FILL_BYTES;
            if started.elapsed() > patience {
                break;
            }
        }
        self.bytes = written as u64;
        self.file.set_len(self.bytes).map_err(|error| Error::io("truncate", &self.path, error))?;
        self.file.sync_all().map_err(|error| Error::io("fsync", &self.path, error))?;
        self.fill_seconds = started.elapsed().as_secs_f64();
        Ok(())
    }

    pub(crate) fn as_file(&self) -> &File {
        &self.file
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the file system took O_DIRECT.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Bytes a second while it was written.
    pub fn fill_rate(&self) -> f64 {
        self.bytes as f64 / self.fill_seconds.max(1e-6)
    }
}
