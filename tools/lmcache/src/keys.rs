//! Keys between Python and the engine.
//!
//! Hosts hand in objects with the five attributes of LMCache's `ObjectKey`, in batches of a hundred and more, and lookups are
//! to cost well below a microsecond a key. So attributes are read with interned names, and what many keys have in
//! common (model, rank, group, salt) becomes one scope that is found again: by the identity of its parts from one key of a batch to the
//! next, and in a bounded table else.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyInt, PyList, PyString};
use saltern::{KeyError, ObjectKey, Scope};

use crate::errors::InvalidKey;

/// Most scopes that are kept for later batches; past it the table starts anew.
const SCOPES_MAX: usize = 65_536;

/// Identity of one object: the model, the slice of its KV cache, the object group, the hash of the chunk's content, and the
/// salt that keeps tenants apart.
///
/// Two keys are equal when all five parts are. Hashable and immutable.
#[pyclass(frozen, eq, hash, module = "saltern", name = "Key")]
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct PyKey(pub(crate) ObjectKey);

#[pymethods]
impl PyKey {
    #[new]
    #[pyo3(signature = (model_name, chunk_hash, kv_rank=0, object_group_id=0, cache_salt=""))]
    fn new(
        model_name: &str,
        chunk_hash: &[u8],
        kv_rank: u32,
        object_group_id: u32,
        cache_salt: &str,
    ) -> PyResult<Self> {
        ObjectKey::new(model_name, kv_rank, object_group_id, chunk_hash, cache_salt)
            .map(Self)
            .map_err(|error| InvalidKey::new_err(error.to_string()))
    }

    /// Name of the model, as the serving engine knows it.
    #[getter]
    fn model_name(&self) -> &str {
        self.0.model_name()
    }

    /// Hash of the chunk's content.
    #[getter]
    fn chunk_hash<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.chunk_hash().as_bytes())
    }

    /// Slice of the KV cache: world size, global rank, local world size and local rank, 8 bits each.
    #[getter]
    fn kv_rank(&self) -> u32 {
        self.0.kv_rank()
    }

    /// The object group.
    #[getter]
    fn object_group_id(&self) -> u32 {
        self.0.object_group_id()
    }

    /// The isolation unit (a tenant); empty for none.
    #[getter]
    fn cache_salt(&self) -> &str {
        self.0.cache_salt()
    }

    fn __repr__(&self) -> String {
        format!("Key({})", self.0)
    }
}

/// The keys of one batch.
pub(crate) struct Keys {
    /// Those that are keys, in order.
    pub(crate) keys: Vec<ObjectKey>,
    /// Place in the batch and reason of those that are none; mostly empty.
    pub(crate) refused: Vec<(usize, String)>,
}

impl Keys {
    /// Number of keys in the batch as it was handed in.
    pub(crate) fn count(&self) -> usize {
        self.keys.len() + self.refused.len()
    }

    /// Places in the batch of the keys that are keys, in order.
    pub(crate) fn places(&self) -> impl Iterator<Item = usize> + use<> {
        let refused: Vec<usize> = self.refused.iter().map(|(place, _)| *place).collect();
        let mut next_refused = 0;
        (0..self.count()).filter(move |place| {
            let is_refused = refused.get(next_refused) == Some(place);
            next_refused += usize::from(is_refused);
            !is_refused
        })
    }

    /// All of them.
    ///
    /// # Errors
    /// `InvalidKey` for the first that is none.
    pub(crate) fn all(self) -> PyResult<Vec<ObjectKey>> {
        match self.refused.first() {
            Some((place, reason)) => Err(InvalidKey::new_err(format!("key {place}: {reason}"))),
            None => Ok(self.keys),
        }
    }
}

type ScopeParts = (u32, u32, u32, u32);

#[derive(Default)]
struct Known {
    /// Numbers of model names and salts, across batches.
    names: HashMap<String, u32, foldhash::fast::RandomState>,
    scopes: HashMap<ScopeParts, Arc<Scope>, foldhash::fast::RandomState>,
}

impl Known {
    fn name(&mut self, text: &str) -> u32 {
        if let Some(number) = self.names.get(text) {
            return *number;
        }
        let number = self.names.len() as u32;
        self.names.insert(text.to_owned(), number);
        number
    }

    fn scope(
        &mut self,
        model_name: &str,
        kv_rank: u32,
        object_group_id: u32,
        cache_salt: &str,
    ) -> Result<Arc<Scope>, KeyError> {
        if self.scopes.len() > SCOPES_MAX || self.names.len() > SCOPES_MAX {
            *self = Self::default();
        }
        let id = (self.name(model_name), kv_rank, object_group_id, self.name(cache_salt));
        if let Some(scope) = self.scopes.get(&id) {
            return Ok(scope.clone());
        }
        let scope = Scope::new(model_name, kv_rank, object_group_id, cache_salt)?;
        self.scopes.insert(id, scope.clone());
        Ok(scope)
    }
}

