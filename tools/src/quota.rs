//! `saltern quota`: the quotas of salts that a directory keeps.

use std::path::{Path, PathBuf};

use saltern::quotas::{self, Quotas};
use serde::Serialize;

use crate::failure::{Failure, Outcome};
use crate::human::{self, Columns};
use crate::output::JsonArgs;
use crate::usage::name_of;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A quota is the most bytes that the objects of a salt may have. Quotas are kept in the directory, and in force from the next time that \
an engine opens it: where the engine evicts, a salt that is over its quota gives up its own oldest objects then; where the \
host does, its stores are refused. '' is the salt of objects without one.

get and list work while an engine runs on the directory; set and rm do not: ask that engine.

Exit codes: 0 done; 1 it could not be done; 2 wrong usage.")]
pub(crate) struct Args {
    /// The directory
    dir: PathBuf,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Print all quotas
    List {
        #[command(flatten)]
        json: JsonArgs,
    },
    /// Print the quota of a salt
    Get {
        /// The salt
        salt: String,
        #[command(flatten)]
        json: JsonArgs,
    },
    /// Set the quota of a salt
    Set {
        /// The salt
        salt: String,
        /// Bytes: 0, 4096, 512MiB, 10GiB
        #[arg(value_name = "SIZE", value_parser = human::parse_size)]
        bytes: u64,
        #[command(flatten)]
        json: JsonArgs,
    },
    /// Take the quota of a salt away: it follows the engine's default again
    Rm {
        /// The salt
        salt: String,
        #[command(flatten)]
        json: JsonArgs,
    },
}

/// The JSON of `list`. Version 1 of the schema; fields may be added.
#[derive(Debug, Serialize)]
struct List {
    schema: u32,
    dir: String,
    quotas: Quotas,
}

/// The JSON of the others.
#[derive(Debug, Serialize)]
struct One {
    schema: u32,
    dir: String,
    salt: String,
    /// Null where it has none of its own.
    quota_bytes: Option<u64>,
    /// The quota before; as now where nothing was to be changed.
    before_bytes: Option<u64>,
}

pub(crate) fn run(args: Args) -> Result<Outcome, Failure> {
    let dir = &args.dir;
    // Gives a plainer error, and makes no directory out of a misspelt name.
    std::fs::read_dir(dir).map_err(|error| Failure::directory(dir, &error))?;
    let one = |salt, quota_bytes, before_bytes| One { schema: 1, dir: name(dir), salt, quota_bytes, before_bytes };
    match args.action {
        Action::List { json } => {
            let list = List { schema: 1, dir: name(dir), quotas: quotas::read(dir)? };
            json.finish(&list, || render_list(&list.quotas))?;
        }
        Action::Get { salt, json } => {
            let quota = quotas::read(dir)?.get(&salt).copied();
            let one = one(salt, quota, quota);
            json.finish(&one, || format!("{}: {}\n", name_of(&one.salt), text(quota)))?;
        }
        Action::Set { salt, bytes, json } => {
            json.check()?;
            let before = quotas::edit(dir, |quotas| quotas.insert(salt.clone(), bytes))?;
            report(&one(salt, Some(bytes), before), &json)?;
        }
        Action::Rm { salt, json } => {
            json.check()?;
            let before = quotas::edit(dir, |quotas| quotas.remove(&salt))?;
            report(&one(salt, None, before), &json)?;
        }
    }
    Ok(Outcome::Clean)
}

fn report(one: &One, json: &JsonArgs) -> Result<(), Failure> {
    let line = || format!("{}: {} (was {})\n", name_of(&one.salt), text(one.quota_bytes), text(one.before_bytes));
    json.finish(one, line)
}

fn name(dir: &Path) -> String {
    dir.display().to_string()
}

fn text(quota: Option<u64>) -> String {
    quota.map_or("no quota".into(), human::size)
}

fn render_list(quotas: &Quotas) -> String {
    if quotas.is_empty() {
        return "no salt has a quota\n".into();
    }
    let mut table = Columns::new(&["salt", "quota"], 1);
    quotas.iter().for_each(|(salt, bytes)| table.row([name_of(salt), human::size(*bytes)]));
    table.render()
}
