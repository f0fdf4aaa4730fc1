//! Descriptors of objects, kept open: a load of one costs neither open nor close, and a recycled file needs no open.

use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use lru::LruCache;

use crate::integrity::Stamp;
use crate::key::ObjectKey;

/// An open object.
#[derive(Clone)]
pub(super) struct Opened {
    pub(super) fd: Rc<OwnedFd>,
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

    /// Closes the least recently used one; false when there is none. For when the process is out of descriptors.
    pub(super) fn give_back(&mut self) -> bool {
        self.0.as_mut().is_some_and(|cache| cache.pop_lru().is_some())
    }
}
