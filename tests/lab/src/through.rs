//! A FUSE file system that passes everything through to a directory, and makes trouble when it is told to (see
//! [`saltern_power::trouble`]). Nothing is cached, so each call of the engine is one that can meet trouble.
//!
//! ```text
//! engine -> FUSE (direct I/O) -> this process -> directory
//! ```

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use nix::fcntl::{AT_FDCWD, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use parking_lot::Mutex;
use rustix::fs::XattrFlags;
use saltern_power::trouble::{Call, Met, Trouble, Troubles};

/// Nothing is remembered by the kernel.
const VALID: Duration = Duration::ZERO;

/// Requests that are served at a time: those that are delayed hold up no others.
const THREADS: usize = 16;

/// What is not passed on: nothing here goes around the page cache, and the links of `/proc` have to be followed.
const DROPPED_FLAGS: i32 = nix::libc::O_DIRECT | nix::libc::O_NOFOLLOW | nix::libc::O_CREAT | nix::libc::O_EXCL;

struct Node {
    fd: Arc<OwnedFd>,
    lookups: u64,
}

struct Through {
    nodes: Mutex<HashMap<u64, Node>>,
    files: Mutex<HashMap<u64, Arc<File>>>,
    next_file: AtomicU64,
    troubles: Arc<Troubles>,
}

type Answer<T> = Result<T, Errno>;

fn errno(error: impl Into<io::Error>) -> Errno {
    Errno::from_i32(error.into().raw_os_error().unwrap_or(nix::libc::EIO))
}

fn attributes(ino: INodeNo, stat: &FileStat) -> FileAttr {
    let time = |seconds: i64, nanoseconds: i64| {
        UNIX_EPOCH + Duration::new(seconds.try_into().unwrap_or(0), nanoseconds.try_into().unwrap_or(0))
    };
    let kind = match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFDIR => FileType::Directory,
        SFlag::S_IFLNK => FileType::Symlink,
        _ => FileType::RegularFile,
    };
    FileAttr {
        ino,
        size: stat.st_size.cast_unsigned(),
        blocks: stat.st_blocks.cast_unsigned(),
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        crtime: UNIX_EPOCH,
        kind,
        perm: (stat.st_mode & 0o7777) as u16,
        nlink: stat.st_nlink as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Through {
    fn meet(&self, call: Call) -> Answer<Met<'_>> {
        let met = self.troubles.meet(call);
        met.error().map_or(Ok(met), |number| Err(Errno::from_i32(number)))
    }

    fn node(&self, ino: INodeNo) -> Answer<Arc<OwnedFd>> {
        self.nodes.lock().get(&ino.0).map(|node| node.fd.clone()).ok_or(Errno::ESTALE)
    }

    /// A path that leads to the file itself, whatever it is called now.
    fn path(&self, ino: INodeNo) -> Answer<PathBuf> {
        Ok(PathBuf::from(format!("/proc/self/fd/{}", self.node(ino)?.as_raw_fd())))
    }

    /// Looks a name up, and remembers its file for the kernel.
    fn find(&self, parent: INodeNo, name: &OsStr) -> Answer<FileAttr> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&*self.node(parent)?, name, flags, Mode::empty()).map_err(errno)?;
        let stat = fstat(&fd).map_err(errno)?;
        let mut nodes = self.nodes.lock();
        nodes.entry(stat.st_ino).or_insert(Node { fd: Arc::new(fd), lookups: 0 }).lookups += 1;
        Ok(attributes(INodeNo(stat.st_ino), &stat))
    }

    fn stat(&self, ino: INodeNo) -> Answer<FileAttr> {
        let stat = fstat(&*self.node(ino)?).map_err(errno)?;
        Ok(attributes(ino, &stat))
    }

    fn keep(&self, file: File) -> FileHandle {
        let number = self.next_file.fetch_add(1, Ordering::Relaxed);
        self.files.lock().insert(number, Arc::new(file));
        FileHandle(number)
    }

    fn file(&self, handle: FileHandle) -> Answer<Arc<File>> {
        self.files.lock().get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    fn open_again(&self, ino: INodeNo, flags: i32) -> Answer<File> {
        let flags = OFlag::from_bits_retain((flags & !DROPPED_FLAGS) | nix::libc::O_CLOEXEC);
        Ok(openat(AT_FDCWD, &self.path(ino)?, flags, Mode::empty()).map_err(errno)?.into())
    }

    fn read_bytes(&self, handle: FileHandle, offset: u64, size: u32) -> Answer<Vec<u8>> {
        let met = self.meet(Call::Read)?;
        let mut bytes = vec![0; size as usize];
        let mut len = 0;
        let file = self.file(handle)?;
        while len < bytes.len() {
            match file.read_at(&mut bytes[len..], offset + len as u64).map_err(errno)? {
                0 => break,
                read => len += read,
            }
        }
        match met.trouble {
            Some(Trouble::Short) if len > 1 => len = 1 + self.troubles.number(len - 1),
            Some(Trouble::Flip) if len > 0 => {
                let at = self.troubles.number(len);
                bytes[at] ^= 1 << self.troubles.number(8);
            }
            _ => {}
        }
        bytes.truncate(len);
        Ok(bytes)
    }

    fn write_bytes(&self, handle: FileHandle, offset: u64, data: &[u8]) -> Answer<u32> {
        let met = self.meet(Call::Write)?;
        let file = self.file(handle)?;
        match met.trouble {
            Some(Trouble::Flip) if !data.is_empty() => {
                let mut data = data.to_vec();
                let at = self.troubles.number(data.len());
                data[at] ^= 1 << self.troubles.number(8);
                file.write_all_at(&data, offset).map_err(errno)?;
            }
            _ => file.write_all_at(data, offset).map_err(errno)?,
        }
        Ok(data.len() as u32)
    }

    fn sync(&self, sync: impl FnOnce() -> io::Result<()>, reply: ReplyEmpty) {
        answer_empty(self.meet(Call::Sync).and_then(|_met| sync().map_err(errno)), reply);
    }

    fn change(&self, call: Call, change: impl FnOnce() -> Answer<()>, reply: ReplyEmpty) {
        answer_empty(self.meet(call).and_then(|_met| change()), reply);
    }
}

