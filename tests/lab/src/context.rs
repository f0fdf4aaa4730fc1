//! What all parts of the lab share.

use std::ffi::OsString;
use std::path::PathBuf;

use saltern_power::{Error, FileSystem, Lab, Program};

/// How the lab runs.
#[derive(Debug, Clone)]
pub struct Context {
    /// All choices come from here.
    pub seed: u64,
    /// Take hours instead of minutes.
    pub is_long: bool,
    /// This program: it is its own child, and serves its own file systems.
    pub program: PathBuf,
    /// Where the soak leaves its plot, if anywhere.
    pub plot: Option<PathBuf>,
    /// How many images each cell of power cuts has, if that is said.
    pub images: Option<u64>,
    /// How many seconds it soaks, if that is said.
    pub soak_s: Option<u64>,
}

impl Context {
    /// So many, or, when it may take long, so many more.
    pub fn times(&self, short: u64, long: u64) -> u64 {
        if self.is_long { long } else { short }
    }

    /// This program as a server or child of the given kind.
    pub fn role(&self, role: &str) -> Program {
        Program { path: self.program.clone(), arguments: vec![OsString::from(role)] }
    }

    /// A scratch directory in a mount namespace of the calling thread.
    ///
    /// # Errors
    /// Says what this machine lacks.
    pub fn lab(&self, file_systems: &[FileSystem]) -> Result<Lab, Error> {
        Lab::new(self.role(crate::child::DISK), file_systems)
    }
}
