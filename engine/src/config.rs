//! What an engine can be told, with a default and a limit for each value.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::admission::Admission;
use crate::device::sim::SimDevice;
use crate::error::{Error, Result};
use crate::eviction::PolicyKind;
use crate::integrity::Integrity;
use crate::layout::Layout;
use crate::steps::Steps;

/// Smallest and largest segment: a whole number of any device's blocks, and what one request carries well.
pub const SEGMENT_BYTES_RANGE: (usize, usize) = (64 << 10, 8 << 20);

/// Fewest and most requests that one shard can have in flight: below, classes could not share it; the completion
/// queue is sized for the most.
pub const DEPTH_RANGE: (usize, usize) = (8, 4096);

/// Most shards of one engine.
pub const SHARDS_MAX: usize = 64;

/// Most volumes of one engine: each has at least one shard.
pub const VOLUMES_MAX: usize = SHARDS_MAX;

/// What a store waits for before it is acknowledged, and so what an acknowledged object survives.
///
/// | | process killed | kernel crash or power cut |
/// |---|---|---|
/// | `None` | survives | may be lost, never torn (ext4, xfs; with barriers on) |
/// | `Data` | survives | its bytes are on the device before its name is; the newest names may be lost |
/// | `Full` | survives | survives |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Durability {
    /// Publish when the writes have completed; no sync.
    #[default]
    None,
    /// `fdatasync` of the object before it is published.
    Data,
    /// As `Data`, and `fsync` of the directory after publishing.
    Full,
}

/// Whether to bypass the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DirectIo {
    /// O_DIRECT where the file system takes it, else buffered; `status` says which.
    #[default]
    Auto,
    /// Always through the page cache.
    Off,
}

/// Whether the device's I/O scheduler is told that loads go before stores. The engine orders its own requests in any case; this is for
/// what waits in the scheduler, and for other processes. `status` says whether it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum IoPriority {
    /// Stores get the lowest best-effort level, where the scheduler knows levels (`bfq`).
    #[default]
    Auto,
    /// Stores get the idle class, where the scheduler knows classes (`bfq`, `mq-deadline`): they wait while anybody else has
    /// requests for the device, on `mq-deadline` up to its `prio_aging_expire` (10 s). Keep their deadline above that.
    StoresIdle,
    /// Never.
    Off,
}

/// How the index learns what the directory holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Discovery {
    /// By a scan at open. After it, what the index lacks does not exist: nobody else writes to the directory.
    #[default]
    Scan,
    /// By a scan, and by asking the disk for each key that the index lacks: other programs may write to the directory.
    ScanAndAsk,
    /// By asking the disk alone. The pass over the directory at open only counts what is there, so that usage and
    /// capacity are right; listeners hear of an object when somebody has asked for it, and a quarter of the memory is
    /// needed. Where the host evicts, objects that nobody asks for are never evicted: use `ScanAndAsk` there.
    Ask,
}

impl Discovery {
    /// Whether a key that the index lacks may be on disk, even after the pass over the directory.
    pub fn asks(self) -> bool {
        self != Self::Scan
    }
}

/// Who decides what goes when room is needed.
///
/// | | a store that would pass the capacity, or its salt's quota |
/// |---|---|
/// | `Host` | is refused; the host deletes |
/// | `Engine` | makes room: others go first, by the policy, or, for the quota, the salt's own oldest |
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Eviction {
    /// The host, by deleting.
    #[default]
    Host,
    /// The engine. Needs a capacity.
    Engine {
        /// In which order objects go.
        policy: PolicyKind,
        /// The share of the capacity from which the engine evicts, stores in flight counted; more than 0, at most 1.
        watermark: f64,
        /// The share of the capacity by which it then goes below the watermark; at most `watermark`.
        ratio: f64,
    },
}

impl Eviction {
    /// The engine evicts by this policy, from 0.9 of the capacity down to 0.8.
    pub fn engine(policy: PolicyKind) -> Self {
        Self::Engine { policy, watermark: 0.9, ratio: 0.1 }
    }

