//! The engine as LMCache's native connector interface asks for it: wire keys, memory views, one descriptor.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use saltern::layout::wire;
use saltern::{Buffer, DeleteReport, Engine, Error, LoadReport, LookupReport, ObjectKey, StoreReport};

use crate::bell::{Bell, Pending};
use crate::errors::{ConfigError, raise};
use crate::handle::Handle;
use crate::memory::lend_object;
use crate::options::Options;

/// A padded slot is at most this much longer than what it holds.
const PADDING_BYTES: u64 = 4096;

/// Number, whether all keys succeeded, the first error's text, and a bool for each key (not for a set).
type Completion = (u64, bool, String, Option<Vec<bool>>);

enum Task {
    Get(Pending<LoadReport>),
    Set(Pending<StoreReport>),
    Exists(Pending<LookupReport>, Vec<ObjectKey>),
    Delete(Pending<DeleteReport>),
}

/// What a completion says: whether it failed with its keys, and whether it names them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Set,
    Get,
    Question,
}

/// What was submitted, and the places of those of its keys that are keys.
struct Entry {
    /// `None` when the engine was closed.
    task: Option<Task>,
    kind: Kind,
    count: usize,
    places: Vec<usize>,
    refused: Option<String>,
}

/// An engine under LMCache's native connector interface. Thread-safe; submits return at once.
#[pyclass(frozen, subclass, module = "saltern._saltern")]
pub(crate) struct Connector {
    handle: Handle,
    bell: Arc<Bell>,
    next: AtomicU64,
    entries: Mutex<BTreeMap<u64, Entry>>,
}

/// The keys of a batch, the places of those that are keys, and why the first is none.
struct WireKeys {
    keys: Vec<ObjectKey>,
    places: Vec<usize>,
    count: usize,
    refused: Option<String>,
}

fn read_keys(texts: &[String]) -> WireKeys {
    let mut read = WireKeys { keys: Vec::new(), places: Vec::new(), count: texts.len(), refused: None };
    for (place, text) in texts.iter().enumerate() {
        match wire::decode(text) {
            Ok(key) => {
                read.keys.push(key);
                read.places.push(place);
            }
            Err(error) => drop(read.refused.get_or_insert_with(|| format!("{text:?}: {error}"))),
        }
    }
    read
}

#[pymethods]
impl Connector {
    #[new]
    fn new(py: Python<'_>, options_json: &str) -> PyResult<Self> {
        let options = Options::parse(options_json).map_err(ConfigError::new_err)?;
        options.without_gpus().map_err(ConfigError::new_err)?;
        let mut config = options.config().map_err(ConfigError::new_err)?;
        config.padding_bytes = PADDING_BYTES;
        let quotas = options.quotas().map_err(ConfigError::new_err)?;
        let handle = py.detach(|| Handle::open(config, &quotas)).map_err(|error| raise(&error))?;
        Ok(Self { handle, bell: Bell::new()?, next: AtomicU64::new(1), entries: Mutex::default() })
    }

    /// A descriptor that is readable when there is something to drain.
    fn event_fd(&self) -> i32 {
        self.bell.raw_fd()
    }

    /// Begins to load objects into the buffers; gives the batch's number.
    fn submit_batch_get(&self, keys: Vec<String>, buffers: Vec<Bound<'_, PyAny>>) -> PyResult<u64> {
        let (read, batch) = pair(&keys, &buffers, true)?;
        self.submit(read, Kind::Get, |engine, bell| Task::Get(Pending::new(engine.load(batch), bell)))
    }

    /// Begins to store objects; gives the batch's number. A key that comes twice is stored once.
    fn submit_batch_set(&self, keys: Vec<String>, buffers: Vec<Bound<'_, PyAny>>) -> PyResult<u64> {
        let (read, batch) = pair(&keys, &buffers, false)?;
        self.submit(read, Kind::Set, |engine, bell| Task::Set(Pending::new(engine.store(batch), bell)))
    }

    /// Begins to look keys up, without pinning them; gives the batch's number.
    fn submit_batch_exists(&self, keys: Vec<String>) -> PyResult<u64> {
        let read = read_keys(&keys);
        let keys = read.keys.clone();
        self.submit(read, Kind::Question, |engine, bell| {
            Task::Exists(Pending::new(engine.lookup_and_pin(&keys), bell), keys)
        })
    }

    /// Begins to delete objects; gives the batch's number.
    fn submit_batch_delete(&self, keys: Vec<String>) -> PyResult<u64> {
        let read = read_keys(&keys);
        let keys = read.keys.clone();
        self.submit(read, Kind::Question, |engine, bell| Task::Delete(Pending::new(engine.delete(&keys), bell)))
    }

