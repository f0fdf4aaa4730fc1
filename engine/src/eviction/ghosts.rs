//! Objects that were evicted, remembered by the hash of their key and their size: 24 bytes each, and the index.

use hashbrown::HashTable;

use super::list::{Linked, Links, List};

#[derive(Default, Clone, Copy)]
struct Node {
    hash: u64,
    /// Size, and the number of the list in the lowest bit.
    packed: u64,
    links: Links,
}

impl Node {
    fn bytes(self) -> u64 {
        self.packed >> 1
    }

    fn list(self) -> usize {
        (self.packed & 1) as usize
    }
}

impl Linked for Node {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

/// Ghosts in two lists, each in the order of eviction.
#[derive(Default)]
pub(super) struct Ghosts {
    nodes: Vec<Node>,
    /// Nodes that are free, as a list of their own.
    free: List,
    index: HashTable<u32>,
    lists: [List; 2],
    bytes: [u64; 2],
}

impl Ghosts {
    /// Remembers an object.
    pub(super) fn insert(&mut self, list: usize, hash: u64, bytes: u64) {
        self.take(hash);
        let id = self.place();
        self.nodes[id as usize] = Node { hash, packed: (bytes << 1) | list as u64, links: Links::default() };
        self.lists[list].push(&mut self.nodes, id);
        self.bytes[list] += self.nodes[id as usize].bytes();
        let nodes = &self.nodes;
        self.index.insert_unique(hash, id, |id| nodes[*id as usize].hash);
    }

    /// Forgets an object that is back; gives the list that it was in.
    pub(super) fn take(&mut self, hash: u64) -> Option<usize> {
        let nodes = &self.nodes;
        let found = self.index.find_entry(hash, |id| nodes[*id as usize].hash == hash).ok()?;
        let (id, _) = found.remove();
        Some(self.drop_node(id))
    }

    /// Forgets the oldest ones of a list until it has at most so many bytes.
    pub(super) fn shrink(&mut self, list: usize, bytes: u64) {
        while self.bytes[list] > bytes
            && let Some(id) = self.lists[list].oldest()
        {
            if let Ok(found) = self.index.find_entry(self.nodes[id as usize].hash, |other| *other == id) {
                found.remove();
            }
            self.drop_node(id);
        }
    }

    pub(super) fn bytes(&self, list: usize) -> u64 {
        self.bytes[list]
    }

    fn drop_node(&mut self, id: u32) -> usize {
        let node = self.nodes[id as usize];
        let list = node.list();
        self.lists[list].remove(&mut self.nodes, id);
        self.bytes[list] -= node.bytes();
        self.free.push(&mut self.nodes, id);
        list
    }

    /// A free node.
    fn place(&mut self) -> u32 {
        if let Some(id) = self.free.oldest() {
            self.free.remove(&mut self.nodes, id);
            return id;
        }
        let id = u32::try_from(self.nodes.len()).expect("fewer than 2^32 ghosts");
        super::list::reach(&mut self.nodes, id);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ghosts_come_back_once_and_the_oldest_go_first() {
        let mut ghosts = Ghosts::default();
        (0..100).for_each(|hash| ghosts.insert(0, hash, 10));
        ghosts.insert(1, 1000, 7);
        assert_eq!((ghosts.take(50), ghosts.take(50), ghosts.take(1000)), (Some(0), None, Some(1)));
        assert_eq!((ghosts.bytes(0), ghosts.bytes(1)), (990, 0));
        // Evicted a second time: it is the newest.
        ghosts.insert(0, 0, 20);
        ghosts.shrink(0, 45);
        let left: Vec<u64> = (0..100).filter(|hash| ghosts.take(*hash).is_some()).collect();
        assert_eq!(left, [0, 98, 99]);
        assert_eq!((ghosts.bytes(0), ghosts.index.len()), (0, 0));
        (0..100).for_each(|hash| ghosts.insert(1, hash, 10));
        assert_eq!(ghosts.nodes.len(), 101, "places are used again");
    }
}
