//! What happens on a load task, and when the host gives one up.
//!
//! LMCache 0.5.6 frees the staging memory of a request that it aborts, and may use it again at once, while the load is still
//! under way. All that an adapter hears of it is the unlock of the load's keys just before: in the same thread, with exactly
//! the keys of the load, and before its result was asked for. So such an unlock waits for the load.

use std::sync::Arc;

use parking_lot::Mutex;
use pyo3::prelude::*;
use saltern::{Class, LoadReport, ObjectKey, Ticket};

use super::lookup::found;
use super::{Mount, Places, pair};

enum State {
    Open(Ticket<LoadReport>),
    Done(LoadReport),
    /// The engine was closed: all misses.
    Closed,
    Taken,
}

/// A load that was submitted and not taken yet.
pub(super) struct LoadTask {
    keys: Vec<ObjectKey>,
    count: usize,
    places: Option<Vec<usize>>,
    state: Mutex<State>,
}

pub(super) fn submit(mount: &Mount, keys: &Bound<'_, PyAny>, objects: &Bound<'_, PyAny>) -> PyResult<u64> {
    let keys = mount.reader.read(keys)?;
    let count = keys.count();
    let named = keys.keys.clone();
    let (batch, places) = pair(mount, keys, objects, false, true);
    let task = mount.next_task();
    let mut loads = mount.loads.lock();
    let ticket = mount.handle.with(|engine| engine.load(batch));
    let is_closed = ticket.is_err();
    let state = Mutex::new(ticket.map_or(State::Closed, State::Open));
    loads.insert(task, Arc::new(LoadTask { keys: named, count, places, state }));
    drop(loads);
    if is_closed {
        mount.ring(Class::Load);
    }
    Ok(task)
}

pub(super) fn take(mount: &Mount, number: u64) -> Option<Places> {
    let task = mount.loads.lock().get(&number)?.clone();
    // Locked by an unlock that waits for it: that one rings again.
    let mut state = task.state.try_lock()?;
    let report = match std::mem::replace(&mut *state, State::Taken) {
        State::Open(mut ticket) => match ticket.try_take() {
            Some(report) => Some(report),
            None => {
                *state = State::Open(ticket);
                return None;
            }
        },
        State::Done(report) => Some(report),
        State::Closed => None,
        State::Taken => return None,
    };
    drop(state);
    mount.loads.lock().remove(&number);
    let Some(report) = report else { return Some((task.count, Some(Vec::new()))) };
    Some((task.count, found(&task.places, report.results.iter().map(Result::is_ok), task.count)))
}

/// Blocks, without the GIL, for the loads of exactly these keys: at most until their deadline.
pub(super) fn wait_for_abandoned(mount: &Mount, py: Python<'_>, keys: &[ObjectKey]) {
    let abandoned: Vec<Arc<LoadTask>> =
        mount.loads.lock().values().filter(|task| task.keys.as_slice() == keys).cloned().collect();
    if abandoned.is_empty() {
        return;
    }
    py.detach(|| {
        for task in abandoned {
            let mut state = task.state.lock();
            *state = match std::mem::replace(&mut *state, State::Taken) {
                // Every ticket completes by its deadline.
                State::Open(ticket) => State::Done(ticket.wait()),
                other => other,
            };
        }
    });
    // Whoever asked meanwhile was told to wait.
    mount.ring(Class::Load);
}