    fn validate(&self, capacity: Option<u64>, discovery: Discovery) -> Result<()> {
        let Self::Engine { watermark, ratio, .. } = *self else { return Ok(()) };
        let fail = |reason: String| Err(Error::Config { option: "eviction", reason });
        if capacity.is_none() {
            return fail("the engine evicts by shares of capacity_bytes: set that, too".into());
        }
        if discovery == Discovery::Ask {
            return fail("the engine can evict only what it knows: let discovery be scan or scan-and-ask".into());
        }
        if !(watermark > 0.0 && watermark <= 1.0) {
            return fail(format!("watermark {watermark} is not more than 0 and at most 1"));
        }
        if !(ratio >= 0.0 && ratio <= watermark) {
            return fail(format!("ratio {ratio} is not in 0..={watermark}, the watermark"));
        }
        Ok(())
    }
}

/// Everything that [`crate::Engine::open`] can be told. [`Config::new`] fills in the defaults.
///
/// ```
/// let mut config = saltern::Config::new("/var/cache/kv");
/// config.capacity_bytes = Some(100 << 30);
/// config.shards = 2;
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Config {
    /// The volume's directory; created (0700) where it does not exist.
    pub dir: PathBuf,
    /// Further volumes: a directory each, best on a device of its own. Each key has its home on one of them all, whatever their order;
    /// when one is added, what is there is still found, and only its share of what comes goes there. Default: none.
    pub more_dirs: Vec<PathBuf>,
    /// Whether every volume has to open. If not, the engine goes on without those that cannot, and `status` names them; a directory
    /// whose file system is not mounted opens all the same, and is empty. Default true.
    pub require_volumes: bool,
    /// How keys become file names. Default: LMCache 0.5.6's `fs` layout.
    pub layout: Layout,
    /// Most bytes of objects on all volumes together, counting what is on disk from earlier runs. Default: no limit.
    pub capacity_bytes: Option<u64>,
    /// Most bytes of objects on each volume. What does not fit on a key's own volume goes to the next that has room. Default: no
    /// limit but `capacity_bytes` and what the file systems hold.
    pub volume_capacity_bytes: Option<u64>,
    /// Who decides what goes when room is needed. Default: the host, by deleting.
    pub eviction: Eviction,
    /// Which of the objects that are offered are written. Default: all that fit.
    pub admission: Admission,
    /// Most bytes of objects of a salt that has no quota of its own ([`crate::Engine::set_quota`]). Default: no limit.
    pub default_quota_bytes: Option<u64>,
    /// Threads with a ring each, divided among the volumes, of which each gets at least one (fewer are rounded up); a key belongs to one
    /// of them. Default 1.
    pub shards: usize,
    /// Pin each shard's thread to one of the CPUs that the process may use. Default true.
    pub pin_shards: bool,
    /// Size of the pool of page-aligned host buffers, the shards' bounce buffers included. Default 64 MiB.
    pub pool_bytes: usize,
    /// Most requests in flight on one shard. Default 64.
    pub depth: usize,
    /// Objects are read and written in pieces of this size, in parallel. Default 1 MiB.
    pub segment_bytes: usize,
    /// Most bytes of loads in flight on one shard (one object is always let through). Default 32 MiB.
    pub load_inflight_bytes: usize,
    /// Most bytes of stores in flight on one shard (one object is always let through). Default 32 MiB.
    pub store_inflight_bytes: usize,
    /// Largest object. Default 64 MiB.
    pub max_object_bytes: u64,
    /// Most objects queued or in flight in the whole engine; more are refused as `QueueFull`. Default 65,536.
    pub max_queued_objects: usize,
    /// How long a pin holds an object against deletion, unless it is pinned again. Default 60 s.
    pub pin_lease: Duration,
    /// A store's ticket completes after this time at the latest. Default 30 s.
    pub store_deadline: Duration,
    /// A load's or a delete's ticket completes after this time at the latest. Default 10 s.
    pub load_deadline: Duration,
    /// A lookup that has to ask the disk completes after this time at the latest, as a miss. Default 2 s.
    pub lookup_deadline: Duration,
    /// What an acknowledged store survives. Default [`Durability::None`].
    pub durability: Durability,
    /// Whether to bypass the page cache. Default [`DirectIo::Auto`].
    pub direct_io: DirectIo,
    /// Accept a file that is longer than the buffer by less than this many bytes as padded, and load its first
    /// bytes (LMCache's `fs_native` and NIXL adapters write such files). Default 0: sizes have to match.
    pub padding_bytes: u64,
    /// Whether payloads have checksums. Default [`Integrity::Store`].
    pub integrity: Integrity,
    /// Most bytes of spares: files of deleted objects, kept to be overwritten in place, which is much cheaper than making new
    /// ones; on each volume. They are disk space beside the capacity. 0 turns recycling off. Default 1 GiB.
    pub spare_bytes: u64,
    /// Bytes of the file system that stay free: below, spares are given back first, then stores are refused as `Full`.
    /// Of each volume's. Default: a hundredth of the file system, at most 1 GiB.
    pub min_free_bytes: Option<u64>,
    /// Whether the device's I/O scheduler is told that loads go before stores. Default [`IoPriority::Auto`].
    pub io_priority: IoPriority,
    /// Give new files their blocks by FALLOC_FL_WRITE_ZEROES (Linux 6.17), where the device can: what is written then is an overwrite,
    /// which no worker thread has to make. `status` says whether it is done. Default false: not tried on such a device so far.
    pub write_zeroes: bool,
    /// Most descriptors of objects kept open in the whole engine; never more than half of RLIMIT_NOFILE. Default: a quarter of it, at
    /// most 8,192.
    pub open_files: Option<usize>,
    /// How the index learns what the directory holds. Default [`Discovery::Scan`].
    pub discovery: Discovery,
    /// How long a lookup remembers that the disk does not have a key, where the disk is asked; zero asks each time. A
    /// file that another program makes is found after this time at the latest. Default 1 s.
    pub absent_ttl: Duration,
    /// Whether objects stay at close. If not, the files of what this engine has stored since it was opened are removed, and
    /// those kept to be overwritten; what it has found stays. Default true.
    pub persist: bool,
    /// How often a snapshot of the index is written, from which the next start, also after a crash, answers before it has scanned; at
    /// least, and more seldom where that would cost more than a fiftieth of one CPU. One is written at close in any case. Zero: at close
    /// alone. Default 300 s.
    pub snapshot_interval: Duration,
    /// Whether a socket in `.saltern` tells other processes of this user how the engine is ([`crate::serve`]; `saltern top` asks it). Default
    /// true.
    pub status_socket: bool,
    /// Called where operations on one key can meet, for tests of those races.
    #[doc(hidden)]
    #[serde(skip)]
    pub steps: Steps,
    /// Overwrite files before the rename that took their name away is durable. Loses data in a power cut; exists so
    /// that the tests can show that they would notice.
    #[doc(hidden)]
    #[serde(skip)]
    pub skip_quarantine: bool,
    /// Replaces the machine's boot id, so that tests can let a machine go down.
    #[doc(hidden)]
    #[serde(skip)]
    pub boot_id: Option<String>,
    /// Let all memory that is handed in play memory of this device: so that every test is one of the device path.
    #[doc(hidden)]
    #[serde(skip)]
    pub loopback: Option<SimDevice>,
    /// Threads that scan a directory at open, of each volume; all volumes are scanned side by side. Default 2.
    pub scan_threads: usize,
    /// How long open waits for the I/O of a dead owner to end before it gives up. Default 10 s.
    pub lock_wait: Duration,
}

