//! The table that S3-FIFO and ARC share the form of: objects in one of two queues, or deferred, with a small count.

use super::list::{Linked, Links, List, reach};
use super::{Id, Object};

/// Bits of a node's `packed` that hold the queue (0: none) and the count; the rest is the size.
const QUEUE_BITS: u32 = 2;
const COUNT_BITS: u32 = 2;
const TAG_BITS: u32 = QUEUE_BITS + COUNT_BITS;

/// The queue of those that are no victims for a while.
pub(super) const DEFERRED: usize = 2;

/// Highest count.
pub(super) const COUNT_MAX: u8 = (1 << COUNT_BITS) - 1;

#[derive(Default, Clone, Copy)]
struct Node {
    hash: u64,
    packed: u64,
    links: Links,
}

const _: () = assert!(size_of::<Node>() == 24, "a node is paid a million times");

impl Node {
    fn bytes(self) -> u64 {
        self.packed >> TAG_BITS
    }

    fn queue(self) -> Option<usize> {
        ((self.packed & ((1 << QUEUE_BITS) - 1)) as usize).checked_sub(1)
    }

    fn count(self) -> u8 {
        ((self.packed >> QUEUE_BITS) & u64::from(COUNT_MAX)) as u8
    }

    fn pack(&mut self, bytes: u64, queue: Option<usize>, count: u8) {
        let queue = queue.map_or(0, |queue| queue as u64 + 1);
        self.packed = (bytes << TAG_BITS) | (u64::from(count.min(COUNT_MAX)) << QUEUE_BITS) | queue;
    }
}

impl Linked for Node {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

#[derive(Default)]
struct Queue {
    list: List,
    bytes: u64,
    len: usize,
}

/// Objects in two queues, and those deferred.
#[derive(Default)]
pub(super) struct Queued {
    nodes: Vec<Node>,
    queues: [Queue; 3],
}

impl Queued {
    /// Puts a new object to the front of a queue, with a count of 0.
    pub(super) fn insert(&mut self, queue: usize, object: Object) {
        reach(&mut self.nodes, object.id);
        let node = &mut self.nodes[object.id as usize];
        assert_eq!(node.queue(), None, "a number in use stands for one object");
        node.hash = object.hash;
        node.pack(object.bytes.min(u64::MAX >> TAG_BITS), None, 0);
        self.push(queue, object.id, 0);
    }

    /// Which queue an object is in.
    pub(super) fn queue(&self, id: Id) -> Option<usize> {
        self.nodes.get(id as usize).and_then(|node| node.queue())
    }

    pub(super) fn count(&self, id: Id) -> u8 {
        self.nodes[id as usize].count()
    }

    pub(super) fn set_count(&mut self, id: Id, count: u8) {
        let node = &mut self.nodes[id as usize];
        node.pack(node.bytes(), node.queue(), count);
    }

    /// Moves an object to the front of a queue, with this count.
    pub(super) fn requeue(&mut self, queue: usize, id: Id, count: u8) {
        self.pull(id);
        self.push(queue, id, count);
    }

    /// Takes an object out; gives its hash and size.
    pub(super) fn remove(&mut self, id: Id) -> Option<(u64, u64)> {
        self.queue(id)?;
        self.pull(id);
        let node = self.nodes[id as usize];
        Some((node.hash, node.bytes()))
    }

    /// The object at the back of a queue.
    pub(super) fn oldest(&self, queue: usize) -> Option<Id> {
        self.queues[queue].list.oldest()
    }

    pub(super) fn bytes(&self, queue: usize) -> u64 {
        self.queues[queue].bytes
    }

    pub(super) fn len(&self) -> usize {
        self.queues.iter().map(|queue| queue.len).sum()
    }

    fn push(&mut self, queue: usize, id: Id, count: u8) {
        let node = &mut self.nodes[id as usize];
        let bytes = node.bytes();
        node.pack(bytes, Some(queue), count);
        let queue = &mut self.queues[queue];
        queue.list.push(&mut self.nodes, id);
        queue.bytes += bytes;
        queue.len += 1;
    }

    fn pull(&mut self, id: Id) {
        let node = &mut self.nodes[id as usize];
        let (bytes, queue) = (node.bytes(), node.queue().expect("asked before"));
        node.pack(bytes, None, 0);
        let queue = &mut self.queues[queue];
        queue.list.remove(&mut self.nodes, id);
        queue.bytes -= bytes;
        queue.len -= 1;
    }
}
