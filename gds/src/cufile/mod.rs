//! cuFile: file to GPU without the host's memory, used only where a probe has shown that it is that.
//!
//! ```text
//! Prober: cheap checks -> another process, with a deadline -> direct, or why not
//! CuFile: the library with compatibility mode forbidden (`library.rs`)
//! DirectQueue: handle cache and helper threads behind `FileIo`, because its calls block (`queue.rs`)
//! ```

#![expect(unsafe_code, reason = "cuFile is a C library")]

mod helper;
mod library;
mod probe;
mod queue;

pub use helper::{HELPER_SUBCOMMAND, helper_main};
pub(crate) use library::{CuFile, Mode};
pub use library::{FileHandle, FileIo, library_version};
pub use probe::{CuFileState, PROBE_DEADLINE, ProbeReport, Prober};
pub(crate) use queue::DirectQueue;
