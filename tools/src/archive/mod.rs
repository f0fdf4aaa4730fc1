//! Archives of objects: tar files that any `tar` unpacks into a directory of the layout that they were made from.
//!
//! ```text
//! .saltern-archive       JSON: version, layout                      first
//! <name in the layout>   the payload; one entry an object, in the order of their use, the oldest first
//! .saltern-archive-end   JSON: objects, bytes                       last: an archive without it was cut short
//! ```
//!
//! Each object's entry has two extended records (pax): `SALTERN.key`, its key as the native connector writes keys, as a JSON string (readers
//! of records stumble over line ends in them), and `SALTERN.crc64`, the CRC-64/NVME of its payload in hexadecimal. Import goes by these alone: names of entries say nothing to it, so an archive can name
//! no file outside of the directory.

pub(crate) mod export;
pub(crate) mod import;

use saltern::{Layout, ObjectKey};
use serde::{Deserialize, Serialize};

const HEAD: &str = ".saltern-archive";
const TAIL: &str = ".saltern-archive-end";
const VERSION: u32 = 1;

const KEY_RECORD: &str = "SALTERN.key";
const SUM_RECORD: &str = "SALTERN.crc64";

/// Largest object that is taken out of an archive: it is in memory as a whole.
const OBJECT_BYTES_MAX: u64 = 1 << 30;

/// Longest head or tail.
const NOTE_BYTES_MAX: u64 = 4096;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Head {
    version: u32,
    layout: Layout,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Tail {
    objects: u64,
    bytes: u64,
}

/// Which objects.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Filter {
    /// Only objects of this salt (may be given several times; '' is the empty one)
    #[arg(long, value_name = "SALT")]
    salt: Vec<String>,
    /// Only objects of this model (may be given several times)
    #[arg(long, value_name = "MODEL")]
    model: Vec<String>,
}

impl Filter {
    fn wants(&self, key: &ObjectKey) -> bool {
        let has = |wanted: &[String], name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
        has(&self.salt, key.cache_salt()) && has(&self.model, key.model_name())
    }
}
