//! What an earlier run has held, taken from its snapshot when an engine opens: hints for the index, which the scan, and whoever asks for
//! an object before the scan has come to it, bring to the truth.
//!
//! ```text
//! .saltern/index --take_hints--> index and ledger --> listeners, oldest first
//! directory -------scan--------> settles the hints whose files it meets, enters what is new
//! disk ---------sweep_hints----> settles the rest: those files are gone
//! ```
//!
//! Both begin at the same time: reading the snapshot is the work of one thread, the scan has others. What the scan has met before its record was read
//! only takes over the time of its last use.
//!
//! Where nobody has made, removed or renamed a file since an engine closed the directory with this snapshot (`volume/trust.rs`), a name that is
//! listed is entered without a look. Only a program that writes into a file can have changed its size then; that is seen when the object is
//! first loaded.
//!
//! Each volume has a snapshot of its own objects, which goes with it. The sweep asks the disk for each that is left, instead of taking the scan's silence for an answer: names move while a directory is
//! read.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::config::Discovery;
use crate::core::Core;
use crate::discover::Found;
use crate::error::{Error, Result};
use crate::index::Keyed;
use crate::ledger::{Deltas, SaltId};
use crate::saved;
use crate::snapshot::{FILE, FILE_BYTES_MAX, Snapshot};

/// Records that are entered together: enough for each partition to get some tens, and few enough to stay in the CPU's cache.
const BATCH_RECORDS: usize = 4096;

impl Core {
    /// Takes up what the snapshot of a volume says; gives how many objects that are. What is wrong with it is noted, and nothing else
    /// comes of that. Called before there are callers.
    pub(crate) fn take_hints(&self, volume: usize) -> u64 {
        // Where the index is not to know the whole directory, it is not to know it from a snapshot either.
        if self.config.discovery == Discovery::Ask || !self.volumes[volume].is_up() {
            return 0;
        }
        let mut told = 0;
        if let Err(reason) = self.try_take_hints(volume, &mut told) {
            let path = self.volumes[volume].dir.path().join(crate::volume::STATE_DIR).join(FILE);
            self.note(format!("{}: {reason}; what there is, and since when, is taken from the files", path.display()));
        }
        told
    }

    fn try_take_hints(&self, volume: usize, told: &mut u64) -> Result<(), String> {
        let state = self.volumes[volume].dir.state_dir().map_err(|error| error.to_string())?;
        let contents = saved::read(state.as_fd(), FILE, FILE_BYTES_MAX).map_err(|error| error.to_string())?;
        let Some(contents) = contents else { return Ok(()) };
        let mut snapshot = Snapshot::parse(&contents, self.config.layout).map_err(|error| error.to_string())?;
        let is_vouched = self.volumes[volume].dir.trust.vouches(snapshot.written_ns);
        let scopes: Vec<_> = snapshot.scopes.iter().map(|scope| self.index.hint_scope(scope, self.ledger())).collect();
        // As many as the file can hold, whatever it says.
        self.index.expect_hints((snapshot.left() as usize).min(contents.len() / crate::snapshot::RECORD_BYTES_MIN));
        let count = |added: &[(SaltId, u64)]| {
            let mut deltas = Deltas::new();
            added.iter().for_each(|(salt, bytes)| deltas.recovered(*salt, *bytes));
            self.volumes[volume].ledger.apply(&deltas);
        };
        let mut batch = Vec::with_capacity(BATCH_RECORDS);
        let mut damage = None;
        while damage.is_none() {
            batch.clear();
            for record in snapshot.by_ref().take(BATCH_RECORDS) {
                match record {
                    Ok(record) => batch.push(record),
                    Err(error) => damage = Some(error.to_string()),
                }
            }
            if batch.is_empty() {
                break;
            }
            *told += self.index.add_hints(volume, &scopes, &batch, is_vouched, count);
        }
        damage.map_or(Ok(()), Err)
    }

    /// Looks for the files of all hints that are left, with several threads; gives how many have none.
    pub(crate) fn sweep_hints(&self) -> Result<u64> {
        let (next, gone, failed) = (AtomicUsize::new(0), AtomicU64::new(0), Mutex::new(None));
        let work = || {
            while let Some(hints) = self.index.hints_of(next.fetch_add(1, Ordering::Relaxed)) {
                for keyed in hints {
                    if self.recovery.stop.load(Ordering::Relaxed) || failed.lock().is_some() {
                        return;
                    }
                    match self.settle_hint(&keyed) {
                        Ok(is_there) => drop(gone.fetch_add(u64::from(!is_there), Ordering::Relaxed)),
                        Err(error) => drop(failed.lock().get_or_insert(error)),
                    }
                }
            }
        };
        if self.index.hints() > 0 {
            std::thread::scope(|scope| {
                for _ in 1..self.config.scan_threads {
                    // A thread that cannot be had is no error: the others do its work.
                    let _ = std::thread::Builder::new().name("saltern-scan".into()).spawn_scoped(scope, work);
                }
                work();
            });
        }
        failed.into_inner().map_or(Ok(gone.into_inner()), Err)
    }

    fn settle_hint(&self, keyed: &Keyed) -> Result<bool, Error> {
        // A key without a name in the layout has no file.
        let name = self.config.layout.encode(&keyed.key).ok();
        let look = || name.as_deref().map_or(Ok(None), |name| self.look(name));
        Ok(self.discover().enter(keyed, look)? != Found::Nowhere)
    }
}
