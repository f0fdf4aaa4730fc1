//! Rebuilding the index from the directory when an engine starts.

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use serde::Serialize;

use super::Foreign;
use super::walk::{Seen, Walk};
use crate::error::{Error, Result};
use crate::index::{Entered, Index, Keyed};
use crate::key::ObjectKey;
use crate::layout::Decoder;
use crate::ledger::{Deltas, Ledger};
use crate::volume::Volume;

/// Objects entered before a scanning thread reports them to the ledger.
const LEDGER_BATCH: usize = 256;

/// What the scan at open found.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// Objects found by the scan, or by lookups that were faster.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
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

/// Enters one object, whatever happens to its key meanwhile; gives its size when it was new.
pub(crate) fn enter(
    index: &Index,
    keyed: &Keyed,
    look: impl Fn() -> Result<Option<(u64, u64)>>,
) -> Result<Option<u64>> {
    loop {
        let epoch = index.epoch(keyed);
        let Some((bytes, modified_ns)) = look()? else { return Ok(None) };
        match index.insert_recovered(keyed, bytes, modified_ns, epoch) {
            Entered::New => return Ok(Some(bytes)),
            Entered::Known => return Ok(None),
            Entered::Stale => {}
        }
    }
}

/// One scanning thread's share: its sums reach the ledger in batches.
struct Share<'a> {
    ledger: &'a Ledger,
    total: &'a Mutex<RecoveryReport>,
    deltas: Deltas,
    objects: u64,
    bytes: u64,
    pending: usize,
}

impl Share<'_> {
    fn add(&mut self, keyed: &Keyed, bytes: u64) {
        self.deltas.recovered(keyed.salt, bytes);
        self.objects += 1;
        self.bytes += bytes;
        self.pending += 1;
        if self.pending == LEDGER_BATCH {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.ledger.apply(&std::mem::take(&mut self.deltas));
        self.pending = 0;
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.flush();
        let mut total = self.total.lock();
        total.objects += self.objects;
        total.bytes += self.bytes;
    }
}

/// Scans the volume into index and ledger.
pub(crate) fn recover(
    volume: &Volume,
    layout: crate::layout::Layout,
    index: &Index,
    ledger: &Ledger,
    threads: usize,
    recovery: &Recovery,
    progress: &(dyn Fn(u64) + Sync),
) -> RecoveryReport {
    let start = Instant::now();
    let total = Mutex::new(RecoveryReport::default());
    let scanned = volume.reopen().and_then(|dir| {
        let walk = Walk::new(dir, volume.path(), layout, &recovery.stop)?;
        let visitor = || {
            let mut decoder = Decoder::new(layout);
            let zero = Deltas::new();
            let mut share = Share { ledger, total: &total, deltas: zero, objects: 0, bytes: 0, pending: 0 };
            move |seen: Seen<'_>| visit(volume, index, &mut decoder, &mut share, &seen)
        };
        walk.run(threads, visitor, progress)
    });
    let mut report = total.into_inner();
    report.error = scanned.err().map(|error| error.to_string());
    report.seconds = start.elapsed().as_secs_f64();
    report
}

fn visit(volume: &Volume, index: &Index, decoder: &mut Decoder, share: &mut Share<'_>, seen: &Seen<'_>) -> Result<()> {
    let (path, key): (&str, ObjectKey) = match seen {
        Seen::File { path, .. } => match decoder.decode(path) {
            Ok(key) => (path, key),
            Err(reason) => {
                share.total.lock().foreign.add(path, reason);
                return Ok(());
            }
        },
        Seen::Foreign { path, reason } => {
            share.total.lock().foreign.add(path, reason);
            return Ok(());
        }
    };
    let Seen::File { stat, .. } = seen else { return Ok(()) };
    let keyed = index.keyed(&key, share.ledger);
    let entered = enter(index, &keyed, || match stat() {
        Ok(stat) if stat.is_regular => Ok(Some((stat.bytes, stat.modified_ns))),
        Ok(_) => {
            share.total.lock().foreign.add(path, "not a regular file");
            Ok(None)
        }
        Err(nix::errno::Errno::ENOENT) => Ok(None),
        Err(errno) => Err(Error::io("statx", volume.path().join(path), errno)),
    })?;
    if let Some(bytes) = entered {
        share.add(&keyed, bytes);
    }
    Ok(())
}
