//! The snapshot of the index: `.saltern/index`, what a volume held and when it was used, for the next start.
//!
//! Little-endian, without gaps:
//!
//! | part | bytes | field |
//! |---|---|---|
//! | head | 8 | `saltidx\n` |
//! | | 4 | version of this format: 1 |
//! | | 4 | layout of the volume: 0 fs, 1 fs3, 2 nixl, 3 nixl3, 4 nixl-sharded |
//! | | 8 | when it was written, in nanoseconds since 1970 |
//! | | 4 | number of scopes |
//! | | 4 | zero |
//! | | 8 | number of objects |
//! | each scope | 4 | kv_rank |
//! | | 4 | object group |
//! | | 2 | length of the model's name |
//! | | 2 | length of the salt |
//! | | | the model's name, the salt |
//! | each object | 4 | number of its scope, from 0 in the order above |
//! | | 1 | length of its chunk hash |
//! | | | its chunk hash |
//! | | 8 | its size |
//! | | 8 | its last use, in nanoseconds since 1970 |
//! | tail | 8 | CRC-64/NVME of all before |
//!
//! Objects are in the order of their last use, the oldest first. It is written at intervals and when an engine closes in good order,
//! and replaced whole. It is a hint: what is there, and how large, the directory says (see `index/hints.rs`), so it may be of any age.
//! A file that is damaged, of another version or layout, is ignored with a note; no field of it is believed before the checksum
//! is right.

use std::io::{self, Write};
use std::sync::Arc;

use crc_fast::Digest;
use thiserror::Error;

use crate::integrity::{ALGORITHM, checksum};
use crate::key::{ChunkHash, Scope};
use crate::layout::Layout;

/// Its name in `.saltern`.
pub(crate) const FILE: &str = "index";

/// Longest file that is read: some ten million objects.
pub(crate) const FILE_BYTES_MAX: u64 = 4 << 30;

const MAGIC: &[u8; 8] = b"saltidx\n";
const VERSION: u32 = 1;
const TAIL_BYTES: usize = 8;
/// The shortest record: a chunk hash of one byte.
pub(crate) const RECORD_BYTES_MIN: usize = 4 + 1 + 1 + 8 + 8;
/// In the order of their numbers.
const LAYOUTS: [Layout; 5] = [Layout::Fs, Layout::Fs3, Layout::Nixl, Layout::Nixl3, Layout::NixlSharded];

/// Why a snapshot is not used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum Unusable {
    #[error("it is not a snapshot of an index")]
    Foreign,
    #[error("it is of version {0}, this program knows version {VERSION}")]
    Version(u32),
    #[error("it is of layout {0}")]
    Layout(String),
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// Number of its scope.
    pub(crate) scope: u32,
    pub(crate) chunk: ChunkHash,
    pub(crate) bytes: u64,
    /// Last use, in nanoseconds since 1970.
    pub(crate) used_ns: u64,
}

/// What goes into a snapshot.
pub(crate) struct Contents {
    pub(crate) layout: Layout,
    pub(crate) written_ns: u64,
    pub(crate) scopes: Vec<Arc<Scope>>,
    /// The oldest use first.
    pub(crate) records: Vec<Record>,
}

/// Bytes that are summed and written at a time: fields are short, and a call for each would cost more than its bytes.
const STEP_BYTES: usize = 64 << 10;

/// Sums what passes through.
struct Summed<'a, W> {
    out: &'a mut W,
    digest: Digest,
    step: Vec<u8>,
}

impl<W: Write> Summed<'_, W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.step.extend_from_slice(bytes);
        if self.step.len() < STEP_BYTES { Ok(()) } else { self.pass_on() }
    }

    fn pass_on(&mut self) -> io::Result<()> {
        self.digest.update(&self.step);
        self.out.write_all(&self.step)?;
        self.step.clear();
        Ok(())
    }
}

