//! The rows of one object size.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use saltern::device::{DeviceOptions, Route, RouteChoice};
use saltern::{Config, DirectIo, Engine, Integrity, ObjectKey, kv_rank};

use super::device::{Block, Gpu};
use super::plain::{CompatFiles, Plain, PlainIo};
use super::report::{Data, GpuReport, GpuResult, Way};
use super::{Bounds, MIB, compare, fill, poison};
use crate::error::{Error, Result};
use crate::meter::{Meter, Spent, median, round};
use crate::options::Options;
use crate::run::Hooks;

/// See the module.
pub(super) struct Rows<'a> {
    pub(super) options: &'a Options,
    pub(super) gpu: &'a Gpu,
    pub(super) blocks: &'a [Block],
    pub(super) dir: PathBuf,
    pub(super) object_bytes: usize,
    pub(super) depth: usize,
    pub(super) bounds: Bounds,
    /// The same with the data in the page cache; known once `run` has measured it.
    pub(super) cached: Bounds,
    pub(super) hooks: Hooks<'a>,
}

/// What rounds add up to.
#[derive(Default)]
struct Sum {
    rates: Vec<f64>,
    spent: Spent,
    bytes: u64,
    verified: u64,
    errors: u64,
    first_error: Option<String>,
}

impl Sum {
    fn add(&mut self, spent: Spent, bytes: u64) {
        self.rates.push(bytes as f64 / spent.seconds.max(1e-9));
        self.spent += spent;
        self.bytes += bytes;
    }

    fn error(&mut self, error: String) {
        self.errors += 1;
        self.first_error.get_or_insert(error);
    }
}

