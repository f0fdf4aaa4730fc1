//! Lower-case hexadecimal, read strictly: what is not exactly what the layouts write is refused.

use crate::key::CHUNK_HASH_MAX_BYTES;

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Value of each digit; anything with the high bits set is no digit.
const VALUES: [u8; 256] = {
    let mut values = [0xff; 256];
    let mut digit = 0;
    while digit < 16 {
        values[DIGITS[digit] as usize] = digit as u8;
        digit += 1;
    }
    values
};

/// The digits of one chunk hash, on the stack.
pub(super) struct Digits {
    text: [u8; 2 * CHUNK_HASH_MAX_BYTES],
    len: usize,
}

impl Digits {
    /// `bytes` are those of a chunk hash, so they fit.
    pub(super) fn new(bytes: &[u8]) -> Self {
        let mut text = [0; 2 * CHUNK_HASH_MAX_BYTES];
        for (pair, byte) in text.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
            *pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
        }
        Self { text, len: 2 * bytes.len() }
    }

    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text[..self.len]).expect("hexadecimal digits are ASCII")
    }
}

/// Eight digits, leading zeros included.
pub(super) fn push_rank(rank: u32, out: &mut String) {
    out.push_str(Digits::new(&rank.to_be_bytes()).as_str());
}

/// As few digits as the number needs; `0` for zero.
pub(super) fn push_group(group: u32, out: &mut String) {
    let digits = Digits::new(&group.to_be_bytes());
    let text = digits.as_str().trim_start_matches('0');
    out.push_str(if text.is_empty() { "0" } else { text });
}

/// Reads what [`push_rank`] writes.
pub(super) fn parse_rank(text: &str) -> Option<u32> {
    if text.len() == 8 { number(text) } else { None }
}

/// Reads what [`push_group`] writes: no leading zeros, at most 32 bits.
pub(super) fn parse_group(text: &str) -> Option<u32> {
    match text.as_bytes() {
        [] | [b'0', _, ..] => None,
        digits if digits.len() > 8 => None,
        _ => number(text),
    }
}

fn number(text: &str) -> Option<u32> {
    text.bytes().try_fold(0, |sum, digit| match VALUES[usize::from(digit)] {
        value @ 0..16 => Some(sum << 4 | u32::from(value)),
        _ => None,
    })
}

/// Decodes an even number of digits into the front of `out` and returns those bytes. `None` for an odd
/// number, for anything that is no lower-case digit, and for more than `out` holds.
pub(super) fn decode<'a>(text: &str, out: &'a mut [u8]) -> Option<&'a [u8]> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let out = out.get_mut(..pairs.len())?;
    let mut seen = 0;
    for (byte, [high, low]) in out.iter_mut().zip(pairs) {
        let (high, low) = (VALUES[usize::from(*high)], VALUES[usize::from(*low)]);
        // One check after the loop instead of two in each turn.
        seen |= high | low;
        *byte = high << 4 | low & 15;
    }
    (seen < 16).then_some(out)
}
