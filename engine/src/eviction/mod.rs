//! What goes first when room is needed. Bookkeeping only: no I/O, no locks, no clock.
//!
//! Whoever owns the objects numbers them densely and tells a [`Policy`] what happens to them; asked for a victim, it names
//! one. Its state lies in a table by number, so that an object costs 8 bytes (LRU) to 24, plus as many for each
//! object that S3-FIFO and ARC remember after it has gone, and every call takes constant time (S3-FIFO's search for a victim: constant
//! over many calls). No call looks at everything but [`Policy::resume`] at what was deferred.
//!
//! [`SaltOrder`] is the order of use inside each salt, for those who have to give way to their own quota.

mod arc;
mod ghosts;
mod list;
mod lru;
mod queued;
mod s3fifo;
mod salts;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use arc::Arc;
pub use lru::Lru;
pub use s3fifo::S3Fifo;
pub use salts::SaltOrder;

/// The number of an object: chosen by the owner, dense (tables are as long as the highest one), free to be used again
/// when the object is gone.
pub type Id = u32;

/// An object that comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Object {
    /// Its number.
    pub id: Id,
    /// A hash of its key, by which it is recognised when it comes back after it was evicted.
    pub hash: u64,
    /// Its size.
    pub bytes: u64,
}

/// An order of eviction. Numbers that it does not know are left alone by all calls but [`Policy::insert`].
pub trait Policy: Send {
    /// An object is there now.
    ///
    /// # Panics
    /// When the number is in use.
    fn insert(&mut self, object: Object);

    /// It was used.
    fn access(&mut self, id: Id);

    /// It is gone for another reason than eviction, and is not remembered.
    fn remove(&mut self, id: Id);

    /// What should go next; the same one until something changes. It stays until it is evicted or deferred.
    fn victim(&mut self) -> Option<Id>;

    /// It is evicted.
    fn evict(&mut self, id: Id);

    /// It cannot go now, because it is in use: it is no victim until [`Policy::resume`].
    fn defer(&mut self, id: Id);

    /// Takes those back that were deferred, as just used. Takes as long as there are such.
    fn resume(&mut self);

    /// Number of objects.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The policies there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PolicyKind {
    /// The least recently used goes first.
    Lru,
    /// S3-FIFO: objects that are used only once leave early, through a small queue of their own.
    #[default]
    S3Fifo,
    /// ARC: balances recency and frequency by what it misses of either.
    Arc,
}

impl PolicyKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Lru, Self::S3Fifo, Self::Arc];

    /// Makes one, for objects of this many bytes in all: what the owner evicts down to, about.
    pub fn build(self, capacity_bytes: u64) -> Box<dyn Policy> {
        match self {
            Self::Lru => Box::new(Lru::new()),
            Self::S3Fifo => Box::new(S3Fifo::new(capacity_bytes)),
            Self::Arc => Box::new(Arc::new(capacity_bytes)),
        }
    }

    /// Its name, as configurations and commands have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lru => "lru",
            Self::S3Fifo => "s3-fifo",
            Self::Arc => "arc",
        }
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PolicyKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|kind| kind.name()).collect();
            format!("{name:?} is no policy; there are {}", names.join(", "))
        })
    }
}
