//! Rebuilding the index from the directories when an engine starts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crossbeam::sync::WaitGroup;
use nix::errno::Errno;
use parking_lot::{Condvar, Mutex};
use serde::Serialize;

use super::Foreign;
use super::walk::{Name, Names, Walk};
use crate::config::Discovery;
use crate::core::Core;
use crate::discover::{Found, Seen};
use crate::error::{Error, Result};
use crate::index::{Keyed, LastScope};
use crate::layout::{Decoder, Layout};

/// What the scan at open found.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// Objects that the scan was the first to find, or to count; of those that a snapshot told of, the first to see.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects that the snapshot of an earlier run told of; 0 without one.
    pub from_snapshot: u64,
    /// Of these, how many were found to be gone when the scan had ended.
    pub gone: u64,
    /// Unfinished stores that were removed.
    pub unfinished: u64,
    /// Entries that are not objects of the layout; they are left alone.
    pub foreign: Foreign,
    /// Time the scan took.
    pub seconds: f64,
    /// Why the scan ended early; objects that it did not see are found by asking the disk.
    pub error: Option<String>,
}

/// The state of the recovery, shared by the scan and those who wait for it.
#[derive(Default)]
pub(crate) struct Recovery {
    complete: AtomicBool,
    report: Mutex<Option<RecoveryReport>>,
    finished: Condvar,
    pub(crate) stop: AtomicBool,
}

impl Recovery {
    /// Whether the index knows the whole directory, so that what it lacks does not exist.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// Whether the scan has ended, complete or not.
    pub(crate) fn is_over(&self) -> bool {
        self.report.lock().is_some()
    }

    pub(crate) fn finish(&self, report: RecoveryReport) {
        let whole = report.error.is_none() && !self.stop.load(Ordering::Relaxed);
        self.complete.store(whole, Ordering::Release);
        *self.report.lock() = Some(report);
        self.finished.notify_all();
    }

    pub(crate) fn wait(&self) -> RecoveryReport {
        let mut report = self.report.lock();
        loop {
            match &*report {
                Some(report) => return report.clone(),
                None => self.finished.wait(&mut report),
            }
        }
    }

    pub(crate) fn peek(&self) -> Option<RecoveryReport> {
        self.report.lock().clone()
    }
}

/// One scanning thread's share of the report.
struct Share<'a> {
    total: &'a Mutex<RecoveryReport>,
    objects: u64,
    bytes: u64,
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let mut total = self.total.lock();
        total.objects += self.objects;
        total.bytes += self.bytes;
    }
}

/// Scans all volumes, side by side, into index and ledger, and takes up what their snapshots say meanwhile: when all have, `hinted` is
/// dropped. A volume that cannot be read to the end is taken out where it may be missing, and is not the last.
pub(crate) fn scan_all(core: &Arc<Core>, hinted: WaitGroup, progress: &(dyn Fn(u64) + Send + Sync)) -> RecoveryReport {
    let start = Instant::now();
    let seen: Vec<_> = core.volumes.iter().map(|_| AtomicU64::new(0)).collect();
    let twins = WaitGroup::new();
    let scan_one = |volume: usize, hinted: Option<WaitGroup>| {
        let scan = Scan {
            core,
            volume,
            layout: core.config.layout,
            counts_only: core.config.discovery == Discovery::Ask,
            twins: &twins,
        };
        scan.run(hinted, &|count| {
            seen[volume].store(count, Ordering::Relaxed);
            progress(seen.iter().map(|count| count.load(Ordering::Relaxed)).sum());
        })
    };
    let mut total = RecoveryReport::default();
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..core.volumes.len())
            .map(|volume| {
                let (name, hinted) = (format!("saltern-scan-{volume}"), Some(hinted.clone()));
                (volume, std::thread::Builder::new().name(name).spawn_scoped(scope, move || scan_one(volume, hinted)))
            })
            .collect();
        total.add(scan_one(0, Some(hinted)));
        for (volume, thread) in others {
            total.add(match thread {
                Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                // A thread that cannot be had is no error: it takes longer. There are callers by now, so it is too late for hints.
                Err(_) => scan_one(volume, None),
            });
        }
    });
    // What their home shards do about second files is part of what was found.
    twins.wait();
    total.seconds = start.elapsed().as_secs_f64();
    total
}

impl RecoveryReport {
    fn add(&mut self, other: Self) {
        self.objects += other.objects;
        self.bytes += other.bytes;
        self.from_snapshot += other.from_snapshot;
        self.foreign.merge(other.foreign);
        self.error = self.error.take().or(other.error);
    }
}

