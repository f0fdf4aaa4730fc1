//! The names of LMCache's `fs` and `fs_native` adapters.
//!
//! | layout | key without salt | key with salt |
//! |---|---|---|
//! | `fs` | `<model>@0x<rank>@<group>@<hash>.data` | `<model>@0x<rank>@<group>@<hash>@<salt>.data` |
//! | `fs3` | `<model>@0x<rank>@<hash>.data` | `<model>@0x<rank>@<hash>@<salt>.data` |
//!
//! `/` in the model is written `-SEP-`; the rank has eight hexadecimal digits, the group as many as it
//! needs, the hash two for each byte, all in lower case. Neither model nor salt contains `@`, so the fields
//! are found by splitting. A name with four fields reads in both layouts; see [`detect`](super::detect).

use super::format::{Parts, Split};
use super::{NameError, hex};

pub(super) const EXTENSION: &str = ".data";
pub(super) const SLASH: &str = "-SEP-";
pub(super) const RANK_PREFIX: &str = "0x";

pub(super) fn split(name: &str, grouped: bool) -> Result<Split<'_>, NameError> {
    let stem = name.strip_suffix(EXTENSION).ok_or(NameError::Extension { expected: EXTENSION })?;
    split_fields(name, stem.len(), grouped).ok_or(NameError::Fields {
        expected: if grouped {
            "<model>@0x<rank>@<group>@<hash>[@<salt>].data"
        } else {
            "<model>@0x<rank>@<hash>[@<salt>].data"
        },
    })
}

pub(super) fn parts<'a>(split: &Split<'a>, grouped: bool) -> Result<Parts<'a>, NameError> {
    parse_fields(split, EXTENSION, RANK_PREFIX, grouped)
}

/// Finds the hash among fields separated by `@`, of which the first `stem` bytes of `name` consist.
pub(super) fn split_fields(name: &str, stem: usize, grouped: bool) -> Option<Split<'_>> {
    let before_hash = if grouped { 3 } else { 2 };
    let (mut start, mut end, mut separators) = (0, stem, 0);
    for (at, _) in name[..stem].match_indices('@') {
        separators += 1;
        if separators == before_hash {
            start = at + 1;
        } else if separators == before_hash + 1 {
            end = at;
        }
    }
    let complete = separators == before_hash || separators == before_hash + 1;
    complete.then(|| Split { before: &name[..start], hash: &name[start..end], after: &name[end..] })
}

/// Reads the fields around the hash that [`split_fields`] found. The model stays as written.
pub(super) fn parse_fields<'a>(
    split: &Split<'a>,
    extension: &str,
    rank_prefix: &str,
    grouped: bool,
) -> Result<Parts<'a>, NameError> {
    let mut fields = split.before.split('@');
    let mut next = || fields.next().unwrap_or_default();
    let (model, rank) = (next(), next());
    let kv_rank = rank
        .strip_prefix(rank_prefix)
        .and_then(hex::parse_rank)
        .ok_or_else(|| NameError::Rank { found: rank.to_owned() })?;
    let group = if grouped {
        let group = next();
        hex::parse_group(group).ok_or_else(|| NameError::Group { found: group.to_owned() })?
    } else {
        0
    };
    Ok(Parts { model, kv_rank, group, salt: split.salt(extension) })
}
