//! What happens on a delete: index, rename to the spares (or unlink), answer.

use std::sync::atomic::Ordering;
use std::time::Instant;

use nix::errno::Errno;

use super::spares::{Spare, Spares};
use super::{Answer, DeleteOp, Pending, Shard};
use crate::core::Core;
use crate::error::{Error, Result};
use crate::index::{Held, Keyed};
use crate::ring::Op;
use crate::steps::Step;
use crate::volume::{Holding, SyncNumber, Volume};

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
        let is_whole = self.core.index_is_whole();
        let mut begun = self.core.index.begin_delete(keyed, is_whole);
        if matches!(begun, Err(Error::NotFound)) && !is_whole {
            self.core.ask_disk(keyed, name)?;
            begun = self.core.index.begin_delete(keyed, true);
        }
        let held = begun?;
        match self.take_name_away(keyed, name, held.volume) {
            Ok(()) | Err(Errno::ENOENT) => {
                self.core.config.steps.at(Step::Removed, &keyed.key);
                self.forget(keyed, held);
                Ok(held.bytes)
            }
            Err(errno) => {
                self.core.write_failed(held.volume, "unlink", name, errno);
                if !self.core.index.abort_delete(keyed) {
                    self.forget(keyed, held);
                    return Ok(held.bytes);
                }
                Err(Error::io("unlink", name, errno))
            }
        }
    }

    /// The object's name goes; its file becomes a spare where spares are kept, and goes as well where they are not. With a lost
    /// volume it is gone.
    pub(super) fn take_name_away(&mut self, keyed: &Keyed, name: &str, volume: usize) -> Result<(), Errno> {
        let opened = self.descriptors.take(&keyed.key);
        let core = self.core.clone();
        let is_mine = volume == self.volume;
        let Volume { dir, presence, .. } = &core.volumes[volume];
        if !presence.is_up() {
            return Ok(());
        }
        // Something that is not a file may have taken the name: not ours to move or remove.
        let Some(stat) = dir.stat(name)? else { return Ok(()) };
        let is_wanted = is_mine && self.spares.is_on() && dir.health.read_only().is_none();
        if is_wanted && stat.bytes > 0 && !self.disk_is_low && self.make_room(stat.bytes) {
            let spare = self.next_name();
            match dir.retire(name, &spare) {
                Ok(()) => {
                    self.retire(Spare { name: spare, bytes: stat.bytes, fd: opened.map(|opened| opened.fd) });
                    return Ok(());
                }
                // No room for a longer directory, or something that is not ours has the spare's name: an unlink needs neither.
                Err(Errno::ENOSPC | Errno::EDQUOT | Errno::EISDIR | Errno::EEXIST | Errno::ENOTEMPTY) => {}
                Err(errno) => return Err(errno),
            }
        }
        dir.remove(name)
    }

    /// Whether a file of this length can become a spare; spares of other sizes may have to go for it.
    fn make_room(&mut self, bytes: u64) -> bool {
        let (core, volume) = (self.core.clone(), self.volume);
        let fits = self.spares.make_room(bytes, |spare| discard(&core, volume, spare));
        self.count_spares();
        fits
    }

    fn retire(&mut self, spare: Spare) {
        if self.core.config.skip_quarantine {
            self.spares.adopt_clean(spare);
        } else {
            self.spares.retire(spare, self.core.volumes[self.volume].dir.quarantine().enter());
            self.sync_spares(false);
        }
        self.count_spares();
    }

    /// Takes over what a sync, of this shard or another, has made clean.
    pub(super) fn settle_spares(&mut self) {
        let (core, volume) = (self.core.clone(), self.volume);
        let quarantine = core.volumes[volume].dir.quarantine();
        self.spares.settle(quarantine.clean_below());
        if quarantine.has_failed() {
            self.spares.fail_sync().into_iter().for_each(|spare| discard(&core, volume, spare));
        }
    }

    /// Makes retired files clean, when it is time: by one sync for all of them, of all shards of the volume.
    pub(super) fn sync_spares(&mut self, missed: bool) {
        if self.spares.wants_sync(missed)
            && let Some(number) =
                self.core.volumes[self.volume].dir.quarantine().try_begin(Instant::now(), self.core.counts.loads.get())
        {
            let dir = self.spares_dir.clone();
            self.sync(Pending::SpareSync(number), Op::SyncAll, dir);
        }
    }

    pub(super) fn spares_synced(&mut self, number: SyncNumber, result: Result<(), Errno>) {
        self.core.volumes[self.volume].dir.quarantine().end(number, result.is_ok(), Instant::now());
        if let Err(errno) = result {
            self.core.sync_failed(self.volume, "fsync", ".saltern/spares", errno);
        }
        self.settle_spares();
        self.count_spares();
    }

    /// Gives the disk back what spares hold.
    pub(super) fn give_spares_back(&mut self) {
        while let Some(spare) = self.spares.pop_any() {
            discard(&self.core, self.volume, spare);
        }
        self.count_spares();
    }

    /// Tells the engine's status what this shard keeps.
    pub(super) fn count_spares(&mut self) {
        let (bytes, count) = (self.spares.bytes(), self.spares.count() as u64);
        let (old_bytes, old_count) = std::mem::replace(&mut self.spares_told, (bytes, count));
        let volume = &self.core.volumes[self.volume];
        volume.spare_bytes.fetch_add(bytes.wrapping_sub(old_bytes), Ordering::Relaxed);
        volume.spare_count.fetch_add(count.wrapping_sub(old_count), Ordering::Relaxed);
    }

    /// Forgets the spares of its volume, which was lost: they are out of reach.
    pub(super) fn lose_spares(&mut self) {
        self.spares = Spares::new(0);
        self.count_spares();
    }

    /// Removes an object that was found to be gone or damaged, when its last load has ended.
    pub(super) fn remove_doomed(&mut self, keyed: &Keyed, name: &str, held: Held) {
        let Volume { dir, presence, .. } = &self.core.volumes[held.volume];
        // Something that is not a file has taken the name: not ours to remove.
        if presence.is_up()
            && let Ok(Some(_)) = dir.stat(name)
            && let Err(errno) = dir.remove(name)
        {
            tracing::error!(name, %errno, "a damaged object's file could not be removed; it is not served any more");
        }
        self.forget(keyed, held);
    }

    /// The file is gone: so are its bytes and the entry, and a store of the key may begin. The bytes first: who finds the key
    /// free must find its room free, too.
    pub(super) fn forget(&mut self, keyed: &Keyed, held: Held) {
        self.deltas[held.volume].deleted(keyed.salt, held.bytes);
        self.apply_deltas();
        self.core.index.end_delete(keyed);
        self.release_followers(keyed);
    }
}

/// Removes a spare's file.
pub(super) fn discard(core: &Core, volume: usize, spare: Spare) {
    let Spare { name, .. } = spare;
    let Volume { dir, presence, .. } = &core.volumes[volume];
    if presence.is_up()
        && let Err(errno) = dir.discard(&Holding::Spare(name.clone()))
        && errno != Errno::ENOENT
    {
        tracing::warn!(name, %errno, "a spare could not be removed");
    }
}
