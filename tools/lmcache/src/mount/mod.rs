//! The engine as LMCache's L2 adapter interface asks for it: tasks with numbers, results taken once, three descriptors.
//!
//! Submits return at once. A task is in its table before anybody can be told that it is complete; the lock of a table is
//! never held while Python runs. Results are taken by whoever asks first.

mod delete;
mod load;
mod lookup;
mod store;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use saltern::{Buffer, Class, Engine, ListCursor, ObjectKey};

use self::load::LoadTask;
use self::lookup::LookupTask;
use self::store::StoreTask;
use crate::errors::{ConfigError, raise};
use crate::handle::Handle;
use crate::keys::{KeyReader, KeyWriter, Keys};
use crate::listener::PyListener;
use crate::memory::{lend_arena, lend_memory_object};
use crate::options::Options;

/// Places of a batch for which something holds: all of them, or a list.
type Places = (usize, Option<Vec<usize>>);

/// The host's keys and sizes, and where the next page begins.
type Page<'py> = (Vec<(Bound<'py, PyAny>, u64)>, Option<u64>);

/// An engine under LMCache's L2 adapter interface. Thread-safe.
#[pyclass(frozen, module = "saltern._saltern")]
pub(crate) struct Mount {
    handle: Handle,
    reader: KeyReader,
    /// The host's key class: called with chunk hash, model, rank, group, salt.
    make_key: Py<PyAny>,
    store_padded: bool,
    /// Keys and objects of the host that could not be used, so far.
    refused: AtomicU64,
    next_task: AtomicU64,
    stores: Mutex<BTreeMap<u64, StoreTask>>,
    lookups: Mutex<BTreeMap<u64, LookupTask>>,
    loads: Mutex<BTreeMap<u64, Arc<LoadTask>>>,
    /// The engine's own descriptors, duplicated: they stay open for as long as the host may poll them.
    fds: [OwnedFd; 3],
}

#[pymethods]
impl Mount {
    /// Opens the engine, scans its directory, and registers the arena (address and length in bytes).
    #[new]
    #[pyo3(signature = (options_json, make_key, arena=None, align_bytes=0))]
    fn new(
        py: Python<'_>,
        options_json: &str,
        make_key: Py<PyAny>,
        arena: Option<(usize, usize)>,
        align_bytes: u64,
    ) -> PyResult<Self> {
        let options = Options::parse(options_json).map_err(ConfigError::new_err)?;
        options.without_gpus().map_err(ConfigError::new_err)?;
        let mut config = options.config().map_err(ConfigError::new_err)?;
        let quotas = options.quotas().map_err(ConfigError::new_err)?;
        // Slots are rounded up to the arena's alignment, and adapters that write whole slots leave files of that length.
        config.padding_bytes = align_bytes.max(PADDING_BYTES_MIN);
        let open = move || {
            let handle = Handle::open(config, &quotas)?;
            if let Some((ptr, len)) = arena {
                handle.with(|engine| lend_arena(engine, ptr, len))??;
            }
            Ok(handle)
        };
        let handle = py.detach(open).map_err(|error: saltern::Error| raise(&error))?;
        let fds = handle.with(duplicate_fds).map_err(|error| raise(&error))??;
        Ok(Self {
            handle,
            reader: KeyReader::default(),
            make_key,
            store_padded: options.store_padded,
            refused: AtomicU64::new(0),
            next_task: AtomicU64::new(0),
            stores: Mutex::default(),
            lookups: Mutex::default(),
            loads: Mutex::default(),
            fds,
        })
    }

    /// Descriptors that become readable when stores, lookups and loads complete.
    fn event_fds(&self) -> (i32, i32, i32) {
        let [store, lookup, load] = &self.fds;
        (store.as_raw_fd(), lookup.as_raw_fd(), load.as_raw_fd())
    }

    /// Begins to store objects; gives the task's number.
    fn submit_store(&self, keys: &Bound<'_, PyAny>, objects: &Bound<'_, PyAny>) -> PyResult<u64> {
        store::submit(self, keys, objects)
    }

    /// The store tasks that are complete: number, whether all objects are stored, and bytes added.
    fn pop_stores(&self) -> Vec<(u64, bool, u64)> {
        store::pop(self)
    }

    /// Looks keys up and pins those that are there; gives the task's number.
    fn submit_lookup(&self, keys: &Bound<'_, PyAny>) -> PyResult<u64> {
        lookup::submit(self, keys)
    }

    /// The places of the keys that were found, once; `None` before the task is complete.
    fn take_lookup(&self, task: u64) -> Option<Places> {
        lookup::take(self, task)
    }

    /// Releases a pin of each key. Blocks (without the GIL) for a load task of exactly these keys that is under way: the host has
    /// given it up, and will use its memory again when this returns.
    fn unpin(&self, py: Python<'_>, keys: &Bound<'_, PyAny>) -> PyResult<()> {
        lookup::unpin(self, py, keys)
    }

    /// Begins to load objects; gives the task's number.
    fn submit_load(&self, keys: &Bound<'_, PyAny>, objects: &Bound<'_, PyAny>) -> PyResult<u64> {
        load::submit(self, keys, objects)
    }

    /// The places of the objects that were loaded, once; `None` before the task is complete.
    fn take_load(&self, task: u64) -> Option<Places> {
        load::take(self, task)
    }

