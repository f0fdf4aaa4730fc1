//! Results on their way out: stdout, and JSON files.

use std::ffi::OsStr;
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::failure::Failure;

/// Where the JSON goes.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct JsonArgs {
    /// Write the results as JSON to this file; `-` writes them to stdout, in place of the tables
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl JsonArgs {
    /// Writes the JSON where it was asked for, and the text unless JSON took its place.
    pub(crate) fn finish(&self, report: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), Failure> {
        let Some(path) = &self.json else { return print(&text()) };
        let json = to_json(report)?;
        if path.as_os_str() == OsStr::new("-") {
            return print(&json);
        }
        print(&text())?;
        write(path, "--json", &json)
    }

    /// Whether there is to be JSON.
    pub(crate) fn is_asked(&self) -> bool {
        self.json.is_some()
    }

    /// Whether the JSON takes stdout.
    pub(crate) fn is_stdout(&self) -> bool {
        self.json.as_deref().is_some_and(|path| path.as_os_str() == OsStr::new("-"))
    }

    /// As [`Self::finish`], with the text on stderr where something else has stdout.
    pub(crate) fn finish_beside(
        &self,
        stdout_is_taken: bool,
        report: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        if !stdout_is_taken {
            return self.finish(report, text);
        }
        eprint!("{}", text());
        match &self.json {
            Some(path) => write(path, "--json", &to_json(report)?),
            None => Ok(()),
        }
    }

    /// Fails early where the file cannot be written, before a long run.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        match &self.json {
            Some(path) if path.as_os_str() != OsStr::new("-") => check_writable(path, "--json"),
            _ => Ok(()),
        }
    }
}

fn to_json(report: &impl Serialize) -> Result<String, Failure> {
    let mut json = serde_json::to_string_pretty(report).map_err(Failure::new)?;
    json.push('\n');
    Ok(json)
}

/// Fails where a file cannot be written; `option` named it.
pub(crate) fn check_writable(path: &Path, option: &str) -> Result<(), Failure> {
    let opened = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(path);
    opened.map(drop).map_err(|error| unwritable(path, option, &error))
}

/// Writes a file that `option` named.
pub(crate) fn write(path: &Path, option: &str, contents: &str) -> Result<(), Failure> {
    std::fs::write(path, contents).map_err(|error| unwritable(path, option, &error))
}

fn unwritable(path: &Path, option: &str, error: &std::io::Error) -> Failure {
    Failure::new(format_args!("{}: {error}", path.display())).hint(format!("choose another file for {option}"))
}

/// Writes to stdout. A reader that has gone away (`| head`) is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::new(format_args!("stdout: {error}"))),
        _ => Ok(()),
    }
}

/// Whether stdout gets colours: on a terminal, unless `NO_COLOR` is set.
pub(crate) fn stdout_wants_color() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
