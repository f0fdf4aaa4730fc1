//! At capacity: each operation deletes the oldest object and stores a new one. Beside it: random overwrites.
//!
//! The host decides what goes, by a delete that is submitted beside the store and that the loop does not wait for. The
//! capacity leaves room for what is in flight and no more, so that a store whose victim were still there would be refused,
//! which counts as an error. Untimed rounds come first, until stores find spares. Everything that remains is read back.
//!
//! Baselines unlink the oldest file and make a new one, as a plain implementation does.

use super::Phase;
use crate::ceiling::Kind;
use crate::contest::Contest;
use crate::error::Result;
use crate::report::PhaseResult;
use crate::stage::{Recycling, Stage};

/// Untimed rounds at most; where the file system gains nothing from spares, there are none to wait for.
const WARM_UP_ROUNDS_MAX: usize = 3;

/// The share of a warm-up round's stores that has to find a spare.
const WARM_SHARE: f64 = 0.5;

pub(super) fn run(stage: &mut Stage<'_>) -> Result<Vec<PhaseResult>> {
    stage.require_objects()?;
    stage.fill_to_capacity()?;
    warm_up(stage)?;
    let mut contest = Contest::new(stage);
    let rounds = stage.rounds(stage.live.len());
    stage.hooks.progress.begin(&stage.label("steady"), 2 * stage.live.len() as u64);
    let recycling = Recycling::begin(stage.engine());
    for round in rounds {
        let (order, steps) = stage.displacement(round.len())?;
        contest.round(stage, Kind::Overwrite, &order, &steps)?;
        stage.displaced(order.len());
        stage.hooks.progress.advance(order.len() as u64);
    }
    let recycling = recycling.end(stage.engine());
    contest.verify(stage)?;
    let mut results = contest.finish(stage, Phase::Steady);
    recycling.enter(&mut results[0]);
    Ok(results)
}

/// Displaces, untimed, until most stores overwrite a spare.
fn warm_up(stage: &mut Stage<'_>) -> Result<()> {
    let mut warming = Contest::new(stage);
    for _ in 0..WARM_UP_ROUNDS_MAX {
        if !stage.engine().status().spares.is_on {
            break;
        }
        let recycling = Recycling::begin(stage.engine());
        let (order, steps) = stage.displacement(stage.plan.slice)?;
        warming.untimed(stage, &order, &steps)?;
        stage.displaced(order.len());
        if recycling.end(stage.engine()).share() >= WARM_SHARE {
            break;
        }
    }
    if let Some(first) = warming.own.problems.first() {
        stage.notes.push(format!("{}: while warming up: {first}", stage.label("steady")));
    }
    Ok(())
}
