//! One directory that one engine owns: its lock, its names, and what its file system takes.
//!
//! ```text
//! DIR/<object files, named by the layout>
//! DIR/.saltern/lock          the owner's lock (flock); holds its pid as text
//! DIR/.saltern/running-<id>, closed-<times>, unverified   whether what is found has to be looked at, and checked (see `trust.rs`)
//! DIR/.saltern/volume        who it is among several (see `identity.rs`)
//! DIR/.saltern/quotas        quotas of salts (see `quotas.rs`)
//! DIR/.saltern/index         what it held a while ago, and when that was used (see `snapshot.rs`)
//! DIR/.saltern/status        the status socket (see `serve.rs`)
//! DIR/.saltern/quarantine/   where `saltern verify --repair` moves damaged objects
//! DIR/.saltern/tmp/<n>       unfinished stores; whatever is there at the next start is removed
//! DIR/.saltern/spares/<n>    files of deleted objects, kept to be overwritten; their contents mean nothing
//! ```
//!
//! All names are opened relative to descriptors of these directories and without following symbolic links.
//! Every call here is a plain system call of some microseconds: on a local disk that is cheaper than through the
//! ring, which hands them to worker threads.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, FallocateFlags, Flock, OFlag, OpenHow, ResolveFlag, fallocate, openat, openat2, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::sys::statfs;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::freed::Freed;
use super::health::Health;
use super::lock::{self, LOCK_FILE, take_lock};
use super::medium::{Direct, Medium, write_zeroes};
use super::quarantine::Quarantine;
use super::trust::Trust;
use crate::config::{Config, DirectIo};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::status::MediumStatus;
use crate::sys::{FileStat, stat_at, stat_fd};

/// Everything of the engine's own in a volume.
pub(crate) const STATE_DIR: &str = ".saltern";
/// Unfinished stores, inside [`STATE_DIR`].
pub(crate) const TEMP_DIR: &str = "tmp";
/// Files kept to be overwritten, inside [`STATE_DIR`].
pub(crate) const SPARES_DIR: &str = "spares";

/// File systems on which overwriting a file is cheaper than making one; ARCHITECTURE.md has the measurements. On btrfs,
/// which never overwrites in place, it is not.
const RECYCLING: [&str; 2] = ["ext4", "xfs"];

/// File systems that nobody but this machine writes to, with times of change that tell each change from the one before.
const LOCAL: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// Two changes within so long may have the same time: the kernel's clock for files advances by its tick, 10 ms at most.
const CLOCK_STEP: Duration = Duration::from_millis(25);

/// File systems on which a direct write into blocks that were allocated before costs less CPU than one that allocates: 15 to 30% of a
/// store on ext4, nothing on xfs.
const PREALLOCATING: [&str; 1] = ["ext4"];

const DIR_MODE: Mode = Mode::S_IRWXU;
pub(super) const FILE_MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);
const OPEN_DIR: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);
pub(super) const OPEN_FILE: OFlag = OFlag::O_CLOEXEC.union(OFlag::O_NOFOLLOW).union(OFlag::O_NONBLOCK);

/// An owned directory. Thread-safe; calls block for as long as the file system does.
pub(crate) struct Directory {
    path: PathBuf,
    layout: Layout,
    dir: OwnedFd,
    temp: OwnedFd,
    spares: OwnedFd,
    quarantine: Quarantine,
    recycles: bool,
    writes_zeroes: bool,
    preallocates: bool,
    medium: Medium,
    freed: Freed,
    /// Dropped before the lock.
    pub(crate) trust: Trust,
    lock: Flock<std::fs::File>,
    identity: (u64, u64),
    pub(crate) health: Health,
}

/// Where an unpublished file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Holding {
    /// In `.saltern/tmp`.
    Temp(String),
    /// In `.saltern/spares`.
    Spare(String),
}

/// Where a name lives: in the volume's directory, or in a shard directory below it.
pub(crate) enum Parent<'a> {
    Root(BorrowedFd<'a>),
    Shard(OwnedFd),
}

impl AsFd for Parent<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Root(fd) => *fd,
            Self::Shard(fd) => fd.as_fd(),
        }
    }
}

