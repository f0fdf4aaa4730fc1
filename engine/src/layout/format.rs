//! What all names have in common: a scope around a hash.
//!
//! Each format writes `<model><middle><hash>[@<salt>]<extension>`, where everything but the hash depends on
//! the scope alone. Decoding therefore splits a name around its hash first, which is cheap, and reads the
//! scope from the rest only if the caller does not know that rest already.

use std::borrow::Cow;
use std::sync::Arc;

use super::{NAME_MAX, NameError, fs, hex, nixl, wire};
use crate::key::{CHUNK_HASH_MAX_BYTES, ChunkHash, KeyError, ObjectKey, Scope};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Fs,
    Nixl,
    Wire,
}

/// One way of writing keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    pub(super) family: Family,
    /// Whether there is a field for the object group.
    pub(super) grouped: bool,
    /// Whether shard directories precede the name.
    pub(super) sharded: bool,
}

/// A name around its hash; the three parts make up the whole name.
pub(super) struct Split<'a> {
    pub(super) before: &'a str,
    pub(super) hash: &'a str,
    pub(super) after: &'a str,
}

impl<'a> Split<'a> {
    pub(super) fn salt(&self, extension: &str) -> &'a str {
        self.after.strip_suffix(extension).and_then(|rest| rest.strip_prefix('@')).unwrap_or_default()
    }
}

/// The parts of a scope as they stand in a name.
pub(super) struct Parts<'a> {
    /// With `/` still replaced.
    pub(super) model: &'a str,
    pub(super) kv_rank: u32,
    pub(super) group: u32,
    pub(super) salt: &'a str,
}

