//! What the engine's threads share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crossbeam::sync::WaitGroup;
use crossbeam::utils::CachePadded;
use parking_lot::Mutex;

use crate::absent::Absent;
use crate::admission::Filter;
use crate::completion::CompletionFds;
use crate::config::{Config, Durability};
use crate::counts::Counts;
use crate::device::attached::Attached;
use crate::discover::{Discover, Found, Seen};
use crate::error::{Error, Result};
use crate::events::Hub;
use crate::index::{Index, Keyed};
use crate::keep;
use crate::latent::Latent;
use crate::ledger::{Ledger, NoRoom, Refusal};
use crate::mem::Pool;
use crate::quotas::Kept;
use crate::ring::BufferRegistry;
use crate::room::Room;
use crate::scan::Recovery;
use crate::shard::{Command, Mailbox, StoreOp, TwinOp};
use crate::status::ShardStatus;
use crate::volume::{Losses, Volumes};
use crate::watch::{Distributions, LookupWatch, ShardWatch};

/// Shared by callers, shards, scan and helpers.
pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) volumes: Volumes,
    /// Those who wait for a volume to be lost.
    pub(crate) losses: Losses,
    pub(crate) index: Arc<Index>,
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
    /// Never removed while the engine lives: rings know their slots.
    pub(crate) devices: Mutex<Vec<Arc<Attached>>>,
    pub(crate) mailboxes: Vec<Mailbox>,
    pub(crate) shard_status: Mutex<Vec<ShardStatus>>,
    /// By shard.
    pub(crate) watches: Vec<CachePadded<ShardWatch>>,
    pub(crate) lookup_watch: LookupWatch,
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
                let ledger = self.ledger();
                ledger.set_default_quota(self.config.default_quota_bytes);
                for (salt, bytes) in quotas {
                    ledger.set_quota(ledger.salt(&salt), Some(bytes));
                }
            }
            Err(error) => self.note(error.to_string()),
        }
    }

    /// The books of all volumes: for salts, quotas and sums of all.
    pub(crate) fn ledger(&self) -> &Ledger {
        self.volumes.ledger()
    }

    /// The shard that a key belongs to, by the name of its files: one of its home volume's. Shards are dealt to the volumes in turn.
    pub(crate) fn home(&self, keyed: &Keyed, name: &str) -> usize {
        let (shards, volumes) = (self.mailboxes.len(), self.volumes.len());
        if volumes == 1 {
            return keyed.home(shards);
        }
        let volume = self.volumes.home(name);
        volume + volumes * keyed.home((shards - volume).div_ceil(volumes))
    }

    /// As [`Self::home`], for an object.
    pub(crate) fn home_of_object(&self, keyed: &Keyed) -> usize {
        if self.volumes.is_single() {
            return keyed.home(self.mailboxes.len());
        }
        match self.config.layout.encode(&keyed.key) {
            Ok(name) => self.home(keyed, &name),
            Err(error) => unreachable!("an object has a name: {error}"),
        }
    }

    /// Whether what the index lacks does not exist: the scan is complete, and nobody else writes to the directory.
    pub(crate) fn index_is_whole(&self) -> bool {
        !self.config.discovery.asks() && self.recovery.is_complete()
    }

    /// What discoveries are entered into.
    pub(crate) fn discover(&self) -> Discover<'_> {
        Discover { index: &self.index, volumes: &self.volumes, latent: &self.latent, steps: &self.config.steps }
    }

    /// Asks the disks for an object that the index lacks, and enters it.
    pub(crate) fn ask_disk(&self, keyed: &Keyed, name: &str) -> Result<()> {
        self.ask_disks(keyed, name, None)
    }

    /// As [`Self::ask_disk`]; where the object was counted on another volume than it is entered for, that one has a second file.
    pub(crate) fn ask_disks(&self, keyed: &Keyed, name: &str, waiting: Option<&WaitGroup>) -> Result<()> {
        let counted = self.latent.peek(keyed.hash()).or_else(|| self.index.hinted(keyed));
        if let Found::New(_) = self.discover().enter(keyed, || self.look(name))? {
            self.suspect([keyed.salt]);
        }
        // A pass over another volume may have counted a file of it between the look and the entry.
        let late = self.index.present(keyed).and_then(|_| self.discover().uncount(keyed));
        for second in counted.into_iter().chain(late) {
            if self.index.present(keyed).is_some_and(|known| known.volume != second.volume) {
                self.report_twin(keyed.clone(), name, second.volume, waiting);
            }
        }
        Ok(())
    }

    /// A volume has a file of a key that was known: its home shard decides which of them stays.
    pub(crate) fn report_twin(&self, keyed: Keyed, name: &str, volume: usize, waiting: Option<&WaitGroup>) {
        let home = self.home(&keyed, name);
        let op = TwinOp { keyed, name: name.to_owned(), volume, _done: waiting.cloned() };
        self.mailboxes[home].push(Command::Twin(op));
        self.wake(home);
    }

    /// An object's file: on its home, or on the next volume that has one.
    pub(crate) fn look(&self, name: &str) -> Result<Option<Seen>> {
        let (mut passed, mut failed) = (0, None);
        while let Some(volume) = self.volumes.place(name, passed) {
            passed |= 1 << volume;
            match self.volumes[volume].dir.stat(name) {
                Ok(Some(stat)) => {
                    return Ok(Some(Seen::file(&stat, volume)));
                }
                Ok(None) => {}
                Err(errno) => {
                    self.read_failed(volume, "statx", errno);
                    failed.get_or_insert(Error::io("statx", name, errno));
                }
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// Hands the deferred stores to their shards.
    pub(crate) fn release_deferred(&self) {
        let deferred = std::mem::take(&mut *self.deferred.lock());
        for op in deferred {
            let home = self.home(&op.keyed, &op.name);
            self.mailboxes[home].push(Command::Store(op));
        }
        (0..self.mailboxes.len()).for_each(|shard| self.wake(shard));
    }

    /// Wakes a shard, or answers for it, if it has ended.
    pub(crate) fn wake(&self, shard: usize) {
        self.mailboxes[shard].ring();
        if self.mailboxes[shard].is_dead() {
            self.bury_all(shard);
        }
    }

    /// Wakes the shards whose bits are set.
    pub(crate) fn wake_all(&self, shards: u64) {
        (0..self.mailboxes.len()).filter(|shard| shards & (1 << shard) != 0).for_each(|shard| self.wake(shard));
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

    /// What a store is told that finds an object. With `full` that is a promise, which nobody can make on a volume that has turned
    /// read-only meanwhile: the object may be the one that the store in front of this one has failed to make durable, and to take back.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], see above.
    pub(crate) fn confirm(&self) -> Result<u64> {
        if self.config.durability == Durability::Full
            && let Some((_, volume)) = self.volumes.up().find(|(_, volume)| volume.dir.health.read_only().is_some())
        {
            self.counts.store_errors.add(1);
            volume.dir.health.check(volume.dir.path())?;
        }
        self.counts.restores.add(1);
        Ok(0)
    }

    /// The error for an object that the ledger has refused.
    pub(crate) fn refused(&self, needed: u64, refusal: Refusal) -> Error {
        match refusal {
            Refusal::Capacity(NoRoom { free, capacity }) | Refusal::Shared(NoRoom { free, capacity }) => {
                self.counts.stores_refused.add(1);
                Error::Full { needed, free, capacity }
            }
            Refusal::Quota(room) => {
                self.counts.stores_over_quota.add(1);
                Error::OverQuota { needed, free: room.free, quota: room.capacity }
            }
        }
    }
}
