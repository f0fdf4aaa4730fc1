//! What the phases of one object size share: an engine on a directory of its own, keys, memory, and the ceiling.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use nix::unistd::syncfs;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use saltern::{Config, Engine, ObjectKey, Scope, kv_rank};

use crate::arena::{Arena, ArenaEngine};
use crate::baselines::{self, Baseline};
use crate::ceiling::{Kind, Memory, Rig, Sample};
use crate::error::{Error, Result};
use crate::meter::{Latencies, Meter, Spent, round};
use crate::options::Options;
use crate::payload::mix;
use crate::plan::SizePlan;
use crate::report::PhaseResult;
use crate::run::Hooks;
use crate::tally::{Ceiling, Problems, Tally};
use crate::test_file::TestFile;
use crate::transfer::{Mover, Step, Timed, compare, make_ready};

/// See the module.
pub(crate) struct Stage<'a> {
    pub(crate) options: &'a Options,
    pub(crate) plan: SizePlan,
    pub(crate) hooks: Hooks<'a>,
    pub(crate) arena: &'a mut Arena,
    pub(crate) keys: Vec<ObjectKey>,
    /// Objects that are stored, as numbers of `keys`: the oldest is displaced first.
    pub(crate) live: Range<usize>,
    /// What else does the same.
    pub(crate) baselines: Vec<Box<dyn Baseline>>,
    /// What a reader has to know to judge the figures.
    pub(crate) notes: Vec<String>,
    scope: Arc<Scope>,
    config: Config,
    engine: Option<ArenaEngine>,
    file: &'a TestFile,
    rig: Rig,
    /// Offsets of the ceiling's objects, each once, in random order.
    blocks: Vec<u64>,
    next_block: usize,
}

impl<'a> Stage<'a> {
    /// Opens an engine on `dir`, which holds the objects `live`, or does not exist yet.
    pub(crate) fn new(
        options: &'a Options,
        plan: SizePlan,
        hooks: Hooks<'a>,
        arena: &'a mut Arena,
        file: &'a TestFile,
        dir: PathBuf,
        live: Range<usize>,
    ) -> Result<Self> {
        let baselines = match options.baselines {
            true => baselines::all(&dir, plan.depth, file.is_direct())?,
            false => Vec::new(),
        };
        let config = config(options, &plan, dir);
        let rig = Rig::new(plan.object_bytes, config.segment_bytes, plan.depth, plan.slice)?;
        let mut blocks: Vec<u64> = (0..file.bytes() / rig.object_bytes() as u64).collect();
        blocks.iter_mut().for_each(|block| *block *= rig.object_bytes() as u64);
        blocks.shuffle(&mut StdRng::seed_from_u64(options.seed));
        let scope = Scope::new("saltern/bench", kv_rank(1, 0, 1, 0), 0, "").map_err(saltern::Error::from)?;
        let keys = keys(&scope, options.seed, 0..plan.objects.max(live.end) as u64)?;
        arena.cut(plan.object_bytes, plan.slice);
        let mut notes = Vec::new();
        if !rig.has_fixed_buffers() {
            notes.push("the ceiling is measured without fixed buffers: the memlock limit is too low".to_owned());
        }
        let engine = Some(arena.lend_to(Engine::open(config.clone())?)?);
        Ok(Self {
            options,
            plan,
            hooks,
            arena,
            keys,
            live,
            baselines,
            notes,
            scope,
            config,
            engine,
            file,
            rig,
            blocks,
            next_block: 0,
        })
    }

