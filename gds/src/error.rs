//! What can go wrong between this process and a GPU.

use std::path::PathBuf;

use saltern::device::DeviceError;
use thiserror::Error;

/// Why something of CUDA or cuFile did not work. Every variant says what to do.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum GdsError {
    /// A library is not there, or cannot be loaded.
    #[error("{library} cannot be loaded ({reason}); {remedy}")]
    NoLibrary {
        /// What was looked for.
        library: String,
        /// What the loader said.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A library lacks a function.
    #[error("{library} has no {symbol}; update it")]
    NoSymbol {
        /// The library.
        library: String,
        /// The function.
        symbol: &'static str,
    },
    /// There is a driver, and no GPU with this number.
    #[error("no GPU {ordinal}: the driver knows {count}; see `nvidia-smi`, and CUDA_VISIBLE_DEVICES")]
    NoDevice {
        /// The number asked for.
        ordinal: u32,
        /// GPUs that there are.
        count: u32,
    },
    /// A call of the CUDA driver failed.
    #[error("{call} failed with {code} ({name})")]
    Cuda {
        /// The function.
        call: &'static str,
        /// CUresult.
        code: i32,
        /// Its name, as the driver knows it.
        name: String,
    },
    /// cuFile cannot be used here at all.
    #[error("cuFile cannot be used: {0}")]
    NoCuFile(String),
    /// A call of cuFile failed.
    #[error("{call} failed with {code} ({meaning})")]
    CuFile {
        /// The function.
        call: &'static str,
        /// CUfileOpError, or a negative errno.
        code: i32,
        /// What it means here.
        meaning: String,
    },
    /// A system call of ours failed.
    #[error("{op} {path}: {reason}")]
    Io {
        /// The call.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        reason: String,
    },
}

impl From<GdsError> for DeviceError {
    fn from(error: GdsError) -> Self {
        let op = match &error {
            GdsError::Cuda { call, .. } | GdsError::CuFile { call, .. } => *call,
            GdsError::Io { op, .. } => *op,
            GdsError::NoCuFile(_) => "cuFile",
            _ => "CUDA",
        };
        Self { op, reason: error.to_string() }
    }
}

/// Shorthand for results of this crate.
pub type Result<T, E = GdsError> = std::result::Result<T, E>;
