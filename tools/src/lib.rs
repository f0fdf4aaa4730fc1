//! The command line of saltern. Each subcommand is a module with its arguments and a `run` that returns the exit code. A library only so that its
//! parsers can be fuzzed.

mod apply;
mod archive;
mod bench;
mod bench_gpu;
mod ceiling;
mod clean;
mod doctor;
mod evict;
mod failure;
pub mod fuzzing;
mod human;
mod keys;
mod layouts;
mod manual;
mod migrate;
mod output;
mod progress;
mod quota;
mod recover;
mod shares;
mod signals;
mod top;
mod usage;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::failure::{Failure, Outcome};

/// Environment variable that sets how much is logged to stderr.
const LOG_VARIABLE: &str = "SALTERN_LOG";

#[derive(Parser)]
#[command(name = "saltern", version, about = "A local storage engine for the KV caches of LLM serving", after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure this machine's disk through the engine, beside its ceiling, and verify every byte
    Bench(bench::Args),
    /// Say what a cache directory holds, without changing anything
    Recover(recover::Args),
    /// Say how much of a cache directory belongs to which salt, model and rank
    Usage(usage::Args),
    /// Read and change the quotas of salts
    Quota(quota::Args),
    /// Make room in a cache directory: the least recently used objects go
    Evict(evict::Args),
    /// Say what the engine finds on this machine, and what would make it faster
    Doctor(doctor::Args),
    /// Read every object of a directory and check it
    Verify(verify::Args),
    /// Rename the objects of a directory to another layout, in place
    Migrate(migrate::Args),
    /// Take away what interrupted programs have left in a directory
    Clean(clean::Args),
    /// Write objects of a directory to a tar file
    Export(archive::export::Args),
    /// Store the objects of such a file in a directory
    Import(archive::import::Args),
    /// Show how a running engine is: usage, throughput, hits, latency, health
    Top(top::Args),
    /// Print a script that completes these commands in a shell
    Completions(manual::CompletionArgs),
    /// Write the manual pages
    Man(manual::ManArgs),
    /// Answer a bench in another process what the device does
    #[command(hide = true)]
    Ceiling(ceiling::Args),
    /// Try cuFile, for a probe in another process
    #[command(name = saltern_gds::HELPER_SUBCOMMAND, hide = true)]
    GdsProbe {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
}

const EXIT_CODES: &str = "\
Exit codes: 0 all is well; 1 the operation failed (the disk, the kernel, a file); 2 wrong usage; 3 it ran to its end \
and found problems (wrong bytes, failed operations, nothing recognised, an unusable machine); 130 interrupted.

Sizes are written as 4096, 256KiB, 4MiB or 1GiB. SALTERN_LOG=debug logs to stderr; NO_COLOR is respected.";

/// Runs the command of this process's arguments.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are "errors" with code 0. A reader that has gone away is none.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    start_log();
    let outcome = match cli.command {
        Command::Bench(args) => bench::run(args),
        Command::Recover(args) => recover::run(args),
        Command::Usage(args) => usage::run(&args),
        Command::Quota(args) => quota::run(args),
        Command::Evict(args) => evict::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Verify(args) => verify::run(args),
        Command::Migrate(args) => migrate::run(&args),
        Command::Clean(args) => clean::run(&args),
        Command::Export(args) => archive::export::run(&args),
        Command::Import(args) => archive::import::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Completions(args) => manual::completions(&args, Cli::command()),
        Command::Man(args) => manual::man(&args, Cli::command()),
        Command::Ceiling(args) => ceiling::run(&args),
        Command::GdsProbe { arguments } => {
            saltern_gds::helper_main(arguments);
            Ok(Outcome::Clean)
        }
    };
    match outcome {
        Ok(Outcome::Clean) => ExitCode::SUCCESS,
        Ok(Outcome::Problems) => ExitCode::from(3),
        Err(failure) => report(&failure),
    }
}

fn report(failure: &Failure) -> ExitCode {
    eprintln!("error: {}", failure.message);
    if let Some(hint) = &failure.hint {
        eprintln!("hint: {hint}");
    }
    ExitCode::from(failure.code)
}

fn start_log() {
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}
