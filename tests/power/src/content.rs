//! Objects whose bytes are a function of their key, so that any byte found anywhere says where it belongs.
//!
//! ```text
//! sector (512 bytes) = magic | key number | offset in the object | filling, a function of both
//! ```
//! The last sector of an object of odd length is cut. Sizes are a function of the key too.

use std::fmt;
use std::ops::RangeInclusive;

use saltern::{ObjectKey, kv_rank};

/// Every sector is stamped.
pub const SECTOR_BYTES: usize = 512;
const MAGIC: u64 = 0x7061_772d_7265_776f;
const WORDS: usize = SECTOR_BYTES / 8;

const MODEL: &str = "org/power-7b";
const SALTS: [&str; 3] = ["", "tenant-a", "tenant-b"];

fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The key of a number. Numbers of different keys differ. In layouts with shard directories, 16 directories are enough for all.
pub fn key_of(number: u64) -> ObjectKey {
    let mut hash = [0; 32];
    hash[..2].copy_from_slice(&[(mix(number) >> 8) as u8 & 3, (mix(number) >> 16) as u8 & 3]);
    hash[8..16].copy_from_slice(&number.to_be_bytes());
    hash[16..24].copy_from_slice(&mix(number).to_be_bytes());
    let salt = SALTS[(mix(number) % SALTS.len() as u64) as usize];
    ObjectKey::new(MODEL, kv_rank(1, 0, 1, 0), 0, &hash, salt).expect("the parts are valid")
}

/// The number of a key that [`key_of`] has made; `None` for any other key.
pub fn number_of(key: &ObjectKey) -> Option<u64> {
    let number = u64::from_be_bytes(key.chunk_hash().as_bytes().get(8..16)?.try_into().ok()?);
    (key_of(number) == *key).then_some(number)
}

/// Smallest and largest object.
pub const SIZE_RANGE: RangeInclusive<u64> = 61 << 10..=1 << 20;

/// The length of an object: 64 KiB to 1 MiB, more small ones than large ones, and two of five a little shorter than that.
pub fn size_of(number: u64) -> u64 {
    let roll = mix(number ^ 0x5123);
    let class_bytes: u64 = match roll % 100 {
        0..30 => 64 << 10,
        30..50 => 128 << 10,
        50..80 => 256 << 10,
        80..93 => 512 << 10,
        _ => 1 << 20,
    };
    let cut = if (roll >> 8) % 5 < 2 { 1 + (roll >> 16) % 3000 } else { 0 };
    class_bytes - cut
}

fn sector(number: u64, offset: u64) -> [u64; WORDS] {
    let start = mix(number ^ offset.rotate_left(40));
    let mut words: [u64; WORDS] =
        std::array::from_fn(|at| start.wrapping_add(at as u64).wrapping_mul(0x2545_f491_4f6c_dd1d));
    words[..3].copy_from_slice(&[MAGIC, number, offset]);
    words
}

/// Writes the bytes of an object, from its start on.
pub fn fill(number: u64, out: &mut [u8]) {
    for (at, bytes) in out.chunks_mut(SECTOR_BYTES).enumerate() {
        let words = sector(number, (at * SECTOR_BYTES) as u64);
        bytes.copy_from_slice(&bytemuck::bytes_of(&words)[..bytes.len()]);
    }
}

/// The bytes of an object.
pub fn bytes_of(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; size_of(number) as usize];
    fill(number, &mut bytes);
    bytes
}

/// What a run of sectors holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Right,
    Zeroes,
    /// Whole sectors of another object, or of this one from another place.
    Other {
        number: u64,
        /// Its own offset minus where it was found.
        shift: i64,
    },
    Unknown,
}

