//! What happens on a lookup, and on the unlock that ends it.

use pyo3::prelude::*;
use saltern::{Class, LookupReport, ObjectKey, Ticket};

use super::{Mount, Places, load};

/// A lookup that was submitted and not taken yet.
pub(super) struct LookupTask {
    /// `None` when the engine was closed: all misses.
    ticket: Option<Ticket<LookupReport>>,
    count: usize,
    /// Places in the host's batch, where some of its keys were none.
    places: Option<Vec<usize>>,
}

pub(super) fn submit(mount: &Mount, keys: &Bound<'_, PyAny>) -> PyResult<u64> {
    let keys = mount.reader.read(keys)?;
    mount.count_refused(keys.refused.len());
    let places = (!keys.refused.is_empty()).then(|| keys.places().collect());
    let count = keys.count();
    let task = mount.next_task();
    let mut lookups = mount.lookups.lock();
    let ticket = mount.handle.with(|engine| engine.lookup_and_pin(&keys.keys)).ok();
    let is_closed = ticket.is_none();
    lookups.insert(task, LookupTask { ticket, count, places });
    drop(lookups);
    if is_closed {
        mount.ring(Class::Lookup);
    }
    Ok(task)
}

pub(super) fn take(mount: &Mount, number: u64) -> Option<Places> {
    let mut lookups = mount.lookups.lock();
    let task = lookups.get_mut(&number)?;
    let Some(ticket) = &mut task.ticket else {
        let count = task.count;
        lookups.remove(&number);
        return Some((count, Some(Vec::new())));
    };
    let report = ticket.try_take()?;
    let LookupTask { count, places, .. } = lookups.remove(&number)?;
    drop(lookups);
    Some((count, found(&places, report.sizes.iter().map(Option::is_some), count)))
}

/// The places for which `holds` says so; `None` when it does for all `count`.
pub(super) fn found(
    places: &Option<Vec<usize>>,
    holds: impl Iterator<Item = bool> + Clone,
    count: usize,
) -> Option<Vec<usize>> {
    if places.is_none() && holds.clone().filter(|holds| *holds).count() == count {
        return None;
    }
    let place = |at: usize| places.as_ref().map_or(at, |places| places[at]);
    Some(holds.enumerate().filter(|(_, holds)| *holds).map(|(at, _)| place(at)).collect())
}

pub(super) fn unpin(mount: &Mount, py: Python<'_>, keys: &Bound<'_, PyAny>) -> PyResult<()> {
    let keys: Vec<ObjectKey> = mount.reader.read(keys)?.keys;
    // Closed: there are no pins any more.
    let _ = mount.handle.with(|engine| engine.unpin(&keys));
    load::wait_for_abandoned(mount, py, &keys);
    Ok(())
}
