//! What attaching a device can be told, and what comes of it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

use super::DIRECT_ALIGN_BYTES;
use crate::error::{Error, Result};

/// Smallest and largest chunk: smaller ones are slowed by the cost of each copy, larger ones by one request to the kernel.
pub const CHUNK_BYTES_RANGE: (usize, usize) = (64 << 10, 16 << 20);

/// Fewest chunks that the slots of one direction have to hold: one on the disk's side, one on the device's, at least two waiting
/// for each.
pub const TRANSIT_CHUNKS_MIN: usize = 4;

/// How files get to a device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RouteChoice {
    /// Directly where a probe shows that it is direct, else the pinned pipeline.
    #[default]
    Auto,
    /// Through pinned host memory.
    Pipeline,
    /// Directly; attaching fails where that cannot be had.
    Direct,
}

impl RouteChoice {
    /// All that there are.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Pipeline, Self::Direct];

    /// The name in options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Pipeline => "pipeline",
            Self::Direct => "direct",
        }
    }
}

impl fmt::Display for RouteChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for RouteChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|choice| choice.name() == name);
        found.ok_or_else(|| format!("unknown route {name:?}; known are {}", known()))
    }
}

/// What was chosen for a volume, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "route", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Route {
    /// Through pinned host memory.
    Pipeline {
        /// Why not directly.
        why: String,
    },
    /// Directly between disk and device. Where a checksum has to see the bytes (stores, unless integrity is `off`; loads, where it
    /// is `verify`), and for what is not aligned, the pipeline is used all the same.
    Direct {
        /// By what: `cuFile over nvidia-fs`, for example.
        by: String,
    },
}

impl Route {
    /// Whether it is direct.
    pub fn is_direct(&self) -> bool {
        matches!(self, Self::Direct { .. })
    }
}

/// How a device is used.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceOptions {
    /// Objects move in chunks of at most this size, a power of two; each is one request to the kernel and one copy. Default 4 MiB.
    pub chunk_bytes: usize,
    /// Pinned memory for chunks under way, for each direction and shard. It bounds what is in flight: bandwidth times the time
    /// that disk, copy and polling take. Default 64 MiB.
    pub transit_bytes: usize,
    /// How files get to the device. Default: as a probe says.
    pub route: RouteChoice,
    /// How long an object waits for its caller's fence, from when the engine would touch its memory. Then it fails as
    /// [`Error::Device`]. The deadline of its ticket ends this as well. Default 30 s.
    pub fence_deadline: Duration,
    /// How long closing the engine waits for fences that have not come, and for a device on which nothing ends any more. Then what
    /// waits fails, closing goes on, and what the device may still write to (slots, buffers, its queue) is never freed: it is
    /// lost to the process. Default 10 s.
    pub close_deadline: Duration,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        Self {
            chunk_bytes: 4 << 20,
            transit_bytes: 64 << 20,
            route: RouteChoice::Auto,
            fence_deadline: Duration::from_secs(30),
            close_deadline: Duration::from_secs(10),
        }
    }
}

impl DeviceOptions {
    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::Config`] names the first value that is not usable.
    pub fn validate(&self) -> Result<()> {
        let (min, max) = CHUNK_BYTES_RANGE;
        let fail = |option, reason| Err(Error::Config { option, reason });
        if !self.chunk_bytes.is_power_of_two() || self.chunk_bytes < min || self.chunk_bytes > max {
            return fail("chunk_bytes", format!("has to be a power of two in {min}..={max}"));
        }
        let least = self.chunk_bytes * TRANSIT_CHUNKS_MIN;
        if self.transit_bytes < least {
            return fail("transit_bytes", format!("chunks of this size need at least {least}"));
        }
        Ok(())
    }
}

const _: () = assert!(CHUNK_BYTES_RANGE.0.is_multiple_of(DIRECT_ALIGN_BYTES));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_inverse_and_bad_values_are_named() {
        for choice in RouteChoice::ALL {
            assert_eq!(choice.name().parse(), Ok(choice));
        }
        assert_eq!(
            "gds".parse::<RouteChoice>().unwrap_err(),
            "unknown route \"gds\"; known are auto, pipeline, direct"
        );
        DeviceOptions::default().validate().unwrap();
        let bad = |chunk_bytes, transit_bytes| match (DeviceOptions {
            chunk_bytes,
            transit_bytes,
            ..DeviceOptions::default()
        })
        .validate()
        {
            Err(Error::Config { option, .. }) => option,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            [bad(100_000, 1 << 30), bad(32 << 10, 1 << 30), bad(1 << 20, 3 << 20)],
            ["chunk_bytes", "chunk_bytes", "transit_bytes"]
        );
    }
}
