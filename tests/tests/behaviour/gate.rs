//! Holds a thread of the engine inside a callback, so that a test has its moment for as long as it takes.

use std::sync::{Arc, Condvar, Mutex};

/// Callbacks wait here until it is opened.
#[derive(Default)]
pub(crate) struct Gate {
    is_open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn pass(&self) {
        let is_open = self.is_open.lock().expect("not poisoned");
        drop(self.changed.wait_while(is_open, |is_open| !*is_open).expect("not poisoned"));
    }

    fn open(&self) {
        *self.is_open.lock().expect("not poisoned") = true;
        self.changed.notify_all();
    }
}

/// Opens the gate, also when the test fails: else the engine could not close.
pub(crate) struct OpenOnDrop(pub(crate) Arc<Gate>);

impl Drop for OpenOnDrop {
    fn drop(&mut self) {
        self.0.open();
    }
}
