//! What happens on a delete: index, unlink, answer.

use nix::errno::Errno;

use super::{Answer, DeleteOp, Shard};
use crate::error::{Error, Result};
use crate::index::Keyed;

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
        if matches!(begun, Err(Error::NotFound)) && !self.core.recovery.is_complete() {
            self.core.ask_disk(keyed, name)?;
            begun = self.core.index.begin_delete(keyed);
        }
        let bytes = begun?;
        match self.core.volume.remove(name) {
            Ok(()) | Err(Errno::ENOENT) => {
                self.forget(keyed);
                Ok(bytes)
            }
            Err(errno) => {
                self.core.index.abort_delete(keyed);
                Err(Error::io("unlink", name, errno))
            }
        }
    }

    /// Removes an object that was found to be gone or damaged, when its last load has ended.
    pub(super) fn remove_doomed(&mut self, keyed: &Keyed, name: &str) {
        // Something that is not a file has taken the name: not ours to remove.
        if let Ok(Some(_)) = self.core.volume.stat(name)
            && let Err(errno) = self.core.volume.remove(name)
        {
            tracing::error!(name, %errno, "a damaged object's file could not be removed; it is not served any more");
        }
        self.forget(keyed);
    }

    /// The file is gone: so are the entry and its bytes, and a store of the key may begin.
    fn forget(&mut self, keyed: &Keyed) {
        if let Some(bytes) = self.core.index.end_delete(keyed) {
            self.deltas.deleted(keyed.salt, bytes);
        }
        self.release_followers(keyed);
    }
}
