//! `--apply`: commands that change something say what they would do, and do it only when told.

use saltern::maintain::Mode;

/// What a dry run ends with.
pub(crate) const DRY_RUN: &str = "Nothing was changed: this was a dry run, --apply acts.";

/// The option.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct ApplyArgs {
    /// Act; without it nothing is changed, and what would be done is said
    #[arg(long)]
    apply: bool,
}

impl ApplyArgs {
    pub(crate) fn is_set(self) -> bool {
        self.apply
    }

    pub(crate) fn mode(self) -> Mode {
        if self.apply { Mode::Apply } else { Mode::DryRun }
    }
}
