//! Guessing the layout of a directory from the names in it.
//!
//! Extension and shard directories tell most layouts apart, but not those with an object group from those
//! without: `m@0x00000001@10@<hash>.data` is a key of group 16 in `fs`, and in `fs3` a key with the hash
//! `10` and a salt. Nor is `m_20240101_10000100_<hash>.bin` any clearer. So the directory is judged as a
//! whole: a name that reads in one layout only counts for that one, and so does a name of which only one
//! reading is plausible (a hash of 32 bytes, as LMCache's all are, and a small group). The others count for
//! each layout they read in. The most names win, and among equals the layout with a group.

use std::fmt::Write as _;

use super::Layout;

/// Length of LMCache's chunk hashes.
const USUAL_HASH_BYTES: usize = 32;

/// Groups are numbered from 0, and models have a handful.
const USUAL_GROUPS: u32 = 1 << 16;

/// The layouts in the order in which equals are decided: the current ones first.
const PREFERENCE: [Layout; 5] = [Layout::Fs, Layout::Nixl, Layout::NixlSharded, Layout::Fs3, Layout::Nixl3];

/// A guess and what speaks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detection {
    /// The layout that most names have.
    pub layout: Layout,
    /// The evidence, in one sentence.
    pub reason: String,
}

/// Guesses the layout that names (relative to the volume, as [`Layout::encode`] gives them) were written in;
/// `None` if no name reads in any layout.
///
/// ```
/// use saltern::layout::{Layout, detect::detect};
/// let found = detect(["ab/cd/m_00000001_0_abcd.bin", "lost+found"]).unwrap();
/// assert_eq!(found.layout, Layout::NixlSharded);
/// assert_eq!(found.reason, "1 of 2 names is nixl-sharded, 1 is of no layout");
/// assert_eq!(detect(["lost+found"]), None);
/// ```
pub fn detect<I>(names: I) -> Option<Detection>
where
    I: IntoIterator<Item: AsRef<str>>,
{
    let mut certain = [0_usize; PREFERENCE.len()];
    let mut possible = [0_usize; PREFERENCE.len()];
    let (mut total, mut unclear, mut foreign) = (0_usize, 0_usize, 0_usize);
    for name in names {
        total += 1;
        match read(name.as_ref()) {
            Reading::None => foreign += 1,
            Reading::One(at) => certain[at] += 1,
            Reading::Several(each) => {
                unclear += 1;
                for (count, fits) in possible.iter_mut().zip(each) {
                    *count += usize::from(fits);
                }
            }
        }
    }
    // `max_by_key` takes the last of equals.
    let best = (0..PREFERENCE.len()).rev().max_by_key(|&at| (certain[at] + possible[at], certain[at]))?;
    let count = certain[best] + possible[best];
    if count == 0 {
        return None;
    }

    let is = |count| if count == 1 { "is" } else { "are" };
    let layout = PREFERENCE[best];
    let mut reason = format!("{count} of {total} names {} {layout}", is(count));
    if possible[best] > 0 {
        let _ = write!(reason, " ({} of them could be of another layout too)", possible[best]);
    }
    for at in (0..PREFERENCE.len()).filter(|&at| at != best && certain[at] > 0) {
        let _ = write!(reason, ", {} {} {}", certain[at], is(certain[at]), PREFERENCE[at]);
    }
    if unclear > possible[best] {
        let rest = unclear - possible[best];
        let _ = write!(reason, ", {rest} {} of one of two other layouts", is(rest));
    }
    if foreign > 0 {
        let _ = write!(reason, ", {foreign} {} of no layout", is(foreign));
    }
    Some(Detection { layout, reason })
}

/// In which layouts of [`PREFERENCE`] a name reads.
enum Reading {
    None,
    One(usize),
    Several([bool; PREFERENCE.len()]),
}

