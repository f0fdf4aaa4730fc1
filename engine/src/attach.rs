//! Devices, as callers have them: taking one into use, and storing from its memory and loading to it.
//!
//! Taking into use has two steps, so that a failure leaves nothing behind: every shard makes its queue of copies; when all have
//! one, the rings learn of the slots, and the shards take buffers of the device. When one has none, all give theirs up again.

use std::sync::Arc;

use crossbeam::sync::WaitGroup;

use crate::device::attached::{Attached, VolumeRoute};
use crate::device::sim::SimDevice;
use crate::device::{Device, DeviceError, DeviceOptions, Route, TRANSIT_CHUNKS_MIN};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::key::ObjectKey;
use crate::mem::{Buffer, DeviceBuffer};
use crate::open::register;
use crate::report::{LoadReport, StoreReport};
use crate::shard::Command;
use crate::ticket::Ticket;

impl Engine {
    /// Takes a device into use: from now on buffers may be memory of it ([`DeviceBuffer`]), in stores, in loads, and beside memory
    /// of the host's in one batch. Blocks until every shard is ready for it, which includes the device's own probe of each
    /// directory. A device stays attached until the engine is closed; after an error it is not attached, and may be tried again.
    ///
    /// # Errors
    /// [`Error::Config`] for options and for a device that is attached already, [`Error::Device`] for what the device says,
    /// [`Error::Io`] when there is no memory for the slots, [`Error::Closed`].
    pub fn attach_device(&self, device: Arc<dyn Device>, options: DeviceOptions) -> Result<()> {
        options.validate()?;
        let route = |dir: &std::path::Path| device.route(dir, options.route);
        let routes = self.core.volumes.iter().map(|volume| {
            let dir = volume.dir.path();
            Ok(VolumeRoute { dir: dir.to_owned(), route: route(dir)? })
        });
        let routes = routes.collect::<Result<_, DeviceError>>().map_err(|error| Error::device(&*device, error))?;
        self.attach(device, options, routes, false)
    }

    /// [`Engine::store`] for objects in memory of devices: the same tickets, accounting, checksums and priorities. The objects
    /// may be of several devices, and each a list of pages. A batch that mixes devices' and the host's memory goes to
    /// [`Engine::store`], whose buffers may be either.
    pub fn store_from_device(&self, batch: Vec<(ObjectKey, DeviceBuffer)>) -> Ticket<StoreReport> {
        self.store(batch.into_iter().map(|(key, memory)| (key, Buffer::from(memory))).collect())
    }

    /// [`Engine::load`] for objects that are to come to memory of devices, as [`Engine::store_from_device`]: what is launched on the
    /// device after the answer sees the bytes.
    pub fn load_to_device(&self, batch: Vec<(ObjectKey, DeviceBuffer)>) -> Ticket<LoadReport> {
        self.load(batch.into_iter().map(|(key, memory)| (key, Buffer::from(memory))).collect())
    }

    /// See `Config::loopback`. Few and small slots, so that they run out.
    pub(crate) fn attach_loopback(&self, device: SimDevice) -> Result<()> {
        let chunk_bytes = self.core.config.segment_bytes;
        let transit_bytes = chunk_bytes * TRANSIT_CHUNKS_MIN;
        let options = DeviceOptions { chunk_bytes, transit_bytes, ..DeviceOptions::default() };
        let route = || Route::Pipeline { why: "loopback".to_owned() };
        let volumes = self.core.volumes.iter();
        let routes = volumes.map(|volume| VolumeRoute { dir: volume.dir.path().to_owned(), route: route() }).collect();
        self.attach(Arc::new(device), options, routes, true)
    }

    fn attach(
        &self,
        device: Arc<dyn Device>,
        options: DeviceOptions,
        routes: Vec<VolumeRoute>,
        loopback: bool,
    ) -> Result<()> {
        let core = &self.core;
        // Held to the end: two callers must not attach one device twice.
        let mut devices = core.devices.lock();
        if devices.iter().any(|attached| attached.id() == device.id()) {
            let reason = format!("{} is attached already", device.name());
            return Err(Error::Config { option: "device", reason });
        }
        let attached = Arc::new(Attached::new(device, options, routes, core.mailboxes.len(), loopback)?);
        let id = attached.id();
        let ask = |shard: usize| {
            let (sender, receiver) = crossbeam::channel::bounded(1);
            core.mailboxes[shard].push(Command::Attach(attached.clone(), sender));
            core.wake(shard);
            receiver
        };
        let replies: Vec<_> = (0..core.mailboxes.len()).map(ask).collect();
        // All of them, also when one has failed: none may be left with half a device.
        let replies: Vec<_> = replies.into_iter().map(|reply| reply.recv().unwrap_or(Err(Error::Closed))).collect();
        let ready: Result<()> = replies.into_iter().collect();
        if ready.is_ok() {
            // Before any ring learns of the slots: they have to outlive the rings.
            devices.push(attached.clone());
            for pool in attached.pools() {
                if let Err(error) = register(&core.registry, pool) {
                    tracing::warn!(%error, "a device's slots stay plain buffers of the rings, at more CPU");
                }
            }
        }
        let settled = WaitGroup::new();
        for (shard, mailbox) in core.mailboxes.iter().enumerate() {
            mailbox.push(Command::Settle { device: id, keep: ready.is_ok(), _done: settled.clone() });
            core.wake(shard);
        }
        settled.wait();
        ready
    }
}
