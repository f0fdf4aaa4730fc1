//! The rounds of a phase: the ceiling, then the engine and the baselines with the same objects and the same memory, each
//! time beginning with another one.
//!
//! Whoever writes has finished when it is on the device: a `syncfs` belongs to the time of a round, of everybody, the ceiling
//! included. A device takes the first bytes into its cache (of a virtual disk: the host's memory) several times as fast as it can
//! go on, and a round is short; a cache that is full writes for hours. Without that, a round would also charge whoever
//! syncs, as the engine has to, for what the others leave to the time after their turn.

use crate::ceiling::Kind;
use crate::error::Result;
use crate::meter::{median, round};
use crate::phases::Phase;
use crate::report::PhaseResult;
use crate::stage::Stage;
use crate::tally::{Ceiling, Tally};
use crate::transfer::{Step, Timed, compare, make_ready};

/// The tallies of one phase.
pub(crate) struct Contest {
    pub(crate) own: Tally,
    baselines: Vec<Tally>,
    rounds: usize,
    /// Each round's throughput by that of the first baseline.
    ratios: Vec<f64>,
}

impl Contest {
    /// Of the engine and all baselines that the run has.
    pub(crate) fn new(stage: &Stage<'_>) -> Self {
        let baselines = (0..stage.baselines.len()).map(|_| Tally::new(stage.plan.object_bytes)).collect();
        Self { baselines, ..Self::alone(stage) }
    }

    /// Of the engine alone.
    pub(crate) fn alone(stage: &Stage<'_>) -> Self {
        Self { own: Tally::new(stage.plan.object_bytes), baselines: Vec::new(), rounds: 0, ratios: Vec::new() }
    }

    /// Rounds so far.
    pub(crate) fn rounds(&self) -> usize {
        self.rounds
    }

    /// One round: `steps[i]` with object `order[i]`, beside a ceiling. Loaded objects are compared.
    pub(crate) fn round(&mut self, stage: &mut Stage<'_>, kind: Kind, order: &[usize], steps: &[Step]) -> Result<()> {
        make_ready(stage.arena, stage.options.seed, order, steps);
        let ceiling = stage.ceiling(kind, order.len())?;
        self.take_turns(stage, Some(ceiling), order, steps)
    }

    /// One round without a ceiling; what it takes counts nonetheless.
    pub(crate) fn untimed(&mut self, stage: &mut Stage<'_>, order: &[usize], steps: &[Step]) -> Result<()> {
        stage.settle()?;
        self.take_turns(stage, None, order, steps)
    }

    fn take_turns(
        &mut self,
        stage: &mut Stage<'_>,
        ceiling: Option<Ceiling>,
        order: &[usize],
        steps: &[Step],
    ) -> Result<()> {
        let seed = stage.options.seed;
        let contestants = 1 + self.baselines.len();
        let mut rates = vec![0.0; contestants];
        for turn in 0..contestants {
            let who = (turn + self.rounds) % contestants;
            make_ready(stage.arena, seed, order, steps);
            if turn > 0 {
                stage.settle()?;
            }
            let tally = if who == 0 { &mut self.own } else { &mut self.baselines[who - 1] };
            let mut timed = stage.run(who, order, steps, &mut tally.problems)?;
            if steps.iter().any(|step| *step != Step::Load) {
                let settling = stage.settle()?;
                tally.settle_seconds += settling.seconds;
                timed.spent += settling;
            }
            rates[who] = timed.bytes as f64 / timed.spent.seconds;
            tally.add_timed(&timed);
            if let Some(ceiling) = ceiling {
                tally.add_ratio(ceiling, timed.spent, timed.bytes);
            }
            let loaded = loaded(&timed, steps);
            tally.verified_bytes += compare(stage.arena, seed, order, &loaded, &mut tally.problems);
        }
        if let Some(rate) = rates.get(1).filter(|rate| **rate > 0.0) {
            self.ratios.push(rates[0] / rate);
        }
        self.rounds += 1;
        Ok(())
    }

    /// Loads everything that is there, untimed, and compares every byte; of baselines, as much as one round has.
    pub(crate) fn verify(&mut self, stage: &mut Stage<'_>) -> Result<()> {
        stage.verify(0, &mut self.own)?;
        for (number, tally) in self.baselines.iter_mut().enumerate() {
            stage.verify(number + 1, tally)?;
        }
        Ok(())
    }

    /// The results, the engine's first.
    pub(crate) fn finish(self, stage: &Stage<'_>, phase: Phase) -> Vec<PhaseResult> {
        let (layout, depth, rounds) = (stage.options.layout, stage.plan.depth, self.rounds);
        let mut own = self.own.finish(phase, layout, depth, rounds);
        own.vs_baseline = (!self.ratios.is_empty()).then(|| round(median(&self.ratios), 3));
        let mut results = vec![own];
        for (tally, baseline) in self.baselines.into_iter().zip(&stage.baselines) {
            let mut result = tally.finish(phase, layout, depth, rounds);
            result.engine = baseline.engine();
            results.push(result);
        }
        results
    }
}

/// The slots whose object was loaded, and without an error.
fn loaded(timed: &Timed, steps: &[Step]) -> Vec<bool> {
    timed.good.iter().zip(steps).map(|(good, step)| *good && *step == Step::Load).collect()
}
