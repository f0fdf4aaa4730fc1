//! Opening an engine: the directories are taken, threads are started, the scans fill the index.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::thread::JoinHandle;

use crossbeam::sync::WaitGroup;
use crossbeam::utils::CachePadded;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use parking_lot::Mutex;

use crate::absent::Absent;
use crate::admission::Filter;
use crate::asker::Asker;
use crate::completion::CompletionFds;
use crate::config::Config;
use crate::core::Core;
use crate::counts::Counts;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::events::Hub;
use crate::index::Index;
use crate::keep::{self, Keeper};
use crate::latent::Latent;
use crate::mem::Pool;
use crate::quotas::Kept;
use crate::ring::BufferRegistry;
use crate::room::Room;
use crate::scan::{Recovery, RecoveryReport, scan_all};
use crate::serve::Server;
use crate::shard::{Mailbox, Shard, reserve_descriptors};
use crate::status::ShardStatus;
use crate::volume::{Guards, Losses, Volumes};
use crate::watch::{LookupWatch, ShardQueues};
use crate::watchdog::Watchdog;

/// The note for operators after an unclean reboot, or a failed sync.
const CHECKS_FIRST_USE: &str = "the machine went down under an earlier engine, or a sync failed: what was found is checked \
    before its first use";

pub(crate) type Progress = Box<dyn Fn(u64) + Send + Sync>;

/// How to open an engine, beyond its configuration.
pub struct Opener {
    pub(crate) config: Config,
    pub(crate) progress: Progress,
    pub(crate) background: bool,
}

impl Opener {
    /// Calls `progress` with the number of directory entries seen so far, on a scanning thread.
    pub fn progress(mut self, progress: impl Fn(u64) + Send + Sync + 'static) -> Self {
        self.progress = Box::new(progress);
        self
    }

    /// Returns before the scan is complete. Until then keys that the scan has not come to are asked of the disk, whether a snapshot of
    /// an earlier run tells of them or not, and stores wait for the scan where there is a capacity. Usage, and what listeners are
    /// replayed, is what the snapshot says, where there is one, and follows the scan.
    pub fn background(mut self, background: bool) -> Self {
        self.background = background;
        self
    }

    /// Opens. Blocks for the scan of the directory, unless it runs in the background.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::VolumeOwned`], [`Error::RingUnavailable`], and [`Error::Io`] for the directory.
    pub fn open(self) -> Result<Engine> {
        let Self { config, progress, background } = self;
        config.validate()?;
        let mut engine = start(config)?;
        let core = engine.core.clone();
        let mut unfinished = 0;
        for volume in core.volumes.iter() {
            unfinished += volume.dir.remove_unfinished()?;
        }
        let hinted = WaitGroup::new();
        let theirs = hinted.clone();
        let scan = move || {
            // Whoever waits for the scan must hear of its end, also when it panics.
            let scanned = catch_unwind(AssertUnwindSafe(|| scan_all(&core, theirs, &*progress)));
            let mut report = scanned
                .unwrap_or_else(|_| RecoveryReport { error: Some("it panicked".into()), ..RecoveryReport::default() });
            report.unfinished = unfinished;
            if report.error.is_none() {
                match core.sweep_hints() {
                    Ok(gone) => report.gone = gone,
                    Err(error) => report.error = Some(error.to_string()),
                }
            }
            if let Some(error) = &report.error {
                tracing::error!(error, "the scan ended early; what it did not see is asked of the disk");
            }
            if core.volumes.iter().any(|volume| volume.dir.trust.is_limited()) {
                core.note(CHECKS_FIRST_USE.into());
            }
            core.index.start_order();
            core.suspect(core.ledger().all_over_quota());
            core.recovery.finish(report);
            core.release_deferred();
            core.hub.recovered(&core.index);
        };
        if background {
            engine.scan = Some(spawn("saltern-scan", scan)?);
            // What the snapshots say is counted from the first moment on.
            hinted.wait();
            let core = &engine.core;
            if core.index.hints() > 0 {
                // Who subscribes from now on hears of them at once.
                core.hub.recovered(&core.index);
            }
        } else {
            scan();
            if let Some(RecoveryReport { error: Some(reason), .. }) = engine.core.recovery.peek() {
                return Err(Error::Config { option: "dir", reason: format!("the scan failed: {reason}") });
            }
        }
        Ok(engine)
    }
}

