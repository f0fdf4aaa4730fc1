//! The engine as callers see it: batches in, tickets out.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::asker::{Ask, Asker};
use crate::completion::Signal;
use crate::config::Config;
use crate::core::{Core, Queued};
use crate::error::{Error, Result};
use crate::events::{EventMark, Listener};
use crate::index::{BeginStore, hash_of};
use crate::integrity::Integrity;
use crate::keep::Keeper;
use crate::key::ObjectKey;
use crate::leave::take_away;
use crate::ledger::AdapterUsage;
use crate::mem::{Buffer, Pool, merge_pages};
use crate::open::Opener;
use crate::report::{DeleteReport, LoadReport, LookupReport, StoreReport};
use crate::room::Reserved;
use crate::scan::RecoveryReport;
use crate::serve::Server;
use crate::shard::{Command, DeleteOp, LoadOp, StoreOp};
use crate::status::{SnapshotStatus, SpareStatus, Status};
use crate::steps::Step;
use crate::ticket::{Part, Report, Ticket, open_batch};
use crate::volume::{Closed, Guards, Volume};
use crate::watch::is_sampled;
use crate::watchdog::{Line, Watchdog};

/// Kinds of tickets that have an event descriptor of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Class {
    /// [`Engine::store`]
    Store,
    /// [`Engine::lookup_and_pin`]
    Lookup,
    /// [`Engine::load`]
    Load,
}

/// A local store of KV-cache objects in one directory, or in several, one a device.
///
/// Thread-safe: all methods take `&self`. Every submit returns at once; every ticket completes, by its deadline at the
/// latest. Dropping the engine closes it.
///
/// ```
/// use saltern::{Config, Engine, ObjectKey};
/// # let dir = tempfile::tempdir_in(".").unwrap();
/// let engine = Engine::open(Config::new(dir.path()))?;
/// let key = ObjectKey::new("meta-llama/Llama-3.1-8B", saltern::kv_rank(1, 0, 1, 0), 0, &[7; 32], "tenant-1")?;
/// let stored = engine.store(vec![(key.clone(), vec![42; 100_000].into())]).wait();
/// assert_eq!(stored.results[0].as_ref().unwrap(), &100_000);
/// let found = engine.lookup_and_pin(&[key.clone()]).wait();
/// let loaded = engine.load(vec![(key.clone(), vec![0; found.sizes[0].unwrap() as usize].into())]).wait();
/// assert!(loaded.buffers[0].as_ref().unwrap().as_slice().iter().all(|byte| *byte == 42));
/// engine.unpin(&[key]);
/// engine.close();
/// # Ok::<(), saltern::Error>(())
/// ```
pub struct Engine {
    pub(crate) core: Arc<Core>,
    pub(crate) shards: Vec<JoinHandle<()>>,
    pub(crate) scan: Option<JoinHandle<()>>,
    pub(crate) keeper: Option<Keeper>,
    pub(crate) server: Option<Server>,
    pub(crate) asker: Asker,
    pub(crate) guards: Guards,
    pub(crate) watchdog: Watchdog,
    pub(crate) tickets: AtomicU64,
}

impl Engine {
    /// Opens the directory and waits until its contents are known.
    ///
    /// # Errors
    /// As [`Opener::open`].
    pub fn open(config: Config) -> Result<Self> {
        Self::opener(config).open()
    }

    /// Opens with options.
    pub fn opener(config: Config) -> Opener {
        Opener { config, progress: Box::new(|_| {}), background: false }
    }

    /// Blocks until the scan of the directory is over, and says what it found.
    pub fn wait_recovered(&self) -> RecoveryReport {
        self.core.recovery.wait()
    }

    fn open_batch<R: Report>(&self, report: R, count: usize, line: Line, signal: Signal) -> (Ticket<R>, Vec<Part<R>>) {
        let (ticket, parts, batch) = open_batch(self.next_id(), report, count, signal);
        if count > 0 {
            self.watchdog.watch(line, batch);
        }
        (ticket, parts)
    }

    fn next_id(&self) -> u64 {
        self.tickets.fetch_add(1, Ordering::Relaxed)
    }

    /// Wakes each shard that got something, and tells of what was answered at once.
    fn ring(&self, touched: u64) {
        self.core.completion.flush();
        self.core.wake_all(touched);
    }

