//! `saltern usage`: how much of a cache directory belongs to which salt, model and rank. Changes nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use saltern::scan::{Found, survey};
use saltern::{Layout, probe, quotas};
use serde::Serialize;

use crate::failure::{Failure, Outcome};
use crate::human::{self, Columns};
use crate::layouts::{Choice, choice_parser, choose};
use crate::output::JsonArgs;
use crate::progress::Bar;
use crate::shares::{Share, entry};

/// Most rows of a printed table, unless all are asked for; the JSON has them all.
const ROWS_MAX: usize = 20;

/// Lines are no longer than this; what the figures leave is for names.
const WIDTH: usize = 80;
const NAME_WIDTH: usize = 40;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Sizes are those of the files, quotas those that are kept in the directory. Nothing is changed, so this works on a read-only \
directory, and while an engine runs on it.

Exit codes: 0 the directory was read; 1 it could not be; 2 wrong usage; 3 a salt has more than its quota.")]
pub(crate) struct Args {
    /// The directory
    dir: PathBuf,
    /// How its files are named
    #[arg(long, default_value = "auto", value_parser = choice_parser())]
    layout: Choice,
    /// Threads that read the directory
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
    /// Print all rows of each table, not only the largest
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    json: JsonArgs,
}

/// The JSON. Version 1 of the schema; fields may be added.
#[derive(Debug, Serialize)]
struct Usage {
    schema: u32,
    dir: String,
    layout: Layout,
    /// Why this layout.
    layout_reason: String,
    objects: u64,
    bytes: u64,
    by_salt: BTreeMap<String, SaltShare>,
    by_model: BTreeMap<String, Share>,
    by_rank: BTreeMap<String, Share>,
    /// Files that are kept to be overwritten: disk space beside the objects.
    spares: Share,
    /// Stores that were not finished.
    unfinished: u64,
    /// Entries that are not objects.
    foreign: u64,
    file_system: FileSystem,
    /// The engine that runs on the directory.
    owner: Option<String>,
    seconds: f64,
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
struct SaltShare {
    #[serde(flatten)]
    share: Share,
    /// Its own quota; null where it has none.
    quota_bytes: Option<u64>,
}

impl SaltShare {
    fn is_over(&self) -> bool {
        self.quota_bytes.is_some_and(|quota| self.share.bytes > quota)
    }
}

#[derive(Debug, Clone, Copy, Serialize)]
struct FileSystem {
    free_bytes: u64,
    total_bytes: u64,
}

pub(crate) fn run(args: &Args) -> Result<Outcome, Failure> {
    args.json.check()?;
    let (layout, layout_reason) = choose(&args.dir, args.layout)?;
    let usage = read(args, layout, layout_reason)?;
    args.json.finish(&usage, || render(&usage, if args.all { usize::MAX } else { ROWS_MAX }))?;
    let is_over = usage.by_salt.values().any(SaltShare::is_over);
    Ok(if is_over { Outcome::Problems } else { Outcome::Clean })
}

fn read(args: &Args, layout: Layout, layout_reason: String) -> Result<Usage, Failure> {
    let (dir, mut all) = (&args.dir, Share::default());
    let (mut by_model, mut by_rank) = (BTreeMap::<String, Share>::new(), BTreeMap::<String, Share>::new());
    // Salts with a quota are there although they have nothing.
    let quotas = quotas::read(dir)?.into_iter();
    let mut by_salt: BTreeMap<String, SaltShare> =
        quotas.map(|(salt, bytes)| (salt, SaltShare { quota_bytes: Some(bytes), ..SaltShare::default() })).collect();
    let bar = Bar::new();
    let survey = survey(dir, layout, usize::from(args.threads), &|seen| bar.count("reading", seen))?;
    drop(bar);
    for Found { key, bytes, .. } in &survey.objects {
        all.add(*bytes);
        entry(&mut by_salt, key.cache_salt()).share.add(*bytes);
        entry(&mut by_model, key.model_name()).add(*bytes);
        entry(&mut by_rank, &format!("0x{:08x}", key.kv_rank())).add(*bytes);
    }
    let (spares, spare_bytes) = probe::spares(dir)?;
    Ok(Usage {
        schema: 1,
        dir: dir.display().to_string(),
        layout,
        layout_reason,
        objects: all.objects,
        bytes: all.bytes,
        by_salt,
        by_model,
        by_rank,
        spares: Share { objects: spares, bytes: spare_bytes },
        unfinished: survey.unfinished,
        foreign: survey.foreign.count,
        file_system: file_system(dir)?,
        owner: probe::owner(dir)?,
        seconds: survey.seconds,
    })
}

fn file_system(dir: &Path) -> Result<FileSystem, Failure> {
    let stat = statvfs(dir).map_err(|errno| Failure::directory(dir, &errno.into()))?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
    Ok(FileSystem { free_bytes: bytes(stat.blocks_available()), total_bytes: bytes(stat.blocks()) })
}

fn render(usage: &Usage, rows_max: usize) -> String {
    let owner = usage.owner.as_ref().map_or("no engine runs on it".to_owned(), |owner| format!("owned by {owner}"));
    let about = [
        format!("{}: layout {} ({})", human::printable(&usage.dir), usage.layout, usage.layout_reason),
        format!(
            "{}, {}; {}, {}; {}, {}",
            human::plural(usage.objects, "object"),
            human::size(usage.bytes),
            human::plural(usage.spares.objects, "spare"),
            human::size(usage.spares.bytes),
            human::plural(usage.unfinished, "unfinished store"),
            human::plural(usage.foreign, "foreign entry"),
        ),
        format!(
            "{} of {} free on the file system; {owner}",
            human::size(usage.file_system.free_bytes),
            human::size(usage.file_system.total_bytes)
        ),
    ];
    let mut out: String = about.iter().map(|line| human::wrap(line, WIDTH, 2) + "\n").collect();
    if !usage.by_salt.is_empty() {
        out.push_str(&format!("\n{}", salt_table(&usage.by_salt, rows_max)));
    }
    for (what, shares) in [("model", &usage.by_model), ("rank", &usage.by_rank)] {
        if !shares.is_empty() {
            out.push_str(&format!("\n{}", share_table(what, shares, rows_max)));
        }
    }
    out
}

fn salt_table(salts: &BTreeMap<String, SaltShare>, rows_max: usize) -> String {
    let mut rows: Vec<_> = salts.iter().collect();
    // What needs a look comes first.
    rows.sort_by_key(|(_, salt)| std::cmp::Reverse((salt.is_over(), salt.share.bytes)));
    let mut table = Columns::new(&["salt", "objects", "bytes", "quota", "used"], 1);
    for (name, salt) in rows.iter().take(rows_max) {
        let used = salt.quota_bytes.map(|quota| match quota {
            0 => "over".into(),
            quota => format!("{:.0}%", salt.share.bytes as f64 * 100.0 / quota as f64),
        });
        let [quota, used] = [salt.quota_bytes.map(human::size), used.filter(|_| salt.share.bytes > 0)]
            .map(|cell| cell.unwrap_or_else(|| "-".into()));
        table.row([name_of(name), human::count(salt.share.objects), human::size(salt.share.bytes), quota, used]);
    }
    table.render() + &and_more(rows.len(), rows_max)
}

fn share_table(what: &str, shares: &BTreeMap<String, Share>, rows_max: usize) -> String {
    let mut rows: Vec<_> = shares.iter().collect();
    rows.sort_by_key(|(_, share)| std::cmp::Reverse(share.bytes));
    let mut table = Columns::new(&[what, "objects", "bytes"], 1);
    for (name, share) in rows.iter().take(rows_max) {
        table.row([name_of(name), human::count(share.objects), human::size(share.bytes)]);
    }
    table.render() + &and_more(rows.len(), rows_max)
}

fn and_more(rows: usize, rows_max: usize) -> String {
    match rows.saturating_sub(rows_max) {
        0 => String::new(),
        more => format!("  ... and {} more (--all)\n", human::count(more as u64)),
    }
}

/// A salt or a model, as tables have it.
pub(crate) fn name_of(name: &str) -> String {
    if name.is_empty() { "(none)".to_owned() } else { human::short(name, NAME_WIDTH) }
}
