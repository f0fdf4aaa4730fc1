//! Layouts as arguments, and `auto`.

use std::path::Path;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use saltern::Layout;
use saltern::layout::detect::detect;
use saltern::scan::sample_names;

use crate::failure::Failure;

/// Names that `auto` looks at.
const SAMPLE: usize = 10_000;

/// The layout of a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Choice {
    Auto,
    Given(Layout),
}

/// Takes `auto` or the name of a layout.
pub(crate) fn choice_parser() -> impl TypedValueParser<Value = Choice> {
    let names = std::iter::once("auto").chain(Layout::ALL.map(Layout::name));
    PossibleValuesParser::new(names).map(|name| name.parse().map_or(Choice::Auto, Choice::Given))
}

/// Takes the name of a layout.
pub(crate) fn layout_parser() -> impl TypedValueParser<Value = Layout> {
    PossibleValuesParser::new(Layout::ALL.map(Layout::name)).try_map(|name| name.parse::<Layout>())
}

/// The layout of a directory, and why.
pub(crate) fn choose(dir: &Path, choice: Choice) -> Result<(Layout, String), Failure> {
    // Gives a plainer error than a scan would.
    std::fs::read_dir(dir).map_err(|error| Failure::directory(dir, &error))?;
    if let Choice::Given(layout) = choice {
        return Ok((layout, "as asked for".to_owned()));
    }
    let names = sample_names(dir, SAMPLE)?;
    Ok(match detect(&names) {
        Some(found) => (found.layout, found.reason),
        None if names.is_empty() => (Layout::Fs, "there are no files; assumed".to_owned()),
        None => (Layout::Fs, format!("none of {} names is of any layout; assumed", names.len())),
    })
}
