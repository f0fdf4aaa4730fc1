//! Object keys: what identifies the bytes of one KV chunk.
//!
//! A key is a *scope* (model, rank, object group, salt), shared by many objects, and the hash of one
//! chunk. Scopes are reference-counted, so that cloning a key, or holding a million of them, costs the
//! chunk hash and a pointer. This module knows nothing of files, rings or the engine.

use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::{Arc, LazyLock};

use thiserror::Error;

/// Longest `cache_salt`, in characters (LMCache 0.5.6, `ObjectKey._SALT_MAX_LEN`).
pub const SALT_MAX_CHARS: usize = 128;

/// Characters that a `cache_salt` must not contain (LMCache 0.5.6, `ObjectKey._SALT_FORBIDDEN_CHARS`).
pub const SALT_FORBIDDEN: [char; 4] = ['@', '/', '\\', '\0'];

/// Longest chunk hash in bytes. In hexadecimal it has to fit into a file name (`NAME_MAX`, 255 bytes)
/// whatever the layout, so nothing longer can be stored anyway.
pub const CHUNK_HASH_MAX_BYTES: usize = 127;

/// Why the parts given do not make a key.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The model name is empty.
    #[error("model_name is empty")]
    ModelEmpty,
    /// The model name contains a character that the layouts reserve.
    #[error("model_name {model:?} contains {found:?}; '@' and NUL are reserved by the file layouts")]
    ModelForbidden {
        /// The model name as given.
        model: String,
        /// The first character that is not allowed.
        found: char,
    },
    /// The salt contains a character that the layouts reserve.
    #[error("cache_salt contains {found:?}; '@', '/', '\\' and NUL are not allowed in it")]
    SaltForbidden {
        /// The first character that is not allowed.
        found: char,
    },
    /// The salt is too long.
    #[error("cache_salt has {chars} characters, at most {SALT_MAX_CHARS} are allowed")]
    SaltTooLong {
        /// Its length in characters.
        chars: usize,
    },
    /// The chunk hash is empty.
    #[error("chunk_hash is empty")]
    HashEmpty,
    /// The chunk hash is too long to become part of a file name.
    #[error("chunk_hash has {bytes} bytes, at most {CHUNK_HASH_MAX_BYTES} fit into a file name")]
    HashTooLong {
        /// Its length in bytes.
        bytes: usize,
    },
}

/// Composes LMCache's `kv_rank` from its four parts:
/// `world_size << 24 | global_rank << 16 | local_world_size << 8 | local_rank`.
///
/// ```
/// assert_eq!(saltern::kv_rank(2, 1, 2, 1), 0x0201_0201);
/// ```
pub const fn kv_rank(world_size: u8, global_rank: u8, local_world_size: u8, local_rank: u8) -> u32 {
    u32::from_be_bytes([world_size, global_rank, local_world_size, local_rank])
}

/// What many keys have in common: model, rank, object group and salt.
#[derive(Clone, PartialEq, Eq)]
pub struct Scope {
    model_name: Box<str>,
    cache_salt: Box<str>,
    kv_rank: u32,
    object_group_id: u32,
    hash: u64,
}

/// One process-wide seed, so that hashes of equal keys are equal and outsiders cannot aim at a bucket.
static HASHER: LazyLock<foldhash::fast::RandomState> = LazyLock::new(foldhash::fast::RandomState::default);

impl Scope {
    /// Checks the parts and builds a scope. Keys made from one scope with [`Scope::key`] share it.
    ///
    /// # Errors
    /// [`KeyError`] names the part that is not valid.
    pub fn new(model_name: &str, kv_rank: u32, object_group_id: u32, cache_salt: &str) -> Result<Arc<Self>, KeyError> {
        if model_name.is_empty() {
            return Err(KeyError::ModelEmpty);
        }
        if let Some(found) = model_name.chars().find(|c| matches!(c, '@' | '\0')) {
            return Err(KeyError::ModelForbidden { model: model_name.into(), found });
        }
        check_salt(cache_salt)?;
        let hash = HASHER.hash_one((model_name, kv_rank, object_group_id, cache_salt));
        Ok(Arc::new(Self {
            model_name: model_name.into(),
            cache_salt: cache_salt.into(),
            kv_rank,
            object_group_id,
            hash,
        }))
    }

    /// The key of one chunk in this scope.
    ///
    /// # Errors
    /// [`KeyError::HashEmpty`] and [`KeyError::HashTooLong`].
    pub fn key(self: &Arc<Self>, chunk_hash: &[u8]) -> Result<ObjectKey, KeyError> {
        Ok(ObjectKey { scope: self.clone(), chunk_hash: ChunkHash::new(chunk_hash)? })
    }

