//! Sizes, numbers, times, names and tables as people read and write them.

use std::fmt::Write as _;
use std::time::Duration;

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};

const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// Parses `4096`, `256KiB`, `1.5GiB`; `K`, `M`, `G` and `T` stand for the same, `KB`, `MB`, `GB` and `TB` are decimal.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size; write 4096, 256KiB, 4MiB or 1GiB");
    let text_without_spaces = text.trim();
    let digits =
        text_without_spaces.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text_without_spaces.len());
    let (number, unit) = text_without_spaces.split_at(digits);
    let factor: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(wrong()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(|| format!("{text:?} is too large"));
    }
    match number.parse::<f64>() {
        Ok(fraction) if factor > 1 && fraction * (factor as f64) < u64::MAX as f64 => {
            Ok((fraction * factor as f64) as u64)
        }
        _ => Err(wrong()),
    }
}

/// `256KiB` where that is exact, else `1.5GiB`.
pub(crate) fn size(bytes: u64) -> String {
    match UNITS.into_iter().find(|(_, factor)| bytes >= *factor) {
        None => format!("{bytes}B"),
        Some((unit, factor)) if bytes.is_multiple_of(factor) => format!("{}{unit}", bytes / factor),
        Some((unit, factor)) => format!("{:.1}{unit}", bytes as f64 / factor as f64),
    }
}

/// `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A figure with about three digits: `0.123`, `12.3`, `1,234`.
pub(crate) fn figure(value: f64) -> String {
    match value {
        value if value >= 99.95 => count(value.round() as u64),
        value if value >= 9.995 => format!("{value:.1}"),
        value if value >= 1.0 => format!("{value:.2}"),
        value => format!("{value:.3}"),
    }
}

/// `90`, `15s`, `30m`, `12h`, `7d`: a time, in seconds where no unit is given.
pub(crate) fn parse_time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time; write 90s, 30m, 12h or 7d");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds: u64 = match unit {
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number = number.parse::<u64>().map_err(|_| wrong())?;
    Ok(Duration::from_secs(number.checked_mul(seconds).ok_or_else(wrong)?))
}

/// `5.1M`, `340k`: rates of lookups.
pub(crate) fn rate(per_second: f64) -> String {
    match per_second {
        0.0 => "0".to_owned(),
        rate if rate >= 1e6 => format!("{:.1}M", rate / 1e6),
        rate if rate >= 1e4 => format!("{:.0}k", rate / 1e3),
        rate => figure(rate),
    }
}

/// `850us`, `12.3ms`, `1.23s`, `2min 5s`.
pub(crate) fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.0}us", s * 1e6),
        s if s < 1.0 => format!("{:.1}ms", s * 1e3),
        s if s < 60.0 => format!("{s:.2}s"),
        s => format!("{}min {:.0}s", (s / 60.0).floor(), s % 60.0),
    }
}