    /// The engine.
    pub(crate) fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("it is only away inside of `reopen`")
    }

    /// Closes the engine, and opens it again with `open`.
    pub(crate) fn reopen<T>(&mut self, open: impl FnOnce(Config) -> Result<(Engine, T)>) -> Result<T> {
        if let Some(engine) = self.engine.take() {
            engine.close();
        }
        let (engine, outcome) = open(self.config.clone())?;
        self.engine = Some(self.arena.lend_to(engine)?);
        Ok(outcome)
    }

    /// Objects larger than this are split.
    pub(crate) fn segment_bytes(&self) -> usize {
        self.config.segment_bytes
    }

    /// Keys that no object has.
    pub(crate) fn absent_keys(&self, count: usize) -> Result<Vec<ObjectKey>> {
        const FIRST: u64 = 1 << 40;
        keys(&self.scope, self.options.seed, FIRST..FIRST + count as u64)
    }

    /// A fixed random order of the stored objects.
    pub(crate) fn shuffled(&self) -> Vec<usize> {
        let mut order: Vec<usize> = self.live.clone().collect();
        order.shuffle(&mut StdRng::seed_from_u64(self.options.seed + 1));
        order
    }

    /// Cuts `count` objects into rounds.
    pub(crate) fn rounds(&self, count: usize) -> Vec<Range<usize>> {
        (0..count).step_by(self.plan.slice).map(|start| start..count.min(start + self.plan.slice)).collect()
    }

    /// Measures the ceiling with as many objects as the round beside it has. What is waiting to be written, from
    /// earlier rounds, is written before; what it writes itself belongs to its time, as it does for everybody.
    pub(crate) fn ceiling(&mut self, kind: Kind, objects: usize) -> Result<Ceiling> {
        self.settle()?;
        let reused = self.measure(kind, Memory::Reused, objects)?;
        self.rig.take_reads();
        Ok(Ceiling { spread: self.measure(kind, Memory::Spread, objects)?, reused })
    }

    fn measure(&mut self, kind: Kind, memory: Memory, objects: usize) -> Result<Sample> {
        let mut sample = self.sample(kind, memory, objects)?;
        if kind != Kind::Read {
            sample.spent += self.settle()?;
        }
        Ok(sample)
    }

    /// Latencies of the device's own reads, of the last ceiling with as much memory as the round beside it.
    pub(crate) fn take_device_reads(&mut self) -> Latencies {
        self.rig.take_reads()
    }

    fn sample(&mut self, kind: Kind, memory: Memory, objects: usize) -> Result<Sample> {
        let wanted = objects.min(self.blocks.len());
        if self.next_block + wanted > self.blocks.len() {
            self.next_block = 0;
        }
        let offsets = &self.blocks[self.next_block..self.next_block + wanted];
        self.next_block += wanted;
        self.rig.run(self.file, kind, memory, offsets, self.hooks.cancel)
    }

    /// Waits until file system and device have nothing left to write; gives what that took.
    pub(crate) fn settle(&self) -> Result<Spent> {
        let dir = std::fs::File::open(&self.config.dir).map_err(|error| Error::io("open", &self.config.dir, error))?;
        let meter = Meter::process();
        syncfs(&dir).map_err(|errno| Error::io("syncfs", &self.config.dir, errno))?;
        Ok(meter.stop())
    }

    /// From now on the capacity is what is stored, and room for the stores in flight, whose victims may still be there
    /// as well.
    pub(crate) fn fill_to_capacity(&mut self) -> Result<()> {
        let objects = self.live.len() + 2 * self.plan.depth;
        self.config.capacity_bytes = Some((objects * self.plan.object_bytes) as u64);
        self.reopen(|config| Ok((Engine::open(config)?, ())))
    }

    /// The next `count` objects, each of which displaces the oldest one that is there.
    pub(crate) fn displacement(&mut self, count: usize) -> Result<(Vec<usize>, Vec<Step>)> {
        let count = count.min(self.live.len());
        let new: Vec<usize> = (self.live.end..self.live.end + count).collect();
        let (have, want) = (self.keys.len() as u64, (self.live.end + count) as u64);
        self.keys.extend(keys(&self.scope, self.options.seed, have..want.max(have))?);
        Ok((new, self.live.clone().take(count).map(|victim| Step::Displace { victim }).collect()))
    }

    /// So many objects were displaced.
    pub(crate) fn displaced(&mut self, count: usize) {
        self.live = self.live.start + count..self.live.end + count;
    }

    /// Does `steps[i]` with object `order[i]` and slot `i`; 0 is the engine, the others are baselines.
    pub(crate) fn run(
        &mut self,
        who: usize,
        order: &[usize],
        steps: &[Step],
        problems: &mut Problems,
    ) -> Result<Timed> {
        if who > 0 {
            return self.baselines[who - 1].run(self.arena, order, steps, problems, self.hooks.cancel);
        }
        let (mover, arena) = self.mover();
        mover.run(arena, order, steps, problems)
    }

    /// Moves objects between the engine and the arena.
    pub(crate) fn mover(&mut self) -> (Mover<'_>, &mut Arena) {
        let mover = Mover {
            engine: self.engine.as_ref().expect("it is only away inside of `reopen`"),
            keys: &self.keys,
            depth: self.plan.depth,
            cancel: self.hooks.cancel,
            stop: None,
        };
        (mover, self.arena)
    }

    /// Stores all objects, untimed, for a phase that needs them, unless an earlier phase has.
    pub(crate) fn require_objects(&mut self) -> Result<()> {
        if !self.live.is_empty() {
            return Ok(());
        }
        self.hooks.progress.begin(&self.label("preparing"), self.plan.objects as u64);
        let mut problems = Problems::default();
        for round in self.rounds(self.plan.objects) {
            let (order, steps): (Vec<_>, Vec<_>) = round.map(|object| (object, Step::Store)).unzip();
            make_ready(self.arena, self.options.seed, &order, &steps);
            for who in 0..=self.baselines.len() {
                self.run(who, &order, &steps, &mut problems)?;
            }
            self.hooks.progress.advance(order.len() as u64);
        }
        self.live = 0..self.plan.objects;
        if let Some(first) = problems.first() {
            self.notes.push(format!("{} objects could not be prepared; the first: {first}", problems.count()));
        }
        Ok(())
    }

    /// Loads all stored objects, untimed, and compares every byte; of a baseline, those of one round.
    pub(crate) fn verify(&mut self, who: usize, tally: &mut Tally) -> Result<()> {
        let seed = self.options.seed;
        let rounds = self.rounds(self.live.len());
        let rounds = if who == 0 { &rounds[..] } else { &rounds[..1] };
        for round in rounds {
            let of = |number| (self.live.start + number, Step::Load);
            let (order, steps): (Vec<_>, Vec<_>) = round.clone().map(of).unzip();
            make_ready(self.arena, seed, &order, &steps);
            let timed = self.run(who, &order, &steps, &mut tally.problems)?;
            tally.verified_bytes += compare(self.arena, seed, &order, &timed.good, &mut tally.problems);
            if who == 0 {
                self.hooks.progress.advance(order.len() as u64);
            }
        }
        Ok(())
    }

    /// How a progress bar calls what is being done.
    pub(crate) fn label(&self, what: &str) -> String {
        let bytes = self.plan.object_bytes;
        match bytes {
            _ if bytes.is_multiple_of(1 << 20) => format!("{what} {}MiB", bytes >> 20),
            _ if bytes.is_multiple_of(1 << 10) => format!("{what} {}KiB", bytes >> 10),
            _ => format!("{what} {bytes}B"),
        }
    }
}

