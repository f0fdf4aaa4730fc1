//! System calls that `nix` does not wrap.

#![expect(unsafe_code, reason = "statx and extended attributes have no safe wrappers in nix")]

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::NixPath;
use nix::errno::Errno;

/// What statx tells of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileStat {
    pub(crate) is_regular: bool,
    pub(crate) bytes: u64,
    /// Time of last modification, in nanoseconds since 1970.
    pub(crate) modified_ns: u64,
    /// Time of the last change of the inode, likewise; of a directory, of any of its names. Nobody can set it.
    pub(crate) changed_ns: u64,
    /// Alignment of memory and of offsets for O_DIRECT; `None` when the kernel does not tell (before 6.1, and on
    /// file systems without the answer), `Some((0, 0))` when the file does not take O_DIRECT.
    pub(crate) direct_align: Option<(u32, u32)>,
    /// Device and inode.
    pub(crate) identity: (u64, u64),
    pub(crate) links: u32,
    pub(crate) owner: u32,
    /// Permission bits.
    pub(crate) mode: u32,
}

const WANTED: u32 = libc::STATX_TYPE
    | libc::STATX_SIZE
    | libc::STATX_MTIME
    | libc::STATX_CTIME
    | libc::STATX_INO
    | libc::STATX_NLINK
    | libc::STATX_UID
    | libc::STATX_MODE;

/// statx of a name in a directory, of a symbolic link itself.
pub(crate) fn stat_at<P: ?Sized + NixPath>(dir: BorrowedFd<'_>, name: &P) -> Result<FileStat, Errno> {
    name.with_nix_path(|name| statx(dir, name, libc::AT_SYMLINK_NOFOLLOW, WANTED))?
}

/// statx of an open file, with its O_DIRECT alignment.
pub(crate) fn stat_fd(fd: BorrowedFd<'_>) -> Result<FileStat, Errno> {
    statx(fd, c"", libc::AT_EMPTY_PATH, WANTED | libc::STATX_DIOALIGN)
}

fn statx(dir: BorrowedFd<'_>, name: &CStr, flags: i32, mask: u32) -> Result<FileStat, Errno> {
    let mut out = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: `name` is a C string, `out` is writable and of the type that the call fills in.
    let result = unsafe { libc::statx(dir.as_raw_fd(), name.as_ptr(), flags, mask, out.as_mut_ptr()) };
    Errno::result(result)?;
    // SAFETY: all-zero is a valid `libc::statx`, and the kernel has filled it in.
    let stat = unsafe { out.assume_init() };
    let since_1970 = |time: libc::statx_timestamp| {
        u64::try_from(time.tv_sec).unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(u64::from(time.tv_nsec))
    };
    Ok(FileStat {
        is_regular: u32::from(stat.stx_mode) & libc::S_IFMT == libc::S_IFREG,
        bytes: stat.stx_size,
        modified_ns: since_1970(stat.stx_mtime),
        changed_ns: since_1970(stat.stx_ctime),
        direct_align: (stat.stx_mask & libc::STATX_DIOALIGN != 0)
            .then_some((stat.stx_dio_mem_align, stat.stx_dio_offset_align)),
        identity: ((u64::from(stat.stx_dev_major) << 32) | u64::from(stat.stx_dev_minor), stat.stx_ino),
        links: stat.stx_nlink,
        owner: stat.stx_uid,
        mode: u32::from(stat.stx_mode) & 0o7777,
    })
}

/// Reads an extended attribute of an open file into `value`; gives its length, or `None` where there is none.
pub(crate) fn get_attribute(fd: BorrowedFd<'_>, name: &CStr, value: &mut [u8]) -> Result<Option<usize>, Errno> {
    // SAFETY: `name` is a C string, and `value` is writable for its length.
    let result = unsafe { libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    match Errno::result(result) {
        Ok(len) => Ok(Some(len as usize)),
        // Longer than asked for: not ours.
        Err(Errno::ENODATA | Errno::EOPNOTSUPP | Errno::ERANGE) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Sets an extended attribute of an open file.
pub(crate) fn set_attribute(fd: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> Result<(), Errno> {
    // SAFETY: `name` is a C string, and `value` is readable for its length.
    let result = unsafe { libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(result).map(drop)
}

/// Removes an extended attribute of an open file, if it is there.
pub(crate) fn remove_attribute(fd: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    // SAFETY: `name` is a C string.
    match Errno::result(unsafe { libc::fremovexattr(fd.as_raw_fd(), name.as_ptr()) }) {
        Ok(_) | Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(()),
        Err(errno) => Err(errno),
    }
}