fn owner(number: u64, at: u64, bytes: &[u8]) -> Owner {
    let is = |number, offset| bytemuck::bytes_of(&sector(number, offset))[..bytes.len()] == *bytes;
    if is(number, at) {
        return Owner::Right;
    }
    if bytes.iter().all(|byte| *byte == 0) {
        return Owner::Zeroes;
    }
    let word =
        |at: usize| bytes.get(at * 8..at * 8 + 8).map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes")));
    match (word(0), word(1), word(2)) {
        (Some(MAGIC), Some(other), Some(offset)) if is(other, offset) => {
            Owner::Other { number: other, shift: offset.cast_signed() - at.cast_signed() }
        }
        _ => Owner::Unknown,
    }
}

/// How bytes differ from those of their key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    number: u64,
    found_bytes: u64,
    runs: Vec<(u64, u64, Owner)>,
}

impl Difference {
    /// Whose bytes are in place of the right ones, in order of appearance.
    pub fn others(&self) -> impl Iterator<Item = u64> + '_ {
        self.runs.iter().filter_map(|(_, _, owner)| match owner {
            Owner::Other { number, .. } if *number != self.number => Some(*number),
            _ => None,
        })
    }
}

/// Compares bytes with those of a key; `None` when every byte and the length are right.
pub fn compare(number: u64, found: &[u8]) -> Option<Difference> {
    let found_bytes = found.len() as u64;
    let is_right = |(at, bytes): (usize, &[u8])| {
        bytemuck::bytes_of(&sector(number, (at * SECTOR_BYTES) as u64))[..bytes.len()] == *bytes
    };
    if found_bytes == size_of(number) && found.chunks(SECTOR_BYTES).enumerate().all(is_right) {
        return None;
    }
    let mut runs: Vec<(u64, u64, Owner)> = Vec::new();
    for (at, bytes) in found.chunks(SECTOR_BYTES).enumerate() {
        let from = (at * SECTOR_BYTES) as u64;
        let (to, owner) = (from + bytes.len() as u64, owner(number, from, bytes));
        match runs.last_mut() {
            Some((_, end, last)) if *last == owner => *end = to,
            _ => runs.push((from, to, owner)),
        }
    }
    Some(Difference { number, found_bytes, runs })
}

/// Most runs that are spelled out.
const RUNS_SHOWN: usize = 8;

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {}: {} bytes found, {} expected;", self.number, self.found_bytes, size_of(self.number))?;
        for (from, to, owner) in self.runs.iter().take(RUNS_SHOWN) {
            write!(f, " [{from}..{to})=")?;
            match owner {
                Owner::Right => write!(f, "right")?,
                Owner::Zeroes => write!(f, "zeroes")?,
                Owner::Other { number, shift } => write!(f, "key {number} shifted by {shift}")?,
                Owner::Unknown => write!(f, "unknown")?,
            }
        }
        let more = self.runs.len().saturating_sub(RUNS_SHOWN);
        if more > 0 { write!(f, " and {more} more runs") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn right_bytes_are_right_and_every_wrong_one_is_seen() {
        for number in 0..40 {
            assert_eq!(number_of(&key_of(number)), Some(number));
            assert!(SIZE_RANGE.contains(&size_of(number)));
            let mut bytes = bytes_of(number);
            assert_eq!(compare(number, &bytes), None);
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            assert!(compare(number, &bytes).is_some());
            bytes[last] ^= 1;
            assert!(compare(number, &bytes[..last]).is_some());
            bytes.push(0);
            assert!(compare(number, &bytes).is_some());
        }
    }

    #[test]
    fn a_difference_says_whose_bytes_there_are() {
        let (mut bytes, other) = (bytes_of(1), bytes_of(2));
        bytes[4096..8192].copy_from_slice(&other[4096..8192]);
        bytes[8192..8704].fill(0);
        let difference = compare(1, &bytes).unwrap();
        assert_eq!(difference.others().collect::<Vec<_>>(), [2]);
        let text = difference.to_string();
        assert!(text.contains("[0..4096)=right [4096..8192)=key 2 shifted by 0 [8192..8704)=zeroes"), "{text}");
    }
}
