//! The plain Python API: keys and buffers in, results out, for scripts and for hosts without an adapter of their own.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyDict, PyList};
use saltern::{Buffer, Engine, Error, ListCursor, ObjectKey};

use crate::errors::{ConfigError, raise};
use crate::gpu::{Gpus, Memory, describe};
use crate::handle::Handle;
use crate::keys::{KeyReader, PyKey};
use crate::memory::{lend_arena, lend_object};
use crate::options::Options;
use crate::pages::Registered;

/// One result of a batch: a number of bytes, or an exception object.
type Outcome<'py> = Bound<'py, PyAny>;

/// Keys and sizes, and where the next page begins.
type Page = (Vec<(PyKey, u64)>, Option<u64>);

#[pyclass(frozen, subclass, module = "saltern._saltern", name = "Engine")]
pub(crate) struct PyEngine {
    handle: Handle,
    reader: KeyReader,
    gpus: Gpus,
    /// Memory of the host's that the rings know. Dropped after the engine.
    registered: Mutex<Vec<Buffer>>,
}

#[pymethods]
impl PyEngine {
    #[new]
    fn new(py: Python<'_>, options_json: &str) -> PyResult<Self> {
        let options = Options::parse(options_json).map_err(ConfigError::new_err)?;
        if options.store_padded {
            return Err(ConfigError::new_err("store_padded: only LMCache's memory objects have slots to pad to"));
        }
        let config = options.config().map_err(ConfigError::new_err)?;
        let gpus = Gpus::new(options.device().map_err(ConfigError::new_err)?);
        let quotas = options.quotas().map_err(ConfigError::new_err)?;
        let handle = py.detach(|| Handle::open(config, &quotas)).map_err(|error| raise(&error))?;
        Ok(Self { handle, reader: KeyReader::default(), gpus, registered: Mutex::default() })
    }

    fn store(&self, py: Python<'_>, key: &Bound<'_, PyAny>, data: &Bound<'_, PyAny>) -> PyResult<u64> {
        let batch = self.batch(&one(key)?, &one(data)?, false)?;
        let results = self.store_batch(py, batch)?;
        first(results).map_err(|error| raise(&error))
    }

    fn store_many<'py>(
        &self,
        py: Python<'py>,
        keys: &Bound<'py, PyAny>,
        buffers: &Bound<'py, PyAny>,
    ) -> PyResult<Vec<Outcome<'py>>> {
        let batch = self.batch(keys, buffers, false)?;
        outcomes(py, self.store_batch(py, batch)?)
    }

    /// Loads into `into`, or into a new bytearray of the object's size.
    #[pyo3(signature = (key, into=None))]
    fn load<'py>(
        &self,
        py: Python<'py>,
        key: &Bound<'py, PyAny>,
        into: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Outcome<'py>> {
        let Some(into) = into else { return self.load_new(py, key) };
        let batch = self.batch(&one(key)?, &one(&into)?, true)?;
        first(self.load_batch(py, batch)?).map_err(|error| raise(&error))?;
        Ok(into)
    }

    fn load_many<'py>(
        &self,
        py: Python<'py>,
        keys: &Bound<'py, PyAny>,
        buffers: &Bound<'py, PyAny>,
    ) -> PyResult<Vec<Outcome<'py>>> {
        let batch = self.batch(keys, buffers, true)?;
        outcomes(py, self.load_batch(py, batch)?)
    }

    /// Makes memory known to cuFile (a block of a GPU's), or to io_uring (the host's).
    fn register(&self, py: Python<'_>, memory: &Bound<'_, PyAny>) -> PyResult<Registered> {
        if let Some(memory) = describe(memory)? {
            let bytes = memory.ranges.iter().map(|range| range.len).sum();
            return Ok(Registered::on_gpu(bytes, self.gpus.register(py, &self.handle, memory)?));
        }
        let buffer = lend_object(memory, false)?;
        let bytes = buffer.len();
        // It may take seconds, for which other threads of Python's go on: the lock is taken and given back without the GIL.
        let lend = || {
            let mut registered = self.registered.lock();
            // Kept whatever comes of it: some of the rings may know it already.
            registered.push(buffer);
            let arena = registered.last().map_or(&[][..], Buffer::as_slice);
            self.handle.with(|engine| lend_arena(engine, arena.as_ptr() as usize, bytes))?
        };
        py.detach(lend).map_err(|error| raise(&error))?;
        Ok(Registered::on_host(bytes))
    }

    #[pyo3(signature = (keys, *, pin=false))]
    fn lookup(&self, py: Python<'_>, keys: &Bound<'_, PyAny>, pin: bool) -> PyResult<Vec<Option<u64>>> {
        let keys = self.reader.read(keys)?.all()?;
        let ticket = self.with(|engine| engine.lookup_and_pin(&keys))?;
        let sizes = py.detach(|| ticket.wait()).sizes;
        if !pin {
            let found: Vec<ObjectKey> =
                keys.into_iter().zip(&sizes).filter_map(|(key, size)| size.map(|_| key)).collect();
            self.with(|engine| engine.unpin(&found))?;
        }
        Ok(sizes)
    }

    fn unpin(&self, keys: &Bound<'_, PyAny>) -> PyResult<usize> {
        let keys = self.reader.read(keys)?.all()?;
        self.with(|engine| engine.unpin(&keys))
    }

    fn delete<'py>(&self, py: Python<'py>, keys: &Bound<'py, PyAny>) -> PyResult<Vec<Outcome<'py>>> {
        let keys = self.reader.read(keys)?.all()?;
        let ticket = self.with(|engine| engine.delete(&keys))?;
        outcomes(py, py.detach(|| ticket.wait()).results)
    }

    fn usage<'py>(&self, py: Python<'py>) -> PyResult<(u64, u64, Bound<'py, PyDict>)> {
        let usage = self.with(Engine::usage)?;
        let by_salt = PyDict::new(py);
        for (salt, bytes) in &usage.bytes_by_salt {
            by_salt.set_item(&**salt, bytes)?;
        }
        Ok((usage.total_bytes_used, usage.total_capacity_bytes, by_salt))
    }

    /// Sets the most bytes of a salt (`None`: as the default), and gives what it was.
    fn set_quota(&self, py: Python<'_>, salt: &str, quota_bytes: Option<u64>) -> PyResult<Option<u64>> {
        let set = |engine: &Engine| match quota_bytes {
            Some(bytes) => engine.set_quota(salt, bytes),
            None => engine.remove_quota(salt),
        };
        py.detach(|| self.handle.with(set)).and_then(|set| set).map_err(|error| raise(&error))
    }

    /// The quotas that were set: bytes by salt.
    fn quotas(&self) -> PyResult<BTreeMap<String, u64>> {
        self.with(Engine::quotas)?.map_err(|error| raise(&error))
    }

    fn status_json(&self) -> PyResult<String> {
        let status = self.with(Engine::status)?;
        serde_json::to_string(&status).map_err(|error| ConfigError::new_err(error.to_string()))
    }

    /// A page of keys and sizes, and where the next begins.
    #[pyo3(signature = (model_name, page_size, cursor))]
    fn list_page(&self, py: Python<'_>, model_name: Option<&str>, page_size: usize, cursor: u64) -> PyResult<Page> {
        let list = || self.handle.with(|engine| engine.list(ListCursor::from(cursor), page_size, model_name));
        let page = py.detach(list).map_err(|error| raise(&error))?;
        let objects = page.objects.into_iter().map(|(key, bytes)| (PyKey(key), bytes));
        Ok((objects.collect(), page.next.map(u64::from)))
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.handle.close());
    }
}

