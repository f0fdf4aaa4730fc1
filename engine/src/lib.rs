//! saltern: a local storage engine for the KV caches of LLM serving.

mod absent;
mod adapter;
mod admission;
mod asker;
mod attach;
mod bury;
mod completion;
mod config;
mod core;
mod counts;
pub mod device;
mod discover;
mod engine;
mod error;
mod events;
pub mod eviction;
#[doc(hidden)]
pub mod fuzzing;
mod index;
mod integrity;
mod keep;
mod key;
mod latent;
pub mod layout;
mod leave;
pub mod ledger;
mod list;
pub mod maintain;
mod manage;
mod mem;
mod metrics;
mod open;
#[cfg(test)]
mod orders;
pub mod probe;
pub mod quotas;
mod remember;
mod report;
mod ring;
mod room;
mod saved;
pub mod scan;
pub mod serve;
mod shard;
mod snapshot;
mod status;
#[doc(hidden)]
pub mod steps;
mod sys;
mod ticket;
mod volume;
mod watch;
mod watchdog;

pub use adapter::{Adapter, FsAdapter, NixlDynamicAdapter, Refused};
pub use admission::{ADMISSION_USES_RANGE, ADMISSION_WINDOW_RANGE, Admission};
pub use config::{
    Config, DEPTH_RANGE, DirectIo, Discovery, Durability, Eviction, IoPriority, SEGMENT_BYTES_RANGE, SHARDS_MAX,
    VOLUMES_MAX,
};
pub use engine::{Class, Engine};
pub use error::{Error, Result};
pub use events::{EVENT_BATCH_MAX, EVENT_QUEUE_MAX, Event, EventKind, EventMark, Listener};
pub use integrity::{Integrity, UnknownIntegrity, checksum};
pub use key::{CHUNK_HASH_MAX_BYTES, ChunkHash, KeyError, ObjectKey, SALT_FORBIDDEN, SALT_MAX_CHARS, Scope, kv_rank};
pub use layout::Layout;
pub use ledger::{AdapterUsage, SaltPage, SaltUsage};
pub use list::{ListCursor, ListPage};
pub use mem::{Buffer, DeviceBuffer, Keepalive, PageKind, Pool, PoolBuffer, PoolStatus};
pub use open::Opener;
pub use report::{DeleteReport, EvictionReport, LoadReport, LookupReport, StoreReport};
pub use scan::RecoveryReport;
pub use status::{Counters, MediumStatus, ShardStatus, SnapshotStatus, SpareStatus, Status, VolumeStatus};
pub use ticket::Ticket;
pub use watch::{LatenciesStatus, LatencyStatus, ShardQueues};