impl Format {
    /// What `/` in a model becomes; `None` where it stays.
    fn slash(self) -> Option<&'static str> {
        match self.family {
            Family::Fs => Some(fs::SLASH),
            Family::Nixl => Some(nixl::SLASH),
            Family::Wire => None,
        }
    }

    fn write_before(self, scope: &Scope, out: &mut String) {
        let mut pieces = scope.model_name().split('/');
        out.push_str(pieces.next().unwrap_or_default());
        for piece in pieces {
            out.push_str(self.slash().unwrap_or("/"));
            out.push_str(piece);
        }
        let (separator, rank_prefix) = match self.family {
            Family::Fs => ('@', fs::RANK_PREFIX),
            Family::Nixl => ('_', ""),
            Family::Wire => ('@', ""),
        };
        out.push(separator);
        out.push_str(rank_prefix);
        hex::push_rank(scope.kv_rank(), out);
        out.push(separator);
        if self.grouped {
            hex::push_group(scope.object_group_id(), out);
            out.push(separator);
        }
    }

    fn write_after(self, scope: &Scope, out: &mut String) {
        if !scope.cache_salt().is_empty() {
            out.push('@');
            out.push_str(scope.cache_salt());
        }
        out.push_str(match self.family {
            Family::Fs => fs::EXTENSION,
            Family::Nixl => nixl::EXTENSION,
            Family::Wire => "",
        });
    }

    /// Appends the name, whether or not it can stand for this key; returns where its last component starts.
    pub(super) fn write(self, key: &ObjectKey, out: &mut String) -> usize {
        let digits = hex::Digits::new(key.chunk_hash().as_bytes());
        if self.sharded {
            nixl::push_shard(digits.as_str(), out);
        }
        let start = out.len();
        self.write_before(key.scope(), out);
        out.push_str(digits.as_str());
        self.write_after(key.scope(), out);
        start
    }

    pub(super) fn check_group(self, key: &ObjectKey) -> Result<(), NameError> {
        match key.object_group_id() {
            group if group != 0 && !self.grouped => Err(NameError::GroupNotEncodable { group }),
            _ => Ok(()),
        }
    }

    /// Writes the file name of a key, unless it cannot be one or is that of another key.
    pub(super) fn encode_file(self, key: &ObjectKey, out: &mut String) -> Result<(), NameError> {
        self.check_group(key)?;
        let start = self.write(key, out);
        let bytes = out.len() - start;
        if bytes > NAME_MAX {
            return Err(NameError::TooLong { bytes, name: out[start..].to_owned() });
        }
        let Some(slash) = self.slash() else { return Ok(()) };
        let model = key.model_name();
        // Every slash has grown to the length of its replacement.
        let written = model.len() + model.matches('/').count() * (slash.len() - 1);
        let written = &out[start..start + written];
        if written.split(slash).eq(model.split('/')) {
            return Ok(());
        }
        let other = written.replace(slash, "/");
        let scope = Scope::new(&other, key.kv_rank(), key.object_group_id(), key.cache_salt())?;
        let other = ObjectKey::from_parts(scope, key.chunk_hash().clone());
        Err(NameError::Collision { key: Box::new(key.clone()), other: Box::new(other), name: out.clone() })
    }

    pub(super) fn decode(self, path: &str) -> Result<ObjectKey, NameError> {
        self.decode_with(path, |split| self.scope(split))
    }

    /// Decodes a name; `scope` may know the scope already, or asks [`Format::scope`].
    pub(super) fn decode_with(
        self,
        path: &str,
        scope: impl FnOnce(&Split<'_>) -> Result<Arc<Scope>, NameError>,
    ) -> Result<ObjectKey, NameError> {
        let start = if self.sharded { path.rfind('/').map_or(0, |slash| slash + 1) } else { 0 };
        let (directory, name) = path.split_at(start);
        if self.family != Family::Wire && name.len() > NAME_MAX {
            return Err(NameError::TooLong { bytes: name.len(), name: name.to_owned() });
        }
        let split = match self.family {
            Family::Fs => fs::split(name, self.grouped),
            Family::Nixl => nixl::split(name, self.grouped),
            Family::Wire => wire::split(name, self.grouped),
        }?;
        let mut buffer = [0; CHUNK_HASH_MAX_BYTES];
        if split.hash.len() > 2 * buffer.len() {
            return Err(KeyError::HashTooLong { bytes: split.hash.len() / 2 }.into());
        }
        let hash = hex::decode(split.hash, &mut buffer);
        let hash = ChunkHash::new(hash.ok_or_else(|| NameError::Hash { found: split.hash.to_owned() })?)?;
        if self.sharded && !nixl::is_shard(directory, split.hash) {
            let mut expected = String::new();
            nixl::push_shard(split.hash, &mut expected);
            return Err(NameError::WrongShard { expected });
        }
        Ok(ObjectKey::from_parts(scope(&split)?, hash))
    }

    /// Reads the scope from what surrounds the hash, and makes sure that it would be written so again.
    pub(super) fn scope(self, split: &Split<'_>) -> Result<Arc<Scope>, NameError> {
        let parts = match self.family {
            Family::Fs => fs::parts(split, self.grouped),
            Family::Nixl => nixl::parts(split, self.grouped),
            Family::Wire => wire::parts(split, self.grouped),
        }?;
        let model = match self.slash() {
            Some(_) if parts.model.contains('/') => return Err(NameError::HasDirectory),
            Some(slash) if parts.model.contains(slash) => Cow::from(parts.model.replace(slash, "/")),
            _ => Cow::from(parts.model),
        };
        let scope = Scope::new(&model, parts.kv_rank, parts.group, parts.salt)?;
        let mut canonical = String::with_capacity(split.before.len() + split.hash.len() + split.after.len());
        self.write_before(&scope, &mut canonical);
        let before = canonical.len();
        self.write_after(&scope, &mut canonical);
        if canonical[..before] == *split.before && canonical[before..] == *split.after {
            return Ok(scope);
        }
        canonical.insert_str(before, split.hash);
        Err(NameError::NotCanonical { canonical })
    }
}