    /// Deletes objects that nobody uses, and waits (without the GIL) until listeners have heard of it. Gives how many were deleted,
    /// not there, and kept because they are in use or an error came up.
    fn delete(&self, py: Python<'_>, keys: &Bound<'_, PyAny>) -> PyResult<(usize, usize, usize)> {
        delete::delete(self, py, keys)
    }

    /// Bytes in use, the capacity (0 for none), and bytes by salt.
    fn usage<'py>(&self, py: Python<'py>) -> PyResult<(u64, u64, Bound<'py, PyDict>)> {
        let usage = self.handle.with(Engine::usage).map_err(|error| raise(&error))?;
        let by_salt = PyDict::new(py);
        for (salt, bytes) in &usage.bytes_by_salt {
            by_salt.set_item(&**salt, bytes)?;
        }
        Ok((usage.total_bytes_used, usage.total_capacity_bytes, by_salt))
    }

    /// What the engine says of itself, as JSON.
    fn status_json(&self) -> PyResult<String> {
        let status = self.handle.with(Engine::status).map_err(|error| raise(&error))?;
        serde_json::to_string(&status).map_err(|error| ConfigError::new_err(error.to_string()))
    }

    /// Keys and objects that could not be used, so far: keys without a valid file name, objects without memory.
    fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// A page of objects, as keys and sizes, and where the next begins.
    #[pyo3(signature = (model_name, page_size, cursor))]
    fn list_page<'py>(
        &self,
        py: Python<'py>,
        model_name: Option<&str>,
        page_size: usize,
        cursor: u64,
    ) -> PyResult<Page<'py>> {
        let list = || self.handle.with(|engine| engine.list(ListCursor::from(cursor), page_size, model_name));
        let page = py.detach(list).map_err(|error| raise(&error))?;
        let mut writer = KeyWriter::new(self.make_key.bind(py).clone());
        let objects = page.objects.iter().map(|(key, bytes)| Ok((writer.write(key)?, *bytes)));
        Ok((objects.collect::<PyResult<_>>()?, page.next.map(u64::from)))
    }

    /// Tells `callback(kind, keys, sizes)` of all objects that there are, the least recently used first, and of every change from
    /// then on. Blocks (without the GIL) until it has heard of the former.
    fn subscribe(&self, py: Python<'_>, callback: Py<PyAny>) -> PyResult<()> {
        let listener = Arc::new(PyListener::new(callback, self.make_key.clone_ref(py)));
        let subscribe = |engine: &Engine| engine.subscribe(listener).map(|()| engine.event_mark());
        // The GIL is given away before the engine is asked: its event thread may want it first.
        let replayed = py.detach(|| {
            let mark = self.handle.with(subscribe)??;
            mark.wait();
            Ok(())
        });
        replayed.map_err(|error: saltern::Error| raise(&error))
    }

    /// Closes: blocks (without the GIL) until the kernel is done with the arena. Tasks that were under way are complete then.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.handle.close());
    }
}

/// The least padding that a file may have: that of a page, by which every adapter with O_DIRECT rounds up.
const PADDING_BYTES_MIN: u64 = 4096;

fn duplicate_fds(engine: &Engine) -> PyResult<[OwnedFd; 3]> {
    let duplicate = |class| {
        let fd = engine.event_fd(class).try_clone_to_owned();
        fd.map_err(|error| PyOSError::new_err(format!("an event descriptor: {error}")))
    };
    Ok([duplicate(Class::Store)?, duplicate(Class::Lookup)?, duplicate(Class::Load)?])
}

/// The keys that are keys, with the memory of their objects; and their places, unless that is all of the batch.
///
/// Whatever cannot be used is left out, and fails alone: to raise here would end the thread of the host that submits.
fn pair(
    mount: &Mount,
    keys: Keys,
    objects: &Bound<'_, PyAny>,
    whole_slot: bool,
    writable: bool,
) -> (Vec<(ObjectKey, Buffer)>, Option<Vec<usize>>) {
    let count = keys.count();
    let mut batch = Vec::with_capacity(keys.keys.len());
    let mut places = Vec::with_capacity(keys.keys.len());
    let at = keys.places();
    let list = objects.cast_exact::<PyList>().ok();
    for (key, place) in keys.keys.into_iter().zip(at) {
        let object = list.map_or_else(|| objects.get_item(place), |list| list.get_item(place));
        match object.and_then(|object| lend_memory_object(&object, whole_slot, writable)) {
            Ok(buffer) => {
                batch.push((key, buffer));
                places.push(place);
            }
            Err(error) => error.write_unraisable(objects.py(), None),
        }
    }
    mount.count_refused(count - batch.len());
    let is_all = batch.len() == count;
    (batch, (!is_all).then_some(places))
}

impl Mount {
    fn count_refused(&self, count: usize) {
        self.refused.fetch_add(count as u64, Ordering::Relaxed);
    }

    fn next_task(&self) -> u64 {
        self.next_task.fetch_add(1, Ordering::Relaxed)
    }

    /// Tells whoever polls that there is something to take.
    fn ring(&self, class: Class) {
        let fd = match class {
            Class::Store => &self.fds[0],
            Class::Lookup => &self.fds[1],
            _ => &self.fds[2],
        };
        crate::bell::ring_fd(fd.as_fd());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // The event thread may be waiting for the GIL, which this thread has: closing waits for that thread.
        Python::try_attach(|py| py.detach(|| self.handle.close()));
    }
}
