//! Events of the engine, told to Python.

use pyo3::prelude::*;
use pyo3::types::PyList;
use saltern::{Event, EventKind, Listener};

use crate::keys::KeyWriter;

/// Calls `callback(kind, keys, sizes)` with runs of events of one kind: `recovered`, `stored`, `accessed` or `deleted`.
///
/// On the engine's event thread. An exception of the callback is reported as unraisable and goes no further: a listener that
/// fails must not take the accounting of others with it.
pub(crate) struct PyListener {
    callback: Py<PyAny>,
    make_key: Py<PyAny>,
}

impl PyListener {
    pub(crate) fn new(callback: Py<PyAny>, make_key: Py<PyAny>) -> Self {
        Self { callback, make_key }
    }

    fn tell(&self, py: Python<'_>, kind: &str, events: &[Event]) -> PyResult<()> {
        let mut writer = KeyWriter::new(self.make_key.bind(py).clone());
        let keys = PyList::empty(py);
        let sizes = PyList::empty(py);
        for event in events {
            keys.append(writer.write(&event.key)?)?;
            sizes.append(event.bytes)?;
        }
        self.callback.call1(py, (kind, keys, sizes)).map(drop)
    }
}

fn kind_name(kind: EventKind) -> Option<&'static str> {
    match kind {
        EventKind::Recovered => Some("recovered"),
        EventKind::Stored => Some("stored"),
        EventKind::Accessed => Some("accessed"),
        // To the host both say: forget this key.
        EventKind::Deleted | EventKind::Absent => Some("deleted"),
        _ => None,
    }
}

impl Listener for PyListener {
    fn on_events(&self, events: &[Event]) {
        // None: the interpreter is going away, and nobody is left to tell.
        Python::try_attach(|py| {
            for run in events.chunk_by(|a, b| a.kind == b.kind) {
                let Some(kind) = kind_name(run[0].kind) else { continue };
                if let Err(error) = self.tell(py, kind, run) {
                    error.write_unraisable(py, Some(self.callback.bind(py)));
                }
            }
        });
    }
}
