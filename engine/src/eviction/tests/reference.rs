//! The policies a second time, straight from the papers: one object one unit, evicting in the same step in which they
//! admit, plain collections. Nothing is shared with what they are compared with.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

/// A cache of `capacity` objects.
pub(super) trait Reference {
    /// Asks for an object, and takes it in when it is not there. Whether it was there.
    fn request(&mut self, key: u32) -> bool;
}

/// Keys by last use.
#[derive(Default)]
struct Recency {
    clock: u64,
    by_key: HashMap<u32, u64>,
    by_use: BTreeMap<u64, u32>,
}

impl Recency {
    fn len(&self) -> usize {
        self.by_key.len()
    }

    fn has(&self, key: u32) -> bool {
        self.by_key.contains_key(&key)
    }

    fn remove(&mut self, key: u32) {
        let used = self.by_key.remove(&key).expect("in the list");
        self.by_use.remove(&used);
    }

    fn push(&mut self, key: u32) {
        self.clock += 1;
        assert!(self.by_key.insert(key, self.clock).is_none());
        self.by_use.insert(self.clock, key);
    }

    fn pop(&mut self) -> Option<u32> {
        let key = *self.by_use.first_key_value()?.1;
        self.remove(key);
        Some(key)
    }
}

pub(super) struct Lru {
    capacity: usize,
    list: Recency,
}

impl Lru {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, list: Recency::default() }
    }
}

impl Reference for Lru {
    fn request(&mut self, key: u32) -> bool {
        let hit = self.list.has(key);
        if hit {
            self.list.remove(key);
        } else if self.list.len() == self.capacity {
            self.list.pop();
        }
        self.list.push(key);
        hit
    }
}

/// Algorithm 1 of the S3-FIFO paper.
pub(super) struct S3Fifo {
    capacity: usize,
    small: VecDeque<u32>,
    main: VecDeque<u32>,
    uses: HashMap<u32, u8>,
    ghost: VecDeque<u32>,
    ghosts: HashSet<u32>,
}

impl S3Fifo {
    pub(super) fn new(capacity: usize) -> Self {
        let (small, main, ghost) = Default::default();
        Self { capacity, small, main, uses: HashMap::new(), ghost, ghosts: HashSet::new() }
    }

    fn evict(&mut self) {
        if self.small.len() >= self.capacity / 10 { self.evict_small() } else { self.evict_main() }
    }

    fn evict_small(&mut self) {
        while let Some(key) = self.small.pop_back() {
            if self.uses[&key] > 1 {
                self.uses.insert(key, 0);
                self.main.push_front(key);
                if self.main.len() > self.capacity - self.capacity / 10 {
                    return self.evict_main();
                }
            } else {
                self.uses.remove(&key);
                if self.ghosts.insert(key) {
                    self.ghost.push_front(key);
                }
                while self.ghosts.len() > self.capacity - self.capacity / 10 {
                    let oldest = self.ghost.pop_back().expect("as many as in the set");
                    self.ghosts.remove(&oldest);
                }
                return;
            }
        }
    }

    fn evict_main(&mut self) {
        while let Some(key) = self.main.pop_back() {
            let uses = self.uses[&key];
            if uses == 0 {
                self.uses.remove(&key);
                return;
            }
            self.uses.insert(key, uses - 1);
            self.main.push_front(key);
        }
    }
}

impl Reference for S3Fifo {
    fn request(&mut self, key: u32) -> bool {
        if let Some(uses) = self.uses.get_mut(&key) {
            *uses = (*uses + 1).min(3);
            return true;
        }
        while self.small.len() + self.main.len() >= self.capacity {
            self.evict();
        }
        if self.ghosts.remove(&key) {
            self.ghost.retain(|ghost| *ghost != key);
            self.main.push_front(key);
        } else {
            self.small.push_front(key);
        }
        self.uses.insert(key, 0);
        false
    }
}

/// Figure 4 of the ARC paper, case by case.
#[derive(Default)]
pub(super) struct Arc {
    c: usize,
    p: f64,
    t1: Recency,
    t2: Recency,
    b1: Recency,
    b2: Recency,
}

impl Arc {
    pub(super) fn new(capacity: usize) -> Self {
        Self { c: capacity, ..Self::default() }
    }

    fn replace(&mut self, key: u32) {
        let t1 = self.t1.len() as f64;
        if t1 >= 1.0 && ((self.b2.has(key) && t1 == self.p) || t1 > self.p) {
            let oldest = self.t1.pop().expect("not empty");
            self.b1.push(oldest);
        } else if let Some(oldest) = self.t2.pop() {
            self.b2.push(oldest);
        }
    }
}

impl Reference for Arc {
    fn request(&mut self, key: u32) -> bool {
        if self.t1.has(key) || self.t2.has(key) {
            let list = if self.t1.has(key) { &mut self.t1 } else { &mut self.t2 };
            list.remove(key);
            self.t2.push(key);
            return true;
        }
        let (b1, b2) = (self.b1.len() as f64, self.b2.len() as f64);
        if self.b1.has(key) {
            self.p = (self.p + (b2 / b1).max(1.0)).min(self.c as f64);
            self.replace(key);
            self.b1.remove(key);
            self.t2.push(key);
        } else if self.b2.has(key) {
            self.p = (self.p - (b1 / b2).max(1.0)).max(0.0);
            self.replace(key);
            self.b2.remove(key);
            self.t2.push(key);
        } else {
            let l1 = self.t1.len() + self.b1.len();
            let all = l1 + self.t2.len() + self.b2.len();
            if l1 == self.c {
                if self.t1.len() < self.c {
                    self.b1.pop();
                    self.replace(key);
                } else {
                    self.t1.pop();
                }
            } else if all >= self.c {
                if all == 2 * self.c {
                    self.b2.pop();
                }
                self.replace(key);
            }
            self.t1.push(key);
        }
        false
    }
}
