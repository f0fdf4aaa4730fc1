//! The scratch directory of a run: made under a parent, always removed.

use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use tempfile::TempDir;

use crate::error::{Error, Result};

const MIB: u64 = 1 << 20;

/// A directory `saltern-bench-*`, removed with all that is in it on drop.
pub struct Scratch {
    parent: PathBuf,
    dir: TempDir,
}

impl Scratch {
    /// Makes the directory.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be made.
    pub fn create(parent: &Path) -> Result<Self> {
        let parent = parent.canonicalize().map_err(|error| Error::io("open", parent, error))?;
        let dir = tempfile::Builder::new().prefix("saltern-bench-").tempdir_in(&parent);
        let dir = dir.map_err(|error| Error::io("make a directory in", &parent, error))?;
        Ok(Self { parent, dir })
    }

    /// The directory it was made in.
    pub fn parent(&self) -> &Path {
        &self.parent
    }

    /// A path in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Bytes that an ordinary user may still write.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn free_bytes(&self) -> Result<u64> {
        let stat = statvfs(&self.parent).map_err(|errno| Error::io("statvfs", &self.parent, errno))?;
        Ok(stat.blocks_available() * stat.fragment_size())
    }

    /// Checks that there is room.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub fn require(&self, bytes: u64) -> Result<()> {
        let free = self.free_bytes()?;
        if free >= bytes {
            return Ok(());
        }
        let (dir, needed_mib, free_mib) = (self.parent.clone(), bytes.div_ceil(MIB), free / MIB);
        Err(Error::NoSpace { dir, needed_mib, free_mib })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_removed_and_knows_its_room() {
        let parent = crate::test_dir();
        let scratch = Scratch::create(parent.path()).unwrap();
        std::fs::create_dir(scratch.join("a")).unwrap();
        std::fs::write(scratch.join("a/b"), "x").unwrap();
        assert!(scratch.require(1).is_ok());
        assert!(matches!(scratch.require(u64::MAX), Err(Error::NoSpace { .. })));
        drop(scratch);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
        assert!(matches!(Scratch::create(Path::new("/no/such/dir")), Err(Error::Io { .. })));
    }
}
