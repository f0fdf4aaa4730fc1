//! Keys and payloads by number.

use saltern::{Layout, ObjectKey, kv_rank};

const MODEL: &str = "org/model-8b";

/// Key `n` of the empty salt.
pub fn key(n: u32) -> ObjectKey {
    salted(n, "")
}

/// Key `n` of a salt; no two numbers share a chunk hash.
pub fn salted(n: u32, salt: &str) -> ObjectKey {
    make(MODEL, kv_rank(1, 0, 1, 0), 0, &hash(n, 32), salt)
}

/// Keys of every kind that a layout can name: three salts, models with separators of the layouts in them, ranks,
/// object groups where there are any, and hashes from one byte to 48.
pub fn varied(layout: Layout) -> Vec<ObjectKey> {
    let is_grouped = !matches!(layout, Layout::Fs3 | Layout::Nixl3);
    let group = |n| if is_grouped { n } else { 0 };
    let rank = kv_rank(8, 3, 8, 3);
    vec![
        make(MODEL, rank, 0, &hash(1, 32), ""),
        make(MODEL, rank, 0, &hash(1, 32), "tenant-a"),
        make(MODEL, rank, 0, &hash(1, 32), "grün_b"),
        make(MODEL, if is_grouped { rank } else { rank + 1 }, group(10), &hash(1, 32), ""),
        make(MODEL, rank, group(11), &hash(2, 32), "tenant-a"),
        make(MODEL, 0, 0, &hash(3, 32), "tenant-a"),
        make("plain", u32::MAX, group(u32::MAX), &hash(4, 32), ""),
        make("with_under_scores-1", 1, 0, &hash(5, 32), ""),
        make("a/b/c d\n", 1, 0, &hash(6, 32), "grün_b"),
        make("dots..", 1, 0, &hash(7, 1), ""),
        make("dots..", 1, 0, &hash(8, 2), "0"),
        make("long", 1, 0, &hash(9, 48), "cafe"),
        make("long", 1, 0, &hash(10, 33), "tenant-a"),
        make(MODEL, rank, 0, &hash(11, 32), ""),
    ]
}

fn make(model: &str, rank: u32, group: u32, hash: &[u8], salt: &str) -> ObjectKey {
    ObjectKey::new(model, rank, group, hash, salt).expect("a valid key")
}

fn hash(n: u32, len: usize) -> Vec<u8> {
    payload(u64::from(n) ^ 0x6861_7368, len)
}

/// `len` bytes that belong to `seed` alone: no aligned part of them repeats, here or under another seed.
pub fn payload(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut state = mix(seed);
    for chunk in bytes.chunks_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        chunk.copy_from_slice(&mix(state).to_le_bytes()[..chunk.len()]);
    }
    bytes
}

/// The finaliser of SplitMix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varied_keys_are_all_different() {
        for layout in Layout::ALL {
            let keys = varied(layout);
            let distinct: std::collections::HashSet<_> = keys.iter().collect();
            assert_eq!(distinct.len(), keys.len(), "{layout}");
        }
    }

    #[test]
    fn payloads_depend_on_seed_and_not_on_length() {
        assert_eq!(payload(7, 4097)[..100], payload(7, 100));
        assert_ne!(payload(7, 32), payload(8, 32));
        assert!(payload(7, 0).is_empty());
    }
}
