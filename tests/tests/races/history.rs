//! What happened to some keys while several threads were at them, and whether one thread could have seen the same.
//!
//! Each operation has the moment at which it was called and that at which it was answered. The history is right if
//! there is an order of the operations, one after the other, which the moments allow and in which the model gives
//! every one the answer that it had.

use saltern::Error;
use saltern_tests::{Deleted, Model, Object, Stored};

/// An operation and its answer.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Store(Object, Result<u64, Error>),
    /// Loaded with the size that objects of the key have; the seed is that of the bytes.
    Load(u64, Result<u64, Error>),
    /// A lookup, and its unpin.
    Find(Option<u64>),
    Delete(Result<u64, Error>),
}

/// One operation on one key.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) key: usize,
    pub(crate) called: u64,
    pub(crate) answered: u64,
    pub(crate) op: Op,
}

impl Event {
    fn overlaps(&self, other: &Self) -> bool {
        self.called < other.answered && other.called < self.answered
    }
}

/// Most operations of one history: all orders of those that overlap are tried.
const EVENTS_MAX: usize = 14;

/// The state after an order that explains the history; `None` when there is none.
pub(crate) fn explain(start: &Model, events: &[Event]) -> Option<Model> {
    assert!(events.len() <= EVENTS_MAX, "{} events", events.len());
    search(start, events, (1 << events.len()) - 1)
}

fn search(model: &Model, events: &[Event], left: u32) -> Option<Model> {
    if left == 0 {
        return Some(model.clone());
    }
    let is_left = |n: &usize| left & (1 << n) != 0;
    // What was called after another was answered comes after it.
    let first_answer = (0..events.len()).filter(is_left).map(|n| events[n].answered).min()?;
    (0..events.len()).filter(is_left).filter(|n| events[*n].called < first_answer).find_map(|n| {
        let mut model = model.clone();
        apply(&mut model, events, n).then(|| search(&model, events, left & !(1 << n)))?
    })
}

/// Applies one operation; false when the model would have answered something else.
fn apply(model: &mut Model, events: &[Event], n: usize) -> bool {
    let Event { key, op, .. } = &events[n];
    match op {
        Op::Store(object, answer) => match (model.store(*key, *object), answer) {
            (Stored::Added(a), Ok(b)) => a == *b,
            (Stored::Present, Ok(0)) | (Stored::Full, Err(Error::Full { .. })) => true,
            // It would have fitted, but for the bytes that stores in flight have reserved.
            (Stored::Added(_), Err(Error::Full { capacity, .. })) => {
                model.bytes() + reserved(model, events, n) > *capacity && model.delete(*key) != Deleted::Miss
            }
            _ => false,
        },
        Op::Load(seed, answer) => match (model.object(*key), answer) {
            (Some(object), Ok(bytes)) => object == Object { bytes: *bytes, seed: *seed },
            (None, Err(Error::NotFound)) => true,
            _ => false,
        },
        Op::Find(answer) => model.object(*key).map(|object| object.bytes) == *answer,
        Op::Delete(Err(Error::Pinned { .. })) => {
            // It was there, and somebody used it at that moment.
            let uses = |other: &Event| other.key == *key && matches!(other.op, Op::Load(..) | Op::Find(Some(_)));
            model.object(*key).is_some() && events.iter().any(|other| uses(other) && other.overlaps(&events[n]))
        }
        Op::Delete(answer) => match (model.delete(*key), answer) {
            (Deleted::Freed(a), Ok(b)) => a == *b,
            (Deleted::Miss, Err(Error::NotFound)) => true,
            _ => false,
        },
    }
}

/// Bytes of the stores of other keys that overlap with this one and are not in the model.
fn reserved(model: &Model, events: &[Event], n: usize) -> u64 {
    let others = events.iter().filter(|other| other.key != events[n].key && other.overlaps(&events[n]));
    let absent = others.filter(|other| model.object(other.key).is_none());
    absent.map(|other| if let Op::Store(object, Ok(_)) = other.op { object.bytes } else { 0 }).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(called: u64, answered: u64, op: Op) -> Event {
        Event { key: 0, called, answered, op }
    }

    const OBJECT: Object = Object { bytes: 10, seed: 1 };

    #[test]
    fn histories_that_no_order_explains_are_found() {
        let empty = Model::new(None);
        let stored = event(0, 3, Op::Store(OBJECT, Ok(10)));
        // A miss while the store is under way is right, one after it is not.
        assert!(explain(&empty, &[stored.clone(), event(1, 2, Op::Find(None))]).is_some());
        assert!(explain(&empty, &[stored.clone(), event(4, 5, Op::Find(None))]).is_none());
        // Nothing is stored twice, and nothing comes back.
        assert!(explain(&empty, &[stored.clone(), event(1, 4, Op::Store(OBJECT, Ok(10)))]).is_none());
        let deleted = event(4, 5, Op::Delete(Ok(10)));
        assert!(explain(&empty, &[stored.clone(), deleted.clone(), event(6, 7, Op::Find(Some(10)))]).is_none());
        assert!(explain(&empty, &[stored.clone(), deleted, event(6, 7, Op::Store(OBJECT, Ok(0)))]).is_none());
        // Bytes of another store are wrong bytes; a pin needs somebody who pins.
        assert!(explain(&empty, &[stored.clone(), event(4, 5, Op::Load(2, Ok(10)))]).is_none());
        let refused = event(4, 7, Op::Delete(Err(Error::Pinned { pins: 0, loads: 1 })));
        assert!(explain(&empty, &[stored.clone(), refused.clone()]).is_none());
        assert!(explain(&empty, &[stored, refused, event(5, 6, Op::Load(1, Ok(10)))]).is_some());
        let full = event(1, 2, Op::Store(OBJECT, Err(Error::Full { needed: 10, free: 9, capacity: 15 })));
        assert!(explain(&empty, std::slice::from_ref(&full)).is_none());
        assert!(explain(&Model::new(Some(9)), &[full]).is_some());
    }
}
