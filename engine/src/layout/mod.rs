//! How keys become file names, and file names keys again.
//!
//! The layouts are LMCache's own, so that it and this engine can take over each other's directories:
//! [`fs`] and [`nixl`] describe the names, [`wire`] the strings of LMCache's native connectors. A file
//! holds the payload and nothing else, so its name is all that is known of its key.
//!
//! Within one layout, encoding and decoding are inverse. LMCache replaces `/` in model names by text that
//! a model name may contain, so there `a/b` and `a-SEP-b` share a file; here [`Layout::encode`] refuses the
//! one that the name would not be decoded to ([`NameError::Collision`]). Decoding takes exactly the names
//! that encoding gives and never guesses. Every name is one safe path component (below shard directories
//! of two hexadecimal digits each): it has an extension, so that it is neither `.` nor `..`, it contains
//! neither `/` nor NUL, and it is at most [`NAME_MAX`] bytes long. It may contain newlines.
//!
//! Different layouts may read one name differently; a volume has one configured layout. [`detect`] guesses
//! the layout of a directory whose configuration is lost.

mod decoder;
pub mod detect;
mod format;
pub mod fs;
mod hex;
pub mod nixl;
#[cfg(test)]
mod tests;
pub mod wire;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::decoder::{Decoder, SCOPES_CACHED};
use self::format::{Family, Format};
use crate::key::{KeyError, ObjectKey};

/// Longest file name in bytes.
pub const NAME_MAX: usize = 255;

/// A way of naming the files of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// LMCache's `fs` and `fs_native` adapters.
    Fs,
    /// The same before object groups.
    Fs3,
    /// LMCache's `nixl_store_dynamic` adapter.
    Nixl,
    /// The same before object groups.
    Nixl3,
    /// LMCache's `nixl_store_dynamic` adapter with shard directories.
    NixlSharded,
}

impl Layout {
    /// All layouts.
    pub const ALL: [Self; 5] = [Self::Fs, Self::Fs3, Self::Nixl, Self::Nixl3, Self::NixlSharded];

    /// The name in configurations and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fs => "fs",
            Self::Fs3 => "fs3",
            Self::Nixl => "nixl",
            Self::Nixl3 => "nixl3",
            Self::NixlSharded => "nixl-sharded",
        }
    }

    /// Whether files lie in shard directories instead of the volume's own.
    pub fn is_sharded(self) -> bool {
        self == Self::NixlSharded
    }

    /// Writes the path of a key, relative to the volume, into `out`, which is cleared first and left empty
    /// on errors.
    ///
    /// # Errors
    /// [`NameError::GroupNotEncodable`], [`NameError::TooLong`] or [`NameError::Collision`].
    pub fn encode_into(self, key: &ObjectKey, out: &mut String) -> Result<(), NameError> {
        out.clear();
        // A name that was refused must not be used by mistake.
        self.format().encode_file(key, out).inspect_err(|_| out.clear())
    }

    /// The path of a key, relative to the volume.
    ///
    /// # Errors
    /// As for [`Layout::encode_into`].
    ///
    /// ```
    /// use saltern::{ObjectKey, layout::Layout};
    /// let key = ObjectKey::new("org/m", 0x0201_0201, 0, &[0xab, 0xcd], "")?;
    /// assert_eq!(Layout::Fs.encode(&key)?, "org-SEP-m@0x02010201@0@abcd.data");
    /// assert_eq!(Layout::NixlSharded.encode(&key)?, "ab/cd/org--m_02010201_0_abcd.bin");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn encode(self, key: &ObjectKey) -> Result<String, NameError> {
        let mut out = String::new();
        self.encode_into(key, &mut out)?;
        Ok(out)
    }

    /// The key of a path as [`Layout::encode`] gives it. For many paths, use [`Decoder`].
    ///
    /// # Errors
    /// [`NameError`] says in what the path is not one of this layout.
    pub fn decode(self, path: &str) -> Result<ObjectKey, NameError> {
        self.format().decode(path)
    }

    fn format(self) -> Format {
        let (family, grouped) = match self {
            Self::Fs => (Family::Fs, true),
            Self::Fs3 => (Family::Fs, false),
            Self::Nixl | Self::NixlSharded => (Family::Nixl, true),
            Self::Nixl3 => (Family::Nixl, false),
        };
        Format { family, grouped, sharded: self.is_sharded() }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Layout {
    type Err = UnknownLayout;

    fn from_str(name: &str) -> Result<Self, UnknownLayout> {
        Self::ALL.into_iter().find(|layout| layout.name() == name).ok_or_else(|| UnknownLayout(name.to_owned()))
    }
}

/// No layout has this name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown layout {0:?}; known are {known}", known = Layout::ALL.map(Layout::name).join(", "))]
pub struct UnknownLayout(pub String);

/// Why a key has no name in a layout, or a name no key.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NameError {
    /// The name has another extension.
    #[error("the name does not end in {expected:?}")]
    Extension {
        /// The extension of the layout.
        expected: &'static str,
    },
    /// The name has too few fields, or too many.
    #[error("the name does not have the fields {expected}")]
    Fields {
        /// What the names of the layout look like.
        expected: &'static str,
    },
    /// The field of the rank does not hold one.
    #[error("{found:?} is not a rank of eight lower-case hexadecimal digits")]
    Rank {
        /// The field.
        found: String,
    },
    /// The field of the object group does not hold one.
    #[error("{found:?} is not an object group of 32 bits in lower-case hexadecimal without leading zeros")]
    Group {
        /// The field.
        found: String,
    },
    /// The field of the chunk hash does not hold one.
    #[error("{found:?} is not a chunk hash: an even number of lower-case hexadecimal digits")]
    Hash {
        /// The field.
        found: String,
    },
    /// The fields do not make a key.
    #[error("the name holds no valid key: {0}")]
    Key(#[from] KeyError),
    /// A name with a directory in a layout that has none.
    #[error("the name contains '/', but the files of this layout lie in the volume itself")]
    HasDirectory,
    /// The file is not in the shard directory of its hash.
    #[error("the file is not in its shard directory {expected:?}")]
    WrongShard {
        /// The directory where it belongs.
        expected: String,
    },
    /// The name reads as a key whose name is another.
    #[error("the name is not as the layout writes it, which is {canonical:?}")]
    NotCanonical {
        /// The name of that key.
        canonical: String,
    },
    /// The name is too long for a file system.
    #[error("the name has {bytes} bytes, at most {NAME_MAX} are possible: {name:?}")]
    TooLong {
        /// Its length in bytes, without shard directories.
        bytes: usize,
        /// The name, without shard directories.
        name: String,
    },
    /// The file with the name of this key is that of another key.
    #[error("{key} has no name of its own: {name:?} is the name of {other}")]
    Collision {
        /// The key that was to be encoded.
        key: Box<ObjectKey>,
        /// The key to which the name belongs.
        other: Box<ObjectKey>,
        /// The name, with shard directories.
        name: String,
    },
    /// The layout has no field for the object group.
    #[error("object group {group:#x} cannot be written: names without a group field stand for group 0")]
    GroupNotEncodable {
        /// The group of the key.
        group: u32,
    },
}
