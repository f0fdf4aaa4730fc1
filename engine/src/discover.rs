//! How an object that is on disk gets into index and ledger: seen by the scan, or by somebody who asked the disk for it.
//!
//! The ledger is told before the index: from the moment that the index knows the object it can be deleted, and the
//! ledger must have its bytes by then. What turns out to be known already is taken back.

use crate::error::Result;
use crate::index::{Entered, Epoch, Index, Keyed, Sight};
use crate::latent::Latent;
use crate::ledger::{Deltas, Ledger};
use crate::steps::{Step, Steps};

/// Size and time of a file, if it is there and a regular one.
pub(crate) type Look = Option<(u64, u64)>;

/// What discoveries are entered into.
#[derive(Clone, Copy)]
pub(crate) struct Discover<'a> {
    pub(crate) index: &'a Index,
    pub(crate) ledger: &'a Ledger,
    pub(crate) latent: &'a Latent,
    pub(crate) steps: &'a Steps,
}

impl Discover<'_> {
    /// Enters an object into the index, whatever happens to its key meanwhile, or settles what a snapshot says of it; gives its size
    /// when it was neither there nor counted by a pass over the directory.
    pub(crate) fn enter(&self, keyed: &Keyed, look: impl Fn() -> Result<Look>) -> Result<Option<u64>> {
        let latent = self.latent.take(keyed.hash());
        let insert = |bytes, used_ns, seen| self.index.insert_recovered(keyed, bytes, used_ns, seen);
        let entered = self.settle(keyed, latent.unwrap_or(0), look, insert)?;
        Ok(entered.filter(|_| latent.is_none()))
    }

    /// Counts an object without entering it; gives its size when it was not there.
    pub(crate) fn count(&self, keyed: &Keyed, look: impl Fn() -> Result<Look>) -> Result<Option<u64>> {
        self.settle(keyed, 0, look, |bytes, used_ns, seen| {
            let noted = self.index.if_absent(keyed, seen, || self.latent.insert(keyed.hash(), bytes));
            match noted {
                Ok(true) => Entered::New,
                Ok(false) => self.index.insert_recovered(keyed, bytes, used_ns, seen),
                Err(entered) => entered,
            }
        })
    }

    /// Looks at the disk and enters what is there, as often as something was removed meanwhile. `counted` is what the ledger
    /// has for the object already.
    fn settle(
        &self,
        keyed: &Keyed,
        mut counted: u64,
        look: impl Fn() -> Result<Look>,
        insert: impl Fn(u64, u64, Epoch) -> Entered,
    ) -> Result<Option<u64>> {
        let outcome = loop {
            let sight = self.index.sight(keyed);
            if let Sight::Known = sight {
                break Ok(None);
            }
            let found = match look() {
                Ok(found) => found,
                Err(error) => break Err(error),
            };
            self.steps.at(Step::Looked, &keyed.key);
            let entered = match (sight, found) {
                // What is counted for a hint changes under its partition's lock.
                (Sight::Hinted(seen), _) => {
                    self.index.settle_hint(keyed, found, seen, |from, to| self.recount(keyed, from, to))
                }
                (Sight::Absent(seen), Some((bytes, used_ns))) => {
                    self.recount(keyed, counted, bytes);
                    counted = bytes;
                    insert(bytes, used_ns, seen)
                }
                (Sight::Absent(_) | Sight::Known, _) => break Ok(None),
            };
            match entered {
                Entered::New => return Ok(found.map(|(bytes, _)| bytes)),
                Entered::Known | Entered::Gone => break Ok(None),
                Entered::Stale => {}
            }
        };
        // It is not there, or whoever entered it has counted it.
        self.recount(keyed, counted, 0);
        outcome
    }

    fn recount(&self, keyed: &Keyed, from: u64, to: u64) {
        if from != to {
            let mut deltas = Deltas::new();
            deltas.recovered(keyed.salt, to);
            deltas.deleted(keyed.salt, from);
            self.ledger.apply(&deltas);
        }
    }
}
