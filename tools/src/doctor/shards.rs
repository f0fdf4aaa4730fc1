//! CPUs, how far they are from the device, and how many shards are worth them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::stat::{major, minor};
use nix::unistd::Pid;
use saltern_bench::shards::{self, Trial};
use serde::Serialize;

use super::system::read;
use super::{Check, Status};
use crate::failure::Failure;
use crate::human;

/// Most shards that are tried: beyond, other things than CPUs are the limit.
const TRIED_MAX: usize = 8;

/// How long the trials take together.
const TRIALS_TIME: Duration = Duration::from_secs(2);

/// The recommendation, for programs.
#[derive(Debug, Serialize)]
pub(super) struct Recommendation {
    pub(super) shards: usize,
    /// What it rests on; empty where nothing was measured.
    trials: Vec<TrialJson>,
}

#[derive(Debug, Serialize)]
struct TrialJson {
    shards: usize,
    store_mib_per_s: f64,
    load_mib_per_s: f64,
}

/// The CPUs that this process may use, and those of the device's NUMA node among them.
struct Cpus {
    allowed: BTreeSet<usize>,
    /// The device's node, where it is known and there are others.
    node: Option<usize>,
    near: BTreeSet<usize>,
}

/// Finds the number of shards for a directory; measures unless told not to. Fails only where it was interrupted.
pub(super) fn recommend(
    dir: &Path,
    measures: bool,
    cancel: &AtomicBool,
) -> Result<(Recommendation, Vec<Check>), Failure> {
    let cpus = Cpus::find(dir);
    let mut checks = vec![cpus.check()];
    checks.extend(cpus.node_check());
    let usable = if cpus.near.is_empty() { cpus.allowed.len() } else { cpus.near.len() };
    let (recommendation, check) = match measures.then(|| shards::measure(dir, &candidates(usable), TRIALS_TIME, cancel))
    {
        Some(Ok(trials)) => measured(&trials),
        Some(Err(error @ saltern_bench::Error::Interrupted)) => return Err(error.into()),
        Some(Err(error)) => guessed(usable, &format!("could not be measured: {error}")),
        None => guessed(usable, "not measured"),
    };
    checks.push(check);
    Ok((recommendation, checks))
}

/// Numbers worth trying: powers of two, none beyond the CPUs.
fn candidates(cpus: usize) -> Vec<usize> {
    (0..).map(|power| 1 << power).take_while(|number| *number <= cpus.clamp(1, TRIED_MAX)).collect()
}

fn measured(trials: &[Trial]) -> (Recommendation, Check) {
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let shards = shards::fewest_good(trials).unwrap_or(1);
    let size = human::size(shards::OBJECT_BYTES as u64);
    let figures = |trial: &Trial| {
        let (stored, loaded) = (human::figure(mib(trial.displaced_per_s)), human::figure(mib(trial.loaded_per_s)));
        format!("with {}: {stored} MiB/s stored, {loaded} loaded", trial.shards)
    };
    let figures = trials.iter().map(figures).collect::<Vec<_>>().join("; ");
    let value = format!("{shards}; of {size} objects {figures}");
    let trials = trials.iter().map(|trial| TrialJson {
        shards: trial.shards,
        store_mib_per_s: mib(trial.displaced_per_s),
        load_mib_per_s: mib(trial.loaded_per_s),
    });
    (Recommendation { shards, trials: trials.collect() }, Check::ok("shards", value))
}

/// Without a measurement: one CPU is left to the host for each shard.
fn guessed(cpus: usize, why: &str) -> (Recommendation, Check) {
    let shards = (cpus / 2).clamp(1, 4);
    let check = Check::new(Status::Note, "shards", format!("{shards}, a guess by the CPUs"), why.to_owned());
    (Recommendation { shards, trials: Vec::new() }, check)
}

