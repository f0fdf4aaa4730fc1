//! What a run on a device has measured, as JSON.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::report::Machine;

/// How objects move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The engine, through pinned slots.
    Pipeline,
    /// The engine, by cuFile where it is direct (on the software device, by what plays it).
    Direct,
    /// Threads that read a file into pinned memory, copy it, and wait.
    ReadCopy,
    /// Threads with cuFile in its compatibility mode.
    CufileCompat,
}

impl Way {
    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pipeline => "pipeline",
            Self::Direct => "direct",
            Self::ReadCopy => "read+copy",
            Self::CufileCompat => "cufile-compat",
        }
    }
}

/// Where the files' bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Data {
    /// On the disk: O_DIRECT.
    Disk,
    /// In the page cache.
    PageCache,
}

/// One row.
#[derive(Debug, Clone, Serialize)]
pub struct GpuResult {
    /// How.
    pub way: Way,
    /// From the device to files; else the other way.
    pub store: bool,
    /// Where the bytes are.
    pub data: Data,
    /// Size of each object.
    pub object_bytes: usize,
    /// Objects of one round.
    pub objects: usize,
    /// Objects in flight, or threads.
    pub depth: usize,
    /// The median of the rounds.
    pub mib_per_s: f64,
    /// User and system time of the process.
    pub cpu_seconds_per_gb: f64,
    /// The slower of the disk and of pinned copies; with the data in the page cache, of plain reads or writes by threads and of
    /// pinned copies.
    pub bound_mib_per_s: Option<f64>,
    /// Of the bound.
    pub ratio: Option<f64>,
    /// Bytes that were compared, and right.
    pub verified_bytes: u64,
    /// Operations that failed, and objects with wrong bytes.
    pub errors: u64,
    /// The first of them.
    pub first_error: Option<String>,
}

/// Copies alone.
#[derive(Debug, Clone, Serialize)]
pub struct CopyResult {
    /// `pinned`, `pageable` or `write-combined`.
    pub memory: &'static str,
    /// From the host to the device; else back.
    pub to_device: bool,
    /// Throughput.
    pub mib_per_s: f64,
}

/// The whole run.
#[derive(Debug, Clone, Serialize)]
pub struct GpuReport {
    /// Version of this format.
    pub schema: u32,
    /// Of saltern.
    pub version: &'static str,
    /// What machine it was.
    pub machine: Machine,
    /// What device.
    pub device: String,
    /// How the engine would move files here, and why.
    pub route: String,
    /// When it began.
    pub started_unix_seconds: u64,
    /// How long it took.
    pub seconds: f64,
    /// Copies alone.
    pub copies: Vec<CopyResult>,
    /// Rows.
    pub results: Vec<GpuResult>,
    /// What a reader has to know.
    pub notes: Vec<String>,
}

impl GpuReport {
    pub(super) fn new(device: &str, copies: Vec<CopyResult>, machine: Machine) -> Self {
        Self {
            schema: 1,
            version: env!("CARGO_PKG_VERSION"),
            machine,
            device: device.to_owned(),
            route: String::new(),
            started_unix_seconds: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            seconds: 0.0,
            copies,
            results: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Copies from pinned memory, in bytes a second; without limit where there were none.
    pub(super) fn copy_bound(&self, to_device: bool) -> f64 {
        let found = self.copies.iter().find(|copy| copy.memory == "pinned" && copy.to_device == to_device);
        found.map_or(f64::INFINITY, |copy| copy.mib_per_s * (1 << 20) as f64)
    }

    /// Of all rows.
    pub fn errors(&self) -> u64 {
        self.results.iter().map(|row| row.errors).sum()
    }
}
