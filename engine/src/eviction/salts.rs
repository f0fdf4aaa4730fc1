//! The order of use inside each salt: who has to give way to a quota is found without looking at a neighbour's objects.

use super::Id;
use super::list::{Linked, Links, List, reach};

/// No salt: the object is not here.
const NOWHERE: u32 = u32::MAX;

/// Marks the salt of an object that was deferred.
const DEFERRED: u32 = 1 << 31;

#[derive(Clone, Copy)]
struct Node {
    links: Links,
    salt: u32,
}

impl Default for Node {
    fn default() -> Self {
        Self { links: Links::default(), salt: NOWHERE }
    }
}

impl Linked for Node {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

/// The objects of each salt, by last use. 12 bytes an object, 8 a salt. Salts are dense numbers, too, below 2^31. Objects
/// that it does not know are left alone.
#[derive(Default)]
pub struct SaltOrder {
    nodes: Vec<Node>,
    lists: Vec<List>,
    deferred: List,
}

impl SaltOrder {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// An object is there now.
    ///
    /// # Panics
    /// When the number is in use.
    pub fn insert(&mut self, id: Id, salt: u32) {
        reach(&mut self.nodes, id);
        reach(&mut self.lists, salt);
        let before = std::mem::replace(&mut self.nodes[id as usize].salt, salt);
        assert_eq!(before, NOWHERE, "a number in use stands for one object");
        self.lists[salt as usize].push(&mut self.nodes, id);
    }

    /// It was used.
    pub fn access(&mut self, id: Id) {
        let salt = self.salt(id);
        if salt & DEFERRED == 0 {
            self.lists[salt as usize].remove(&mut self.nodes, id);
            self.lists[salt as usize].push(&mut self.nodes, id);
        }
    }

    /// It is gone.
    pub fn remove(&mut self, id: Id) {
        match self.salt(id) {
            NOWHERE => return,
            salt if salt & DEFERRED == 0 => self.lists[salt as usize].remove(&mut self.nodes, id),
            _ => self.deferred.remove(&mut self.nodes, id),
        }
        self.nodes[id as usize].salt = NOWHERE;
    }

    /// The least recently used object of a salt that was not deferred.
    pub fn oldest(&self, salt: u32) -> Option<Id> {
        self.lists.get(salt as usize).and_then(List::oldest)
    }

    /// It cannot go now, because it is in use: it is nobody's oldest until [`SaltOrder::resume`].
    pub fn defer(&mut self, id: Id) {
        let salt = self.salt(id);
        if salt & DEFERRED == 0 {
            self.lists[salt as usize].remove(&mut self.nodes, id);
            self.deferred.push(&mut self.nodes, id);
            self.nodes[id as usize].salt = salt | DEFERRED;
        }
    }

    /// Takes those back that were deferred, as just used.
    pub fn resume(&mut self) {
        while let Some(id) = self.deferred.oldest() {
            self.deferred.remove(&mut self.nodes, id);
            let salt = &mut self.nodes[id as usize].salt;
            *salt &= !DEFERRED;
            let salt = *salt;
            self.lists[salt as usize].push(&mut self.nodes, id);
        }
    }

    fn salt(&self, id: Id) -> u32 {
        self.nodes.get(id as usize).map_or(NOWHERE, |node| node.salt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_salt_has_its_own_oldest() {
        let mut order = SaltOrder::new();
        for id in 0..9 {
            order.insert(id, id % 3);
        }
        order.access(0);
        order.access(100);
        order.remove(4);
        order.remove(4);
        assert_eq!(order.oldest(0), Some(3));
        // 3 is in use, and 5 too, which then goes for another reason.
        order.defer(3);
        order.access(3);
        order.defer(5);
        order.remove(5);
        assert_eq!((order.oldest(0), order.oldest(2)), (Some(6), Some(2)));
        order.resume();
        let mut take = |salt| {
            let mut out = Vec::new();
            while let Some(id) = order.oldest(salt) {
                out.push(id);
                order.remove(id);
            }
            out
        };
        assert_eq!((take(0), take(1), take(2), take(77)), (vec![6, 0, 3], vec![1, 7], vec![2, 8], vec![]));
    }
}
