//! The disk: a FUSE file system with one file, [`IMAGE_NAME`], that logs what is written to it and flushed, and makes trouble
//! when it is told to (see [`crate::trouble`]).
//!
//! ```text
//! ext4, xfs -> loop device (direct I/O) -> FUSE -> backing file
//!                                            \---> log
//! ```
//! It runs in a process of its own (`saltern-power-disk`), and ends when its standard input does: were it a thread of the
//! test, a killed test would wait for ever for a disk that has died with it. Needs `/dev/fuse` and root.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;

use crate::log::LogWriter;
use crate::trouble::{Call, Met, Trouble, Troubles};

/// The file that is the disk.
pub const IMAGE_NAME: &str = "image";
const IMAGE_INODE: INodeNo = INodeNo(2);
/// Requests that are served at a time: those that are delayed hold up no others.
const THREADS: usize = 16;

const ATTRIBUTES_VALID: Duration = Duration::from_secs(3600);

struct Disk {
    backing: File,
    bytes: u64,
    /// `None` where nobody wants one.
    log: Option<Mutex<LogWriter>>,
    troubles: Arc<Troubles>,
}

impl Disk {
    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let (kind, perm, size) = match inode {
            IMAGE_INODE => (FileType::RegularFile, 0o600, self.bytes),
            _ => (FileType::Directory, 0o700, 0),
        };
        FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn take_write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        // Under the lock, so that the order of the log is the order in which the backing file changes.
        let log = self.log.as_ref().map(|log| log.lock());
        self.backing.write_all_at(data, offset)?;
        log.map_or(Ok(()), |mut log| log.write(offset, data))
    }
}

impl Disk {
    fn flip(&self, met: &Met<'_>, bytes: &mut [u8]) {
        if met.trouble == Some(Trouble::Flip) && !bytes.is_empty() {
            let at = self.troubles.number(bytes.len());
            bytes[at] ^= 1 << self.troubles.number(8);
        }
    }
}

fn errno(error: &io::Error) -> Errno {
    eprintln!("the disk failed: {error}");
    Errno::EIO
}

impl Filesystem for Disk {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Without it the loop device has one request in flight at a time.
        let _ = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO);
        Ok(())
    }

    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == IMAGE_NAME {
            reply.entry(&ATTRIBUTES_VALID, &self.attributes(IMAGE_INODE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&ATTRIBUTES_VALID, &self.attributes(ino));
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match size {
            Some(bytes) if bytes != self.bytes => reply.error(Errno::EPERM),
            _ => reply.attr(&ATTRIBUTES_VALID, &self.attributes(ino)),
        }
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Nothing between the loop device and the log may keep a write for later.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let met = self.troubles.meet(Call::Read);
        if let Some(number) = met.error() {
            return reply.error(Errno::from_i32(number));
        }
        let len = u64::from(size).min(self.bytes.saturating_sub(offset));
        let mut bytes = vec![0; len as usize];
        if let Err(error) = self.backing.read_exact_at(&mut bytes, offset) {
            return reply.error(errno(&error));
        }
        self.flip(&met, &mut bytes);
        reply.data(&bytes);
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let met = self.troubles.meet(Call::Write);
        if let Some(number) = met.error() {
            return reply.error(Errno::from_i32(number));
        }
        match self.take_write(offset, data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let met = self.troubles.meet(Call::Sync);
        if let Some(number) = met.error() {
            return reply.error(Errno::from_i32(number));
        }
        match self.log.as_ref().map_or(Ok(()), |log| log.lock().flush()) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(&error)),
        }
    }
}

/// Mounts the disk and serves it until standard input ends. Prints a line when it is there, and takes commands. Where there is no
/// directory for it, nothing is logged.
///
/// # Errors
/// When the files or the mount cannot be had.
pub fn serve(mount_point: &Path, backing: &Path, log_dir: Option<&Path>) -> io::Result<()> {
    let backing = File::options().read(true).write(true).open(backing)?;
    let bytes = backing.metadata()?.len();
    let troubles = Arc::new(Troubles::default());
    let log = log_dir.map(LogWriter::create).transpose()?.map(Mutex::new);
    let disk = Disk { backing, bytes, log, troubles: troubles.clone() };
    let mut config = fuser::Config::default();
    config.n_threads = Some(THREADS);
    config.mount_options = vec![MountOption::FSName("saltern-power".into())];
    let session = fuser::Session::new(disk, mount_point, &config)?.spawn()?;
    // The owner has to end its I/O before it closes the pipe; the kernel sees to that when it is killed.
    let served = troubles.take_commands();
    drop(session);
    served
}
