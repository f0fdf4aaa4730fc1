//! What the engine's threads share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crossbeam::utils::CachePadded;
use parking_lot::Mutex;

use crate::absent::Absent;
use crate::admission::Filter;
use crate::completion::CompletionFds;
use crate::config::Config;
use crate::counts::Counts;
use crate::discover::{Discover, Look};
use crate::error::{Error, Result};
use crate::events::Hub;
use crate::index::{Index, Keyed};
use crate::integrity::Integrity;
use crate::keep;
use crate::latent::Latent;
use crate::ledger::{Ledger, NoRoom, Refusal};
use crate::mem::Pool;
use crate::quotas::Kept;
use crate::ring::BufferRegistry;
use crate::room::Room;
use crate::scan::Recovery;
use crate::shard::{Command, Mailbox, StoreOp};
use crate::status::ShardStatus;
use crate::volume::Volume;
use crate::watch::{Distributions, LookupWatch, ShardWatch};

/// Shared by callers, shards, scan and helpers.
pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) volume: Volume,
    pub(crate) index: Arc<Index>,
    pub(crate) ledger: Ledger,
    /// What is counted, but not in the index.
    pub(crate) latent: Latent,
    /// What lookups have found not to be on disk.
    pub(crate) absent: Absent,
    /// Where not everything that is offered is written.
    pub(crate) admission: Option<Filter>,
    pub(crate) room: Room,
    pub(crate) quotas: Kept,
    pub(crate) kept: keep::Kept,
    /// What an operator should know, and that holds nothing up.
    pub(crate) notes: Mutex<Vec<String>>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) recovery: Recovery,
    pub(crate) completion: Arc<CompletionFds>,
    pub(crate) counts: Arc<Counts>,
    pub(crate) pool: Pool,
    pub(crate) registry: BufferRegistry,
    pub(crate) mailboxes: Vec<Mailbox>,
    pub(crate) shard_status: Mutex<Vec<ShardStatus>>,
    /// By shard.
    pub(crate) watches: Vec<CachePadded<ShardWatch>>,
    pub(crate) lookup_watch: LookupWatch,
    /// As configured, or off where the file system has no user attributes.
    pub(crate) integrity: Integrity,
    /// Spares of an earlier run, for the shards to take over.
    pub(crate) old_spares: Mutex<Vec<(String, u64)>>,
    /// What the spares of all shards amount to.
    pub(crate) spare_bytes: AtomicU64,
    pub(crate) spare_count: AtomicU64,
    /// Bytes of the file system that stay free.
    pub(crate) min_free_bytes: u64,
    pub(crate) closing: AtomicBool,
    pub(crate) failed: AtomicBool,
    /// Shards whose thread has ended, a bit each.
    pub(crate) stopped_shards: AtomicU64,
    pub(crate) queued: Arc<AtomicUsize>,
    /// Stores that came before the scan knew how much room there is.
    pub(crate) deferred: Mutex<Vec<StoreOp>>,
}

/// A place among the queued objects, given back on drop.
pub(crate) struct Queued(Arc<AtomicUsize>);

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Core {
    /// Places for all objects of a batch, or for none.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::ShardFailed`] and [`Error::QueueFull`].
    pub(crate) fn admit(&self, count: usize) -> Result<impl FnMut() -> Queued + use<>> {
        if self.closing.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        if self.failed.load(Ordering::Acquire) {
            return Err(Error::ShardFailed);
        }
        let limit = self.config.max_queued_objects;
        let before = self.queued.fetch_add(count, Ordering::Relaxed);
        if before + count > limit {
            self.queued.fetch_sub(count, Ordering::Relaxed);
            return Err(Error::QueueFull { limit });
        }
        let queued = self.queued.clone();
        Ok(move || Queued(queued.clone()))
    }

    /// Tells operators something: in the log, and in `status`.
    pub(crate) fn note(&self, note: String) {
        tracing::warn!("{note}");
        self.notes.lock().push(note);
    }

    /// Puts the quotas in force that the directory keeps.
    pub(crate) fn apply_quotas(&self) {
        match self.quotas.get() {
            Ok(quotas) => {
                self.ledger.set_default_quota(self.config.default_quota_bytes);
                for (salt, bytes) in quotas {
                    self.ledger.set_quota(self.ledger.salt(&salt), Some(bytes));
                }
            }
            Err(error) => self.note(error.to_string()),
        }
    }

    /// The shard that a key belongs to.
    pub(crate) fn home(&self, keyed: &Keyed) -> usize {
        keyed.home(self.mailboxes.len())
    }

    /// Whether what the index lacks does not exist: the scan is complete, and nobody else writes to the directory.
    pub(crate) fn index_is_whole(&self) -> bool {
        !self.config.discovery.asks() && self.recovery.is_complete()
    }

    /// What discoveries are entered into.
    pub(crate) fn discover(&self) -> Discover<'_> {
        Discover { index: &self.index, ledger: &self.ledger, latent: &self.latent, steps: &self.config.steps }
    }

    /// Asks the disk for an object that the index lacks, and enters it.
    pub(crate) fn ask_disk(&self, keyed: &Keyed, name: &str) -> Result<()> {
        if self.discover().enter(keyed, || self.look(name))?.is_some() {
            self.suspect([keyed.salt]);
        }
        Ok(())
    }

    /// Size and time of an object's file.
    pub(crate) fn look(&self, name: &str) -> Result<Look> {
        let stat = self.volume.stat(name).map_err(|errno| Error::io("statx", name, errno))?;
        Ok(stat.map(|stat| (stat.bytes, stat.modified_ns)))
    }

    /// Hands the deferred stores to their shards.
    pub(crate) fn release_deferred(&self) {
        let deferred = std::mem::take(&mut *self.deferred.lock());
        for op in deferred {
            let home = self.home(&op.keyed);
            self.mailboxes[home].push(Command::Store(op));
        }
        self.mailboxes.iter().for_each(Mailbox::ring);
    }

    /// How long operations took.
    pub(crate) fn distributions(&self) -> Distributions {
        Distributions::read(self.watches.iter().map(|watch| &**watch), &self.lookup_watch)
    }

    /// Counts the answers of a lookup.
    pub(crate) fn count_lookups(&self, sizes: &[Option<u64>]) {
        let hits = sizes.iter().flatten().count();
        self.counts.lookup_hits.add(hits as u64);
        self.counts.lookup_misses.add((sizes.len() - hits) as u64);
    }

    /// The error for an object that does not fit into the capacity, or on the disk.
    pub(crate) fn full(&self, needed: u64, room: NoRoom) -> Error {
        self.counts.stores_refused.add(1);
        Error::Full { needed, free: room.free, capacity: room.capacity }
    }

    /// The error for an object that the ledger has refused.
    pub(crate) fn refused(&self, needed: u64, refusal: Refusal) -> Error {
        match refusal {
            Refusal::Capacity(room) => self.full(needed, room),
            Refusal::Quota(room) => {
                self.counts.stores_over_quota.add(1);
                Error::OverQuota { needed, free: room.free, quota: room.capacity }
            }
        }
    }
}