impl PyEngine {
    fn with<R>(&self, work: impl FnOnce(&Engine) -> R) -> PyResult<R> {
        self.handle.with(work).map_err(|error| raise(&error))
    }

    fn batch(
        &self,
        keys: &Bound<'_, PyAny>,
        buffers: &Bound<'_, PyAny>,
        writable: bool,
    ) -> PyResult<Vec<(ObjectKey, Buffer)>> {
        let keys = self.reader.read(keys)?.all()?;
        if keys.len() != buffers.len()? {
            return Err(PyValueError::new_err(format!("{} keys but {} buffers", keys.len(), buffers.len()?)));
        }
        let mut lent = Vec::with_capacity(keys.len());
        for buffer in buffers.try_iter()? {
            let buffer = buffer?;
            lent.push(match describe(&buffer)? {
                Some(memory) => Err(memory),
                None => Ok(lend_object(&buffer, writable)?),
            });
        }
        // After all of them were described: see `gpu.rs`.
        let mut lender = self.gpus.lender(&self.handle);
        let py = buffers.py();
        let lend = |lent: Result<Buffer, Memory>| lent.or_else(|memory| lender.lend(py, memory, writable));
        let lent: Vec<Buffer> = lent.into_iter().map(lend).collect::<PyResult<_>>()?;
        Ok(keys.into_iter().zip(lent).collect())
    }

    fn store_batch(&self, py: Python<'_>, batch: Vec<(ObjectKey, Buffer)>) -> PyResult<Vec<Result<u64, Error>>> {
        let ticket = self.with(|engine| engine.store(batch))?;
        Ok(py.detach(|| ticket.wait()).results)
    }

    fn load_batch(&self, py: Python<'_>, batch: Vec<(ObjectKey, Buffer)>) -> PyResult<Vec<Result<u64, Error>>> {
        let ticket = self.with(|engine| engine.load(batch))?;
        Ok(py.detach(|| ticket.wait()).results)
    }

    fn load_new<'py>(&self, py: Python<'py>, key: &Bound<'py, PyAny>) -> PyResult<Outcome<'py>> {
        let keys = self.reader.read(&one(key)?)?.all()?;
        // Pinned, so that it is still there, and as long, when the memory for it is.
        let ticket = self.with(|engine| engine.lookup_and_pin(&keys))?;
        let size = py.detach(|| ticket.wait()).sizes.pop().flatten().ok_or_else(|| raise(&Error::NotFound))?;
        let loaded = PyByteArray::new_with(py, size as usize, |_| Ok(())).and_then(|bytes| {
            let buffer = lend_object(&bytes, true)?;
            first(self.load_batch(py, vec![(keys[0].clone(), buffer)])?).map_err(|error| raise(&error))?;
            Ok(bytes.into_any())
        });
        self.with(|engine| engine.unpin(&keys))?;
        loaded
    }
}

fn one<'py>(item: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    Ok(PyList::new(item.py(), [item])?.into_any())
}

fn first(results: Vec<Result<u64, Error>>) -> Result<u64, Error> {
    results.into_iter().next().unwrap_or(Err(Error::NotFound))
}

fn outcomes(py: Python<'_>, results: Vec<Result<u64, Error>>) -> PyResult<Vec<Outcome<'_>>> {
    let outcome = |result: Result<u64, Error>| match result {
        Ok(bytes) => Ok(bytes.into_pyobject(py)?.into_any()),
        Err(error) => Ok(raise(&error).into_value(py).into_bound(py).into_any()),
    };
    results.into_iter().map(outcome).collect()
}
