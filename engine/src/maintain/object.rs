//! Reading objects out of a directory, whole and checked, also while an engine works on it.
//!
//! An engine may take an object's file away while it is read, and overwrite it. So what was read counts only if the name still leads to
//! the same, unchanged file afterwards; else it is read again.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::dir::Dir;
use super::io_error;
use crate::error::{Error, Result};
use crate::integrity::{STAMP_BYTES, STAMP_NAME, Stamp, checksum};
use crate::key::ObjectKey;
use crate::layout::Layout;
use crate::saved;
use crate::snapshot::{FILE, FILE_BYTES_MAX, Snapshot};
use crate::sys::{FileStat, get_attribute, stat_fd};

/// Largest object that is read: it is in memory as a whole.
const OBJECT_BYTES_MAX: u64 = 1 << 30;

/// How often an object that changes meanwhile is read.
pub(super) const TRIES_MAX: u32 = 4;

/// When objects were used last, in nanoseconds since 1970, as far as a snapshot of the index tells; it may be of any age. Blocks.
pub fn last_uses(path: &Path, layout: Layout) -> HashMap<ObjectKey, u64> {
    let state = Dir::open(path).and_then(|dir| dir.state()).ok().flatten();
    let contents = state.and_then(|state| saved::read(state.as_fd(), FILE, FILE_BYTES_MAX).ok().flatten());
    let Some(contents) = contents else { return HashMap::new() };
    let Ok(snapshot) = Snapshot::parse(&contents, layout) else { return HashMap::new() };
    let scopes = snapshot.scopes.clone();
    let key = |scope: u32, chunk| ObjectKey::from_parts(scopes[scope as usize].clone(), chunk);
    snapshot.flatten().map(|record| (key(record.scope, record.chunk), record.used_ns)).collect()
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Object {
    /// Its bytes.
    pub payload: Vec<u8>,
    /// Their CRC-64/NVME.
    pub checksum: u64,
    /// Whether its file has a stamp, which says the same.
    pub is_stamped: bool,
    /// Time of the file's last modification, in nanoseconds since 1970.
    pub modified_ns: u64,
}

/// An open directory. Changes nothing; takes no lock.
pub struct ObjectReader {
    dir: Dir,
    layout: Layout,
}

/// Whether a name leads to the file that this was, as it was.
pub(super) fn is_same(dir: &Dir, name: &str, before: &FileStat) -> Result<bool, Errno> {
    let now = dir.stat(name)?;
    Ok(now.is_some_and(|now| {
        (now.identity, now.modified_ns, now.bytes) == (before.identity, before.modified_ns, before.bytes)
    }))
}

impl ObjectReader {
    /// Opens a directory.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: &Path, layout: Layout) -> Result<Self> {
        Ok(Self { dir: Dir::open(path)?, layout })
    }

    /// Reads one object; `None` when it is not there. Blocks.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and [`Error::Damaged`] when its bytes are not those of its stamp; [`Error::TooLarge`] above 1 GiB;
    /// [`Error::Io`]; with `ESTALE` when it did not stop changing.
    pub fn read(&self, key: &ObjectKey) -> Result<Option<Object>> {
        let name = self.layout.encode(key)?;
        for _ in 0..TRIES_MAX {
            let fd = match self.dir.open_file(&name, OFlag::empty()) {
                Ok(fd) => fd,
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(None),
                Err(errno) => return Err(io_error("open", self.dir.path().join(name))(errno)),
            };
            let stat = stat_fd(fd.as_fd()).map_err(io_error("statx", self.dir.path().join(&name)))?;
            if !stat.is_regular {
                return Ok(None);
            }
            if stat.bytes > OBJECT_BYTES_MAX {
                return Err(Error::TooLarge { bytes: stat.bytes, limit: OBJECT_BYTES_MAX });
            }
            let read = self.read_file(&name, fd.into(), &stat);
            let at = io_error("statx", self.dir.path().join(&name));
            if is_same(&self.dir, &name, &stat).map_err(at)? {
                return read.map(Some);
            }
        }
        Err(Error::io("read", self.dir.path().join(name), Errno::ESTALE))
    }

    fn read_file(&self, name: &str, file: File, stat: &FileStat) -> Result<Object> {
        let at = |error: std::io::Error| Error::file("read", self.dir.path().join(name), &error);
        let mut raw = [0; STAMP_BYTES];
        let len = get_attribute(file.as_fd(), STAMP_NAME, &mut raw)
            .map_err(io_error("getxattr", self.dir.path().join(name)))?;
        let stamp = len.and_then(|len| Stamp::parse(&raw[..len]));
        let mut payload = Vec::with_capacity(stat.bytes as usize);
        file.take(stat.bytes).read_to_end(&mut payload).map_err(at)?;
        let (bytes, checksum) = (payload.len() as u64, checksum(&payload));
        let expected = stamp.map_or(stat.bytes, |stamp| stamp.bytes());
        if bytes != expected {
            return Err(Error::Damaged { path: name.into(), expected, found: bytes });
        }
        if stamp.is_some_and(|stamp| stamp.checksum() != checksum) {
            return Err(Error::Corrupt { path: name.into() });
        }
        Ok(Object { payload, checksum, is_stamped: stamp.is_some(), modified_ns: stat.modified_ns })
    }
}
