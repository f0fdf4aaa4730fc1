//! The parsers of what others hand to this program, for fuzzing and for replaying a corpus: whatever the bytes are, they are taken or refused, without
//! a panic, and the same way twice.

use std::path::Path;

use clap::Parser as _;

use crate::{Cli, Command, archive, top};

/// An archive, as `saltern import` reads it without `--apply`.
///
/// # Panics
/// When it is not read the same way twice.
pub fn archive(bytes: &[u8]) {
    let cli = Cli::try_parse_from(["saltern", "import", "--layout", "fs", "/", "-"]);
    let Ok(Cli { command: Command::Import(args) }) = cli else { unreachable!("these arguments are an import's") };
    assert_eq!(archive::import::outline(&args, bytes), archive::import::outline(&args, bytes));
}

/// What a status socket gave, as `saltern top` shows it.
///
/// # Panics
/// When what is shown would steer a terminal.
pub fn served(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for shown in top::outline(Path::new("/dir"), text).iter().flatten() {
        let steers = shown.chars().find(|c| c.is_control() && *c != '\n');
        assert_eq!(steers, None, "{shown:?}");
    }
}
