//! Stores from the arena and loads into it, one object a ticket, in a closed loop.
//!
//! Object `order[i]` uses slot `i`. Outside of the timed part: [`prepare`] before a store, [`poison`] before a load,
//! [`compare`] after it.

use std::sync::atomic::AtomicBool;

use saltern::{Buffer, Class, Engine, ObjectKey, Ticket};

use crate::arena::Arena;
use crate::closed_loop::{ClosedLoop, Transfer};
use crate::error::{Error, Result};
use crate::meter::{Latencies, Spent};
use crate::payload;
use crate::tally::Problems;

/// What a slot holds before a load: no payload, and not what an earlier load left.
const POISON: u8 = 0xa5;

/// One timed part.
pub(crate) struct Timed {
    pub(crate) spent: Spent,
    pub(crate) latencies: Latencies,
    /// Objects that were submitted.
    pub(crate) operations: u64,
    /// Bytes of those that did not fail.
    pub(crate) bytes: u64,
    /// Slots whose object was loaded (or stored) without an error.
    pub(crate) good: Vec<bool>,
}

/// Everything that a loop needs but the arena.
pub(crate) struct Mover<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) keys: &'a [ObjectKey],
    pub(crate) depth: usize,
    pub(crate) cancel: &'a AtomicBool,
    pub(crate) stop: Option<&'a AtomicBool>,
}

struct Context<'a> {
    arena: &'a mut Arena,
    problems: &'a mut Problems,
    bytes: u64,
    operations: u64,
    good: Vec<bool>,
}

impl Mover<'_> {
    /// Stores these objects from their prepared slots; each has to be new.
    pub(crate) fn store(&self, arena: &mut Arena, order: &[usize], problems: &mut Problems) -> Result<Timed> {
        self.run(Class::Store, arena, order, problems, |batch| self.engine.store(batch))
    }

    /// Loads these objects into their slots.
    pub(crate) fn load(&self, arena: &mut Arena, order: &[usize], problems: &mut Problems) -> Result<Timed> {
        self.run(Class::Load, arena, order, problems, |batch| self.engine.load(batch))
    }

    fn run<R: Transfer>(
        &self,
        class: Class,
        arena: &mut Arena,
        order: &[usize],
        problems: &mut Problems,
        call: impl Fn(Vec<(ObjectKey, Buffer)>) -> Ticket<R>,
    ) -> Result<Timed> {
        let looping =
            ClosedLoop { engine: self.engine, class, depth: self.depth, cancel: self.cancel, stop: self.stop };
        let mut context = Context { arena, problems, bytes: 0, operations: 0, good: vec![false; order.len()] };
        let outcome = looping.run(
            &mut context,
            order.len(),
            |context, slot| {
                context.operations += 1;
                let buffer = context.arena.lend(slot).expect("all slots are at home between loops");
                call(vec![(self.keys[order[slot]].clone(), buffer)])
            },
            |context, slot, result, buffer| {
                let expected = buffer.as_ref().map(|buffer| buffer.len() as u64);
                if let Some(buffer) = buffer {
                    context.arena.take_back(slot, buffer);
                }
                match result {
                    Ok(bytes) if Some(bytes) == expected => {
                        context.bytes += bytes;
                        context.good[slot] = true;
                    }
                    Ok(bytes) => context.problems.add(|| format!("object {}: {bytes} bytes reported", order[slot])),
                    Err(error) => context.problems.add(|| format!("object {}: {error}", order[slot])),
                }
            },
        )?;
        let Context { arena, bytes, operations, good, .. } = context;
        if arena.has_lost_slots() {
            return Err(Error::MemoryKept);
        }
        Ok(Timed { spent: outcome.spent, latencies: outcome.latencies, operations, bytes, good })
    }
}

/// Writes the payloads of these objects into their slots.
pub(crate) fn prepare(arena: &mut Arena, seed: u64, order: &[usize]) {
    for (slot, object) in order.iter().enumerate() {
        if let Some(bytes) = arena.get_mut(slot) {
            payload::fill(seed, *object as u64, bytes);
        }
    }
}

/// Overwrites the first `slots` slots.
pub(crate) fn poison(arena: &mut Arena, slots: usize) {
    for slot in 0..slots {
        if let Some(bytes) = arena.get_mut(slot) {
            bytes.fill(POISON);
        }
    }
}

/// Compares what was loaded well with what was stored; returns how many bytes were right.
pub(crate) fn compare(arena: &Arena, seed: u64, order: &[usize], good: &[bool], problems: &mut Problems) -> u64 {
    let mut right = 0;
    for (slot, object) in order.iter().enumerate().filter(|(slot, _)| good[*slot]) {
        let Some(bytes) = arena.get(slot) else { continue };
        match payload::verify(seed, *object as u64, bytes) {
            Ok(()) => right += bytes.len() as u64,
            Err(offset) => problems.add(|| format!("object {object}: wrong bytes from offset {offset} on")),
        }
    }
    right
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_poisoned_and_swapped_objects_are_found() {
        let mut arena = Arena::new(4 * 8192).unwrap();
        arena.cut(5000, 4);
        prepare(&mut arena, 1, &[10, 11, 12, 13]);
        let check = |arena: &Arena, order: &[usize]| {
            let mut problems = Problems::default();
            let right = compare(arena, 1, order, &[true; 4], &mut problems);
            (right, problems.count(), problems.first().map(str::to_owned))
        };
        assert_eq!(check(&arena, &[10, 11, 12, 13]), (20_000, 0, None));
        assert_eq!(check(&arena, &[10, 12, 11, 13]).1, 2);
        arena.get_mut(2).unwrap()[4999] ^= 1;
        let first = Some("object 12: wrong bytes from offset 4999 on".to_owned());
        assert_eq!(check(&arena, &[10, 11, 12, 13]), (15_000, 1, first));
        poison(&mut arena, 2);
        assert_eq!(check(&arena, &[10, 11, 12, 13]).1, 3);
        // What was not loaded well has been counted already.
        let mut problems = Problems::default();
        assert_eq!(compare(&arena, 1, &[10, 11, 12, 13], &[false, false, false, true], &mut problems), 5000);
        assert_eq!(problems.count(), 0);
    }
}
