//! What a part of the lab has done, and the table of all.

use std::fmt;
use std::time::Instant;

use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};

/// Most bad results that are printed of one part.
const SHOWN: usize = 20;

/// What one part has done.
#[derive(Debug)]
pub struct Row {
    /// What was tried.
    pub what: String,
    /// Cases run: images, kills, workloads.
    pub cases: u64,
    /// Faults injected.
    pub faults: u64,
    /// What must not be, in words.
    pub bad: Vec<String>,
    /// Why something was not tried.
    pub skipped: Option<String>,
    /// How long it took.
    pub seconds: f64,
    start: Instant,
}

impl Row {
    /// Begins.
    pub fn new(what: impl Into<String>) -> Self {
        let what = what.into();
        Self { what, cases: 0, faults: 0, bad: Vec::new(), skipped: None, seconds: 0.0, start: Instant::now() }
    }

    /// Notes what must not be.
    pub fn bad(&mut self, what: impl fmt::Display) {
        self.bad.push(what.to_string());
    }

    /// Ends.
    #[must_use]
    pub fn done(mut self) -> Self {
        self.seconds = self.start.elapsed().as_secs_f64();
        self
    }

    /// Ends before it has begun: skipped where this machine lacks what it takes; anything else that goes wrong is bad.
    #[must_use]
    pub fn stopped(mut self, error: &saltern_power::Error) -> Self {
        match error {
            saltern_power::Error::Unavailable(_) => self.skipped = Some(error.to_string()),
            other => self.bad(other),
        }
        self.done()
    }
}

/// The table, and below it what is bad and what was skipped.
pub fn report(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN).set_header(["what", "cases", "faults injected", "bad results", "seconds"]);
    for row in rows {
        let cases = if row.skipped.is_some() { "skipped".into() } else { row.cases.to_string() };
        let numbers = [cases, row.faults.to_string(), row.bad.len().to_string(), format!("{:.0}", row.seconds)];
        table.add_row(std::iter::once(row.what.clone()).chain(numbers));
    }
    let sum = |of: fn(&Row) -> u64| rows.iter().map(of).sum::<u64>().to_string();
    let seconds: f64 = rows.iter().map(|row| row.seconds).sum();
    let (cases, faults) = (sum(|row| row.cases), sum(|row| row.faults));
    table.add_row(["all".into(), cases, faults, sum(|row| row.bad.len() as u64), format!("{seconds:.0}")]);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = format!("{table}\n");
    for row in rows {
        if let Some(why) = &row.skipped {
            text += &format!("\nskipped: {}: {why}", row.what);
        }
        for bad in row.bad.iter().take(SHOWN) {
            text += &format!("\nBAD: {}: {bad}", row.what);
        }
        if row.bad.len() > SHOWN {
            text += &format!("\nBAD: {}: and {} more", row.what, row.bad.len() - SHOWN);
        }
    }
    text
}
