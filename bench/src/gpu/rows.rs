//! The rows of one object size: every way in turn, round by round, each round beside what bounds it.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use saltern::device::{DeviceOptions, Route, RouteChoice};
use saltern::{Config, DirectIo, Engine, Integrity, ObjectKey, kv_rank};

use super::MIB;
use super::device::{Block, Gpu};
use super::plain::{CompatFiles, Plain, PlainIo};
use super::report::{Data, GpuReport, GpuResult, Way};
use super::ways::{Contestant, Mover, Round, Sum, settle};
use crate::ceiling::{Kind, Memory, Rig};
use crate::error::{Error, Result};
use crate::meter::{median, round};
use crate::options::Options;
use crate::run::Hooks;
use crate::test_file::TestFile;

/// See the module.
pub(super) struct Rows<'a> {
    pub(super) options: &'a Options,
    pub(super) gpu: &'a Gpu,
    pub(super) blocks: &'a [Block],
    pub(super) dir: PathBuf,
    pub(super) object_bytes: usize,
    /// Objects in flight, for every way and for the disk alone.
    pub(super) depth: usize,
    /// Of the disk alone.
    pub(super) file: &'a TestFile,
    pub(super) hooks: Hooks<'a>,
}

/// What no way can pass, in bytes a second, round by round.
#[derive(Default)]
struct Bounds {
    loads: Vec<f64>,
    stores: Vec<f64>,
}

