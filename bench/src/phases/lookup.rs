//! Lookups in batches of 32, of keys that are there and of keys that are not, idle and while loads keep the disk busy.
//!
//! One thread looks up; a batch is timed from the call to the results in hand. Pins are given back outside of the timed
//! part. The throughput is wall time, the CPU time that of the looking thread alone.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use saltern::{Engine, ObjectKey};

use super::Phase;
use crate::error::{Error, Result};
use crate::meter::{Latencies, Meter, Spent, round};
use crate::report::PhaseResult;
use crate::stage::Stage;
use crate::tally::{Problems, Tally};
use crate::transfer::{compare, poison};

/// Keys of one call.
const BATCH: usize = 32;

/// Calls between two readings of the clock for CPU time; pins are given back between.
const CHUNK: usize = 256;

/// Keys that are not there, so many that their misses are not all in the cache.
const ABSENT: usize = 32 * 1024;

/// How long one variant looks up, and how many keys at least.
const DURATION: Duration = Duration::from_millis(300);
const KEYS_MIN: u64 = (4 * BATCH * CHUNK) as u64;

pub(super) fn run(stage: &mut Stage<'_>) -> Result<Vec<PhaseResult>> {
    stage.require_objects()?;
    stage.settle()?;
    let stored: Vec<ObjectKey> = stage.shuffled().iter().map(|object| stage.keys[*object].clone()).collect();
    let present = Questions { keys: in_batches(&stored), size: Some(stage.plan.object_bytes as u64) };
    let absent = Questions { keys: in_batches(&stage.absent_keys(ABSENT)?), size: None };
    stage.hooks.progress.begin(&stage.label("lookup"), 4);
    let mut results = Vec::new();
    for (name, questions) in [("present", &present), ("absent", &absent)] {
        let mut tally = Tally::new(stage.plan.object_bytes);
        let asked = ask(stage.engine(), questions, stage.hooks.cancel, &mut tally.problems)?;
        results.push(finish(stage, name, tally, &asked));
    }
    for (name, questions) in [("present-busy", &present), ("absent-busy", &absent)] {
        let mut tally = Tally::new(stage.plan.object_bytes);
        let asked = ask_while_loading(stage, questions, &mut tally)?;
        results.push(finish(stage, name, tally, &asked));
    }
    Ok(results)
}

/// Keys in batches, and the answer that each has to get.
struct Questions {
    keys: Vec<Vec<ObjectKey>>,
    size: Option<u64>,
}

fn in_batches(keys: &[ObjectKey]) -> Vec<Vec<ObjectKey>> {
    let batches = keys.len().div_ceil(BATCH);
    let mut cycle = keys.iter().cycle().cloned();
    (0..batches).map(|_| cycle.by_ref().take(BATCH).collect()).collect()
}

struct Asked {
    spent: Spent,
    latencies: Latencies,
    keys: u64,
}

fn ask(engine: &Engine, questions: &Questions, cancel: &AtomicBool, problems: &mut Problems) -> Result<Asked> {
    let mut asked = Asked { spent: Spent::default(), latencies: Latencies::new(), keys: 0 };
    let mut batches = questions.keys.iter().cycle();
    let started = Instant::now();
    while started.elapsed() < DURATION || asked.keys < KEYS_MIN {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let chunk: Vec<&[ObjectKey]> = batches.by_ref().take(CHUNK).map(Vec::as_slice).collect();
        let mut wrong = 0;
        let meter = Meter::thread();
        let mut last = Instant::now();
        for batch in &chunk {
            let report = engine.lookup_and_pin(batch).wait();
            wrong += report.sizes.iter().filter(|size| **size != questions.size).count() as u64;
            let now = Instant::now();
            asked.latencies.record(now - last);
            last = now;
        }
        asked.spent += meter.stop();
        asked.keys += chunk.iter().map(|batch| batch.len() as u64).sum::<u64>();
        problems.add_many(wrong, || format!("{wrong} keys of {} got a wrong answer", CHUNK * BATCH));
        if questions.size.is_some() {
            for batch in &chunk {
                engine.unpin(batch);
            }
        }
    }
    Ok(asked)
}

/// As [`ask`], while another thread loads objects as fast as it can; these are verified afterwards.
fn ask_while_loading(stage: &mut Stage<'_>, questions: &Questions, tally: &mut Tally) -> Result<Asked> {
    let (seed, cancel) = (stage.options.seed, stage.hooks.cancel);
    let order: Vec<usize> = stage.shuffled().into_iter().take(stage.plan.slice).collect();
    let stop = AtomicBool::new(false);
    poison(stage.arena, order.len());
    let (mut mover, arena) = stage.mover();
    mover.stop = Some(&stop);
    let engine = mover.engine;
    let mut loaded = Problems::default();
    let asked = std::thread::scope(|scope| {
        let loader = scope.spawn(|| -> Result<u64> {
            let mut verified = 0;
            while !stop.load(Ordering::Relaxed) {
                let timed = mover.load(arena, &order, &mut loaded)?;
                // A full pass is compared once; the thread that looks up shares the machine with this one.
                if verified == 0 || timed.operations < order.len() as u64 {
                    verified += compare(arena, seed, &order, &timed.good, &mut loaded);
                }
            }
            Ok(verified)
        });
        let asked = ask(engine, questions, cancel, &mut tally.problems);
        stop.store(true, Ordering::Relaxed);
        tally.verified_bytes = loader.join().expect("the loader does not panic")?;
        asked
    })?;
    if let Some(first) = loaded.first() {
        tally.problems.add_many(loaded.count(), || format!("loads beside it: {first}"));
    }
    Ok(asked)
}

fn finish(stage: &Stage<'_>, name: &str, mut tally: Tally, asked: &Asked) -> PhaseResult {
    stage.hooks.progress.advance(1);
    tally.add(asked.spent, &asked.latencies, asked.keys, 0);
    let mut result = tally.finish(Phase::Lookup, stage.options.layout, 1, 1);
    result.variant = Some(name.to_owned());
    result.keys_per_s = Some(result.objects_per_s);
    result.keys_per_cpu_s = Some(round(asked.keys as f64 / asked.spent.cpu_seconds.max(1e-9), 1));
    result
}
