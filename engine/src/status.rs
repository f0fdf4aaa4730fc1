//! What an engine says of itself.

use serde::Serialize;

use crate::admission::Admission;
use crate::config::{Durability, Eviction};
use crate::device::DeviceStatus;
use crate::integrity::Integrity;
use crate::layout::Layout;
use crate::mem::PoolStatus;
use crate::watch::{LatenciesStatus, ShardQueues};

/// A moment of an engine's life. Serialises to JSON; names end in their unit.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// Whether every shard runs and every volume takes part and is the one that was opened.
    pub is_healthy: bool,
    /// Why not, where it is not.
    pub problems: Vec<String>,
    /// What an operator should know although all is well: a snapshot that was ignored, quotas that are not in force.
    pub notes: Vec<String>,
    /// The volumes, in the order of their directories.
    pub volumes: Vec<VolumeStatus>,
    /// How keys become file names.
    pub layout: Layout,
    /// What a store waits for.
    pub durability: Durability,
    /// Whether the scan of the directory is complete.
    pub recovered: bool,
    /// Objects in the index.
    pub objects: u64,
    /// Objects that are counted, but not in the index: nobody has asked for them yet.
    pub latent_objects: u64,
    /// The snapshot of the index.
    pub snapshot: SnapshotStatus,
    /// Bytes of objects, in the index or not.
    pub used_bytes: u64,
    /// Bytes reserved by stores in flight.
    pub reserved_bytes: u64,
    /// The configured capacity.
    pub capacity_bytes: Option<u64>,
    /// Who evicts, and from where on.
    pub eviction: Eviction,
    /// Which objects are written.
    pub admission: Admission,
    /// Victims that are not removed yet.
    pub evicting_objects: u64,
    /// Stores that wait for room.
    pub waiting_stores: u64,
    /// Salts: those seen, and those with a quota. `Engine::salts` has them by page.
    pub salts: u64,
    /// The quota of salts that have none of their own.
    pub default_quota_bytes: Option<u64>,
    /// Objects queued or in flight.
    pub queued_objects: u64,
    /// The shards.
    pub shards: Vec<ShardStatus>,
    /// Whether payloads have checksums; `off` where the file system of a volume has no user attributes.
    pub integrity: Integrity,
    /// Whether new files get written blocks before they are written: configured, and the device of every volume can.
    pub write_zeroes: bool,
    /// Files kept to be overwritten, on all volumes.
    pub spares: SpareStatus,
    /// The pool of host buffers.
    pub pool: PoolStatus,
    /// How long operations took.
    pub latency: LatenciesStatus,
    /// Devices whose memory can be used.
    pub devices: Vec<DeviceStatus>,
    /// What has been done since the engine was opened.
    pub counters: Counters,
}

/// One volume.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct VolumeStatus {
    /// The directory, and what its file system takes.
    #[serde(flatten)]
    pub medium: MediumStatus,
    /// Its number, which homes of keys follow from; null where there is only one volume.
    pub id: Option<String>,
    /// Whether it takes part. A volume that failed does not, until the engine is opened again.
    pub is_up: bool,
    /// Why stores are refused until the volume is opened again; null where they are taken.
    pub read_only: Option<String>,
    /// Whether what was found has to be checked before its first use: the machine went down under an earlier engine, or a sync
    /// failed.
    pub checks_first_use: bool,
    /// Why it does not take part, or not as it should.
    pub problems: Vec<String>,
    /// Bytes of its objects.
    pub used_bytes: u64,
    /// Bytes reserved by stores in flight.
    pub reserved_bytes: u64,
    /// The configured capacity of each volume.
    pub capacity_bytes: Option<u64>,
    /// Bytes that its file system has free; 0 where it does not tell.
    pub free_bytes: u64,
    /// Size of its file system; 0 where it does not tell.
    pub disk_bytes: u64,
    /// Files kept there to be overwritten.
    pub spares: SpareStatus,
}

/// A directory, and what its file system takes.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct MediumStatus {
    /// Its path.
    pub dir: String,
    /// `ext4`, `xfs`, ... or the magic number in hexadecimal.
    pub file_system: String,
    /// Whether I/O bypasses the page cache.
    pub direct_io: bool,
    /// What addresses have to be a multiple of (statx, `stx_dio_mem_align`).
    pub memory_align_bytes: u32,
    /// What offsets and lengths have to be a multiple of (statx, `stx_dio_offset_align`).
    pub offset_align_bytes: u32,
    /// Whether files can have user attributes, which checksums are kept in.
    pub user_attributes: bool,
    /// Whether files can get zeroed, written blocks without anybody writing zeroes (FALLOC_FL_WRITE_ZEROES, Linux 6.17, on a device
    /// that can).
    pub write_zeroes: bool,
    /// The device's I/O scheduler; null where the directory is not directly on a block device.
    pub io_scheduler: Option<String>,
    /// Whether it is an ext4 without a journal: after a power cut such a file system may have lost or mixed up names, whatever
    /// [`Durability`] says.
    pub lacks_journal: bool,
}

