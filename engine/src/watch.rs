//! What shards tell of themselves while they run: how long objects take, and what waits.
//!
//! ```text
//! shard: one atomic add an object, a few stores a turn --> ShardWatch --status, metrics: read and summed--> callers
//! ```
//!
//! Each shard has a [`ShardWatch`] that its thread alone writes; readers take no lock and hold nothing up. So a shard that hangs in
//! a system call can still be asked: what it said last is there. (HdrHistogram's recorders hand their counts over when they
//! record the next time; a shard that hangs, or has nothing to do, never would.)
//!
//! A sum over shards is not of one moment, as no sum over running threads is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use histogram::{AtomicHistogram, Config, Histogram};
use serde::Serialize;

/// Buckets of a histogram: each is at most a 64th (1.6%) wide, and the last ends at 2^40 ns (18 minutes; longer counts as that).
/// 19 KiB.
const BUCKETS: Config = match Config::new(6, 40) {
    Ok(config) => config,
    Err(_) => panic!("these powers are in range"),
};
const LONGEST_NS: u64 = (1 << 40) - 1;

/// How long operations of a kind took. Lock-free; written by few threads, read by any.
pub(crate) struct Latency {
    counts: AtomicHistogram,
    sum_ns: AtomicU64,
}

impl Default for Latency {
    fn default() -> Self {
        Self { counts: AtomicHistogram::with_config(&BUCKETS), sum_ns: AtomicU64::new(0) }
    }
}

impl Latency {
    /// Counts one operation.
    pub(crate) fn record(&self, took: Duration) {
        let ns = took.as_nanos().min(LONGEST_NS.into()) as u64;
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
        if let Err(error) = self.counts.increment(ns) {
            unreachable!("cut to the last bucket: {error}");
        }
    }
}

/// Latencies summed over shards.
#[derive(Debug, Clone)]
pub(crate) struct Distribution {
    counts: Histogram,
    sum_ns: u64,
}

impl Distribution {
    /// Of several sources.
    pub(crate) fn sum<'a>(sources: impl IntoIterator<Item = &'a Latency>) -> Self {
        let mut sum = Self { counts: Histogram::with_config(&BUCKETS), sum_ns: 0 };
        for source in sources {
            sum.sum_ns = sum.sum_ns.saturating_add(source.sum_ns.load(Ordering::Relaxed));
            match sum.counts.wrapping_add(&source.counts.load()) {
                Ok(counts) => sum.counts = counts,
                Err(error) => unreachable!("all have the same buckets: {error}"),
            }
        }
        sum
    }

    /// Number of operations.
    pub(crate) fn count(&self) -> u64 {
        self.counts.as_slice().iter().sum()
    }

    /// What they took together.
    pub(crate) fn sum_seconds(&self) -> f64 {
        self.sum_ns as f64 / 1e9
    }

    /// How many operations fall between each bound and the one before, in seconds; those behind the last come last. A bound is right
    /// to a bucket's width.
    pub(crate) fn between(&self, bounds_seconds: &[f64]) -> Vec<u64> {
        let mut counts = vec![0; bounds_seconds.len() + 1];
        for bucket in self.counts.iter().filter(|bucket| bucket.count() > 0) {
            let middle = (bucket.start() + bucket.end()) as f64 / 2e9;
            counts[bounds_seconds.partition_point(|bound| *bound < middle)] += bucket.count();
        }
        counts
    }

    /// As status has it; `None` where nothing was measured.
    pub(crate) fn status(&self) -> Option<LatencyStatus> {
        const QUANTILES: [f64; 5] = [0.5, 0.9, 0.99, 0.999, 1.0];
        let mut found = QUANTILES.map(|_| None);
        if let Err(error) = self.counts.quantile_buckets_into(&QUANTILES, &mut found) {
            unreachable!("quantiles from 0 to 1: {error}");
        }
        let [p50, p90, p99, p999, max] = found;
        let us = |ns: u64| ns as f64 / 1e3;
        let count = self.count();
        Some(LatencyStatus {
            count,
            mean_us: us(self.sum_ns) / count as f64,
            p50_us: us(p50?.end()),
            p90_us: us(p90?.end()),
            p99_us: us(p99?.end()),
            p999_us: us(p999?.end()),
            max_us: us(max?.end()),
        })
    }
}

