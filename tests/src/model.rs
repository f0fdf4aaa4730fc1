//! What a correct engine answers: the same operations on a plain map, one key at a time, in the order of the batch.

use std::collections::BTreeMap;

use saltern::ObjectKey;

/// An object of the model: its size, and the seed of its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Object {
    /// Size in bytes.
    pub bytes: u64,
    /// Seed of its payload.
    pub seed: u64,
}

/// Answer to a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It is new.
    Added(u64),
    /// The key is there already, with whatever bytes.
    Present,
    /// It does not fit.
    Full,
}

/// Answer to a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loaded {
    /// The buffer holds these bytes.
    Bytes(Object),
    /// The buffer has another size than the object, which has this one.
    WrongSize(u64),
    /// No such object.
    Miss,
}

/// Answer to a delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// It is gone, and these bytes are free.
    Freed(u64),
    /// Refused: it has so many pins.
    Pinned(u32),
    /// No such object.
    Miss,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    object: Object,
    pins: u32,
}

/// The map. Keys are numbers; the caller knows what they stand for.
#[derive(Debug, Clone)]
pub struct Model {
    capacity: Option<u64>,
    entries: BTreeMap<usize, Entry>,
}

impl Model {
    /// An empty one.
    pub fn new(capacity: Option<u64>) -> Self {
        Self { capacity, entries: BTreeMap::new() }
    }

    /// Stores; the first store of a key wins.
    pub fn store(&mut self, key: usize, object: Object) -> Stored {
        if self.entries.contains_key(&key) {
            return Stored::Present;
        }
        if self.capacity.is_some_and(|capacity| self.bytes() + object.bytes > capacity) {
            return Stored::Full;
        }
        self.entries.insert(key, Entry { object, pins: 0 });
        Stored::Added(object.bytes)
    }

    /// Loads into a buffer of this size.
    pub fn load(&self, key: usize, buffer_bytes: u64) -> Loaded {
        match self.object(key) {
            None => Loaded::Miss,
            Some(object) if object.bytes != buffer_bytes => Loaded::WrongSize(object.bytes),
            Some(object) => Loaded::Bytes(object),
        }
    }

    /// Looks up and pins.
    pub fn lookup_and_pin(&mut self, key: usize) -> Option<u64> {
        let entry = self.entries.get_mut(&key)?;
        entry.pins += 1;
        Some(entry.object.bytes)
    }

    /// Releases one pin, if there is one.
    pub fn unpin(&mut self, key: usize) -> bool {
        let Some(entry) = self.entries.get_mut(&key).filter(|entry| entry.pins > 0) else { return false };
        entry.pins -= 1;
        true
    }

    /// Deletes, unless it is pinned.
    pub fn delete(&mut self, key: usize) -> Deleted {
        match self.entries.get(&key) {
            None => Deleted::Miss,
            Some(entry) if entry.pins > 0 => Deleted::Pinned(entry.pins),
            Some(entry) => {
                let bytes = entry.object.bytes;
                self.entries.remove(&key);
                Deleted::Freed(bytes)
            }
        }
    }

    /// Close and open: pins do not survive, everything else does.
    pub fn reopen(&mut self) {
        self.entries.values_mut().for_each(|entry| entry.pins = 0);
    }

    /// The object of a key.
    pub fn object(&self, key: usize) -> Option<Object> {
        self.entries.get(&key).map(|entry| entry.object)
    }

    /// All objects.
    pub fn objects(&self) -> impl Iterator<Item = (usize, Object)> {
        self.entries.iter().map(|(key, entry)| (*key, entry.object))
    }

    /// Bytes of all objects.
    pub fn bytes(&self) -> u64 {
        self.objects().map(|(_, object)| object.bytes).sum()
    }

    /// Bytes by salt; salts without bytes do not appear.
    pub fn bytes_by_salt(&self, keys: &[ObjectKey]) -> BTreeMap<String, u64> {
        let mut sums = BTreeMap::new();
        for (key, object) in self.objects().filter(|(_, object)| object.bytes > 0) {
            *sums.entry(keys[key].cache_salt().to_owned()).or_default() += object.bytes;
        }
        sums
    }
}
