//! Rebuilding the index from the directory when an engine starts.

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use nix::errno::Errno;
use parking_lot::{Condvar, Mutex};
use serde::Serialize;

use super::Foreign;
use super::walk::{Seen, Walk};
use crate::discover::Discover;
use crate::error::{Error, Result};
use crate::layout::{Decoder, Layout};
use crate::volume::Volume;

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
        self.complete.load(std::sync::atomic::Ordering::Acquire)
    }

    /// Whether the scan has ended, complete or not.
    pub(crate) fn is_over(&self) -> bool {
        self.report.lock().is_some()
    }

    pub(crate) fn finish(&self, report: RecoveryReport) {
        let whole = report.error.is_none() && !self.stop.load(std::sync::atomic::Ordering::Relaxed);
        self.complete.store(whole, std::sync::atomic::Ordering::Release);
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

/// What a scan needs to know.
pub(crate) struct Scan<'a> {
    pub(crate) volume: &'a Volume,
    pub(crate) layout: Layout,
    pub(crate) discover: Discover<'a>,
    /// Count what is there, without entering it.
    pub(crate) counts_only: bool,
    pub(crate) threads: usize,
}

impl Scan<'_> {
    /// Scans the volume into index and ledger.
    pub(crate) fn run(&self, recovery: &Recovery, progress: &(dyn Fn(u64) + Sync)) -> RecoveryReport {
        let start = Instant::now();
        let total = Mutex::new(RecoveryReport::default());
        let scanned = self.volume.reopen().and_then(|dir| {
            let walk = Walk::new(dir, self.volume.path(), self.layout, &recovery.stop)?;
            let visitor = || {
                let mut decoder = Decoder::new(self.layout);
                let mut share = Share { total: &total, objects: 0, bytes: 0 };
                move |seen: Seen<'_>| self.visit(&mut decoder, &mut share, &seen)
            };
            walk.run(self.threads, visitor, progress)
        });
        let mut report = total.into_inner();
        report.error = scanned.err().map(|error| error.to_string());
        report.seconds = start.elapsed().as_secs_f64();
        report
    }

    fn visit(&self, decoder: &mut Decoder, share: &mut Share<'_>, seen: &Seen<'_>) -> Result<()> {
        let (path, stat) = match seen {
            Seen::File { path, stat } => (path, stat),
            Seen::Foreign { path, reason } => {
                share.total.lock().foreign.add(path, reason);
                return Ok(());
            }
        };
        let key = match decoder.decode(path) {
            Ok(key) => key,
            Err(reason) => {
                share.total.lock().foreign.add(path, reason);
                return Ok(());
            }
        };
        let keyed = self.discover.index.keyed(&key, self.discover.ledger);
        let total = share.total;
        let look = || match stat() {
            Ok(stat) if stat.is_regular => Ok(Some((stat.bytes, stat.modified_ns))),
            Ok(_) => {
                total.lock().foreign.add(path, "not a regular file");
                Ok(None)
            }
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(Error::io("statx", self.volume.path().join(path), errno)),
        };
        let new = if self.counts_only { self.discover.count(&keyed, look) } else { self.discover.enter(&keyed, look) };
        if let Some(bytes) = new? {
            share.objects += 1;
            share.bytes += bytes;
        }
        Ok(())
    }
}
