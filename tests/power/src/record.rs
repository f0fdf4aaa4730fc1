//! One workload on the logging disk, from the empty file system (or from what an earlier power cut has left) to its end.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use nix::unistd::syncfs;

use crate::cell::{Cell, Mode, Scale, Subject};
use crate::check::Findings;
use crate::engine::Running;
use crate::error::{Doing, Error, Result};
use crate::history::History;
use crate::lab::Lab;
use crate::log::{LogReader, Position};
use crate::plain::Plain;
use crate::replay::Replay;
use crate::workload::{Driver, Plan, Target};

/// The volume's directory in the file system.
pub(crate) const VOLUME: &str = "volume";

/// A workload that is over: its log and its history.
pub(crate) struct Run {
    pub(crate) history: History,
    pub(crate) replay: Replay,
    /// Stores that have overwritten a file.
    pub(crate) recycled: u64,
    /// The part of the log that may be cut.
    pub(crate) range: Range<Position>,
}

/// What the workloads of one run share.
struct Stage<'a> {
    root: &'a Path,
    log: &'a LogReader,
    driver: Driver<'a>,
    seed: u64,
}

impl Stage<'_> {
    fn run(&self, target: &impl Target, plan: Plan, part: u64) -> Result<()> {
        self.driver.run(target, plan, self.root, self.seed.wrapping_add(part))
    }

    /// Makes all that there is durable; power cuts begin here.
    fn settle(&self) -> Result<Position> {
        syncfs(File::open(self.root).doing("open the root")?).doing("sync the file system")?;
        self.log.position().doing("read the disk's position")
    }
}

impl Cell {
    /// Bytes that a store of this cell has to hold at most.
    pub(crate) fn capacity_bytes(&self) -> u64 {
        let Scale { capacity_bytes, store_bytes, .. } = self.scale;
        if self.mode == Mode::Fresh { 2 * store_bytes } else { capacity_bytes }
    }

    /// A part of the workload.
    fn plan(&self, mode: Mode, store_bytes: u64) -> Plan {
        Plan { mode, capacity_bytes: self.capacity_bytes(), store_bytes }
    }

    /// Runs the workload on a new file system, or on the image that a power cut has left.
    pub(crate) fn record(&self, lab: &Lab, seed: u64, left: Option<&Path>) -> Result<Run> {
        let made;
        let base = match left {
            Some(image) => image,
            None => {
                made = lab.make_image("base", self.file_system)?;
                &made
            }
        };
        let mut disk = lab.start_disk(base)?;
        let root = disk.mount(self.file_system)?;
        let (log, volume, history) = (disk.log()?, root.join(VOLUME), History::default());
        let found = if left.is_some() { Findings::objects(&volume, self.subject.layout())? } else { Vec::new() };
        found.iter().for_each(|number| history.found(*number));
        let stage = Stage { root: &root, log: &log, driver: Driver::new(&log, &history, &found), seed };
        let (start, recycled) = match self.subject {
            Subject::Engine(setup) => {
                let config = setup.config(&volume, self.capacity_bytes());
                self.drive_engine(&stage, || Running::open(config.clone()).map_err(Error::Workload))?
            }
            Subject::Plain(means) => {
                let plain = Plain::open(&volume, means).doing("open a plain writer")?;
                let start = self.fill(&stage, &plain)?;
                stage.run(&plain, self.plan(self.mode, self.scale.store_bytes), 1)?;
                (start, 0)
            }
        };
        // After a first cut, the second may come at any moment, also in the recovery from the first.
        let start = if left.is_some() { 1 } else { start };
        let end = log.position().doing("read the disk's position")?;
        disk.unmount()?;
        let replay = Replay::new(base, log, &lab.path("rolling"))?;
        Ok(Run { history, replay, recycled, range: start..end })
    }

    /// Brings a store to its capacity, except where that is the workload.
    fn fill(&self, stage: &Stage<'_>, target: &impl Target) -> Result<Position> {
        if self.mode != Mode::Fresh {
            stage.run(target, self.plan(Mode::Fresh, self.scale.capacity_bytes), 0)?;
        }
        stage.settle()
    }

    /// With a restart in the middle: an engine takes over what another has left.
    fn drive_engine(&self, stage: &Stage<'_>, open: impl Fn() -> Result<Running>) -> Result<(Position, u64)> {
        let half = self.plan(self.mode, self.scale.store_bytes / 2);
        let first = open()?;
        let start = self.fill(stage, &first)?;
        stage.run(&first, half, 1)?;
        let recycled = first.0.status().counters.recycled;
        drop(first);
        let second = open()?;
        stage.run(&second, half, 2)?;
        Ok((start, recycled + second.0.status().counters.recycled))
    }
}
