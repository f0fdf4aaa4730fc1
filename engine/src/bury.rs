//! What becomes of the work of a shard that has ended by a panic. With one volume the engine has failed; with several, the shard's volume
//! is taken out, its keys answer as misses or with errors, and the others go on.
//!
//! What it had in hand stays claimed and reserved: nobody knows how far it had come.

use std::sync::atomic::Ordering;

use crate::core::Core;
use crate::error::Error;
use crate::ledger::Deltas;
use crate::room::Evicted;
use crate::shard::{Command, StoreOp};

impl Core {
    /// A shard has ended.
    pub(crate) fn shard_failed(&self, shard: usize) {
        let volume = shard % self.volumes.len();
        self.mailboxes[shard].die();
        let others = self.volumes.up().any(|(other, _)| other != volume);
        if others {
            self.give_up_on(volume, format!("shard {shard} has failed"));
        } else {
            self.failed.store(true, Ordering::Release);
            // Nobody else would: what it was to evict stays.
            self.close_room();
        }
    }

    /// Answers all that waits for a shard that has ended.
    pub(crate) fn bury_all(&self, shard: usize) {
        while let Some(command) = self.mailboxes[shard].pop() {
            self.bury(command);
        }
        self.completion.flush();
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    fn failed_or_closed(&self) -> Error {
        if self.is_closing() { Error::Closed } else { Error::ShardFailed }
    }

    /// Answers for a shard that has ended.
    pub(crate) fn bury(&self, command: Command) {
        match command {
            Command::Store(StoreOp { keyed, buffer, part, claimed, volume, .. }) => {
                if claimed {
                    let mut deltas = Deltas::new();
                    deltas.cancelled(keyed.salt, buffer.len() as u64);
                    self.volumes[volume].ledger.apply(&deltas);
                    self.index.abort_store(&keyed);
                }
                part.answer((Err(self.failed_or_closed()), Some(buffer)));
            }
            Command::Load(op) => {
                // Of several volumes, the shard's own is taken out: what it has are misses.
                let error = if self.volumes.is_single() { Error::ShardFailed } else { Error::NotFound };
                op.part.answer((Err(if self.is_closing() { Error::Closed } else { error }), Some(op.buffer)));
            }
            Command::Delete(op) => drop(op.part.answer(Err(self.failed_or_closed()))),
            Command::Evict(op) => {
                let is_gone = !self.index.abort_delete(&op.keyed);
                if is_gone {
                    let mut deltas = Deltas::new();
                    deltas.deleted(op.keyed.salt, op.held.bytes);
                    self.volumes[op.held.volume].ledger.apply(&deltas);
                    self.index.end_delete(&op.keyed);
                }
                self.evicted(&[Evicted { salt: op.keyed.salt, bytes: op.held.bytes, is_gone }]);
            }
            // Who asked for a device hears that its sender is gone.
            Command::Attach(..) | Command::Settle { .. } => {}
            Command::Twin(_) | Command::Lost(_) | Command::Released(_) | Command::Adopt | Command::Close => {}
        }
    }
}
