//! OpenMetrics text, read strictly: what the specification (1.0.0) forbids is an error that names the line.

use std::collections::{BTreeMap, BTreeSet};

/// One family of metrics.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Family {
    /// `gauge`, `counter`, `histogram` or `info`.
    pub kind: String,
    /// What it measures in; empty for nothing.
    pub unit: String,
    /// Name with suffix, labels, value.
    pub samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

/// A whole exposition: families by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Exposition(pub BTreeMap<String, Family>);

impl Exposition {
    /// Reads a text.
    ///
    /// # Errors
    /// The line, and what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let body = text.strip_suffix("# EOF\n").ok_or("the text does not end in # EOF")?;
        let mut families = BTreeMap::new();
        let mut open: Option<(String, Family)> = None;
        for line in body.lines() {
            let wrong = |reason: &str| format!("{line}: {reason}");
            if let Some(meta) = line.strip_prefix("# ") {
                let (what, rest) = meta.split_once(' ').ok_or_else(|| wrong("no name"))?;
                let (name, value) = rest.split_once(' ').ok_or_else(|| wrong("no value"))?;
                if what == "HELP" {
                    close(&mut families, open.take())?;
                    open = Some((name.to_owned(), Family::default()));
                }
                let Some((_, family)) = open.as_mut().filter(|(of, _)| of == name) else {
                    return Err(wrong("of another family than the lines around"));
                };
                match what {
                    "HELP" if !value.is_empty() => {}
                    "TYPE" if ["gauge", "counter", "histogram", "info"].contains(&value) => {
                        value.clone_into(&mut family.kind)
                    }
                    "UNIT" if name.ends_with(&format!("_{value}")) => value.clone_into(&mut family.unit),
                    _ => return Err(wrong("not a line of metadata that is known")),
                }
            } else {
                let (name, family) = open.as_mut().ok_or_else(|| wrong("a sample before its family"))?;
                let sample = parse_sample(line).map_err(|reason| wrong(&reason))?;
                let suffix = sample.0.strip_prefix(&*name).ok_or_else(|| wrong("of another family"))?;
                if !suffixes(&family.kind).contains(&suffix) {
                    return Err(wrong("a suffix that its type does not have"));
                }
                family.samples.push(sample);
            }
        }
        close(&mut families, open)?;
        Ok(Self(families))
    }

    /// The value of a sample.
    ///
    /// # Panics
    /// When there is none, or more than one.
    #[track_caller]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels: BTreeMap<String, String> =
            labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let samples = self.0.values().flat_map(|family| &family.samples);
        let found: Vec<f64> =
            samples.filter(|(of, with, _)| of == name && *with == labels).map(|(_, _, value)| *value).collect();
        assert_eq!(found.len(), 1, "{name} {labels:?}");
        found[0]
    }
}

fn suffixes(kind: &str) -> &'static [&'static str] {
    match kind {
        "counter" => &["_total"],
        "histogram" => &["_sum", "_count", "_bucket"],
        "info" => &["_info"],
        _ => &[""],
    }
}

/// Checks a family that is complete.
fn close(families: &mut BTreeMap<String, Family>, family: Option<(String, Family)>) -> Result<(), String> {
    let Some((name, family)) = family else { return Ok(()) };
    let wrong = |reason: &str| format!("{name}: {reason}");
    if family.samples.is_empty() || family.kind.is_empty() {
        return Err(wrong("no type, or no sample"));
    }
    let series: BTreeSet<_> = family.samples.iter().map(|(name, labels, _)| (name, labels)).collect();
    if series.len() != family.samples.len() {
        return Err(wrong("a sample is there twice"));
    }
    if family.kind == "counter" && family.samples.iter().any(|(_, _, value)| *value < 0.0) {
        return Err(wrong("a counter below zero"));
    }
    if family.kind == "histogram" {
        check_buckets(&family).map_err(|reason| wrong(&reason))?;
    }
    if families.insert(name.clone(), family).is_some() {
        return Err(wrong("there twice"));
    }
    Ok(())
}