/// What the last key of the batch had in its scope: mostly the next one has the same objects.
struct Last<'py> {
    model: Bound<'py, PyAny>,
    rank: Bound<'py, PyAny>,
    group: Bound<'py, PyAny>,
    salt: Bound<'py, PyAny>,
    scope: Arc<Scope>,
}

/// Reads keys. Thread-safe.
#[derive(Default)]
pub(crate) struct KeyReader(Mutex<Known>);

impl KeyReader {
    /// The keys of a batch. One that is not valid is refused by itself.
    ///
    /// # Errors
    /// Only when `batch` is no sequence.
    pub(crate) fn read<'py>(&self, batch: &Bound<'py, PyAny>) -> PyResult<Keys> {
        let mut keys = Vec::with_capacity(batch.len()?);
        let mut refused = Vec::new();
        let mut last = None;
        let mut read = |place, key: &Bound<'py, PyAny>| match self.read_one(key, &mut last) {
            Ok(key) => keys.push(key),
            Err(error) => refused.push((place, error.value(key.py()).to_string())),
        };
        // Of lists, which hosts hand in, no iterator has to be made.
        if let Ok(list) = batch.cast_exact::<PyList>() {
            list.iter().enumerate().for_each(|(place, key)| read(place, &key));
        } else {
            for (place, key) in batch.try_iter()?.enumerate() {
                read(place, &key?);
            }
        }
        Ok(Keys { keys, refused })
    }

    fn read_one<'py>(&self, key: &Bound<'py, PyAny>, last: &mut Option<Last<'py>>) -> PyResult<ObjectKey> {
        if let Ok(key) = key.cast_exact::<PyKey>() {
            return Ok(key.get().0.clone());
        }
        let py = key.py();
        let chunk_hash = key.getattr(intern!(py, "chunk_hash"))?;
        let model = key.getattr(intern!(py, "model_name"))?;
        let rank = key.getattr(intern!(py, "kv_rank"))?;
        let group = key.getattr(intern!(py, "object_group_id"))?;
        let salt = key.getattr(intern!(py, "cache_salt"))?;
        let same = |last: &&Last<'py>| {
            last.model.is(&model) && last.salt.is(&salt) && last.rank.is(&rank) && last.group.is(&group)
        };
        let scope = match last.as_ref().filter(same) {
            Some(last) => &last.scope,
            None => {
                let scope = self.scope(&model, &rank, &group, &salt)?;
                &last.insert(Last { model, rank, group, salt, scope }).scope
            }
        };
        let chunk_hash = chunk_hash.cast::<PyBytes>()?;
        scope.key(chunk_hash.as_bytes()).map_err(|error| PyValueError::new_err(error.to_string()))
    }

    fn scope(
        &self,
        model: &Bound<'_, PyAny>,
        rank: &Bound<'_, PyAny>,
        group: &Bound<'_, PyAny>,
        salt: &Bound<'_, PyAny>,
    ) -> PyResult<Arc<Scope>> {
        let model = model.cast::<PyString>()?.to_cow()?;
        let salt = salt.cast::<PyString>()?.to_cow()?;
        let (rank, group) = (number("kv_rank", rank)?, number("object_group_id", group)?);
        // Nothing of Python is touched with the lock held: what runs there could want it.
        let scope = self.0.lock().scope(&model, rank, group, &salt);
        scope.map_err(|error| PyValueError::new_err(error.to_string()))
    }
}

fn number(part: &str, value: &Bound<'_, PyAny>) -> PyResult<u32> {
    let whole = value.cast::<PyInt>().map_err(|_| PyTypeError::new_err(format!("{part} is not an int")))?;
    whole.extract().map_err(|_| PyValueError::new_err(format!("{part} {value} is not in 0..2**32")))
}

/// Makes a host's keys of the engine's.
pub(crate) struct KeyWriter<'py> {
    /// Called with chunk hash, model, rank, group and salt.
    make: Bound<'py, PyAny>,
    scope: Option<(Arc<Scope>, [Bound<'py, PyAny>; 4])>,
}

impl<'py> KeyWriter<'py> {
    pub(crate) fn new(make: Bound<'py, PyAny>) -> Self {
        Self { make, scope: None }
    }

    pub(crate) fn write(&mut self, key: &ObjectKey) -> PyResult<Bound<'py, PyAny>> {
        let py = self.make.py();
        if !self.scope.as_ref().is_some_and(|(scope, _)| Arc::ptr_eq(scope, key.scope())) {
            let scope = key.scope();
            let parts = [
                PyString::intern(py, scope.model_name()).into_any(),
                scope.kv_rank().into_pyobject(py)?.into_any(),
                scope.object_group_id().into_pyobject(py)?.into_any(),
                PyString::intern(py, scope.cache_salt()).into_any(),
            ];
            self.scope = Some((scope.clone(), parts));
        }
        let Some((_, [model, rank, group, salt])) = &self.scope else { unreachable!("it was set above") };
        self.make.call1((PyBytes::new(py, key.chunk_hash().as_bytes()), model, rank, group, salt))
    }
}
