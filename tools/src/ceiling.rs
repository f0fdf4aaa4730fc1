//! `saltern ceiling`, hidden: tells a bench in another process, line by line, what the device does. See `bench/peers`.

use std::io::{BufRead, Write};
use std::path::PathBuf;

use saltern_bench::beside::Beside;

use crate::failure::{Failure, Outcome};
use crate::human;
use crate::signals::cancel_flag;

/// Arguments. Questions are read from stdin, one JSON object a line, and answered on stdout.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory in which the scratch directory is made; its file system is what is measured
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Bytes of the file that is read and overwritten
    #[arg(long, value_name = "SIZE", value_parser = human::parse_size, default_value = "1GiB")]
    total: u64,
}

pub(crate) fn run(args: &Args) -> Result<Outcome, Failure> {
    let cancel = cancel_flag()?;
    let mut beside = Beside::create(&args.dir, args.total, &cancel)?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "ready").map_err(Failure::new)?;
    for line in std::io::stdin().lock().lines() {
        let ask = serde_json::from_str(&line.map_err(Failure::new)?).map_err(Failure::new)?;
        let answer = serde_json::to_string(&beside.measure(ask, &cancel)?).map_err(Failure::new)?;
        writeln!(stdout, "{answer}").map_err(Failure::new)?;
    }
    Ok(Outcome::Clean)
}