impl Directory {
    /// Opens or makes the directory, takes the lock, and asks what the file system takes.
    ///
    /// # Errors
    /// [`Error::VolumeOwned`] when another engine has it; [`Error::Io`] with the path.
    pub(crate) fn open(path: &Path, config: &Config) -> Result<Self> {
        let path = path.to_owned();
        let at = |op: &'static str, name: &str| {
            let path = path.join(name);
            move |errno| Error::io(op, path, errno)
        };
        make_dirs(&path)?;
        let dir = openat(AT_FDCWD, &path, OPEN_DIR, Mode::empty()).map_err(at("open", ""))?;
        let state = own_dir(dir.as_fd(), STATE_DIR).map_err(at("mkdir", STATE_DIR))?;
        let lock = take_lock(state.as_fd(), &path, config.lock_wait)?;
        let temp = own_dir(state.as_fd(), TEMP_DIR).map_err(at("mkdir", ".saltern/tmp"))?;
        let spares = own_dir(state.as_fd(), SPARES_DIR).map_err(at("mkdir", ".saltern/spares"))?;
        let mut medium =
            Medium::probe(temp.as_fd(), &path.join(STATE_DIR).join(TEMP_DIR), Some((state.as_fd(), LOCK_FILE)))?;
        if config.direct_io == DirectIo::Off {
            medium.direct = Direct::OFF;
        }
        let FileStat { identity, changed_ns, .. } = stat_fd(dir.as_fd()).map_err(at("statx", ""))?;
        let trust = Trust::begin(state, config.boot_id.as_deref(), changed_ns).map_err(at("mark", STATE_DIR))?;
        Ok(Self {
            layout: config.layout,
            recycles: config.spare_bytes > 0 && RECYCLING.contains(&medium.file_system.as_str()),
            writes_zeroes: config.write_zeroes && medium.writes_zeroes,
            preallocates: medium.direct.is_on && PREALLOCATING.contains(&medium.file_system.as_str()),
            path,
            dir,
            temp,
            spares,
            quarantine: Quarantine::default(),
            medium,
            freed: Freed::new(),
            trust,
            lock,
            identity,
            health: Health::new(),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A descriptor of the directory with a position of its own, for reading its names or syncing it.
    pub(crate) fn reopen(&self) -> Result<OwnedFd> {
        openat(&self.dir, ".", OPEN_DIR, Mode::empty()).map_err(|errno| Error::io("open", &self.path, errno))
    }

    /// A descriptor of the spares' directory. Syncing it makes the renames into it durable, wherever they came from: ext4
    /// and xfs log both sides of a rename in one transaction. (The directory that lost the name may be one of many.)
    pub(crate) fn spares_dir(&self) -> Result<OwnedFd> {
        let at = |errno| Error::io("open", self.path.join(".saltern/spares"), errno);
        openat(&self.spares, ".", OPEN_DIR, Mode::empty()).map_err(at)
    }

    /// A descriptor of the directory of the engine's own files, [`STATE_DIR`].
    pub(crate) fn state_dir(&self) -> Result<OwnedFd> {
        let at = |errno| Error::io("open", self.path.join(STATE_DIR), errno);
        openat(&self.dir, STATE_DIR, OPEN_DIR | OFlag::O_NOFOLLOW, Mode::empty()).map_err(at)
    }

    /// The lock's descriptor, to be registered with rings: it then outlives a killed process for as long as its
    /// requests are in flight, and a successor waits for them.
    pub(crate) fn lock_fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// When files in the spares' directory are clean.
    pub(crate) fn quarantine(&self) -> &Quarantine {
        &self.quarantine
    }

    /// Whether files of deleted objects are kept to be overwritten.
    pub(crate) fn recycles(&self) -> bool {
        self.recycles
    }

    /// Whether new files get written blocks before they are written.
    pub(crate) fn writes_zeroes(&self) -> bool {
        self.writes_zeroes
    }

    /// Whether writing to a new file has to allocate its blocks first.
    pub(crate) fn writes_allocate(&self) -> bool {
        !self.writes_zeroes && !self.preallocates
    }

    /// The device's I/O scheduler.
    pub(crate) fn scheduler(&self) -> Option<&str> {
        self.medium.scheduler.as_deref()
    }

    /// When a name in the directory was changed last, in nanoseconds since 1970, if any later change shows by another time. Blocks for
    /// [`CLOCK_STEP`] at most. Called when nobody uses the directory any more. Not told of layouts with directories of their own, nor of file systems
    /// that may be written to from elsewhere.
    pub(crate) fn last_change_ns(&self) -> Option<u64> {
        if self.layout.is_sharded() || !LOCAL.contains(&self.medium.file_system.as_str()) {
            return None;
        }
        let changed = || stat_fd(self.dir.as_fd()).ok().map(|stat| stat.changed_ns);
        let age =
            |changed_ns: u64| SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_nanos(changed_ns)).ok();
        let wait = CLOCK_STEP.saturating_sub(age(changed()?)?);
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
        // Whole seconds are all that some file systems keep.
        changed().filter(|changed_ns| changed_ns % 1_000_000_000 != 0)
    }

    /// Whether I/O bypasses the page cache.
    pub(crate) fn is_direct(&self) -> bool {
        self.medium.direct.is_on
    }

    /// Whether files can have stamps.
    pub(crate) fn has_attributes(&self) -> bool {
        self.medium.has_attributes
    }

    /// What addresses have to be a multiple of.
    pub(crate) fn mem_align(&self) -> usize {
        self.medium.direct.mem_align as usize
    }

    /// What offsets and lengths have to be a multiple of.
    pub(crate) fn offset_align(&self) -> usize {
        self.medium.direct.offset_align as usize
    }

    pub(crate) fn status(&self) -> MediumStatus {
        self.medium.status(&self.path)
    }

    /// Whether stores are taken; looks at the directory now and then.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] where they are not.
    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.health.wants_look() && self.is_gone() {
            self.health.turn_read_only("the directory is not at its path any more".into());
        }
        self.health.check(&self.path)
    }

