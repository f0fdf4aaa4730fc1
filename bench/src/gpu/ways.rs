//! One way to move objects, with the files that it stores: the engine, or threads that do it without one.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use saltern::{Class, Engine, ObjectKey};

use super::device::Block;
use super::plain::{Outcome, PlainIo};
use super::report::{Data, Way};
use super::{compare, fill, poison};
use crate::closed_loop::{ClosedLoop, Operation};
use crate::error::{Error, Result};
use crate::meter::{Meter, Spent};

/// What rounds add up to.
#[derive(Default)]
pub(super) struct Sum {
    /// Bytes a second, round by round.
    pub(super) rates: Vec<f64>,
    pub(super) spent: Spent,
    pub(super) bytes: u64,
    pub(super) verified: u64,
    pub(super) errors: u64,
    pub(super) first_error: Option<String>,
    /// Files that were to be open with O_DIRECT, and were not.
    pub(super) buffered: usize,
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

/// Who moves them.
pub(super) enum Mover<'a> {
    Engine(Box<Engine>, Vec<ObjectKey>),
    Threads(Box<dyn PlainIo + 'a>, Vec<PathBuf>),
}

/// What every way has in common.
#[derive(Clone, Copy)]
pub(super) struct Round<'a> {
    pub(super) blocks: &'a [Block],
    pub(super) seed: u64,
    /// Objects in flight.
    pub(super) depth: usize,
    pub(super) cancel: &'a AtomicBool,
}

/// See the module.
pub(super) struct Contestant<'a> {
    pub(super) way: Way,
    pub(super) data: Data,
    /// Where its files are.
    pub(super) dir: PathBuf,
    pub(super) mover: Mover<'a>,
    /// Loads come to the device, and are compared there.
    pub(super) reaches_device: bool,
    pub(super) stores: Sum,
    pub(super) loads: Sum,
}

impl<'a> Contestant<'a> {
    pub(super) fn new(way: Way, data: Data, dir: PathBuf, mover: Mover<'a>) -> Self {
        Self { way, data, dir, mover, reaches_device: true, stores: Sum::default(), loads: Sum::default() }
    }

    /// Stores all objects as new files, and loads them again. Stores end when the device has everything (syncfs), for every way: an
    /// engine with buffered I/O syncs each object before it has its name.
    pub(super) fn round(&mut self, round: Round<'_>) -> Result<()> {
        self.clear();
        fill(round.blocks, round.seed)?;
        self.go(round, true)?;
        poison(round.blocks)?;
        self.go(round, false)?;
        if self.reaches_device {
            let (right, wrong, first) = compare(round.blocks, round.seed)?;
            self.loads.verified += right;
            self.loads.errors += wrong;
            self.loads.first_error = self.loads.first_error.take().or(first);
            // What was loaded well was stored well.
            self.stores.verified = self.loads.verified;
        }
        Ok(())
    }

    /// Removes what the round before has stored.
    fn clear(&mut self) {
        match &self.mover {
            Mover::Engine(..) if self.stores.rates.is_empty() => {}
            Mover::Engine(engine, keys) => {
                let deleted = engine.delete(keys).wait().results;
                let failed = deleted.into_iter().filter_map(Result::err);
                failed.for_each(|error| self.stores.error(format!("delete: {error}")));
            }
            Mover::Threads(_, files) => files.iter().for_each(|file| drop(std::fs::remove_file(file))),
        }
    }

    fn go(&mut self, round: Round<'_>, store: bool) -> Result<()> {
        let sum = if store { &mut self.stores } else { &mut self.loads };
        let (mut spent, bytes) = match &self.mover {
            Mover::Engine(engine, keys) => by_engine(engine, keys, round, store, sum)?,
            Mover::Threads(io, files) => {
                let meter = Meter::process();
                let Outcome { errors, buffered } = io.run(files, round.blocks, store, self.data == Data::Disk);
                let (spent, failed) = (meter.stop(), errors.len());
                sum.buffered += buffered;
                errors.into_iter().for_each(|error| sum.error(error));
                let bytes: usize = round.blocks.iter().map(Block::len).sum();
                (spent, (bytes / files.len().max(1) * (files.len() - failed)) as u64)
            }
        };
        if store {
            spent += settle(&self.dir)?;
        }
        sum.add(spent, bytes);
        Ok(())
    }
}

/// One object a ticket, `depth` of them in flight.
fn by_engine(
    engine: &Engine,
    keys: &[ObjectKey],
    round: Round<'_>,
    store: bool,
    sum: &mut Sum,
) -> Result<(Spent, u64)> {
    let Round { blocks, depth, cancel, .. } = round;
    let classes = [if store { Class::Store } else { Class::Load }];
    let closed = ClosedLoop { engine, classes: &classes, depth, cancel, stop: None };
    let mut context = (sum, 0);
    let submit = |_: &mut _, object: usize| {
        let batch = vec![(keys[object].clone(), blocks[object].buffer().into())];
        if store { Operation::Store(engine.store(batch)) } else { Operation::Load(engine.load(batch)) }
    };
    let done = |(sum, bytes): &mut (&mut Sum, u64), _, (result, _): (Result<u64, saltern::Error>, _)| match result {
        Ok(moved) => *bytes += moved,
        Err(error) => sum.error(error.to_string()),
    };
    let outcome = closed.run(&mut context, keys.len(), submit, done, |_| ())?;
    Ok((outcome.spent, context.1))
}

/// Waits until the file system has nothing left to write.
pub(super) fn settle(dir: &Path) -> Result<Spent> {
    let file = std::fs::File::open(dir).map_err(|error| Error::io("open", dir, error))?;
    let meter = Meter::process();
    nix::unistd::syncfs(&file).map_err(|errno| Error::io("syncfs", dir, errno))?;
    Ok(meter.stop())
}
