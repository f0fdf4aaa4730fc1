//! One cell of the matrix: one workload on one file system, and the images of its log.

use std::path::PathBuf;
use std::time::Instant;

use saltern::{Durability, Layout};

use crate::check::Findings;
pub use crate::engine::{Recycling, Setup};
use crate::error::{Error, Result};
use crate::history::History;
use crate::lab::{FileSystem, Lab, MountedImage, copy_sparse};
pub use crate::plain::Means;
use crate::record::VOLUME;
use crate::replay::Cut;
pub use crate::workload::Mode;

/// Every so many images are checked by the file system's own checker.
const FSCK_ONE_OF: usize = 10;

/// Set to a directory, images with findings are kept there.
const KEEP_VARIABLE: &str = "SALTERN_POWER_KEEP";

/// What stores the objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// The engine.
    Engine(Setup),
    /// A control.
    Plain(Means),
}

impl Subject {
    /// Whether what it acknowledges has to be there after a power cut.
    pub fn is_durable(self) -> bool {
        match self {
            Self::Engine(setup) => setup.durability == Durability::Full,
            Self::Plain(means) => means == Means::NewSynced,
        }
    }

    pub(crate) fn layout(self) -> Layout {
        match self {
            Self::Engine(setup) => setup.layout,
            Self::Plain(_) => Layout::Fs,
        }
    }
}

/// A cell.
#[derive(Debug, Clone, Copy)]
pub struct Cell {
    /// Under it.
    pub file_system: FileSystem,
    /// What stores.
    pub subject: Subject,
    /// What the workload does.
    pub mode: Mode,
    /// Cut the power a first time, and look at what a second cut leaves of a workload that went on after the first: also
    /// the recoveries, of the file system and of the engine, may be cut.
    pub again: bool,
    /// Power cuts that are looked at.
    pub images: usize,
    /// How much is stored.
    pub scale: Scale,
}

/// How much a workload stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scale {
    /// Bytes of live objects at capacity.
    pub capacity_bytes: u64,
    /// Bytes stored while the power may be cut.
    pub store_bytes: u64,
}

impl Scale {
    /// More than the quarantine and the spares hold.
    pub const FULL: Self = Self { capacity_bytes: 64 << 20, store_bytes: 192 << 20 };

    /// For many images of many cells.
    pub const SMALL: Self = Self { capacity_bytes: 12 << 20, store_bytes: 48 << 20 };
}

/// What the images of a cell have shown.
#[derive(Debug)]
pub struct Outcome {
    /// The cell.
    pub cell: Cell,
    /// Objects found, on all images.
    pub objects: usize,
    /// Files with wrong bytes.
    pub bad_files: usize,
    /// Objects that the engine has loaded with wrong bytes.
    pub bad_loads: usize,
    /// Acknowledged objects that were not there.
    pub missing: usize,
    /// Objects that the engine did not load.
    pub refused: usize,
    /// Images whose objects the engine has checked before their first use.
    pub doubted: usize,
    /// Images with anything else that is wrong.
    pub faults: usize,
    /// Images that the file system could not recover.
    pub unmountable: usize,
    /// Stores of the workload that have overwritten a file.
    pub recycled: u64,
    /// What was logged: requests, flushes, bytes.
    pub logged: (usize, usize, u64),
    /// Time of the workload and of all.
    pub seconds: (f64, f64),
    /// The findings in words.
    pub details: Vec<String>,
}

impl Outcome {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.details.is_empty()
    }
}

