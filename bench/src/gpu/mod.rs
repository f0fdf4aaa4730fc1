//! Disk to GPU memory and back, in every way there is, beside what bounds them.
//!
//! ```text
//! for each object size: engine by the pipeline, engine by cuFile where that is direct, plain read + copy with threads, cuFile's
//!     compatibility mode; loads and stores, with the data on disk and in the page cache; every byte compared on the way back
//! ```
//! The ways take turns, round by round. The bound is the slower of the disk (the ceiling's random reads or overwrites), measured in each
//! round, and of copies from pinned memory, measured at the beginning; with the data in the page cache it is plain reads (or writes) by
//! threads instead of the disk. On the software device the figures are those of the engine, not of a GPU.

mod device;
mod plain;
mod report;
mod rows;
mod target;
mod ways;

use std::path::PathBuf;
use std::time::Instant;

use self::device::{Block, Gpu};
pub use self::report::{CopyResult, Data, GpuReport, GpuResult, Way};
use self::rows::Rows;
pub use self::target::{Target, UnknownTarget};
use crate::error::{Error, Result};
use crate::machine;
use crate::memory;
use crate::meter::round;
use crate::options::Options;
use crate::payload;
use crate::run::Hooks;
use crate::scratch::Scratch;
use crate::test_file::TestFile;

/// What a reader of the software device's figures has to know.
const SIM_NOTES: [&str; 2] = [
    "the software device stands in for a GPU: these figures say nothing about one",
    "CPUs move its bytes, one copy at a time in each direction: the engine's in a thread of the device's, plain copies in the threads \
     that wait for them",
];

const MIB: f64 = (1 << 20) as f64;

/// Bytes of objects for each size, where the options do not say: on a GPU, and where memory is played.
const GPU_BYTES: u64 = 1 << 30;
const SIM_BYTES: u64 = 128 << 20;

/// Bytes of one copy when copies alone are measured, and how many are made.
const COPY_BYTES: usize = 64 << 20;
const COPY_CHUNK: usize = 4 << 20;
const COPY_TIMES: usize = 8;

/// Objects in flight, as a multiple of those that the disk alone gets: as many as it has are on their way to the device, or wait for
/// their turn there.
const DEPTH_TIMES: usize = 2;

/// Runs it. `helper` is the program that a cuFile probe runs in (`saltern`). Blocks; everything it writes is in a scratch directory
/// that is removed before it returns.
///
/// # Errors
/// [`Error`]: no such GPU among others. Wrong bytes and failed operations are in the report.
pub fn run(options: &Options, target: Target, helper: Option<PathBuf>, hooks: Hooks<'_>) -> Result<GpuReport> {
    options.validate()?;
    let started = Instant::now();
    let gpu = Gpu::open(target, helper)?;
    let scratch = Scratch::create(&options.parent)?;
    let total = options.total_bytes.unwrap_or(if gpu.is_simulated() { SIM_BYTES } else { GPU_BYTES });
    // A directory for each way that stores, the ceiling's file, and what is left free.
    scratch.require(total.saturating_mul(1 + 7 * options.sizes.len() as u64))?;
    hooks.progress.begin("writing the ceiling's file", 1);
    let file = TestFile::create(&scratch.join("ceiling"), total, std::time::Duration::MAX, hooks.cancel)?;
    let copies = copies(&gpu)?;
    let mut report = GpuReport::new(&gpu.name(), copies, machine::describe());
    if gpu.is_simulated() {
        report.notes.extend(SIM_NOTES.map(str::to_owned));
    }
    for (number, &object_bytes) in options.sizes.iter().enumerate() {
        let objects = (total as usize / object_bytes).max(1);
        let depth = options.depth.unwrap_or(DEPTH_TIMES * options.depth_for(object_bytes));
        hooks.progress.begin(&format!("{} KiB objects", object_bytes >> 10), 1);
        let memory = gpu.alloc(objects, object_bytes)?;
        let dir = scratch.join(&format!("objects-{number}"));
        std::fs::create_dir_all(&dir).map_err(|error| Error::io("mkdir", &dir, error))?;
        let blocks = &memory.blocks;
        let rows = Rows { options, gpu: &gpu, blocks, dir, object_bytes, depth, file: &file, hooks };
        rows.run(&mut report)?;
    }
    drop((file, scratch));
    report.seconds = round(started.elapsed().as_secs_f64(), 1);
    Ok(report)
}

