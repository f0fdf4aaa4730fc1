//! The CUDA driver: its functions, contexts, memory, streams, and the engine's copies.

#![expect(unsafe_code, reason = "CUDA is a C library, and its memory is addressed by number")]

mod copier;
mod device;
mod driver;
mod host;
mod slice;
mod stream;

pub(crate) use device::Gpu;
pub use device::{CudaDevice, CudaOptions, DeviceSlab, GpuInfo};
pub use driver::Driver;
pub(crate) use driver::open_library;
pub use host::{HostKind, HostMemory};
pub use slice::DeviceSlice;
