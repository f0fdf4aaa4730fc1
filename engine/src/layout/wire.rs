//! Wire keys: the strings by which LMCache's native connectors name objects.
//!
//! | form | key without salt | key with salt |
//! |---|---|---|
//! | current | `<model>@<rank>@<group>@<hash>` | `<model>@<rank>@<group>@<hash>@<salt>` |
//! | before object groups | `<model>@<rank>@<hash>` | `<model>@<rank>@<hash>@<salt>` |
//!
//! The model stands as it is, `/` included; rank, group and hash are lower-case hexadecimal as in file
//! names, without `0x`. These are not file names: no key collides with another, and none is too long. A
//! string with four fields reads in both forms, so the caller has to know which one its peer speaks. To
//! decode many strings, use [`Decoder::wire`](super::Decoder::wire).

use super::format::{Family, Format, Parts, Split};
use super::{NameError, fs};
use crate::key::ObjectKey;

pub(super) const FORM: Format = Format { family: Family::Wire, grouped: true, sharded: false };
const FORM3: Format = Format { grouped: false, ..FORM };

/// Writes a key in the current form.
///
/// ```
/// use saltern::{ObjectKey, layout::wire};
/// let key = ObjectKey::new("org/m", 0x0201_0201, 10, &[0xab, 0xcd], "t")?;
/// assert_eq!(wire::encode(&key), "org/m@02010201@a@abcd@t");
/// assert_eq!(wire::decode("org/m@02010201@a@abcd@t")?, key);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn encode(key: &ObjectKey) -> String {
    let mut out = String::new();
    FORM.write(key, &mut out);
    out
}

/// Reads the current form.
///
/// # Errors
/// [`NameError`] says what is not as [`encode`] writes it.
pub fn decode(text: &str) -> Result<ObjectKey, NameError> {
    FORM.decode(text)
}

/// Writes a key in the form without an object group.
///
/// # Errors
/// [`NameError::GroupNotEncodable`] when the group is not 0.
pub fn encode3(key: &ObjectKey) -> Result<String, NameError> {
    FORM3.check_group(key)?;
    let mut out = String::new();
    FORM3.write(key, &mut out);
    Ok(out)
}

/// Reads the form without an object group, which becomes 0.
///
/// # Errors
/// [`NameError`] says what is not as [`encode3`] writes it.
pub fn decode3(text: &str) -> Result<ObjectKey, NameError> {
    FORM3.decode(text)
}

pub(super) fn split(text: &str, grouped: bool) -> Result<Split<'_>, NameError> {
    fs::split_fields(text, text.len(), grouped).ok_or(NameError::Fields {
        expected: if grouped { "<model>@<rank>@<group>@<hash>[@<salt>]" } else { "<model>@<rank>@<hash>[@<salt>]" },
    })
}

pub(super) fn parts<'a>(split: &Split<'a>, grouped: bool) -> Result<Parts<'a>, NameError> {
    fs::parse_fields(split, "", "", grouped)
}
