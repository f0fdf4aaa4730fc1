//! What ends a bench before it has a report.

use std::path::PathBuf;

use thiserror::Error;

/// Why a bench could not run to its end. Wrong results of single objects are not errors: the report counts them.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The options contradict each other or this machine.
    #[error("{0}")]
    Usage(String),
    /// The engine refused to open, or a call on all of it failed.
    #[error(transparent)]
    Engine(#[from] saltern::Error),
    /// A system call of the bench's own failed.
    #[error("{op} {path}: {source}")]
    Io {
        /// What was tried.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel answered.
        source: std::io::Error,
    },
    /// The disk has no room for the run.
    #[error("{dir} has {free_mib} MiB free, and the run needs {needed_mib} MiB")]
    NoSpace {
        /// Where the scratch directory was to be.
        dir: PathBuf,
        /// What the run writes at most at one time.
        needed_mib: u64,
        /// What there is.
        free_mib: u64,
    },
    /// Nothing completed for a long time.
    #[error("nothing completed for {seconds} s with {in_flight} operations in flight")]
    Stuck {
        /// How long was waited.
        seconds: u64,
        /// Tickets that were waited for.
        in_flight: usize,
    },
    /// An operation passed its deadline while the kernel had its memory, which cannot be used again.
    #[error("an operation passed its deadline, and the kernel still has its memory; is the disk failing?")]
    MemoryKept,
    /// The GPU cannot be used, or a call of its libraries failed.
    #[error(transparent)]
    Gpu(Box<saltern_gds::GdsError>),
    /// A plot could not be drawn.
    #[error("the report could not be drawn: {0}")]
    Plot(String),
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    pub(crate) fn io(op: &'static str, path: impl Into<PathBuf>, source: impl Into<std::io::Error>) -> Self {
        Self::Io { op, path: path.into(), source: source.into() }
    }
}

/// Shorthand for results of the bench.
pub type Result<T, E = Error> = std::result::Result<T, E>;
