//! Crash images: what a disk may hold after its power was cut at a position of the log.
//!
//! All writes in front of the last flush before the cut are there. Of the writes between that flush and the cut a random
//! part is, in pieces of 4 KiB (smaller tears break xfs itself): what a disk with a volatile write cache and reordering may do.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::error::{Doing, Result};
use crate::lab::copy_sparse;
use crate::log::{LogReader, Position, Record};

/// A write is torn at multiples of this.
const TEAR_BYTES: u64 = 4096;

/// Parts of the writes after the last flush that survive, for different images; mostly half of them.
const SURVIVING: [f64; 8] = [0.5, 0.5, 0.5, 0.5, 0.1, 0.9, 0.0, 1.0];

/// A power cut.
#[derive(Debug, Clone)]
pub(crate) struct Cut {
    /// Records in front of the cut.
    pub(crate) position: Position,
    /// Records in front of the last flush before it: these are durable.
    pub(crate) durable: Position,
    /// Part of the later writes that survives.
    surviving: f64,
    /// Whether writes survive or vanish whole, instead of piece by piece.
    whole_writes: bool,
    seed: u64,
}

/// A log and the image that it is rolled forward on.
pub(crate) struct Replay {
    log: LogReader,
    records: Vec<Record>,
    rolling_path: PathBuf,
    rolling: File,
    /// Records that are in the rolling image.
    rolled: Position,
}

impl Replay {
    /// Starts from `base`, the disk before the first record; `rolling` is a path for an image.
    pub(crate) fn new(base: &Path, log: LogReader, rolling: &Path) -> Result<Self> {
        copy_sparse(base, rolling)?;
        let records = log.records().doing("read the disk's log")?;
        let file = File::options().write(true).open(rolling).doing("open the rolling image")?;
        Ok(Self { log, records, rolling_path: rolling.into(), rolling: file, rolled: 0 })
    }

    /// Records, flushes among them, and bytes written in a part of the log.
    pub(crate) fn extent(&self, range: Range<Position>) -> (usize, usize, u64) {
        let records = &self.records[range.start as usize..range.end as usize];
        let bytes = |record: &Record| if let Record::Write { len_bytes, .. } = record { *len_bytes } else { 0 };
        let flushes = records.iter().filter(|record| **record == Record::Flush).count();
        (records.len(), flushes, records.iter().map(bytes).sum())
    }

    /// Cuts in this part of the log, in order. Half of them are just before a flush, where most is at stake.
    pub(crate) fn cuts(&self, range: Range<Position>, count: usize, seed: u64) -> Vec<Cut> {
        let mut rng = SmallRng::seed_from_u64(seed);
        let flushes: Vec<Position> = range.clone().filter(|at| self.records[*at as usize] == Record::Flush).collect();
        let mut cuts: Vec<Cut> = (0..count)
            .map(|number| {
                let position = match number % 2 {
                    1 if !flushes.is_empty() => flushes[rng.random_range(0..flushes.len())],
                    _ => rng.random_range(range.start..=range.end),
                };
                let before = &self.records[..position as usize];
                let durable = before.iter().rposition(|record| *record == Record::Flush).unwrap_or(0) as Position;
                let surviving = SURVIVING[rng.random_range(0..SURVIVING.len())];
                Cut { position, durable, surviving, whole_writes: rng.random_bool(0.25), seed: rng.random() }
            })
            .collect();
        cuts.sort_by_key(|cut| cut.position);
        cuts
    }

    /// Makes the image of a cut. Cuts have to come in order.
    pub(crate) fn build(&mut self, cut: &Cut, image: &Path) -> Result<()> {
        assert!(self.rolled <= cut.durable, "cuts come in order");
        let mut buffer = Vec::new();
        while self.rolled < cut.durable {
            let record = self.records[self.rolled as usize];
            self.apply(&self.rolling, record, &mut buffer, || true)?;
            self.rolled += 1;
        }
        copy_sparse(&self.rolling_path, image)?;
        let target = File::options().write(true).open(image).doing("open a crash image")?;
        let mut rng = SmallRng::seed_from_u64(cut.seed);
        for record in &self.records[cut.durable as usize..cut.position as usize] {
            let survives = rng.random_bool(cut.surviving);
            self.apply(&target, *record, &mut buffer, || {
                if cut.whole_writes { survives } else { rng.random_bool(cut.surviving) }
            })?;
        }
        Ok(())
    }

    /// Applies the pieces of a write that survive.
    fn apply(
        &self,
        image: &File,
        record: Record,
        buffer: &mut Vec<u8>,
        mut survives: impl FnMut() -> bool,
    ) -> Result<()> {
        let Record::Write { offset_bytes, len_bytes, data_at } = record else { return Ok(()) };
        buffer.resize(len_bytes as usize, 0);
        self.log.read(data_at, buffer).doing("read the log's data")?;
        let end = offset_bytes + len_bytes;
        let mut at = offset_bytes;
        // Neighbouring pieces go together.
        let mut pending: Option<Range<u64>> = None;
        let put = |range: Range<u64>| {
            let bytes = &buffer[(range.start - offset_bytes) as usize..(range.end - offset_bytes) as usize];
            image.write_all_at(bytes, range.start).doing("write an image")
        };
        while at < end {
            let to = (at - at % TEAR_BYTES + TEAR_BYTES).min(end);
            if survives() {
                pending = Some(pending.map_or(at, |range| range.start)..to);
            } else if let Some(range) = pending.take() {
                put(range)?;
            }
            at = to;
        }
        pending.map_or(Ok(()), put)
    }
}