fn answer_empty(answer: Answer<()>, reply: ReplyEmpty) {
    match answer {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn answer_attr(answer: Answer<FileAttr>, reply: ReplyAttr) {
    match answer {
        Ok(attr) => reply.attr(&VALID, &attr),
        Err(error) => reply.error(error),
    }
}

fn answer_entry(answer: Answer<FileAttr>, reply: ReplyEntry) {
    match answer {
        Ok(attr) => reply.entry(&VALID, &attr, Generation(0)),
        Err(error) => reply.error(error),
    }
}

const HOW: FopenFlags = FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);

impl Filesystem for Through {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        answer_entry(self.meet(Call::Stat).and_then(|_met| self.find(parent, name)), reply);
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        let mut nodes = self.nodes.lock();
        if let Some(node) = nodes.get_mut(&ino.0) {
            node.lookups = node.lookups.saturating_sub(nlookup);
            if node.lookups == 0 {
                nodes.remove(&ino.0);
            }
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        answer_attr(self.meet(Call::Stat).and_then(|_met| self.stat(ino)), reply);
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = || {
            let _met = self.meet(Call::Attribute)?;
            if mode.is_some() || size.is_some() {
                let file = match fh {
                    Some(handle) => self.file(handle)?,
                    None => Arc::new(self.open_again(ino, nix::libc::O_WRONLY)?),
                };
                if let Some(bytes) = size {
                    file.set_len(bytes).map_err(errno)?;
                }
                if let Some(mode) = mode {
                    fchmod(file.as_fd(), Mode::from_bits_truncate(mode)).map_err(errno)?;
                }
            }
            self.stat(ino)
        };
        answer_attr(set(), reply);
    }

    fn mkdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let make = || {
            let _met = self.meet(Call::Create)?;
            mkdirat(&*self.node(parent)?, name, Mode::from_bits_truncate(mode)).map_err(errno)?;
            self.find(parent, name)
        };
        answer_entry(make(), reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let remove = || unlinkat(&*self.node(parent)?, name, UnlinkatFlags::NoRemoveDir).map_err(errno);
        self.change(Call::Unlink, remove, reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let remove = || unlinkat(&*self.node(parent)?, name, UnlinkatFlags::RemoveDir).map_err(errno);
        self.change(Call::Unlink, remove, reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let rename = || renameat(&*self.node(parent)?, name, &*self.node(newparent)?, newname).map_err(errno);
        self.change(Call::Rename, rename, reply);
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.meet(Call::Open).and_then(|_met| self.open_again(ino, flags.0)) {
            Ok(file) => reply.opened(self.keep(file), HOW),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.read_bytes(fh, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.write_bytes(fh, offset, data) {
            Ok(written) => reply.written(written),
            Err(error) => reply.error(error),
        }
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.files.lock().remove(&fh.0);
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        // What is below need not survive: only the answer counts.
        self.sync(|| self.file(fh).map(drop).map_err(|_| io::Error::from_raw_os_error(nix::libc::EBADF)), reply);
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync(|| Ok(()), reply);
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.meet(Call::List).and_then(|_met| self.path(ino));
        let entries = listed.and_then(|path| {
            let list = || std::fs::read_dir(path)?.collect::<io::Result<Vec<_>>>();
            list().map_err(errno)
        });
        let mut entries = match entries {
            Ok(entries) => entries,
            Err(error) => return reply.error(error),
        };
        entries.sort_by_key(|entry| entry.file_name());
        for (at, entry) in entries.iter().enumerate().skip(offset as usize) {
            use std::os::unix::fs::DirEntryExt;
            let kind = entry.file_type().ok().and_then(FileType::from_std).unwrap_or(FileType::RegularFile);
            if reply.add(INodeNo(entry.ino()), at as u64 + 1, kind, entry.file_name()) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let met = self.meet(Call::Room).and_then(|_met| self.node(ino));
        match met.and_then(|fd| nix::sys::statvfs::fstatvfs(&*fd).map_err(errno)) {
            Ok(stat) => reply.statfs(
                stat.blocks(),
                stat.blocks_free(),
                stat.blocks_available(),
                stat.files(),
                stat.files_free(),
                stat.block_size() as u32,
                stat.name_max() as u32,
                stat.fragment_size() as u32,
            ),
            Err(error) => reply.error(error),
        }
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let set = || {
            let flags = XattrFlags::from_bits_truncate(flags.cast_unsigned());
            rustix::fs::setxattr(self.path(ino)?, name, value, flags).map_err(errno)
        };
        self.change(Call::Attribute, set, reply);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let get = || {
            let _met = self.meet(Call::Attribute)?;
            let mut value = vec![0; size as usize];
            let len = rustix::fs::getxattr(self.path(ino)?, name, &mut value[..]).map_err(errno)?;
            value.truncate(len);
            Ok((value, len))
        };
        match get() {
            Ok((_, len)) if size == 0 => reply.size(len as u32),
            Ok((value, _)) => reply.data(&value),
            Err(error) => reply.error(error),
        }
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let remove = || rustix::fs::removexattr(self.path(ino)?, name).map_err(errno);
        self.change(Call::Attribute, remove, reply);
    }

    fn create(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let make = || {
            let _met = self.meet(Call::Create)?;
            let kept = (flags & !nix::libc::O_DIRECT) | nix::libc::O_CREAT | nix::libc::O_CLOEXEC;
            let mode = Mode::from_bits_truncate(mode);
            let fd = openat(&*self.node(parent)?, name, OFlag::from_bits_retain(kept), mode).map_err(errno)?;
            Ok((File::from(fd), self.find(parent, name)?))
        };
        match make() {
            Ok((file, attr)) => reply.created(&VALID, &attr, Generation(0), self.keep(file), HOW),
            Err(error) => reply.error(error),
        }
    }
}

/// Mounts the file system over `root` and serves it until standard input ends. Prints a line when it is there, and takes commands.
///
/// # Errors
/// When the directory or the mount cannot be had.
pub fn serve(root: &Path, mount_point: &Path) -> io::Result<()> {
    nix::sys::stat::umask(Mode::empty());
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let fd = Arc::new(openat(AT_FDCWD, root, flags, Mode::empty())?);
    let troubles = Arc::new(Troubles::default());
    let through = Through {
        nodes: Mutex::new(HashMap::from([(INodeNo::ROOT.0, Node { fd, lookups: 1 })])),
        files: Mutex::default(),
        next_file: AtomicU64::new(1),
        troubles: troubles.clone(),
    };
    let mut config = fuser::Config::default();
    config.n_threads = Some(THREADS);
    config.mount_options = vec![MountOption::FSName("saltern-through".into())];
    let session = fuser::Session::new(through, mount_point, &config)?.spawn()?;
    let served = troubles.take_commands();
    drop(session);
    served
}
