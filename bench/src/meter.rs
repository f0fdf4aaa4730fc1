//! Clocks: wall time, CPU time and latencies of the timed parts.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

use crate::report::{Curve, LatencyUs};

/// Longest latency that is told apart from longer ones; above every deadline of the engine.
const LATENCY_MAX_NS: u64 = 120_000_000_000;

/// CPU seconds, user and system, of the process or of the calling thread.
fn cpu_seconds(who: UsageWho) -> f64 {
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 * 1e-6;
    getrusage(who).map_or(0.0, |usage| seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// Measures one timed part.
pub(crate) struct Meter {
    who: UsageWho,
    cpu_seconds: f64,
    started: Instant,
}

/// What a timed part took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spent {
    pub(crate) seconds: f64,
    /// User and system time; of the process this counts the engine's threads, and the kernel's workers for them.
    pub(crate) cpu_seconds: f64,
}

impl Meter {
    /// Starts to measure the whole process.
    pub(crate) fn process() -> Self {
        Self::start(UsageWho::RUSAGE_SELF)
    }

    /// Starts to measure the calling thread.
    pub(crate) fn thread() -> Self {
        Self::start(UsageWho::RUSAGE_THREAD)
    }

    fn start(who: UsageWho) -> Self {
        Self { who, cpu_seconds: cpu_seconds(who), started: Instant::now() }
    }

    pub(crate) fn stop(self) -> Spent {
        let seconds = self.started.elapsed().as_secs_f64();
        Spent { seconds, cpu_seconds: cpu_seconds(self.who) - self.cpu_seconds }
    }
}

impl std::ops::AddAssign for Spent {
    fn add_assign(&mut self, other: Self) {
        self.seconds += other.seconds;
        self.cpu_seconds += other.cpu_seconds;
    }
}

/// Latencies, three digits exact.
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(crate) fn new() -> Self {
        Self(Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3).expect("the bounds are constants"))
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        self.0.saturating_record(latency.as_nanos().try_into().unwrap_or(LATENCY_MAX_NS));
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all histograms have the same bounds");
    }

    pub(crate) fn summary(&self) -> LatencyUs {
        let at = |quantile| round(self.0.value_at_quantile(quantile) as f64 / 1000.0, 1);
        LatencyUs { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: at(1.0) }
    }

    /// The distribution, as a plot with a logarithmic axis of percentiles needs it; no share that fewer than one
    /// operation stands for.
    pub(crate) fn curve(&self) -> Curve {
        const STEPS_PER_NINE: i32 = 10;
        const NINES: i32 = 4;
        (0..=NINES * STEPS_PER_NINE)
            .map(|step| 1.0 - 10_f64.powf(-f64::from(step) / f64::from(STEPS_PER_NINE)))
            .filter(|share| (1.0 - share) * self.0.len() as f64 >= 1.0)
            .map(|share| (share, self.0.value_at_quantile(share) as f64 / 1000.0))
            .collect()
    }
}

/// The middle of the values; 0 for none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => 0.0,
        (len, middle) if len % 2 == 1 => sorted[middle],
        (_, middle) => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// To a number of decimals: reports need no more digits than were measured.
pub(crate) fn round(value: f64, decimals: i32) -> f64 {
    let scale = 10_f64.powi(decimals);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn latencies_are_in_microseconds() {
        let mut all = Latencies::new();
        for us in 1..=1000 {
            let mut one = Latencies::new();
            one.record(Duration::from_micros(us));
            all.add(&one);
        }
        let summary = all.summary();
        assert!((summary.p50 - 500.0).abs() < 1.0 && (summary.p99 - 990.0).abs() < 2.0, "{summary:?}");
        assert!((summary.max - 1000.0).abs() < 1.0);
        let curve = all.curve();
        assert!(curve.len() == 31 && curve.is_sorted(), "1000 operations have three nines: {curve:?}");
        assert!((curve[10].1 - 900.0).abs() < 1.5 && Latencies::new().curve().is_empty());
        all.record(Duration::from_secs(1000));
        assert!(all.summary().max >= 120e6);
    }

    #[test]
    fn cpu_time_passes() {
        let meter = Meter::thread();
        let mut word = 1;
        while meter.started.elapsed() < Duration::from_millis(50) {
            word = crate::payload::mix(word);
        }
        assert!(word != 0);
        let spent = meter.stop();
        assert!(spent.seconds >= 0.05 && spent.cpu_seconds > 0.0);
    }
}
