//! Taking a device into use: its slots are made, both sides learn of them, and every shard gets a queue of copies.

use std::sync::Arc;

use crate::device::attached::Attached;
use crate::device::sim::SimDevice;
use crate::device::{Device, DeviceError, DeviceOptions, Route, TRANSIT_CHUNKS_MIN};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::open::register;
use crate::shard::Command;

impl Engine {
    /// Takes a device into use: from now on buffers may be memory of it ([`DeviceBuffer`](crate::DeviceBuffer)), in stores, in
    /// loads, and beside memory of the host's in one batch. Blocks until every shard is ready for it, which includes the
    /// device's own probe of the directory. A device stays attached until the engine is closed.
    ///
    /// # Errors
    /// [`Error::Config`] for options and for a device that is attached already, [`Error::Device`] for what the device says,
    /// [`Error::Io`] when there is no memory for the slots, [`Error::Closed`].
    pub fn attach_device(&self, device: Arc<dyn Device>, options: DeviceOptions) -> Result<()> {
        options.validate()?;
        let route = self.route(&*device, &options).map_err(|error| Error::device(&*device, error))?;
        self.attach(device, options, route, false)
    }

    /// The device's route to the directories: one for all of them, so direct only where it is that to each.
    fn route(&self, device: &dyn Device, options: &DeviceOptions) -> Result<Route, DeviceError> {
        let mut found = None;
        for volume in self.core.volumes.iter() {
            let route = device.route(volume.dir.path(), options.route)?;
            if matches!(route, Route::Pipeline { .. }) {
                return Ok(route);
            }
            found.get_or_insert(route);
        }
        Ok(found.expect("an engine has a volume"))
    }

    /// See `Config::loopback`. Few and small slots, so that they run out.
    pub(crate) fn attach_loopback(&self, device: SimDevice) -> Result<()> {
        let chunk_bytes = self.core.config.segment_bytes;
        let transit_bytes = chunk_bytes * TRANSIT_CHUNKS_MIN;
        let options = DeviceOptions { chunk_bytes, transit_bytes, ..DeviceOptions::default() };
        self.attach(Arc::new(device), options, Route::Pipeline { why: "loopback".to_owned() }, true)
    }

    fn attach(&self, device: Arc<dyn Device>, options: DeviceOptions, route: Route, loopback: bool) -> Result<()> {
        let core = &self.core;
        // Held to the end: two callers must not attach one device twice.
        let mut devices = core.devices.lock();
        if devices.iter().any(|attached| attached.id() == device.id()) {
            let reason = format!("{} is attached already", device.name());
            return Err(Error::Config { option: "device", reason });
        }
        let attached = Arc::new(Attached::new(device, options, route, core.mailboxes.len(), loopback)?);
        // Before any ring learns of the slots: they have to outlive the rings, whatever happens below.
        devices.push(attached.clone());
        for pool in attached.pools() {
            register(&core.registry, pool)?;
        }
        let replies: Vec<_> = core
            .mailboxes
            .iter()
            .map(|mailbox| {
                let (sender, receiver) = crossbeam::channel::bounded(1);
                mailbox.push(Command::Attach(attached.clone(), sender));
                mailbox.ring();
                receiver
            })
            .collect();
        // All of them, also when one has failed: none may be left with half a device.
        let replies: Vec<_> = replies.into_iter().map(|reply| reply.recv().unwrap_or(Err(Error::Closed))).collect();
        replies.into_iter().collect()
    }
}
