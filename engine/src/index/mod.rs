//! What the volume holds: key to size, state, pins and order of use. In memory, shared by all threads, no I/O.
//!
//! Partitioned by hash; each partition has a lock that is held for a few memory accesses. State changes of one key come
//! from its home shard alone, except for `begin_store`, lookups and unpins, which callers do on their own threads, and
//! `take_victim`, which dooms an object for its home shard to remove.
//! Each change that listeners hear of enters the event queue under the partition's lock, and, where the engine evicts, the lists
//! of who goes first (`order.rs`). The time of the last use is kept here alone; the lists are made of it once, when the scan
//! has ended.
//!
//! ```text
//! absent --begin_store--> Storing --commit_store--> Present --begin_delete/doom/take_victim--> Doomed --end_delete--> absent
//!            (abort_store: back to absent)           ^   ^--insert_recovered (a look at the disk)
//! absent --add_hints (snapshot, at open)-> Hinted ----+ settle_hint, when its file was looked for; without one: absent
//!                                   enter_all: insert_recovered and settle_hint of many keys (scan)
//! ```

mod hints;
mod locked;
mod lost;
mod many;
mod order;
mod page;
mod partition;
mod victims;
#[cfg(test)]
mod weight;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam::utils::CachePadded;
use hashbrown::HashTable;
use parking_lot::{Mutex, MutexGuard, RwLock};

use crate::discover::Seen;
use crate::error::{Error, Result};
use crate::events::{EventKind, Hub};
use crate::eviction::PolicyKind;
use crate::key::{ObjectKey, Scope};
use crate::ledger::{Ledger, SaltId};
pub(crate) use hints::Sight;
#[cfg(test)]
pub(crate) use many::Moments;
pub(crate) use many::Recount;
use many::Tally;
pub(crate) use order::Whose;
use order::{Change, Order};
pub(crate) use victims::{Found, Victim};

pub(crate) use self::page::Place;
pub(crate) use self::partition::Held;
use self::partition::{Entry, Origin, Partition, State};

/// Locks of the index; enough that callers and shards rarely meet. A power of two.
const PARTITIONS: usize = 64;

/// Which bits of a hash say what: hashbrown takes the lowest for the bucket and the top 7 for its tags, so the
/// partition and the home shard are read from between.
const PARTITION_SHIFT: u32 = 40;
const HOME_SHIFT: u32 = 46;

/// Unit of leases. 32 bits of it compare correctly over 248 days.
const LEASE_TICK: Duration = Duration::from_millis(10);

/// Longest lease, 124 days: half of what compares correctly. Longer ones are cut to it.
const LEASE_TICKS_MAX: u32 = i32::MAX as u32 / 2;

/// A key as the index addresses it: resolved once when it enters the engine, then carried along.
#[derive(Debug, Clone)]
pub(crate) struct Keyed {
    pub(crate) key: ObjectKey,
    pub(crate) salt: SaltId,
    hash: u64,
    scope: u32,
}

impl Keyed {
    /// Which of `shards` this key belongs to.
    pub(crate) fn home(&self, shards: usize) -> usize {
        (self.hash >> HOME_SHIFT) as usize % shards
    }

    /// As [`hash_of`].
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }
}

/// The hash that stands for a key in this process.
pub(crate) fn hash_of(key: &ObjectKey) -> u64 {
    key.chunk_hash().hash64(key.scope().hash64())
}

/// A scope, and the number that the ledger gave its salt.
struct Known {
    scope: Arc<Scope>,
    salt: SaltId,
}

/// The scope that a caller has resolved last.
pub(crate) struct LastScope {
    scope: Arc<Scope>,
    id: u32,
    salt: SaltId,
}

/// The index. Thread-safe; no call blocks for longer than a few memory accesses, `lock_all` and `start_order` excepted.
pub(crate) struct Index {
    partitions: Box<[CachePadded<Mutex<Partition>>]>,
    scopes: boxcar::Vec<Known>,
    scope_ids: RwLock<HashTable<u32>>,
    objects: AtomicU64,
    /// How many of them are hints.
    hints: AtomicU64,
    /// Volumes that were lost, a bit each: nothing is entered for them. Looked at with a partition locked.
    lost: AtomicU64,
    hub: Arc<Hub>,
    /// Where the engine evicts.
    order: Option<Order>,
    start: Instant,
}

