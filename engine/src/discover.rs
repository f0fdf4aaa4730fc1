//! How an object that is on disk gets into index and ledger: seen by the scan, or by somebody who asked the disk for it.
//!
//! The ledger is told before the index: from the moment that the index knows the object it can be deleted, and the
//! ledger must have its bytes by then. What turns out to be known already is taken back.

use crate::error::Result;
use crate::index::{Entered, Epoch, Held, Index, Keyed, Recount, Sight};
use crate::latent::Latent;
use crate::ledger::{Deltas, SaltId};
use crate::steps::{Step, Steps};
use crate::sys::FileStat;
use crate::volume::Volumes;

/// A file that is there, and a regular one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) object: Held,
    pub(crate) modified_ns: u64,
    /// Nobody has looked at the file: its name is there, and its size is what a snapshot says.
    pub(crate) is_unseen: bool,
}

impl Seen {
    /// A file that was looked at.
    pub(crate) fn file(stat: &FileStat, volume: usize) -> Self {
        let object = Held { bytes: stat.bytes, volume };
        Self { object, modified_ns: stat.modified_ns, is_unseen: false }
    }
}

/// What became of an object that was looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// It was neither in the index nor counted, and has so many bytes.
    New(u64),
    /// It was known, or somebody else has just entered it.
    Known,
    /// It is not there.
    Nowhere,
}

/// What discoveries are entered into.
#[derive(Clone, Copy)]
pub(crate) struct Discover<'a> {
    pub(crate) index: &'a Index,
    pub(crate) volumes: &'a Volumes,
    pub(crate) latent: &'a Latent,
    pub(crate) steps: &'a Steps,
}

