//! The names of LMCache's `nixl_store_dynamic` adapter.
//!
//! | layout | key without salt | key with salt |
//! |---|---|---|
//! | `nixl` | `<model>_<rank>_<group>_<hash>.bin` | `<model>_<rank>_<group>_<hash>@<salt>.bin` |
//! | `nixl3` | `<model>_<rank>_<hash>.bin` | `<model>_<rank>_<hash>@<salt>.bin` |
//! | `nixl-sharded` | `<hash[0:2]>/<hash[2:4]>/` before the `nixl` name | same |
//!
//! `/` in the model is written `--`; the numbers are those of [`fs`](super::fs), without `0x`. A model may
//! contain `_`, so names are read from the right; the salt, which may contain `_` too, stands after the only
//! `@`. The shard directories are made of hexadecimal digits of the hash; a hash of one byte has no second
//! pair of them, and its file lies one level up, in `<hash>/`.

use super::format::{Parts, Split};
use super::{NameError, hex};

pub(super) const EXTENSION: &str = ".bin";
pub(super) const SLASH: &str = "--";

fn wrong_fields(grouped: bool) -> NameError {
    NameError::Fields {
        expected: if grouped {
            "<model>_<rank>_<group>_<hash>[@<salt>].bin"
        } else {
            "<model>_<rank>_<hash>[@<salt>].bin"
        },
    }
}

pub(super) fn split(name: &str, grouped: bool) -> Result<Split<'_>, NameError> {
    let stem = name.strip_suffix(EXTENSION).ok_or(NameError::Extension { expected: EXTENSION })?;
    let end = match stem.split_once('@') {
        None => stem.len(),
        Some((_, salt)) if salt.contains('@') => return Err(wrong_fields(grouped)),
        Some((fields, _)) => fields.len(),
    };
    let start = stem[..end].rfind('_').ok_or_else(|| wrong_fields(grouped))? + 1;
    Ok(Split { before: &name[..start], hash: &name[start..end], after: &name[end..] })
}

pub(super) fn parts<'a>(split: &Split<'a>, grouped: bool) -> Result<Parts<'a>, NameError> {
    // `before` ends in the `_` that `split` found, so the first field from the right is empty.
    let mut fields = split.before.rsplitn(if grouped { 4 } else { 3 }, '_').skip(1);
    let mut next = || fields.next().ok_or_else(|| wrong_fields(grouped));
    let group = if grouped {
        let group = next()?;
        hex::parse_group(group).ok_or_else(|| NameError::Group { found: group.to_owned() })?
    } else {
        0
    };
    let rank = next()?;
    let kv_rank = hex::parse_rank(rank).ok_or_else(|| NameError::Rank { found: rank.to_owned() })?;
    Ok(Parts { model: next()?, kv_rank, group, salt: split.salt(EXTENSION) })
}

/// Appends the shard directories of a hash, each with its `/`.
pub(super) fn push_shard(hash: &str, out: &mut String) {
    for level in [hash.get(..2), hash.get(2..4)].into_iter().flatten() {
        out.push_str(level);
        out.push('/');
    }
}

/// Whether `directory` (with its last `/`) is the shard directory of a hash.
pub(super) fn is_shard(directory: &str, hash: &str) -> bool {
    let (first, second) = hash.split_at_checked(2).unwrap_or((hash, ""));
    match (directory.as_bytes(), second.get(..2)) {
        ([a @ .., b'/'], None) => a == first.as_bytes(),
        ([a, b, b'/', c, d, b'/'], Some(second)) => [*a, *b] == first.as_bytes() && [*c, *d] == second.as_bytes(),
        _ => false,
    }
}
