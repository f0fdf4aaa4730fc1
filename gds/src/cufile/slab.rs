//! Memory of a GPU that cuFile is told of once. Transfers that lie in it name it and an offset, so that nothing is mapped for them;
//! others name themselves, and cuFile uses bounce buffers of its own on the GPU.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use saltern::Keepalive;
use saltern::device::DeviceRange;

use super::library::{DeviceSpan, FileIo};

/// Most slabs of one device: a tensor for each layer of a model, and some.
const SLABS_MAX: usize = 1024;

enum State {
    /// cuFile is not open.
    Waiting,
    Registered(Arc<dyn FileIo>),
    Refused(String),
}

/// A registered block; not registered any more when the last transfer in it, and its owner, are gone.
pub(crate) struct Slab {
    range: DeviceRange,
    state: Mutex<State>,
    /// Dropped after the memory is not registered any more.
    _keepalive: Option<Keepalive>,
}

impl Slab {
    /// Registers it, unless that was done before. The GPU's context has to be current.
    pub(crate) fn register(&self, io: &Arc<dyn FileIo>) {
        let mut state = self.state.lock();
        if matches!(*state, State::Waiting) {
            *state = match io.register(self.range) {
                Ok(()) => State::Registered(io.clone()),
                Err(error) => {
                    tracing::warn!(%error, bytes = self.range.len, "memory of the GPU is not registered: cuFile copies once more");
                    State::Refused(error.to_string())
                }
            };
        }
    }

    pub(crate) fn is_registered(&self) -> bool {
        matches!(*self.state.lock(), State::Registered(_))
    }

    pub(crate) fn why_not(&self) -> Option<String> {
        match &*self.state.lock() {
            State::Waiting => Some("cuFile is not open: no probe has shown that it is direct".to_owned()),
            State::Registered(_) => None,
            State::Refused(why) => Some(why.clone()),
        }
    }

    /// Where a range lies in it.
    fn span(&self, range: DeviceRange) -> Option<DeviceSpan> {
        let offset = range.address.checked_sub(self.range.address)?;
        let is_inside = offset.checked_add(range.len as u64).is_some_and(|end| end <= self.range.len as u64);
        is_inside.then_some(DeviceSpan { base: self.range.address, offset, len: range.len, is_registered: true })
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        if let State::Registered(io) = self.state.get_mut() {
            io.deregister(self.range.address);
        }
    }
}

/// The slabs of a device.
#[derive(Default)]
pub(crate) struct Slabs(Mutex<Vec<Weak<Slab>>>);

impl Slabs {
    /// Adds a block, not registered yet.
    pub(crate) fn add(&self, range: DeviceRange, keepalive: Option<Keepalive>) -> Arc<Slab> {
        let mut slabs = self.0.lock();
        slabs.retain(|slab| slab.strong_count() > 0);
        let state = match slabs.len() < SLABS_MAX {
            true => State::Waiting,
            false => State::Refused(format!("there are {SLABS_MAX} slabs already")),
        };
        let slab = Arc::new(Slab { range, state: Mutex::new(state), _keepalive: keepalive });
        slabs.push(Arc::downgrade(&slab));
        slab
    }

    /// Registers all that wait.
    pub(crate) fn register_all(&self, io: &Arc<dyn FileIo>) {
        self.0.lock().iter().filter_map(Weak::upgrade).for_each(|slab| slab.register(io));
    }

    /// How cuFile is to be told of a range: in the slab that it lies in, which has to be kept meanwhile, or by itself.
    pub(crate) fn find(&self, range: DeviceRange) -> (DeviceSpan, Option<Arc<Slab>>) {
        let slabs: Vec<_> = self.0.lock().iter().filter_map(Weak::upgrade).collect();
        // A handful; dropped outside of the lock, since dropping the last one calls cuFile.
        let found = slabs.into_iter().filter(|slab| slab.is_registered());
        let mut found = found.filter_map(|slab| Some((slab.span(range)?, slab)));
        found.next().map_or_else(|| (range.into(), None), |(span, slab)| (span, Some(slab)))
    }
}