impl Discover<'_> {
    /// Enters an object into the index, whatever happens to its key meanwhile, or settles what a snapshot says of it.
    pub(crate) fn enter(&self, keyed: &Keyed, look: impl Fn() -> Result<Option<Seen>>) -> Result<Found> {
        let latent = self.latent.take(keyed.hash(), keyed.salt);
        let insert = |seen: Seen, at| self.index.insert_recovered(keyed, seen, at);
        let found = self.settle(keyed, latent, look, insert)?;
        Ok(if latent.is_some() && found != Found::Nowhere { Found::Known } else { found })
    }

    /// As [`Self::enter`], of many keys of which none is counted, all looked at before the index is told: those of a partition at once. `look`
    /// is given the number of the key; what was `listed` on `volume` as a regular file, and a snapshot vouches for, is not looked at. Gives what
    /// became of each.
    pub(crate) fn enter_all(
        &self,
        keys: &[Keyed],
        volume: usize,
        listed: &[bool],
        look: impl Fn(usize) -> Result<Option<Seen>>,
    ) -> Result<Vec<Found>> {
        let moments = self.index.moments(keys, volume, listed);
        let looked = keys.iter().zip(&moments.vouched).enumerate().map(|(number, (keyed, vouched))| {
            let found = vouched.map_or_else(|| look(number), |seen| Ok(Some(seen)));
            self.steps.at(Step::Looked, &keyed.key);
            found
        });
        let found: Vec<Option<Seen>> = looked.collect::<Result<_>>()?;
        let entered = self.index.enter_all(keys, &found, &moments, |changes| self.recount_all(changes));
        let became = entered.into_iter().enumerate().map(|(number, entered)| match entered {
            Entered::New => Ok(found[number].map_or(Found::Nowhere, |seen| Found::New(seen.object.bytes))),
            Entered::Known => Ok(Found::Known),
            Entered::Gone => Ok(Found::Nowhere),
            // Something was removed meanwhile, seldom this.
            Entered::Stale => self.enter(&keys[number], || look(number)),
        });
        became.collect()
    }

    /// Counts an object without entering it.
    pub(crate) fn count(&self, keyed: &Keyed, look: impl Fn() -> Result<Option<Seen>>) -> Result<Found> {
        self.settle(keyed, None, look, |seen, at| {
            let note = || self.latent.insert(keyed.hash(), keyed.salt, seen.object);
            match self.index.if_absent(keyed, seen.object.volume, at, note) {
                Ok(Ok(())) => Entered::New,
                // The same key on another volume.
                Ok(Err(other)) if other.volume != seen.object.volume => Entered::Known,
                Ok(Err(_)) => self.index.insert_recovered(keyed, seen, at),
                Err(entered) => entered,
            }
        })
    }

    /// Takes back what was counted of a key that the index knows by now: its bytes are in the ledger by its entry.
    pub(crate) fn uncount(&self, keyed: &Keyed) -> Option<Held> {
        let counted = self.latent.take(keyed.hash(), keyed.salt);
        self.recount(keyed.salt, counted, None);
        counted
    }

    /// Looks at the disk and enters what is there, as often as something was removed meanwhile. `counted` is what the ledger
    /// has for the object already.
    fn settle(
        &self,
        keyed: &Keyed,
        mut counted: Option<Held>,
        look: impl Fn() -> Result<Option<Seen>>,
        insert: impl Fn(Seen, Epoch) -> Entered,
    ) -> Result<Found> {
        let outcome = loop {
            let sight = self.index.sight(keyed);
            if let Sight::Known = sight {
                break Ok(Found::Known);
            }
            let found = match look() {
                Ok(found) => found,
                Err(error) => break Err(error),
            };
            self.steps.at(Step::Looked, &keyed.key);
            let entered = match (sight, found) {
                // What is counted for a hint changes under its partition's lock.
                (Sight::Hinted(at), _) => self.index.settle_hint(keyed, found, at, |changes| self.recount_all(changes)),
                (Sight::Absent(at), Some(seen)) => {
                    self.recount(keyed.salt, counted, Some(seen.object));
                    counted = Some(seen.object);
                    insert(seen, at)
                }
                (Sight::Absent(_) | Sight::Known, _) => break Ok(Found::Nowhere),
            };
            match entered {
                Entered::New => return Ok(found.map_or(Found::Nowhere, |seen| Found::New(seen.object.bytes))),
                Entered::Known => break Ok(Found::Known),
                Entered::Gone => break Ok(Found::Nowhere),
                Entered::Stale => {}
            }
        };
        // It is not there, or whoever entered it has counted it.
        self.recount(keyed.salt, counted, None);
        outcome
    }

    fn recount(&self, salt: SaltId, from: Option<Held>, to: Option<Held>) {
        if from != to {
            self.recount_all(&[Recount { salt, from, to }]);
        }
    }

    /// Moves bytes in the ledger.
    fn recount_all(&self, changes: &[Recount]) {
        let on = |held: Option<Held>, volume| held.filter(|held| held.volume == volume);
        let apply = |volume: usize, enter: &dyn Fn(&mut Deltas, &Recount)| {
            let mut deltas = Deltas::new();
            changes.iter().for_each(|change| enter(&mut deltas, change));
            if !deltas.is_empty() {
                self.volumes[volume].ledger.apply(&deltas);
            }
        };
        // What goes from one volume to another is counted twice rather than not at all meanwhile.
        for volume in 0..self.volumes.len() {
            apply(volume, &|deltas, Recount { salt, from, to }| {
                if let Some(to) = on(*to, volume) {
                    deltas.recovered(*salt, to.bytes);
                }
                if let Some(from) = on(*from, volume).filter(|_| to.is_none_or(|to| to.volume == volume)) {
                    deltas.deleted(*salt, from.bytes);
                }
            });
        }
        for volume in 0..self.volumes.len() {
            apply(volume, &|deltas, Recount { salt, from, to }| {
                if let Some(from) = on(*from, volume).filter(|_| to.is_some_and(|to| to.volume != volume)) {
                    deltas.deleted(*salt, from.bytes);
                }
            });
        }
    }
}