impl Rows<'_> {
    /// All rows. What stores comes first, and what it has stored is loaded.
    pub(super) fn run(&self, report: &mut GpuReport) -> Result<()> {
        if !self.file.is_direct() {
            note(report, buffered("the bound"));
        }
        let mut ways = self.ways(report)?;
        let mut cache = self.cache_alone()?;
        let (mut rig, mut disk) = (Rig::new(self.object_bytes, 1 << 20, self.depth, self.depth)?, Bounds::default());
        let common =
            Round { blocks: self.blocks, seed: self.options.seed, depth: self.depth, cancel: self.hooks.cancel };
        for number in 0..self.options.rounds {
            self.disk_alone(&mut rig, &mut disk)?;
            cache.round(common)?;
            for turn in 0..ways.len() {
                let who = (turn + number) % ways.len();
                settle(&self.dir)?;
                ways[who].round(common)?;
                if self.hooks.cancel.load(Ordering::Relaxed) {
                    return Err(Error::Interrupted);
                }
            }
        }
        if let Some(error) = cache.stores.first_error.take().or(cache.loads.first_error.take()) {
            return Err(Error::io("page cache", &cache.dir, std::io::Error::other(error)));
        }
        let cache = Bounds { loads: cache.loads.rates, stores: cache.stores.rates };
        for Contestant { way, data, stores, loads, .. } in ways {
            let bounds = if data == Data::Disk { &disk } else { &cache };
            self.enter(report, (way, data, true), stores, &bounds.stores);
            self.enter(report, (way, data, false), loads, &bounds.loads);
        }
        Ok(())
    }

    /// The disk alone, at this size and depth.
    fn disk_alone(&self, rig: &mut Rig, bounds: &mut Bounds) -> Result<()> {
        let step = rig.object_bytes() as u64;
        let mut offsets: Vec<u64> = (0..self.file.bytes() / step).map(|object| object * step).collect();
        offsets.shuffle(&mut StdRng::seed_from_u64(self.options.seed));
        for (kind, rates) in [(Kind::Overwrite, &mut bounds.stores), (Kind::Read, &mut bounds.loads)] {
            settle(&self.dir)?;
            let mut sample = rig.run(self.file, kind, Memory::Spread, &offsets, self.hooks.cancel)?;
            if kind == Kind::Overwrite {
                sample.spent += settle(&self.dir)?;
            }
            rates.push(sample.bytes_per_s());
        }
        Ok(())
    }

    /// What bounds rows whose data is in the page cache, beside copies: plain reads and writes by threads.
    fn cache_alone(&self) -> Result<Contestant<'_>> {
        let dir = self.dir.join("alone");
        let files = self.files(&dir)?;
        let mover = Mover::Threads(self.plain(false)?, files);
        let mut alone = Contestant::new(Way::ReadCopy, Data::PageCache, dir, mover);
        alone.reaches_device = false;
        Ok(alone)
    }

    fn ways(&self, report: &mut GpuReport) -> Result<Vec<Contestant<'_>>> {
        let mut ways = Vec::new();
        ways.extend(self.engine(report, Way::Pipeline, Data::Disk)?);
        if self.options.gpu_direct {
            ways.extend(self.engine(report, Way::Direct, Data::Disk)?);
        }
        ways.extend(self.engine(report, Way::Pipeline, Data::PageCache)?);
        for data in [Data::Disk, Data::PageCache] {
            ways.push(self.threads(Way::ReadCopy, data, self.plain(true)?)?);
        }
        if let Gpu::Cuda(device) = self.gpu {
            match device.compatibility_io() {
                Ok(io) => {
                    for data in [Data::Disk, Data::PageCache] {
                        let compat = CompatFiles { io: io.clone(), threads: self.depth, device };
                        ways.push(self.threads(Way::CufileCompat, data, Box::new(compat))?);
                    }
                }
                Err(error) => note(report, format!("no cuFile in compatibility mode: {error}")),
            }
        }
        Ok(ways)
    }

    fn plain(&self, copies: bool) -> Result<Box<Plain>> {
        Ok(Box::new(Plain::new(self.gpu, self.object_bytes, self.depth, copies)?))
    }

    /// The engine by one route; says why not where it cannot be had.
    fn engine(&self, report: &mut GpuReport, way: Way, data: Data) -> Result<Option<Contestant<'_>>> {
        let path = self.path(way, data);
        std::fs::create_dir_all(&path).map_err(|error| Error::io("mkdir", &path, error))?;
        let mut config = Config::new(&path);
        config.shards = self.options.shards;
        // Nothing is recycled: each round stores new files.
        config.spare_bytes = 0;
        config.direct_io = if data == Data::Disk { DirectIo::Auto } else { DirectIo::Off };
        // A checksum needs the bytes in the host's memory.
        config.integrity = if way == Way::Direct { Integrity::Off } else { self.options.integrity };
        let engine = Engine::open(config)?;
        if data == Data::Disk && !engine.status().volumes[0].medium.direct_io {
            note(report, buffered(way.name()));
        }
        let mut options = DeviceOptions::default();
        options.route = if way == Way::Direct { RouteChoice::Direct } else { RouteChoice::Pipeline };
        match engine.attach_device(self.gpu.device(), options) {
            Ok(()) => {}
            Err(error @ saltern::Error::Device { .. }) if way == Way::Direct => {
                report.route = format!("pipeline: {error}");
                note(report, format!("no direct rows: {error}"));
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        }
        if let (Way::Direct, Some(Route::Direct { by })) =
            (way, engine.status().devices.first().map(|device| &device.routes[0].route))
        {
            report.route = format!("direct: {by}");
        }
        Ok(Some(Contestant::new(way, data, path, Mover::Engine(Box::new(engine), self.keys()?))))
    }

    /// Threads that do it without an engine, on files that they store themselves.
    fn threads<'a>(&self, way: Way, data: Data, io: Box<dyn PlainIo + 'a>) -> Result<Contestant<'a>> {
        let path = self.path(way, data);
        let files = self.files(&path)?;
        Ok(Contestant::new(way, data, path, Mover::Threads(io, files)))
    }

    /// A file for each object, in a directory that is made.
    fn files(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        std::fs::create_dir_all(dir).map_err(|error| Error::io("mkdir", dir, error))?;
        Ok((0..self.blocks.len()).map(|object| dir.join(object.to_string())).collect())
    }

    fn path(&self, way: Way, data: Data) -> PathBuf {
        self.dir.join(format!("{}-{}", way.name(), if data == Data::Disk { "disk" } else { "cache" }))
    }

    fn keys(&self) -> Result<Vec<ObjectKey>> {
        let key = |object: usize| {
            let hash = (object as u64).to_be_bytes();
            ObjectKey::new("saltern/bench", kv_rank(1, 0, 1, 0), 0, &hash, "").map_err(saltern::Error::from)
        };
        Ok((0..self.blocks.len()).map(key).collect::<Result<_, _>>()?)
    }

    fn enter(&self, report: &mut GpuReport, (way, data, store): (Way, Data, bool), sum: Sum, bounds: &[f64]) {
        if sum.buffered > 0 {
            note(report, buffered(way.name()));
        }
        let copies = report.copy_bound(!store);
        let bounds: Vec<f64> = bounds.iter().map(|bound| bound.min(copies)).collect();
        let ratios: Vec<f64> = sum.rates.iter().zip(&bounds).map(|(rate, bound)| rate / bound.max(1.0)).collect();
        report.results.push(GpuResult {
            way,
            store,
            data,
            object_bytes: self.object_bytes,
            objects: self.blocks.len(),
            depth: self.depth,
            mib_per_s: round(median(&sum.rates) / MIB, 1),
            cpu_seconds_per_gb: round(sum.spent.cpu_seconds / (sum.bytes as f64 / 1e9).max(1e-9), 4),
            bound_mib_per_s: Some(round(median(&bounds) / MIB, 1)),
            ratio: Some(round(median(&ratios), 3)),
            verified_bytes: sum.verified,
            errors: sum.errors,
            first_error: sum.first_error,
        });
    }
}

/// What a reader of rows has to know whose data was to be on the disk.
fn buffered(who: &str) -> String {
    format!("{who}: rows `disk` went through the page cache, because the file system takes no O_DIRECT")
}

/// A note, once.
fn note(report: &mut GpuReport, text: String) {
    if !report.notes.contains(&text) {
        report.notes.push(text);
    }
}
