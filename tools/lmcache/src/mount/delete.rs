//! What happens on a delete: in chunks, so that loads get in between, and loads are not refused for a full queue.

use pyo3::prelude::*;
use saltern::{DeleteReport, Error, ObjectKey};

use super::Mount;
use crate::errors::raise;

/// Most keys that are queued at a time. An eviction of the daemon may name a fifth of all keys in one call.
const CHUNK_KEYS: usize = 1024;

pub(super) fn delete(mount: &Mount, py: Python<'_>, keys: &Bound<'_, PyAny>) -> PyResult<(usize, usize, usize)> {
    let keys = mount.reader.read(keys)?;
    let refused = keys.refused.len();
    let (deleted, absent, kept) = py.detach(|| delete_all(mount, &keys.keys)).map_err(|error| raise(&error))?;
    Ok((deleted, absent, kept + refused))
}

fn delete_all(mount: &Mount, keys: &[ObjectKey]) -> Result<(usize, usize, usize), Error> {
    let (mut deleted, mut absent, mut kept) = (0, 0, 0);
    for chunk in keys.chunks(CHUNK_KEYS) {
        let DeleteReport { results, .. } = mount.handle.with(|engine| engine.delete(chunk))?.wait();
        for result in results {
            match result {
                Ok(_) => deleted += 1,
                Err(Error::NotFound) => absent += 1,
                Err(_) => kept += 1,
            }
        }
    }
    mount.handle.with(|engine| engine.event_mark())?.wait();
    Ok((deleted, absent, kept))
}
