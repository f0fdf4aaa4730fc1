//! The engine as a target of workloads, and how it is configured.

use std::fmt;
use std::path::Path;

use saltern::{Buffer, Config, DirectIo, Durability, Engine, Integrity, Layout};

use crate::content::{compare, fill, key_of, size_of};
use crate::workload::{Deleted, Loaded, Stored, Target};

/// Room beyond what a workload keeps, for objects on their way.
const SLACK_BYTES: u64 = 16 << 20;

/// Objects of more than one segment tear more easily.
const SEGMENT_BYTES: usize = 128 << 10;

/// Bytes of spares, where files are recycled.
const SPARE_BYTES: u64 = 48 << 20;

/// What is varied in the engine's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// What a store waits for.
    pub durability: Durability,
    /// Whether payloads have checksums.
    pub integrity: Integrity,
    /// Whether files are recycled, and how.
    pub recycling: Recycling,
    /// How keys become file names.
    pub layout: Layout,
    /// Through the page cache.
    pub buffered: bool,
}

/// What becomes of deleted files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recycling {
    /// They are removed.
    Off,
    /// They are overwritten.
    On,
    /// They are overwritten before it is safe: a control.
    WithoutQuarantine,
}

impl Setup {
    pub(crate) fn config(self, volume: &Path, capacity_bytes: u64) -> Config {
        let mut config = Config::new(volume);
        config.capacity_bytes = Some(capacity_bytes + SLACK_BYTES);
        config.durability = self.durability;
        config.integrity = self.integrity;
        config.layout = self.layout;
        config.direct_io = if self.buffered { DirectIo::Off } else { DirectIo::Auto };
        config.spare_bytes = if self.recycling == Recycling::Off { 0 } else { SPARE_BYTES };
        config.skip_quarantine = self.recycling == Recycling::WithoutQuarantine;
        config.shards = 2;
        config.pin_shards = false;
        config.segment_bytes = SEGMENT_BYTES;
        config.pool_bytes = 16 << 20;
        config
    }

    /// As [`Self::config`], for looking at what a power cut has left: as after a reboot, with the setup's own integrity. With checksums
    /// objects are checked before their first use; without them nothing but the order of writes keeps the bytes right. Where the setup
    /// has none, `is_rebooted` false has whatever has a checksum checked all the same, so that one left behind by a file's former
    /// life is noticed; not as after a reboot, which would drop what has none.
    pub(crate) fn check_config(self, volume: &Path, capacity_bytes: u64, is_rebooted: bool) -> Config {
        let mut config = self.config(volume, capacity_bytes);
        if is_rebooted || self.integrity == Integrity::Verify {
            config.boot_id = Some("after-the-cut".into());
        } else {
            config.integrity = Integrity::Verify;
        }
        config
    }
}

impl fmt::Display for Recycling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Off => "off",
            Self::On => "on",
            Self::WithoutQuarantine => "no quarantine",
        })
    }
}

/// An open engine.
pub(crate) struct Running(pub(crate) Engine);

impl Running {
    pub(crate) fn open(config: Config) -> Result<Self, String> {
        Engine::open(config).map(Self).map_err(|error| format!("the engine does not open: {error}"))
    }

    /// A buffer for an object: every other one lies in the pool, the others in memory that has to be copied.
    fn buffer(&self, number: u64, write: impl FnOnce(&mut [u8])) -> Buffer {
        let len = size_of(number) as usize;
        if number.is_multiple_of(2)
            && let Ok(mut buffer) = self.0.pool().alloc(len)
        {
            write(&mut buffer);
            return buffer.into();
        }
        let mut bytes = vec![0; len];
        write(&mut bytes);
        bytes.into()
    }
}

impl Target for Running {
    fn store(&self, number: u64) -> Result<Stored, String> {
        let buffer = self.buffer(number, |bytes| fill(number, bytes));
        let report = self.0.store(vec![(key_of(number), buffer)]).wait();
        match &report.results[0] {
            Ok(bytes) if *bytes == size_of(number) => Ok(Stored::Done),
            Ok(bytes) => Err(format!("a new object of key {number} was stored with {bytes} new bytes")),
            Err(saltern::Error::Full { .. }) => Ok(Stored::Full),
            Err(error) => Err(format!("store of key {number}: {error}")),
        }
    }

    fn delete(&self, number: u64) -> Result<Deleted, String> {
        match &self.0.delete(&[key_of(number)]).wait().results[0] {
            Ok(bytes) if *bytes == size_of(number) => Ok(Deleted::Done),
            Ok(bytes) => Err(format!("delete of key {number} freed {bytes} bytes")),
            Err(saltern::Error::Pinned { .. }) => Ok(Deleted::InUse),
            Err(error) => Err(format!("delete of key {number}: {error}")),
        }
    }

    fn load(&self, number: u64) -> Result<Loaded, String> {
        // The pool's memory may hold the right bytes already: they have to come from the disk.
        let buffer = self.buffer(number, |bytes| bytes.fill(0xa5));
        let mut report = self.0.load(vec![(key_of(number), buffer)]).wait();
        match (&report.results[0], report.buffers[0].take()) {
            (Ok(_), Some(buffer)) => match compare(number, buffer.as_slice()) {
                None => Ok(Loaded::Right),
                Some(difference) => Err(format!("loaded wrong bytes: {difference}")),
            },
            (Err(saltern::Error::NotFound), _) => Ok(Loaded::Absent),
            (Err(error), _) => Err(format!("load of key {number}: {error}")),
            (Ok(_), None) => Err(format!("load of key {number}: the buffer was not given back")),
        }
    }
}
