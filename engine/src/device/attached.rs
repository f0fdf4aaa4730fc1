//! A device that an engine uses: its slots, one set a shard, registered with both sides.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

use super::{Device, DeviceError, DeviceId, DeviceOptions, Registration, Route};
use crate::error::{Error, Result};
use crate::mem::{NearNode, Pool};

/// The slots of one shard.
#[derive(Clone)]
pub(crate) struct Transit {
    /// For loads: the disk writes, the device reads.
    pub(crate) to_device: Pool,
    /// For stores.
    pub(crate) from_device: Pool,
}

/// See the module. The pools are mapped for as long as this lives: longer than the rings that know them.
pub(crate) struct Attached {
    // Dropped in this order: the device forgets the memory before it is unmapped.
    _registrations: Vec<Registration>,
    transits: Vec<Transit>,
    pub(crate) device: Arc<dyn Device>,
    pub(crate) options: DeviceOptions,
    /// By volume.
    routes: Vec<VolumeRoute>,
    refused: Troubles,
    repeated: Troubles,
    /// Every buffer is this device's: see `Place::Loopback`.
    pub(crate) loopback: bool,
}

impl Attached {
    /// Makes and registers the slots of `shards` shards.
    pub(crate) fn new(
        device: Arc<dyn Device>,
        options: DeviceOptions,
        routes: Vec<VolumeRoute>,
        shards: usize,
        loopback: bool,
    ) -> Result<Self> {
        let near = device.host_node().map(NearNode::enter);
        if let Some(Err(errno)) = &near {
            tracing::debug!(%errno, "slots are where this thread is, and not near the device");
        }
        let mut registrations = Vec::new();
        let mut slots = || -> Result<Pool> {
            let pool = Pool::make(options.transit_bytes, device.poisons_slots())?;
            registrations.push(device.register(&pool).map_err(|error| Error::device(&*device, error))?);
            Ok(pool)
        };
        let transits = (0..shards)
            .map(|_| Ok(Transit { to_device: slots()?, from_device: slots()? }))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            _registrations: registrations,
            transits,
            device,
            options,
            routes,
            refused: Troubles::default(),
            repeated: Troubles::default(),
            loopback,
        })
    }

    pub(crate) fn id(&self) -> DeviceId {
        self.device.id()
    }

    /// Whether files of a volume go directly.
    pub(crate) fn is_direct(&self, volume: usize) -> bool {
        self.routes.get(volume).is_some_and(|volume| volume.route.is_direct())
    }

    /// A file was not direct when it was to be, and its object goes through slots.
    pub(crate) fn refuse(&self, error: &DeviceError) {
        if self.refused.is_first(error) {
            tracing::warn!(%error, "a file does not go directly; its objects go through slots, and so do others like it");
        }
    }

    /// A copy has failed, and is made again.
    pub(crate) fn repeat(&self, error: &DeviceError) {
        if self.repeated.is_first(error) {
            tracing::warn!(%error, "a copy has failed, and is made again; so are others, which `status` counts");
        }
    }

    pub(crate) fn transit(&self, shard: usize) -> Transit {
        self.transits[shard].clone()
    }

    /// All slots, to be registered with rings.
    pub(crate) fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.transits.iter().flat_map(|transit| [&transit.to_device, &transit.from_device])
    }

    pub(crate) fn status(&self) -> DeviceStatus {
        DeviceStatus {
            name: self.device.name(),
            routes: self.routes.clone(),
            refused_files: self.refused.count.load(Ordering::Relaxed),
            last_refusal: self.refused.last.lock().clone(),
            repeated_copies: self.repeated.count.load(Ordering::Relaxed),
            last_repeat: self.repeated.last.lock().clone(),
            chunk_bytes: self.options.chunk_bytes,
            transit_bytes: self.pools().map(|pool| pool.status().bytes).sum(),
            transit_used_bytes: self.pools().map(|pool| pool.status().used_bytes).sum(),
        }
    }
}

/// How often something did not go as it was to, and why the last time.
#[derive(Default)]
struct Troubles {
    count: AtomicU64,
    last: Mutex<Option<String>>,
}

impl Troubles {
    /// Counts one; whether it is the first, of which the log tells.
    fn is_first(&self, error: &DeviceError) -> bool {
        *self.last.lock() = Some(error.to_string());
        self.count.fetch_add(1, Ordering::Relaxed) == 0
    }
}

/// How files of a volume get to a device's memory and back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct VolumeRoute {
    /// The volume's directory.
    pub dir: PathBuf,
    /// The route, and why it is that one.
    #[serde(flatten)]
    pub route: Route,
}

/// A device that is attached to an engine.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct DeviceStatus {
    /// Its name.
    pub name: String,
    /// How files of each volume get to its memory and back, and why so.
    pub routes: Vec<VolumeRoute>,
    /// Files of volumes with a direct route that were not direct all the same, or on which a direct transfer has failed: their
    /// objects went through slots.
    pub refused_files: u64,
    /// Why the last of them was not.
    pub last_refusal: Option<String>,
    /// Copies between slots and the device that failed and were made again, each time counted; a copy is made up to
    /// [`COPY_ATTEMPTS`](super::COPY_ATTEMPTS) times before its object fails. 0 as long as the device is in order.
    pub repeated_copies: u64,
    /// Why the last of them had failed.
    pub last_repeat: Option<String>,
    /// Most bytes of one copy.
    pub chunk_bytes: usize,
    /// Pinned memory of all shards for chunks under way.
    pub transit_bytes: usize,
    /// Bytes of it that are in use.
    pub transit_used_bytes: usize,
}

impl Error {
    pub(crate) fn device(device: &dyn Device, error: DeviceError) -> Self {
        Self::Device { device: device.name(), op: error.op, reason: error.reason }
    }
}
