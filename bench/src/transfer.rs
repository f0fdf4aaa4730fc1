//! Stores from the arena and loads into it, one object a ticket, in a closed loop; deletes beside the stores.
//!
//! Object `order[i]` uses slot `i`. Outside of the timed part: [`make_ready`] before it, [`compare`] after it.

use std::sync::atomic::AtomicBool;

use saltern::{Class, DeleteReport, Engine, ObjectKey, Ticket};

use crate::arena::Arena;
use crate::closed_loop::{ClosedLoop, Operation};
use crate::error::{Error, Result};
use crate::meter::{Latencies, Spent};
use crate::payload;
use crate::tally::Problems;

/// What a slot holds before a load: no payload, and not what an earlier load left.
const POISON: u8 = 0xa5;

/// One timed part.
pub(crate) struct Timed {
    pub(crate) spent: Spent,
    pub(crate) loads: Latencies,
    pub(crate) stores: Latencies,
    /// Objects that were submitted.
    pub(crate) operations: u64,
    /// Bytes of those that did not fail.
    pub(crate) bytes: u64,
    /// Slots whose object was loaded (or stored) without an error.
    pub(crate) good: Vec<bool>,
}

impl Timed {
    /// Of loads and stores together.
    pub(crate) fn latencies(&self) -> Latencies {
        let mut all = Latencies::new();
        all.add(&self.loads);
        all.add(&self.stores);
        all
    }
}

/// What is done with one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Store,
    Load,
    /// Deletes another object, and stores this one beside it, without waiting for the delete.
    Displace {
        victim: usize,
    },
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
    deletes: Vec<(usize, Ticket<DeleteReport>)>,
}

impl Mover<'_> {
    /// Loads these objects into their slots.
    pub(crate) fn load(&self, arena: &mut Arena, order: &[usize], problems: &mut Problems) -> Result<Timed> {
        self.run(arena, order, &vec![Step::Load; order.len()], problems)
    }

    /// Does `steps[i]` with object `order[i]`. The deletes are waited for at the end, as part of what is timed.
    pub(crate) fn run(
        &self,
        arena: &mut Arena,
        order: &[usize],
        steps: &[Step],
        problems: &mut Problems,
    ) -> Result<Timed> {
        let (some_loads, some_stores) = (steps.contains(&Step::Load), steps.iter().any(|step| *step != Step::Load));
        let classes: &[Class] = match (some_loads, some_stores) {
            (true, true) => &[Class::Load, Class::Store],
            (true, false) => &[Class::Load],
            (false, _) => &[Class::Store],
        };
        let looping =
            ClosedLoop { engine: self.engine, classes, depth: self.depth, cancel: self.cancel, stop: self.stop };
        let good = vec![false; order.len()];
        let mut context = Context { arena, problems, bytes: 0, operations: 0, good, deletes: Vec::new() };
        let outcome = looping.run(
            &mut context,
            order.len(),
            |context, slot| {
                context.operations += 1;
                let buffer = context.arena.lend(slot).expect("all slots are at home between loops");
                let batch = vec![(self.keys[order[slot]].clone(), buffer)];
                match steps[slot] {
                    Step::Load => return Operation::Load(self.engine.load(batch)),
                    Step::Store => {}
                    Step::Displace { victim } => {
                        let ticket = self.engine.delete(std::slice::from_ref(&self.keys[victim]));
                        context.deletes.push((victim, ticket));
                    }
                }
                Operation::Store(self.engine.store(batch))
            },
            |context, slot, (result, buffer)| {
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
            |context| {
                for (victim, ticket) in context.deletes.drain(..) {
                    if let Err(error) = ticket.wait().results.remove(0) {
                        context.problems.add(|| format!("delete of object {victim}: {error}"));
                    }
                }
            },
        )?;
        let Context { arena, bytes, operations, good, .. } = context;
        if arena.has_lost_slots() {
            return Err(Error::MemoryKept);
        }
        Ok(Timed { spent: outcome.spent, loads: outcome.loads, stores: outcome.stores, operations, bytes, good })
    }
}

/// Results that come from a baseline.
pub(crate) struct Gathered {
    pub(crate) loads: Latencies,
    pub(crate) stores: Latencies,
    operations: u64,
    bytes: u64,
    good: Vec<bool>,
}

impl Gathered {
    pub(crate) fn new(count: usize) -> Self {
        let (loads, stores) = (Latencies::new(), Latencies::new());
        Self { loads, stores, operations: 0, bytes: 0, good: vec![false; count] }
    }

    /// The result of the operation on a slot, which is back at home.
    pub(crate) fn enter(
        &mut self,
        arena: &Arena,
        order: &[usize],
        slot: usize,
        result: std::io::Result<()>,
        problems: &mut Problems,
    ) {
        self.operations += 1;
        match result {
            Ok(()) => {
                self.bytes += arena.get(slot).map_or(0, <[u8]>::len) as u64;
                self.good[slot] = true;
            }
            Err(error) => problems.add(|| format!("object {}: {error}", order[slot])),
        }
    }

    pub(crate) fn finish(self, spent: Spent) -> Timed {
        let Self { loads, stores, operations, bytes, good } = self;
        Timed { spent, loads, stores, operations, bytes, good }
    }
}

/// Writes the payloads of objects that will be stored into their slots, and overwrites the slots of the others.
pub(crate) fn make_ready(arena: &mut Arena, seed: u64, order: &[usize], steps: &[Step]) {
    for (slot, (object, step)) in order.iter().zip(steps).enumerate() {
        match (step, arena.get_mut(slot)) {
            (Step::Load, Some(bytes)) => bytes.fill(POISON),
            (_, Some(bytes)) => payload::fill(seed, *object as u64, bytes),
            (_, None) => {}
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
        make_ready(&mut arena, 1, &[10, 11, 12, 13], &[Step::Store; 4]);
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
