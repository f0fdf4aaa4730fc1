//! What the bench writes into objects: bytes that only one object, at one place, can have.
//!
//! Each 8 bytes are a bijective mix of the object's base and the word's position: two objects differ in
//! every word, no two words of one object are equal, and nothing compresses. Filling and comparing are a
//! multiplication a word, so that they keep up with memory and not with the disk.

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Words that are compared before the result is looked at.
const BLOCK_BYTES: usize = 4096;

/// The finaliser of splitmix64: a bijection of 64 bits.
pub(crate) const fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Where an object's sequence starts; differs between all objects of one seed.
const fn base(seed: u64, object: u64) -> u64 {
    mix(mix(seed).wrapping_add(object))
}

const fn word(base: u64, index: u64) -> u64 {
    let word = base.wrapping_add(index.wrapping_mul(GOLDEN));
    (word ^ (word >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// Writes the bytes of one object.
pub fn fill(seed: u64, object: u64, out: &mut [u8]) {
    let base = base(seed, object);
    let mut words = out.chunks_exact_mut(8);
    let mut index = 0;
    for chunk in &mut words {
        chunk.copy_from_slice(&word(base, index).to_le_bytes());
        index += 1;
    }
    let rest = words.into_remainder();
    let len = rest.len();
    rest.copy_from_slice(&word(base, index).to_le_bytes()[..len]);
}

/// Compares with the bytes of one object.
///
/// # Errors
/// The offset of the first wrong byte.
pub fn verify(seed: u64, object: u64, bytes: &[u8]) -> Result<(), usize> {
    let base = base(seed, object);
    for (number, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
        let start = number * BLOCK_BYTES;
        if !matches(base, (start / 8) as u64, block) {
            let wrong = block.iter().enumerate().find(|(at, byte)| expected(base, start + at) != **byte);
            return Err(start + wrong.map_or(0, |(at, _)| at));
        }
    }
    Ok(())
}

/// Looks at every word before it answers, so that the loop has no branch and vectorises.
fn matches(base: u64, first: u64, block: &[u8]) -> bool {
    let (words, rest) = block.as_chunks::<8>();
    let mut difference = 0;
    let mut index = first;
    for found in words {
        difference |= u64::from_le_bytes(*found) ^ word(base, index);
        index += 1;
    }
    difference == 0 && rest == &word(base, index).to_le_bytes()[..rest.len()]
}

fn expected(base: u64, offset: usize) -> u8 {
    word(base, (offset / 8) as u64).to_le_bytes()[offset % 8]
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn what_was_filled_verifies_at_any_length() {
        for len in [0, 1, 7, 8, 9, 4095, 4096, 4097, 10_003] {
            let mut bytes = vec![0; len];
            fill(1, 2, &mut bytes);
            assert_eq!(verify(1, 2, &bytes), Ok(()), "{len} bytes");
        }
    }

    #[test]
    fn the_first_wrong_byte_is_named() {
        let mut bytes = vec![0; 10_003];
        fill(1, 2, &mut bytes);
        for at in [0, 1, 8, 4095, 4096, 5000, 9999, 10_002] {
            bytes[at] ^= 0x10;
            assert_eq!(verify(1, 2, &bytes), Err(at));
            bytes[at] ^= 0x10;
        }
        bytes[9000] ^= 1;
        bytes[7000] ^= 1;
        assert_eq!(verify(1, 2, &bytes), Err(7000));
    }

    #[test]
    fn other_objects_and_places_have_other_words() {
        let mut seen = HashSet::new();
        for object in 0..8 {
            let mut bytes = vec![0; 4096];
            fill(7, object, &mut bytes);
            for word in bytes.chunks(8) {
                assert!(seen.insert(<[u8; 8]>::try_from(word).unwrap()));
            }
            assert!(verify(7, object + 1, &bytes).is_err());
            assert!(verify(8, object, &bytes).is_err());
        }
    }
}
