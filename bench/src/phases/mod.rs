//! The phases: one file each, and one line each in [`Phase`].

mod fresh;
mod load;
mod lookup;
mod mixed;
mod restart;
mod steady;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::error::Result;
use crate::report::PhaseResult;
use crate::stage::Stage;

/// A phase, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Phase {
    /// Stores of new objects.
    Fresh,
    /// At capacity: each store displaces the oldest object.
    Steady,
    /// Loads of stored objects, in random order.
    Load,
    /// At capacity: seven loads to three stores that displace.
    Mixed,
    /// Lookups of present and absent keys, idle and while loads run.
    Lookup,
    /// Close, open again, find everything.
    Restart,
}

impl Phase {
    /// All phases that there are.
    pub const ALL: [Self; 6] = [Self::Fresh, Self::Steady, Self::Load, Self::Mixed, Self::Lookup, Self::Restart];

    /// The name in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Steady => "steady",
            Self::Load => "load",
            Self::Mixed => "mixed",
            Self::Lookup => "lookup",
            Self::Restart => "restart",
        }
    }

    pub(crate) fn run(self, stage: &mut Stage<'_>) -> Result<Vec<PhaseResult>> {
        match self {
            Self::Fresh => fresh::run(stage),
            Self::Steady => steady::run(stage),
            Self::Load => load::run(stage),
            Self::Mixed => mixed::run(stage),
            Self::Lookup => lookup::run(stage),
            Self::Restart => restart::run(stage),
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Phase {
    type Err = UnknownPhase;

    fn from_str(name: &str) -> Result<Self, UnknownPhase> {
        Self::ALL.into_iter().find(|phase| phase.name() == name).ok_or_else(|| UnknownPhase(name.to_owned()))
    }
}

/// No phase has this name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("there is no phase {0:?}; there are {known}", known = Phase::ALL.map(Phase::name).join(", "))]
pub struct UnknownPhase(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_inverse_and_unknown_ones_are_answered_with_the_list() {
        for phase in Phase::ALL {
            assert_eq!(phase.name().parse(), Ok(phase));
            assert_eq!(serde_json::to_string(&phase).unwrap(), format!("\"{phase}\""));
        }
        let error = "warp".parse::<Phase>().unwrap_err().to_string();
        assert_eq!(error, "there is no phase \"warp\"; there are fresh, steady, load, mixed, lookup, restart");
    }
}
