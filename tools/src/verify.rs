//! `saltern verify`: reads every object of a directory and checks it.

use std::path::PathBuf;

use saltern::Layout;
use saltern::maintain::{Finding, Refusal, Trouble, VERIFY_DEPTH, Verification, Verify, verify};
use serde::Serialize;

use crate::failure::{Failure, INTERRUPTED, Outcome};
use crate::human;
use crate::keys::KeyParts;
use crate::layouts::{Choice, choice_parser, choose};
use crate::output::JsonArgs;
use crate::progress::Bar;
use crate::signals::cancel_flag;

/// Most objects that are printed; the JSON has them all.
const SHOWN_MAX: usize = 20;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Objects that the engine has stored with checksums (integrity store or verify) are compared with them. Of files without one \
nothing can be said; --stamp gives them one, of the bytes that they have now.

Without --repair and --stamp nothing is changed, and an engine may run on the directory. With them none may.

Exit codes: 0 all objects are right; 1 it could not run; 2 wrong usage; 3 it found damaged objects (repaired or not); 130 interrupted.")]
pub(crate) struct Args {
    /// The directory
    dir: PathBuf,
    /// How its files are named
    #[arg(long, default_value = "auto", value_parser = choice_parser())]
    layout: Choice,
    /// Move damaged objects to DIR/.saltern/quarantine; nothing is deleted
    #[arg(long)]
    repair: bool,
    /// Give objects without a checksum one
    #[arg(long)]
    stamp: bool,
    /// Threads that read
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
    /// Objects read at a time, each with a buffer of 1 MiB
    #[arg(long, value_name = "N", default_value_t = VERIFY_DEPTH as u16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    depth: u16,
    #[command(flatten)]
    json: JsonArgs,
}

/// The JSON. Version 1 of the schema; fields may be added.
#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    dir: String,
    layout: Layout,
    layout_reason: String,
    /// Objects that were read to their end, and their bytes.
    objects: u64,
    bytes: u64,
    /// Of these, with the bytes that their checksum says.
    right: u64,
    /// Without a checksum, and how many of those were given one.
    unstamped: u64,
    stamped: u64,
    /// Went away, or were replaced, before they were read.
    gone: u64,
    damaged: Vec<Damaged>,
    /// What could not be moved or stamped.
    refused: Vec<Refusal>,
    foreign: u64,
    unfinished: u64,
    seconds: f64,
    mib_per_s: f64,
}

#[derive(Debug, Serialize)]
struct Damaged {
    #[serde(flatten)]
    key: KeyParts,
    name: String,
    #[serde(flatten)]
    trouble: Trouble,
    moved_to: Option<String>,
}

pub(crate) fn run(args: Args) -> Result<Outcome, Failure> {
    args.json.check()?;
    let (layout, layout_reason) = choose(&args.dir, args.layout)?;
    let cancel = cancel_flag()?;
    let bar = Bar::new();
    let options =
        Verify { threads: args.threads.into(), depth: args.depth.into(), repair: args.repair, stamp: args.stamp };
    let found = verify(&args.dir, layout, options, &cancel, &|done, total| bar.bytes("reading", done, total))?;
    drop(bar);
    if found.is_cancelled {
        let (code, message) = (INTERRUPTED, format!("interrupted; {} were read", human::size(found.bytes)));
        return Err(Failure { code, message, hint: None });
    }
    let report = summarise(&args, layout, layout_reason, found);
    args.json.finish(&report, || render(&report))?;
    let is_clean = report.damaged.is_empty() && report.refused.is_empty();
    Ok(if is_clean { Outcome::Clean } else { Outcome::Problems })
}

fn summarise(args: &Args, layout: Layout, layout_reason: String, found: Verification) -> Report {
    Report {
        schema: 1,
        dir: args.dir.display().to_string(),
        layout,
        layout_reason,
        objects: found.objects,
        bytes: found.bytes,
        right: found.right,
        unstamped: found.unstamped,
        stamped: found.stamped,
        gone: found.gone,
        damaged: found.damaged.into_iter().map(Damaged::from).collect(),
        refused: found.refused,
        foreign: found.foreign.count,
        unfinished: found.unfinished,
        seconds: found.seconds,
        mib_per_s: found.bytes as f64 / f64::from(1 << 20) / found.seconds.max(1e-9),
    }
}

impl From<Finding> for Damaged {
    fn from(found: Finding) -> Self {
        Self { key: KeyParts::of(&found.key), name: found.name, trouble: found.trouble, moved_to: found.moved_to }
    }
}

fn render(report: &Report) -> String {
    let mut out = format!(
        "{}: layout {} ({})\n{} read, {} in {}: {} MiB/s\n\n",
        human::printable(&report.dir),
        report.layout,
        report.layout_reason,
        human::plural(report.objects, "object"),
        human::size(report.bytes),
        human::seconds(report.seconds),
        human::figure(report.mib_per_s),
    );
    let mut line = |count: u64, what: &str| {
        if count > 0 {
            out.push_str(&format!("{:>12}  {what}\n", human::count(count)));
        }
    };
    line(report.right, "right: as their checksums say");
    line(report.unstamped - report.stamped, "without a checksum: nothing can be said of them (--stamp adds one)");
    line(report.stamped, "had no checksum, and have one now");
    line(report.damaged.len() as u64, "damaged");
    line(report.gone, "gone meanwhile");
    line(report.foreign, "foreign: not objects of this layout (`saltern recover` names them)");
    line(report.unfinished, "unfinished: `saltern clean` takes them away");
    if !report.damaged.is_empty() {
        let moved =
            |damaged: &Damaged| damaged.moved_to.as_ref().map_or(String::new(), |to| format!("; moved to {to}"));
        let rows: Vec<(String, String)> = report
            .damaged
            .iter()
            .take(SHOWN_MAX)
            .map(|damaged| (damaged.key.to_string(), format!("{}{}", describe(&damaged.trouble), moved(damaged))))
            .collect();
        let shown = rows.iter().map(|(key, reason)| (&**key, &**reason));
        out.push_str(&format!("\n{}", human::reasons("damaged", report.damaged.len() as u64, shown)));
        if report.damaged.iter().all(|damaged| damaged.moved_to.is_none()) {
            out.push_str("\n--repair moves them to the quarantine, where no engine finds them\n");
        }
    }
    if !report.refused.is_empty() {
        let shown = report.refused.iter().take(SHOWN_MAX).map(|refused| (&*refused.name, &*refused.reason));
        out.push_str(&format!("\n{}", human::reasons("left as they are", report.refused.len() as u64, shown)));
    }
    out
}

fn describe(trouble: &Trouble) -> String {
    match trouble {
        Trouble::Checksum => "its bytes are not those that were stored".into(),
        Trouble::Size { stored_bytes, found_bytes } => {
            format!("{} bytes were stored, {} are there", human::count(*stored_bytes), human::count(*found_bytes))
        }
        Trouble::Unreadable { error } => format!("cannot be read: {error}"),
        Trouble::Changing => "did not stop changing while it was read".into(),
        other => format!("{other:?}"),
    }
}
