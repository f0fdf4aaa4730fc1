//! What a directory's file system, and the device below it, take: asked once, with files that have no name.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate, openat};
use nix::sys::stat::Mode;
use nix::sys::statfs;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::error::{Error, Result};
use crate::integrity::{STAMP_BYTES, STAMP_NAME};
use crate::status::MediumStatus;
use crate::sys::{remove_attribute, set_attribute, stat_fd};

/// Alignment that every Linux file system with O_DIRECT takes; used where the kernel does not tell.
const DIRECT_ALIGN_FALLBACK: u32 = 4096;

/// `FALLOC_FL_WRITE_ZEROES` (Linux 6.17, linux/falloc.h).
const WRITE_ZEROES: FallocateFlags = FallocateFlags::from_bits_retain(0x80);

/// What the probe of [`WRITE_ZEROES`] asks for: a whole number of any file system's blocks.
const WRITE_ZEROES_PROBE_BYTES: u64 = 64 << 10;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Medium {
    /// `ext4`, `xfs`, ... or the magic number in hexadecimal.
    pub(crate) file_system: String,
    /// How O_DIRECT is taken.
    pub(crate) direct: Direct,
    /// Files can have user attributes.
    pub(crate) has_attributes: bool,
    /// The device makes zeroed, written blocks without being sent zeroes.
    pub(crate) writes_zeroes: bool,
    /// The device's I/O scheduler; `None` where the directory is not directly on a block device.
    pub(crate) scheduler: Option<String>,
    /// It is an ext4 without a journal.
    pub(crate) lacks_journal: bool,
}

/// Whether files take O_DIRECT, and what addresses and offsets have to be a multiple of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Direct {
    pub(crate) is_on: bool,
    pub(crate) mem_align: u32,
    pub(crate) offset_align: u32,
}

impl Direct {
    /// Through the page cache.
    pub(crate) const OFF: Self = Self { is_on: false, mem_align: 1, offset_align: 1 };
}

impl Medium {
    /// Asks. `path` is for errors; files are made in `dir`. Where there is no inode for one, `other` is asked instead, a
    /// file of ours: its directory and name. A full disk must not keep a cache from being opened.
    ///
    /// # Errors
    /// [`Error::Io`] where no file can be made.
    pub(crate) fn probe(dir: BorrowedFd<'_>, path: &Path, other: Option<(BorrowedFd<'_>, &str)>) -> Result<Self> {
        let at = |op| move |errno| Error::io(op, path, errno);
        let nameless = |extra| match (nameless(dir, extra), other) {
            (Err(Errno::ENOSPC | Errno::EDQUOT), Some((dir, name))) => {
                openat(dir, name, OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | extra, Mode::empty())
            }
            (made, _) => made,
        };
        let direct = probe_direct(nameless(OFlag::O_DIRECT)).map_err(at("open"))?;
        let file = nameless(OFlag::empty()).map_err(at("create"))?;
        let file_system = file_system_name(dir).map_err(at("fstatfs"))?;
        let device = stat_fd(dir).ok().map(|stat| stat.identity.0);
        Ok(Self {
            lacks_journal: file_system == "ext4" && device.is_some_and(lacks_journal),
            file_system,
            direct,
            has_attributes: probe_attributes(file.as_fd()).map_err(at("setxattr"))?,
            writes_zeroes: is_empty(file.as_fd()) && write_zeroes(file.as_fd(), WRITE_ZEROES_PROBE_BYTES).is_ok(),
            scheduler: device.and_then(scheduler),
        })
    }

    /// For status and tools.
    pub(crate) fn status(&self, path: &Path) -> MediumStatus {
        MediumStatus {
            dir: path.display().to_string(),
            file_system: self.file_system.clone(),
            direct_io: self.direct.is_on,
            memory_align_bytes: self.direct.mem_align,
            offset_align_bytes: self.direct.offset_align,
            user_attributes: self.has_attributes,
            write_zeroes: self.writes_zeroes,
            io_scheduler: self.scheduler.clone(),
            lacks_journal: self.lacks_journal,
        }
    }
}

/// Gives a file `bytes` of zeroed, written blocks: what is written there later is an overwrite.
///
/// # Errors
/// `EOPNOTSUPP` where kernel, file system or device cannot; `ENOSPC`.
pub(crate) fn write_zeroes(file: BorrowedFd<'_>, bytes: u64) -> Result<(), Errno> {
    fallocate(file, WRITE_ZEROES, 0, i64::try_from(bytes).map_err(|_| Errno::EFBIG)?)
}

/// A file of this directory that has no name.
fn nameless(dir: BorrowedFd<'_>, extra: OFlag) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC | extra;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    match openat(dir, ".", flags | OFlag::O_TMPFILE, mode) {
        // File systems without O_TMPFILE (FUSE, some network ones) get a named file that is removed at once.
        Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::ENOENT) => {
            let name = format!("probe-{}", std::process::id());
            let fd = openat(dir, name.as_str(), flags | OFlag::O_CREAT | OFlag::O_NOFOLLOW, mode);
            let _ = unlinkat(dir, name.as_str(), UnlinkatFlags::NoRemoveDir);
            fd
        }
        other => other,
    }
}

