//! The adapter for directories of LMCache's `nixl_store_dynamic` backend.
//!
//! That backend's directories are shared: several processes may write to one, each file appears whole by a rename, and who
//! misses a key in memory asks the disk. So does this adapter. It keeps the capacity that is mandatory there, counting what
//! earlier runs and other processes have left, and refuses before any I/O.
//!
//! LMCache writes and reads whole slots of its arena (`phy_size`, a multiple of its alignment). A host that shares the
//! directory with it hands in whole slots, too: the files are then the same, byte for byte.

use std::path::PathBuf;

use super::{Adapter, require};
use crate::config::{Config, Discovery};
use crate::engine::Engine;
use crate::error::Result;
use crate::layout::Layout;
use crate::open::Opener;

/// Objects under the names of LMCache's `nixl_store_dynamic` backend, flat or in shard directories, in a directory that other
/// processes may write to. A capacity is mandatory.
#[derive(Debug)]
pub struct NixlDynamicAdapter(Engine);

impl NixlDynamicAdapter {
    /// The defaults, for this directory and capacity: flat names; the index is filled by a scan, and by asking the disk for
    /// what it lacks. [`Discovery::Ask`] leaves the scan to a counting pass in the background.
    pub fn config(dir: impl Into<PathBuf>, capacity_bytes: u64) -> Config {
        let mut config = Config::new(dir);
        config.layout = Layout::Nixl;
        config.capacity_bytes = Some(capacity_bytes);
        config.discovery = Discovery::ScanAndAsk;
        config
    }

    /// Opens. Blocks for the scan, where there is one; with [`Discovery::Ask`] the counting pass runs in the background, and
    /// stores wait for it.
    ///
    /// # Errors
    /// As [`NixlDynamicAdapter::open_with`].
    pub fn open(config: Config) -> Result<Self> {
        let background = config.discovery == Discovery::Ask;
        Self::open_with(Engine::opener(config).background(background))
    }

    /// Opens with options.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when the layout is not one of NIXL's, when there is no capacity, or when the
    /// disk is not to be asked; and as [`Opener::open`].
    pub fn open_with(opener: Opener) -> Result<Self> {
        let config = &opener.config;
        let is_nixl = matches!(config.layout, Layout::Nixl | Layout::Nixl3 | Layout::NixlSharded);
        require(is_nixl, "layout", format!("{} is not one of nixl, nixl3 and nixl-sharded", config.layout))?;
        require(
            config.capacity_bytes.is_some_and(|bytes| bytes > 0),
            "capacity_bytes",
            "NIXL-dynamic needs a capacity",
        )?;
        require(config.discovery.asks(), "discovery", "others write to the directory: use scan-and-ask, or ask")?;
        opener.open().map(Self)
    }
}

impl Adapter for NixlDynamicAdapter {
    fn kind(&self) -> &'static str {
        "nixl-dynamic"
    }

    fn engine(&self) -> &Engine {
        &self.0
    }

    fn close(self: Box<Self>) {
        self.0.close();
    }
}
