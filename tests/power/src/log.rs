//! The disk's log: every write and every completed flush, in the order in which the disk took them.
//!
//! Two files, only ever appended to: `records`, 32 bytes each, and `data`, the bytes written. A record is appended
//! before the request is answered, so the number of records at a moment, a *position*, divides the requests: whatever
//! was answered before that moment is in front of it. Positions are read by other processes while the log grows.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A number of records.
pub type Position = u64;

/// Kind, offset on the disk, length, offset in the data.
type Raw = [u64; 4];

const RECORD_BYTES: u64 = size_of::<Raw>() as u64;
const RECORDS_FILE: &str = "records";
const DATA_FILE: &str = "data";

const KIND_WRITE: u64 = 1;
const KIND_ZEROES: u64 = 2;
const KIND_FLUSH: u64 = 3;

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// Bytes were written.
    Write {
        /// Where on the disk.
        offset_bytes: u64,
        /// How many.
        len_bytes: u64,
        /// Where in the log's data; `None` for nothing but zeroes.
        data_at: Option<u64>,
    },
    /// All writes in front of this one are durable.
    Flush,
}

/// The disk's end of the log.
pub struct LogWriter {
    records: File,
    data: File,
    data_bytes: u64,
}

impl LogWriter {
    /// Starts an empty log in a directory.
    ///
    /// # Errors
    /// When the files cannot be made.
    pub fn create(dir: &Path) -> io::Result<Self> {
        let records = File::create(dir.join(RECORDS_FILE))?;
        Ok(Self { records, data: File::create(dir.join(DATA_FILE))?, data_bytes: 0 })
    }

    /// # Errors
    /// When the log cannot be written; the request must fail then.
    pub fn write(&mut self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        let zeroes = bytes.iter().all(|byte| *byte == 0);
        let kind = if zeroes { KIND_ZEROES } else { KIND_WRITE };
        let record: Raw = [kind, offset_bytes, bytes.len() as u64, self.data_bytes];
        if !zeroes {
            self.data.write_all(bytes)?;
            self.data_bytes += bytes.len() as u64;
        }
        self.records.write_all(bytemuck::cast_slice(&record))
    }

    /// # Errors
    /// When the log cannot be written; the request must fail then.
    pub fn flush(&mut self) -> io::Result<()> {
        self.records.write_all(bytemuck::cast_slice(&[KIND_FLUSH, 0, 0, 0_u64]))
    }
}

/// Anybody's end of the log. Thread-safe.
pub struct LogReader {
    records: File,
    data: File,
}

impl LogReader {
    /// Opens the log of a directory.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(dir: &Path) -> io::Result<Self> {
        Ok(Self { records: File::open(dir.join(RECORDS_FILE))?, data: File::open(dir.join(DATA_FILE))? })
    }

    /// The number of requests so far. Costs one system call.
    ///
    /// # Errors
    /// When the file is gone.
    pub fn position(&self) -> io::Result<Position> {
        Ok(self.records.metadata()?.len() / RECORD_BYTES)
    }

    /// All records.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn records(&self) -> io::Result<Vec<Record>> {
        let count = self.position()? as usize;
        let mut raw = vec![Raw::default(); count];
        self.records.read_exact_at(bytemuck::cast_slice_mut(&mut raw), 0)?;
        let decode = |[kind, offset_bytes, len_bytes, data_at]: Raw| match kind {
            KIND_FLUSH => Record::Flush,
            _ => Record::Write { offset_bytes, len_bytes, data_at: (kind == KIND_WRITE).then_some(data_at) },
        };
        Ok(raw.into_iter().map(decode).collect())
    }

    /// The bytes of a write.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn read(&self, data_at: Option<u64>, out: &mut [u8]) -> io::Result<()> {
        match data_at {
            Some(at) => self.data.read_exact_at(out, at),
            None => {
                out.fill(0);
                Ok(())
            }
        }
    }
}