    /// Stores objects. The first store of a key wins: storing it again is a success with 0 new bytes, and two stores of one
    /// key in flight become one. An object that does not fit is refused as [`Error::Full`] or [`Error::OverQuota`] before any
    /// I/O; where not everything is admitted ([`Config::admission`]), what nobody has asked for as [`Error::NotAdmitted`]; where the
    /// engine evicts ([`Config::eviction`]), it waits for room first, and is refused when there can be none.
    ///
    /// Returns at once; the buffers come back with the results.
    pub fn store(&self, batch: Vec<(ObjectKey, Buffer)>) -> Ticket<StoreReport> {
        let count = batch.len();
        let (ticket, parts) =
            self.open_batch(StoreReport::open(count), count, Line::Store, Signal::to(&self.core.completion.store));
        let core = &self.core;
        let mut admitted = core.admit(count);
        // While the scan runs, what is used is not known: stores under a capacity wait for it.
        let defer = !core.recovery.is_complete() && core.config.capacity_bytes.is_some();
        let whole = core.index_is_whole();
        let mut touched = 0;
        for ((key, buffer), part) in batch.into_iter().zip(parts) {
            match &mut admitted {
                Ok(place) => {
                    let op = self.name_store(&key, buffer, part, place());
                    touched |= op.map_or(0, |op| self.begin_store(op, defer, whole));
                }
                Err(error) => drop(part.answer((Err(error.clone()), Some(buffer)))),
            }
        }
        if defer && core.recovery.is_over() {
            // The scan ended while these were being put aside: nobody else will release them.
            core.release_deferred();
        }
        self.ring(touched);
        ticket
    }

    /// Checks one object, and finds its name; `None` when it was refused, and answered.
    fn name_store(&self, key: &ObjectKey, buffer: Buffer, part: Part<StoreReport>, queued: Queued) -> Option<StoreOp> {
        let core = &self.core;
        let (bytes, limit) = (buffer.len() as u64, core.config.max_object_bytes);
        let name = if bytes > limit {
            Err(Error::TooLarge { bytes, limit })
        } else {
            // Refused here, too, so that nothing is evicted for it.
            core.volumes.check_writable().and_then(|()| core.config.layout.encode(key).map_err(Error::from))
        };
        match name {
            Ok(name) => {
                let keyed = core.index.keyed(key, core.ledger());
                Some(StoreOp { keyed, name, buffer, part, claimed: false, volume: 0, _queued: queued })
            }
            Err(error) => {
                core.counts.store_errors.add(1);
                part.answer((Err(error), Some(buffer)));
                None
            }
        }
    }

    /// Claims the key and reserves its bytes, and hands the store to its shard; where the index is not whole, the shard claims
    /// it when it has asked the disk. Gives the shards to wake, a bit each.
    fn begin_store(&self, op: StoreOp, defer: bool, whole: bool) -> u64 {
        let core = &self.core;
        if defer {
            core.deferred.lock().push(op);
            return 0;
        }
        let home = core.home(&op.keyed, &op.name);
        if !whole {
            core.mailboxes[home].push(Command::Store(op));
            return 1 << home;
        }
        match core.index.begin_store(&op.keyed) {
            BeginStore::Present => {
                op.part.answer((core.confirm(), Some(op.buffer)));
                return 0;
            }
            // The shard will see when the key is free.
            BeginStore::Busy => core.mailboxes[home].push(Command::Store(op)),
            BeginStore::New => match core.reserve(op) {
                Reserved::Now(op) => {
                    core.config.steps.at(Step::Reserved, &op.keyed.key);
                    core.mailboxes[home].push(Command::Store(op));
                }
                Reserved::Later => return 0,
                Reserved::Never(op, error) => {
                    op.part.answer((Err(error), Some(op.buffer)));
                    // Stores that met the claim meanwhile are waiting for it at the key's home.
                    core.mailboxes[home].push(Command::Released(op.keyed));
                }
            },
        }
        1 << home
    }

