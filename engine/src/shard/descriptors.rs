//! Descriptors of objects, kept open: a load of one costs neither open nor close, and a recycled file needs no open.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use lru::LruCache;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, getrlimit};

use crate::config::Config;
use crate::integrity::Stamp;
use crate::key::ObjectKey;

/// The default number of descriptors kept open: one part of this many of what the process may have, at most so many.
const OPEN_FILES_SHARE: usize = 4;
const OPEN_FILES_MAX: usize = 8192;

/// Descriptors that the process may need beside the cached ones, when its table is made large enough for all.
const OTHER_DESCRIPTORS: usize = 1024;

/// Descriptors of objects that the engine may keep open; never all that the process may have.
pub(super) fn open_files(config: &Config) -> usize {
    let default = || (descriptor_limit() / OPEN_FILES_SHARE).min(OPEN_FILES_MAX);
    config.open_files.map_or_else(default, |wanted| wanted.min(descriptor_limit() / 2))
}

fn descriptor_limit() -> usize {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft as usize)
}

/// Makes the process's descriptor table as large as it will be needed. The table grows by doubling, and the thread that
/// makes it grow waits for an RCU grace period (10 to 20 ms each time, measured): better here, once, than in the first
/// stores and loads. Blocks for that long. A failure costs only time later.
pub(crate) fn reserve_descriptors(any: impl AsFd, config: &Config) {
    let highest = (open_files(config) + OTHER_DESCRIPTORS).min(descriptor_limit().saturating_sub(1));
    if let Ok(duplicate) = fcntl(any, FcntlArg::F_DUPFD_CLOEXEC(highest as i32)) {
        let _ = nix::unistd::close(duplicate);
    }
}

/// An open object.
#[derive(Clone)]
pub(super) struct Opened {
    pub(super) fd: Rc<OwnedFd>,
    /// Where its file is.
    pub(super) volume: usize,
    /// What its stamp said, when integrity is on.
    pub(super) stamp: Option<Stamp>,
}

/// The most recently used descriptors of one shard. The shard takes an entry out before the object's file is deleted or
/// recycled, so a cached descriptor is always its key's.
pub(super) struct Descriptors(Option<LruCache<ObjectKey, Opened, foldhash::fast::RandomState>>);

impl Descriptors {
    /// At most `limit`; none when it is 0.
    pub(super) fn new(limit: usize) -> Self {
        let hasher = foldhash::fast::RandomState::default();
        Self(NonZeroUsize::new(limit).map(|limit| LruCache::with_hasher(limit, hasher)))
    }

    pub(super) fn get(&mut self, key: &ObjectKey) -> Option<Opened> {
        self.0.as_mut()?.get(key).cloned()
    }

    pub(super) fn put(&mut self, key: ObjectKey, opened: Opened) {
        if let Some(cache) = &mut self.0 {
            cache.push(key, opened);
        }
    }

    pub(super) fn take(&mut self, key: &ObjectKey) -> Option<Opened> {
        self.0.as_mut()?.pop(key)
    }

    /// Closes those of a volume.
    pub(super) fn lose(&mut self, volume: usize) {
        if let Some(cache) = &mut self.0 {
            let lost: Vec<_> =
                cache.iter().filter(|(_, opened)| opened.volume == volume).map(|(key, _)| key.clone()).collect();
            lost.iter().for_each(|key| drop(cache.pop(key)));
        }
    }

    /// Closes the least recently used one; false when there is none. For when the process is out of descriptors.
    pub(super) fn give_back(&mut self) -> bool {
        self.0.as_mut().is_some_and(|cache| cache.pop_lru().is_some())
    }
}
