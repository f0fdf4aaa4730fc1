//! The device that is measured, and blocks of its memory.

use std::path::PathBuf;
use std::sync::Arc;

use saltern::device::sim::{SimDevice, SimMemory, SimOptions};
use saltern::device::{Device, DeviceBuffer, DeviceRange};
use saltern_gds::{CudaDevice, CudaOptions, DeviceSlice};

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
                Ok(Self::Sim(SimDevice::new(options)))
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

    pub(super) fn alloc(&self, len: usize) -> Result<Block> {
        Ok(match self {
            Self::Sim(device) => Block::Sim(device.alloc(len)),
            Self::Cuda(device) => Block::Cuda(device.alloc(len)?),
        })
    }
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

    /// Reads into memory that is there.
    pub(super) fn read_into(&self, bytes: &mut [u8]) -> Result<()> {
        match self {
            Self::Sim(memory) => bytes.copy_from_slice(&memory.read()),
            Self::Cuda(slice) => slice.read_into(bytes)?,
        }
        Ok(())
    }
}
