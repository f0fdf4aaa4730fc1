//! Places where two operations on one key can meet. Tests hold a thread there, so that a race has the order that they
//! want; without a hook a place costs one branch.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::key::ObjectKey;
use crate::layout::Layout;
use crate::ledger::AdapterUsage;

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

type CloseHook = dyn Fn(&[&Path], Layout, &AdapterUsage) + Send + Sync;

/// Called at each step, and when an engine closes, if there is something to call.
#[derive(Clone, Default)]
pub struct Steps {
    step: Option<Arc<Hook>>,
    close: Option<Arc<CloseHook>>,
}

impl Steps {
    /// Calls `hook` at every step, on the thread that has come there.
    pub fn new(hook: impl Fn(Step, &ObjectKey) + Send + Sync + 'static) -> Self {
        Self { step: Some(Arc::new(hook)), close: None }
    }

    /// Calls `hook` as well when an engine has ended all its work, with its directories and what it believes to be there; not when
    /// it has failed, does not know the directory yet, or its objects do not stay. May panic.
    pub fn and_at_close(self, hook: impl Fn(&[&Path], Layout, &AdapterUsage) + Send + Sync + 'static) -> Self {
        Self { close: Some(Arc::new(hook)), ..self }
    }

    pub(crate) fn at_close(&self, dirs: &[&Path], layout: Layout, usage: impl FnOnce() -> AdapterUsage) {
        if let Some(hook) = &self.close {
            hook(dirs, layout, &usage());
        }
    }

    pub(crate) fn at(&self, step: Step, key: &ObjectKey) {
        if let Some(hook) = &self.step {
            hook(step, key);
        }
    }
}

impl fmt::Debug for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.step.is_some() { "Steps(hooked)" } else { "Steps" })
    }
}