    /// A sync has failed: what it was to make durable may be lost, and no later sync will say so.
    pub(crate) fn sync_failed(&self, op: &str, name: &str, errno: Errno) {
        if self.health.turn_read_only(format!("{op} {name} failed: {}", errno.desc())) {
            self.trust.withdraw();
        }
    }

    /// Whether the path still leads to the directory that was opened. After a removal or an unmount I/O goes on
    /// succeeding into nothing.
    pub(crate) fn is_in_place(&self) -> bool {
        self.look_at_path().is_ok_and(|identity| identity == self.identity)
    }

    /// Whether something else, or nothing, is at the path for certain.
    fn is_gone(&self) -> bool {
        match self.look_at_path() {
            Ok(identity) => identity != self.identity,
            Err(errno) => matches!(errno, Errno::ENOENT | Errno::ENOTDIR),
        }
    }

    fn look_at_path(&self) -> Result<(u64, u64), Errno> {
        let fd = nix::fcntl::open(&self.path, OPEN_DIR | OFlag::O_PATH, Mode::empty())?;
        Ok(stat_fd(fd.as_fd())?.identity)
    }

    /// Removes what unfinished stores have left; gives how many there were.
    pub(crate) fn remove_unfinished(&self) -> Result<u64> {
        self.empty(self.temp.as_fd(), TEMP_DIR)
    }

    /// Removes all spares; gives how many there were.
    pub(crate) fn remove_spares(&self) -> Result<u64> {
        self.empty(self.spares.as_fd(), SPARES_DIR)
    }

