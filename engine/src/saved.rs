//! Small files of the engine's own in `.saltern/`: read whole, replaced whole. Those that are text have one [`Envelope`].
//!
//! A file is replaced in this order, so that a crash leaves the old one or the new one:
//! 1. `NAME.new` is made anew (what an earlier crash left there is removed), written and synced;
//! 2. it is renamed to `NAME`;
//! 3. the directory is synced.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};

use crate::integrity::checksum;
use crate::sys::stat_fd;

const OPEN: OFlag = OFlag::O_CLOEXEC.union(OFlag::O_NOFOLLOW).union(OFlag::O_NONBLOCK);
const MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

/// The contents of a file; `None` where there is none. Blocks.
///
/// # Errors
/// What the file system says; `InvalidData` for what is not a file, or longer than `max_bytes`.
pub(crate) fn read(dir: BorrowedFd<'_>, name: &str, max_bytes: u64) -> io::Result<Option<Vec<u8>>> {
    let fd = match openat(dir, name, OPEN | OFlag::O_RDONLY, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::ENOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let stat = stat_fd(fd.as_fd())?;
    let wrong = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    if !stat.is_regular {
        return Err(wrong("not a regular file".into()));
    }
    if stat.bytes > max_bytes {
        return Err(wrong(format!("{} bytes, at most {max_bytes} are expected", stat.bytes)));
    }
    let mut contents = Vec::with_capacity(stat.bytes as usize);
    // The bound holds also where the file grows meanwhile.
    File::from(fd).take(max_bytes).read_to_end(&mut contents)?;
    Ok(Some(contents))
}

/// Replaces a file, or makes it. Blocks for two syncs.
///
/// # Errors
/// What the file system or `write` says; the old file is there then.
pub(crate) fn replace(
    dir: BorrowedFd<'_>,
    name: &str,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    let new = format!("{name}.new");
    remove(dir, &new)?;
    let flags = OPEN | OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
    let mut out = BufWriter::with_capacity(1 << 20, File::from(openat(dir, new.as_str(), flags, MODE)?));
    let written = write(&mut out).and_then(|()| {
        out.flush()?;
        out.get_ref().sync_all()?;
        renameat(dir, new.as_str(), dir, name)?;
        Ok(fsync(dir)?)
    });
    if written.is_err() {
        let _ = remove(dir, &new);
    }
    written
}

/// The first line of a text file, which says what it is and vouches for the rest:
///
/// ```text
/// saltern quotas, version 1, crc64 3a1f...        CRC-64/NVME of the rest, 16 hexadecimal digits
/// ```
#[derive(Debug, Clone, Copy)]
pub(crate) struct Envelope {
    /// How the line begins, up to the version.
    pub(crate) magic: &'static str,
    /// The version that this program writes, and the only one that it reads.
    pub(crate) version: u32,
}

impl Envelope {
    /// The whole file.
    pub(crate) fn seal(self, body: &str) -> String {
        let Self { magic, version } = self;
        format!("{magic}{version}, crc64 {:016x}\n{body}", checksum(body.as_bytes()))
    }

    /// What follows the line; the error says what is wrong with the file.
    pub(crate) fn open(self, contents: &[u8]) -> Result<&str, String> {
        let text = std::str::from_utf8(contents).map_err(|_| "not text")?;
        let (head, body) = text.split_once('\n').ok_or("cut short")?;
        let (version, sum) = head
            .strip_prefix(self.magic)
            .and_then(|rest| rest.split_once(", crc64 "))
            .ok_or_else(|| format!("does not begin with {:?}", self.magic))?;
        let version: u32 = version.parse().map_err(|_| format!("version {version:?} is no number"))?;
        if version != self.version {
            return Err(format!("version {version}, this program knows version {}", self.version));
        }
        if u64::from_str_radix(sum, 16).ok() != Some(checksum(body.as_bytes())) {
            return Err("wrong checksum".into());
        }
        Ok(body)
    }
}

fn remove(dir: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::open_dir;

    #[test]
    fn files_are_replaced_whole_or_not_at_all() {
        let scratch = tempfile::tempdir_in(".").unwrap();
        let dir = open_dir(scratch.path()).unwrap();
        assert_eq!(read(dir.as_fd(), "x", 10).unwrap(), None);
        replace(dir.as_fd(), "x", |out| out.write_all(b"first")).unwrap();
        // What a crash has left.
        std::fs::write(scratch.path().join("x.new"), "half of something longer").unwrap();
        replace(dir.as_fd(), "x", |out| out.write_all(b"second")).unwrap();
        assert_eq!(read(dir.as_fd(), "x", 6).unwrap().unwrap(), b"second");
        assert_eq!(read(dir.as_fd(), "x", 5).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let failed = replace(dir.as_fd(), "x", |out| {
            out.write_all(b"third")?;
            Err(io::Error::other("no more"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "no more");
        assert_eq!(read(dir.as_fd(), "x", 6).unwrap().unwrap(), b"second");
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1, "nothing is left over");
    }

    #[test]
    fn links_and_other_things_are_not_followed() {
        let scratch = tempfile::tempdir_in(".").unwrap();
        let dir = open_dir(scratch.path()).unwrap();
        let outside = scratch.path().join("outside");
        std::fs::write(&outside, "safe").unwrap();
        std::os::unix::fs::symlink(&outside, scratch.path().join("x")).unwrap();
        std::os::unix::fs::symlink(&outside, scratch.path().join("x.new")).unwrap();
        assert!(read(dir.as_fd(), "x", 10).is_err());
        replace(dir.as_fd(), "x", |out| out.write_all(b"new")).unwrap();
        assert_eq!(std::fs::read(&outside).unwrap(), b"safe");
        assert_eq!(read(dir.as_fd(), "x", 10).unwrap().unwrap(), b"new");
        std::fs::create_dir(scratch.path().join("d")).unwrap();
        assert!(read(dir.as_fd(), "d", 10).is_err());
        assert!(replace(dir.as_fd(), "d", |out| out.write_all(b"new")).is_err());
    }
}
