//! The one error type of the engine. Every variant says what happened, to what, and what to do next.

use std::path::PathBuf;

use nix::errno::Errno;
use thiserror::Error;

use crate::key::KeyError;
use crate::layout::NameError;

/// What can go wrong, when opening an engine or for one key of a batch.
///
/// Errors are cheap to clone: two stores of one key that became one share the outcome.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum Error {
    /// A configuration value is not usable.
    #[error("configuration: {option}: {reason}")]
    Config {
        /// Name of the field in [`crate::Config`].
        option: &'static str,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// The kernel or the sandbox does not give io_uring as the engine needs it.
    #[error("io_uring is not usable: {cause}; {remedy}")]
    RingUnavailable {
        /// What the kernel said.
        cause: String,
        /// What to set or to install.
        remedy: &'static str,
    },
    /// Another engine owns the directory.
    #[error("{dir} is owned by {owner}; close that engine first, or choose another directory")]
    VolumeOwned {
        /// The volume's directory.
        dir: PathBuf,
        /// The owner as its lock file names it, for example `pid 4711`.
        owner: String,
    },
    /// A directory is not usable as one of several volumes.
    #[error("{dir}: {reason}")]
    Volume {
        /// The volume's directory.
        dir: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The volume that a store was writing to was taken out meanwhile. Store again: its keys go to the other volumes now.
    #[error("{dir} has failed ({reason}); store again, the object will go to another volume")]
    VolumeFailed {
        /// The volume's directory.
        dir: PathBuf,
        /// Why it was taken out.
        reason: String,
    },
    /// The parts do not make a key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The key has no file name in the volume's layout.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Storing the object would pass the capacity, or the disk has no room. Delete or evict, then try again.
    #[error("full: {needed} bytes needed, {free} of {capacity} free; delete or evict objects first")]
    Full {
        /// Bytes that the object needs.
        needed: u64,
        /// Bytes that were free at that moment.
        free: u64,
        /// The limit: the configured capacity, or the disk's size.
        capacity: u64,
    },
    /// Storing the object would pass the quota of its salt. Delete objects of that salt, or raise its quota.
    #[error(
        "over quota: {needed} bytes needed, {free} of the salt's {quota} free; delete objects of it or raise its quota"
    )]
    OverQuota {
        /// Bytes that the object needs.
        needed: u64,
        /// Bytes of the quota that were free at that moment.
        free: u64,
        /// The quota of the object's salt.
        quota: u64,
    },
    /// The object was not written: nobody has asked for it often enough ([`crate::Config::admission`]). Not a failure: it may be offered
    /// again when it is wanted again.
    #[error("not admitted: seen {seen} times of late, {needed} are needed (admission)")]
    NotAdmitted {
        /// How often it was looked up or offered, this time counted.
        seen: u8,
        /// How often it has to be.
        needed: u8,
    },
    /// The file that keeps the quotas is damaged, or of a newer version. No quota is in force, and none can be set.
    #[error("{path}: {reason}; no quota is in force: move the file away, or bring a good one back, and open again")]
    Quotas {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The object is larger than the engine takes; it will never fit.
    #[error("object of {bytes} bytes is larger than max_object_bytes ({limit})")]
    TooLarge {
        /// Size of the object.
        bytes: u64,
        /// [`crate::Config::max_object_bytes`].
        limit: u64,
    },
    /// Too many objects are waiting; wait for tickets, then try again.
    #[error("{limit} objects are queued already (max_queued_objects); wait for tickets to complete")]
    QueueFull {
        /// [`crate::Config::max_queued_objects`].
        limit: usize,
    },
    /// The pool has no contiguous room. Drop buffers, ask for less, or configure a larger pool.
    #[error("no {bytes} contiguous bytes left in the buffer pool of {pool_bytes}; drop buffers or raise pool_bytes")]
    PoolExhausted {
        /// Bytes asked for.
        bytes: usize,
        /// Size of the pool.
        pool_bytes: usize,
    },
    /// There is no such object (a miss).
    #[error("no such object")]
    NotFound,
    /// The object is pinned by lookups, or being loaded, and was not deleted.
    #[error("in use: {pins} pins, {loads} loads in flight; unpin it, or wait for the lease to expire")]
    Pinned {
        /// Live pins.
        pins: u32,
        /// Loads in flight.
        loads: u32,
    },
    /// The buffer does not fit the object. Nothing was written into the buffer.
    #[error("the object has {object_bytes} bytes, the buffer {buffer_bytes}")]
    WrongSize {
        /// Size of the object.
        object_bytes: u64,
        /// Size of the buffer.
        buffer_bytes: u64,
    },
    /// The file is not what the index knows: it was cut, grown or replaced by someone else.
    #[error("{path}: {found} bytes on disk, {expected} expected; the object is treated as a miss")]
    Damaged {
        /// Path relative to the volume.
        path: String,
        /// Bytes that the index has.
        expected: u64,
        /// Bytes that were found.
        found: u64,
    },
    /// The payload does not have the checksum that was stored with it. The object is dropped.
    #[error("{path}: wrong checksum; the object is treated as a miss and removed")]
    Corrupt {
        /// Path relative to the volume.
        path: String,
    },
    /// The machine went down after this file was written, and it has no checksum to be checked by. The object is dropped.
    #[error(
        "{path}: the machine went down since, and there is no checksum; the object is treated as a miss and removed"
    )]
    Unverifiable {
        /// Path relative to the volume.
        path: String,
    },
    /// The volume takes no stores until it is opened again; loads and deletes go on.
    #[error("{dir} is read-only for good: {reason}; look at the disk, then close the engine and open it again")]
    ReadOnly {
        /// The volume's directory.
        dir: PathBuf,
        /// What happened.
        reason: String,
    },
    /// A system call failed.
    #[error("{op} {path}: {}", errno.desc())]
    Io {
        /// The call.
        op: &'static str,
        /// What it was called on.
        path: PathBuf,
        /// What it answered.
        errno: Errno,
    },
    /// A device did not do what was asked of it.
    #[error("{device}: {op}: {reason}")]
    Device {
        /// Its name.
        device: String,
        /// What was to be done.
        op: &'static str,
        /// What it answered.
        reason: String,
    },
    /// The buffer is memory of a device that this engine does not use.
    #[error("memory of a device that is not attached to this engine; call Engine::attach_device first")]
    NotAttached,
    /// The deadline passed. I/O that the kernel still has in hand keeps its buffers until it ends.
    #[error("not done within {deadline_ms} ms")]
    TimedOut {
        /// The configured deadline in milliseconds.
        deadline_ms: u64,
    },
    /// The keys and the buffers given to one call differ in number; nothing was done.
    #[error("{keys} keys but {buffers} buffers in one call; nothing was done")]
    LengthMismatch {
        /// Number of keys.
        keys: usize,
        /// Number of buffers.
        buffers: usize,
    },
    /// The engine is closed or closing.
    #[error("the engine is closed")]
    Closed,
    /// A shard's thread ended by a panic; the engine is unhealthy. Close and reopen it.
    #[error("a shard failed; close the engine and open it again")]
    ShardFailed,
}

impl Error {
    pub(crate) fn io(op: &'static str, path: impl Into<PathBuf>, errno: Errno) -> Self {
        Self::Io { op, path: path.into(), errno }
    }

    /// What the standard library says of a file.
    pub(crate) fn file(op: &'static str, path: impl Into<PathBuf>, error: &std::io::Error) -> Self {
        Self::io(op, path, Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32)))
    }

    pub(crate) fn spawn(thread: &str, error: &std::io::Error) -> Self {
        Self::io("spawn", thread, Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EAGAIN as i32)))
    }

    /// The kernel's error number, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Io { errno, .. } => Some(*errno as i32),
            _ => None,
        }
    }
}

/// Shorthand for results of the engine.
pub type Result<T, E = Error> = std::result::Result<T, E>;
