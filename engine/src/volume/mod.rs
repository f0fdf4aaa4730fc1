//! The volumes of an engine: one directory each, best on a device of its own.
//!
//! ```text
//! name -> homes (rendezvous over the volumes' numbers) -> home: its shards do what concerns the key
//!                                                    \-> place: the best volume that is up and has room gets a new object's file
//! ```
//!
//! A key's home is by its name among all volumes that were opened, and stays: it says which shard does all that concerns the key.
//! Where an object's file is says the index. Mostly that is the home; it is another volume for objects that were there before a
//! volume was added, that did not fit, or that were stored since their home was lost.

mod directory;
mod freed;
mod health;
mod homes;
pub(crate) mod identity;
mod lock;
mod loss;
mod medium;
mod presence;
mod quarantine;
#[cfg(test)]
mod quarantine_model;
#[cfg(test)]
mod quarantine_tests;
mod trust;

/// What the quarantine is made of; its model check has loom's instead.
mod sync {
    pub(super) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    pub(super) use parking_lot::Mutex;
}

use std::ops::Index;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::integrity::Integrity;
use crate::ledger::Ledger;
use crate::status::{SpareStatus, VolumeStatus};
pub(crate) use directory::{
    Directory, Holding, Parent, SPARES_DIR, STATE_DIR, TEMP_DIR, open_dir, owner, survey_status,
};
use homes::Homes;
use identity::VolumeId;
pub(crate) use lock::lock_directory;
pub(crate) use loss::{Guards, Losses};
use presence::Presence;
#[cfg(test)]
pub(crate) use quarantine::Quarantine;
pub(crate) use quarantine::SyncNumber;
pub(crate) use trust::Closed;

/// The default of `min_free_bytes` is not more than this.
const MIN_FREE_DEFAULT_MAX: u64 = 1 << 30;

/// A directory that was taken, and looked at.
struct Opened {
    dir: Directory,
    id: Option<VolumeId>,
    old_spares: Vec<(String, u64)>,
    disk_bytes: u64,
}

/// One volume, and what the engine keeps of it.
pub(crate) struct Volume {
    pub(crate) dir: Directory,
    /// Its number among several.
    id: Option<VolumeId>,
    /// Its books, on the state that all volumes share.
    pub(crate) ledger: Ledger,
    /// As configured, or off where the file system has no user attributes.
    pub(crate) integrity: Integrity,
    /// Bytes of the file system that stay free.
    pub(crate) min_free_bytes: u64,
    /// Spares of an earlier run, for the shards to take over.
    pub(crate) old_spares: Mutex<Vec<(String, u64)>>,
    /// What the spares of its shards amount to.
    pub(crate) spare_bytes: AtomicU64,
    pub(crate) spare_count: AtomicU64,
    spare_limit: u64,
    pub(crate) presence: Presence,
}

impl Volume {
    /// Takes the directory.
    fn open(path: &Path, config: &Config) -> Result<Opened> {
        let dir = Directory::open(path, config)?;
        let (_, disk_bytes) = dir.free_bytes().map_err(|errno| Error::io("fstatfs", path, errno))?;
        let id = if config.more_dirs.is_empty() { None } else { Some(VolumeId::of(&dir)?) };
        Ok(Opened { old_spares: dir.collect_spares()?, dir, id, disk_bytes })
    }

    fn new(opened: Opened, ledger: Ledger, config: &Config) -> Self {
        let Opened { dir, id, old_spares, disk_bytes } = opened;
        Self {
            id,
            ledger,
            integrity: if dir.has_attributes() { config.integrity } else { Integrity::Off },
            min_free_bytes: config.min_free_bytes.unwrap_or((disk_bytes / 100).min(MIN_FREE_DEFAULT_MAX)),
            old_spares: Mutex::new(old_spares),
            spare_bytes: AtomicU64::new(0),
            spare_count: AtomicU64::new(0),
            spare_limit: if dir.recycles() { config.spare_bytes } else { 0 },
            presence: Presence::default(),
            dir,
        }
    }

    /// Whether it takes part.
    pub(crate) fn is_up(&self) -> bool {
        self.presence.is_up()
    }

    /// Most bytes that its shards keep as spares, all together.
    pub(crate) fn spare_limit(&self) -> u64 {
        self.spare_limit
    }

    pub(crate) fn spares(&self) -> SpareStatus {
        SpareStatus {
            is_on: self.spare_limit > 0,
            count: self.spare_count.load(Ordering::Relaxed),
            bytes: self.spare_bytes.load(Ordering::Relaxed),
            limit_bytes: self.spare_limit,
        }
    }

