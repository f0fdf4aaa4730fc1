//! cuFile: file to GPU without the host's memory, used only where a probe has shown that it is that.
//!
//! ```text
//! Prober: cheap checks -> another process, with a deadline -> direct, or why not
//! CuFile: the library with compatibility mode forbidden (`library.rs`)
//! DirectQueue: files, their probe one by one, and what is under way (`queue.rs`); threads, because its calls block (`threads.rs`)
//! Slabs: memory that is registered once (`slab.rs`); batches of transfers in one call (`batch.rs`)
//! ```

#![expect(unsafe_code, reason = "cuFile is a C library")]

mod batch;
mod helper;
mod library;
mod probe;
mod queue;
mod slab;
mod threads;

pub use batch::{BATCH_MAX, Batch, Ended, Entry};
pub use helper::{HELPER_SUBCOMMAND, helper_main};
pub(crate) use library::{CuFile, Mode, OPEN_DEADLINE};
pub use library::{DeviceSpan, FileHandle, FileIo, library_version};
pub use probe::{CuFileState, PROBE_DEADLINE, ProbeReport, Prober};
pub(crate) use queue::DirectQueue;
pub(crate) use slab::{Slab, Slabs};
