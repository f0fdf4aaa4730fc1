//! Stores of new objects: each makes a file. Beside it: random overwrites.
//!
//! A first fill, and not what comes after a mass delete: ext4's inode allocator walks over every inode that was freed in
//! the last minute or so (`recently_deleted`), and makes files five to ten times slower. So this phase runs for all
//! object sizes before any other phase deletes anything, and nothing of a run is removed before its end. On ext4, leave a
//! minute between two runs.

use std::time::Instant;

use super::Phase;
use crate::ceiling::Kind;
use crate::contest::Contest;
use crate::error::Result;
use crate::report::PhaseResult;
use crate::stage::Stage;
use crate::transfer::Step;

pub(super) fn run(stage: &mut Stage<'_>) -> Result<Vec<PhaseResult>> {
    let mut contest = Contest::new(stage);
    let rounds = stage.rounds(stage.plan.objects);
    // Each object is stored, and read back after all were.
    stage.hooks.progress.begin(&stage.label("fresh"), 2 * stage.plan.objects as u64);
    let started = Instant::now();
    for round in rounds {
        let order: Vec<usize> = round.collect();
        contest.round(stage, Kind::Overwrite, &order, &vec![Step::Store; order.len()])?;
        stage.live.end += order.len();
        stage.hooks.progress.advance(order.len() as u64);
        if started.elapsed() > stage.plan.patience && stage.live.len() < stage.plan.objects {
            let (size, stored) = (stage.label("fresh"), stage.live.len());
            stage.notes.push(format!("{size}: cut short after {stored} objects, to stay in the time"));
            break;
        }
    }
    stage.settle()?;
    contest.verify(stage)?;
    Ok(contest.finish(stage, Phase::Fresh))
}
