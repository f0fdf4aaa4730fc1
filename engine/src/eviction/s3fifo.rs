//! S3-FIFO (Yang, Zhang, Qiu, Yue, Vigfusson: "FIFO queues are all you need for cache eviction", SOSP 2023), by bytes.
//!
//! ```text
//! new --> small (a tenth) --used more than once--> main --used since its last turn--> front of main
//!             |                                       |
//!             +--> evicted, remembered as a ghost     +--> evicted
//! a ghost that comes back enters main
//! ```

use super::ghosts::Ghosts;
use super::queued::{COUNT_MAX, DEFERRED, Queued};
use super::{Id, Object, Policy};

const SMALL: usize = 0;
const MAIN: usize = 1;

/// The small queue's share of the capacity: one part of this many.
const SMALL_SHARE: u64 = 10;

/// Uses in the small queue from which an object is moved to the main one instead of being evicted.
const PROMOTED_FROM: u8 = 2;

/// See the module.
pub struct S3Fifo {
    small_bytes: u64,
    ghost_bytes: u64,
    objects: Queued,
    ghosts: Ghosts,
}

impl S3Fifo {
    /// An empty one, for objects of this many bytes in all.
    pub fn new(capacity_bytes: u64) -> Self {
        let small_bytes = capacity_bytes / SMALL_SHARE;
        Self {
            small_bytes,
            // As many ghosts as the main queue holds objects.
            ghost_bytes: capacity_bytes - small_bytes,
            objects: Queued::default(),
            ghosts: Ghosts::default(),
        }
    }
}

impl Policy for S3Fifo {
    fn insert(&mut self, object: Object) {
        let queue = if self.ghosts.take(object.hash).is_some() { MAIN } else { SMALL };
        self.objects.insert(queue, object);
    }

    fn access(&mut self, id: Id) {
        if self.objects.queue(id).is_some() {
            let count = self.objects.count(id);
            self.objects.set_count(id, (count + 1).min(COUNT_MAX));
        }
    }

    fn remove(&mut self, id: Id) {
        self.objects.remove(id);
    }

    fn victim(&mut self) -> Option<Id> {
        loop {
            let small = self.objects.oldest(SMALL);
            let main = self.objects.oldest(MAIN);
            match (small, main) {
                (Some(id), main) if main.is_none() || self.objects.bytes(SMALL) >= self.small_bytes => {
                    if self.objects.count(id) < PROMOTED_FROM {
                        return Some(id);
                    }
                    self.objects.requeue(MAIN, id, 0);
                }
                (_, Some(id)) => match self.objects.count(id) {
                    0 => return Some(id),
                    // Each turn costs a use, of which there are at most three: the loop ends.
                    count => self.objects.requeue(MAIN, id, count - 1),
                },
                (_, None) => return None,
            }
        }
    }

    fn evict(&mut self, id: Id) {
        let queue = self.objects.queue(id);
        if let Some((hash, bytes)) = self.objects.remove(id)
            && queue == Some(SMALL)
        {
            self.ghosts.insert(0, hash, bytes);
            self.ghosts.shrink(0, self.ghost_bytes);
        }
    }

    fn defer(&mut self, id: Id) {
        if self.objects.queue(id).is_some() {
            self.objects.requeue(DEFERRED, id, 0);
        }
    }

    fn resume(&mut self) {
        while let Some(id) = self.objects.oldest(DEFERRED) {
            let count = self.objects.count(id);
            self.objects.requeue(MAIN, id, (count + 1).min(COUNT_MAX));
        }
    }

    fn len(&self) -> usize {
        self.objects.len()
    }
}