    /// Looks keys up, and pins what is found: until `unpin`, or until the lease ends, it is not deleted.
    ///
    /// Answers from memory, without waiting behind I/O; while the scan runs, and always where other programs write to the
    /// directory ([`Config::discovery`]), keys that the index lacks, or knows from a snapshot alone, are asked of the disk, on a thread of their own. A key
    /// that has no valid file name is a miss.
    pub fn lookup_and_pin(&self, keys: &[ObjectKey]) -> Ticket<LookupReport> {
        let core = &self.core;
        let id = self.next_id();
        let begun = is_sampled(id).then(Instant::now);
        // Before the index is asked: what it lacks then does not exist.
        let whole = core.index_is_whole();
        let sizes = core.index.lookup_and_pin(keys, core.config.pin_lease);
        if let Some(admission) = &core.admission {
            keys.iter().for_each(|key| admission.looked_up(hash_of(key)));
        }
        let is_known = |(key, size): (&ObjectKey, &Option<u64>)| size.is_some() || core.absent.knows(hash_of(key));
        if whole || core.closing.load(Ordering::Acquire) || keys.iter().zip(&sizes).all(is_known) {
            core.count_lookups(&sizes);
            Signal::to(&core.completion.lookup).note();
            core.completion.lookup.flush();
            if let Some(begun) = begun {
                core.lookup_watch.memory.record(begun.elapsed());
            }
            return Ticket::ready(id, LookupReport { sizes });
        }
        self.ask(keys, sizes)
    }

    /// The slow way of a lookup: some keys have to be asked of the disk.
    fn ask(&self, keys: &[ObjectKey], sizes: Vec<Option<u64>>) -> Ticket<LookupReport> {
        let core = &self.core;
        let report = LookupReport { sizes: vec![None; keys.len()] };
        let (ticket, parts) = self.open_batch(report, keys.len(), Line::Lookup, Signal::to(&core.completion.lookup));
        let mut admitted = core.admit(keys.len()).ok();
        for ((key, size), part) in keys.iter().zip(sizes).zip(parts) {
            match (size, &mut admitted) {
                (None, Some(place)) if !core.absent.knows(hash_of(key)) => {
                    let ask = Ask { key: key.clone(), part, _queued: place() };
                    if let Err(error) = self.asker.ask(core, ask) {
                        tracing::error!(%error, "a lookup could not be handed to its thread; it is a miss");
                    }
                }
                (size, place) => {
                    drop(place.as_mut().map(|place| place()));
                    core.count_lookups(&[size]);
                    part.answer(size);
                }
            }
        }
        core.completion.flush();
        ticket
    }

    /// Loads objects into the buffers. A buffer has to be as long as the object (see also
    /// [`Config::padding_bytes`]); nothing is written past its end.
    ///
    /// Returns at once; the buffers come back with the results.
    pub fn load(&self, batch: Vec<(ObjectKey, Buffer)>) -> Ticket<LoadReport> {
        let count = batch.len();
        let (ticket, parts) =
            self.open_batch(LoadReport::open(count), count, Line::Load, Signal::to(&self.core.completion.load));
        let core = &self.core;
        let mut admitted = core.admit(count);
        let mut touched = 0;
        for ((key, buffer), part) in batch.into_iter().zip(parts) {
            let place = admitted.as_mut().map_err(|error| error.clone()).map(|place| place());
            let name = core.config.layout.encode(&key).map_err(Error::from);
            match place.and_then(|queued| Ok((queued, name?))) {
                Ok((_queued, name)) => {
                    let keyed = core.index.keyed(&key, core.ledger());
                    let home = core.home(&keyed, &name);
                    core.mailboxes[home].push(Command::Load(LoadOp { keyed, name, buffer, part, _queued }));
                    touched |= 1 << home;
                }
                Err(error) => {
                    core.counts.load_errors.add(1);
                    part.answer((Err(error), Some(buffer)));
                }
            }
        }
        self.ring(touched);
        ticket
    }

    /// Releases one pin of each key; gives how many pins were released. Does not block.
    ///
    /// Pins are counted by key, not by owner: a client that unpins after its lease has ended may release the pin of another
    /// client that came since. Nothing wrong is ever loaded because of it; the object may be deleted early.
    pub fn unpin(&self, keys: &[ObjectKey]) -> usize {
        self.core.index.unpin(keys)
    }

