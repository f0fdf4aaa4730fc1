//! `saltern evict`: makes room in a directory on which no engine runs. The least recently used objects go.

use std::collections::BTreeMap;
use std::path::PathBuf;

use saltern::eviction::PolicyKind;
use saltern::maintain::last_uses;
use saltern::quotas::Quotas;
use saltern::scan::{Found, survey};
use saltern::{Config, Engine, Eviction, Layout, probe, quotas};
use serde::Serialize;

use crate::apply::{ApplyArgs, DRY_RUN};
use crate::failure::{Failure, Outcome};
use crate::human::{self, Columns};
use crate::layouts::{Choice, choice_parser, choose};
use crate::output::JsonArgs;
use crate::progress::Bar;
use crate::shares::Share;
use crate::usage::name_of;

/// Most rows that are printed; the JSON has them all.
const ROWS_MAX: usize = 20;

/// Lines are no longer than this, as far as words allow.
const WIDTH: usize = 80;

/// Stands for a capacity that nothing reaches: only what was asked for is evicted.
const NO_CAPACITY: u64 = 1 << 60;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
First every salt that is over its quota gives up its own oldest objects, then the least recently used of all go. When an object was \
used is known from the last engine that closed in good order, else from the time of its file. Files that are kept to be \
overwritten go as well.

Without --apply nothing is changed, and what would go is said, also while an engine runs; what that has used since it was opened is \
not known then. With --apply no engine may run on the directory.

Exit codes: 0 done, or there is nothing to do; 1 it could not be done; 2 wrong usage; 3 some objects could not be evicted.")]
pub(crate) struct Args {
    /// The directory
    dir: PathBuf,
    /// Where to stop: a size, or a share of the bytes that there are (or of --capacity)
    #[arg(long, value_name = "SIZE|SHARE%", value_parser = parse_target)]
    to: Target,
    /// What --to is a share of
    #[arg(long, value_name = "SIZE", value_parser = human::parse_size)]
    capacity: Option<u64>,
    /// How the directory's files are named
    #[arg(long, default_value = "auto", value_parser = choice_parser())]
    layout: Choice,
    /// Threads that read the directory
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
    #[command(flatten)]
    apply: ApplyArgs,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Debug, Clone, Copy)]
enum Target {
    Bytes(u64),
    /// Of a hundred.
    Share(f64),
}

fn parse_target(text: &str) -> Result<Target, String> {
    let Some(percent) = text.strip_suffix('%') else { return human::parse_size(text).map(Target::Bytes) };
    match percent.trim().parse::<f64>() {
        Ok(share) if (0.0..=100.0).contains(&share) => Ok(Target::Share(share)),
        _ => Err(format!("{text:?} is not a share; write 0% to 100%")),
    }
}

/// The JSON. Version 1 of the schema; fields may be added.
#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    dir: String,
    layout: Layout,
    /// Why this layout.
    layout_reason: String,
    /// Whether it was done; else it is what would be.
    applied: bool,
    target_bytes: u64,
    before: Share,
    /// Over their salt's quota.
    evicted_for_quota: Share,
    /// All that go, those included.
    evicted: Share,
    evicted_by_salt: BTreeMap<String, Share>,
    /// Bytes that are left.
    after_bytes: u64,
    /// Evictions that failed.
    errors: u64,
    /// The engine that runs on the directory.
    owner: Option<String>,
    /// What an operator should know.
    notes: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<Outcome, Failure> {
    args.json.check()?;
    let (layout, layout_reason) = choose(&args.dir, args.layout)?;
    let bar = Bar::new();
    let survey = survey(&args.dir, layout, usize::from(args.threads), &|seen| bar.count("reading", seen))?;
    drop(bar);
    let before = survey.objects.iter().fold(Share::default(), |mut all, found| {
        all.add(found.bytes);
        all
    });
    let target_bytes = match args.to {
        Target::Bytes(bytes) => bytes,
        Target::Share(percent) => (args.capacity.unwrap_or(before.bytes) as f64 * percent / 100.0) as u64,
    };
    let uses = last_uses(&args.dir, layout);
    let used_ns = |found: &Found| uses.get(&found.key).copied().unwrap_or(0).max(found.modified_ns);
    let mut objects: Vec<(u64, &Found)> = survey.objects.iter().map(|found| (used_ns(found), found)).collect();
    let plan = plan(&mut objects, &quotas::read(&args.dir)?, target_bytes);
    let mut report = Report {
        schema: 1,
        dir: args.dir.display().to_string(),
        layout,
        layout_reason,
        applied: args.apply.is_set(),
        target_bytes,
        before,
        evicted_for_quota: plan.for_quota,
        evicted: plan.evicted,
        evicted_by_salt: plan.by_salt,
        after_bytes: before.bytes - plan.evicted.bytes,
        errors: 0,
        owner: probe::owner(&args.dir)?,
        notes: Vec::new(),
    };
    if args.apply.is_set() {
        apply(args, &mut report)?;
    } else if let Some(owner) = &report.owner {
        report.notes.push(format!("{owner} runs an engine here: --apply will be refused until it is closed"));
    }
    args.json.finish(&report, || render(&report))?;
    Ok(if report.errors > 0 { Outcome::Problems } else { Outcome::Clean })
}

