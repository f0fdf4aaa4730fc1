//! Objects that are on disk and counted, but not in the index: with [`Discovery::Ask`](crate::Discovery::Ask) a pass over
//! the directory counts what is there, and the index learns of an object only when somebody asks for it. What was
//! counted has to be known by then, or it would be counted twice.
//!
//! 16 bytes an object, a quarter of an entry of the index. Keys are known by their 64-bit hash; the counting pass enters a
//! key whose hash is taken (one in 10^7 directories of a million objects) into the index instead. For the loss of a volume, what is
//! counted there is summed by salt.

use std::collections::HashMap as Sums;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use parking_lot::Mutex;

use crate::index::Held;
use crate::ledger::SaltId;

/// Bits of a number that hold the bytes of an object; the volume is above them. More bytes than any file system has.
const BYTES_BITS: u32 = 56;

#[derive(Default)]
struct Counted {
    /// Hash of a key to volume and bytes.
    objects: HashMap<u64, u64, foldhash::fast::RandomState>,
    sums: Sums<(usize, SaltId), u64>,
}

/// Hash of a key to the bytes that the ledger has for it, and the volume. Thread-safe.
#[derive(Default)]
pub(crate) struct Latent {
    counted: Mutex<Counted>,
    /// Number of objects, to be read without the lock: mostly there are none.
    objects: AtomicU64,
}

fn pack(object: Held) -> u64 {
    (object.volume as u64) << BYTES_BITS | object.bytes
}

fn unpack(packed: u64) -> Held {
    Held { bytes: packed & ((1 << BYTES_BITS) - 1), volume: (packed >> BYTES_BITS) as usize }
}

impl Latent {
    /// Notes a counted object; gives what is there when its hash is taken.
    pub(crate) fn insert(&self, hash: u64, salt: SaltId, object: Held) -> Result<(), Held> {
        let counted = &mut *self.counted.lock();
        match counted.objects.entry(hash) {
            Entry::Occupied(taken) => Err(unpack(*taken.get())),
            Entry::Vacant(free) => {
                free.insert(pack(object));
                *counted.sums.entry((object.volume, salt)).or_default() += object.bytes;
                self.objects.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// Takes an object out; gives what the ledger has for it.
    pub(crate) fn take(&self, hash: u64, salt: SaltId) -> Option<Held> {
        if self.objects() == 0 {
            return None;
        }
        let counted = &mut *self.counted.lock();
        let object = unpack(counted.objects.remove(&hash)?);
        if let Some(sum) = counted.sums.get_mut(&(object.volume, salt)) {
            *sum = sum.saturating_sub(object.bytes);
        }
        self.objects.fetch_sub(1, Ordering::Relaxed);
        Some(object)
    }

    /// Forgets the objects of a lost volume; gives what the ledger has for them.
    pub(crate) fn lose(&self, volume: usize) -> Vec<(SaltId, u64)> {
        let counted = &mut *self.counted.lock();
        counted.objects.retain(|_, packed| unpack(*packed).volume != volume);
        self.objects.store(counted.objects.len() as u64, Ordering::Relaxed);
        let lost = counted.sums.extract_if(|(of, _), _| *of == volume);
        lost.map(|((_, salt), bytes)| (salt, bytes)).filter(|(_, bytes)| *bytes > 0).collect()
    }

    /// What the ledger has for an object, if there is such a one.
    pub(crate) fn peek(&self, hash: u64) -> Option<Held> {
        if self.objects() == 0 { None } else { self.counted.lock().objects.get(&hash).map(|packed| unpack(*packed)) }
    }

    /// Number of objects.
    pub(crate) fn objects(&self) -> u64 {
        self.objects.load(Ordering::Relaxed)
    }
}
