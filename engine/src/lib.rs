//! saltern: a local storage engine for the KV caches of LLM serving.

mod key;
pub mod layout;

pub use key::{
    CHUNK_HASH_MAX_BYTES, ChunkHash, KeyError, ObjectKey, SALT_FORBIDDEN, SALT_MAX_CHARS, Scope, kv_rank,
};
