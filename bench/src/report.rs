//! The report, as JSON has it. Names end in their unit. Names that are in version 1 of the schema stay;
//! fields may be added.

use std::path::Path;

use saltern::Layout;
use serde::{Deserialize, Serialize};

use crate::phases::Phase;

/// Version of the schema.
pub const SCHEMA: u32 = 1;

/// A whole run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Version of saltern.
    pub version: String,
    /// When the run started, seconds since 1970.
    pub started_unix_seconds: u64,
    /// Wall time of all of it, preparation and verification included.
    pub seconds: f64,
    /// Where it ran.
    pub machine: Machine,
    /// On what it ran.
    pub volume: Volume,
    /// One entry a phase, object size and variant, in the order in which they ran.
    pub results: Vec<PhaseResult>,
    /// What a reader has to know to judge the figures.
    pub notes: Vec<String>,
}

impl Report {
    /// Operations with a wrong outcome, wrong bytes included.
    pub fn errors(&self) -> u64 {
        self.results.iter().map(|result| result.errors).sum()
    }
}

/// The machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// Model of the processor.
    pub cpu: String,
    /// CPUs that this process may use.
    pub cores: usize,
    /// Release of the kernel.
    pub kernel: String,
    /// Main memory.
    pub memory_bytes: u64,
}

/// The directory, and how the engine used it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Volume {
    /// The directory in which the scratch directory was made.
    pub dir: String,
    /// Its file system.
    pub fs: String,
    /// Whether I/O bypassed the page cache.
    pub direct_io: bool,
    /// What addresses have to be a multiple of.
    pub memory_align_bytes: u32,
    /// What offsets and lengths have to be a multiple of.
    pub offset_align_bytes: u32,
    /// How the engine's rings had buffers registered.
    pub fixed_buffers: String,
    /// What a store waited for.
    pub durability: saltern::Durability,
    /// Whether payloads had checksums, which cost CPU.
    pub integrity: saltern::Integrity,
    /// Features of the engine's rings.
    pub ring: Vec<String>,
    /// Shards of the engine.
    pub shards: usize,
    /// Objects larger than this were split.
    pub segment_bytes: usize,
}

impl Volume {
    /// Takes from an engine what it says of its volume.
    pub fn new(parent: &Path, status: &saltern::Status, segment_bytes: usize) -> Self {
        let first = status.shards.first();
        Self {
            dir: parent.display().to_string(),
            fs: status.volumes[0].medium.file_system.clone(),
            direct_io: status.volumes[0].medium.direct_io,
            memory_align_bytes: status.volumes[0].medium.memory_align_bytes,
            offset_align_bytes: status.volumes[0].medium.offset_align_bytes,
            fixed_buffers: first.map_or_else(String::new, |shard| shard.fixed_buffers.to_owned()),
            durability: status.durability,
            integrity: status.integrity,
            ring: first.map_or_else(Vec::new, |shard| shard.ring.iter().map(|flag| (*flag).to_owned()).collect()),
            shards: status.shards.len(),
            segment_bytes,
        }
    }
}

/// Quantiles of latencies, from submission to results in hand, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyUs {
    /// Median.
    pub p50: f64,
    /// 90%.
    pub p90: f64,
    /// 99%.
    pub p99: f64,
    /// 99.9%.
    pub p999: f64,
    /// Largest.
    pub max: f64,
}

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineName {
    /// This engine.
    #[default]
    Saltern,
    /// Plain system calls on a pool of threads.
    PreadPwrite,
    /// The straightforward thing with the crate `tokio-uring`.
    TokioUring,
    /// This engine behind LMCache's bridge for native connectors (`bench/peers`; there `Saltern` is its plugin).
    SalternNative,
    /// LMCache's `fs` adapter.
    LmcacheFs,
    /// LMCache's `fs_native` adapter.
    LmcacheFsNative,
    /// LMCache's `nixl_store_dynamic` adapter.
    LmcacheNixlDynamic,
}

impl EngineName {
    /// All that there are, as they are listed.
    pub const ALL: [Self; 7] = [
        Self::Saltern,
        Self::SalternNative,
        Self::LmcacheFs,
        Self::LmcacheFsNative,
        Self::LmcacheNixlDynamic,
        Self::PreadPwrite,
        Self::TokioUring,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Saltern => "saltern",
            Self::PreadPwrite => "pread-pwrite",
            Self::TokioUring => "tokio-uring",
            Self::SalternNative => "saltern-native",
            Self::LmcacheFs => "lmcache-fs",
            Self::LmcacheFsNative => "lmcache-fs-native",
            Self::LmcacheNixlDynamic => "lmcache-nixl-dynamic",
        }
    }

    /// The name where there is little room.
    pub fn short_name(self) -> &'static str {
        match self {
            Self::Saltern => "saltern",
            Self::PreadPwrite => "pread",
            Self::TokioUring => "t-uring",
            Self::SalternNative => "native",
            Self::LmcacheFs => "fs",
            Self::LmcacheFsNative => "fs_native",
            Self::LmcacheNixlDynamic => "nixl",
        }
    }

    /// What it is, for a reader who meets the name for the first time.
    pub fn description(self) -> &'static str {
        match self {
            Self::Saltern => "saltern",
            Self::PreadPwrite => "plain pread/pwrite with threads",
            Self::TokioUring => "tokio-uring",
            Self::SalternNative => "saltern behind LMCache's bridge for native connectors",
            Self::LmcacheFs => "LMCache's fs",
            Self::LmcacheFsNative => "LMCache's fs_native",
            Self::LmcacheNixlDynamic => "LMCache's nixl_store_dynamic",
        }
    }
}

