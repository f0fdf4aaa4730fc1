//! Measures saltern on a real directory, beside the device's ceiling, and verifies every byte.
//!
//! ```text
//! run -> Scratch (directory) -> TestFile (ceiling) -> Plan (how much fits into the time)
//!     -> for each object size: Stage (engine, arena, keys, rig) -> phases -> PhaseResult
//!     -> Report
//! ```
//! A phase alternates between the ceiling and the engine in rounds, so that both see the same machine. Payloads are
//! prepared before a timed part and compared after it.

pub mod arena;
mod baselines;
pub mod beside;
pub mod ceiling;
mod closed_loop;
mod contest;
mod error;
pub mod gpu;
pub mod machine;
mod memory;
mod meter;
mod options;
pub mod page;
pub mod payload;
mod phases;
mod plan;
pub mod report;
mod run;
pub mod scratch;
pub mod shards;
mod stage;
mod tally;
pub mod test_file;
mod transfer;

pub use error::{Error, Result};
pub use options::{OBJECT_BYTES_MAX, Options, ROUNDS_MAX, TICKETS_MAX};
pub use phases::{Phase, UnknownPhase};
pub use run::{Hooks, Progress, Silent, run};

/// A directory for a test, on the disk that the build is on: `/tmp` may be in memory.
#[cfg(test)]
fn test_dir() -> tempfile::TempDir {
    let exe = std::env::current_exe().unwrap();
    tempfile::tempdir_in(exe.parent().unwrap()).unwrap()
}
