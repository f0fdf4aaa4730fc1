//! What happens on a delete: index, rename to the spares (or unlink), answer.

use std::sync::atomic::Ordering;
use std::time::Instant;

use nix::errno::Errno;

use super::spares::Spare;
use super::{Answer, DeleteOp, Pending, Shard};
use crate::core::Core;
use crate::error::{Error, Result};
use crate::index::Keyed;
use crate::ring::Op;
use crate::steps::Step;
use crate::volume::{Holding, SyncNumber};

impl Shard {
    pub(super) fn delete(&mut self, op: DeleteOp) {
        if op.part.is_expired() {
            return;
        }
        let result = self.try_delete(&op.keyed, &op.name);
        match &result {
            Ok(_) => self.core.counts.deletes.add(1),
            Err(Error::Pinned { .. }) => self.core.counts.deletes_refused.add(1),
            Err(_) => {}
        }
        self.answers.push(Answer::Delete(op.part, result));
    }

    fn try_delete(&mut self, keyed: &Keyed, name: &str) -> Result<u64> {
        let mut begun = self.core.index.begin_delete(keyed);
        if matches!(begun, Err(Error::NotFound)) && !self.core.index_is_whole() {
            self.core.ask_disk(keyed, name)?;
            begun = self.core.index.begin_delete(keyed);
        }
        let bytes = begun?;
        match self.take_name_away(keyed, name) {
            Ok(()) | Err(Errno::ENOENT) => {
                self.core.config.steps.at(Step::Removed, &keyed.key);
                self.forget(keyed, bytes);
                Ok(bytes)
            }
            Err(errno) => {
                self.core.index.abort_delete(keyed);
                self.core.volume.health.heed("unlink", name, errno);
                Err(Error::io("unlink", name, errno))
            }
        }
    }

    /// The object's name goes; its file becomes a spare where spares are kept, and goes as well where they are not.
    pub(super) fn take_name_away(&mut self, keyed: &Keyed, name: &str) -> Result<(), Errno> {
        let opened = self.descriptors.take(&keyed.key);
        let core = self.core.clone();
        // Something that is not a file may have taken the name: not ours to move or remove.
        let Some(stat) = core.volume.stat(name)? else { return Ok(()) };
        let is_wanted = self.spares.is_on() && core.volume.health.read_only().is_none();
        if is_wanted && stat.bytes > 0 && !self.disk_is_low && self.make_room(stat.bytes) {
            let spare = self.next_name();
            match core.volume.retire(name, &spare) {
                Ok(()) => {
                    self.retire(Spare { name: spare, bytes: stat.bytes, fd: opened.map(|opened| opened.fd) });
                    return Ok(());
                }
                // No room for a longer directory, or something that is not ours has the spare's name: an unlink needs neither.
                Err(Errno::ENOSPC | Errno::EDQUOT | Errno::EISDIR | Errno::EEXIST | Errno::ENOTEMPTY) => {}
                Err(errno) => return Err(errno),
            }
        }
        core.volume.remove(name)
    }

    /// Whether a file of this length can become a spare; spares of other sizes may have to go for it.
    fn make_room(&mut self, bytes: u64) -> bool {
        let core = self.core.clone();
        let fits = self.spares.make_room(bytes, |spare| discard(&core, spare));
        self.count_spares();
        fits
    }

    fn retire(&mut self, spare: Spare) {
        if self.core.config.skip_quarantine {
            self.spares.adopt_clean(spare);
        } else {
            self.spares.retire(spare, self.core.volume.quarantine().enter());
            self.sync_spares(false);
        }
        self.count_spares();
    }

    /// Takes over what a sync, of this shard or another, has made clean.
    pub(super) fn settle_spares(&mut self) {
        let core = self.core.clone();
        let quarantine = core.volume.quarantine();
        self.spares.settle(quarantine.clean_below());
        if quarantine.has_failed() {
            self.spares.fail_sync().into_iter().for_each(|spare| discard(&core, spare));
        }
    }

    /// Makes retired files clean, when it is time: by one sync for all of them, of all shards.
    pub(super) fn sync_spares(&mut self, missed: bool) {
        if self.spares.wants_sync(missed)
            && let Some(number) = self.core.volume.quarantine().try_begin(Instant::now())
        {
            let dir = self.spares_dir.clone();
            self.sync(Pending::SpareSync(number), Op::SyncAll, dir);
        }
    }

    pub(super) fn spares_synced(&mut self, number: SyncNumber, result: Result<(), Errno>) {
        self.core.volume.quarantine().end(number, result.is_ok(), Instant::now());
        if let Err(errno) = result {
            self.core.volume.sync_failed("fsync", ".saltern/spares", errno);
        }
        self.settle_spares();
        self.count_spares();
    }

    /// Gives the disk back what spares hold.
    pub(super) fn give_spares_back(&mut self) {
        while let Some(spare) = self.spares.pop_any() {
            discard(&self.core, spare);
        }
        self.count_spares();
    }

    /// Tells the engine's status what this shard keeps.
    pub(super) fn count_spares(&mut self) {
        let (bytes, count) = (self.spares.bytes(), self.spares.count() as u64);
        let (old_bytes, old_count) = std::mem::replace(&mut self.spares_told, (bytes, count));
        self.core.spare_bytes.fetch_add(bytes.wrapping_sub(old_bytes), Ordering::Relaxed);
        self.core.spare_count.fetch_add(count.wrapping_sub(old_count), Ordering::Relaxed);
    }

    /// Removes an object that was found to be gone or damaged, when its last load has ended.
    pub(super) fn remove_doomed(&mut self, keyed: &Keyed, name: &str, bytes: u64) {
        // Something that is not a file has taken the name: not ours to remove.
        if let Ok(Some(_)) = self.core.volume.stat(name)
            && let Err(errno) = self.core.volume.remove(name)
        {
            tracing::error!(name, %errno, "a damaged object's file could not be removed; it is not served any more");
        }
        self.forget(keyed, bytes);
    }

    /// The file is gone: so are its bytes and the entry, and a store of the key may begin. The bytes first: who finds the key
    /// free must find its room free, too.
    pub(super) fn forget(&mut self, keyed: &Keyed, bytes: u64) {
        self.deltas.deleted(keyed.salt, bytes);
        self.apply_deltas();
        self.core.index.end_delete(keyed);
        self.release_followers(keyed);
    }
}

/// Removes a spare's file.
pub(super) fn discard(core: &Core, spare: Spare) {
    let Spare { name, .. } = spare;
    if let Err(errno) = core.volume.discard(&Holding::Spare(name.clone()))
        && errno != Errno::ENOENT
    {
        tracing::warn!(name, %errno, "a spare could not be removed");
    }
}
