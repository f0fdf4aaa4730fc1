//! How an object that is on disk gets into index and ledger: seen by the scan, or by somebody who asked the disk for it.
//!
//! The ledger is told before the index: from the moment that the index knows the object it can be deleted, and the
//! ledger must have its bytes by then. What turns out to be known already is taken back.

use crate::error::Result;
use crate::index::{Entered, Epoch, Index, Keyed};
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
    /// Enters an object into the index, whatever happens to its key meanwhile; gives its size when it was neither there nor
    /// counted.
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
            let Some(seen) = self.index.epoch_if_absent(keyed) else { break Ok(None) };
            let (bytes, used_ns) = match look() {
                Ok(Some(found)) => found,
                Ok(None) => break Ok(None),
                Err(error) => break Err(error),
            };
            self.steps.at(Step::Looked, &keyed.key);
            self.recount(keyed, counted, bytes);
            counted = bytes;
            match insert(bytes, used_ns, seen) {
                Entered::New => return Ok(Some(bytes)),
                Entered::Known => break Ok(None),
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