impl Cell {
    /// Runs the workload, and checks the images.
    ///
    /// # Errors
    /// When the lab fails, or the workload without any cut. What is wrong with images is in the outcome.
    pub fn run(&self, lab: &Lab, seed: u64) -> Result<Outcome> {
        let start = Instant::now();
        let mut run = self.record(lab, seed, None)?;
        if self.again {
            let cuts = run.replay.cuts(run.range.clone(), 1, seed);
            let base = lab.path("cut-before");
            run.replay.build(&cuts[0], &base)?;
            drop(run);
            run = self.record(lab, !seed, Some(&base))?;
        }
        let workload_s = start.elapsed().as_secs_f64();
        let mut outcome = Outcome {
            cell: *self,
            objects: 0,
            bad_files: 0,
            bad_loads: 0,
            missing: 0,
            refused: 0,
            doubted: 0,
            faults: 0,
            unmountable: 0,
            recycled: run.recycled,
            logged: run.replay.extent(run.range.clone()),
            seconds: (workload_s, 0.0),
            details: Vec::new(),
        };
        let image = lab.path("crash-image");
        for (number, cut) in run.replay.cuts(run.range.clone(), self.images, seed).into_iter().enumerate() {
            run.replay.build(&cut, &image)?;
            let findings = self.check(lab, &image, &run.history, &cut, number)?;
            let told = self.tell(&run.history, &cut, findings.as_ref());
            if let Some(text) = told {
                outcome.details.push(format!("image {number}, {text}"));
                if let Some(dir) = std::env::var_os(KEEP_VARIABLE) {
                    run.replay.build(&cut, &image)?;
                    let name = format!("{:?}-{number}.img", self);
                    copy_sparse(
                        &image,
                        &PathBuf::from(dir).join(name.replace(|c: char| !c.is_alphanumeric() && c != '.', "-")),
                    )?;
                }
            }
            outcome.add(findings);
        }
        outcome.seconds.1 = start.elapsed().as_secs_f64();
        Ok(outcome)
    }

    /// `None` when the file system does not recover.
    fn check(
        &self,
        lab: &Lab,
        image: &std::path::Path,
        history: &History,
        cut: &Cut,
        number: usize,
    ) -> Result<Option<Findings>> {
        let mounted = match MountedImage::mount(lab, image, self.file_system) {
            Ok(mounted) => mounted,
            Err(Error::Command { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let volume = mounted.root.join(VOLUME);
        let mut findings = Findings::default();
        let files = findings.check_files(&volume, self.subject.layout(), history, cut.position);
        if let Subject::Engine(setup) = self.subject {
            let config = setup.check_config(&volume, self.capacity_bytes(), number.is_multiple_of(2));
            let checked = findings.check_engine(config, &files);
            findings.faults.extend(checked.err().map(|error| error.to_string()));
        }
        mounted.unmount()?;
        if number % FSCK_ONE_OF == FSCK_ONE_OF / 2 {
            findings.faults.extend(self.file_system.fsck(image));
        }
        Ok(Some(findings))
    }

    /// What is wrong with an image, in words.
    fn tell(&self, history: &History, cut: &Cut, findings: Option<&Findings>) -> Option<String> {
        let Some(findings) = findings else { return Some(format!("{cut:?}: the file system does not recover")) };
        if findings.is_clean(self.subject.is_durable()) {
            return None;
        }
        let mut text = format!("{cut:?}, {} objects:", findings.objects);
        let said =
            |kind: &str, what: &[String]| what.iter().map(|what| format!("\n    {kind}: {what}")).collect::<String>();
        text += &said("bad file", &findings.bad_files);
        text += &said("bad load", &findings.bad_loads);
        text += &said("refused", &findings.refused);
        text += &said("fault", &findings.faults);
        if self.subject.is_durable() {
            let missing: Vec<_> = findings.missing.iter().map(|number| history.tell(*number)).collect();
            text += &said("missing", &missing);
        }
        Some(text)
    }
}

impl Outcome {
    fn add(&mut self, findings: Option<Findings>) {
        let Some(findings) = findings else {
            self.unmountable += 1;
            return;
        };
        self.objects += findings.objects;
        self.bad_files += findings.bad_files.len();
        self.bad_loads += findings.bad_loads.len();
        self.missing += findings.missing.len();
        self.doubted += usize::from(findings.is_doubted);
        self.refused += findings.refused.len();
        self.faults += usize::from(!findings.faults.is_empty());
    }
}
