//! Devices with memory of their own (GPUs), as the engine sees them. It knows nothing of CUDA: a device is what implements
//! [`Device`], and its memory is addresses that only the device's own copies touch.
//!
//! ```text
//! load:   disk -> ring -> slot -> (checksum) -> CopyEngine -> device memory -> answer
//! store:  device memory -> CopyEngine -> slot -> (checksum) -> ring -> disk -> answer
//! direct: disk <-> device memory, where the device can and no checksum needs the bytes
//! ```
//!
//! A slot is a part of a pinned pool that both the ring and the device have registered. `lane.rs` is one shard's slots and
//! copies; it holds a slot until both DMA engines are done with it. `sim/` is a device of software, for tests and for
//! machines without a GPU. CUDA is in the crate `saltern-gds`.

pub(crate) mod attached;
pub(crate) mod lane;
mod options;
pub mod sim;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

use thiserror::Error;

pub use attached::{DeviceStatus, VolumeRoute};

use crate::mem::Pool;
pub use crate::mem::{DeviceBuffer, DeviceId, DeviceRange, Fence, Span};
pub use options::{CHUNK_BYTES_RANGE, DeviceOptions, Route, RouteChoice, TRANSIT_CHUNKS_MIN};

/// What a device answers when something does not work: what was tried, and why not.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{op}: {reason}")]
pub struct DeviceError {
    /// The call, or what was to be done.
    pub op: &'static str,
    /// What the device said, and what to do about it.
    pub reason: String,
}

impl DeviceError {
    /// A call that failed, and why.
    pub fn new(op: &'static str, reason: impl fmt::Display) -> Self {
        Self { op, reason: reason.to_string() }
    }
}

/// Keeps host memory known to a device; unregisters it when dropped.
pub type Registration = Box<dyn Any + Send + Sync>;

/// A device with memory of its own. Used from several threads.
pub trait Device: Send + Sync {
    /// Which one it is: buffers name their device by it.
    fn id(&self) -> DeviceId;

    /// Its name, for status.
    fn name(&self) -> String;

    /// The host's NUMA node next to it, where that is known: slots are made there.
    fn host_node(&self) -> Option<u32> {
        None
    }

    /// Makes a pool's memory known to the device, so that copies from and to it are asynchronous. The registration keeps a
    /// clone of the pool.
    ///
    /// # Errors
    /// What the device says.
    fn register(&self, pool: &Pool) -> Result<Registration, DeviceError>;

    /// How files of this directory get to the device's memory and back. May look for seconds: it is asked once, when the
    /// device is attached.
    ///
    /// # Errors
    /// When the choice cannot be had here, and why.
    fn route(&self, dir: &Path, choice: RouteChoice) -> Result<Route, DeviceError>;

    /// A queue of copies for one shard. Called on the shard's thread, which alone will use it.
    ///
    /// # Errors
    /// What the device says.
    fn copier(&self) -> Result<Box<dyn CopyEngine>, DeviceError>;

    /// Whether slots are to be overwritten when they are given back, so that who still uses one is found.
    #[doc(hidden)]
    fn poisons_slots(&self) -> bool {
        false
    }
}

/// Which way a copy goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the host to the device: loads.
    ToDevice,
    /// From the device to the host: stores.
    FromDevice,
}

/// Memory on the far side of a copy.
#[derive(Debug)]
pub enum Place {
    /// Blocks of the device's memory, in order.
    Device(Vec<DeviceRange>),
    /// Memory of the host's that plays the device's: in tests, so that every test of host memory is one of the device path.
    #[doc(hidden)]
    Loopback(Span),
}

/// A copy between a slot and memory of the device.
#[derive(Debug)]
pub struct DeviceCopy {
    /// Which way.
    pub direction: Direction,
    /// The slot's bytes, all of them. Stays valid while this value lives; the implementation keeps it until the copy has ended.
    pub host: Span,
    /// As many bytes of the device's memory.
    pub place: Place,
    /// Comes back with the completion.
    pub token: usize,
}

