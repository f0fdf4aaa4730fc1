//! What happens on an eviction: as on a delete, of an object that was doomed when it was chosen.

use nix::errno::Errno;

use super::{EvictOp, Shard};
use crate::room::Evicted;

impl Shard {
    pub(super) fn evict(&mut self, op: EvictOp) {
        let EvictOp { keyed, held, for_quota } = op;
        let bytes = held.bytes;
        let counts = self.core.counts.clone();
        let name = match self.core.config.layout.encode(&keyed.key) {
            Ok(name) => name,
            Err(error) => unreachable!("an object has a name: {error}"),
        };
        let taken = self.take_name_away(&keyed, &name, held.volume);
        if let Err(errno) = taken
            && errno != Errno::ENOENT
        {
            self.core.write_failed(held.volume, "unlink", &name, errno);
            if self.core.index.abort_delete(&keyed) {
                counts.eviction_errors.add(1);
                tracing::error!(name, %errno, "an object could not be evicted; it stays");
                self.evicted.push(Evicted { salt: keyed.salt, bytes, is_gone: false });
                return self.release_followers(&keyed);
            }
        }
        counts.evictions.add(1);
        counts.evicted_bytes.add(bytes);
        counts.quota_evictions.add(u64::from(for_quota));
        self.forget(&keyed, held);
        // Told after the ledger: else the plan would think that the room is missing.
        self.evicted.push(Evicted { salt: keyed.salt, bytes, is_gone: true });
    }
}