    /// Name of the model, as the serving engine knows it (`/` included).
    pub fn model_name(&self) -> &str {
        &self.model_name
    }

    /// The slice of the KV cache; see [`kv_rank`].
    pub fn kv_rank(&self) -> u32 {
        self.kv_rank
    }

    /// The object group; 0 where the layout has none.
    pub fn object_group_id(&self) -> u32 {
        self.object_group_id
    }

    /// The isolation unit (a tenant); empty for none.
    pub fn cache_salt(&self) -> &str {
        &self.cache_salt
    }

    pub(crate) fn hash64(&self) -> u64 {
        self.hash
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{:08x}@{:x}@{:?}", self.model_name, self.kv_rank, self.object_group_id, &*self.cache_salt)
    }
}

/// Checks a salt.
///
/// # Errors
/// [`KeyError::SaltForbidden`] and [`KeyError::SaltTooLong`].
pub(crate) fn check_salt(salt: &str) -> Result<(), KeyError> {
    if let Some(found) = salt.chars().find(|c| SALT_FORBIDDEN.contains(c)) {
        return Err(KeyError::SaltForbidden { found });
    }
    let chars = salt.chars().count();
    if chars > SALT_MAX_CHARS {
        return Err(KeyError::SaltTooLong { chars });
    }
    Ok(())
}

/// Bytes kept inline by [`ChunkHash`]; LMCache's hashes have 32.
const INLINE_BYTES: usize = 32;

/// The content hash of one chunk: 32 bytes in practice, 1 to [`CHUNK_HASH_MAX_BYTES`] are legal.
#[derive(Clone)]
pub struct ChunkHash(Repr);

#[derive(Clone)]
enum Repr {
    Inline { len: u8, bytes: [u8; INLINE_BYTES] },
    Heap(Box<[u8]>),
}

impl ChunkHash {
    /// Copies the bytes.
    ///
    /// # Errors
    /// [`KeyError::HashEmpty`] and [`KeyError::HashTooLong`].
    pub fn new(bytes: &[u8]) -> Result<Self, KeyError> {
        match bytes.len() {
            0 => Err(KeyError::HashEmpty),
            len @ 1..=INLINE_BYTES => {
                let mut inline = [0; INLINE_BYTES];
                inline[..len].copy_from_slice(bytes);
                Ok(Self(Repr::Inline { len: len as u8, bytes: inline }))
            }
            len if len <= CHUNK_HASH_MAX_BYTES => Ok(Self(Repr::Heap(bytes.into()))),
            len => Err(KeyError::HashTooLong { bytes: len }),
        }
    }

    /// The hash as bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Repr::Inline { len, bytes } => &bytes[..usize::from(*len)],
            Repr::Heap(bytes) => bytes,
        }
    }

    /// A 64-bit hash of these bytes in a scope, with the process-wide seed.
    pub(crate) fn hash64(&self, scope_hash: u64) -> u64 {
        let mut hasher = HASHER.build_hasher();
        hasher.write_u64(scope_hash);
        match &self.0 {
            // A fixed length lets the hasher unroll; the padding is zero, and the length is hashed too.
            Repr::Inline { len, bytes } => {
                hasher.write(bytes);
                hasher.write_u8(*len);
            }
            Repr::Heap(bytes) => hasher.write(bytes),
        }
        hasher.finish()
    }
}

impl PartialEq for ChunkHash {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Repr::Inline { len: a, bytes: x }, Repr::Inline { len: b, bytes: y }) => a == b && x == y,
            _ => self.as_bytes() == other.as_bytes(),
        }
    }
}

impl Eq for ChunkHash {}

impl Hash for ChunkHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl Ord for ChunkHash {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl PartialOrd for ChunkHash {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The identity of one object: model, rank, object group, chunk hash and salt.
///
/// Cloning is cheap (a reference count and 40 bytes). Two keys are equal when all five parts are.
#[derive(Clone)]
pub struct ObjectKey {
    scope: Arc<Scope>,
    chunk_hash: ChunkHash,
}

impl ObjectKey {
    /// Checks the parts and builds a key with a scope of its own. For many keys of one model and salt,
    /// [`Scope::new`] and [`Scope::key`] share the scope.
    ///
    /// # Errors
    /// [`KeyError`] names the part that is not valid.
    ///
    /// ```
    /// use saltern::ObjectKey;
    /// let key = ObjectKey::new("meta-llama/Llama-3.1-8B", 0x0100_0100, 0, &[7; 32], "tenant-1")?;
    /// assert_eq!(key.cache_salt(), "tenant-1");
    /// assert!(ObjectKey::new("a@b", 0, 0, &[7; 32], "").is_err());
    /// # Ok::<(), saltern::KeyError>(())
    /// ```
    pub fn new(
        model_name: &str,
        kv_rank: u32,
        object_group_id: u32,
        chunk_hash: &[u8],
        cache_salt: &str,
    ) -> Result<Self, KeyError> {
        Scope::new(model_name, kv_rank, object_group_id, cache_salt)?.key(chunk_hash)
    }

