//! Loads of stored objects in random order, into poisoned memory. Beside it: random reads.

use super::Phase;
use crate::ceiling::Kind;
use crate::error::Result;
use crate::report::PhaseResult;
use crate::stage::Stage;
use crate::tally::Tally;
use crate::transfer::{compare, poison};

/// All objects are loaded again until the timed parts have taken this long, and at most so often.
const SECONDS_MIN: f64 = 0.5;
const PASSES_MAX: usize = 4;

pub(super) fn run(stage: &mut Stage<'_>) -> Result<Vec<PhaseResult>> {
    stage.require_objects()?;
    let mut tally = Tally::new(stage.plan.object_bytes);
    let order = stage.shuffled();
    let rounds = stage.rounds(order.len());
    stage.hooks.progress.begin(&stage.label("load"), order.len() as u64);
    let mut rounds_done = 0;
    for round in rounds.iter().cycle() {
        let is_pass = rounds_done % rounds.len() == 0;
        if is_pass && (tally.seconds() >= SECONDS_MIN || rounds_done >= PASSES_MAX * rounds.len()) {
            break;
        }
        if is_pass && rounds_done > 0 {
            stage.hooks.progress.begin(&stage.label("load"), order.len() as u64);
        }
        rounds_done += 1;
        let order = &order[round.clone()];
        poison(stage.arena, order.len());
        let ceiling = stage.ceiling(Kind::Read, order.len())?;
        let seed = stage.options.seed;
        let (mover, arena) = stage.mover();
        let timed = mover.load(arena, order, &mut tally.problems)?;
        tally.add(timed.spent, &timed.latencies, timed.operations, timed.bytes);
        tally.add_ratio(ceiling, timed.spent, timed.bytes);
        tally.verified_bytes += compare(arena, seed, order, &timed.good, &mut tally.problems);
        stage.hooks.progress.advance(order.len() as u64);
    }
    Ok(vec![tally.finish(Phase::Load, stage.options.layout, stage.plan.depth, rounds_done)])
}