    /// What it says of itself. Makes a system call or two.
    pub(crate) fn status(&self) -> VolumeStatus {
        let (used_bytes, reserved_bytes) = self.ledger.totals();
        let read_only = self.dir.health.read_only().map(str::to_owned);
        let mut problems: Vec<_> =
            self.presence.reason().map(|reason| format!("taken out: {reason}")).into_iter().collect();
        if self.is_up() && !self.dir.is_in_place() {
            problems.push("it is not the directory that was opened".to_owned());
        }
        if let (Some(reason), true) = (&read_only, self.is_up()) {
            problems.push(format!(
                "read-only for good: {reason}; look at the disk, then close the engine and open it again"
            ));
        }
        let (free_bytes, disk_bytes) = self.dir.free_bytes().unwrap_or((0, 0));
        VolumeStatus {
            medium: self.dir.status(),
            id: self.id.map(|id| id.to_string()),
            is_up: self.is_up(),
            read_only,
            checks_first_use: self.dir.trust.is_limited(),
            problems,
            used_bytes,
            reserved_bytes,
            capacity_bytes: self.ledger.capacity_bytes(),
            free_bytes,
            disk_bytes,
            spares: self.spares(),
        }
    }
}

/// All volumes of an engine.
pub(crate) struct Volumes {
    list: Vec<Volume>,
    homes: Homes,
    /// Directories that could not be opened, with the reason, where the engine goes on without them.
    pub(crate) missing: Vec<(PathBuf, Error)>,
}

impl Index<usize> for Volumes {
    type Output = Volume;

    fn index(&self, number: usize) -> &Volume {
        &self.list[number]
    }
}

impl Volumes {
    /// Opens all directories.
    ///
    /// # Errors
    /// The first that cannot be opened; with [`Config::require_volumes`] off, only when none can. [`Error::Volume`] when two have
    /// one identity.
    pub(crate) fn open(config: &Config) -> Result<Self> {
        let (mut opened, mut missing) = (Vec::<Opened>::new(), Vec::new());
        for path in config.dirs() {
            match Volume::open(path, config) {
                Ok(volume) => opened.push(volume),
                Err(error) if config.require_volumes || config.more_dirs.is_empty() => return Err(error),
                Err(error) => missing.push((path.clone(), error)),
            }
        }
        if opened.is_empty() {
            return Err(missing.swap_remove(0).1);
        }
        for (at, volume) in opened.iter().enumerate() {
            if let Some(other) = opened[..at].iter().find(|other| volume.id.is_some() && other.id == volume.id) {
                let other = other.dir.path().display();
                let reason = format!("has the identity of {other}: one is a copy; remove .saltern/volume in the copy");
                return Err(Error::Volume { dir: volume.dir.path().to_owned(), reason });
            }
        }
        let ids: Vec<_> = opened.iter().map(|volume| volume.id.unwrap_or(VolumeId(0))).collect();
        let first = Ledger::within(config.capacity_bytes, config.volume_capacity_bytes);
        let further = (1..opened.len()).map(|_| first.join(config.volume_capacity_bytes)).collect::<Vec<_>>();
        let ledgers = std::iter::once(first).chain(further);
        let list = opened.into_iter().zip(ledgers).map(|(opened, ledger)| Volume::new(opened, ledger, config));
        Ok(Self { list: list.collect(), homes: Homes::new(&ids), missing })
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is only one, so that no question arises where something is.
    pub(crate) fn is_single(&self) -> bool {
        self.list.len() == 1
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Volume> {
        self.list.iter()
    }

    /// The books of all volumes: salts, quotas and sums of all can be asked of any.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.list[0].ledger
    }

    /// The volume that a name belongs to, whether it is up or not.
    pub(crate) fn home(&self, name: &str) -> usize {
        if self.is_single() { 0 } else { self.homes.best(name, |_| true).unwrap_or(0) }
    }

    /// The best volume for a name that is up, and not among `passed` (a bit each).
    pub(crate) fn place(&self, name: &str, passed: u64) -> Option<usize> {
        let may = |volume: usize| passed & (1 << volume) == 0 && self.list[volume].is_up();
        if self.is_single() { Some(0).filter(|_| may(0)) } else { self.homes.best(name, may) }
    }

    /// Whether one volume comes before another in the order of a name.
    pub(crate) fn goes_before(&self, name: &str, one: usize, other: usize) -> bool {
        self.homes.best(name, |volume| volume == one || volume == other) == Some(one)
    }

    /// Whether stores are taken, on any volume.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] where they are not.
    pub(crate) fn check_writable(&self) -> Result<()> {
        let mut checked = self.up().map(|(_, volume)| volume.dir.health.check(volume.dir.path()));
        checked.by_ref().find(Result::is_ok).unwrap_or_else(|| self.list[0].dir.health.check(self.list[0].dir.path()))
    }

    /// Volumes that are up; one always is.
    pub(crate) fn up(&self) -> impl Iterator<Item = (usize, &Volume)> {
        self.list.iter().enumerate().filter(|(_, volume)| volume.is_up())
    }
}
