//! `saltern-lab [PART...]`: runs the fault lab, or some parts of it, and prints a table. Exit code 0 when nothing is bad, 1 when
//! something is, 2 for wrong usage, 77 when nothing is bad, but a part could not be run here.
//!
//! `SALTERN_SEED=n` makes the same choices again, `SALTERN_LONG=1` takes hours, `SALTERN_LAB_PLOT=FILE.svg` says where
//! the soak's plot goes, `SALTERN_LAB_SOAK_S=n` how long it soaks, `SALTERN_LAB_IMAGES=n` how many images each cell of power cuts has.

use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::process::ExitCode;
use std::thread::ScopedJoinHandle;

use saltern_lab::{Context, Row, child, disks, errors, hostile, kills, power, resources, soak, table};
use saltern_power::FileSystem::{Ext4, Xfs};

type Work = fn(&Context) -> Vec<Row>;

/// Exit code of a test that could not be run, by the custom of automake.
const NOT_RUN: u8 = 77;

/// Side by side: what one waits for the others use. Each has a thread of its own: a part may move its thread into a mount
/// namespace.
fn together<const N: usize>(parts: [&(dyn Fn() -> Row + Sync); N]) -> Vec<Row> {
    std::thread::scope(|scope| {
        let started = parts.map(|part| scope.spawn(part));
        started.into_iter().map(end).collect()
    })
}

/// What a part has done; a panic is something bad.
fn end(thread: ScopedJoinHandle<'_, Row>) -> Row {
    thread.join().unwrap_or_else(|_| {
        let mut row = Row::new("a part of the lab");
        row.bad("it panicked");
        row.done()
    })
}

const PARTS: [(&str, Work); 6] = [
    ("power", |cx| {
        let mut rows = power::matrix(cx);
        rows.extend(together([&|| power::controls(cx)]));
        rows
    }),
    ("kills", |cx| together([&|| kills::run(cx, Ext4), &|| kills::run(cx, Xfs), &|| kills::lock(cx)])),
    ("errors", |cx| together([&|| errors::run(cx), &|| disks::run(cx)])),
    ("resources", |cx| together([&|| resources::run(cx)])),
    ("hostile", |cx| together([&|| hostile::run(cx)])),
    ("soak", |cx| together([&|| soak::run(cx)])),
];

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.trim().parse().unwrap_or_else(|_| {
        eprintln!("{variable}={text:?} is not a number");
        std::process::exit(2)
    }))
}

fn main() -> ExitCode {
    // Disks fail here: what an engine believes when it closes is compared by each part, where it can be.
    saltern_tests::leave_books_unchecked();
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some(code) = child::play(&arguments) {
        return code;
    }
    let names: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
    if let Some(unknown) = arguments.iter().find(|part| !names.iter().any(|name| *part == name)) {
        eprintln!("saltern-lab [PART...]: {} is no part; parts are {}", unknown.display(), names.join(", "));
        return ExitCode::from(2);
    }
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => {
            eprintln!("saltern-lab: {error}");
            return ExitCode::FAILURE;
        }
    };
    let cx = Context {
        seed: number("SALTERN_SEED").unwrap_or_else(|| RandomState::new().build_hasher().finish() >> 32),
        is_long: number("SALTERN_LONG") == Some(1),
        images: number("SALTERN_LAB_IMAGES"),
        soak_s: number("SALTERN_LAB_SOAK_S"),
        plot: std::env::var_os("SALTERN_LAB_PLOT").map(Into::into),
        program,
    };
    println!("SALTERN_SEED={} makes the same choices again", cx.seed);
    let mut rows = Vec::new();
    for (name, work) in PARTS {
        if arguments.is_empty() || arguments.iter().any(|part| part == name) {
            eprintln!("{name} ...");
            rows.extend(work(&cx));
        }
    }
    println!("\n{}", table::report(&rows));
    if rows.iter().any(|row| !row.bad.is_empty()) {
        println!("\nSALTERN_SEED={}", cx.seed);
        return ExitCode::FAILURE;
    }
    if rows.iter().any(|row| row.skipped.is_some()) {
        println!("\nNOT RUN: what is marked as skipped, for the reasons above");
        return ExitCode::from(NOT_RUN);
    }
    ExitCode::SUCCESS
}