/// Latencies, as points (share of operations, microseconds) for a plot.
pub type Curve = Vec<(f64, f64)>;

/// The distributions behind the quantiles; not part of the JSON.
#[derive(Debug, Clone, Default)]
pub struct Curves {
    /// Loads (of a phase without loads: empty).
    pub loads: Curve,
    /// Loads when idle, measured beside the phase `mixed`.
    pub idle_loads: Curve,
}

/// One phase at one object size.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PhaseResult {
    /// What was measured; the others are baselines.
    pub engine: EngineName,
    /// The phase.
    pub phase: Phase,
    /// Which part of it, where it has parts; lookup: `present`, `absent`, `present-busy`, `absent-busy`.
    pub variant: Option<String>,
    /// How keys became names.
    pub layout: Layout,
    /// Bytes of one object.
    pub object_bytes: u64,
    /// Objects (lookup: keys) in the timed part.
    pub objects: u64,
    /// Tickets in flight, of one object each (lookup: one, of 32 keys).
    pub depth: usize,
    /// Slices that the timed part was cut into, with the ceiling measured between them.
    pub rounds: usize,
    /// Wall time of the timed part. Where objects are stored, it ends when they are on the device (`syncfs` after each round).
    pub seconds: f64,
    /// The part of `seconds` from the last completed operation of each round on, until everything was on the device.
    #[serde(default)]
    pub settle_seconds: f64,
    /// Payload throughput; null where no payload moves.
    pub mib_per_s: Option<f64>,
    /// Objects (lookup: keys) a second.
    pub objects_per_s: f64,
    /// Latency of one ticket (restart: of one open).
    pub latency_us: LatencyUs,
    /// User and system time of the timed part, of the whole process (lookup: of the looking thread).
    pub cpu_seconds: f64,
    /// CPU time for 10^9 bytes; null where no payload moves.
    pub cpu_seconds_per_gb: Option<f64>,
    /// What the device did beside it, with as much memory, all rounds together; null where there is no ceiling.
    pub ceiling_mib_per_s: Option<f64>,
    /// CPU time of the ceiling for 10^9 bytes.
    pub ceiling_cpu_seconds_per_gb: Option<f64>,
    /// As `ceiling_mib_per_s`, but with few buffers that stay in the CPU's cache: no phase can do that.
    pub ceiling_reused_mib_per_s: Option<f64>,
    /// Throughput by ceiling: the median over the rounds of each round's ratio.
    pub ratio: Option<f64>,
    /// Each round's ratio.
    pub ratio_rounds: Vec<f64>,
    /// Throughput by that of `pread-pwrite` in the same rounds, their median; null without baselines.
    pub vs_baseline: Option<f64>,
    /// Throughput (lookup: keys a second) by that of the best of LMCache's own adapters, both medians of the rounds; null
    /// without them.
    #[serde(default)]
    pub vs_best_peer: Option<f64>,
    /// Share of the stores in the timed part that overwrote a spare (steady and mixed alone).
    pub recycled: Option<f64>,
    /// Disk space of spares at the end, beside the objects (steady and mixed alone).
    pub spare_bytes: Option<u64>,
    /// Latency of the loads among the operations (mixed alone).
    pub load_latency_us: Option<LatencyUs>,
    /// Latency of loads in the same rounds when nothing else goes on (mixed alone).
    pub idle_load_latency_us: Option<LatencyUs>,
    /// Latency of the ceiling's reads among its writes: what the device alone makes of that mix (mixed alone).
    #[serde(default)]
    pub device_load_latency_us: Option<LatencyUs>,
    /// Latency of the ceiling's reads when nothing else goes on (mixed alone).
    #[serde(default)]
    pub device_idle_load_latency_us: Option<LatencyUs>,
    /// Keys a second (lookup alone).
    pub keys_per_s: Option<f64>,
    /// Keys for one second of the looking thread's CPU time (lookup alone).
    pub keys_per_cpu_s: Option<f64>,
    /// The part of an open that read the directory (restart alone).
    pub scan_seconds: Option<f64>,
    /// Bytes that were read back and compared after the timed part.
    pub verified_bytes: u64,
    /// Operations with a wrong outcome, wrong bytes included.
    pub errors: u64,
    /// The first few of them.
    pub error_examples: Vec<String>,
    /// Distributions for plots.
    #[serde(skip)]
    pub curves: Curves,
}