/// How long operations took, in microseconds, from the call to the answer. Percentiles are too high by 1.6% at most.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LatencyStatus {
    /// Operations measured.
    pub count: u64,
    /// Their mean.
    pub mean_us: f64,
    /// Half of them took at most this long.
    pub p50_us: f64,
    /// Nine of ten took at most this long.
    pub p90_us: f64,
    /// 99 of 100.
    pub p99_us: f64,
    /// 999 of 1000.
    pub p999_us: f64,
    /// All of them.
    pub max_us: f64,
}

/// How long operations took since the engine was opened; null where there were none.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LatenciesStatus {
    /// Objects stored, what they waited for room included. Objects that were there already are not counted.
    pub store: Option<LatencyStatus>,
    /// Objects loaded.
    pub load: Option<LatencyStatus>,
    /// Batches of lookups that were answered from memory, about one in 64: to measure each would cost a tenth of what it takes.
    pub lookup: Option<LatencyStatus>,
    /// Single keys of lookups for which the disk was asked.
    pub disk_lookup: Option<LatencyStatus>,
}

/// What waits at a shard, and what it has in hand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ShardQueues {
    /// Commands that it has not looked at yet.
    pub mailbox: u64,
    /// Loads that wait for their turn.
    pub waiting_loads: u64,
    /// Stores that wait for their turn.
    pub waiting_stores: u64,
    /// Deletes that wait for their turn.
    pub waiting_deletes: u64,
    /// Evictions that wait for their turn.
    pub waiting_evictions: u64,
    /// Loads whose file is open.
    pub active_loads: u64,
    /// Stores whose file is open.
    pub active_stores: u64,
    /// Requests that the kernel has.
    pub requests_in_flight: u64,
    /// Bytes that loads have asked the kernel for.
    pub load_bytes_in_flight: u64,
    /// Bytes that stores have asked the kernel for.
    pub store_bytes_in_flight: u64,
}

/// One shard's figures.
#[derive(Default)]
pub(crate) struct ShardWatch {
    pub(crate) store: Latency,
    pub(crate) load: Latency,
    told: Told,
}

impl ShardWatch {
    /// What the shard has now. Called by its thread, once a turn.
    pub(crate) fn tell(&self, now: ShardQueues) {
        self.told.set(now);
    }

    /// What the shard had when it told the last time.
    pub(crate) fn queues(&self, mailbox: u64) -> ShardQueues {
        self.told.get(mailbox)
    }
}

/// All of [`ShardQueues`] but the mailbox, which tells itself: a new one is named here, or does not compile.
macro_rules! told {
    ($($queue:ident),*) => {
        #[derive(Default)]
        struct Told {
            $($queue: AtomicU64,)*
        }

        impl Told {
            fn set(&self, now: ShardQueues) {
                let ShardQueues { mailbox: _, $($queue),* } = now;
                $(self.$queue.store($queue, Ordering::Relaxed);)*
            }

            fn get(&self, mailbox: u64) -> ShardQueues {
                ShardQueues { mailbox, $($queue: self.$queue.load(Ordering::Relaxed)),* }
            }
        }
    };
}

told!(
    waiting_loads,
    waiting_stores,
    waiting_deletes,
    waiting_evictions,
    active_loads,
    active_stores,
    requests_in_flight,
    load_bytes_in_flight,
    store_bytes_in_flight
);

/// How long lookups took; by callers and by the thread that asks the disk.
#[derive(Default)]
pub(crate) struct LookupWatch {
    pub(crate) memory: Latency,
    pub(crate) disk: Latency,
}

