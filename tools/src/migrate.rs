//! `saltern migrate`: renames the objects of a directory to another layout.

use std::path::PathBuf;

use saltern::Layout;
use saltern::maintain::{Migration, migrate};
use serde::Serialize;

use crate::apply::{ApplyArgs, DRY_RUN};
use crate::failure::{Failure, Outcome};
use crate::human;
use crate::layouts::{choose, layout_parser};
use crate::output::JsonArgs;
use crate::progress::Bar;

/// Most objects that are printed; the JSON has them all.
const SHOWN_MAX: usize = 20;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Files are renamed in place, one after the other; their bytes, checksums and times stay, and the order of use as well. After an \
interruption, the same command goes on where it stopped, and the opposite one goes back.

An object that has no name in the new layout, or whose name is taken, stays as it is and is listed.

Exit codes: 0 all objects can be renamed, or are; 1 it could not run; 2 wrong usage; 3 some objects cannot be renamed.")]
pub(crate) struct Args {
    /// The directory
    dir: PathBuf,
    /// The layout that it has
    #[arg(long, value_name = "LAYOUT", value_parser = layout_parser())]
    from: Layout,
    /// The layout that it shall have
    #[arg(long, value_name = "LAYOUT", value_parser = layout_parser())]
    to: Layout,
    #[command(flatten)]
    apply: ApplyArgs,
    #[command(flatten)]
    json: JsonArgs,
}

/// The JSON. Version 1 of the schema; fields may be added.
#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    dir: String,
    applied: bool,
    #[serde(flatten)]
    migration: Migration,
}

pub(crate) fn run(args: &Args) -> Result<Outcome, Failure> {
    args.json.check()?;
    if args.from == args.to {
        return Err(Failure::usage("--from and --to are the same layout"));
    }
    choose(&args.dir, crate::layouts::Choice::Given(args.from))?;
    let bar = Bar::new();
    let progress = |done, total| bar.items(if total == 0 { "reading names" } else { "renaming" }, done, total);
    let migration = migrate(&args.dir, args.from, args.to, args.apply.mode(), 2, &progress)?;
    drop(bar);
    let applied = args.apply.is_set();
    let report = Report { schema: 1, dir: args.dir.display().to_string(), applied, migration };
    args.json.finish(&report, || render(&report))?;
    Ok(if report.migration.refused.is_empty() { Outcome::Clean } else { Outcome::Problems })
}

fn render(report: &Report) -> String {
    let Report { migration, .. } = report;
    let Migration { from, to, objects, bytes, renamed, already, refused, foreign, example, seconds, .. } = migration;
    let mut out = format!(
        "{}: {} of layout {from}, {}; {} of layout {to} already, {}\n",
        human::printable(&report.dir),
        human::plural(*objects, "object"),
        human::size(*bytes),
        human::count(*already),
        human::plural(*foreign, "foreign entry"),
    );
    if let Some((old, new)) = example {
        let (old, new) = (human::printable(old), human::printable(new));
        out.push_str(&format!("\nfor example\n  {old}\n  {new}\n"));
    }
    if !refused.is_empty() {
        let shown = refused.iter().take(SHOWN_MAX).map(|refused| (&*refused.name, &*refused.reason));
        out.push_str(&format!("\n{}", human::reasons("left as they are", refused.len() as u64, shown)));
    }
    let renamed = human::plural(*renamed, "object");
    out.push_str(&if report.applied {
        format!("\n{renamed} renamed in {}\n", human::seconds(*seconds))
    } else {
        format!("\n{renamed} would be renamed\n{DRY_RUN}\n")
    });
    out
}