/// `45s`, `12min`, `5h`, `8d`: how old something is.
pub(crate) fn age(seconds: u64) -> String {
    match seconds {
        s @ 0..120 => format!("{s}s"),
        s @ 120..7200 => format!("{}min", s / 60),
        s @ 7200..172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

/// `1 object`, `2 objects`, `2 entries`.
pub(crate) fn plural(number: u64, one: &str) -> String {
    match (number, one.strip_suffix('y')) {
        (1, _) => format!("1 {one}"),
        (_, Some(stem)) => format!("{} {stem}ies", count(number)),
        (_, None) => format!("{} {one}s", count(number)),
    }
}

/// A name from a directory, harmless on a terminal.
pub(crate) fn printable(name: &str) -> String {
    name.chars().fold(String::with_capacity(name.len()), |mut out, c| {
        if c.is_control() {
            let _ = write!(out, "{}", c.escape_default());
        } else {
            out.push(c);
        }
        out
    })
}

/// Columns that lines are kept to, where names allow it.
const WIDTH: usize = 80;

/// Names with reasons below a heading; `count` is how many there are, of which some are shown.
pub(crate) fn reasons<'a>(what: &str, count: u64, shown: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let (mut out, mut rows) = (format!("{what}:\n"), 0);
    for (name, reason) in shown {
        let (name, reason) = (printable(name), printable(reason));
        let line = format!("  {name}: {reason}");
        if line.chars().count() <= WIDTH {
            out.push_str(&line);
        } else {
            out.push_str(&format!("  {name}:\n    {}", wrap(&reason, WIDTH, 4)));
        }
        out.push('\n');
        rows += 1;
    }
    out.push_str(&and_more(count.saturating_sub(rows)));
    out
}

/// What was not shown.
pub(crate) fn and_more(more: u64) -> String {
    if more == 0 { String::new() } else { format!("  ... and {} more\n", count(more)) }
}

/// A name from a directory, harmless on a terminal and no wider than this; what was cut off shows as `…`.
pub(crate) fn short(name: &str, width: usize) -> String {
    let name = printable(name);
    if name.chars().count() <= width {
        return name;
    }
    let kept: String = name.chars().take(width.saturating_sub(1)).collect();
    kept + "…"
}

/// Breaks text between words into lines of `width`; the first begins, and the others are indented, at `indent`.
pub(crate) fn wrap(text: &str, width: usize, indent: usize) -> String {
    let room = width.saturating_sub(indent);
    let (mut out, mut used) = (String::with_capacity(text.len()), 0);
    for word in text.split(' ') {
        let len = word.chars().count();
        if used > 0 && used + 1 + len > room {
            let _ = write!(out, "\n{:indent$}", "");
            used = 0;
        } else if used > 0 {
            out.push(' ');
            used += 1;
        }
        out.push_str(word);
        used += len;
    }
    out
}

/// A table without lines: the first `texts` columns are text, the others figures.
pub(crate) struct Columns {
    table: Table,
    texts: usize,
}

impl Columns {
    pub(crate) fn new(header: &[&str], texts: usize) -> Self {
        let mut table = Table::new();
        table.load_preset("     --            ").set_content_arrangement(ContentArrangement::Disabled);
        let mut this = Self { table, texts };
        let header = this.cells(header.iter().map(|name| (*name).to_owned()));
        this.table.set_header(header);
        this
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells = self.cells(cells);
        self.table.add_row(cells);
    }

    fn cells(&self, cells: impl IntoIterator<Item = String>) -> Vec<Cell> {
        let align = |at| if at < self.texts { CellAlignment::Left } else { CellAlignment::Right };
        cells.into_iter().enumerate().map(|(at, cell)| Cell::new(cell).set_alignment(align(at))).collect()
    }

    /// The lines, without blanks at their ends.
    pub(crate) fn render(mut self) -> String {
        for (at, column) in self.table.column_iter_mut().enumerate() {
            // The preset puts a blank between columns too.
            column.set_padding((u16::from(at > 0), 0));
        }
        self.table.lines().fold(String::new(), |mut out, line| {
            out.push_str(line.trim_end());
            out.push('\n');
            out
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        let sizes =
            [("0", 0), ("4096", 4096), ("64KiB", 65_536), ("1.5MiB", 1_572_864), ("2 GiB", 2 << 30), ("1TiB", 1 << 40)];
        for (text, bytes) in sizes {
            assert_eq!(parse_size(text), Ok(bytes));
        }
        assert_eq!((parse_size("64k"), parse_size("1MB"), parse_size("7b")), (Ok(65_536), Ok(1_000_000), Ok(7)));
        for wrong in ["", "KiB", "1.5", "-1", "1XiB", "1 2", "1e3", "99999999TiB", "0x10"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
        let written = [0, 1023, 1 << 10, 262_144, 1_572_864, 5 << 40].map(size);
        assert_eq!(written, ["0B", "1023B", "1KiB", "256KiB", "1.5MiB", "5TiB"]);
    }

    #[test]
    fn times_are_read() {
        let times = [("0", 0), ("90", 90), ("15s", 15), ("30m", 1800), ("2min", 120), ("12h", 43_200), ("7d", 604_800)];
        for (text, seconds) in times {
            assert_eq!(parse_time(text), Ok(Duration::from_secs(seconds)));
        }
        for wrong in ["", "s", "-1s", "1.5h", "1 h", "1w", "999999999999999999d"] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_have_their_reason_below() {
        let long = "x".repeat(75);
        let shown = [("a\nb", "why"), (&*long, "because")].into_iter();
        let expected = format!("left:\n  a\\nb: why\n  {long}:\n    because\n  ... and 1 more\n");
        assert_eq!(reasons("left", 3, shown), expected);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0.04, 1.0, 12.34, 99.96, 1234.5].map(figure), ["0.040", "1.00", "12.3", "100", "1,235"]);
        assert_eq!([0.0, 12.0, 250_000.0, 5_130_000.0].map(rate), ["0", "12.0", "250k", "5.1M"]);
        assert_eq!([0.000_5, 0.012, 1.5, 125.0].map(seconds), ["500us", "12.0ms", "1.50s", "2min 5s"]);
        assert_eq!([0, 119, 120, 7200, 200_000].map(age), ["0s", "119s", "2min", "2h", "2d"]);
        assert_eq!((plural(1, "object"), plural(2000, "object")), ("1 object".into(), "2,000 objects".into()));
        assert_eq!((plural(1, "entry"), plural(0, "entry")), ("1 entry".into(), "0 entries".into()));
        assert_eq!(printable("a\x1b[31m\nb é"), "a\\u{1b}[31m\\nb é");
    }

    #[test]
    fn long_text_goes_on_below() {
        assert_eq!(wrap("one two three", 80, 4), "one two three");
        assert_eq!(wrap("one two three", 12, 4), "one two\n    three");
        assert_eq!(wrap("a longer_than_the_line b", 10, 2), "a\n  longer_than_the_line\n  b");
        assert_eq!(wrap("", 10, 2), "");
        assert_eq!((short("abcdef", 6), short("abcdefg", 6)), ("abcdef".into(), "abcde…".into()));
    }

    #[test]
    fn tables_align() {
        let mut table = Columns::new(&["name", "n"], 1);
        table.row(["a".into(), "1".into()]);
        table.row(["long".into(), "1000".into()]);
        let lines: Vec<_> = table.render().lines().map(str::to_owned).collect();
        assert_eq!(lines, ["name     n", "----------", "a        1", "long  1000"]);
    }
}
