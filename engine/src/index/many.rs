//! Many keys at once, as the scan meets them and a snapshot tells of them: partition by partition, so that each is locked once for all of
//! its keys, and its memory is asked for side by side instead of after each lock.

use std::sync::atomic::Ordering;

use super::{Entered, Epoch, Held, Index, Keyed};
use crate::discover::Seen;
use crate::events::{Event, EventKind, Hub};
use crate::ledger::SaltId;

/// One of many keys: its partition, and which it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) partition: u32,
    pub(super) number: u32,
}

/// Keys by their hashes, those of a partition side by side.
pub(super) fn by_partition(hashes: impl Iterator<Item = u64>) -> Vec<Place> {
    let place = |(number, hash)| Place { partition: Index::partition_number(hash) as u32, number };
    let mut places: Vec<Place> = (0..).zip(hashes).map(place).collect();
    places.sort_unstable();
    places
}

/// What an object's bytes in the ledger were, and what they are.
#[derive(Debug)]
pub(crate) struct Recount {
    pub(crate) salt: SaltId,
    pub(crate) from: Option<Held>,
    pub(crate) to: Option<Held>,
}

/// What changes of a partition, which is locked, have to be told to others before it is unlocked.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) objects: i64,
    pub(super) hints: i64,
    pub(super) recounts: Vec<Recount>,
    pub(super) events: Vec<Event>,
}

impl Tally {
    /// A change for listeners, where there are any.
    pub(super) fn push(&mut self, hub: &Hub, kind: EventKind, bytes: u64, keyed: &Keyed) {
        if hub.is_active() {
            self.events.push(Event { kind, key: keyed.key.clone(), bytes });
        }
    }
}

/// What the index knew of keys before the disk was looked at: the moment of each partition that they are in.
pub(crate) struct Moments {
    places: Vec<Place>,
    /// One for each run of places of one partition.
    epochs: Vec<Epoch>,
    /// Of each key, what a snapshot says that is vouched for: its file, if it is there, needs no look.
    pub(crate) vouched: Vec<Option<Seen>>,
}

impl Index {
    /// To be taken before a volume is looked at for these keys; `listed` are those of which it is known that they are regular files there.
    pub(crate) fn moments(&self, keys: &[Keyed], volume: usize, listed: &[bool]) -> Moments {
        let places = by_partition(keys.iter().map(|keyed| keyed.hash));
        let mut vouched = vec![None; keys.len()];
        let has_hints = self.hints() > 0;
        let (mut epochs, mut slots) = (Vec::new(), Vec::new());
        for group in places.chunk_by(|a, b| a.partition == b.partition) {
            let partition = self.partitions[group[0].partition as usize].lock();
            epochs.push(Epoch(partition.epoch));
            if !has_hints {
                continue;
            }
            slots.clear();
            slots.extend(group.iter().map(|place| partition.slot(&keys[place.number as usize])));
            for (place, slot) in group.iter().zip(&slots) {
                if let Some(slot) = slot.filter(|_| listed[place.number as usize]) {
                    vouched[place.number as usize] = partition.entries[slot as usize].vouches(volume);
                }
            }
        }
        Moments { places, epochs, vouched }
    }

    /// Enters what was found since `moments` for its keys, in their order: new objects, and what settles hints. `recount` moves their bytes in
    /// the ledger; it is called with a partition locked, before anybody can see what is new there. Gives what became of each.
    pub(crate) fn enter_all(
        &self,
        keys: &[Keyed],
        found: &[Option<Seen>],
        moments: &Moments,
        mut recount: impl FnMut(&[Recount]),
    ) -> Vec<Entered> {
        let mut entered = vec![Entered::Known; keys.len()];
        let (mut tally, mut slots) = (Tally::default(), Vec::new());
        let groups = moments.places.chunk_by(|a, b| a.partition == b.partition);
        for (group, epoch) in groups.zip(&moments.epochs) {
            let mut partition = self.partitions[group[0].partition as usize].lock();
            // All are looked up before one is changed: what a key leads to is mostly not in the CPU's cache, and is waited for once for several.
            slots.clear();
            slots.extend(group.iter().map(|place| partition.slot(&keys[place.number as usize])));
            for (Place { number, .. }, slot) in group.iter().zip(&slots) {
                let (keyed, found) = (&keys[*number as usize], found[*number as usize]);
                entered[*number as usize] = match (*slot, found) {
                    (Some(slot), _) => self.settle_in(&mut partition, slot, keyed, found, *epoch, &mut tally),
                    // A name that goes and comes while a directory is read may be listed twice: it is there by now.
                    (None, Some(_)) if partition.slot(keyed).is_some() => Entered::Known,
                    (None, Some(found)) => self.insert_in(&mut partition, keyed, found, *epoch, &mut tally),
                    (None, None) => Entered::Gone,
                };
            }
            self.tell(&mut tally, &mut recount);
        }
        entered
    }

    /// Tells what has changed in a partition, which is locked still: the ledger before listeners.
    pub(super) fn tell(&self, tally: &mut Tally, recount: impl FnOnce(&[Recount])) {
        if tally.objects != 0 {
            self.objects.fetch_add(std::mem::take(&mut tally.objects) as u64, Ordering::Relaxed);
        }
        if tally.hints != 0 {
            self.hints.fetch_add(std::mem::take(&mut tally.hints) as u64, Ordering::Relaxed);
        }
        if !tally.recounts.is_empty() {
            recount(&tally.recounts);
            tally.recounts.clear();
        }
        for Event { kind, key, bytes } in tally.events.drain(..) {
            self.hub.push(kind, bytes, || key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::key::Scope;
    use crate::ledger::{Deltas, Ledger};

    #[test]
    fn a_name_that_was_listed_twice_is_one_object() {
        let (index, ledger) = (Index::new(Arc::new(Hub::new()), None), Ledger::new(None));
        let scope = Scope::new("meta-llama/Llama-3.1-8B", 0x0100_0100, 0, "tenant-1").unwrap();
        let keyed = |n: u8| index.keyed(&scope.key(&[n; 32]).unwrap(), &ledger);
        let keys: Vec<Keyed> = [1, 2, 1].map(keyed).into();
        let seen = Seen { object: Held { bytes: 100, volume: 0 }, modified_ns: 1, is_unseen: false };
        let moments = index.moments(&keys, 0, &[true; 3]);
        let entered = index.enter_all(&keys, &[Some(seen); 3], &moments, |changes| {
            let mut deltas = Deltas::new();
            changes.iter().for_each(|change| deltas.recovered(change.salt, change.to.map_or(0, |to| to.bytes)));
            ledger.apply(&deltas);
        });
        assert_eq!(entered, [Entered::New, Entered::New, Entered::Known]);
        assert_eq!((index.objects(), ledger.totals().0), (2, 200));
    }
}
