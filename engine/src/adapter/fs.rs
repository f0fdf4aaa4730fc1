//! The adapter for directories of LMCache's `fs` and `fs_native` backends.

use std::path::PathBuf;

use super::{Adapter, require};
use crate::config::Config;
use crate::engine::Engine;
use crate::error::Result;
use crate::layout::Layout;
use crate::open::Opener;

/// Objects under the names of LMCache's `fs` backends. A capacity is optional.
#[derive(Debug)]
pub struct FsAdapter(Engine);

impl FsAdapter {
    /// The defaults, for this directory.
    pub fn config(dir: impl Into<PathBuf>) -> Config {
        Config::new(dir)
    }

    /// Opens, and blocks for the scan of the directory.
    ///
    /// # Errors
    /// As [`FsAdapter::open_with`].
    pub fn open(config: Config) -> Result<Self> {
        Self::open_with(Engine::opener(config))
    }

    /// Opens with options.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when the layout is not one of `fs`'s, and as [`Opener::open`].
    pub fn open_with(opener: Opener) -> Result<Self> {
        let layout = opener.config.layout;
        require(matches!(layout, Layout::Fs | Layout::Fs3), "layout", format!("{layout} is not one of fs and fs3"))?;
        opener.open().map(Self)
    }
}

impl Adapter for FsAdapter {
    fn kind(&self) -> &'static str {
        "fs"
    }

    fn engine(&self) -> &Engine {
        &self.0
    }

    fn close(self: Box<Self>) {
        self.0.close();
    }
}
