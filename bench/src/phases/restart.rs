//! Closes the engine and opens it again on the same directory: everything has to be there.
//!
//! The figures are those of the median open, its latencies those of all.

use std::time::Duration;

use saltern::Engine;

use super::Phase;
use crate::error::{Error, Result};
use crate::meter::{Latencies, Meter, Spent, round};
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
    stage.hooks.progress.begin(&stage.label("restart"), (OPENS + stage.live.len()) as u64);
    let mut latencies = Latencies::new();
    let mut opens: Vec<Open> = Vec::new();
    for _ in 0..OPENS {
        let open = stage.reopen(open)?;
        latencies.record(Duration::from_secs_f64(open.spent.seconds));
        opens.push(open);
        check(stage, &mut tally.problems);
        stage.hooks.progress.advance(1);
    }
    opens.sort_by(|a, b| a.spent.seconds.total_cmp(&b.spent.seconds));
    let open = &opens[OPENS / 2];
    tally.add(open.spent, &latencies, stage.live.len() as u64, 0);
    stage.verify(0, &mut tally)?;
    let mut result = tally.finish(Phase::Restart, stage.options.layout, 1, OPENS);
    result.scan_seconds = Some(round(open.scan_seconds, 6));
    Ok(vec![result])
}

/// One open.
struct Open {
    spent: Spent,
    /// The part of it that read the directory; the rest is memory, rings and threads.
    scan_seconds: f64,
}

/// Opens, and waits until every object is in the index.
fn open(config: saltern::Config) -> Result<(Engine, Open)> {
    let meter = Meter::process();
    let engine = Engine::open(config).map_err(Error::from)?;
    let scan_seconds = engine.wait_recovered().seconds;
    Ok((engine, Open { spent: meter.stop(), scan_seconds }))
}

/// Every object is found, with its size, and the usage is theirs.
fn check(stage: &Stage<'_>, problems: &mut Problems) {
    let engine = stage.engine();
    let size = stage.plan.object_bytes as u64;
    for batch in stage.keys[stage.live.clone()].chunks(BATCH) {
        let report = engine.lookup_and_pin(batch).wait();
        let wrong = report.sizes.iter().filter(|found| **found != Some(size)).count() as u64;
        problems.add_many(wrong, || format!("{wrong} of {} objects not found, or of another size", batch.len()));
        engine.unpin(batch);
    }
    let (used, expected) = (engine.usage().total_bytes_used, stage.live.len() as u64 * size);
    if used != expected {
        problems.add(|| format!("usage is {used} bytes after the restart, and {expected} were stored"));
    }
}
