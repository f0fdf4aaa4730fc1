//! What happens when a key has files on two volumes: the one that comes first in the key's order of volumes stands for it, and
//! the other goes. Done by the key's home shard, so that nothing else happens to the key meanwhile.
//!
//! Both are the same object by its name, whose hash is of its contents. It comes about when volumes were used together, then apart, and then
//! together again, or when another program has written to one of them.

use nix::errno::Errno;

use super::{Shard, TwinOp};
use crate::index::{Held, Sight};

impl Shard {
    /// A scan has found a file on a volume while the key was known.
    pub(super) fn settle_twin(&mut self, op: TwinOp) {
        let core = self.core.clone();
        if core.index.hinted(&op.keyed).is_some()
            && let Err(error) = core.ask_disk(&op.keyed, &op.name)
        {
            return tracing::warn!(%error, "a second file of an object could not be looked at; it stays");
        }
        let known = core.index.present(&op.keyed);
        if known.is_none() && matches!(core.index.sight(&op.keyed), Sight::Known) {
            // It is being stored, or on its way out: what comes of that decides.
            return self.twins.entry(op.keyed.key.clone()).or_default().push(op);
        }
        let TwinOp { keyed, name, volume, _done } = op;
        // What this shard has done since is in the books.
        self.apply_deltas();
        if known.is_some_and(|known| known.volume == volume) || !core.volumes[volume].is_up() {
            return;
        }
        let found = match core.volumes[volume].dir.stat(&name) {
            Ok(Some(stat)) => Held { bytes: stat.bytes, volume },
            Ok(None) => return,
            Err(errno) => {
                return tracing::warn!(name, %errno, "a second file of an object could not be looked at; it stays");
            }
        };
        core.counts.twins.add(1);
        // Without an object, it was deleted since the scan met it: every file of it.
        let Some(known) = known else { return self.remove_twin(&name, volume) };
        if !core.volumes.goes_before(&name, found.volume, known.volume) {
            return self.remove_twin(&name, volume);
        }
        self.deltas[found.volume].recovered(keyed.salt, found.bytes);
        self.apply_deltas();
        self.descriptors.take(&keyed.key);
        let (gone, from) =
            if core.index.relocate(&keyed, found) { (known, known.volume) } else { (found, found.volume) };
        self.deltas[gone.volume].deleted(keyed.salt, gone.bytes);
        self.apply_deltas();
        self.remove_twin(&name, from);
    }

    fn remove_twin(&self, name: &str, volume: usize) {
        let dir = &self.core.volumes[volume].dir;
        match dir.remove(name) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => {
                let path = dir.path().join(name);
                tracing::warn!(?path, %errno, "a second file of an object could not be removed; it stays, and is not counted");
            }
        }
    }
}
