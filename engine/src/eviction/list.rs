//! Doubly linked lists through the nodes of a table, by number: no memory of their own, every change in constant time.

/// No node.
const NONE: u32 = u32::MAX;

/// A node's neighbours.
#[derive(Debug, Clone, Copy)]
pub(super) struct Links {
    /// Towards the front.
    newer: u32,
    /// Towards the back.
    older: u32,
}

impl Default for Links {
    fn default() -> Self {
        Self { newer: NONE, older: NONE }
    }
}

/// A node of a table that can be in one list at a time.
pub(super) trait Linked: Default {
    fn links(&mut self) -> &mut Links;
}

/// A list. Which nodes are in it, the owner knows.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    newest: u32,
    oldest: u32,
}

impl Default for List {
    fn default() -> Self {
        Self { newest: NONE, oldest: NONE }
    }
}

impl List {
    /// The node at the back.
    pub(super) fn oldest(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    /// Puts a node that is in no list to the front.
    pub(super) fn push<N: Linked>(&mut self, nodes: &mut [N], id: u32) {
        *nodes[id as usize].links() = Links { newer: NONE, older: self.newest };
        match self.newest {
            NONE => self.oldest = id,
            newest => nodes[newest as usize].links().newer = id,
        }
        self.newest = id;
    }

    /// Takes a node out; it has to be in this list.
    pub(super) fn remove<N: Linked>(&mut self, nodes: &mut [N], id: u32) {
        let Links { newer, older } = std::mem::take(nodes[id as usize].links());
        match newer {
            NONE => self.newest = older,
            newer => nodes[newer as usize].links().older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => nodes[older as usize].links().newer = newer,
        }
    }
}

/// Makes a table long enough for this node. By an eighth instead of double: a million nodes are held, not copied often.
pub(super) fn reach<N: Default>(nodes: &mut Vec<N>, id: u32) {
    let len = id as usize + 1;
    if len > nodes.len() {
        if len > nodes.capacity() {
            nodes.reserve_exact(len - nodes.len() + (len / 8).max(64));
        }
        nodes.resize_with(len, N::default);
    }
}
