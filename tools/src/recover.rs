//! `saltern recover`: what a cache directory holds, read from names and sizes alone. Changes nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use saltern::Layout;
use saltern::scan::{Found, Survey, survey};
use serde::Serialize;

use crate::failure::{Failure, Outcome};
use crate::human::{self, Columns};
use crate::layouts::{Choice, choice_parser, choose};
use crate::output::JsonArgs;
use crate::progress::Bar;
use crate::shares::{Share, entry};

/// Most rows of a printed table; the JSON has them all.
const ROWS_MAX: usize = 20;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Nothing is changed, so this works on a read-only directory, and while an engine runs on it.

Exit codes: 0 the directory was read; 1 it could not be; 2 wrong usage; 3 it has files, and none is an object of the layout.")]
pub(crate) struct Args {
    /// The directory
    dir: PathBuf,
    /// How its files are named
    #[arg(long, default_value = "auto", value_parser = choice_parser())]
    layout: Choice,
    /// Threads that read the directory
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
    /// List every object as well: key, bytes and time of the last change
    #[arg(long)]
    keys: bool,
    #[command(flatten)]
    json: JsonArgs,
}

/// The JSON. Version 1 of the schema; fields may be added.
#[derive(Debug, Serialize)]
struct Recovery {
    schema: u32,
    dir: String,
    layout: Layout,
    /// Why this layout.
    layout_reason: String,
    objects: u64,
    bytes: u64,
    seconds: f64,
    by_salt: BTreeMap<String, Share>,
    by_model: BTreeMap<String, Share>,
    by_rank: BTreeMap<String, Share>,
    /// Stores that were not finished.
    unfinished: u64,
    /// Entries that are not objects.
    foreign: u64,
    /// Some of them.
    foreign_examples: Vec<ForeignFile>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keys: Option<Vec<Key>>,
}

#[derive(Debug, Serialize)]
struct ForeignFile {
    name: String,
    reason: String,
}

#[derive(Debug, Serialize)]
struct Key {
    model_name: String,
    kv_rank: u32,
    object_group_id: u32,
    chunk_hash: String,
    cache_salt: String,
    bytes: u64,
    modified_unix_ns: u64,
}

pub(crate) fn run(args: Args) -> Result<Outcome, Failure> {
    let (layout, reason) = choose(&args.dir, args.layout)?;
    let bar = Bar::new();
    let survey = survey(&args.dir, layout, usize::from(args.threads), &|seen| bar.count("reading", seen))?;
    drop(bar);
    let recovery = summarise(&args.dir, layout, reason, survey, args.keys);
    args.json.finish(&recovery, || render(&recovery))?;
    let is_unknown = recovery.objects == 0 && recovery.foreign > 0;
    Ok(if is_unknown { Outcome::Problems } else { Outcome::Clean })
}

fn summarise(dir: &Path, layout: Layout, layout_reason: String, mut survey: Survey, with_keys: bool) -> Recovery {
    let mut all = Share::default();
    let [mut by_salt, mut by_model, mut by_rank] = [(); 3].map(|()| BTreeMap::<String, Share>::new());
    survey.objects.sort_by(|a, b| (a.modified_ns, a.key.chunk_hash()).cmp(&(b.modified_ns, b.key.chunk_hash())));
    for Found { key, bytes, .. } in &survey.objects {
        entry(&mut by_salt, key.cache_salt()).add(*bytes);
        entry(&mut by_model, key.model_name()).add(*bytes);
        entry(&mut by_rank, &format!("0x{:08x}", key.kv_rank())).add(*bytes);
        all.add(*bytes);
    }
    let examples = survey.foreign.examples.into_iter();
    Recovery {
        schema: 1,
        dir: dir.display().to_string(),
        layout,
        layout_reason,
        objects: all.objects,
        bytes: all.bytes,
        seconds: survey.seconds,
        by_salt,
        by_model,
        by_rank,
        unfinished: survey.unfinished,
        foreign: survey.foreign.count,
        foreign_examples: examples.map(|(name, reason)| ForeignFile { name, reason }).collect(),
        keys: with_keys.then(|| survey.objects.iter().map(Key::from).collect()),
    }
}

impl From<&Found> for Key {
    fn from(found: &Found) -> Self {
        let key = &found.key;
        Self {
            model_name: key.model_name().to_owned(),
            kv_rank: key.kv_rank(),
            object_group_id: key.object_group_id(),
            chunk_hash: key.chunk_hash().to_string(),
            cache_salt: key.cache_salt().to_owned(),
            bytes: found.bytes,
            modified_unix_ns: found.modified_ns,
        }
    }
}

fn render(recovery: &Recovery) -> String {
    let mut out = format!(
        "{}: layout {} ({})\n{}, {}, {}, {}; read in {}\n",
        human::printable(&recovery.dir),
        recovery.layout,
        recovery.layout_reason,
        human::plural(recovery.objects, "object"),
        human::size(recovery.bytes),
        human::plural(recovery.unfinished, "unfinished store"),
        human::plural(recovery.foreign, "foreign entry"),
        human::seconds(recovery.seconds),
    );
    for (what, shares) in [("model", &recovery.by_model), ("rank", &recovery.by_rank), ("salt", &recovery.by_salt)] {
        if !shares.is_empty() {
            out.push_str(&format!("\n{}", share_table(what, shares)));
        }
    }
    if recovery.foreign > 0 {
        let examples = recovery.foreign_examples.iter().map(|file| (&*file.name, &*file.reason));
        out.push_str(&format!("\n{}", human::reasons("foreign entries", recovery.foreign, examples)));
    }
    if let Some(keys) = &recovery.keys {
        out.push_str("\nobjects, oldest first: key, bytes, nanoseconds since 1970\n");
        for key in keys {
            let Key { model_name, kv_rank, object_group_id, chunk_hash, .. } = key;
            let salt = if key.cache_salt.is_empty() { String::new() } else { format!("@{}", key.cache_salt) };
            let name = format!("{model_name}@{kv_rank:08x}@{object_group_id:x}@{chunk_hash}{salt}");
            out.push_str(&format!("{}\t{}\t{}\n", human::printable(&name), key.bytes, key.modified_unix_ns));
        }
    }
    out
}

fn share_table(what: &str, shares: &BTreeMap<String, Share>) -> String {
    let mut rows: Vec<_> = shares.iter().collect();
    rows.sort_by_key(|(_, share)| std::cmp::Reverse(share.bytes));
    let mut table = Columns::new(&[what, "objects", "bytes"], 1);
    for (name, share) in rows.iter().take(ROWS_MAX) {
        let name = if name.is_empty() { "(none)".to_owned() } else { human::printable(name) };
        table.row([name, human::count(share.objects), human::size(share.bytes)]);
    }
    table.render() + &human::and_more(rows.len().saturating_sub(ROWS_MAX) as u64)
}
