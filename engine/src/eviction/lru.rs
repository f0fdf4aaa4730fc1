//! LRU: the least recently used goes first.

use super::list::{Linked, Links, List, reach};
use super::{Id, Object, Policy};

/// Where an object is.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    #[default]
    Nowhere,
    Queue,
    Deferred,
}

#[derive(Default, Clone, Copy)]
struct Node {
    links: Links,
    place: Place,
}

impl Linked for Node {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

/// See the module.
#[derive(Default)]
pub struct Lru {
    nodes: Vec<Node>,
    queue: List,
    deferred: List,
    len: usize,
}

impl Lru {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    fn push(&mut self, id: Id) {
        self.nodes[id as usize].place = Place::Queue;
        self.queue.push(&mut self.nodes, id);
    }

    /// Takes an object out of where it is; gives where that was.
    fn pull(&mut self, id: Id) -> Place {
        let Some(node) = self.nodes.get_mut(id as usize) else { return Place::Nowhere };
        let place = std::mem::take(&mut node.place);
        match place {
            Place::Nowhere => {}
            Place::Queue => self.queue.remove(&mut self.nodes, id),
            Place::Deferred => self.deferred.remove(&mut self.nodes, id),
        }
        place
    }
}

impl Policy for Lru {
    fn insert(&mut self, object: Object) {
        reach(&mut self.nodes, object.id);
        assert!(self.pull(object.id) == Place::Nowhere, "a number in use stands for one object");
        self.push(object.id);
        self.len += 1;
    }

    fn access(&mut self, id: Id) {
        match self.nodes.get(id as usize).map(|node| node.place) {
            Some(Place::Queue) => {
                self.pull(id);
                self.push(id);
            }
            // Will be as just used anyway.
            Some(Place::Deferred | Place::Nowhere) | None => {}
        }
    }

    fn remove(&mut self, id: Id) {
        if self.pull(id) != Place::Nowhere {
            self.len -= 1;
        }
    }

    fn victim(&mut self) -> Option<Id> {
        self.queue.oldest()
    }

    fn evict(&mut self, id: Id) {
        self.remove(id);
    }

    fn defer(&mut self, id: Id) {
        if self.pull(id) != Place::Nowhere {
            self.nodes[id as usize].place = Place::Deferred;
            self.deferred.push(&mut self.nodes, id);
        }
    }

    fn resume(&mut self) {
        while let Some(id) = self.deferred.oldest() {
            self.pull(id);
            self.push(id);
        }
    }

    fn len(&self) -> usize {
        self.len
    }
}
