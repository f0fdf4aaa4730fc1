//! Checksums of payloads: what is computed, and how it is kept beside a file.
//!
//! The payload's file stays raw, so that other programs can read it; its *stamp* is an extended attribute,
//! [`STAMP_NAME`], of 24 bytes, little-endian:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 1 | version of this format: 1 |
//! | 1 | 1 | algorithm: 1 = CRC-64/NVME |
//! | 2 | 6 | zero |
//! | 8 | 8 | length of the payload |
//! | 16 | 8 | checksum of the payload |
//!
//! It is written after the payload and before the object gets its name. 24 bytes fit into the inode on ext4 and xfs.
//! Files without a stamp (written by other programs) are accepted; a stamp of an unknown version or algorithm is taken
//! for none.

use std::ffi::CStr;
use std::fmt;
use std::str::FromStr;

use bytemuck::{Pod, Zeroable};
use crc_fast::{CrcAlgorithm, Digest};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Name of the extended attribute.
pub(crate) const STAMP_NAME: &CStr = c"user.saltern";

/// The polynomial of the NVM Express command set: what drives themselves use, and fast with carry-less multiplication.
pub(crate) const ALGORITHM: CrcAlgorithm = CrcAlgorithm::Crc64Nvme;
const ALGORITHM_NUMBER: u8 = 1;
const VERSION: u8 = 1;

/// Whether payloads have checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Integrity {
    /// None are computed, none are checked.
    Off,
    /// Stores compute one; loads do not check it (`saltern verify` and a later `Verify` can).
    #[default]
    Store,
    /// Stores compute one, loads check it: wrong bytes are a miss.
    Verify,
}

impl Integrity {
    /// All that there are.
    pub const ALL: [Self; 3] = [Self::Off, Self::Store, Self::Verify];

    /// The name in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Store => "store",
            Self::Verify => "verify",
        }
    }
}

impl fmt::Display for Integrity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Integrity {
    type Err = UnknownIntegrity;

    fn from_str(name: &str) -> Result<Self, UnknownIntegrity> {
        Self::ALL.into_iter().find(|known| known.name() == name).ok_or_else(|| UnknownIntegrity(name.to_owned()))
    }
}

/// No kind of integrity has this name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown integrity {0:?}; known are {known}", known = Integrity::ALL.map(Integrity::name).join(", "))]
pub struct UnknownIntegrity(pub String);

/// A file's stamp, as it is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Stamp {
    version: u8,
    algorithm: u8,
    zero: [u8; 6],
    bytes: u64,
    checksum: u64,
}

/// Length of a stamp on disk.
pub(crate) const STAMP_BYTES: usize = 24;
const _: () = assert!(size_of::<Stamp>() == STAMP_BYTES);

impl Stamp {
    pub(crate) fn new(bytes: u64, checksum: u64) -> Self {
        let (bytes, checksum) = (bytes.to_le(), checksum.to_le());
        Self { version: VERSION, algorithm: ALGORITHM_NUMBER, zero: [0; 6], bytes, checksum }
    }

    /// Reads what an attribute holds; `None` for what this version does not know.
    pub(crate) fn parse(raw: &[u8]) -> Option<Self> {
        let stamp: Self = bytemuck::try_pod_read_unaligned(raw).ok()?;
        (stamp.version == VERSION && stamp.algorithm == ALGORITHM_NUMBER).then_some(stamp)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        bytemuck::bytes_of(self)
    }

    pub(crate) fn bytes(&self) -> u64 {
        u64::from_le(self.bytes)
    }

    pub(crate) fn checksum(&self) -> u64 {
        u64::from_le(self.checksum)
    }
}

/// The checksum of bytes that are there at once: CRC-64/NVME, as in the stamps of files.
pub fn checksum(bytes: &[u8]) -> u64 {
    crc_fast::checksum(ALGORITHM, bytes)
}

/// The checksum of a payload whose pieces come in any order. It is computed in order, as far as the payload is there
/// without a gap: putting checksums of pieces together afterwards costs more than computing them.
pub(crate) struct Sum {
    digest: Box<Digest>,
    /// The payload is summed up to here.
    upto: usize,
    /// Pieces that came early, by offset and length.
    early: Vec<(usize, usize)>,
}

impl Sum {
    pub(crate) fn new() -> Self {
        Self { digest: Box::new(Digest::new(ALGORITHM)), upto: 0, early: Vec::new() }
    }

    /// A piece is there. `look` is called for each piece whose turn has come, and passes its bytes on to be summed.
    pub(crate) fn add(&mut self, offset: usize, len: usize, mut look: impl FnMut(usize, usize, &mut dyn FnMut(&[u8]))) {
        self.early.push((offset, len));
        while let Some(at) = self.early.iter().position(|(offset, _)| *offset == self.upto) {
            let (offset, len) = self.early.swap_remove(at);
            look(offset, len, &mut |bytes| self.digest.update(bytes));
            self.upto = offset + len;
        }
    }

    /// How far the payload has been summed.
    pub(crate) fn upto(&self) -> usize {
        self.upto
    }

    /// The checksum of what was summed.
    pub(crate) fn finish(&self) -> u64 {
        self.digest.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_inverse_and_those_of_json() {
        for integrity in Integrity::ALL {
            assert_eq!(integrity.name().parse(), Ok(integrity));
            assert_eq!(serde_json::to_string(&integrity).unwrap(), format!("\"{integrity}\""));
        }
        let error = "on".parse::<Integrity>().unwrap_err().to_string();
        assert_eq!(error, "unknown integrity \"on\"; known are off, store, verify");
    }

    fn sum(payload: &[u8], pieces: &[(usize, usize)]) -> u64 {
        let mut sum = Sum::new();
        for (offset, len) in pieces {
            sum.add(*offset, *len, |offset, len, take| take(&payload[offset..offset + len]));
        }
        sum.finish()
    }

    #[test]
    fn the_checksum_is_the_one_of_nvme() {
        // Check value of CRC-64/NVME in the catalogue of parametrised CRC algorithms.
        assert_eq!(sum(b"123456789", &[(0, 9)]), 0xae8b_1486_0a79_9888);
    }

    #[test]
    fn pieces_in_any_order_give_the_same() {
        let payload: Vec<u8> = (0..1_000_003_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let whole = sum(&payload, &[(0, payload.len())]);
        let cuts = [0, 1, 4096, 70_000, 500_001, payload.len()];
        let mut pieces: Vec<_> = cuts.windows(2).map(|pair| (pair[0], pair[1] - pair[0])).collect();
        assert_eq!(sum(&payload, &pieces), whole);
        pieces.reverse();
        assert_eq!(sum(&payload, &pieces), whole);
        pieces.swap(1, 3);
        assert_eq!(sum(&payload, &pieces), whole);
        assert_ne!(sum(&payload, &pieces[..4]), whole);
    }

    #[test]
    fn stamps_are_read_back_and_unknown_ones_are_none() {
        let stamp = Stamp::new(5, 7);
        let raw = stamp.as_bytes();
        assert_eq!(raw, [1, 1, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Stamp::parse(raw), Some(stamp));
        let mut newer = raw.to_vec();
        newer[0] = 2;
        assert_eq!(Stamp::parse(&newer), None);
        assert_eq!(Stamp::parse(&raw[..23]), None);
        assert_eq!(Stamp::parse(&[raw, &[0]].concat()), None);
    }
}
