//! How many objects of each size fit into the time, the memory and the disk.
//!
//! With a total given, that is what is measured. Without, the totals below are scaled down to what the speed at
//! which the ceiling's file was written promises to be possible; slow disks are measured with less.

use std::time::Duration;

use crate::options::Options;
use crate::phases::Phase;

/// Bytes of objects that a size is measured with at most, when nobody says otherwise. Small objects are many anyway.
fn usual_total(object_bytes: usize) -> u64 {
    const MIB: u64 = 1 << 20;
    match object_bytes as u64 {
        0..=MIB_8TH => 384 * MIB,
        _ => 768 * MIB,
    }
}

const MIB_8TH: u64 = 1 << 17;

/// Least number of objects in a round, so that the depth is reached, as a multiple of the depth.
const DEPTHS_PER_ROUND: usize = 2;

/// The share of the budget that the writing of the ceiling's file may take.
const FILL_SHARE: f64 = 0.15;

/// How much longer storing new objects takes than overwriting as many bytes. Allocation costs about as much as writing
/// another 512 KiB.
fn store_passes(object_bytes: usize) -> f64 {
    1.0 + (512 << 10) as f64 / object_bytes as f64
}

/// Passes over the data of one size, each as long as overwriting it: ceilings, timed parts, and verification.
fn passes(options: &Options, object_bytes: usize) -> f64 {
    let making = store_passes(object_bytes);
    let baselines = if options.baselines { 2.0 } else { 0.0 };
    let of_phase = |phase: &Phase| match phase {
        Phase::Fresh => 3.0 + making + baselines * making,
        // Warming up, and as much timed; baselines make a file for each object.
        Phase::Steady => 5.0 + baselines * 2.0 * making,
        Phase::Load => 3.0 + baselines,
        Phase::Mixed => 5.0,
        Phase::Lookup | Phase::Restart => 1.0,
    };
    options.phases.iter().map(of_phase).sum()
}

/// What one object size is measured with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SizePlan {
    pub(crate) object_bytes: usize,
    pub(crate) depth: usize,
    pub(crate) objects: usize,
    /// Objects of one round: what has to be in memory at a time.
    pub(crate) slice: usize,
    /// How long storing it may take before it is cut short.
    pub(crate) patience: Duration,
}

/// Bytes of the ceiling's file: what the largest plan needs.
pub(crate) fn ceiling_bytes(options: &Options, free_bytes: u64) -> u64 {
    let most = options.sizes.iter().map(|&size| usual_total(size).max(least(options, size))).max().unwrap_or(0);
    // The file, and as much for each size, leave the disk half of what was free.
    options.total_bytes.unwrap_or(most.min(free_bytes / 2 / (1 + options.copies() * options.sizes.len() as u64)))
}

/// How long the ceiling's file may take.
pub(crate) fn fill_patience(options: &Options) -> Duration {
    match options.total_bytes {
        Some(_) => Duration::MAX,
        None => options.budget.mul_f64(FILL_SHARE),
    }
}

fn least(options: &Options, object_bytes: usize) -> u64 {
    (options.rounds * DEPTHS_PER_ROUND * options.depth_for(object_bytes) * object_bytes) as u64
}

/// Divides the budget. `file_bytes` is the size of the ceiling's file, `rate` the bytes a second at which it was written,
/// `memory_bytes` what the payloads of one round may take.
pub(crate) fn plan(options: &Options, file_bytes: u64, rate: f64, memory_bytes: u64) -> Vec<SizePlan> {
    let total = |size| options.total_bytes.unwrap_or_else(|| usual_total(size).max(least(options, size)));
    let cost = |size| total(size) as f64 * passes(options, size) / rate;
    let budget = options.budget.as_secs_f64() * (1.0 - FILL_SHARE);
    let seconds: f64 = options.sizes.iter().map(|&size| cost(size)).sum();
    let scale = if options.total_bytes.is_some() { 1.0 } else { (budget / seconds).min(1.0) };
    let of_size = |&object_bytes: &usize| {
        let rounds = options.rounds as u64;
        let bytes = ((total(object_bytes) as f64 * scale) as u64).min(file_bytes).min(memory_bytes * rounds);
        // At least an object a round; fewer objects than rounds make fewer rounds.
        let objects = (bytes / object_bytes as u64).max(1) as usize;
        let slice = objects.div_ceil(options.rounds);
        let patience = match options.total_bytes {
            Some(_) => Duration::MAX,
            None => Duration::from_secs_f64(budget / options.sizes.len() as f64 * 0.4),
        };
        SizePlan { object_bytes, depth: options.depth_for(object_bytes), objects, slice, patience }
    };
    options.sizes.iter().map(of_size).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_disk_gets_the_usual_totals() {
        let options = Options::default();
        let file = ceiling_bytes(&options, 1 << 40);
        assert_eq!(file, 768 << 20);
        let plans = plan(&options, file, 10e9, 8 << 30);
        let objects: Vec<_> = plans.iter().map(|plan| (plan.objects, plan.slice, plan.depth)).collect();
        assert_eq!(objects, [(6144, 1229, 32), (3072, 615, 32), (768, 154, 32), (192, 39, 8)]);
    }

    #[test]
    fn a_slow_disk_little_memory_and_a_full_disk_get_less() {
        let options = Options { phases: Phase::ALL.to_vec(), ..Options::default() };
        for plan in plan(&options, 1 << 30, 1e8, 8 << 30) {
            let seconds = plan.objects as f64 * plan.object_bytes as f64 * 9.0 / 1e8;
            assert!(seconds < options.budget.as_secs_f64(), "{plan:?}");
            assert!(plan.patience < options.budget);
        }
        for plan in plan(&options, 1 << 30, 1e10, 16 << 20) {
            assert!(plan.slice * plan.object_bytes <= (16 << 20) + plan.object_bytes, "{plan:?}");
        }
        assert_eq!(ceiling_bytes(&options, 360 << 20), 20 << 20);
    }

    #[test]
    fn a_given_total_is_kept() {
        let options = Options { total_bytes: Some(10 << 20), sizes: vec![64 << 10, 4 << 20], ..Options::default() };
        assert_eq!((ceiling_bytes(&options, 1 << 40), fill_patience(&options)), (10 << 20, Duration::MAX));
        let plans = plan(&options, 10 << 20, 1.0, 1 << 30);
        assert_eq!(plans.iter().map(|plan| (plan.objects, plan.slice)).collect::<Vec<_>>(), [(160, 32), (2, 1)]);
    }
}