/// What a store meets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BeginStore {
    /// The key is this store's now.
    New,
    /// There is an object already.
    Present,
    /// Another store, or a removal, of this key is under way.
    Busy,
}

/// What became of an object seen on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entered {
    /// It is in the index now.
    New,
    /// The key was there already.
    Known,
    /// Something was removed meanwhile: look at the disk again.
    Stale,
    /// It has no file, and is not in the index, or not any more.
    Gone,
}

/// A moment of a partition, for what was seen on disk since.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Epoch(u64);

impl Index {
    /// An empty index; with `eviction`, one that keeps the order of this policy, for objects of so many bytes.
    pub(crate) fn new(hub: Arc<Hub>, eviction: Option<(PolicyKind, u64)>) -> Self {
        Self {
            partitions: (0..PARTITIONS).map(|_| CachePadded::default()).collect(),
            scopes: boxcar::Vec::new(),
            scope_ids: RwLock::default(),
            objects: AtomicU64::new(0),
            hints: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            hub,
            order: eviction.map(|(kind, bytes)| Order::new(kind, bytes)),
            start: Instant::now(),
        }
    }

    fn partition_number(hash: u64) -> usize {
        (hash >> PARTITION_SHIFT) as usize % PARTITIONS
    }

    fn partition(&self, hash: u64) -> MutexGuard<'_, Partition> {
        self.partitions[Self::partition_number(hash)].lock()
    }

    fn scope_id(&self, scope: &Arc<Scope>) -> Option<u32> {
        let same = |id: &u32| self.scopes.get(*id as usize).is_some_and(|known| known.scope == *scope);
        self.scope_ids.read().find(scope.hash64(), same).copied()
    }

    /// The number of a scope, which is entered on first sight.
    fn enter_scope(&self, scope: &Arc<Scope>, ledger: &Ledger) -> u32 {
        self.scope_id(scope).unwrap_or_else(|| {
            let salt = ledger.salt(scope.cache_salt());
            let mut ids = self.scope_ids.write();
            let same = |id: &u32| self.scopes.get(*id as usize).is_some_and(|known| known.scope == *scope);
            ids.find(scope.hash64(), same).copied().unwrap_or_else(|| {
                let id = self.scopes.push(Known { scope: scope.clone(), salt }) as u32;
                let rehash = |id: &u32| self.scopes.get(*id as usize).map_or(0, |known| known.scope.hash64());
                ids.insert_unique(scope.hash64(), id, rehash);
                id
            })
        })
    }

    /// Resolves a key, entering its scope on first sight.
    pub(crate) fn keyed(&self, key: &ObjectKey, ledger: &Ledger) -> Keyed {
        let scope = self.enter_scope(key.scope(), ledger);
        let known = &self.scopes[scope as usize];
        Keyed {
            // The known scope, so that all keys of it share one.
            key: ObjectKey::from_parts(known.scope.clone(), key.chunk_hash().clone()),
            salt: known.salt,
            hash: hash_of(key),
            scope,
        }
    }

    /// As [`Self::keyed`], for one of many: keys that share their scope with the one before touch nothing that other threads touch, too.
    pub(crate) fn keyed_in_turn(&self, key: ObjectKey, ledger: &Ledger, last: &mut Option<LastScope>) -> Keyed {
        let known = last.take().filter(|last| Arc::ptr_eq(&last.scope, key.scope())).unwrap_or_else(|| {
            let id = self.enter_scope(key.scope(), ledger);
            LastScope { scope: key.scope().clone(), id, salt: self.scopes[id as usize].salt }
        });
        let keyed = Keyed { salt: known.salt, hash: hash_of(&key), scope: known.id, key };
        *last = Some(known);
        keyed
    }

    fn now_ticks(&self) -> u32 {
        (self.start.elapsed().as_millis() / LEASE_TICK.as_millis()) as u32
    }

    /// Looks keys up and pins those found for `lease`. Gives each key's size, in order.
    pub(crate) fn lookup_and_pin(&self, keys: &[ObjectKey], lease: Duration) -> Vec<Option<u64>> {
        let now = self.now_ticks();
        let ticks = (lease.as_millis() / LEASE_TICK.as_millis()).min(LEASE_TICKS_MAX.into()) as u32;
        let until = now.wrapping_add(ticks + 1);
        let mut scope: Option<(&Arc<Scope>, Option<u32>)> = None;
        keys.iter()
            .map(|key| {
                // Keys of one batch mostly share their scope: it is resolved when it changes.
                let id = match scope {
                    Some((last, id)) if Arc::ptr_eq(last, key.scope()) => id,
                    _ => {
                        let id = self.scope_id(key.scope());
                        scope = Some((key.scope(), id));
                        id
                    }
                }?;
                let hash = hash_of(key);
                let mut partition = self.partition(hash);
                let slot = partition.find(hash, id, key.chunk_hash())?;
                let entry = &mut partition.entries[slot as usize];
                if entry.state != State::Present {
                    return None;
                }
                entry.pins = entry.live_pins(now).saturating_add(1);
                entry.lease = until;
                Some(entry.bytes)
            })
            .collect()
    }

    /// Releases one pin of each key; gives how many were released. A pin whose lease has expired is gone already.
    pub(crate) fn unpin(&self, keys: &[ObjectKey]) -> usize {
        let now = self.now_ticks();
        let released = keys.iter().filter(|key| {
            let Some(scope) = self.scope_id(key.scope()) else { return false };
            let hash = hash_of(key);
            let mut partition = self.partition(hash);
            let Some(slot) = partition.find(hash, scope, key.chunk_hash()) else { return false };
            let entry = &mut partition.entries[slot as usize];
            let pins = entry.live_pins(now);
            entry.pins = pins.saturating_sub(1);
            pins > 0
        });
        released.count()
    }

    /// Claims the key for a store. A store of an object that is there counts as a use of it.
    pub(crate) fn begin_store(&self, keyed: &Keyed) -> BeginStore {
        let mut partition = self.partition(keyed.hash);
        if let Some(slot) = partition.slot(keyed) {
            let state = partition.entries[slot as usize].state;
            // A store that waited for a hint would wait for ever: whoever claims has asked the disk, which settles it.
            assert_ne!(state, State::Hinted, "the disk is asked before a key is claimed");
            if state != State::Present {
                return BeginStore::Busy;
            }
            self.used(&mut partition, slot, keyed);
            return BeginStore::Present;
        }
        partition.insert(Entry {
            hash: keyed.hash,
            chunk: keyed.key.chunk_hash().clone(),
            bytes: 0,
            used_ns: 0,
            scope: keyed.scope,
            pins: 0,
            lease: 0,
            loads: 0,
            state: State::Storing,
            origin: Origin::stored(0),
        });
        BeginStore::New
    }

    /// The object is published: from now on it is found. False when its volume was lost meanwhile: then the claim is still there.
    pub(crate) fn commit_store(&self, keyed: &Keyed, bytes: u64, volume: usize) -> bool {
        let mut partition = self.partition(keyed.hash);
        if self.is_lost(volume) {
            return false;
        }
        let slot = partition.slot(keyed).expect("a store's claim stays until it is committed or given up");
        let entry = &mut partition.entries[slot as usize];
        assert_eq!(entry.state, State::Storing, "only the claim's owner ends it");
        (entry.bytes, entry.used_ns, entry.state) = (bytes, now_ns(), State::Present);
        entry.origin = Origin::stored(volume);
        self.note_insert(&partition, slot);
        self.objects.fetch_add(1, Ordering::Relaxed);
        self.hub.push(EventKind::Stored, bytes, || keyed.key.clone());
        true
    }

    /// Gives the claim of a store up.
    pub(crate) fn abort_store(&self, keyed: &Keyed) {
        self.partition(keyed.hash).remove(keyed);
    }

    /// The object, which stays until `end_load`; `None` is a miss.
    pub(crate) fn begin_load(&self, keyed: &Keyed) -> Option<Held> {
        let mut partition = self.partition(keyed.hash);
        let entry = partition.get(keyed).filter(|entry| entry.state == State::Present)?;
        entry.loads = entry.loads.checked_add(1)?;
        Some(entry.held())
    }

    /// Ends a load. When the object is doomed and this was its last load, gives it: the caller removes it.
    pub(crate) fn end_load(&self, keyed: &Keyed, used: bool) -> Option<Held> {
        let mut partition = self.partition(keyed.hash);
        let slot = partition.slot(keyed)?;
        let entry = &mut partition.entries[slot as usize];
        entry.loads -= 1;
        let (state, loads, held) = (entry.state, entry.loads, entry.held());
        if used && state == State::Present {
            // It was as long as the index knows.
            partition.entries[slot as usize].origin.see();
            self.used(&mut partition, slot, keyed);
        }
        (state == State::Doomed && loads == 0).then_some(held)
    }

    /// An object was used.
    fn used(&self, partition: &mut Partition, slot: u32, keyed: &Keyed) {
        let entry = &mut partition.entries[slot as usize];
        entry.used_ns = now_ns();
        self.hub.push(EventKind::Accessed, entry.bytes, || keyed.key.clone());
        self.note(partition, || Change::Access(self.id(keyed.hash, slot)));
    }

    /// An object goes out of sight.
    fn hide(&self, partition: &mut Partition, slot: u32, keyed: &Keyed) {
        partition.entries[slot as usize].state = State::Doomed;
        self.note(partition, || Change::Remove(self.id(keyed.hash, slot)));
    }

    /// Marks an object as gone, whoever has pinned it: its file has vanished or is damaged. Called during a load.
    pub(crate) fn doom(&self, keyed: &Keyed) {
        let mut partition = self.partition(keyed.hash);
        if let Some(slot) = partition.slot(keyed)
            && partition.entries[slot as usize].state == State::Present
        {
            self.hide(&mut partition, slot, keyed);
        }
    }

    /// Takes an object out of sight, to be deleted. Listeners hear of one that is not there, once it `is_whole` knowledge: that the disk
    /// has been asked, or need not be.
    ///
    /// # Errors
    /// [`Error::NotFound`], and [`Error::Pinned`] when it is pinned or being loaded.
    pub(crate) fn begin_delete(&self, keyed: &Keyed, is_whole: bool) -> Result<Held> {
        let now = self.now_ticks();
        let mut partition = self.partition(keyed.hash);
        let Some(slot) = partition.slot(keyed) else {
            if is_whole {
                self.hub.push(EventKind::Absent, 0, || keyed.key.clone());
            }
            return Err(Error::NotFound);
        };
        let entry = &partition.entries[slot as usize];
        if entry.state != State::Present {
            return Err(Error::NotFound);
        }
        let (held, pins, loads) = (entry.held(), entry.live_pins(now), u32::from(entry.loads));
        if pins > 0 || loads > 0 {
            return Err(Error::Pinned { pins, loads });
        }
        self.hide(&mut partition, slot, keyed);
        Ok(held)
    }

    /// The file is gone: the entry goes too.
    pub(crate) fn end_delete(&self, keyed: &Keyed) {
        let mut partition = self.partition(keyed.hash);
        let (bytes, doomed) = partition.remove(keyed).expect("what is doomed stays until its removal ends");
        assert!(doomed, "only what was taken out of sight is removed");
        self.objects.fetch_sub(1, Ordering::Relaxed);
        self.hub.push(EventKind::Deleted, bytes, || keyed.key.clone());
    }

    /// Whether the object was found by its name alone, and nobody has looked at its file yet.
    pub(crate) fn is_unseen(&self, keyed: &Keyed) -> bool {
        let mut partition = self.partition(keyed.hash);
        partition.get(keyed).is_some_and(|entry| entry.state == State::Present && entry.origin.is_unseen())
    }

    /// The object, if there is one that answers.
    pub(crate) fn present(&self, keyed: &Keyed) -> Option<Held> {
        let mut partition = self.partition(keyed.hash);
        partition.get(keyed).filter(|entry| entry.state == State::Present).map(|entry| entry.held())
    }

    /// An object has another file of the same key, on another volume, or of another size than was known, which stands for it from now on. Called by
    /// the key's home shard; false when it is not there any more.
    pub(crate) fn relocate(&self, keyed: &Keyed, to: Held) -> bool {
        let mut partition = self.partition(keyed.hash);
        let Some(slot) = partition.slot(keyed) else { return false };
        let entry = &mut partition.entries[slot as usize];
        if entry.state != State::Present || self.is_lost(to.volume) {
            return false;
        }
        let old_bytes = entry.bytes;
        if old_bytes == to.bytes {
            entry.origin = Origin::found(to.volume);
            return true;
        }
        // Listeners and lists know an object by its size.
        self.note(&partition, || Change::Remove(self.id(keyed.hash, slot)));
        self.hub.push(EventKind::Deleted, old_bytes, || keyed.key.clone());
        let entry = &mut partition.entries[slot as usize];
        (entry.bytes, entry.origin) = (to.bytes, Origin::found(to.volume));
        self.note_insert(&partition, slot);
        self.hub.push(EventKind::Recovered, to.bytes, || keyed.key.clone());
        true
    }

    /// The file could not be removed: the object is back. False when its volume was lost meanwhile: then it is still on its way out.
    pub(crate) fn abort_delete(&self, keyed: &Keyed) -> bool {
        let mut partition = self.partition(keyed.hash);
        if let Some(slot) = partition.slot(keyed) {
            if self.is_lost(partition.entries[slot as usize].origin.volume()) {
                return false;
            }
            partition.entries[slot as usize].state = State::Present;
            self.note_insert(&partition, slot);
        }
        true
    }

    /// Calls `note` if the key is absent, its volume is not lost, and nothing was removed since `seen`; no change of the key comes
    /// between.
    pub(crate) fn if_absent<T>(
        &self,
        keyed: &Keyed,
        volume: usize,
        seen: Epoch,
        note: impl FnOnce() -> T,
    ) -> Result<T, Entered> {
        let mut partition = self.partition(keyed.hash);
        if partition.get(keyed).is_some() {
            return Err(Entered::Known);
        }
        if partition.epoch != seen.0 || self.is_lost(volume) {
            return Err(Entered::Stale);
        }
        Ok(note())
    }

    /// Enters an object that was seen on disk.
    pub(crate) fn insert_recovered(&self, keyed: &Keyed, found: Seen, seen: Epoch) -> Entered {
        let mut partition = self.partition(keyed.hash);
        if partition.get(keyed).is_some() {
            return Entered::Known;
        }
        let mut tally = Tally::default();
        let entered = self.insert_in(&mut partition, keyed, found, seen, &mut tally);
        // The caller has told the ledger.
        self.tell(&mut tally, |_| {});
        entered
    }

    /// As [`Self::insert_recovered`] of a key that is absent, with the partition locked; the caller tells the tally before it unlocks it.
    fn insert_in(
        &self,
        partition: &mut Partition,
        keyed: &Keyed,
        found: Seen,
        seen: Epoch,
        tally: &mut Tally,
    ) -> Entered {
        let Held { bytes, volume } = found.object;
        if partition.epoch != seen.0 || self.is_lost(volume) {
            return Entered::Stale;
        }
        let slot = partition.insert(Entry {
            hash: keyed.hash,
            chunk: keyed.key.chunk_hash().clone(),
            bytes,
            used_ns: found.modified_ns,
            scope: keyed.scope,
            pins: 0,
            lease: 0,
            loads: 0,
            state: State::Present,
            origin: Origin::found(volume),
        });
        self.note_insert(partition, slot);
        tally.objects += 1;
        tally.recounts.push(Recount { salt: keyed.salt, from: None, to: Some(found.object) });
        tally.push(&self.hub, EventKind::Recovered, bytes, keyed);
        Entered::New
    }

    /// Number of objects in the index, hints among them.
    pub(crate) fn objects(&self) -> u64 {
        self.objects.load(Ordering::Relaxed)
    }
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}