fn read(name: &str) -> Reading {
    let keys = PREFERENCE.map(|layout| layout.decode(name).ok());
    let fits = keys.each_ref().map(Option::is_some);
    let plausible = keys.map(|key| {
        key.is_some_and(|key| {
            key.chunk_hash().as_bytes().len() == USUAL_HASH_BYTES && key.object_group_id() < USUAL_GROUPS
        })
    });
    let only = |of: &[bool]| match of.iter().filter(|&&yes| yes).count() {
        1 => of.iter().position(|&yes| yes),
        _ => None,
    };
    match only(&fits).or_else(|| only(&plausible)) {
        Some(at) => Reading::One(at),
        None if fits.contains(&true) => Reading::Several(fits),
        None => Reading::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::ObjectKey;

    fn guess(names: &[&str]) -> Option<(Layout, String)> {
        detect(names).map(|found| (found.layout, found.reason))
    }

    fn hash(first: u8) -> String {
        format!("{first:02x}").repeat(32)
    }

    #[test]
    fn nothing_reads_in_no_layout() {
        assert_eq!(guess(&[]), None);
        assert_eq!(guess(&["", ".", "x.data", "x.bin", "m@0x1@0@ab.data", "ab/cd", ".saltern"]), None);
    }

    #[test]
    fn each_layout_is_found_from_its_names() {
        for layout in Layout::ALL {
            for salt in ["", "tenant-1", "deadbeef", "a.data"] {
                let names = [1, 2, 3].map(|byte| {
                    let key = ObjectKey::new("org/some_model", 0x0801_0801, 0, &[byte; 32], salt).unwrap();
                    layout.encode(&key).unwrap()
                });
                let found = detect(&names).unwrap();
                assert_eq!(found.layout, layout, "{names:?}");
                assert_eq!(found.reason, format!("3 of 3 names are {layout}"));
            }
        }
    }

    #[test]
    fn a_hash_of_the_usual_length_decides() {
        let (one, two) = (hash(1), hash(2));
        // As fs3: hash 10, salt 0101...
        let grouped = format!("m@0x00000001@10@{one}.data");
        let old = format!("m@0x00000001@{two}.data");
        assert_eq!(Layout::Fs3.decode(&grouped).unwrap().cache_salt(), one);
        assert_eq!(guess(&[&grouped]), Some((Layout::Fs, "1 of 1 names is fs".into())));
        assert_eq!(guess(&[&grouped, &grouped, &old]), Some((Layout::Fs, "2 of 3 names are fs, 1 is fs3".into())));
        assert_eq!(guess(&[&grouped, &old, &old]), Some((Layout::Fs3, "2 of 3 names are fs3, 1 is fs".into())));
    }

    #[test]
    fn a_huge_group_is_not_believed() {
        // As nixl: model "m", rank 0x20240101, group 0x10000100.
        let name = format!("m_20240101_10000100_{}.bin", hash(1));
        assert!(Layout::Nixl.decode(&name).is_ok());
        assert_eq!(guess(&[&name]), Some((Layout::Nixl3, "1 of 1 names is nixl3".into())));
    }

    #[test]
    fn unclear_names_follow_the_others() {
        let unclear = "m@0x00000001@ab12@cafe.data";
        let also = " (1 of them could be of another layout too)";
        assert_eq!(guess(&[unclear]), Some((Layout::Fs, format!("1 of 1 names is fs{also}"))));
        assert_eq!(
            guess(&[unclear, "m@0x00000001@ab13.data"]),
            Some((Layout::Fs3, format!("2 of 2 names are fs3{also}")))
        );
        assert_eq!(
            guess(&[unclear, "m@0x00000001@0@ab13.data"]),
            Some((Layout::Fs, format!("2 of 2 names are fs{also}")))
        );
        assert_eq!(
            guess(&[unclear, "m_00000001_0_ab.bin", "m_00000001_0_cd.bin", "x"]),
            Some((Layout::Nixl, "2 of 4 names are nixl, 1 is of one of two other layouts, 1 is of no layout".into()))
        );
    }
}
