//! What can go wrong in the lab itself. What is wrong with an image is a finding, not an error.

use std::io;

use thiserror::Error;

/// The lab failed; says nothing about the engine.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// This machine cannot run the lab.
    #[error("the lab cannot run here: {0}")]
    Unavailable(String),
    /// A command failed.
    #[error("{command}: {output}")]
    Command {
        /// The command line.
        command: String,
        /// What it printed.
        output: String,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The error.
        source: io::Error,
    },
    /// The workload met something that it must not meet, without any power cut.
    #[error("the workload failed: {0}")]
    Workload(String),
}

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Names what was being done when an error came.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl Into<String>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::Io { what: what.into(), source: source.into() })
    }
}
