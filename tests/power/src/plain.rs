//! Plain writers, as targets of the same workloads: the lab's controls. They do with plain system calls what an engine may do,
//! right and wrong, so that it is known what the lab catches and what it does not.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::OFlag;
use parking_lot::Mutex;
use saltern::Layout;

use crate::check::OWN_DIR;
use crate::content::{compare, fill, key_of, size_of};
use crate::workload::{Deleted, Loaded, Stored, Target};

/// Alignment of direct writes.
const BLOCK_BYTES: usize = 4096;

/// Retired files that one sync of the directory makes clean.
const QUARANTINE_FILES: usize = 16;

/// How a writer stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Means {
    /// A new file each; synced with its directory before the acknowledgement.
    NewSynced,
    /// Deleted files are overwritten as soon as they are renamed away.
    RecycledAtOnce,
    /// Deleted files are overwritten when the rename that took their name away is durable.
    RecycledFromQuarantine,
}

#[derive(Default)]
struct Spares {
    retired: Vec<PathBuf>,
    clean: Vec<PathBuf>,
}

/// A writer in a directory.
pub(crate) struct Plain {
    volume: PathBuf,
    means: Means,
    spares: Mutex<Spares>,
    numbers: AtomicU64,
}

impl Plain {
    pub(crate) fn open(volume: &Path, means: Means) -> io::Result<Self> {
        fs::create_dir_all(volume.join(OWN_DIR))?;
        Ok(Self { volume: volume.into(), means, spares: Mutex::default(), numbers: AtomicU64::new(0) })
    }

    fn path(&self, number: u64) -> PathBuf {
        self.volume.join(Layout::Fs.encode(&key_of(number)).expect("the key has a name"))
    }

    fn own_path(&self) -> PathBuf {
        self.volume.join(OWN_DIR).join(self.numbers.fetch_add(1, Ordering::Relaxed).to_string())
    }

    fn sync_dirs(&self) -> io::Result<()> {
        File::open(&self.volume)?.sync_all()?;
        File::open(self.volume.join(OWN_DIR))?.sync_all()
    }

    fn try_store(&self, number: u64) -> io::Result<()> {
        let spare = self.spares.lock().clean.pop();
        let temp = spare.unwrap_or_else(|| self.own_path());
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(OFlag::O_DIRECT.bits())
            .open(&temp)?;
        let len = size_of(number) as usize;
        let blocks = len.next_multiple_of(BLOCK_BYTES);
        let mut memory = vec![0; blocks + BLOCK_BYTES];
        let skip = memory.as_ptr().align_offset(BLOCK_BYTES);
        let bytes = &mut memory[skip..skip + blocks];
        fill(number, &mut bytes[..len]);
        file.write_all_at(bytes, 0)?;
        file.set_len(len as u64)?;
        if self.means == Means::NewSynced {
            file.sync_data()?;
        }
        fs::rename(&temp, self.path(number))?;
        if self.means == Means::NewSynced { File::open(&self.volume)?.sync_all() } else { Ok(()) }
    }

    fn try_delete(&self, number: u64) -> io::Result<()> {
        if self.means == Means::NewSynced {
            return fs::remove_file(self.path(number));
        }
        let retired = self.own_path();
        fs::rename(self.path(number), &retired)?;
        let mut spares = self.spares.lock();
        if self.means == Means::RecycledAtOnce {
            spares.clean.push(retired);
            return Ok(());
        }
        spares.retired.push(retired);
        if spares.retired.len() >= QUARANTINE_FILES {
            let batch = std::mem::take(&mut spares.retired);
            drop(spares);
            self.sync_dirs()?;
            self.spares.lock().clean.extend(batch);
        }
        Ok(())
    }
}

impl Target for Plain {
    fn store(&self, number: u64) -> Result<Stored, String> {
        match self.try_store(number) {
            Ok(()) => Ok(Stored::Done),
            Err(error) => Err(format!("plain store of key {number}: {error}")),
        }
    }

    fn delete(&self, number: u64) -> Result<Deleted, String> {
        match self.try_delete(number) {
            Ok(()) => Ok(Deleted::Done),
            Err(error) => Err(format!("plain delete of key {number}: {error}")),
        }
    }

    fn load(&self, number: u64) -> Result<Loaded, String> {
        match fs::read(self.path(number)) {
            // A reader of a recycled file may see its next life; only an engine keeps the two apart.
            Ok(bytes) if self.means != Means::NewSynced || compare(number, &bytes).is_none() => Ok(Loaded::Right),
            Ok(_) => Err(format!("plain load of key {number}: wrong bytes")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Loaded::Absent),
            Err(error) => Err(format!("plain load of key {number}: {error}")),
        }
    }
}