impl Contents {
    /// Writes the file.
    pub(crate) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut out = Summed { out, digest: Digest::new(ALGORITHM), step: Vec::with_capacity(2 * STEP_BYTES) };
        let layout = LAYOUTS.iter().position(|layout| *layout == self.layout).expect("every layout has a number");
        out.put(MAGIC)?;
        out.put(&VERSION.to_le_bytes())?;
        out.put(&(layout as u32).to_le_bytes())?;
        out.put(&self.written_ns.to_le_bytes())?;
        out.put(&(self.scopes.len() as u32).to_le_bytes())?;
        out.put(&[0; 4])?;
        out.put(&(self.records.len() as u64).to_le_bytes())?;
        for scope in &self.scopes {
            let (model, salt) = (scope.model_name().as_bytes(), scope.cache_salt().as_bytes());
            // Names of files bound both far below.
            let len = |bytes: &[u8]| u16::try_from(bytes.len()).map_err(io::Error::other);
            out.put(&scope.kv_rank().to_le_bytes())?;
            out.put(&scope.object_group_id().to_le_bytes())?;
            out.put(&len(model)?.to_le_bytes())?;
            out.put(&len(salt)?.to_le_bytes())?;
            out.put(model)?;
            out.put(salt)?;
        }
        for record in &self.records {
            let chunk = record.chunk.as_bytes();
            out.put(&record.scope.to_le_bytes())?;
            out.put(&[chunk.len() as u8])?;
            out.put(chunk)?;
            out.put(&record.bytes.to_le_bytes())?;
            out.put(&record.used_ns.to_le_bytes())?;
        }
        out.pass_on()?;
        let sum = out.digest.finalize();
        out.out.write_all(&sum.to_le_bytes())
    }
}

/// A snapshot whose checksum is right, read record by record.
#[derive(Debug)]
pub(crate) struct Snapshot<'a> {
    pub(crate) scopes: Vec<Arc<Scope>>,
    pub(crate) written_ns: u64,
    left: u64,
    rest: Fields<'a>,
}

impl<'a> Snapshot<'a> {
    /// Checks a file's contents.
    pub(crate) fn parse(contents: &'a [u8], layout: Layout) -> Result<Self, Unusable> {
        let mut head = Fields(contents);
        if head.take(MAGIC.len()) != Some(MAGIC) {
            return Err(Unusable::Foreign);
        }
        let version = head.u32().ok_or(Unusable::Damaged("cut short"))?;
        if version != VERSION {
            return Err(Unusable::Version(version));
        }
        let body = contents.len().checked_sub(TAIL_BYTES).ok_or(Unusable::Damaged("cut short"))?;
        if Fields(&contents[body..]).u64() != Some(checksum(&contents[..body])) {
            return Err(Unusable::Damaged("wrong checksum"));
        }
        let fields = Fields(&contents[MAGIC.len() + size_of::<u32>()..body]);
        Self::parse_head(fields, layout)
    }

    /// Records that are still to come, as the file says.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    fn parse_head(mut fields: Fields<'a>, layout: Layout) -> Result<Self, Unusable> {
        let wrong = || Unusable::Damaged("a field is wrong");
        let number = fields.u32().ok_or_else(wrong)?;
        let written = LAYOUTS.get(number as usize).ok_or_else(|| Unusable::Layout(format!("number {number}")))?;
        if *written != layout {
            return Err(Unusable::Layout(written.to_string()));
        }
        let written_ns = fields.u64().ok_or_else(wrong)?;
        let count = fields.u32().ok_or_else(wrong)?;
        fields.u32().ok_or_else(wrong)?;
        let left = fields.u64().ok_or_else(wrong)?;
        let scopes = (0..count).map(|_| fields.scope().ok_or_else(wrong)).collect::<Result<_, _>>()?;
        Ok(Self { scopes, written_ns, left, rest: fields })
    }
}

impl Iterator for Snapshot<'_> {
    /// A record, whose scope is one of `scopes`. An error ends the records.
    type Item = Result<Record, Unusable>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let record = self.rest.record().filter(|record| (record.scope as usize) < self.scopes.len());
        if record.is_none() {
            self.left = 0;
        }
        Some(record.ok_or(Unusable::Damaged("a record is wrong")))
    }
}

