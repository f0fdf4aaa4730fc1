//! When objects were used, over a restart: saved in the snapshot of the index when an engine closes in good order, and taken
//! up again when the next one has scanned the directory.

use std::os::fd::AsFd;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::Discovery;
use crate::core::Core;
use crate::saved;
use crate::snapshot::{Contents, FILE, FILE_BYTES_MAX, Snapshot};

impl Core {
    /// Takes the times of use up, of objects that are as they were. What is wrong with the snapshot is noted, and nothing else
    /// comes of it.
    pub(crate) fn remember_uses(&self) {
        if let Err(reason) = self.try_remember() {
            let path = self.volume.path().join(crate::volume::STATE_DIR).join(FILE);
            self.note(format!("{}: {reason}; when objects were used is taken from their files", path.display()));
        }
    }

    fn try_remember(&self) -> Result<(), String> {
        let state = self.volume.state_dir().map_err(|error| error.to_string())?;
        let contents = saved::read(state.as_fd(), FILE, FILE_BYTES_MAX).map_err(|error| error.to_string())?;
        let Some(contents) = contents else { return Ok(()) };
        let snapshot = Snapshot::parse(&contents, self.config.layout).map_err(|error| error.to_string())?;
        for record in snapshot {
            let (key, bytes, used_ns) = record.map_err(|error| error.to_string())?;
            self.index.remember_use(&key, bytes, used_ns);
        }
        Ok(())
    }

    /// Saves the times of use. Called when no shard runs any more, and the directory's lock is still held.
    pub(crate) fn save_uses(&self) {
        // What is not known yet would be forgotten.
        let is_whole = self.recovery.is_complete() && self.config.discovery != Discovery::Ask;
        if !is_whole || !self.config.persist || !self.volume.is_in_place() {
            return;
        }
        let (scopes, records) = self.index.lock_all().records();
        let written_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        let contents = Contents { layout: self.config.layout, written_ns, scopes, records };
        let saved = self.volume.state_dir().map_err(|error| error.to_string()).and_then(|state| {
            saved::replace(state.as_fd(), FILE, |out| contents.write(out)).map_err(|error| error.to_string())
        });
        if let Err(reason) = saved {
            tracing::warn!(
                reason,
                "the snapshot of the index could not be saved; the next start orders objects by their files"
            );
        }
    }
}
