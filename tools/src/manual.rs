//! `saltern completions` and `saltern man`: what is generated from the arguments.

use std::path::PathBuf;

use clap::Command;
use clap_complete::{Shell, generate};

use crate::failure::{Failure, Outcome};
use crate::output;

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
For bash: saltern completions bash > ~/.local/share/bash-completion/completions/saltern
For zsh, into a directory of $fpath: saltern completions zsh > _saltern
For fish: saltern completions fish > ~/.config/fish/completions/saltern.fish")]
pub(crate) struct CompletionArgs {
    /// The shell
    shell: Shell,
}

/// Arguments of `man`.
#[derive(Debug, clap::Args)]
pub(crate) struct ManArgs {
    /// Directory for the pages: saltern.1, saltern-bench.1, ...
    dir: PathBuf,
}

pub(crate) fn completions(args: &CompletionArgs, mut command: Command) -> Result<Outcome, Failure> {
    let mut script = Vec::new();
    generate(args.shell, &mut command, "saltern", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(Outcome::Clean)
}

pub(crate) fn man(args: &ManArgs, command: Command) -> Result<Outcome, Failure> {
    std::fs::create_dir_all(&args.dir).map_err(|error| Failure::directory(&args.dir, &error))?;
    clap_mangen::generate_to(command, &args.dir).map_err(|error| Failure::directory(&args.dir, &error))?;
    Ok(Outcome::Clean)
}
