//! What happens on an eviction: as on a delete, of an object that was doomed when it was chosen.

use nix::errno::Errno;

use super::{EvictOp, Shard};
use crate::room::Evicted;

impl Shard {
    pub(super) fn evict(&mut self, op: EvictOp) {
        let EvictOp { keyed, bytes, for_quota } = op;
        let counts = self.core.counts.clone();
        let name = match self.core.config.layout.encode(&keyed.key) {
            Ok(name) => name,
            Err(error) => unreachable!("an object has a name: {error}"),
        };
        match self.take_name_away(&keyed, &name) {
            Ok(()) | Err(Errno::ENOENT) => {
                counts.evictions.add(1);
                counts.evicted_bytes.add(bytes);
                counts.quota_evictions.add(u64::from(for_quota));
                self.forget(&keyed, bytes);
                // Told after the ledger: else the plan would think that the room is missing.
                self.evicted.push(Evicted { salt: keyed.salt, bytes, is_gone: true });
            }
            Err(errno) => {
                counts.eviction_errors.add(1);
                self.core.volume.health.heed("unlink", &name, errno);
                tracing::error!(name, %errno, "an object could not be evicted; it stays");
                self.core.index.abort_delete(&keyed);
                self.evicted.push(Evicted { salt: keyed.salt, bytes, is_gone: false });
                self.release_followers(&keyed);
            }
        }
    }
}
