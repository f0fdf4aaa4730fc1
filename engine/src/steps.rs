//! Places where two operations on one key can meet. Tests hold a thread there, so that a race has the order that they
//! want; without a hook a place costs one branch.

use std::fmt;
use std::sync::Arc;

use crate::key::ObjectKey;

/// A place that a thread has come to. It holds no lock there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// A store has claimed its key and reserved its bytes; its shard does not know of it. On the caller's thread.
    Reserved,
    /// The disk was asked for a key that the index lacks or knows from a snapshot alone, and has answered; the index was not told yet.
    Looked,
    /// A load has found its key, and will open its file. On the shard.
    Loading,
    /// A store's file has its name; the index was not told yet. On the shard.
    Published,
    /// A deleted object's name is gone; the index was not told yet. On the shard.
    Removed,
}

type Hook = dyn Fn(Step, &ObjectKey) + Send + Sync;

/// Called at each step, if there is one.
#[derive(Clone, Default)]
pub struct Steps(Option<Arc<Hook>>);

impl Steps {
    /// Calls `hook` at every step, on the thread that has come there.
    pub fn new(hook: impl Fn(Step, &ObjectKey) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hook)))
    }

    pub(crate) fn at(&self, step: Step, key: &ObjectKey) {
        if let Some(hook) = &self.0 {
            hook(step, key);
        }
    }
}

impl fmt::Debug for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Steps(hooked)" } else { "Steps" })
    }
}
