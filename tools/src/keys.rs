//! Keys in reports.

use std::fmt;

use saltern::ObjectKey;
use saltern::layout::wire;
use serde::Serialize;

/// The parts of a key, as all reports name them.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct KeyParts {
    model_name: String,
    kv_rank: u32,
    object_group_id: u32,
    chunk_hash: String,
    cache_salt: String,
    #[serde(skip)]
    wire: String,
}

impl KeyParts {
    pub(crate) fn of(key: &ObjectKey) -> Self {
        Self {
            model_name: key.model_name().to_owned(),
            kv_rank: key.kv_rank(),
            object_group_id: key.object_group_id(),
            chunk_hash: key.chunk_hash().to_string(),
            cache_salt: key.cache_salt().to_owned(),
            wire: wire::encode(key),
        }
    }
}

/// As the native connector writes it: `model@rank@group@hash`, and `@salt` where there is one.
impl fmt::Display for KeyParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.wire)
    }
}
