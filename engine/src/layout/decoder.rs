//! Decoding names by the million.

use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::format::{Format, Split};
use super::{Layout, NameError, wire};
use crate::key::{ObjectKey, Scope};

/// Most scopes that a [`Decoder`] remembers. As many as half of it stay remembered while they are in use.
pub const SCOPES_CACHED: usize = 8192;

/// Decodes many names of one layout.
///
/// Names that differ in their hash alone give keys that share one [`Scope`]. The decoder remembers the
/// scopes it saw last, at most [`SCOPES_CACHED`], by the bytes around the hash: a name of one of them costs
/// no allocation. It holds no other state, and gives the results of [`Layout::decode`].
pub struct Decoder {
    format: Format,
    cache: Cache,
}

impl Decoder {
    /// A decoder of file names.
    pub fn new(layout: Layout) -> Self {
        Self { format: layout.format(), cache: Cache::default() }
    }

    /// A decoder of wire keys in the current form; see [`wire`].
    pub fn wire() -> Self {
        Self { format: wire::FORM, cache: Cache::default() }
    }

    /// The key of a path, as [`Layout::decode`] (or [`wire::decode`]) gives it.
    ///
    /// # Errors
    /// [`NameError`] says in what the path is not one of this layout.
    pub fn decode(&mut self, path: &str) -> Result<ObjectKey, NameError> {
        self.format.decode_with(path, |split| self.cache.scope(self.format, split))
    }
}

/// Scopes in two generations: when the younger one is full, the older one is forgotten and the younger
/// takes its place. What is in use moves back to the younger one, so this comes close to keeping the most
/// recently used, without bookkeeping on hits.
#[derive(Default)]
struct Cache {
    hasher: RandomState,
    younger: HashTable<Entry>,
    older: HashTable<Entry>,
}

/// Only what [`Format::scope`] found correct is entered, so equal bytes need no second look.
struct Entry {
    before: Box<str>,
    after: Box<str>,
    hash: u64,
    scope: Arc<Scope>,
}

impl Cache {
    fn scope(&mut self, format: Format, split: &Split<'_>) -> Result<Arc<Scope>, NameError> {
        let hash = self.hasher.hash_one((split.before, split.after));
        let same = |entry: &Entry| *entry.before == *split.before && *entry.after == *split.after;
        if let Some(entry) = self.younger.find(hash, same) {
            return Ok(entry.scope.clone());
        }
        let entry = match self.older.find_entry(hash, same) {
            Ok(found) => found.remove().0,
            Err(_) => {
                Entry { before: split.before.into(), after: split.after.into(), hash, scope: format.scope(split)? }
            }
        };
        if self.younger.len() >= SCOPES_CACHED / 2 {
            self.older = std::mem::take(&mut self.younger);
        }
        let scope = entry.scope.clone();
        self.younger.insert_unique(hash, entry, |entry| entry.hash);
        Ok(scope)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.younger.len() + self.older.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_shared_and_bounded() {
        let mut decoder = Decoder::new(Layout::Fs);
        let first = decoder.decode("m@0x00000001@0@ab.data").unwrap();
        let second = decoder.decode("m@0x00000001@0@cd.data").unwrap();
        assert!(Arc::ptr_eq(first.scope(), second.scope()));
        for salt in 0..3 * SCOPES_CACHED {
            let name = format!("m@0x00000001@0@ab@{salt}.data");
            let key = decoder.decode(&name).unwrap();
            assert_eq!(Layout::Fs.encode(&key).unwrap(), name);
            assert!(decoder.cache.len() <= SCOPES_CACHED);
            // In use all the time, so never forgotten.
            assert!(Arc::ptr_eq(first.scope(), decoder.decode("m@0x00000001@0@ab.data").unwrap().scope()));
        }
    }

    #[test]
    fn bytes_around_the_hash_are_not_confused() {
        let mut decoder = Decoder::wire();
        for name in ["m@00000001@0@ab", "m@00000001@0@ab@s", "m@00000001@1@ab", "m@00000002@0@ab", "n@00000001@0@ab"] {
            assert_eq!(wire::encode(&decoder.decode(name).unwrap()), name);
        }
        assert_eq!(decoder.decode("m@00000001@0@AB"), wire::decode("m@00000001@0@AB"));
    }
}