fn is_empty(file: BorrowedFd<'_>) -> bool {
    stat_fd(file).is_ok_and(|stat| stat.bytes == 0)
}

fn probe_direct(opened: Result<OwnedFd, Errno>) -> Result<Direct, Errno> {
    match opened {
        Ok(fd) => Ok(match stat_fd(fd.as_fd())?.direct_align {
            Some((0, _) | (_, 0)) => Direct::OFF,
            Some((mem_align, offset_align)) => Direct { is_on: true, mem_align, offset_align },
            None => Direct { is_on: true, mem_align: DIRECT_ALIGN_FALLBACK, offset_align: DIRECT_ALIGN_FALLBACK },
        }),
        Err(Errno::EINVAL) => Ok(Direct::OFF),
        Err(errno) => Err(errno),
    }
}

fn probe_attributes(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    match set_attribute(file, STAMP_NAME, &[0; STAMP_BYTES]) {
        // The file may be one that stays.
        Ok(()) => remove_attribute(file, STAMP_NAME).map(|()| true),
        Err(Errno::EOPNOTSUPP | Errno::EPERM | Errno::ENOSPC) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// The file system's name, or its magic number (`linux/magic.h`) where it has no name here.
fn file_system_name(dir: BorrowedFd<'_>) -> Result<String, Errno> {
    let magic = statfs::fstatfs(dir)?.filesystem_type();
    let known = [
        (statfs::EXT4_SUPER_MAGIC, "ext4"),
        (statfs::XFS_SUPER_MAGIC, "xfs"),
        (statfs::BTRFS_SUPER_MAGIC, "btrfs"),
        (statfs::TMPFS_MAGIC, "tmpfs"),
        (statfs::OVERLAYFS_SUPER_MAGIC, "overlay"),
        (statfs::NFS_SUPER_MAGIC, "nfs"),
        (statfs::FUSE_SUPER_MAGIC, "fuse"),
    ];
    let name = known.iter().find(|(number, _)| *number == magic).map(|(_, name)| (*name).to_string());
    Ok(name.unwrap_or_else(|| format!("0x{:x}", magic.0)))
}

/// The scheduler of a block device, given as `FileStat` has it: the name in brackets in `queue/scheduler`.
fn scheduler(device: u64) -> Option<String> {
    let at = format!("/sys/dev/block/{}:{}", device >> 32, device & 0xffff_ffff);
    // A partition's queue is that of its disk.
    let read = |queue: &str| std::fs::read_to_string(format!("{at}/{queue}/scheduler")).ok();
    let text = read("queue").or_else(|| read("../queue"))?;
    chosen(&text).map(str::to_owned)
}

/// Whether the ext4 on a device, given as `FileStat` has it, was made without a journal: the kernel then has no task for it
/// (`Documentation/ABI/testing/sysfs-fs-ext4`, `journal_task`, Linux 4.20). What cannot be asked has one, as is usual.
fn lacks_journal(device: u64) -> bool {
    let link = std::fs::read_link(format!("/sys/dev/block/{}:{}", device >> 32, device & 0xffff_ffff));
    let Some(name) = link.ok().and_then(|path| Some(path.file_name()?.to_owned())) else { return false };
    let task = std::fs::read_to_string(Path::new("/sys/fs/ext4").join(name).join("journal_task"));
    task.is_ok_and(|task| task.trim() == "<none>")
}

/// `mq-deadline` of `none [mq-deadline] kyber bfq`.
fn chosen(schedulers: &str) -> Option<&str> {
    let (_, rest) = schedulers.split_once('[')?;
    Some(rest.split_once(']')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheduler_in_brackets_is_the_one() {
        assert_eq!(chosen("none [mq-deadline] kyber bfq\n"), Some("mq-deadline"));
        assert_eq!(chosen("[none] mq-deadline\n"), Some("none"));
        assert_eq!(chosen("none\n"), None);
    }

    /// Both answers are honest: where the call works the file has blocks and reads as zeroes, and elsewhere the probe
    /// says so. Which it is depends on the device below the build.
    #[test]
    fn written_zeroes_are_there_where_the_probe_says_so() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let at = crate::volume::open_dir(dir.path()).unwrap();
        let medium = Medium::probe(at.as_fd(), dir.path(), None).unwrap();
        let path = dir.path().join("file");
        let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let done = write_zeroes(file.as_fd(), 256 << 10);
        assert_eq!(done.is_ok(), medium.writes_zeroes, "{done:?}");
        let (len, content) = (file.metadata().unwrap().len(), std::fs::read(&path).unwrap());
        match done {
            Ok(()) => assert!(len == 256 << 10 && content.iter().all(|byte| *byte == 0)),
            Err(errno) => assert_eq!((errno, len), (Errno::EOPNOTSUPP, 0)),
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the probe left nothing");
    }
}
