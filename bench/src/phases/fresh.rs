//! Stores of new objects: each makes a file. Beside it: random overwrites.

use std::time::Instant;

use super::Phase;
use crate::ceiling::Kind;
use crate::error::Result;
use crate::report::PhaseResult;
use crate::stage::Stage;
use crate::tally::Tally;
use crate::transfer::prepare;

pub(super) fn run(stage: &mut Stage<'_>) -> Result<Vec<PhaseResult>> {
    let mut tally = Tally::new(stage.plan.object_bytes);
    let rounds = stage.rounds(stage.plan.objects);
    // Each object is stored, and read back after all were.
    stage.hooks.progress.begin(&stage.label("fresh"), 2 * stage.plan.objects as u64);
    let started = Instant::now();
    let mut rounds_done = 0;
    for round in rounds {
        let order: Vec<usize> = round.collect();
        prepare(stage.arena, stage.options.seed, &order);
        let ceiling = stage.ceiling(Kind::Overwrite, order.len())?;
        let (mover, arena) = stage.mover();
        let timed = mover.store(arena, &order, &mut tally.problems)?;
        tally.add(timed.spent, &timed.latencies, timed.operations, timed.bytes);
        tally.add_ratio(ceiling, timed.spent, timed.bytes);
        stage.stored += order.len();
        stage.hooks.progress.advance(order.len() as u64);
        rounds_done += 1;
        if started.elapsed() > stage.plan.patience && stage.stored < stage.plan.objects {
            let size = stage.label("fresh");
            stage.notes.push(format!("{size}: cut short after {} objects, to stay in the time", stage.stored));
            break;
        }
    }
    stage.settle()?;
    stage.verify_all(&mut tally)?;
    Ok(vec![tally.finish(Phase::Fresh, stage.options.layout, stage.plan.depth, rounds_done)])
}
