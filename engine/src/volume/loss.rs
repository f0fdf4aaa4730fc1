//! How a volume is taken out: marked by whoever finds it failed, then emptied by its guard, a thread of its own.
//!
//! ```text
//! shard: read-only, errors, a panic -------+--> marked: nothing is placed there or entered for it any more
//! guard: the directory is gone ------------+        \--> guard: index swept, books corrected, shards told
//! ```
//!
//! The last volume is not taken out: what it still gives is better than nothing. It is read-only then, where that was the reason.
//! Stop: [`Guards::close`].

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use parking_lot::{Condvar, Mutex};

use super::Volume;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::ledger::Deltas;
use crate::shard::Command;

/// How often a guard looks whether its directory is still there.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What guards wait for.
#[derive(Default)]
pub(crate) struct Losses {
    /// Whether the engine is closing. Held while volumes are marked, so that two do not each think that the other remains.
    is_closing: Mutex<bool>,
    changed: Condvar,
}

impl Core {
    /// A read has failed: enough of them in a row take the volume out.
    pub(crate) fn read_failed(&self, volume: usize, op: &str, errno: Errno) {
        if let Some(reason) = self.volumes[volume].presence.read_failed(op, errno) {
            self.give_up_on(volume, reason);
        }
    }

    /// A call that writes, or changes names, has failed.
    pub(crate) fn write_failed(&self, volume: usize, op: &str, name: &str, errno: Errno) {
        self.volumes[volume].dir.health.heed(op, name, errno);
        self.check_health(volume);
    }

    /// A sync has failed.
    pub(crate) fn sync_failed(&self, volume: usize, op: &str, name: &str, errno: Errno) {
        self.volumes[volume].dir.sync_failed(op, name, errno);
        self.check_health(volume);
    }

    /// A volume that takes no stores any more is taken out.
    pub(crate) fn check_health(&self, volume: usize) {
        if let Some(reason) = self.volumes[volume].dir.health.read_only() {
            self.give_up_on(volume, reason.to_owned());
        }
    }

    /// Takes a volume out, if it is not the last.
    pub(crate) fn give_up_on(&self, volume: usize, reason: String) {
        let Volume { dir, presence, .. } = &self.volumes[volume];
        if self.volumes.is_single() || !presence.is_up() {
            return;
        }
        let _closing = self.losses.is_closing.lock();
        let is_last = !self.volumes.up().any(|(other, _)| other != volume);
        let note = format!("{} is taken out, its objects are misses: {reason}", dir.path().display());
        if !is_last && presence.lose(reason) {
            self.index.lose(volume);
            self.note(note);
            self.losses.changed.notify_all();
        }
    }

    /// The error of a store that a volume has taken with it.
    pub(crate) fn volume_failed(&self, volume: usize) -> Error {
        let dir = self.volumes[volume].dir.path().to_owned();
        Error::VolumeFailed { dir, reason: self.volumes[volume].presence.reason().unwrap_or_default().to_owned() }
    }

    /// Removes what a lost volume had from index and books.
    fn empty(&self, volume: usize) {
        let ledger = &self.volumes[volume].ledger;
        let mut deltas = Deltas::new();
        let mut free = |freed: &[_]| {
            freed.iter().for_each(|(salt, bytes)| deltas.deleted(*salt, *bytes));
            ledger.apply(&deltas);
            deltas.clear();
        };
        let gone = self.index.sweep(volume, &mut free);
        // After the index: what was counted while it was swept is here.
        free(&self.latent.lose(volume));
        self.counts.lost_objects.add(gone);
        for (shard, mailbox) in self.mailboxes.iter().enumerate() {
            mailbox.push(Command::Lost(volume));
            self.wake(shard);
        }
        self.ledger_changed();
    }

    /// Waits for the loss of a volume, and empties it.
    fn guard(&self, volume: usize) {
        let Volume { dir, presence, .. } = &self.volumes[volume];
        let mut closing = self.losses.is_closing.lock();
        while !*closing {
            if !presence.is_up() {
                drop(closing);
                return self.empty(volume);
            }
            if self.losses.changed.wait_for(&mut closing, LOOK_EVERY).timed_out() {
                drop(closing);
                // Whoever finds that it is gone, this or a store, notes it in its health.
                let _ = dir.check_writable();
                self.check_health(volume);
                closing = self.losses.is_closing.lock();
            }
        }
    }
}

/// The threads, one a volume, so that a disk that hangs holds up its own alone.
#[derive(Default)]
pub(crate) struct Guards(Vec<JoinHandle<()>>);

impl Guards {
    /// Starts them.
    pub(crate) fn start(core: &Arc<Core>) -> Result<Self> {
        let threads = (0..core.volumes.len()).map(|volume| {
            let (core, name) = (core.clone(), format!("saltern-volume-{volume}"));
            let thread = std::thread::Builder::new().name(name.clone()).spawn(move || core.guard(volume));
            thread.map_err(|error| Error::spawn(&name, &error))
        });
        Ok(Self(threads.collect::<Result<_>>()?))
    }

    /// Ends them.
    pub(crate) fn close(&mut self, core: &Core) {
        *core.losses.is_closing.lock() = true;
        core.losses.changed.notify_all();
        for thread in self.0.drain(..) {
            let _ = thread.join();
        }
    }
}