/// A transfer between a file and memory of the device, without the host's memory.
#[derive(Debug)]
pub struct DirectOp {
    /// Which way.
    pub direction: Direction,
    /// The file, open for it with O_DIRECT.
    pub fd: Rc<OwnedFd>,
    /// Where in the file; a multiple of [`DIRECT_ALIGN_BYTES`].
    pub offset: u64,
    /// The block of device memory; address and length are multiples of [`DIRECT_ALIGN_BYTES`].
    pub range: DeviceRange,
    /// Comes back with the completion.
    pub token: usize,
}

/// What offsets, lengths and device addresses of direct transfers are multiples of; cuFile copies once more otherwise.
pub const DIRECT_ALIGN_BYTES: usize = 4096;

/// How often a copy is made before its object fails. What passes (a driver that is out of a resource for a moment, a call that failed
/// for what another call had done) is over by the second time, and the third is for what meets the second as well; an error that stays costs
/// two copies more, and has to be told soon.
pub const COPY_ATTEMPTS: u32 = 3;

/// A copy or a direct transfer that has ended.
#[derive(Debug)]
pub struct CopyDone {
    /// Of the request.
    pub token: usize,
    /// Whether all bytes have moved.
    pub result: Result<(), DeviceError>,
    /// It has not ended, and nobody can tell any more whether the device is done with it: its object fails, and the memory, the slot and
    /// the file are never used again. Only with an error.
    pub is_lost: bool,
}

impl CopyDone {
    /// One that has ended.
    pub fn new(token: usize, result: Result<(), DeviceError>) -> Self {
        Self { token, result, is_lost: false }
    }

    /// One that was given up.
    pub fn lost(token: usize, error: DeviceError) -> Self {
        Self { token, result: Err(error), is_lost: true }
    }
}

/// Asynchronous copies of one shard, in a queue for each direction. Stays on one thread.
///
/// What is submitted is reported by `poll` exactly once, with its result, and only when the device is done with the memory: a
/// submission that fails is reported as well. What the device may never end is reported as lost. Dropping it waits until the device is
/// done with everything else.
///
/// A copy that is reported as failed is submitted again, between the same memory and with another token, up to [`COPY_ATTEMPTS`] times in
/// all. So nothing of a failed one may still be under way when it is reported; what it has moved may stay. Lost ones are not made again, nor
/// direct transfers, which go through slots instead.
pub trait CopyEngine {
    /// Whether the work that a fence stands for is done. Does not block. What has to wait for a fence is submitted after this has
    /// said so, and not before: the queues are shared by all callers, and what is behind an event in them cannot be taken back.
    ///
    /// # Errors
    /// The work has failed, or the fence is another device's.
    fn has_happened(&mut self, fence: &Fence) -> Result<bool, DeviceError>;

    /// Queues a copy. May wait for [`CopyEngine::flush`] before it begins.
    fn submit(&mut self, copy: DeviceCopy);

    /// Whether this file goes directly: each is asked about, once as long as it is open, where the route is [`Route::Direct`].
    ///
    /// # Errors
    /// Why it does not. Its objects go through slots then.
    fn admit_direct(&mut self, fd: &Rc<OwnedFd>) -> Result<(), DeviceError> {
        let _ = fd;
        Ok(())
    }

    /// Queues a direct transfer of a file that was admitted; never called where the route is [`Route::Pipeline`].
    fn submit_direct(&mut self, op: DirectOp);

    /// Hands what is queued to the device: many small copies at once.
    fn flush(&mut self);

    /// Reports what has ended. Does not block.
    fn poll(&mut self, each: &mut dyn FnMut(CopyDone));

    /// Most direct transfers that may be under way at a time.
    fn direct_limit(&self) -> usize {
        0
    }
}