    pub(crate) fn from_parts(scope: Arc<Scope>, chunk_hash: ChunkHash) -> Self {
        Self { scope, chunk_hash }
    }

    /// The part of the key that many objects share.
    pub fn scope(&self) -> &Arc<Scope> {
        &self.scope
    }

    /// Name of the model.
    pub fn model_name(&self) -> &str {
        self.scope.model_name()
    }

    /// The slice of the KV cache; see [`kv_rank`].
    pub fn kv_rank(&self) -> u32 {
        self.scope.kv_rank()
    }

    /// The object group.
    pub fn object_group_id(&self) -> u32 {
        self.scope.object_group_id()
    }

    /// The content hash of the chunk.
    pub fn chunk_hash(&self) -> &ChunkHash {
        &self.chunk_hash
    }

    /// The isolation unit (a tenant); empty for none.
    pub fn cache_salt(&self) -> &str {
        self.scope.cache_salt()
    }
}

impl PartialEq for ObjectKey {
    fn eq(&self, other: &Self) -> bool {
        self.chunk_hash == other.chunk_hash && (Arc::ptr_eq(&self.scope, &other.scope) || self.scope == other.scope)
    }
}

impl Eq for ObjectKey {}

impl Hash for ObjectKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.scope.hash);
        self.chunk_hash.hash(state);
    }
}

/// `model@rank8@group@hash[@salt]`, the wire form, as errors and logs show a key.
impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{:08x}@{:x}@{}", self.model_name(), self.kv_rank(), self.object_group_id(), self.chunk_hash)?;
        if self.cache_salt().is_empty() { Ok(()) } else { write!(f, "@{}", self.cache_salt()) }
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_composes_as_lmcache_does() {
        assert_eq!(kv_rank(8, 3, 4, 2), (8 << 24) | (3 << 16) | (4 << 8) | 2);
    }

    #[test]
    fn parts_are_checked() {
        let new = |model: &str, hash: &[u8], salt: &str| ObjectKey::new(model, 0, 0, hash, salt);
        assert_eq!(new("", &[1], "").unwrap_err(), KeyError::ModelEmpty);
        assert_eq!(new("a@b", &[1], "").unwrap_err(), KeyError::ModelForbidden { model: "a@b".into(), found: '@' });
        for bad in SALT_FORBIDDEN {
            assert_eq!(new("m", &[1], &format!("s{bad}")).unwrap_err(), KeyError::SaltForbidden { found: bad });
        }
        assert_eq!(new("m", &[1], &"é".repeat(129)).unwrap_err(), KeyError::SaltTooLong { chars: 129 });
        assert!(new("m", &[1], &"é".repeat(128)).is_ok());
        assert_eq!(new("m", &[], "").unwrap_err(), KeyError::HashEmpty);
        assert_eq!(new("m", &[0; 128], "").unwrap_err(), KeyError::HashTooLong { bytes: 128 });
    }

    #[test]
    fn hashes_of_different_length_differ() {
        let (short, long) = (ChunkHash::new(&[1, 0]).unwrap(), ChunkHash::new(&[1, 0, 0]).unwrap());
        assert_ne!(short, long);
        assert_ne!(short.hash64(1), long.hash64(1));
        let heap = ChunkHash::new(&[9; 40]).unwrap();
        assert_eq!(heap.as_bytes(), [9; 40]);
        assert_eq!(heap, heap.clone());
    }

    #[test]
    fn equal_parts_make_equal_keys() {
        let a = ObjectKey::new("m", 1, 2, &[3; 32], "s").unwrap();
        let b = ObjectKey::new("m", 1, 2, &[3; 32], "s").unwrap();
        assert_eq!(a, b);
        assert_eq!(a.chunk_hash().hash64(a.scope().hash64()), b.chunk_hash().hash64(b.scope().hash64()));
        assert_ne!(a, ObjectKey::new("m", 1, 2, &[3; 32], "t").unwrap());
    }
}