/// Copies alone, by the kind of host memory; of the software device by the pool's.
fn copies(gpu: &Gpu) -> Result<Vec<CopyResult>> {
    let mut results = Vec::new();
    let mut enter = |memory, to_device, started: Instant| {
        let rate = (COPY_BYTES * COPY_TIMES) as f64 / started.elapsed().as_secs_f64();
        results.push(CopyResult { memory, to_device, mib_per_s: round(rate / MIB, 1) });
    };
    let device = match gpu {
        Gpu::Cuda(device) => device,
        Gpu::Sim(device) => {
            let blocks: Vec<_> = (0..COPY_BYTES / COPY_CHUNK).map(|_| Block::Sim(device.alloc(COPY_CHUNK))).collect();
            let mut memory = memory::alone(COPY_BYTES)?;
            fill(&blocks, 0)?;
            for to_device in [true, false] {
                let started = Instant::now();
                for _ in 0..COPY_TIMES {
                    for (block, bytes) in blocks.iter().zip(memory.chunks_mut(COPY_CHUNK)) {
                        if to_device { block.copy_in(bytes)? } else { block.copy_out(bytes)? }
                    }
                }
                enter("pinned", to_device, started);
            }
            return Ok(results);
        }
    };
    let slice = device.alloc(COPY_BYTES)?;
    for kind in saltern_gds::HostKind::ALL {
        let mut memory = saltern_gds::HostMemory::alloc(device, kind, COPY_BYTES)?;
        payload::fill(0, 0, memory.as_mut_slice());
        for to_device in [true, false] {
            memory.copy(&slice, to_device, COPY_CHUNK, 1)?;
            let started = Instant::now();
            memory.copy(&slice, to_device, COPY_CHUNK, COPY_TIMES)?;
            enter(kind.name(), to_device, started);
        }
    }
    Ok(results)
}

/// The objects' bytes are on the device.
fn fill(blocks: &[Block], seed: u64) -> Result<()> {
    let mut bytes = Vec::new();
    for (object, block) in (0..).zip(blocks) {
        bytes.resize(block.len(), 0);
        payload::fill(seed, object, &mut bytes);
        block.write(&bytes)?;
    }
    Ok(())
}

/// Overwrites all blocks, so that what an earlier row left does not pass for loaded.
fn poison(blocks: &[Block]) -> Result<()> {
    const POISON: u8 = 0xa5;
    blocks.iter().try_for_each(|block| block.write(&vec![POISON; block.len()]))
}

/// Bytes that are right, and what is wrong with the first that are not.
fn compare(blocks: &[Block], seed: u64) -> Result<(u64, u64, Option<String>)> {
    let (mut right, mut wrong, mut first) = (0, 0, None);
    for (object, block) in (0..).zip(blocks) {
        match payload::verify(seed, object, &block.read()?) {
            Ok(()) => right += block.len() as u64,
            Err(offset) => {
                wrong += 1;
                first.get_or_insert_with(|| format!("object {object}: wrong bytes from offset {offset} on"));
            }
        }
    }
    Ok((right, wrong, first))
}

impl From<saltern_gds::GdsError> for Error {
    fn from(error: saltern_gds::GdsError) -> Self {
        Self::Gpu(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::run::Silent;

    #[test]
    fn every_row_of_the_software_device_has_its_bytes_compared() {
        let dir = crate::test_dir();
        let options = Options {
            parent: dir.path().to_owned(),
            sizes: vec![100_000, 2 << 20],
            total_bytes: Some(6 << 20),
            rounds: 2,
            ..Options::default()
        };
        let hooks = Hooks { progress: &Silent, cancel: &AtomicBool::new(false) };
        let report = run(&options, Target::GpuSim, None, hooks).unwrap();
        assert_eq!(report.errors(), 0, "{report:?}");
        for object_bytes in &options.sizes {
            for way in [Way::Pipeline, Way::Direct, Way::ReadCopy] {
                for store in [false, true] {
                    let rows = report.results.iter().filter(|row| {
                        (row.object_bytes, row.way, row.store, row.data) == (*object_bytes, way, store, Data::Disk)
                    });
                    let rows: Vec<_> = rows.collect();
                    assert!(rows.len() == 1 && rows[0].mib_per_s > 0.0, "{way:?}, store {store}: {rows:?}");
                    assert!(rows[0].verified_bytes > 0, "{rows:?}");
                }
            }
        }
        assert!(report.results.iter().any(|row| row.data == Data::PageCache));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn targets_have_names() {
        for (name, target) in
            [("host", Target::Host), ("gpu", Target::Gpu(0)), ("gpu:3", Target::Gpu(3)), ("gpu-sim", Target::GpuSim)]
        {
            assert_eq!(name.parse::<Target>().unwrap(), target);
        }
        for name in ["", "gpu:", "gpu:x", "cuda", "gpu:-1"] {
            assert!(name.parse::<Target>().unwrap_err().to_string().contains("gpu-sim"));
        }
    }
}
