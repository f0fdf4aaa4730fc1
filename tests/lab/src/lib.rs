//! The fault lab: what saltern promises about crashes, kills, failing devices, exhausted resources and hostile directories,
//! tried at scale and by seed. One command runs it and prints a table (`cargo run -p saltern-lab`).
//!
//! ```text
//! main -> part (power, kills, errors, disks, resources, hostile, soak) -> Row -> table
//!            |
//!            +-- the engine, in this process or in a child of the same program
//!            +-- a FUSE file system or disk that makes trouble, in a process of its own
//! ```
//! Each part runs alone, prints its seed, and skips with a reason what this machine cannot do.

pub mod child;
pub mod content;
pub mod context;
pub mod disks;
pub mod errors;
pub mod hostile;
pub mod kills;
pub mod power;
pub mod resources;
pub mod soak;
pub mod table;
pub mod through;
pub mod world;

pub use context::Context;
pub use table::Row;
