//! What was asked of a store and what it has acknowledged, with the positions of the disk's log.
//!
//! A position that is taken before a request is submitted is in front of all its writes; one that is taken after its
//! acknowledgement is behind all that the acknowledgement has waited for. So, for a cut at a position: an object acknowledged
//! at or before it, whose removal was not submitted before it, has to be there if acknowledgements are durable.

use std::collections::BTreeMap;
use std::fmt::Write;

use parking_lot::Mutex;

use crate::log::Position;

/// One life of an object, from a store to a delete.
#[derive(Debug, Clone, Copy)]
struct Life {
    store_submitted: Position,
    stored: Option<Position>,
    delete_submitted: Option<Position>,
    deleted: Option<Position>,
}

/// All lives of all objects. Thread-safe; a key is used by one thread at a time.
#[derive(Debug, Default)]
pub(crate) struct History(Mutex<BTreeMap<u64, Vec<Life>>>);

impl History {
    /// An object was there when the log began, and the disk holds it.
    pub(crate) fn found(&self, number: u64) {
        let life = Life { store_submitted: 0, stored: Some(0), delete_submitted: None, deleted: None };
        self.0.lock().entry(number).or_default().push(life);
    }

    pub(crate) fn store_submitted(&self, number: u64, at: Position) {
        let life = Life { store_submitted: at, stored: None, delete_submitted: None, deleted: None };
        self.0.lock().entry(number).or_default().push(life);
    }

    fn last(&self, number: u64, change: impl FnOnce(&mut Life)) {
        change(self.0.lock().get_mut(&number).and_then(|lives| lives.last_mut()).expect("it was stored before"));
    }

    pub(crate) fn stored(&self, number: u64, at: Position) {
        self.last(number, |life| life.stored = Some(at));
    }

    pub(crate) fn delete_submitted(&self, number: u64, at: Position) {
        self.last(number, |life| life.delete_submitted = Some(at));
    }

    pub(crate) fn deleted(&self, number: u64, at: Position) {
        self.last(number, |life| life.deleted = Some(at));
    }

    /// The object was in use: nothing has happened.
    pub(crate) fn delete_refused(&self, number: u64) {
        self.last(number, |life| life.delete_submitted = None);
    }

    /// Whether the object may be absent from a running store.
    pub(crate) fn may_be_absent(&self, number: u64) -> bool {
        self.0.lock().get(&number).and_then(|lives| lives.last()).is_none_or(|life| life.delete_submitted.is_some())
    }

    /// Whether a store of this object was submitted before the cut.
    pub(crate) fn may_be_present(&self, number: u64, cut: Position) -> bool {
        self.0.lock().get(&number).is_some_and(|lives| lives.iter().any(|life| life.store_submitted < cut))
    }

    /// Objects that were acknowledged before the cut and whose removal had not begun.
    pub(crate) fn acknowledged(&self, cut: Position) -> Vec<u64> {
        let lives_on =
            |life: &Life| life.stored.is_some_and(|at| at <= cut) && life.delete_submitted.is_none_or(|at| at >= cut);
        let objects = self.0.lock();
        objects.iter().filter(|(_, lives)| lives.iter().any(lives_on)).map(|(number, _)| *number).collect()
    }

    /// The lives of an object as text.
    pub(crate) fn tell(&self, number: u64) -> String {
        let mut text = format!("key {number}:");
        for life in self.0.lock().get(&number).into_iter().flatten() {
            let _ = write!(text, " store submitted at {}", life.store_submitted);
            let steps =
                [("stored", life.stored), ("delete submitted", life.delete_submitted), ("deleted", life.deleted)];
            for (step, at) in steps.into_iter().filter_map(|(step, at)| Some((step, at?))) {
                let _ = write!(text, ", {step} at {at}");
            }
            text.push(';');
        }
        text
    }
}