    /// Deletes objects. What is pinned or being loaded is refused ([`Error::Pinned`]). Returns at once.
    ///
    /// A delete is not synced: after a power cut the object may be back.
    pub fn delete(&self, keys: &[ObjectKey]) -> Ticket<DeleteReport> {
        let (ticket, parts) = self.open_batch(DeleteReport::open(keys.len()), keys.len(), Line::Load, Signal::none());
        let core = &self.core;
        let mut admitted = core.admit(keys.len());
        let mut touched = 0;
        for (key, part) in keys.iter().zip(parts) {
            let place = admitted.as_mut().map_err(|error| error.clone()).map(|place| place());
            let name = core.config.layout.encode(key).map_err(Error::from);
            match place.and_then(|queued| Ok((queued, name?))) {
                Ok((_queued, name)) => {
                    let keyed = core.index.keyed(key, core.ledger());
                    let home = core.home(&keyed, &name);
                    core.mailboxes[home].push(Command::Delete(DeleteOp { keyed, name, part, _queued }));
                    touched |= 1 << home;
                }
                Err(error) => drop(part.answer(Err(error))),
            }
        }
        self.ring(touched);
        ticket
    }

    /// Bytes in use, in total and by salt.
    pub fn usage(&self) -> AdapterUsage {
        self.core.ledger().shared_usage()
    }

    /// What the engine says of itself. Makes a system call or two.
    pub fn status(&self) -> Status {
        self.core.status()
    }
}

impl Core {
    /// As [`Engine::status`].
    pub(crate) fn status(&self) -> Status {
        let core = self;
        let (used_bytes, reserved_bytes) = core.ledger().shared_totals();
        let mut shards = core.shard_status.lock().clone();
        for ((shard, watch), mailbox) in shards.iter_mut().zip(&core.watches).zip(&core.mailboxes) {
            shard.queues = watch.queues(mailbox.len());
        }
        let mut problems = Vec::new();
        for (number, status) in shards.iter_mut().enumerate() {
            status.is_running = core.stopped_shards.load(Ordering::Relaxed) & (1 << number) == 0;
            if !status.is_running {
                problems.push(format!("shard {number} has failed; close the engine and open it again"));
            }
        }
        let volumes: Vec<_> = core.volumes.iter().map(Volume::status).collect();
        for volume in &volumes {
            problems.extend(volume.problems.iter().map(|problem| format!("{}: {problem}", volume.medium.dir)));
        }
        for (dir, error) in &core.volumes.missing {
            problems.push(format!("{} could not be opened: {error}", dir.display()));
        }
        if let Some(RecoveryReport { error: Some(error), .. }) = core.recovery.peek() {
            problems.push(format!("the scan ended early: {error}"));
        }
        Status {
            is_healthy: problems.is_empty(),
            problems,
            notes: core.notes.lock().clone(),
            layout: core.config.layout,
            durability: core.config.durability,
            recovered: core.recovery.is_complete(),
            objects: core.index.objects(),
            latent_objects: core.latent.objects(),
            snapshot: SnapshotStatus { hinted_objects: core.index.hints(), ..core.kept.status.lock().clone() },
            used_bytes,
            reserved_bytes,
            capacity_bytes: core.ledger().shared_capacity_bytes(),
            eviction: core.config.eviction,
            admission: core.config.admission,
            evicting_objects: core.room.evicting(),
            waiting_stores: core.room.waiting(),
            salts: core.ledger().salts(),
            default_quota_bytes: core.config.default_quota_bytes,
            queued_objects: core.queued.load(Ordering::Relaxed) as u64,
            shards,
            integrity: if volumes.iter().all(|volume| volume.medium.user_attributes) {
                core.config.integrity
            } else {
                Integrity::Off
            },
            write_zeroes: core.volumes.iter().all(|volume| volume.dir.writes_zeroes()),
            spares: SpareStatus::of_all(&volumes),
            volumes,
            pool: core.pool.status(),
            latency: core.distributions().status(),
            devices: core.devices.lock().iter().map(|attached| attached.status()).collect(),
            counters: core.counts.snapshot(core.ledger().underflows()),
        }
    }
}

impl Engine {
    /// Tells a listener of every change from now on, after a replay of all objects that there are, the least recently used
    /// first. Before the scan is complete, the replay waits for it, unless there was a snapshot of an earlier run: then it is what that
    /// says, and what the scan finds to be otherwise follows as changes.
    ///
    /// # Errors
    /// [`Error::Io`] when no thread can be had.
    pub fn subscribe(&self, listener: Arc<dyn Listener>) -> Result<()> {
        self.core.hub.subscribe(&self.core.index, listener)
    }

