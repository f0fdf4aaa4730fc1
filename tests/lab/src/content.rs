//! Objects of the lab: key, size and bytes by number, so that whatever is found can be checked.

use saltern::{Layout, ObjectKey};
use saltern_tests::{file_name, payload, salted};

const SALTS: [&str; 3] = ["", "tenant-a", "b"];
const SIZES: [usize; 10] = [0, 1, 4095, 4096, 4097, 20_000, 65_536, 65_537, 262_144, 300_003];

/// The key of an object.
pub fn key(n: u32) -> ObjectKey {
    salted(n, SALTS[n as usize % SALTS.len()])
}

/// Its size.
pub fn size(n: u32) -> usize {
    SIZES[n as usize % SIZES.len()]
}

/// Its bytes.
pub fn bytes(n: u32) -> Vec<u8> {
    payload(n.into(), size(n))
}

/// Its file.
pub fn name(layout: Layout, n: u32) -> String {
    file_name(layout, &key(n))
}
