//! ARC (Megiddo, Modha: "ARC: a self-tuning, low overhead replacement cache", FAST 2003), by bytes.
//!
//! Objects used once (T1) and more often (T2), each by last use, and the ghosts of either (B1, B2). What comes back from B1 says
//! that T1 is too small, from B2 that T2 is: `target`, T1's share, moves by the size of the object, more where the other
//! list of ghosts is longer. Bounds: T1 and B1 together the capacity, all four lists twice that.
//!
//! The paper evicts in the same step in which it admits; here the owner asks for victims when it likes, so the choice between T1
//! and T2 is made then.

use super::ghosts::Ghosts;
use super::queued::{DEFERRED, Queued};
use super::{Id, Object, Policy};

/// T1 and B1; T2 and B2.
const ONCE: usize = 0;
const OFTEN: usize = 1;

/// See the module.
pub struct Arc {
    capacity: u64,
    /// What T1 should have, `p` in the paper.
    target: u64,
    objects: Queued,
    ghosts: Ghosts,
}

impl Arc {
    /// An empty one, for objects of this many bytes in all.
    pub fn new(capacity_bytes: u64) -> Self {
        Self { capacity: capacity_bytes, target: 0, objects: Queued::default(), ghosts: Ghosts::default() }
    }

    /// Moves the target by an object that came back from the ghosts of `list`, when they had these bytes.
    fn learn(&mut self, list: usize, ghosts: [u64; 2], bytes: u64) {
        let step = bytes.saturating_mul((ghosts[1 - list] / ghosts[list].max(1)).max(1));
        self.target = match list {
            ONCE => self.target.saturating_add(step).min(self.capacity),
            _ => self.target.saturating_sub(step),
        };
    }

    fn shrink_ghosts(&mut self) {
        let (once, often) = (self.objects.bytes(ONCE), self.objects.bytes(OFTEN));
        self.ghosts.shrink(ONCE, self.capacity.saturating_sub(once));
        let others = once + often + self.ghosts.bytes(ONCE);
        self.ghosts.shrink(OFTEN, self.capacity.saturating_mul(2).saturating_sub(others));
    }
}

impl Policy for Arc {
    fn insert(&mut self, object: Object) {
        let ghosts = [ONCE, OFTEN].map(|list| self.ghosts.bytes(list));
        let queue = match self.ghosts.take(object.hash) {
            None => ONCE,
            Some(list) => {
                // The lists as they were with it.
                self.learn(list, ghosts, object.bytes);
                OFTEN
            }
        };
        self.objects.insert(queue, object);
        self.shrink_ghosts();
    }

    fn access(&mut self, id: Id) {
        if let Some(ONCE | OFTEN) = self.objects.queue(id) {
            self.objects.requeue(OFTEN, id, 0);
        }
    }

    fn remove(&mut self, id: Id) {
        self.objects.remove(id);
    }

    fn victim(&mut self) -> Option<Id> {
        let (once, often) = (self.objects.oldest(ONCE), self.objects.oldest(OFTEN));
        if self.objects.bytes(ONCE) > self.target { once.or(often) } else { often.or(once) }
    }

    fn evict(&mut self, id: Id) {
        let queue = self.objects.queue(id);
        if let Some((hash, bytes)) = self.objects.remove(id)
            && let Some(queue @ (ONCE | OFTEN)) = queue
        {
            self.ghosts.insert(queue, hash, bytes);
            self.shrink_ghosts();
        }
    }

    fn defer(&mut self, id: Id) {
        if self.objects.queue(id).is_some() {
            self.objects.requeue(DEFERRED, id, 0);
        }
    }

    fn resume(&mut self) {
        while let Some(id) = self.objects.oldest(DEFERRED) {
            self.objects.requeue(OFTEN, id, 0);
        }
    }

    fn len(&self) -> usize {
        self.objects.len()
    }
}