/// How long operations took, by kind.
#[derive(Debug, Clone)]
pub(crate) struct Distributions {
    pub(crate) store: Distribution,
    pub(crate) load: Distribution,
    pub(crate) lookup: Distribution,
    pub(crate) disk_lookup: Distribution,
}

impl Distributions {
    /// Summed over the shards.
    pub(crate) fn read<'a>(shards: impl Iterator<Item = &'a ShardWatch> + Clone, lookups: &LookupWatch) -> Self {
        Self {
            store: Distribution::sum(shards.clone().map(|shard| &shard.store)),
            load: Distribution::sum(shards.map(|shard| &shard.load)),
            lookup: Distribution::sum([&lookups.memory]),
            disk_lookup: Distribution::sum([&lookups.disk]),
        }
    }

    /// As status has them.
    pub(crate) fn status(&self) -> LatenciesStatus {
        LatenciesStatus {
            store: self.store.status(),
            load: self.load.status(),
            lookup: self.lookup.status(),
            disk_lookup: self.disk_lookup.status(),
        }
    }
}

/// Of the batches that are answered from memory, one in this many is measured. A power of two.
const LOOKUP_SAMPLE: u64 = 64;

/// Whether the lookup with this ticket is measured. Neighbouring tickets are not all lookups: so they are scattered.
pub(crate) fn is_sampled(ticket: u64) -> bool {
    const SCATTER: u64 = 0x9e37_79b9_7f4a_7c15;
    ticket.wrapping_mul(SCATTER) >> (u64::BITS - LOOKUP_SAMPLE.trailing_zeros()) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(durations_us: impl IntoIterator<Item = u64>) -> Latency {
        let latency = Latency::default();
        durations_us.into_iter().for_each(|us| latency.record(Duration::from_micros(us)));
        latency
    }

    #[test]
    fn percentiles_are_those_of_what_was_recorded() {
        let (odd, even) = (recorded((1..=10_000).step_by(2)), recorded((2..=10_000).step_by(2)));
        let status = Distribution::sum([&odd, &even]).status().unwrap();
        assert_eq!((status.count, status.mean_us), (10_000, 5000.5));
        let found = [status.p50_us, status.p90_us, status.p99_us, status.p999_us, status.max_us];
        for (found, exact) in found.into_iter().zip([5000.0, 9000.0, 9900.0, 9990.0, 10_000.0]) {
            assert!((exact..exact * (1.0 + 1.0 / 64.0)).contains(&found), "{found}, not {exact}");
        }
        assert_eq!(Distribution::sum([]).status(), None);
    }

    #[test]
    fn bounds_part_what_was_recorded() {
        let sum = Distribution::sum([&recorded([10, 90, 500, 500, 2_000_000]), &recorded([99, 10_000_000_000])]);
        assert_eq!(sum.between(&[100e-6, 1e-3, 1.0]), [3, 2, 0, 2]);
        assert_eq!((sum.count(), sum.between(&[])), (7, vec![7]));
        assert!((sum.sum_seconds() - (2.001_199 + LONGEST_NS as f64 / 1e9)).abs() < 1e-9, "the longest are cut");
    }

    #[test]
    fn one_lookup_in_so_many_is_measured_whatever_lies_between() {
        for stride in [1, 2, 3, 64, 1 << 20] {
            let sampled = (0..64_000).filter(|n| is_sampled(1 + n * stride)).count();
            assert!((500..2000).contains(&sampled), "stride {stride}: {sampled}");
        }
    }

    #[test]
    fn queues_are_read_as_they_were_told() {
        let told = ShardQueues {
            mailbox: 7,
            waiting_loads: 1,
            waiting_stores: 2,
            waiting_deletes: 3,
            waiting_evictions: 4,
            active_loads: 5,
            active_stores: 6,
            requests_in_flight: 8,
            load_bytes_in_flight: 9,
            store_bytes_in_flight: 10,
        };
        let watch = ShardWatch::default();
        watch.tell(told);
        assert_eq!(watch.queues(7), told);
    }
}
