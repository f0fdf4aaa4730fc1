//! How the engine behaves, on real directories.
//!
//! `SALTERN_SEED=n` repeats the random choices of a failed run, `SALTERN_LONG=1` makes more of them, and
//! `SALTERN_TEST_DIR=dir` runs on another file system.

mod admission;
mod eviction;
mod file_systems;
mod forbidden;
pub(crate) mod gate;
mod health;
mod limits;
mod listing;
mod model;
mod pins;
mod priorities;
mod quotas;
mod recovery;
mod recycling;
mod secondary;
mod several;
mod snapshot;
mod tickets;
mod volume;
mod watching;
mod zeroes;

use saltern_tests::Scratch;

pub(crate) fn scratch(name: &str) -> Scratch {
    Scratch::new(env!("CARGO_TARGET_TMPDIR"), name)
}

/// Whether to take minutes instead of seconds.
pub(crate) fn is_long() -> bool {
    std::env::var_os("SALTERN_LONG").is_some_and(|value| value == "1")
}