/// Takes the directories and starts all threads but the scan's.
fn start(config: Config) -> Result<Engine> {
    let volumes = Volumes::open(&config)?;
    reserve_descriptors(volumes[0].dir.lock_fd(), &config);
    let pool = Pool::new(config.pool_bytes)?;
    let registry = BufferRegistry::new();
    register(&registry, &pool)?;
    let hub = Arc::new(Hub::new());
    let counts = Arc::new(Counts::default());
    let completion = Arc::new(CompletionFds::new()?);
    let watchdog = Watchdog::start(&config, counts.clone(), completion.clone());
    let watchdog = watchdog.map_err(|error| Error::spawn("saltern-deadline", &error))?;
    let core = Arc::new(Core {
        mailboxes: (0..config.shards.max(volumes.len())).map(|_| Mailbox::new()).collect::<Result<_>>()?,
        latent: Latent::default(),
        absent: Absent::new(config.absent_ttl),
        index: Arc::new(Index::new(hub.clone(), Room::policy(&config))),
        admission: Filter::new(config.admission),
        room: Room::new(&config),
        quotas: Kept::open(&volumes)?,
        kept: keep::Kept::default(),
        notes: Mutex::default(),
        losses: Losses::default(),
        hub,
        recovery: Recovery::default(),
        completion,
        counts,
        registry,
        devices: Mutex::default(),
        pool,
        shard_status: Mutex::new(Vec::new()),
        watches: (0..config.shards.max(volumes.len())).map(|_| CachePadded::default()).collect(),
        lookup_watch: LookupWatch::default(),
        closing: AtomicBool::new(false),
        failed: AtomicBool::new(false),
        stopped_shards: AtomicU64::new(0),
        queued: Arc::new(AtomicUsize::new(0)),
        deferred: Mutex::default(),
        volumes,
        config,
    });
    for (dir, error) in &core.volumes.missing {
        core.note(format!("{} could not be opened, and is left out: {error}", dir.display()));
    }
    core.apply_quotas();
    let mut engine = Engine {
        shards: Vec::new(),
        scan: None,
        keeper: None,
        server: None,
        asker: Asker::default(),
        guards: Guards::default(),
        watchdog,
        tickets: AtomicU64::new(1),
        core,
    };
    // From here on closing takes the marks away.
    engine.core.volumes.iter().for_each(|volume| volume.dir.trust.start());
    start_shards(&mut engine)?;
    engine.guards = Guards::start(&engine.core)?;
    engine.keeper = Some(Keeper::start(&engine.core)?);
    engine.server = Some(Server::start(&engine.core));
    if let Some(device) = engine.core.config.loopback.clone() {
        engine.attach_loopback(device)?;
    }
    Ok(engine)
}

fn start_shards(engine: &mut Engine) -> Result<()> {
    let cpus = if engine.core.config.pin_shards { usable_cpus() } else { Vec::new() };
    for me in 0..engine.core.mailboxes.len() {
        // From the last CPU on: the first ones usually serve interrupts.
        let cpu = (!cpus.is_empty()).then(|| cpus[cpus.len() - 1 - me % cpus.len()]);
        let (sender, receiver) = crossbeam::channel::bounded(1);
        let core = engine.core.clone();
        engine.shards.push(spawn(&format!("saltern-shard-{me}"), move || {
            let pinned = cpu.filter(|cpu| pin_to(*cpu));
            match Shard::new(core, me) {
                Ok(mut shard) => {
                    let _ = sender.send(Ok(ShardStatus {
                        volume: shard.volume() as u64,
                        cpu: pinned.map(|cpu| cpu as u32),
                        ring: shard.ring().features().to_vec(),
                        fixed_buffers: shard.ring().buffers().means(),
                        io_priority: shard.ring().has_priorities(),
                        is_running: true,
                        queues: ShardQueues::default(),
                    }));
                    if let Err(error) = shard.run() {
                        tracing::error!(%error, me, "a shard failed");
                    }
                }
                Err(error) => drop(sender.send(Err(error))),
            }
        })?);
        let status = receiver.recv().unwrap_or(Err(Error::ShardFailed))?;
        engine.core.shard_status.lock().push(status);
    }
    Ok(())
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(work).map_err(|error| Error::spawn(name, &error))
}

/// Tells a registry of a pool that lives longer than the rings which adopt it.
#[expect(unsafe_code, reason = "the engine vouches for its own pools")]
pub(crate) fn register(registry: &BufferRegistry, pool: &Pool) -> Result<()> {
    let (ptr, len) = pool.span();
    // SAFETY: `Core` holds a clone of each pool that is passed here, and the shards' threads hold `Core` for as long as their
    // rings live; `verify`'s threads borrow what holds theirs.
    unsafe { registry.add(ptr, len) }
}

fn usable_cpus() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else { return Vec::new() };
    (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect()
}

fn pin_to(cpu: usize) -> bool {
    let mut set = CpuSet::new();
    set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)).is_ok()
}
