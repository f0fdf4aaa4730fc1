//! `saltern clean`: takes away what interrupted programs have left.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use saltern::maintain::{Cleaning, Leftover, LeftoverKind, clean};
use serde::Serialize;

use crate::apply::{ApplyArgs, DRY_RUN};
use crate::failure::{Failure, Outcome};
use crate::human::{self, Columns};
use crate::layouts::{Choice, choose};
use crate::output::JsonArgs;
use crate::progress::Bar;

/// Most files that are printed; the JSON has them all.
const SHOWN_MAX: usize = 20;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
unfinished: stores of an engine that did not end; the next one to open the directory would remove them as well. spare: files of \
deleted objects, kept to be overwritten, which is faster than making new ones; removing them gives their disk space back. state: \
half-written files of the engine's own. lmcache: temporary files of LMCache's adapters, once they are old enough: its daemon may run.

With --apply no engine may run on the directory.

Exit codes: 0 done, or there is nothing to do; 1 it could not run; 2 wrong usage; 3 some files could not be removed.")]
pub(crate) struct Args {
    /// The directory
    dir: PathBuf,
    /// Kinds of leftovers
    #[arg(long, value_delimiter = ',', value_parser = kind_parser(), default_values_t = LeftoverKind::ALL.map(Kind))]
    only: Vec<Kind>,
    /// Least age of LMCache's temporary files: 90s, 30m, 12h, 7d
    #[arg(long, value_name = "TIME", value_parser = human::parse_time, default_value = "1h")]
    older_than: Duration,
    #[command(flatten)]
    apply: ApplyArgs,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Debug, Clone, Copy)]
struct Kind(LeftoverKind);

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.name())
    }
}

fn kind_parser() -> impl TypedValueParser<Value = Kind> {
    let unknown = || "not a kind of leftover";
    PossibleValuesParser::new(LeftoverKind::ALL.map(LeftoverKind::name)).try_map(move |name| {
        LeftoverKind::ALL.into_iter().find(|kind| kind.name() == name).map(Kind).ok_or_else(unknown)
    })
}

/// The JSON. Version 1 of the schema; fields may be added.
#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    dir: String,
    applied: bool,
    bytes: u64,
    #[serde(flatten)]
    cleaning: Cleaning,
}

pub(crate) fn run(args: &Args) -> Result<Outcome, Failure> {
    args.json.check()?;
    choose(&args.dir, Choice::Given(saltern::Layout::Fs))?;
    let kinds: Vec<LeftoverKind> = args.only.iter().map(|kind| kind.0).collect();
    let bar = Bar::new();
    let progress = |seen, _| bar.count("reading", seen);
    let cleaning = clean(&args.dir, &kinds, args.older_than, args.apply.mode(), &progress)?;
    drop(bar);
    let bytes = cleaning.removed.iter().map(|left| left.bytes).sum();
    let (dir, applied) = (args.dir.display().to_string(), args.apply.is_set());
    let report = Report { schema: 1, dir, applied, bytes, cleaning };
    args.json.finish(&report, || render(&report))?;
    Ok(if report.cleaning.refused.is_empty() { Outcome::Clean } else { Outcome::Problems })
}

fn render(report: &Report) -> String {
    let Cleaning { removed, young, refused, .. } = &report.cleaning;
    let mut out = String::new();
    if removed.is_empty() {
        out.push_str("there is nothing to clean\n");
    } else {
        let mut table = Columns::new(&["kind", "files", "bytes", "oldest"], 1);
        for kind in LeftoverKind::ALL {
            let of: Vec<&Leftover> = removed.iter().filter(|left| left.kind == kind).collect();
            if let Some(oldest) = of.iter().map(|left| left.age_seconds).max() {
                let bytes = of.iter().map(|left| left.bytes).sum();
                table.row([kind.name().into(), human::count(of.len() as u64), human::size(bytes), human::age(oldest)]);
            }
        }
        out.push_str(&table.render());
        let lmcache = removed.iter().filter(|left| left.kind == LeftoverKind::Lmcache);
        let names: Vec<String> = lmcache.map(|left| human::printable(&left.name)).collect();
        if !names.is_empty() {
            out.push_str("\nbeside the objects:\n");
            names.iter().take(SHOWN_MAX).for_each(|name| out.push_str(&format!("  {name}\n")));
            out.push_str(&human::and_more(names.len().saturating_sub(SHOWN_MAX) as u64));
        }
    }
    if !young.is_empty() {
        out.push_str(&format!(
            "\n{} left alone: too young (--older-than)\n",
            human::plural(young.len() as u64, "file")
        ));
    }
    if !refused.is_empty() {
        let shown = refused.iter().take(SHOWN_MAX).map(|refused| (&*refused.name, &*refused.reason));
        out.push_str(&format!("\n{}", human::reasons("could not be removed", refused.len() as u64, shown)));
    }
    if !removed.is_empty() {
        let what = format!("{}, {}", human::plural(removed.len() as u64, "file"), human::size(report.bytes));
        out.push_str(&if report.applied {
            format!("\n{what} removed\n")
        } else {
            format!("\n{what} would be removed\n{DRY_RUN}\n")
        });
    }
    out
}