/// One shard.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ShardStatus {
    /// The volume that it belongs to: a place in `volumes`.
    pub volume: u64,
    /// The CPU it is pinned to.
    pub cpu: Option<u32>,
    /// Features of its ring: `single-issuer`, `defer-taskrun`, ...
    pub ring: Vec<&'static str>,
    /// Whether reads and writes use registered buffers; `cloned` where one registration serves all rings.
    pub fixed_buffers: &'static str,
    /// Whether its requests tell the device's scheduler that loads go before stores.
    pub io_priority: bool,
    /// Whether its thread runs.
    pub is_running: bool,
    /// What waits there, and what it has in hand.
    pub queues: ShardQueues,
}

/// The snapshot of the index, from which the next start knows at once what there is.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct SnapshotStatus {
    /// Objects that are known from the snapshot alone: the scan has not come to them. They are counted among `objects`.
    pub hinted_objects: u64,
    /// When this engine has written one last, in nanoseconds since 1970.
    pub written_unix_ns: Option<u64>,
    /// Objects in it.
    pub written_objects: u64,
    /// Time it took; most of that is rest.
    pub written_in_seconds: f64,
}

/// Files of deleted objects, kept to be overwritten.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct SpareStatus {
    /// Whether files are recycled: the file system (of any of the volumes) gains from it, and `spare_bytes` is not 0.
    pub is_on: bool,
    /// Spares that there are.
    pub count: u64,
    /// Their bytes: disk space beside the objects.
    pub bytes: u64,
    /// Most bytes that are kept.
    pub limit_bytes: u64,
}

impl SpareStatus {
    /// Those of all volumes together.
    pub(crate) fn of_all(volumes: &[VolumeStatus]) -> Self {
        volumes.iter().map(|volume| &volume.spares).fold(Self::default(), |all, one| Self {
            is_on: all.is_on || one.is_on,
            count: all.count + one.count,
            bytes: all.bytes + one.bytes,
            limit_bytes: all.limit_bytes + one.limit_bytes,
        })
    }
}

/// Counts since the engine was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Counters {
    /// Keys looked up and found.
    pub lookup_hits: u64,
    /// Keys looked up and not found.
    pub lookup_misses: u64,
    /// Objects loaded.
    pub loads: u64,
    /// Loads of keys that were not there.
    pub load_misses: u64,
    /// Loads that failed.
    pub load_errors: u64,
    /// Bytes loaded.
    pub loaded_bytes: u64,
    /// Objects stored.
    pub stores: u64,
    /// Stores of keys that were there already.
    pub restores: u64,
    /// Stores that were refused because they did not fit.
    pub stores_refused: u64,
    /// Stores that were refused because their salt was at its quota.
    pub stores_over_quota: u64,
    /// Stores that were turned away because nobody has asked for the object often enough.
    pub stores_not_admitted: u64,
    /// Stores that failed.
    pub store_errors: u64,
    /// Bytes stored.
    pub stored_bytes: u64,
    /// Objects deleted.
    pub deletes: u64,
    /// Deletes that were refused because the object was in use.
    pub deletes_refused: u64,
    /// Objects that the engine evicted.
    pub evictions: u64,
    /// Their bytes.
    pub evicted_bytes: u64,
    /// Evictions, of these, for the quota of the object's own salt.
    pub quota_evictions: u64,
    /// Objects that were passed over as victims because they were pinned or being loaded.
    pub evictions_in_use: u64,
    /// Evictions that failed; the object stayed.
    pub eviction_errors: u64,
    /// Objects whose file had vanished or had another size.
    pub damaged: u64,
    /// Files of objects that had another one on a volume that goes before, and were removed.
    pub twins: u64,
    /// Objects that went with the volumes that failed.
    pub lost_objects: u64,
    /// Tickets that the deadline ended.
    pub timeouts: u64,
    /// Bytes that went through a bounce buffer.
    pub bounced_bytes: u64,
    /// Stores that overwrote a spare.
    pub recycled: u64,
    /// Loads whose payload did not have the checksum of its stamp.
    pub checksum_failures: u64,
    /// Times that the ledger would have gone below zero: a defect.
    pub ledger_underflows: u64,
}
