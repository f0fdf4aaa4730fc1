//! What a run can be told.

use std::path::PathBuf;
use std::time::Duration;

use saltern::{Integrity, Layout, SHARDS_MAX};

use crate::error::{Error, Result};
use crate::phases::Phase;

/// Largest object that is measured.
pub const OBJECT_BYTES_MAX: usize = 64 << 20;

/// Most tickets in flight.
pub const TICKETS_MAX: usize = 1024;

/// Most rounds.
pub const ROUNDS_MAX: usize = 100;

/// What to measure. `default()` is a run of the phases of a first fill and a restart, which takes less than a minute.
#[derive(Debug, Clone)]
pub struct Options {
    /// The scratch directory is made in here.
    pub parent: PathBuf,
    /// How keys become names.
    pub layout: Layout,
    /// Object sizes in bytes.
    pub sizes: Vec<usize>,
    /// Bytes of objects for each size. `None`: as much as the time budget, disk and memory allow.
    pub total_bytes: Option<u64>,
    /// Objects in flight. `None`: 32, or as many as make 32 MiB, and at least 4.
    pub depth: Option<usize>,
    /// Shards of the engine.
    pub shards: usize,
    /// Whether payloads have checksums, and loads check them.
    pub integrity: Integrity,
    /// The phases, in any order.
    pub phases: Vec<Phase>,
    /// Slices of each phase, with the ceiling measured between them.
    pub rounds: usize,
    /// Whether other engines do the same, in the same rounds.
    pub baselines: bool,
    /// On a device: measure direct transfers, too. A process has cuFile directly or in compatibility mode, not both.
    pub gpu_direct: bool,
    /// What the run should stay below, where `total_bytes` leaves the choice.
    pub budget: Duration,
    /// Decides payloads, keys and orders.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            parent: PathBuf::from("."),
            layout: Layout::Fs,
            sizes: vec![64 << 10, 256 << 10, 1 << 20, 4 << 20],
            total_bytes: None,
            depth: None,
            shards: 1,
            integrity: Integrity::default(),
            phases: vec![Phase::Fresh, Phase::Load, Phase::Lookup, Phase::Restart],
            rounds: 5,
            baselines: false,
            gpu_direct: true,
            budget: Duration::from_secs(45),
            seed: 1,
        }
    }
}

impl Options {
    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::Usage`] names the first value that is not usable.
    pub fn validate(&self) -> Result<()> {
        let fail = |message: String| Err(Error::Usage(message));
        if self.sizes.is_empty() || self.phases.is_empty() {
            return fail("at least one object size and one phase are needed".into());
        }
        if let Some(size) = self.sizes.iter().find(|&&size| size == 0 || size > OBJECT_BYTES_MAX) {
            return fail(format!("an object size of {size} bytes is not in 1..={OBJECT_BYTES_MAX}"));
        }
        if let Some(depth) = self.depth.filter(|depth| !(1..=TICKETS_MAX).contains(depth)) {
            return fail(format!("a depth of {depth} is not in 1..={TICKETS_MAX}"));
        }
        if !(1..=ROUNDS_MAX).contains(&self.rounds) {
            return fail(format!("{} rounds are not in 1..={ROUNDS_MAX}", self.rounds));
        }
        if !(1..=SHARDS_MAX).contains(&self.shards) {
            return fail(format!("{} shards are not in 1..={SHARDS_MAX}", self.shards));
        }
        let largest = self.sizes.iter().max().copied().unwrap_or(0) as u64;
        match self.total_bytes {
            Some(total) if total < largest => fail(format!("a total of {total} bytes holds no object of {largest}")),
            _ => Ok(()),
        }
    }

    /// Directories with the objects of one size that are there at a time: the engine's, its spares, and the baselines'.
    pub(crate) fn copies(&self) -> u64 {
        let displaces = self.phases.iter().any(|phase| matches!(phase, Phase::Steady | Phase::Mixed));
        1 + u64::from(displaces) + 2 * u64::from(self.baselines)
    }

    /// Objects in flight at this size.
    pub fn depth_for(&self, object_bytes: usize) -> usize {
        const DEPTH: usize = 32;
        const IN_FLIGHT_BYTES: usize = 32 << 20;
        self.depth.unwrap_or((IN_FLIGHT_BYTES / object_bytes).clamp(4, DEPTH))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_nonsense_is_not() {
        let ok = Options::default();
        ok.validate().unwrap();
        let bad = [
            Options { sizes: vec![], ..ok.clone() },
            Options { sizes: vec![0], ..ok.clone() },
            Options { sizes: vec![OBJECT_BYTES_MAX + 1], ..ok.clone() },
            Options { phases: vec![], ..ok.clone() },
            Options { depth: Some(0), ..ok.clone() },
            Options { rounds: 0, ..ok.clone() },
            Options { shards: SHARDS_MAX + 1, ..ok.clone() },
            Options { total_bytes: Some(1 << 20), ..ok.clone() },
        ];
        for options in bad {
            assert!(matches!(options.validate(), Err(Error::Usage(_))), "{options:?}");
        }
        assert_eq!([1 << 16, 1 << 20, 4 << 20, 64 << 20].map(|size| ok.depth_for(size)), [32, 32, 8, 4]);
    }
}