/// Buckets go up, in bound and in count, to all that there is.
fn check_buckets(family: &Family) -> Result<(), String> {
    let mut last = (f64::NEG_INFINITY, 0.0);
    for (_, labels, count) in family.samples.iter().filter(|(name, _, _)| name.ends_with("_bucket")) {
        let text = labels.get("le").ok_or("a bucket without a bound")?;
        let bound =
            if text == "+Inf" { f64::INFINITY } else { text.parse().map_err(|_| "a bound that is no number")? };
        if bound <= last.0 || *count < last.1 {
            return Err(format!("the bucket up to {text} is out of order"));
        }
        last = (bound, *count);
    }
    let count = family.samples.iter().find(|(name, _, _)| name.ends_with("_count")).ok_or("no count")?.2;
    let has_sum = family.samples.iter().any(|(name, _, _)| name.ends_with("_sum"));
    if last != (f64::INFINITY, count) || !has_sum { Err("no last bucket, or no sum".into()) } else { Ok(()) }
}

fn parse_sample(line: &str) -> Result<(String, BTreeMap<String, String>, f64), String> {
    let end = line.find(['{', ' ']).ok_or("no value")?;
    let (name, mut rest) = line.split_at(end);
    check_name(name)?;
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, quoted) = rest.split_once("=\"").ok_or("a label without a value")?;
            check_name(label)?;
            let (value, after) = unquote(quoted)?;
            if labels.insert(label.to_owned(), value).is_some() {
                return Err("a label is there twice".into());
            }
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = &rest[1..];
    }
    let value = rest.strip_prefix(' ').ok_or("no blank before the value")?;
    let value = value.parse().map_err(|_| "the value is no number")?;
    Ok((name.to_owned(), labels, value))
}

/// Text up to a quote, and what comes after it.
fn unquote(text: &str) -> Result<(String, &str), String> {
    let (mut out, mut chars) = (String::new(), text.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((out, &text[at + 1..])),
            '\\' => out.push(match chars.next() {
                Some((_, 'n')) => '\n',
                Some((_, escaped @ ('\\' | '"'))) => escaped,
                _ => return Err("an escape that there is not".into()),
            }),
            c => out.push(c),
        }
    }
    Err("a label's value does not end".into())
}

fn check_name(name: &str) -> Result<(), String> {
    let is_first = |c: char| c.is_ascii_alphabetic() || c == '_';
    let is_name = name.starts_with(is_first) && name.chars().all(|c| is_first(c) || c.is_ascii_digit());
    if is_name { Ok(()) } else { Err(format!("{name:?} is no name")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# HELP x_bytes Some.\n# TYPE x_bytes gauge\n# UNIT x_bytes bytes\nx_bytes{a=\"b\\\"\\n\\\\,}\"} 1e3\n\
                        # HELP h Times.\n# TYPE h histogram\nh_sum 2.5\nh_count 3\nh_bucket{le=\"1.0\"} 2\n\
                        h_bucket{le=\"+Inf\"} 3\n# EOF\n";

    #[test]
    fn what_is_right_is_read() {
        let read = Exposition::parse(GOOD).unwrap();
        assert_eq!(read.value("x_bytes", &[("a", "b\"\n\\,}")]), 1000.0);
        assert_eq!((read.value("h_bucket", &[("le", "1.0")]), read.0["x_bytes"].unit.as_str()), (2.0, "bytes"));
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for (from, to) in [
            ("# EOF\n", ""),
            ("# TYPE x_bytes gauge\n", ""),
            ("gauge", "gadget"),
            ("UNIT x_bytes bytes", "UNIT x_bytes seconds"),
            ("x_bytes{", "y_bytes{"),
            ("x_bytes{", "x_bytes_total{"),
            ("1e3", "many"),
            ("\\n", "\\t"),
            ("a=", "1a="),
            ("h_count 3", "h_count 4"),
            ("h_sum 2.5\n", ""),
            ("h_sum 2.5\n", "h_sum 2.5\nh_sum 2.5\n"),
            ("h_bucket{le=\"1.0\"} 2", "h_bucket{le=\"1.0\"} 4"),
            ("# HELP h ", "# HELP x_bytes "),
        ] {
            assert!(GOOD.contains(from));
            assert!(Exposition::parse(&GOOD.replacen(from, to, 1)).is_err(), "{from} as {to}");
        }
    }
}
