//! Large page-aligned buffers, each a pool of its own.

use saltern::{Pool, PoolBuffer};

use crate::error::Result;

/// Pools are made of pieces of this size.
const PIECE_BYTES: usize = 2 << 20;

/// A buffer of `len` bytes (not 0) in a pool that holds nothing else.
///
/// The pool's allocator sorts free ranges into eight classes a power of two, and finds a range for certain only
/// when the request fills a class exactly: so the pool is a whole number of eighths of a power of two.
///
/// # Errors
/// As [`Pool::new`].
pub(crate) fn alone(len: usize) -> Result<PoolBuffer> {
    let pool_bytes = whole_class(len);
    let mut buffer = Pool::new(pool_bytes)?.alloc(pool_bytes)?;
    // Every page is touched here, not in a timed part.
    buffer.fill(0);
    Ok(buffer)
}

fn whole_class(len: usize) -> usize {
    let eighth = (len.max(1).ilog2()).saturating_sub(3);
    len.next_multiple_of((1 << eighth).max(PIECE_BYTES)).max(PIECE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_length_can_be_had() {
        for mib in [1, 2, 3, 7, 17, 19, 33, 49, 61] {
            let len = (mib << 20) + 4096;
            assert!(alone(len).unwrap().len() >= len, "{mib} MiB");
        }
        assert!(
            [1 << 20, 100 << 20, 205 << 20, 1 << 30].iter().all(|len| whole_class(*len) <= len + len / 8 + (2 << 20))
        );
    }
}
