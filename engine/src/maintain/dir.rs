//! A directory, opened once; everything in it by names relative to that.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, OFlag, OpenHow, RenameFlags, ResolveFlag, openat, openat2, renameat, renameat2};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::io_error;
use crate::error::Result;
use crate::sys::{FileStat, stat_at};
use crate::volume::{self, STATE_DIR, open_dir};

/// How long the I/O of a dead owner is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(10);

const OPEN_DIR: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);
const OPEN_FILE: OFlag = OFlag::O_RDONLY.union(OFlag::O_CLOEXEC).union(OFlag::O_NOFOLLOW).union(OFlag::O_NONBLOCK);

/// See the module.
pub(super) struct Dir {
    path: PathBuf,
    fd: OwnedFd,
}

/// The owner's lock; given back on drop.
pub(super) struct Lock(#[expect(dead_code, reason = "held, not looked at")] Flock<File>);

/// The directory that a name is in.
pub(super) enum Parent<'a> {
    Root(BorrowedFd<'a>),
    Below(OwnedFd),
}

impl AsFd for Parent<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Root(fd) => *fd,
            Self::Below(fd) => fd.as_fd(),
        }
    }
}

impl Dir {
    pub(super) fn open(path: &Path) -> Result<Self> {
        Ok(Self { path: path.into(), fd: open_dir(path)? })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Takes the owner's lock; makes `.saltern` where it is missing.
    pub(super) fn lock(&self) -> Result<Lock> {
        Ok(Lock(volume::lock_directory(self.fd.as_fd(), &self.path, LOCK_WAIT)?))
    }

    /// A descriptor of the directory of the engine's own files; `None` where there is none.
    pub(super) fn state(&self) -> Result<Option<OwnedFd>> {
        match openat(&self.fd, STATE_DIR, OPEN_DIR | OFlag::O_NOFOLLOW, Mode::empty()) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(io_error("open", self.path.join(STATE_DIR))(errno)),
        }
    }

    /// The directory that a name is in, and the name there.
    pub(super) fn parent<'b>(&self, name: &'b str) -> Result<(Parent<'_>, &'b str), Errno> {
        let Some((below, file)) = name.rsplit_once('/') else { return Ok((Parent::Root(self.fd.as_fd()), name)) };
        let how = OpenHow::new()
            .flags(OPEN_DIR)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV);
        Ok((Parent::Below(openat2(&self.fd, below, how)?), file))
    }

    /// As [`Self::parent`], making the directories that are missing.
    pub(super) fn make_parent<'b>(&self, name: &'b str) -> Result<(Parent<'_>, &'b str), Errno> {
        match self.parent(name) {
            Err(Errno::ENOENT) => {}
            other => return other,
        }
        for (at, _) in name.match_indices('/') {
            // Each is opened below the one before it, so that no link is followed on the way.
            let (parent, last) = self.parent(&name[..at])?;
            match mkdirat(&parent, last, Mode::S_IRWXU) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        self.parent(name)
    }

    /// Looks at what has a name; `None` when nothing has.
    pub(super) fn stat(&self, name: &str) -> Result<Option<FileStat>, Errno> {
        match self.parent(name).and_then(|(parent, file)| stat_at(parent.as_fd(), file)) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Opens a file for reading.
    pub(super) fn open_file(&self, name: &str, flags: OFlag) -> Result<OwnedFd, Errno> {
        let (parent, file) = self.parent(name)?;
        openat(&parent, file, OPEN_FILE | flags, Mode::empty())
    }

    /// Renames, unless something has the new name: then it is [`Errno::EEXIST`].
    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), Errno> {
        let ((old_parent, old), (new_parent, new)) = (self.parent(from)?, self.make_parent(to)?);
        match renameat2(&old_parent, old, &new_parent, new, RenameFlags::RENAME_NOREPLACE) {
            // A file system that knows no flags. The lock is held, so nobody who heeds it comes between.
            Err(Errno::EINVAL) => match stat_at(new_parent.as_fd(), new) {
                Ok(_) => Err(Errno::EEXIST),
                Err(Errno::ENOENT) => renameat(&old_parent, old, &new_parent, new),
                Err(errno) => Err(errno),
            },
            other => other,
        }
    }

    /// Removes a file.
    pub(super) fn remove(&self, name: &str) -> Result<(), Errno> {
        let (parent, file) = self.parent(name)?;
        unlinkat(&parent, file, UnlinkatFlags::NoRemoveDir)
    }

    /// Removes a directory, if it is empty.
    pub(super) fn remove_empty(&self, name: &str) -> Result<(), Errno> {
        let (parent, last) = self.parent(name)?;
        match unlinkat(&parent, last, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT | Errno::ENOTEMPTY | Errno::EEXIST) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Makes the names in the directory durable.
    pub(super) fn sync(&self) -> Result<()> {
        nix::unistd::fsync(&self.fd).map_err(io_error("fsync", &self.path))
    }
}
