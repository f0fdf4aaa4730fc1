//! At capacity: seven loads to three stores, each of which displaces the oldest object, in one closed loop. Beside it,
//! in the same rounds: random reads and overwrites in the same proportion, and loads alone. Of both the device alone is
//! measured as well: its own latencies say what a load among stores can be.
//!
//! Loads take objects that stay for the round. What they take is compared, and all that remains is read back at the end.

use super::Phase;
use crate::ceiling::Kind;
use crate::contest::Contest;
use crate::error::Result;
use crate::meter::Latencies;
use crate::report::PhaseResult;
use crate::stage::{Recycling, Stage};
use crate::transfer::Step;

/// Rounds go on until the timed parts have taken this long, and at most so often.
const SECONDS_MIN: f64 = 0.5;
const PASSES_MAX: usize = 4;

pub(super) fn run(stage: &mut Stage<'_>) -> Result<Vec<PhaseResult>> {
    stage.require_objects()?;
    stage.fill_to_capacity()?;
    let (mut contest, mut idle) = (Contest::alone(stage), Contest::alone(stage));
    let rounds = stage.rounds(stage.live.len()).len();
    stage.hooks.progress.begin(&stage.label("mixed"), 2 * stage.live.len() as u64);
    let recycling = Recycling::begin(stage.engine());
    let (mut device, mut idle_device) = (Latencies::new(), Latencies::new());
    let mut operations = 0;
    while contest.rounds() < rounds || (contest.own.seconds() < SECONDS_MIN && contest.rounds() < PASSES_MAX * rounds) {
        let count = stage.plan.slice;
        let stores = (operations..operations + count).filter(|number| Kind::Mixed.of(*number) != Kind::Read).count();
        let (new, displacing) = stage.displacement(stores)?;
        let oldest_kept = stage.live.start + new.len();
        let mut loads = stage.shuffled().into_iter().filter(|object| *object >= oldest_kept).cycle();
        let alone: Vec<usize> = loads.by_ref().take(count).collect();
        stage.ceiling(Kind::Read, alone.len())?;
        idle_device.add(&stage.take_device_reads());
        idle.untimed(stage, &alone, &vec![Step::Load; alone.len()])?;
        let mut stored = new.iter().copied().zip(displacing);
        let operation = |number| match Kind::Mixed.of(number) {
            Kind::Read => loads.next().map(|object| (object, Step::Load)),
            _ => stored.next(),
        };
        let (order, steps): (Vec<_>, Vec<_>) = (operations..operations + count).filter_map(operation).unzip();
        contest.round(stage, Kind::Mixed, &order, &steps)?;
        device.add(&stage.take_device_reads());
        stage.displaced(new.len());
        operations += count;
        stage.hooks.progress.advance(order.len() as u64);
    }
    let recycling = recycling.end(stage.engine());
    contest.verify(stage)?;
    let (loads, idle_loads) = (contest.own.loads().summary(), idle.own.loads());
    let (idle_summary, idle_curve) = (idle_loads.summary(), idle_loads.curve());
    let mut results = contest.finish(stage, Phase::Mixed);
    let result = &mut results[0];
    (result.load_latency_us, result.idle_load_latency_us) = (Some(loads), Some(idle_summary));
    (result.device_load_latency_us, result.device_idle_load_latency_us) =
        (Some(device.summary()), Some(idle_device.summary()));
    result.curves.idle_loads = idle_curve;
    result.errors += idle.own.problems.count();
    result.error_examples.extend(idle.own.problems.first().map(str::to_owned));
    recycling.enter(result);
    Ok(results)
}
