//! A directory of a test, on a real file system, removed when the test ends.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Overrides where scratch directories are made, to run the suites on another file system.
const BASE: &str = "SALTERN_TEST_DIR";

/// Where files of earlier versions are; overridden where the tests run without the tree that they were built from.
const FIXTURES: &str = "SALTERN_FIXTURES";

/// The directory with files of earlier versions, valid and damaged.
pub fn fixtures() -> PathBuf {
    let here = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/fixtures");
    std::env::var_os(FIXTURES).map_or_else(here, PathBuf::from)
}

/// A new directory; it and all that is in it go when this is dropped.
pub struct Scratch(TempDir);

impl Scratch {
    /// Makes one below `base`: pass `env!("CARGO_TARGET_TMPDIR")`, which lies on a disk, unlike the system's
    /// directory for temporary files on many machines. `SALTERN_TEST_DIR` takes precedence.
    pub fn new(base: &str, name: &str) -> Self {
        let base = std::env::var_os(BASE).map_or_else(|| PathBuf::from(base), PathBuf::from);
        Self::exactly_under(&base, name)
    }

    /// Makes one below `base`, whatever the environment says.
    pub fn exactly_under(base: &Path, name: &str) -> Self {
        std::fs::create_dir_all(base).expect("the base of the scratch directories");
        let dir = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(base).expect("a scratch directory");
        Self(dir)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A path in it. Nothing is created.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}