impl Config {
    /// The defaults, for this directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            more_dirs: Vec::new(),
            require_volumes: true,
            layout: Layout::Fs,
            capacity_bytes: None,
            volume_capacity_bytes: None,
            eviction: Eviction::Host,
            admission: Admission::All,
            default_quota_bytes: None,
            shards: 1,
            pin_shards: true,
            pool_bytes: 64 << 20,
            depth: 64,
            segment_bytes: 1 << 20,
            load_inflight_bytes: 32 << 20,
            store_inflight_bytes: 32 << 20,
            max_object_bytes: 64 << 20,
            max_queued_objects: 65_536,
            pin_lease: Duration::from_secs(60),
            store_deadline: Duration::from_secs(30),
            load_deadline: Duration::from_secs(10),
            lookup_deadline: Duration::from_secs(2),
            durability: Durability::None,
            direct_io: DirectIo::Auto,
            padding_bytes: 0,
            integrity: Integrity::default(),
            spare_bytes: 1 << 30,
            min_free_bytes: None,
            io_priority: IoPriority::Auto,
            write_zeroes: false,
            open_files: None,
            discovery: Discovery::Scan,
            absent_ttl: Duration::from_secs(1),
            persist: true,
            snapshot_interval: Duration::from_secs(300),
            status_socket: true,
            steps: Steps::default(),
            skip_quarantine: false,
            boot_id: None,
            loopback: None,
            scan_threads: 2,
            lock_wait: Duration::from_secs(10),
        }
    }

    /// The defaults, for a volume in each of these directories: one shard each, and a pool that has room for them.
    ///
    /// ```
    /// let config = saltern::Config::over(["/mnt/nvme0/kv", "/mnt/nvme1/kv"]);
    /// assert_eq!((config.dirs().count(), config.shard_count()), (2, 2));
    /// ```
    pub fn over<D: Into<PathBuf>>(dirs: impl IntoIterator<Item = D>) -> Self {
        let mut dirs = dirs.into_iter().map(Into::into);
        // Without any, `validate` says so.
        let mut config = Self::new(dirs.next().unwrap_or_default());
        config.more_dirs = dirs.collect();
        config.shards = config.shard_count();
        config.pool_bytes = config.pool_bytes.max(2 * config.bounce_bytes());
        config
    }

    /// The directories of all volumes.
    pub fn dirs(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.dir).chain(&self.more_dirs)
    }

    /// Shards that the engine has: `shards`, and at least one for each volume.
    pub fn shard_count(&self) -> usize {
        self.shards.max(1 + self.more_dirs.len())
    }

    /// Bytes of the pool that the shards keep as bounce buffers: the least that `pool_bytes` can be.
    pub fn bounce_bytes(&self) -> usize {
        self.shard_count() * BOUNCE_BUFFERS * self.segment_bytes
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::Config`] names the first value that is not usable.
    pub fn validate(&self) -> Result<()> {
        let (segment_min, segment_max) = SEGMENT_BYTES_RANGE;
        let fail = |option, reason: String| Err(Error::Config { option, reason });
        if self.shards == 0 || self.shards > SHARDS_MAX {
            return fail("shards", format!("{} is not in 1..={SHARDS_MAX}", self.shards));
        }
        self.validate_volumes()?;
        let (depth_min, depth_max) = DEPTH_RANGE;
        if self.depth < depth_min || self.depth > depth_max {
            return fail("depth", format!("{} is not in {depth_min}..={depth_max}", self.depth));
        }
        if !self.segment_bytes.is_power_of_two() || self.segment_bytes < segment_min || self.segment_bytes > segment_max
        {
            return fail("segment_bytes", format!("has to be a power of two in {segment_min}..={segment_max}"));
        }
        if self.pool_bytes < self.bounce_bytes() {
            let least = self.bounce_bytes();
            let shards = self.shard_count();
            return fail("pool_bytes", format!("{shards} shards of this segment size need at least {least}"));
        }
        if self.max_object_bytes > u32::MAX as u64 {
            return fail("max_object_bytes", format!("at most {} is possible", u32::MAX));
        }
        if self.max_queued_objects == 0 {
            return fail("max_queued_objects", "has to be at least 1".into());
        }
        self.eviction.validate(self.capacity_bytes, self.discovery)?;
        self.admission.validate()?;
        if self.scan_threads == 0 {
            return fail("scan_threads", "has to be at least 1".into());
        }
        Ok(())
    }

    fn validate_volumes(&self) -> Result<()> {
        let fail = |option, reason: String| Err(Error::Config { option, reason });
        let dirs: Vec<_> = self.dirs().collect();
        if dirs.iter().any(|dir| dir.as_os_str().is_empty()) {
            return fail("dir", "an empty path is no directory".into());
        }
        if dirs.len() > VOLUMES_MAX {
            return fail("more_dirs", format!("{} volumes, at most {VOLUMES_MAX} are possible", dirs.len()));
        }
        for (at, dir) in dirs.iter().enumerate() {
            if dirs[..at].contains(dir) {
                return fail("more_dirs", format!("{} is named twice", dir.display()));
            }
        }
        Ok(())
    }
}

/// Bounce buffers of one segment each that a shard keeps for memory that O_DIRECT cannot take.
pub(crate) const BOUNCE_BUFFERS: usize = 8;
