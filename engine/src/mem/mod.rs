//! Memory that the kernel reads and writes: the pool, the callers' buffers, and views of both for the ring.
//!
//! All raw pointers to payload memory live here. A [`Buffer`] is moved into the engine by value and stays there
//! until the kernel has completed every request on it, so that safe code can never touch it meanwhile.

#![expect(unsafe_code, reason = "payload memory is addressed by raw pointers, because the kernel writes into it")]

mod buffer;
mod device;
mod io;
mod loan;
mod node;
mod pool;
mod region;

pub use buffer::{Buffer, Keepalive};
pub use device::{DeviceBuffer, DeviceId, DeviceRange, Fence};
pub(crate) use io::IoBuffer;
pub use io::Span;
pub(crate) use loan::{Lent, Loan};
pub(crate) use node::NearNode;
pub use pool::{Pool, PoolBuffer, PoolStatus};
pub use region::PageKind;
pub(crate) use region::merge_pages;