/// What is left of a file. Every method is `None` when it is too short.
#[derive(Debug)]
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn u16(&mut self) -> Option<usize> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?).into())
    }

    fn scope(&mut self) -> Option<Arc<Scope>> {
        let (rank, group) = (self.u32()?, self.u32()?);
        let (model_len, salt_len) = (self.u16()?, self.u16()?);
        let model = std::str::from_utf8(self.take(model_len)?).ok()?;
        let salt = std::str::from_utf8(self.take(salt_len)?).ok()?;
        Scope::new(model, rank, group, salt).ok()
    }

    fn record(&mut self) -> Option<Record> {
        let scope = self.u32()?;
        let len = usize::from(*self.take(1)?.first()?);
        let chunk = ChunkHash::new(self.take(len)?).ok()?;
        Some(Record { scope, chunk, bytes: self.u64()?, used_ns: self.u64()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &[u8] = include_bytes!("../tests/fixtures/index-v1");
    const CUT: &[u8] = include_bytes!("../tests/fixtures/index-v1-cut");
    const FLIPPED: &[u8] = include_bytes!("../tests/fixtures/index-v1-flipped");
    const NEWER: &[u8] = include_bytes!("../tests/fixtures/index-v2");

    fn sample() -> Contents {
        let scopes = vec![
            Scope::new("meta-llama/Llama-3.1-8B", 0x0100_0100, 0, "").unwrap(),
            Scope::new("opt-125m", 0x0201_0201, 7, "grün").unwrap(),
        ];
        let record = |scope, chunk: &[u8], bytes, used_ns| Record {
            scope,
            chunk: ChunkHash::new(chunk).unwrap(),
            bytes,
            used_ns,
        };
        let records = vec![
            record(1, &[1], 0, 1),
            record(0, &[2; 32], 4096, 1_700_000_000_000_000_000),
            record(1, &[3; 127], u64::from(u32::MAX) + 1, u64::MAX),
        ];
        Contents { layout: Layout::Nixl, written_ns: 1_763_700_000_000_000_000, scopes, records }
    }

    fn read(contents: &[u8], layout: Layout) -> Result<Vec<Record>, Unusable> {
        Snapshot::parse(contents, layout)?.collect()
    }

    #[test]
    fn the_format_is_that_of_the_fixture() {
        let sample = sample();
        let mut written = Vec::new();
        sample.write(&mut written).unwrap();
        assert_eq!(written, VALID);
        let snapshot = Snapshot::parse(VALID, Layout::Nixl).unwrap();
        assert_eq!((&snapshot.scopes, snapshot.left()), (&sample.scopes, 3));
        assert_eq!(read(VALID, Layout::Nixl).unwrap(), sample.records);
    }

    #[test]
    fn long_files_are_written_in_steps() {
        let mut long = sample();
        long.records = (0..5000).map(|n| Record { used_ns: n, ..long.records[1].clone() }).collect();
        let mut written = Vec::new();
        long.write(&mut written).unwrap();
        assert!(written.len() > 3 * STEP_BYTES);
        assert_eq!(read(&written, Layout::Nixl).unwrap(), long.records);
    }

    #[test]
    fn damaged_and_foreign_files_are_told_apart() {
        assert_eq!(read(CUT, Layout::Nixl).unwrap_err(), Unusable::Damaged("wrong checksum"));
        assert_eq!(read(FLIPPED, Layout::Nixl).unwrap_err(), Unusable::Damaged("wrong checksum"));
        assert_eq!(read(NEWER, Layout::Nixl).unwrap_err(), Unusable::Version(2));
        assert_eq!(read(VALID, Layout::Fs).unwrap_err(), Unusable::Layout("nixl".into()));
        assert_eq!(read(b"saltern quotas", Layout::Fs).unwrap_err(), Unusable::Foreign);
        assert_eq!(read(b"", Layout::Fs).unwrap_err(), Unusable::Foreign);
    }

    #[test]
    fn no_damage_goes_unnoticed() {
        for at in 0..VALID.len() {
            assert!(read(&VALID[..at], Layout::Nixl).is_err(), "cut at {at}");
            let mut damaged = VALID.to_vec();
            damaged[at] ^= 0x10;
            assert!(read(&damaged, Layout::Nixl).is_err(), "byte {at}");
        }
    }

    #[test]
    fn fields_that_lie_under_a_right_checksum_are_refused() {
        // Each field in turn is made as large as it can be, and the checksum made right.
        for at in 12..VALID.len() - TAIL_BYTES {
            let mut lying = VALID[..VALID.len() - TAIL_BYTES].to_vec();
            lying[at] = 0xff;
            let sum = checksum(&lying);
            lying.extend_from_slice(&sum.to_le_bytes());
            if let Ok(records) = read(&lying, Layout::Nixl) {
                assert!(records.len() <= 3, "byte {at}");
            }
        }
    }
}
