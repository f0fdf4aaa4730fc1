//! The owner's lock of a volume: `.saltern/lock`, an flock that holds the owner's pid as text.

use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, openat};
use nix::sys::stat::{Mode, fstat};

use super::directory::{FILE_MODE, OPEN_FILE, STATE_DIR, own_dir};
use crate::error::{Error, Result};

pub(super) const LOCK_FILE: &str = "lock";

/// The kernel's table of locks.
const LOCKS: &str = "/proc/locks";

/// How often a dead owner's lock is tried again.
const LOCK_RETRY: Duration = Duration::from_millis(2);

/// Takes the owner's lock of a directory that is not opened as a volume, making `.saltern` where it is missing.
///
/// # Errors
/// As [`take_lock`].
pub(crate) fn lock_directory(dir: BorrowedFd<'_>, path: &Path, wait: Duration) -> Result<Flock<std::fs::File>> {
    let state = own_dir(dir, STATE_DIR).map_err(|errno| Error::io("mkdir", path.join(STATE_DIR), errno))?;
    take_lock(state.as_fd(), path, wait)
}

/// Who has the lock, if anybody. Asks the kernel's table instead of trying the lock: an engine that starts at that moment would be
/// refused.
pub(super) fn owner(state: BorrowedFd<'_>, path: &Path) -> Result<Option<String>> {
    let lock_path = || path.join(STATE_DIR).join(LOCK_FILE);
    let fd = match openat(state, LOCK_FILE, OPEN_FILE | OFlag::O_RDONLY, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::ENOENT) => return Ok(None),
        Err(errno) => return Err(Error::io("open", lock_path(), errno)),
    };
    let inode = fstat(&fd).map_err(|errno| Error::io("fstat", lock_path(), errno))?.st_ino;
    let locks = std::fs::read_to_string(LOCKS).map_err(|error| Error::file("read", LOCKS, &error))?;
    let is_held = locks.lines().any(|line| is_flock_of(line, inode));
    Ok(is_held.then(|| name_owner(read_owner(&mut std::fs::File::from(fd)))))
}

/// Whether a line of the kernel's table (proc_locks(5)) is an flock of this inode. Devices are not compared: there btrfs has
/// other numbers than stat.
fn is_flock_of(line: &str, inode: u64) -> bool {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let of = fields.get(5).and_then(|id| id.rsplit(':').next()).and_then(|inode| inode.parse().ok());
    fields.get(1) == Some(&"FLOCK") && of == Some(inode)
}

fn name_owner(pid: Option<u32>) -> String {
    pid.map_or("another process".into(), |pid| format!("pid {pid}"))
}

/// Takes the owner's lock. The I/O of a killed owner may hold it for a moment: that is waited for.
pub(super) fn take_lock(state: BorrowedFd<'_>, path: &Path, wait: Duration) -> Result<Flock<std::fs::File>> {
    let lock_path = || path.join(STATE_DIR).join(LOCK_FILE);
    let flags = OPEN_FILE | OFlag::O_RDWR | OFlag::O_CREAT;
    let fd = openat(state, LOCK_FILE, flags, FILE_MODE).map_err(|errno| Error::io("open", lock_path(), errno))?;
    let mut file = std::fs::File::from(fd);
    let start = Instant::now();
    let mut lock = loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => break lock,
            Err((returned, Errno::EWOULDBLOCK)) => {
                file = returned;
                let owner = read_owner(&mut file);
                if owner.is_none_or(is_alive) || start.elapsed() >= wait {
                    return Err(Error::VolumeOwned { dir: path.into(), owner: name_owner(owner) });
                }
                std::thread::sleep(LOCK_RETRY);
            }
            Err((_, errno)) => return Err(Error::io("flock", lock_path(), errno)),
        }
    };
    let written = lock
        .set_len(0)
        .and_then(|()| lock.rewind())
        .and_then(|()| lock.write_all(format!("{}\n", std::process::id()).as_bytes()));
    written.map_err(|error| {
        Error::io("write", lock_path(), Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32)))
    })?;
    Ok(lock)
}

fn read_owner(file: &mut std::fs::File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Whether a process of this id runs (a zombie does not: only its kernel side may still hold the lock).
fn is_alive(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The state follows the command's name, which is in parentheses and may hold anything.
    !matches!(stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()), Some('Z' | 'X'))
}
