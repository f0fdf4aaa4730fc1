//! What memory objects are moved to.

use std::str::FromStr;

use thiserror::Error;

/// Where objects go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The host's memory.
    Host,
    /// A GPU's memory, by its number.
    Gpu(u32),
    /// The software device's memory.
    GpuSim,
}

/// No target has this name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown target {0:?}; known are host, gpu, gpu:N and gpu-sim")]
pub struct UnknownTarget(pub String);

impl FromStr for Target {
    type Err = UnknownTarget;

    fn from_str(name: &str) -> Result<Self, UnknownTarget> {
        match name {
            "host" => Ok(Self::Host),
            "gpu" => Ok(Self::Gpu(0)),
            "gpu-sim" => Ok(Self::GpuSim),
            _ => {
                let number = name.strip_prefix("gpu:").and_then(|number| number.parse().ok());
                number.map(Self::Gpu).ok_or_else(|| UnknownTarget(name.to_owned()))
            }
        }
    }
}
