//! A run from its options to its report.

use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::time::{Instant, SystemTime};

use crate::arena::Arena;
use crate::error::Result;
use crate::machine;
use crate::options::Options;
use crate::phases::Phase;
use crate::plan::{SizePlan, ceiling_bytes, fill_patience, plan};
use crate::report::{PhaseResult, Report, SCHEMA, Volume};
use crate::scratch::Scratch;
use crate::stage::Stage;
use crate::test_file::TestFile;

/// What is left free on the disk beside the data: metadata, and the other users of the disk.
const SPARE_BYTES: u64 = 64 << 20;

/// Told what is being done. Called between the timed parts, never in one.
pub trait Progress: Sync {
    /// Something of so many steps begins; what was before it has ended.
    fn begin(&self, label: &str, steps: u64);
    /// Steps were done.
    fn advance(&self, steps: u64);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _label: &str, _steps: u64) {}
    fn advance(&self, _steps: u64) {}
}

/// The caller's side of a run.
#[derive(Clone, Copy)]
pub struct Hooks<'a> {
    /// Told what is being done.
    pub progress: &'a dyn Progress,
    /// Set by anyone, it ends the run with [`crate::Error::Interrupted`] within about a second.
    pub cancel: &'a AtomicBool,
}

/// Runs the bench. Blocks. Everything it writes is in a scratch directory that is removed before it returns.
///
/// # Errors
/// [`crate::Error`]; wrong outcomes of single operations are no errors, see [`Report::errors`].
pub fn run(options: &Options, hooks: Hooks<'_>) -> Result<Report> {
    options.validate()?;
    let started = Instant::now();
    let started_unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let scratch = Scratch::create(&options.parent)?;
    let file_bytes = ceiling_bytes(options, scratch.free_bytes()?);
    // Everything stays until the end: see the phase `fresh`.
    let volumes = options.copies() * options.sizes.len() as u64;
    scratch.require((1 + volumes).saturating_mul(file_bytes) + SPARE_BYTES)?;
    hooks.progress.begin("writing the ceiling's file", 1);
    let file = TestFile::create(&scratch.join("ceiling"), file_bytes, fill_patience(options), hooks.cancel)?;
    let memory_bytes = machine::memory_bytes("MemAvailable") / 4;
    let plans = plan(options, file.bytes(), file.fill_rate(), memory_bytes);
    let mut arena = Arena::new(plans.iter().map(arena_bytes).max().unwrap_or(0))?;
    let mut report = Report {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_unix_seconds: started_unix,
        seconds: 0.0,
        machine: machine::describe(),
        volume: Volume::default(),
        results: Vec::new(),
        notes: notes(options, &file, &plans),
    };
    let mut sizes: Vec<_> = plans.into_iter().map(|plan| OfSize { plan, live: 0..0, results: Vec::new() }).collect();
    // First what only makes files, at all sizes; then the phases that delete some.
    let later = options.phases.iter().any(|phase| *phase != Phase::Fresh);
    for pass in 0..if later { 2 } else { 1 } {
        for (number, size) in sizes.iter_mut().enumerate() {
            let (live, dir) = (size.live.clone(), scratch.join(&format!("volume-{number}")));
            let mut stage = Stage::new(options, size.plan, hooks, &mut arena, &file, dir, live)?;
            report.volume = Volume::new(scratch.parent(), &stage.engine().status(), stage.segment_bytes());
            for phase in Phase::ALL.into_iter().filter(|phase| options.phases.contains(phase)) {
                if (phase == Phase::Fresh) == (pass == 0) {
                    size.results.extend(phase.run(&mut stage)?);
                }
            }
            stage.require_objects()?;
            size.live = stage.live.clone();
            let said = std::mem::take(&mut stage.notes);
            report.notes.extend(said.into_iter().filter(|note| !report.notes.contains(note)).collect::<Vec<_>>());
        }
    }
    if report.volume.integrity != options.integrity {
        let (wanted, used) = (options.integrity, report.volume.integrity);
        report.notes.push(format!("integrity is {used} here, not {wanted}: the file system has no user attributes"));
    }
    report.results = sizes.into_iter().flat_map(|size| size.results).collect();
    hooks.progress.begin("removing the scratch directory", 1);
    drop((file, scratch));
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// One object size between its phases.
struct OfSize {
    plan: SizePlan,
    live: Range<usize>,
    results: Vec<PhaseResult>,
}

fn arena_bytes(plan: &SizePlan) -> usize {
    Arena::bytes_needed(plan.object_bytes, plan.slice)
}

fn notes(options: &Options, file: &TestFile, plans: &[SizePlan]) -> Vec<String> {
    let mut notes = Vec::new();
    if !file.is_direct() {
        notes.push("the file system has no O_DIRECT: the figures are those of the page cache".to_owned());
    }
    if options.total_bytes.is_none() && plans.iter().any(|plan| plan.objects < 100) {
        notes.push("some sizes are measured with fewer than 100 objects; pass --total for more".to_owned());
    }
    notes
}
