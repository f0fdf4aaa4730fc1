//! Adds up the rounds of a phase to one result.

use saltern::Layout;

use crate::ceiling::Sample;
use crate::meter::{Latencies, Spent, median, round};
use crate::phases::Phase;
use crate::report::{Curves, EngineName, PhaseResult};
use crate::transfer::Timed;

/// Errors that are described; the others are counted.
const EXAMPLES_MAX: usize = 5;

const MIB: f64 = (1 << 20) as f64;
const GB: f64 = 1e9;

/// Wrong outcomes.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    count: u64,
    examples: Vec<String>,
}

impl Problems {
    pub(crate) fn add(&mut self, describe: impl FnOnce() -> String) {
        self.add_many(1, describe);
    }

    pub(crate) fn add_many(&mut self, count: u64, describe: impl FnOnce() -> String) {
        if count > 0 && self.examples.len() < EXAMPLES_MAX {
            self.examples.push(describe());
        }
        self.count += count;
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn first(&self) -> Option<&str> {
        self.examples.first().map(String::as_str)
    }
}

/// The ceiling beside one round.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ceiling {
    /// With as much memory as the round uses.
    pub(crate) spread: Sample,
    /// With few buffers that stay in the CPU's cache.
    pub(crate) reused: Sample,
}

/// One phase's figures so far.
pub(crate) struct Tally {
    object_bytes: usize,
    spent: Spent,
    /// The part of that until everything was on the device.
    pub(crate) settle_seconds: f64,
    latencies: Latencies,
    /// Of the loads among the operations.
    loads: Latencies,
    operations: u64,
    payload_bytes: u64,
    ceiling: Ceiling,
    ratios: Vec<f64>,
    pub(crate) problems: Problems,
    pub(crate) verified_bytes: u64,
}

impl Tally {
    pub(crate) fn new(object_bytes: usize) -> Self {
        Self {
            object_bytes,
            spent: Spent::default(),
            settle_seconds: 0.0,
            latencies: Latencies::new(),
            loads: Latencies::new(),
            operations: 0,
            payload_bytes: 0,
            ceiling: Ceiling::default(),
            ratios: Vec::new(),
            problems: Problems::default(),
            verified_bytes: 0,
        }
    }

    /// One timed part. `payload_bytes` is what it moved and did not fail.
    pub(crate) fn add(&mut self, spent: Spent, latencies: &Latencies, operations: u64, payload_bytes: u64) {
        self.spent += spent;
        self.latencies.add(latencies);
        self.operations += operations;
        self.payload_bytes += payload_bytes;
    }

    /// One timed part that moved objects.
    pub(crate) fn add_timed(&mut self, timed: &Timed) {
        self.add(timed.spent, &timed.latencies(), timed.operations, timed.bytes);
        self.loads.add(&timed.loads);
    }

    /// Latencies of the loads so far.
    pub(crate) fn loads(&self) -> &Latencies {
        &self.loads
    }

    /// The ceiling beside a timed part, and that part.
    pub(crate) fn add_ratio(&mut self, ceiling: Ceiling, spent: Spent, payload_bytes: u64) {
        self.ceiling.spread += ceiling.spread;
        self.ceiling.reused += ceiling.reused;
        self.ratios.push(payload_bytes as f64 / spent.seconds / ceiling.spread.bytes_per_s());
    }

    /// Time of the timed parts so far.
    pub(crate) fn seconds(&self) -> f64 {
        self.spent.seconds
    }

    /// The result, with what every phase has. `operations` are objects or keys.
    pub(crate) fn finish(self, phase: Phase, layout: Layout, depth: usize, rounds: usize) -> PhaseResult {
        let own = Sample { spent: self.spent, bytes: self.payload_bytes };
        let Ceiling { spread, reused } = self.ceiling;
        let mib_per_s = |sample: Sample| (sample.bytes > 0).then(|| round(sample.bytes_per_s() / MIB, 1));
        let cpu_per_gb = |sample: Sample| {
            (sample.bytes > 0).then(|| round(sample.spent.cpu_seconds / (sample.bytes as f64 / GB), 4))
        };
        PhaseResult {
            engine: EngineName::Saltern,
            phase,
            variant: None,
            layout,
            object_bytes: self.object_bytes as u64,
            objects: self.operations,
            depth,
            rounds,
            seconds: round(self.spent.seconds, 6),
            settle_seconds: round(self.settle_seconds, 6),
            mib_per_s: mib_per_s(own),
            objects_per_s: round(self.operations as f64 / self.spent.seconds.max(1e-9), 1),
            latency_us: self.latencies.summary(),
            cpu_seconds: round(self.spent.cpu_seconds, 6),
            cpu_seconds_per_gb: cpu_per_gb(own),
            ceiling_mib_per_s: mib_per_s(spread),
            ceiling_cpu_seconds_per_gb: cpu_per_gb(spread),
            ceiling_reused_mib_per_s: mib_per_s(reused),
            ratio: (!self.ratios.is_empty()).then(|| round(median(&self.ratios), 3)),
            ratio_rounds: self.ratios.iter().map(|ratio| round(*ratio, 3)).collect(),
            vs_baseline: None,
            vs_best_peer: None,
            recycled: None,
            spare_bytes: None,
            load_latency_us: None,
            idle_load_latency_us: None,
            device_load_latency_us: None,
            device_idle_load_latency_us: None,
            keys_per_s: None,
            keys_per_cpu_s: None,
            scan_seconds: None,
            verified_bytes: self.verified_bytes,
            errors: self.problems.count,
            error_examples: self.problems.examples,
            curves: Curves { loads: self.loads.curve(), ..Curves::default() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_add_up_and_the_ratio_is_their_median() {
        let mut tally = Tally::new(1 << 20);
        for seconds in [1.0, 2.0, 10.0] {
            let spent = Spent { seconds, cpu_seconds: 0.5 };
            tally.add(spent, &Latencies::new(), 100, 100 << 20);
            let spread = Sample { spent: Spent { seconds: 1.0, cpu_seconds: 0.1 }, bytes: 100 << 20 };
            let reused = Sample { spent: Spent { seconds: 0.5, cpu_seconds: 0.1 }, bytes: 100 << 20 };
            tally.add_ratio(Ceiling { spread, reused }, spent, 100 << 20);
        }
        for number in 0..9 {
            tally.problems.add(|| format!("{number}"));
        }
        let result = tally.finish(Phase::Fresh, Layout::Fs, 4, 3);
        assert_eq!((result.objects, result.seconds, result.ratio), (300, 13.0, Some(0.5)));
        assert_eq!((result.mib_per_s, result.ceiling_mib_per_s), (Some(23.1), Some(100.0)));
        assert_eq!(result.ceiling_reused_mib_per_s, Some(200.0));
        assert_eq!(result.ratio_rounds, [1.0, 0.5, 0.1]);
        assert_eq!((result.errors, result.error_examples.len()), (9, EXAMPLES_MAX));
        assert_eq!(result.cpu_seconds_per_gb, Some(4.7684));
    }

    #[test]
    fn nothing_moved_has_no_throughput() {
        let result = Tally::new(1).finish(Phase::Restart, Layout::Fs, 1, 1);
        assert_eq!((result.mib_per_s, result.ratio, result.cpu_seconds_per_gb), (None, None, None));
    }
}