/// One volume's scan.
struct Scan<'a> {
    core: &'a Arc<Core>,
    volume: usize,
    layout: Layout,
    /// Count what is there, without entering it.
    counts_only: bool,
    twins: &'a WaitGroup,
}

impl Scan<'_> {
    /// The first of its threads takes the snapshot's hints before it joins the others; `hinted` is dropped then. Without it there are none.
    fn run(&self, hinted: Option<WaitGroup>, progress: &(dyn Fn(u64) + Sync)) -> RecoveryReport {
        let Self { core, volume, .. } = *self;
        let dir = &core.volumes[volume].dir;
        let total = Mutex::new(RecoveryReport::default());
        let mut from_snapshot = 0;
        let scanned = dir.reopen().and_then(|fd| {
            let walk = Walk::new(fd, dir.path(), self.layout, &core.recovery.stop)?;
            let first = || {
                if let Some(hinted) = hinted {
                    from_snapshot = core.take_hints(volume);
                    drop(hinted);
                }
            };
            let visitor = || {
                let mut decoder = Decoder::new(self.layout);
                let mut share = Share { total: &total, objects: 0, bytes: 0 };
                let mut last = None;
                move |names: &Names| self.visit(&mut decoder, &mut last, &mut share, names)
            };
            walk.run(core.config.scan_threads, first, visitor, progress)
        });
        if let Err(error) = &scanned
            && !core.config.require_volumes
        {
            core.give_up_on(volume, format!("the scan failed: {error}"));
        }
        let mut report = total.into_inner();
        report.from_snapshot = from_snapshot;
        if core.volumes[volume].is_up() {
            report.error = scanned.err().map(|error| error.to_string());
        }
        report
    }

    fn visit(
        &self,
        decoder: &mut Decoder,
        last: &mut Option<LastScope>,
        share: &mut Share<'_>,
        names: &Names,
    ) -> Result<()> {
        let Self { core, volume, .. } = *self;
        if !core.volumes[volume].is_up() {
            return Err(core.volume_failed(volume));
        }
        let (mut keys, mut files, mut listed) = (Vec::new(), Vec::new(), Vec::new());
        for name in names.iter() {
            let path = name.path();
            let foreign = |reason: &dyn ToString| share.total.lock().foreign.add(&path, reason.to_string());
            match (name.foreign(), decoder.decode(&path)) {
                (Some(reason), _) => foreign(&reason),
                (None, Err(reason)) => foreign(&reason),
                (None, Ok(key)) => {
                    keys.push(core.index.keyed_in_turn(key, core.ledger(), last));
                    listed.push(name.is_file());
                    files.push(name);
                }
            }
        }
        let look = |number: usize| self.look(files[number], share.total);
        let discover = core.discover();
        let found = if self.counts_only {
            keys.iter().enumerate().map(|(number, keyed)| discover.count(keyed, || look(number))).collect()
        } else {
            discover.enter_all(&keys, volume, &listed, look)
        };
        for ((found, keyed), name) in found?.into_iter().zip(keys).zip(&files) {
            match found {
                Found::New(bytes) => {
                    share.objects += 1;
                    share.bytes += bytes;
                }
                Found::Known if !core.volumes.is_single() => self.note_twin(keyed, &name.path())?,
                Found::Known | Found::Nowhere => {}
            }
        }
        Ok(())
    }

    /// What there is under a name that may be an object's.
    fn look(&self, name: Name<'_>, total: &Mutex<RecoveryReport>) -> Result<Option<Seen>> {
        let Self { core, volume, .. } = *self;
        match name.stat() {
            // What a lost volume has is nowhere.
            Ok(_) if !core.volumes[volume].is_up() => Ok(None),
            Ok(stat) if stat.is_regular => Ok(Some(Seen::file(&stat, volume))),
            Ok(_) => {
                total.lock().foreign.add(&name.path(), "not a regular file");
                Ok(None)
            }
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(Error::io("statx", core.volumes[volume].dir.path().join(&*name.path()), errno)),
        }
    }

    /// The key was known: if by a file of another volume, its home shard decides which of them stays.
    fn note_twin(&self, keyed: Keyed, path: &str) -> Result<()> {
        let Self { core, volume, .. } = *self;
        if self.counts_only {
            // It may only be counted so far: then it is entered, from the volume that goes first.
            core.ask_disks(&keyed, path, Some(self.twins))?;
        }
        if core.index.present(&keyed).is_some_and(|known| known.volume == volume) {
            return Ok(());
        }
        core.report_twin(keyed, path, volume, Some(self.twins));
        Ok(())
    }
}