/// What of an engine's work was done by overwriting spares.
pub(crate) struct Recycling {
    stores: u64,
    recycled: u64,
    spare_bytes: u64,
}

impl Recycling {
    /// Of what comes now.
    pub(crate) fn begin(engine: &Engine) -> Self {
        let status = engine.status();
        let (stores, recycled) = (status.counters.stores, status.counters.recycled);
        Self { stores, recycled, spare_bytes: status.spares.bytes }
    }

    /// Of what came since.
    pub(crate) fn end(self, engine: &Engine) -> Self {
        let now = Self::begin(engine);
        Self { stores: now.stores - self.stores, recycled: now.recycled - self.recycled, ..now }
    }

    /// Of all stores.
    pub(crate) fn share(&self) -> f64 {
        self.recycled as f64 / self.stores.max(1) as f64
    }

    pub(crate) fn enter(&self, result: &mut PhaseResult) {
        (result.recycled, result.spare_bytes) = (Some(round(self.share(), 3)), Some(self.spare_bytes));
    }
}

fn config(options: &Options, plan: &SizePlan, dir: PathBuf) -> Config {
    let mut config = Config::new(dir);
    config.layout = options.layout;
    config.shards = options.shards;
    config.integrity = options.integrity;
    // Limits that the run stays below, so that accounting is part of what is measured.
    config.capacity_bytes = Some(2 * (plan.objects * plan.object_bytes) as u64 + (64 << 20));
    config.max_object_bytes = config.max_object_bytes.max(plan.object_bytes as u64);
    config.pool_bytes = config.pool_bytes.max(options.shards * 16 * config.segment_bytes);
    config
}

/// Keys as a serving engine makes them: one scope, 32 bytes of hash.
pub(crate) fn keys(scope: &Arc<Scope>, seed: u64, numbers: Range<u64>) -> Result<Vec<ObjectKey>> {
    let key = |number| {
        let mut hash = [0; 32];
        for (part, bytes) in hash.chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&mix(mix(seed ^ mix(part as u64)).wrapping_add(number)).to_le_bytes());
        }
        scope.key(&hash).map_err(|error| saltern::Error::from(error).into())
    };
    numbers.map(key).collect()
}