    /// The batches that are complete, each once: number, whether every key succeeded, the first error's text, and for
    /// gets, lookups and deletes a bool for each key.
    fn drain_completions(&self) -> Vec<Completion> {
        self.bell.reset();
        let mut completions = Vec::new();
        let mut entries = self.entries.lock();
        let numbers: Vec<u64> = entries.keys().copied().collect();
        for number in numbers {
            let Some(entry) = entries.remove(&number) else { continue };
            match self.complete(number, entry) {
                Ok(completion) => completions.push(completion),
                Err(entry) => drop(entries.insert(number, *entry)),
            }
        }
        completions
    }

    /// What the engine says of itself, as JSON.
    fn status_json(&self) -> PyResult<String> {
        let status = self.handle.with(Engine::status).map_err(|error| raise(&error))?;
        serde_json::to_string(&status).map_err(|error| ConfigError::new_err(error.to_string()))
    }

    /// Closes: blocks (without the GIL) until the kernel is done with every buffer.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.handle.close());
    }
}

/// Keys with their buffers.
fn pair(
    texts: &[String],
    buffers: &[Bound<'_, PyAny>],
    writable: bool,
) -> PyResult<(WireKeys, Vec<(ObjectKey, Buffer)>)> {
    if texts.len() != buffers.len() {
        return Err(PyValueError::new_err(format!("{} keys but {} buffers", texts.len(), buffers.len())));
    }
    let read = read_keys(texts);
    let mut batch = Vec::with_capacity(read.keys.len());
    for (key, place) in read.keys.iter().zip(&read.places) {
        batch.push((key.clone(), lend_object(&buffers[*place], writable)?));
    }
    Ok((read, batch))
}

impl Connector {
    fn submit(&self, read: WireKeys, kind: Kind, begin: impl FnOnce(&Engine, &Arc<Bell>) -> Task) -> PyResult<u64> {
        let WireKeys { count, places, mut refused, .. } = read;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        // Held from before the submit: a batch that completes at once is found by whoever hears of it.
        let mut entries = self.entries.lock();
        let task = match self.handle.with(|engine| begin(engine, &self.bell)) {
            Ok(task) => Some(task),
            Err(error) => {
                refused.get_or_insert_with(|| error.to_string());
                self.bell.ring();
                None
            }
        };
        entries.insert(number, Entry { task, kind, count, places, refused });
        Ok(number)
    }

    /// What became of a batch, or the batch again where it is not complete.
    fn complete(&self, number: u64, entry: Entry) -> Result<Completion, Box<Entry>> {
        let Entry { task, kind, count, places, refused } = entry;
        let results = match task.map_or(Ok(Vec::new()), |task| self.results(task)) {
            Ok(results) => results,
            Err(task) => return Err(Box::new(Entry { task: Some(task), kind, count, places, refused })),
        };
        Ok(completion(number, count, &places, refused, &results, kind))
    }

    /// A result for each key, or the task again where it is not complete.
    fn results(&self, task: Task) -> Result<Vec<Result<(), Error>>, Task> {
        let without_bytes =
            |results: Vec<Result<u64, Error>>| results.into_iter().map(|result| result.map(drop)).collect();
        Ok(match task {
            Task::Get(pending) => without_bytes(pending.take().map_err(Task::Get)?.results),
            Task::Set(pending) => without_bytes(pending.take().map_err(Task::Set)?.results),
            Task::Delete(pending) => without_bytes(pending.take().map_err(Task::Delete)?.results),
            Task::Exists(pending, keys) => {
                let sizes = match pending.take() {
                    Ok(report) => report.sizes,
                    Err(pending) => return Err(Task::Exists(pending, keys)),
                };
                // This interface has no unlock, so nothing may stay pinned.
                let found: Vec<_> = keys.into_iter().zip(&sizes).filter_map(|(key, size)| size.map(|_| key)).collect();
                let _ = self.handle.with(|engine| engine.unpin(&found));
                sizes.iter().map(|size| size.map(drop).ok_or(Error::NotFound)).collect()
            }
        })
    }
}

fn completion(
    number: u64,
    count: usize,
    places: &[usize],
    refused: Option<String>,
    results: &[Result<(), Error>],
    kind: Kind,
) -> Completion {
    let mut bools = vec![false; count];
    for (place, result) in places.iter().zip(results) {
        bools[*place] = result.is_ok();
    }
    let first_error = refused.or_else(|| results.iter().find_map(|result| result.as_ref().err().map(Error::to_string)));
    let is_whole = bools.iter().all(|is_ok| *is_ok);
    // A lookup or a delete that finds nothing has not failed.
    let is_ok = is_whole || kind == Kind::Question;
    (number, is_ok, first_error.filter(|_| !is_ok).unwrap_or_default(), (kind != Kind::Set).then_some(bools))
}

impl Drop for Connector {
    fn drop(&mut self) {
        Python::try_attach(|py| py.detach(|| self.handle.close()));
    }
}
