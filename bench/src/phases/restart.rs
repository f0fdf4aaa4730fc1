//! Closes the engine and opens it again on the same directory: everything has to be there.
//!
//! The figures are those of the median open, its latencies those of all.

use std::time::Duration;

use saltern::Engine;

use super::Phase;
use crate::error::{Error, Result};
use crate::meter::{Latencies, Meter, Spent};
use crate::report::PhaseResult;
use crate::stage::Stage;
use crate::tally::{Problems, Tally};

/// How often it is opened.
const OPENS: usize = 3;

/// Keys of one lookup.
const BATCH: usize = 32;

pub(super) fn run(stage: &mut Stage<'_>) -> Result<Vec<PhaseResult>> {
    stage.require_objects()?;
    stage.settle()?;
    let mut tally = Tally::new(stage.plan.object_bytes);
    stage.hooks.progress.begin(&stage.label("restart"), (OPENS + stage.stored) as u64);
    let mut latencies = Latencies::new();
    let mut opens: Vec<Spent> = Vec::new();
    for _ in 0..OPENS {
        let spent = stage.reopen(open)?;
        latencies.record(Duration::from_secs_f64(spent.seconds));
        opens.push(spent);
        check(stage, &mut tally.problems);
        stage.hooks.progress.advance(1);
    }
    opens.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    tally.add(opens[OPENS / 2], &latencies, stage.stored as u64, 0);
    stage.verify_all(&mut tally)?;
    Ok(vec![tally.finish(Phase::Restart, stage.options.layout, 1, OPENS)])
}

/// Opens, and waits until every object is in the index.
fn open(config: saltern::Config) -> Result<(Engine, Spent)> {
    let meter = Meter::process();
    let engine = Engine::open(config).map_err(Error::from)?;
    engine.wait_recovered();
    Ok((engine, meter.stop()))
}

/// Every object is found, with its size, and the usage is theirs.
fn check(stage: &Stage<'_>, problems: &mut Problems) {
    let engine = stage.engine();
    let size = stage.plan.object_bytes as u64;
    for batch in stage.keys[..stage.stored].chunks(BATCH) {
        let report = engine.lookup_and_pin(batch).wait();
        let wrong = report.sizes.iter().filter(|found| **found != Some(size)).count() as u64;
        problems.add_many(wrong, || format!("{wrong} of {} objects not found, or of another size", batch.len()));
        engine.unpin(batch);
    }
    let (used, expected) = (engine.usage().total_bytes_used, stage.stored as u64 * size);
    if used != expected {
        problems.add(|| format!("usage is {used} bytes after the restart, and {expected} were stored"));
    }
}
