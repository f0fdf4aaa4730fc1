//! What the behaviour suites share: directories to work in, keys and payloads by number, memory to lend, what is
//! really on disk, and what a correct engine would answer.
//!
//! Nothing here uses the engine's own codecs, accounting or parsers: a suite that asks the engine what is right
//! cannot find it wrong.

mod cell;
mod device;
mod disk;
mod keys;
pub mod kill;
mod lend;
mod listen;
mod model;
mod mount;
mod openmetrics;
pub mod parsers;
mod scratch;
mod seed;
mod talk;
mod wait;

pub use cell::{Called, Cell, Host, Mount};
pub use device::{CHUNK, CROWD_BYTES, beside_a_crowd, crowded_device, device_memory, small_device};
pub use disk::{Disk, TMP, assert_books, assert_books_of, checked, file_name, leave_books_unchecked, unfinished};
pub use keys::{key, payload, salted, varied};
pub use lend::{Arena, GUARD_BYTES, Lender, Loan, Memory, Watch};
pub use listen::Recorder;
pub use model::{Deleted, Loaded, Model, Object, Stored};
pub use mount::{LoopMount, Unmountable};
pub use openmetrics::{Exposition, Family};
pub use scratch::{Scratch, fixtures};
pub use seed::{Seed, is_long};
pub use talk::{beside, config, find, get, on_device, open, over, put, remove};
pub use wait::{WAIT_MAX, block_on, done, until};
