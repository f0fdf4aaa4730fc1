//! saltern: a local storage engine for the KV caches of LLM serving.

mod asker;
mod completion;
mod config;
mod core;
mod counts;
mod engine;
mod error;
mod events;
mod index;
mod key;
pub mod layout;
pub mod ledger;
mod mem;
pub mod probe;
mod report;
mod ring;
pub mod scan;
mod shard;
mod status;
mod sys;
mod ticket;
mod volume;
mod watchdog;

pub use config::{Config, DEPTH_RANGE, DirectIo, Durability, SEGMENT_BYTES_RANGE, SHARDS_MAX};
pub use engine::{Class, Engine, Opener};
pub use error::{Error, Result};
pub use events::{EVENT_BATCH_MAX, EVENT_QUEUE_MAX, Event, EventKind, Listener};
pub use key::{CHUNK_HASH_MAX_BYTES, ChunkHash, KeyError, ObjectKey, SALT_FORBIDDEN, SALT_MAX_CHARS, Scope, kv_rank};
pub use layout::Layout;
pub use ledger::AdapterUsage;
pub use mem::{Buffer, Keepalive, PageKind, Pool, PoolBuffer, PoolStatus};
pub use report::{DeleteReport, LoadReport, LookupReport, StoreReport};
pub use scan::RecoveryReport;
pub use status::{Counters, ShardStatus, Status, VolumeStatus};
pub use ticket::Ticket;
