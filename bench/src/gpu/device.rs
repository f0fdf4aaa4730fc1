//! The device that is measured, and blocks of its memory.

use std::path::PathBuf;
use std::sync::Arc;

use saltern::device::sim::{Clock, SimDevice, SimMemory, SimOptions};
use saltern::device::{DIRECT_ALIGN_BYTES, Device, DeviceBuffer, DeviceRange};
use saltern_gds::{CudaDevice, CudaOptions, DeviceSlab, DeviceSlice};

use super::target::Target;
use crate::error::{Error, Result};

pub(super) enum Gpu {
    Sim(SimDevice),
    Cuda(CudaDevice),
}

impl Gpu {
    pub(super) fn open(target: Target, helper: Option<PathBuf>) -> Result<Self> {
        match target {
            Target::Host => Err(Error::Usage("the host's memory is no device".into())),
            Target::Gpu(ordinal) => {
                let mut options = CudaOptions::from_env();
                options.helper = options.helper.or(helper);
                Ok(Self::Cuda(CudaDevice::open(ordinal, options)?))
            }
            Target::GpuSim => {
                let mut options = SimOptions::default();
                options.direct = true;
                // The host's memory traffic is what is measured.
                options.poison = false;
                // Threads of its own copy, as a GPU's engines do; copies take at least the time that they would.
                Ok(Self::Sim(SimDevice::with_clock(options, Clock::wall())))
            }
        }
    }

    pub(super) fn is_simulated(&self) -> bool {
        matches!(self, Self::Sim(_))
    }

    /// For an engine.
    pub(super) fn device(&self) -> Arc<dyn Device> {
        match self {
            Self::Sim(device) => Arc::new(device.clone()),
            Self::Cuda(device) => Arc::new(device.clone()),
        }
    }

    pub(super) fn name(&self) -> String {
        self.device().name()
    }

    /// Memory for so many objects: on a GPU one slab, as a cache has, in which each begins at a block of the disk's.
    pub(super) fn alloc(&self, objects: usize, len: usize) -> Result<Memory> {
        let device = match self {
            Self::Cuda(device) => device,
            Self::Sim(device) => {
                let blocks = (0..objects).map(|_| Block::Sim(device.alloc(len))).collect();
                return Ok(Memory { blocks, _slab: None });
            }
        };
        let step = len.next_multiple_of(DIRECT_ALIGN_BYTES);
        let heap = device.alloc(objects * step)?;
        let blocks = (0..objects).map(|object| Block::Cuda(heap.slice(object * step..object * step + len))).collect();
        Ok(Memory { blocks, _slab: Some(device.slab(&heap)) })
    }
}

/// The memory of all objects of a size.
pub(super) struct Memory {
    pub(super) blocks: Vec<Block>,
    _slab: Option<DeviceSlab>,
}

/// Memory for one object.
pub(super) enum Block {
    Sim(SimMemory),
    Cuda(DeviceSlice),
}

impl Block {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Sim(memory) => memory.len(),
            Self::Cuda(slice) => slice.len(),
        }
    }

    pub(super) fn buffer(&self) -> DeviceBuffer {
        match self {
            Self::Sim(memory) => memory.buffer(),
            Self::Cuda(slice) => slice.buffer(),
        }
    }

    pub(super) fn range(&self) -> DeviceRange {
        self.buffer().ranges()[0]
    }

    pub(super) fn write(&self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Sim(memory) => memory.write(bytes),
            Self::Cuda(slice) => slice.write(bytes)?,
        }
        Ok(())
    }

    pub(super) fn read(&self) -> Result<Vec<u8>> {
        Ok(match self {
            Self::Sim(memory) => memory.read(),
            Self::Cuda(slice) => slice.read()?,
        })
    }

    /// A copy from the host that is waited for; on the software device it takes its turn, as a GPU's do.
    pub(super) fn copy_in(&self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Sim(memory) => memory.copy_in(bytes),
            Self::Cuda(slice) => slice.write(bytes)?,
        }
        Ok(())
    }

    /// As [`Block::copy_in`], to memory of the host's that is there.
    pub(super) fn copy_out(&self, bytes: &mut [u8]) -> Result<()> {
        match self {
            Self::Sim(memory) => memory.copy_out(bytes),
            Self::Cuda(slice) => slice.read_into(bytes)?,
        }
        Ok(())
    }
}
