//! `saltern doctor`: what an engine would find on this machine and directory, and what would make it faster. One line an
//! item. Changes nothing that stays.

mod disk;
mod gpu;
mod shards;
mod system;

use std::path::{Path, PathBuf};

use serde::Serialize;

use self::shards::Recommendation;

use crate::failure::{Failure, Outcome};
use crate::human;
use crate::output::{JsonArgs, stdout_wants_color};
use crate::signals::cancel_flag;

/// Lines are no longer than this, as far as words allow.
const WIDTH: usize = 80;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The number of shards is measured: for about two seconds 64 MiB of objects are stored, displaced and loaded in a scratch directory \
saltern-bench-*, which is removed. Twice the shards have to gain a quarter to be recommended.

Exit codes: 0 an engine works here (warnings say what makes it slow); 1 the directory cannot be read; 2 wrong usage; \
3 an engine does not work here. Of several directories the number of shards is measured in the first.")]
pub(crate) struct Args {
    /// The directories that an engine is to use, one for each volume
    #[arg(default_value = ".", value_name = "DIR")]
    dirs: Vec<PathBuf>,
    /// Do not measure: the number of shards is guessed from the CPUs
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    json: JsonArgs,
}

/// How an item is, from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Status {
    /// As it should be.
    Ok,
    /// Could be better; matters little.
    Note,
    /// Makes the engine slow, or will stop it one day.
    Warn,
    /// The engine does not work.
    Fail,
}

impl Status {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }

    /// As ANSI colour: green, cyan, yellow, red.
    fn color(self) -> u8 {
        match self {
            Self::Ok => 32,
            Self::Note => 36,
            Self::Warn => 33,
            Self::Fail => 31,
        }
    }
}

/// One item.
#[derive(Debug, Clone, Serialize)]
struct Check {
    status: Status,
    item: &'static str,
    value: String,
    /// What to change; null where nothing is to be.
    advice: Option<String>,
}

impl Check {
    fn ok(item: &'static str, value: impl Into<String>) -> Self {
        Self { status: Status::Ok, item, value: value.into(), advice: None }
    }

    fn new(status: Status, item: &'static str, value: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { status, item, value: value.into(), advice: Some(advice.into()) }
    }
}

/// The JSON. Version 1 of the schema; fields may be added.
#[derive(Debug, Serialize)]
struct Diagnosis {
    schema: u32,
    /// The first of them.
    dir: String,
    dirs: Vec<String>,
    /// The worst of the checks.
    status: Status,
    recommended: Recommendation,
    checks: Vec<Check>,
}

pub(crate) fn run(args: &Args) -> Result<Outcome, Failure> {
    let open = |dir: &PathBuf| {
        let dir = dir.canonicalize().map_err(|error| Failure::directory(dir, &error))?;
        std::fs::read_dir(&dir).map_err(|error| Failure::directory(&dir, &error))?;
        Ok(dir)
    };
    let dirs = args.dirs.iter().map(open).collect::<Result<Vec<_>, Failure>>()?;
    let mut checks = system::checks();
    checks.extend(dirs.iter().flat_map(|dir| of_volume(&dirs, dir, disk::checks(dir))));
    // Where an engine does not work, nothing can be measured.
    let works = checks.iter().all(|check| check.status != Status::Fail);
    let (recommended, more) = shards::recommend(&dirs[0], works && !args.quick, &*cancel_flag()?)?;
    checks.extend(more);
    checks.extend(gpu::checks(&dirs, args.quick));
    checks.push(would_use(&checks, recommended.shards));
    let status = checks.iter().map(|check| check.status).max().unwrap_or(Status::Ok);
    let names: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    let diagnosis = Diagnosis { schema: 1, dir: names[0].clone(), dirs: names, status, recommended, checks };
    args.json.finish(&diagnosis, || render(&diagnosis))?;
    Ok(if status == Status::Fail { Outcome::Problems } else { Outcome::Clean })
}

/// Of several volumes each check says which it is of.
fn of_volume(dirs: &[PathBuf], dir: &Path, mut checks: Vec<Check>) -> Vec<Check> {
    if dirs.len() > 1 {
        checks.iter_mut().for_each(|check| check.value = format!("{}: {}", dir.display(), check.value));
    }
    checks
}

/// What all of this comes to.
fn would_use(checks: &[Check], shards: usize) -> Check {
    const ITEM: &str = "engine";
    // Of all volumes.
    let worst = |item| checks.iter().filter(|check| check.item == item).map(|check| check.status).max();
    let is_good = |item| worst(item).is_some_and(|status| status <= Status::Note);
    if checks.iter().any(|check| check.status == Status::Fail) {
        return Check::new(Status::Fail, ITEM, "would not start", "see the lines marked `fail`");
    }
    let direct = if is_good(disk::DIRECT_IO) { "O_DIRECT" } else { "buffered I/O" };
    let buffers = if is_good(system::MEMLOCK) { "fixed buffers" } else { "plain buffers, if the pool passes memlock" };
    Check::ok(ITEM, format!("would use {direct}, {buffers}, {}", human::plural(shards as u64, "shard")))
}

fn render(diagnosis: &Diagnosis) -> String {
    let with_color = stdout_wants_color();
    let items = diagnosis.checks.iter().map(|check| check.item.len()).max().unwrap_or(0);
    let indent = 4 + 2 + items + 2;
    let mut out = diagnosis.dirs.iter().map(|dir| format!("{}\n", human::printable(dir))).collect::<String>();
    for Check { status, item, value, advice } in &diagnosis.checks {
        let word = format!("{:<4}", status.word());
        let word = if with_color { format!("\x1b[{}m{word}\x1b[0m", status.color()) } else { word };
        let value = human::wrap(&human::printable(value), WIDTH, indent);
        out.push_str(&format!("{word}  {item:<items$}  {value}\n"));
        if let Some(advice) = advice {
            out.push_str(&format!("{:indent$}{}\n", "", human::wrap(&human::printable(advice), WIDTH, indent)));
        }
    }
    out
}
