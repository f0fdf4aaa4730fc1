//! The command line of saltern. Each subcommand is a module with its arguments and a `run` that returns the exit code.

mod bench;
mod doctor;
mod failure;
mod human;
mod output;
mod progress;
mod recover;
mod signals;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
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
    /// Say what the engine finds on this machine, and what would make it faster
    Doctor(doctor::Args),
}

const EXIT_CODES: &str = "\
Exit codes: 0 all is well; 1 the operation failed (the disk, the kernel, a file); 2 wrong usage; 3 it ran to its end \
and found problems (wrong bytes, failed operations, nothing recognised, an unusable machine); 130 interrupted.

Sizes are written as 4096, 256KiB, 4MiB or 1GiB. SALTERN_LOG=debug logs to stderr; NO_COLOR is respected.";

fn main() -> ExitCode {
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
        Command::Doctor(args) => doctor::run(&args),
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
