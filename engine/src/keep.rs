//! The snapshot of the index, written: at intervals by a thread of its own, and at close.
//!
//! The thread copies the index in short steps ([`crate::index::Index::records`]), sorts and writes beside the data path: one MiB at a time,
//! synced, and then rests for nine times as long as that took, so that the device's queue is the objects'. After a snapshot it rests
//! for [`REST_FACTOR`] times as long as that took, at least `snapshot_interval`. Where nothing has changed, nothing is written.
//! It takes about 150 bytes of memory an object while it runs.
//!
//! Stop: at close the thread gives up what it is writing (the file before is there still), and close writes one.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex};

use crate::config::Discovery;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::saved;
use crate::snapshot::{Contents, FILE};
use crate::status::SnapshotStatus;
use crate::volume::Directory;

/// Rests after a snapshot, in times of what it took: it costs at most a fiftieth of one CPU.
const REST_FACTOR: u32 = 50;

/// Bytes between two syncs, and rests after a sync in times of what it took, at most so long.
const PACE_BYTES: usize = 1 << 20;
const PACE_FACTOR: u32 = 9;
const PACE_MAX: Duration = Duration::from_millis(100);

/// What there is to tell of snapshots.
#[derive(Default)]
pub(crate) struct Kept {
    pub(crate) status: Mutex<SnapshotStatus>,
    /// Changes of the index that the last one knows of.
    changes: Mutex<u64>,
}

#[derive(Default)]
struct Stop {
    is_set: Mutex<bool>,
    told: Condvar,
}

impl Stop {
    /// Waits; true when it is time to stop.
    fn wait(&self, time: Duration) -> bool {
        let mut is_set = self.is_set.lock();
        if !*is_set {
            self.told.wait_for(&mut is_set, time);
        }
        *is_set
    }
}

/// The thread.
pub(crate) struct Keeper {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts the thread, where there is anything for it to do.
    pub(crate) fn start(core: &Arc<Core>) -> Result<Self> {
        let stop = Arc::<Stop>::default();
        let interval = core.config.snapshot_interval;
        let mut thread = None;
        if !interval.is_zero() && core.keeps_snapshots() {
            let (core, stop) = (core.clone(), stop.clone());
            let spawned = std::thread::Builder::new().name("saltern-keep".into()).spawn(move || {
                let mut rest = interval;
                while !stop.wait(rest) {
                    let begin = Instant::now();
                    core.save_index(Some(&stop));
                    rest = interval.max(begin.elapsed().saturating_mul(REST_FACTOR));
                }
            });
            thread = Some(spawned.map_err(|error| Error::spawn("saltern-keep", &error))?);
        }
        Ok(Self { stop, thread })
    }

    /// Ends the thread.
    pub(crate) fn stop(&mut self) {
        *self.stop.is_set.lock() = true;
        self.stop.told.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the snapshots had panicked");
        }
    }
}

impl Core {
    fn keeps_snapshots(&self) -> bool {
        // What is not known would be forgotten.
        self.config.persist && self.config.discovery != Discovery::Ask
    }

    /// Saves what the index holds, when it is the whole directory: of each volume, on it. Called with the directories' locks held.
    /// Gives when it was written, if it was.
    pub(crate) fn save_at_close(&self) -> Option<u64> {
        self.save_index(None)
    }

    fn save_index(&self, stop: Option<&Stop>) -> Option<u64> {
        let is_sound = self.recovery.is_complete() && !self.failed.load(Ordering::Acquire);
        if !is_sound || !self.keeps_snapshots() {
            return None;
        }
        let changes = self.counts.changes() + 1;
        // At close it is written whatever is counted: a change may be under way that is counted later.
        if stop.is_some() && *self.kept.changes.lock() == changes {
            return None;
        }
        let begin = Instant::now();
        let written_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        let in_place = self.volumes.up().filter(|(_, volume)| volume.dir.is_in_place());
        let saved: Result<u64, String> =
            in_place.map(|(number, volume)| self.save_volume(number, &volume.dir, written_ns, stop)).sum();
        match saved {
            Ok(objects) => {
                *self.kept.changes.lock() = changes;
                let mut status = self.kept.status.lock();
                status.written_unix_ns = Some(written_ns);
                status.written_objects = objects;
                status.written_in_seconds = begin.elapsed().as_secs_f64();
                return Some(written_ns);
            }
            Err(_) if stop.is_some_and(|stop| *stop.is_set.lock()) => {}
            Err(reason) => tracing::warn!(
                reason,
                "the snapshot of the index could not be saved; the next start knows what there is when it has scanned"
            ),
        }
        None
    }

    /// Saves what the index holds of a volume; gives how many objects that are.
    fn save_volume(&self, volume: usize, dir: &Directory, written_ns: u64, stop: Option<&Stop>) -> Result<u64, String> {
        let (scopes, records) = self.index.records(volume);
        let objects = records.len() as u64;
        let contents = Contents { layout: self.config.layout, written_ns, scopes, records };
        dir.state_dir().map_err(|error| error.to_string()).and_then(|state| {
            let write = |out: &mut BufWriter<File>| match stop {
                Some(stop) => contents.write(&mut Paced { out, stop, since_sync: 0 }),
                None => contents.write(out),
            };
            saved::replace(state.as_fd(), FILE, write).map_err(|error| error.to_string())
        })?;
        Ok(objects)
    }
}

/// Writes no faster than the device has time for.
struct Paced<'a> {
    out: &'a mut BufWriter<File>,
    stop: &'a Stop,
    since_sync: usize,
}

impl Write for Paced<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.since_sync += written;
        if self.since_sync >= PACE_BYTES {
            self.since_sync = 0;
            let begin = Instant::now();
            self.flush()?;
            self.out.get_ref().sync_data()?;
            if self.stop.wait((begin.elapsed() * PACE_FACTOR).min(PACE_MAX)) {
                // Not `Interrupted`, which would be tried again.
                return Err(io::Error::other("the engine closes"));
            }
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    #[test]
    fn what_is_paced_is_whole_and_a_stop_ends_it() {
        let mut file = tempfile::tempfile_in(".").unwrap();
        let bytes: Vec<u8> = (0..2 * PACE_BYTES + 17).map(|n| (n % 251) as u8).collect();
        let (mut out, stop) = (BufWriter::with_capacity(1 << 20, file.try_clone().unwrap()), Stop::default());
        let mut paced = Paced { out: &mut out, stop: &stop, since_sync: 0 };
        bytes.chunks(70_000).for_each(|chunk| paced.write_all(chunk).unwrap());
        paced.flush().unwrap();
        let mut written = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut written).unwrap();
        assert!(written == bytes);
        *stop.is_set.lock() = true;
        // An error that `write_all` does not take for a reason to try again.
        assert!(bytes.chunks(70_000).try_for_each(|chunk| paced.write_all(chunk)).is_err());
    }
}
