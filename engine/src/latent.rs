//! Objects that are on disk and counted, but not in the index: with [`Discovery::Ask`](crate::Discovery::Ask) a pass over
//! the directory counts what is there, and the index learns of an object only when somebody asks for it. What was
//! counted has to be known by then, or it would be counted twice.
//!
//! 16 bytes an object, a quarter of an entry of the index. Keys are known by their 64-bit hash; the counting pass enters a
//! key whose hash is taken (one in 10^7 directories of a million objects) into the index instead.

use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use parking_lot::Mutex;

/// Hash of a key to the bytes that the ledger has for it. Thread-safe.
#[derive(Default)]
pub(crate) struct Latent {
    bytes: Mutex<HashMap<u64, u64, foldhash::fast::RandomState>>,
    /// Number of objects, to be read without the lock: mostly there are none.
    objects: AtomicU64,
}

impl Latent {
    /// Notes a counted object; false when its hash is taken.
    pub(crate) fn insert(&self, hash: u64, bytes: u64) -> bool {
        match self.bytes.lock().entry(hash) {
            Entry::Occupied(_) => false,
            Entry::Vacant(free) => {
                free.insert(bytes);
                self.objects.fetch_add(1, Ordering::Relaxed);
                true
            }
        }
    }

    /// Takes an object out; gives the bytes that the ledger has for it.
    pub(crate) fn take(&self, hash: u64) -> Option<u64> {
        if self.objects() == 0 {
            return None;
        }
        let bytes = self.bytes.lock().remove(&hash)?;
        self.objects.fetch_sub(1, Ordering::Relaxed);
        Some(bytes)
    }

    /// Whether there is such an object.
    pub(crate) fn contains(&self, hash: u64) -> bool {
        self.objects() > 0 && self.bytes.lock().contains_key(&hash)
    }

    /// Number of objects.
    pub(crate) fn objects(&self) -> u64 {
        self.objects.load(Ordering::Relaxed)
    }
}