    fn empty(&self, dir: BorrowedFd<'_>, name: &str) -> Result<u64> {
        let at = |errno| Error::io("readdir", self.path.join(STATE_DIR).join(name), errno);
        let mut listing = nix::dir::Dir::openat(dir, ".", OPEN_DIR, Mode::empty()).map_err(at)?;
        let mut removed = 0;
        for entry in listing.iter() {
            let entry = entry.map_err(at)?;
            let name = entry.file_name();
            if !matches!(name.to_bytes(), b"." | b"..") {
                match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
                    Ok(()) => removed += 1,
                    Err(errno) => tracing::warn!(?name, %errno, "could not remove an unpublished file"),
                }
            }
        }
        Ok(removed)
    }

    /// The directory that a name lives in, and the name there.
    pub(crate) fn parent<'a, 'b>(&'a self, name: &'b str) -> Result<(Parent<'a>, &'b str), Errno> {
        if !self.layout.is_sharded() {
            return Ok((Parent::Root(self.dir.as_fd()), name));
        }
        let Some((shard, file)) = name.rsplit_once('/') else { return Err(Errno::EINVAL) };
        let how = OpenHow::new()
            .flags(OPEN_DIR)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV);
        Ok((Parent::Shard(openat2(&self.dir, shard, how)?), file))
    }

    /// As [`Self::parent`], making the shard directories where they are missing.
    fn make_parent<'a, 'b>(&'a self, name: &'b str) -> Result<(Parent<'a>, &'b str), Errno> {
        match self.parent(name) {
            Err(Errno::ENOENT) => {}
            other => return other,
        }
        for (at, _) in name.match_indices('/') {
            match self.freed.until_given(self.temp.as_fd(), 0, || mkdirat(&self.dir, &name[..at], DIR_MODE)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        self.parent(name)
    }

    fn io_flags(&self) -> OFlag {
        if self.medium.direct.is_on { OPEN_FILE | OFlag::O_DIRECT } else { OPEN_FILE }
    }

    /// Opens an object: for reading, and, where files are recycled, for the overwriting to come.
    pub(crate) fn open_object(&self, name: &str) -> Result<OwnedFd, Errno> {
        let (parent, file) = self.parent(name)?;
        let access = if self.recycles { OFlag::O_RDWR } else { OFlag::O_RDONLY };
        match openat(&parent, file, self.io_flags() | access, Mode::empty()) {
            // Another user's file, or a read-only mount.
            Err(Errno::EACCES | Errno::EROFS) => {
                openat(&parent, file, self.io_flags() | OFlag::O_RDONLY, Mode::empty())
            }
            other => other,
        }
    }

    /// Makes an unfinished object, which will have so many bytes.
    pub(crate) fn create_temp(&self, temp: &str, bytes: u64) -> Result<OwnedFd, Errno> {
        self.freed.until_given(self.temp.as_fd(), bytes, || self.try_create_temp(temp, bytes))
    }

    fn try_create_temp(&self, temp: &str, bytes: u64) -> Result<OwnedFd, Errno> {
        let flags = self.io_flags() | OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
        let fd = openat(&self.temp, temp, flags, FILE_MODE)?;
        let given = match bytes {
            0 => Ok(()),
            _ if self.writes_zeroes => write_zeroes(fd.as_fd(), bytes),
            _ if self.preallocates => fallocate(&fd, FallocateFlags::empty(), 0, bytes as i64),
            _ => Ok(()),
        };
        // Any other error only means that the writes allocate.
        if let Err(errno @ (Errno::ENOSPC | Errno::EDQUOT)) = given {
            let _ = unlinkat(&self.temp, temp, UnlinkatFlags::NoRemoveDir);
            return Err(errno);
        }
        Ok(fd)
    }

    fn holding<'a>(&self, holding: &'a Holding) -> (BorrowedFd<'_>, &'a str) {
        match holding {
            Holding::Temp(name) => (self.temp.as_fd(), name),
            Holding::Spare(name) => (self.spares.as_fd(), name),
        }
    }

    /// Gives a finished object its name; atomic. Returns the directory it is in.
    pub(crate) fn publish(&self, from: &Holding, name: &str) -> Result<Parent<'_>, Errno> {
        let (dir, unpublished) = self.holding(from);
        let (parent, file) = self.make_parent(name)?;
        self.freed.until_given(self.temp.as_fd(), 0, || renameat(dir, unpublished, &parent, file))?;
        Ok(parent)
    }

    /// Removes an unpublished file.
    pub(crate) fn discard(&self, from: &Holding) -> Result<(), Errno> {
        let (dir, name) = self.holding(from);
        unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)
    }

    /// Takes an object's name away and keeps its file as a spare.
    pub(crate) fn retire(&self, name: &str, spare: &str) -> Result<(), Errno> {
        let (parent, file) = self.parent(name)?;
        renameat(parent, file, &self.spares, spare)
    }

    /// Opens a spare for overwriting.
    pub(crate) fn open_spare(&self, spare: &str) -> Result<OwnedFd, Errno> {
        openat(&self.spares, spare, self.io_flags() | OFlag::O_RDWR, Mode::empty())
    }

    /// The spares of an earlier run, with their sizes, all clean: their directory is synced. Blocks for that.
    pub(crate) fn collect_spares(&self) -> Result<Vec<(String, u64)>> {
        let at = |op: &'static str| move |errno| Error::io(op, self.path.join(".saltern/spares"), errno);
        let mut listing = nix::dir::Dir::openat(&self.spares, ".", OPEN_DIR, Mode::empty()).map_err(at("readdir"))?;
        let mut spares = Vec::new();
        for entry in listing.iter() {
            let entry = entry.map_err(at("readdir"))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            match (name.to_str(), stat_at(self.spares.as_fd(), name)) {
                (Ok(name), Ok(stat)) if stat.is_regular => spares.push((name.to_string(), stat.bytes)),
                _ => tracing::warn!(?name, "not a spare; left alone"),
            }
        }
        if !spares.is_empty() {
            nix::unistd::fsync(&self.spares).map_err(at("fsync"))?;
        }
        Ok(spares)
    }

    /// Removes an object's file.
    pub(crate) fn remove(&self, name: &str) -> Result<(), Errno> {
        let (parent, file) = self.parent(name)?;
        unlinkat(parent, file, UnlinkatFlags::NoRemoveDir)
    }

    /// Looks at an object's file; `None` when there is no regular file of that name.
    pub(crate) fn stat(&self, name: &str) -> Result<Option<FileStat>, Errno> {
        let found = self.parent(name).and_then(|(parent, file)| stat_at(parent.as_fd(), file));
        match found {
            Ok(stat) => Ok(stat.is_regular.then_some(stat)),
            // No such name, or a shard directory that is missing, a link, or something else.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Bytes free for the engine, and the size of the file system.
    pub(crate) fn free_bytes(&self) -> Result<(u64, u64), Errno> {
        let stat = statfs::fstatfs(&self.dir)?;
        let block = u64::try_from(stat.block_size()).unwrap_or(0);
        Ok((stat.blocks_available().saturating_mul(block), stat.blocks().saturating_mul(block)))
    }
}

/// Makes the directory and its missing parents, private to this user.
fn make_dirs(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(DIR_MODE.bits()).create(path).map_err(|error| {
        let errno = Errno::from_raw(error.raw_os_error().unwrap_or(Errno::ENOTDIR as i32));
        Error::io("mkdir", path, errno)
    })
}

/// Opens a directory of ours, making it where it is missing; a symbolic link in its place is refused.
pub(super) fn own_dir(parent: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    match mkdirat(parent, name, DIR_MODE) {
        Ok(()) | Err(Errno::EEXIST) => openat(parent, name, OPEN_DIR | OFlag::O_NOFOLLOW, Mode::empty()),
        Err(errno) => Err(errno),
    }
}

/// Opens a directory for looking only.
pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd> {
    openat(AT_FDCWD, path, OPEN_DIR, Mode::empty()).map_err(|errno| Error::io("open", path, errno))
}

/// The status of a directory that is not opened as a volume; leaves nothing behind.
pub(crate) fn survey_status(path: &Path) -> Result<MediumStatus> {
    let dir = open_dir(path)?;
    Ok(Medium::probe(dir.as_fd(), path, None)?.status(path))
}

/// Who owns a directory, if anybody.
pub(crate) fn owner(path: &Path) -> Result<Option<String>> {
    open_dir(path)?;
    match open_dir(&path.join(STATE_DIR)) {
        Ok(state) => lock::owner(state.as_fd(), path),
        Err(Error::Io { errno: Errno::ENOENT, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
