//! What is done to a directory without an engine: checking it, renaming it to another layout, cleaning it, reading objects out of it.
//!
//! Functions that change something take the owner's lock for as long as they run, and fail with [`Error::VolumeOwned`] while an engine
//! has it; those that only look take none, and work beside an engine. Nothing outside of the directory is ever opened: names are opened
//! relative to its descriptor, and links are not followed.

mod clean;
mod dir;
mod migrate;
mod object;
mod verify;

use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Result};

pub use clean::{Cleaning, Leftover, LeftoverKind, clean};
pub use migrate::{Migration, migrate};
pub use object::{Object, ObjectReader, last_uses};
pub use verify::{DEPTH_DEFAULT as VERIFY_DEPTH, Finding, Trouble, Verification, Verify, verify};

/// Whether to act, or only to say what would be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Say what would be done. Takes no lock.
    DryRun,
    /// Do it, with the owner's lock.
    Apply,
}

/// Called with what is done so far, and all that there is to do (0 while that is not known), on the calling thread or on one that works
/// for it.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// Something that was left as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Refusal {
    /// Path relative to the directory.
    pub name: String,
    /// Why.
    pub reason: String,
}

impl Refusal {
    fn new(name: &str, reason: impl ToString) -> Self {
        Self { name: name.into(), reason: reason.to_string() }
    }
}

/// Fails for a directory on which an engine runs; names it.
///
/// # Errors
/// [`Error::VolumeOwned`]; [`Error::Io`].
pub fn check_unowned(path: &Path) -> Result<()> {
    dir::Dir::open(path)?.lock().map(drop)
}

fn io_error(op: &'static str, path: impl Into<std::path::PathBuf>) -> impl FnOnce(nix::errno::Errno) -> Error {
    move |errno| Error::io(op, path, errno)
}