/// What would go.
#[derive(Default)]
struct Plan {
    for_quota: Share,
    evicted: Share,
    by_salt: BTreeMap<String, Share>,
}

/// As the engine chooses: see `Room` there.
fn plan(objects: &mut [(u64, &Found)], quotas: &Quotas, target_bytes: u64) -> Plan {
    objects.sort_unstable_by(|(a, x), (b, y)| (a, x.key.chunk_hash()).cmp(&(b, y.key.chunk_hash())));
    let mut used: BTreeMap<&str, u64> = BTreeMap::new();
    for (_, found) in &*objects {
        *used.entry(found.key.cache_salt()).or_default() += found.bytes;
    }
    let mut left: u64 = used.values().sum();
    let (mut plan, mut rest) = (Plan::default(), Vec::with_capacity(objects.len()));
    for (_, found) in &*objects {
        let salt = found.key.cache_salt();
        let used = used.get_mut(salt).expect("summed above");
        if quotas.get(salt).is_none_or(|quota| *used <= *quota) {
            rest.push(*found);
            continue;
        }
        *used -= found.bytes;
        left -= found.bytes;
        plan.for_quota.add(found.bytes);
        plan.add(found);
    }
    for found in rest {
        if left <= target_bytes {
            break;
        }
        left -= found.bytes;
        plan.add(found);
    }
    plan
}

impl Plan {
    fn add(&mut self, found: &Found) {
        self.evicted.add(found.bytes);
        self.by_salt.entry(found.key.cache_salt().to_owned()).or_default().add(found.bytes);
    }
}

/// Does it, with an engine of its own.
fn apply(args: &Args, report: &mut Report) -> Result<(), Failure> {
    let mut config = Config::new(&args.dir);
    config.layout = report.layout;
    config.scan_threads = args.threads.into();
    config.capacity_bytes = Some(NO_CAPACITY);
    config.eviction = Eviction::engine(PolicyKind::Lru);
    // The room is wanted, not the files.
    config.spare_bytes = 0;
    let bar = Bar::new();
    let engine = Engine::opener(config).open()?;
    bar.count("evicting", report.evicted.objects);
    let evicted = engine.evict_to(report.target_bytes)?;
    let status = engine.status();
    // What went for a quota went when the directory was opened.
    let counters = status.counters;
    report.evicted = Share { objects: counters.evictions, bytes: counters.evicted_bytes };
    report.after_bytes = evicted.used_bytes;
    report.errors = counters.eviction_errors;
    report.notes = status.notes;
    engine.close();
    drop(bar);
    Ok(())
}

fn render(report: &Report) -> String {
    let verb = if report.applied { "evicted" } else { "would evict" };
    let about = [
        format!("{}: layout {} ({})", human::printable(&report.dir), report.layout, report.layout_reason),
        format!(
            "{verb} {}, {}, of {}, {}; {} left, {} asked for",
            human::plural(report.evicted.objects, "object"),
            human::size(report.evicted.bytes),
            human::count(report.before.objects),
            human::size(report.before.bytes),
            human::size(report.after_bytes),
            human::size(report.target_bytes),
        ),
    ];
    let mut out: String = about.iter().map(|line| human::wrap(line, WIDTH, 2) + "\n").collect();
    if report.evicted_for_quota.objects > 0 {
        let Share { objects, bytes } = report.evicted_for_quota;
        out.push_str(&format!("of these over a quota: {}, {}\n", human::plural(objects, "object"), human::size(bytes)));
    }
    if report.errors > 0 {
        out.push_str(&format!("{} failed; SALTERN_LOG=error says why\n", human::plural(report.errors, "eviction")));
    }
    if !report.evicted_by_salt.is_empty() {
        let mut rows: Vec<_> = report.evicted_by_salt.iter().collect();
        rows.sort_by_key(|(_, share)| std::cmp::Reverse(share.bytes));
        let mut table = Columns::new(&["salt", "objects", "bytes"], 1);
        for (salt, share) in rows.iter().take(ROWS_MAX) {
            table.row([name_of(salt), human::count(share.objects), human::size(share.bytes)]);
        }
        out.push_str(&format!("\n{}", table.render()));
        out.push_str(&human::and_more(rows.len().saturating_sub(ROWS_MAX) as u64));
    }
    for note in &report.notes {
        out.push_str(&format!("\n{}\n", human::wrap(&format!("note: {}", human::printable(note)), WIDTH, 2)));
    }
    if !report.applied {
        out.push_str(&format!("\n{DRY_RUN}\n"));
    }
    out
}