    /// A mark in the stream of events: once it is reached, listeners have heard of all that was done before this call.
    /// Returns at once.
    pub fn event_mark(&self) -> EventMark {
        self.core.hub.mark()
    }

    /// An eventfd that becomes readable when tickets of this class complete: its counter grows by one for each. The three
    /// are distinct, live as long as the engine, and work with poll, epoll and io_uring. Ask for it before submitting: tickets that
    /// have completed before the first call are not counted.
    pub fn event_fd(&self, class: Class) -> BorrowedFd<'_> {
        match class {
            Class::Store => self.core.completion.store.arm(),
            Class::Lookup => self.core.completion.lookup.arm(),
            Class::Load => self.core.completion.load.arm(),
        }
    }

    /// The pool of page-aligned buffers: objects in them move without a copy.
    pub fn pool(&self) -> &Pool {
        &self.core.pool
    }

    /// Registers memory (a daemon's arena) with every shard's ring, so that [`Buffer::foreign`] in it costs less CPU. Where
    /// the kernel refuses, buffers in it work all the same; `status` says so. Its pages are merged into huge ones before, as far as the kernel does
    /// that (contents stay, and others may use them meanwhile): requests of whole segments then reach the device in fewer parts. Blocks meanwhile, for 10 s at
    /// most; an arena that is pinned already is left as it is.
    ///
    /// # Errors
    /// None at present; what the kernel refuses is a warning.
    ///
    /// # Safety
    /// The memory stays mapped, at this address, until the engine is closed.
    #[expect(unsafe_code, reason = "passes the caller's promise on to the registry")]
    pub unsafe fn lend_arena(&self, ptr: *mut u8, len: usize) -> Result<()> {
        let merged_bytes = merge_pages(ptr, len);
        tracing::debug!(len, merged_bytes, "an arena is registered");
        // SAFETY: the caller keeps the memory until the engine is closed, and closing joins the shards with their rings.
        unsafe { self.core.registry.add(ptr, len) }?;
        for (shard, mailbox) in self.core.mailboxes.iter().enumerate() {
            mailbox.push(Command::Adopt);
            self.core.wake(shard);
        }
        Ok(())
    }

    /// Closes: I/O that has begun ends, what has not is answered with [`Error::Closed`]. Blocks until the kernel is done with
    /// every buffer; after that, lent memory may be freed.
    pub fn close(self) {
        drop(self);
    }

    fn shut_down(&mut self) {
        let core = &self.core;
        core.closing.store(true, Ordering::Release);
        core.recovery.stop.store(true, Ordering::Relaxed);
        if let Some(mut server) = self.server.take() {
            server.stop();
        }
        if let Some(scan) = self.scan.take() {
            let _ = scan.join();
        }
        if let Some(mut keeper) = self.keeper.take() {
            keeper.stop();
        }
        core.release_deferred();
        core.close_room();
        self.guards.close(core);
        for (shard, mailbox) in core.mailboxes.iter().enumerate() {
            mailbox.push(Command::Close);
            core.wake(shard);
        }
        for shard in self.shards.drain(..) {
            if shard.join().is_err() {
                tracing::error!("a shard had panicked");
            }
        }
        self.asker.close();
        if !core.config.persist {
            take_away(core);
        }
        let saved_ns = core.save_at_close();
        for (number, volume) in core.volumes.up() {
            let closed = saved_ns.and_then(|written_ns| {
                let changed_ns = volume.dir.last_change_ns()?;
                Some(Closed { written_ns, changed_ns })
            });
            volume.dir.trust.end(closed, || {
                let is_known = core.recovery.is_complete() && core.latent.objects() == 0;
                is_known.then(|| core.index.lock_all().hashes(number))
            });
        }
        self.core.completion.flush();
        self.core.hub.close();
        self.watchdog.stop();
        let (core, config) = (&self.core, &self.core.config);
        let dirs: Vec<_> = core.volumes.up().map(|(_, volume)| &volume.dir).collect();
        let knows = core.recovery.is_complete() && dirs.iter().all(|dir| dir.is_in_place());
        if knows && config.persist && !core.failed.load(Ordering::Acquire) {
            let paths: Vec<_> = dirs.iter().map(|dir| dir.path()).collect();
            config.steps.at_close(&paths, config.layout, || core.ledger().shared_usage());
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("dirs", &self.core.config.dirs().collect::<Vec<_>>()).finish_non_exhaustive()
    }
}
