//! What saltern keeps after a power cut.
//!
//! ```text
//! workload -> engine -> ext4, xfs -> loop device -> disk (a process of its own)
//!    | acknowledgements, with positions               | log of writes and flushes
//!    v                                                v
//! history ------------------> check <- mount <- replay: crash images by seed
//! ```
//! One run of a workload gives a log, from which any number of crash images is made: for a cut at a position of the log, a
//! disk that keeps its promises has all writes in front of the last flush, and of the later ones whatever it likes. Each
//! image is mounted (the file system recovers its journal), an engine is opened on it, and every object is compared
//! with what its key says.
//!
//! Needs root, FUSE, loop devices and the file systems' tools; [`Lab::new`] says what is missing.

pub mod cell;
pub mod check;
pub mod content;
pub mod disk;
mod engine;
mod error;
mod history;
mod lab;
pub mod log;
mod plain;
mod record;
mod replay;
mod served;
pub mod trouble;
mod workload;

pub use error::{Error, Result};
pub use lab::{Disk, FileSystem, Lab};
pub use served::{Program, Served};