impl Cpus {
    fn find(dir: &Path) -> Self {
        let allowed = allowed();
        let many = read("/sys/devices/system/node/online").is_some_and(|nodes| list(&nodes).len() > 1);
        let node = if many { node_of_device(dir) } else { None };
        let cpus_of = |node| read(&format!("/sys/devices/system/node/node{node}/cpulist"));
        let near = node.and_then(cpus_of).map(|cpus| list(&cpus)).unwrap_or_default();
        Self { near: near.intersection(&allowed).copied().collect(), allowed, node }
    }

    fn check(&self) -> Check {
        let value = format!("{} for this process", human::plural(self.allowed.len() as u64, "CPU"));
        match self.allowed.len() {
            1 => Check::new(Status::Warn, "CPUs", value, "the shard and its host share one CPU; give the process two"),
            _ => Check::ok("CPUs", value),
        }
    }

    /// Where there are several NUMA nodes, and the device's is known.
    fn node_check(&self) -> Option<Check> {
        const ITEM: &str = "NUMA";
        let node = self.node?;
        let (near, all) = (self.near.len(), self.allowed.len());
        let value = format!("the device is on node {node}, as are {near} of the process's {all} CPUs");
        let advice = format!("`numactl --cpunodebind={node}` keeps shards near the device");
        Some(match near {
            near if near == all => Check::ok(ITEM, value),
            0 => Check::new(Status::Warn, ITEM, value, advice),
            _ => Check::new(Status::Note, ITEM, value, advice),
        })
    }
}

/// The CPUs that this process may run on.
fn allowed() -> BTreeSet<usize> {
    let set = sched_getaffinity(Pid::from_raw(0)).unwrap_or_else(|_| CpuSet::new());
    (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect()
}

/// The NUMA node of the device below a directory: that of the bus it is on, however far up that is.
fn node_of_device(dir: &Path) -> Option<usize> {
    let device = fs::metadata(dir).ok()?.dev();
    let at = fs::canonicalize(format!("/sys/dev/block/{}:{}", major(device), minor(device))).ok()?;
    let node = at.ancestors().find_map(|at| fs::read_to_string(at.join("numa_node")).ok())?;
    // -1: the machine does not say.
    node.trim().parse().ok()
}

/// `0-3,8` as a set.
fn list(text: &str) -> BTreeSet<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse::<usize>().ok()?..=last.trim().parse().ok()?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_and_candidates() {
        assert_eq!(list("0-2,8,10-11\n").into_iter().collect::<Vec<_>>(), [0, 1, 2, 8, 10, 11]);
        assert!(list("").is_empty());
        assert_eq!((candidates(0), candidates(1), candidates(6)), (vec![1], vec![1], vec![1, 2, 4]));
        assert_eq!(candidates(128), [1, 2, 4, 8]);
    }

    #[test]
    fn cpus_far_from_the_device_are_told() {
        let cpus = |allowed: &[usize], near: &[usize]| Cpus {
            allowed: allowed.iter().copied().collect(),
            node: Some(1),
            near: near.iter().copied().collect(),
        };
        let status = |cpus: Cpus| cpus.node_check().map(|check| check.status);
        assert_eq!(status(cpus(&[0, 1], &[])), Some(Status::Warn));
        assert_eq!(status(cpus(&[0, 1, 4], &[4])), Some(Status::Note));
        assert_eq!(status(cpus(&[4, 5], &[4, 5])), Some(Status::Ok));
        assert_eq!(status(Cpus { node: None, ..cpus(&[0], &[]) }), None);
    }

    #[test]
    fn the_recommendation_shows_what_it_rests_on() {
        let trial = |shards, mib: f64| Trial {
            shards,
            displaced_per_s: mib * f64::from(1 << 20),
            loaded_per_s: 2.0 * mib * f64::from(1 << 20),
        };
        let (recommendation, check) = measured(&[trial(1, 1000.0), trial(2, 1500.0)]);
        assert_eq!((recommendation.shards, recommendation.trials.len()), (2, 2));
        assert!(
            check.value.contains("with 1: 1,000 MiB/s stored, 2,000 loaded; with 2: 1,500 MiB/s"),
            "{}",
            check.value
        );
        let (recommendation, check) = guessed(6, "why");
        assert_eq!((recommendation.shards, check.status), (3, Status::Note));
    }
}
