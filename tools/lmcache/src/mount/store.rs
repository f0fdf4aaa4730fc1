//! What happens on a store task.

use pyo3::prelude::*;
use saltern::{Class, StoreReport, Ticket};

use super::{Mount, pair};

/// A store that was submitted and not taken yet.
pub(super) struct StoreTask {
    /// `None` when the engine was closed.
    ticket: Option<Ticket<StoreReport>>,
    /// Whether a key of the task was no key, or an object had no memory to store.
    has_refused: bool,
}

pub(super) fn submit(mount: &Mount, keys: &Bound<'_, PyAny>, objects: &Bound<'_, PyAny>) -> PyResult<u64> {
    let keys = mount.reader.read(keys)?;
    let count = keys.count();
    let (batch, _) = pair(mount, keys, objects, mount.store_padded, false);
    let has_refused = batch.len() < count;
    let task = mount.next_task();
    // Held from before the submit: a task that completes at once is found by whoever hears of it.
    let mut stores = mount.stores.lock();
    let ticket = mount.handle.with(|engine| engine.store(batch)).ok();
    let is_closed = ticket.is_none();
    stores.insert(task, StoreTask { ticket, has_refused });
    drop(stores);
    if is_closed {
        mount.ring(Class::Store);
    }
    Ok(task)
}

pub(super) fn pop(mount: &Mount) -> Vec<(u64, bool, u64)> {
    let mut popped = Vec::new();
    mount.stores.lock().retain(|number, task| {
        let Some(ticket) = &mut task.ticket else {
            popped.push((*number, false, 0));
            return false;
        };
        let Some(report) = ticket.try_take() else { return true };
        let is_stored = !task.has_refused && report.results.iter().all(Result::is_ok);
        popped.push((*number, is_stored, report.results.iter().flatten().sum()));
        false
    });
    popped
}
