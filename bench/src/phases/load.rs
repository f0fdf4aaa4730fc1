//! Loads of stored objects in random order, into poisoned memory. Beside it: random reads.

use super::Phase;
use crate::ceiling::Kind;
use crate::contest::Contest;
use crate::error::Result;
use crate::report::PhaseResult;
use crate::stage::Stage;
use crate::transfer::Step;

/// All objects are loaded again until the timed parts have taken this long, and at most so often.
const SECONDS_MIN: f64 = 0.5;
const PASSES_MAX: usize = 4;

pub(super) fn run(stage: &mut Stage<'_>) -> Result<Vec<PhaseResult>> {
    stage.require_objects()?;
    let mut contest = Contest::new(stage);
    let order = stage.shuffled();
    let rounds = stage.rounds(order.len());
    stage.hooks.progress.begin(&stage.label("load"), order.len() as u64);
    for round in rounds.iter().cycle() {
        let is_pass = contest.rounds().is_multiple_of(rounds.len());
        if is_pass && (contest.own.seconds() >= SECONDS_MIN || contest.rounds() >= PASSES_MAX * rounds.len()) {
            break;
        }
        if is_pass && contest.rounds() > 0 {
            stage.hooks.progress.begin(&stage.label("load"), order.len() as u64);
        }
        let order = &order[round.clone()];
        contest.round(stage, Kind::Read, order, &vec![Step::Load; order.len()])?;
        stage.hooks.progress.advance(order.len() as u64);
    }
    Ok(contest.finish(stage, Phase::Load))
}
