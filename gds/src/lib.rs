//! The GPU-direct path of saltern: CUDA devices for the engine, and the only crate that knows CUDA.
//!
//! ```text
//! CudaDevice (a `saltern::device::Device`)
//!   pipeline: engine's slots, registered with CUDA -> two streams, one event a group of copies -> device memory
//!   direct:   cuFile in helper threads, file <-> device memory, where a probe showed that it is direct
//! ```
//! Libraries are loaded at run time, by name or from a configured path, and symbol by symbol: what is missing is an error with its
//! name, never a panic, and nothing of CUDA is needed to build this crate or to run the rest of saltern. Codes of both libraries are
//! plain integers here: newer libraries have values that an older header does not.
//!
//! All unsafe code is in `cuda/` and `cufile/`.

mod cuda;
mod cufile;
mod error;
pub mod machine;

pub use cuda::{CudaDevice, CudaOptions, DeviceSlab, DeviceSlice, Driver, GpuInfo, HostKind, HostMemory};
pub use cufile::{
    BATCH_MAX, Batch, CuFileState, DeviceSpan, Ended, Entry, FileHandle, FileIo, HELPER_SUBCOMMAND, PROBE_DEADLINE,
    ProbeReport, Prober, helper_main, library_version,
};
pub use error::{GdsError, Result};