impl Rows<'_> {
    /// All rows: what stores comes first, and what it has stored is loaded.
    pub(super) fn run(&mut self, report: &mut GpuReport) -> Result<()> {
        self.cached = self.page_cache(report)?;
        self.engine(report, Way::Pipeline, Data::Disk)?;
        if self.options.gpu_direct {
            self.engine(report, Way::Direct, Data::Disk)?;
        }
        self.engine(report, Way::Pipeline, Data::PageCache)?;
        let plain = self.plain(true);
        for data in [Data::Disk, Data::PageCache] {
            self.threads(report, Way::ReadCopy, data, &plain)?;
        }
        if let Gpu::Cuda(device) = self.gpu {
            match device.compatibility_io() {
                Ok(io) => {
                    let compat = CompatFiles { io, threads: self.depth, device };
                    for data in [Data::Disk, Data::PageCache] {
                        self.threads(report, Way::CufileCompat, data, &compat)?;
                    }
                }
                Err(error) => note(report, format!("no cuFile in compatibility mode: {error}")),
            }
        }
        Ok(())
    }

    fn plain(&self, copies: bool) -> Plain<'_> {
        Plain { gpu: self.gpu, object_bytes: self.object_bytes, threads: self.depth, copies }
    }

    /// What bounds rows whose data is in the page cache: plain reads and writes by threads, and copies.
    fn page_cache(&self, report: &GpuReport) -> Result<Bounds> {
        let path = self.dir.join("alone");
        let files = self.files(&path)?;
        let mut rates = [Vec::new(), Vec::new()];
        for _ in 0..self.options.rounds {
            remove(&files);
            for (store, rates) in [true, false].into_iter().zip(&mut rates) {
                let meter = Meter::process();
                if let Some(error) = self.plain(false).run(&files, self.blocks, store, false).pop() {
                    return Err(Error::io("page cache", &path, std::io::Error::other(error)));
                }
                rates.push((self.blocks.len() * self.object_bytes) as f64 / meter.stop().seconds.max(1e-9));
                settle(&path)?;
            }
        }
        remove(&files);
        let [stores, loads] = rates.map(|rates| median(&rates));
        Ok(Bounds { load: loads.min(report.copy_bound(true)), store: stores.min(report.copy_bound(false)) })
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

    /// The engine by one route; says why not where it cannot be had.
    fn engine(&self, report: &mut GpuReport, way: Way, data: Data) -> Result<()> {
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
        let mut options = DeviceOptions::default();
        options.route = if way == Way::Direct { RouteChoice::Direct } else { RouteChoice::Pipeline };
        match engine.attach_device(self.gpu.device(), options) {
            Ok(()) => {}
            Err(error @ saltern::Error::Device { .. }) if way == Way::Direct => {
                report.route = format!("pipeline: {error}");
                note(report, format!("no direct rows: {error}"));
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        if let (Way::Direct, Some(Route::Direct { by })) =
            (way, engine.status().devices.first().map(|device| &device.routes[0].route))
        {
            report.route = format!("direct: {by}");
        }
        let keys = self.keys()?;
        let (mut stores, mut loads) = (Sum::default(), Sum::default());
        for number in 0..self.options.rounds {
            if number > 0 {
                let deleted = engine.delete(&keys).wait().results;
                deleted.into_iter().filter_map(Result::err).for_each(|error| stores.error(format!("delete: {error}")));
            }
            fill(self.blocks, self.options.seed)?;
            self.round(&engine, &keys, true, &mut stores)?;
            settle(&path)?;
            poison(self.blocks)?;
            self.round(&engine, &keys, false, &mut loads)?;
            self.check(&mut loads)?;
        }
        // What was loaded well was stored well.
        stores.verified = loads.verified;
        self.enter(report, way, data, true, stores);
        self.enter(report, way, data, false, loads);
        Ok(())
    }

    /// One object a ticket, the oldest waited for.
    fn round(&self, engine: &Engine, keys: &[ObjectKey], store: bool, sum: &mut Sum) -> Result<()> {
        let (mut stores, mut loads) = (VecDeque::new(), VecDeque::new());
        let mut bytes = 0;
        let mut take = |result: Result<u64, saltern::Error>, sum: &mut Sum| match result {
            Ok(moved) => bytes += moved,
            Err(error) => sum.error(error.to_string()),
        };
        let meter = Meter::process();
        for (key, block) in keys.iter().zip(self.blocks) {
            if stores.len() + loads.len() == self.depth {
                wait(&mut stores, &mut loads).into_iter().for_each(|result| take(result, sum));
            }
            let batch = vec![(key.clone(), block.buffer().into())];
            if store {
                stores.push_back(engine.store(batch))
            } else {
                loads.push_back(engine.load(batch))
            }
            if self.hooks.cancel.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
        }
        while stores.len() + loads.len() > 0 {
            wait(&mut stores, &mut loads).into_iter().for_each(|result| take(result, sum));
        }
        sum.add(meter.stop(), bytes);
        Ok(())
    }

    /// Threads that do it without an engine, on files that they store themselves.
    fn threads(&self, report: &mut GpuReport, way: Way, data: Data, io: &dyn PlainIo) -> Result<()> {
        let path = self.path(way, data);
        let files = self.files(&path)?;
        let direct = data == Data::Disk;
        let (mut stores, mut loads) = (Sum::default(), Sum::default());
        for _ in 0..self.options.rounds {
            remove(&files);
            fill(self.blocks, self.options.seed)?;
            for (store, sum) in [(true, &mut stores), (false, &mut loads)] {
                let meter = Meter::process();
                let errors = io.run(&files, self.blocks, store, direct);
                let failed = errors.len();
                errors.into_iter().for_each(|error| sum.error(error));
                sum.add(meter.stop(), ((self.blocks.len() - failed) * self.object_bytes) as u64);
                if store {
                    settle(&path)?;
                    poison(self.blocks)?;
                }
            }
            self.check(&mut loads)?;
            if self.hooks.cancel.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
        }
        stores.verified = loads.verified;
        self.enter(report, way, data, true, stores);
        self.enter(report, way, data, false, loads);
        Ok(())
    }

    fn check(&self, sum: &mut Sum) -> Result<()> {
        let (right, wrong, first) = compare(self.blocks, self.options.seed)?;
        sum.verified += right;
        sum.errors += wrong;
        sum.first_error = sum.first_error.take().or(first);
        Ok(())
    }

    fn enter(&self, report: &mut GpuReport, way: Way, data: Data, store: bool, sum: Sum) {
        let rate = median(&sum.rates);
        let Bounds { load, store: stores } = if data == Data::Disk { self.bounds } else { self.cached };
        let bound = Some(if store { stores } else { load });
        report.results.push(GpuResult {
            way,
            store,
            data,
            object_bytes: self.object_bytes,
            objects: self.blocks.len(),
            depth: self.depth,
            mib_per_s: round(rate / MIB, 1),
            cpu_seconds_per_gb: round(sum.spent.cpu_seconds / (sum.bytes as f64 / 1e9).max(1e-9), 4),
            bound_mib_per_s: bound.map(|bound| round(bound / MIB, 1)),
            ratio: bound.map(|bound| round(rate / bound, 3)),
            verified_bytes: sum.verified,
            errors: sum.errors,
            first_error: sum.first_error,
        });
    }
}

fn wait(
    stores: &mut VecDeque<saltern::Ticket<saltern::StoreReport>>,
    loads: &mut VecDeque<saltern::Ticket<saltern::LoadReport>>,
) -> Vec<Result<u64, saltern::Error>> {
    match (stores.pop_front(), loads.pop_front()) {
        (Some(ticket), _) => ticket.wait().results,
        (None, Some(ticket)) => ticket.wait().results,
        (None, None) => Vec::new(),
    }
}

fn remove(files: &[PathBuf]) {
    for file in files {
        let _ = std::fs::remove_file(file);
    }
}

/// A note, once.
fn note(report: &mut GpuReport, text: String) {
    if !report.notes.contains(&text) {
        report.notes.push(text);
    }
}

/// Waits until the file system has nothing left to write.
fn settle(dir: &Path) -> Result<()> {
    let file = std::fs::File::open(dir).map_err(|error| Error::io("open", dir, error))?;
    nix::unistd::syncfs(&file).map_err(|errno| Error::io("syncfs", dir, errno))
}
