//! The places that the suites run in: each adapter with each of its layouts, on one volume and on several.
//!
//! A [`Cell`] is one of them, a [`Mount`] its directories in one test, a [`Host`] what is mounted there: an adapter, which is called
//! through its trait, as a daemon calls it.

use std::fs;
use std::ops::Deref;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

use saltern::{
    Adapter, AdapterUsage, Buffer, Class, Config, DeleteReport, Discovery, Engine, Error, FsAdapter, Layout, Listener,
    LoadReport, LookupReport, NixlDynamicAdapter, ObjectKey, Opener, Status, StoreReport, Ticket,
};

use crate::disk::{Disk, assert_books_of, file_name, unfinished};
use crate::scratch::Scratch;
use crate::talk::{beside, over};

/// A capacity that is never reached, for adapters that need one.
const AMPLE: u64 = 1 << 40;

/// An adapter, by its layout, and a number of volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// Decides which adapter it is.
    pub layout: Layout,
    /// Directories.
    pub volumes: usize,
}

impl Cell {
    /// Whether it is the adapter for directories that others write to, which needs a capacity and asks the disk.
    pub fn is_shared(self) -> bool {
        !matches!(self.layout, Layout::Fs | Layout::Fs3)
    }

    /// `full` in the simplest cell, `less` in the others: for tests whose size matters for one place, and costs too much for all.
    pub fn sized<T>(self, full: T, less: T) -> T {
        if self == (Self { layout: Layout::Fs, volumes: 1 }) { full } else { less }
    }
}

/// A cell's directories; they go when this is dropped.
pub struct Mount {
    /// What is mounted.
    pub cell: Cell,
    dirs: Vec<PathBuf>,
    scratch: Scratch,
}

impl Mount {
    /// Of directories in the scratch directory, beside which there is room for other things; none exists yet.
    pub fn new(cell: Cell, scratch: Scratch) -> Self {
        Self::below(cell, scratch, "volume")
    }

    /// As [`Mount::new`], with this path as the first, and the others beside it.
    pub fn below(cell: Cell, scratch: Scratch, path: &str) -> Self {
        Self { cell, dirs: beside(&scratch.join(path), cell.volumes), scratch }
    }

    /// All directories.
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// A path beside the volumes.
    pub fn join(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// A path in each volume.
    pub fn each(&self, name: &str) -> Vec<PathBuf> {
        self.dirs.iter().map(|dir| dir.join(name)).collect()
    }

    /// As [`crate::config`], as the adapter needs it.
    pub fn config(&self) -> Config {
        let mut config = over(&self.dirs);
        config.layout = self.cell.layout;
        if self.cell.is_shared() {
            (config.discovery, config.capacity_bytes) = (Discovery::ScanAndAsk, Some(AMPLE));
        }
        config
    }

    /// Opens with [`Mount::config`].
    pub fn open(&self) -> Host {
        self.open_as(self.config())
    }

    /// Opens with this configuration.
    pub fn open_as(&self, config: Config) -> Host {
        self.try_open(config).expect("open")
    }

    /// Opens with this configuration.
    ///
    /// # Errors
    /// The adapter's answer.
    pub fn try_open(&self, config: Config) -> Result<Host, Error> {
        if self.cell.is_shared() {
            NixlDynamicAdapter::open(config).map(Host::new)
        } else {
            FsAdapter::open(config).map(Host::new)
        }
    }

    /// Opens with options.
    pub fn open_with(&self, opener: Opener) -> Host {
        let opened = if self.cell.is_shared() {
            NixlDynamicAdapter::open_with(opener).map(Host::new)
        } else {
            FsAdapter::open_with(opener).map(Host::new)
        };
        opened.expect("open")
    }

    /// The file of a key: where it is, or where [`Mount::plant`] puts it, on whichever volume.
    pub fn file(&self, key: &ObjectKey) -> PathBuf {
        let name = file_name(self.cell.layout, key);
        let is_there = |dir: &&PathBuf| fs::symlink_metadata(dir.join(&name)).is_ok();
        let other = name.bytes().fold(0, |sum, byte| sum + usize::from(byte)) % self.dirs.len();
        self.dirs.iter().find(is_there).unwrap_or(&self.dirs[other]).join(name)
    }

    /// As [`Mount::file`], in a directory that is there.
    pub fn ground(&self, key: &ObjectKey) -> PathBuf {
        let path = self.file(key);
        fs::create_dir_all(path.parent().expect("below a volume")).expect("mkdir");
        path
    }

    /// Another program stores an object, as LMCache does: in a file of its own, which takes the name.
    pub fn plant(&self, key: &ObjectKey, bytes: &[u8]) {
        let path = self.ground(key);
        let unfinished = path.with_file_name("planted.tmp");
        fs::write(&unfinished, bytes).and_then(|()| fs::rename(unfinished, path)).expect("write and rename");
    }

    /// As [`Mount::plant`], of zeroes that are nowhere on the disk.
    pub fn plant_sparse(&self, key: &ObjectKey, bytes: u64) {
        fs::File::create(self.ground(key)).and_then(|file| file.set_len(bytes)).expect("write");
    }

    /// What is on disk, of all volumes together.
    pub fn disk(&self) -> Disk {
        let mut disk = Disk::default();
        self.dirs.iter().for_each(|dir| disk.add(Disk::read(dir, self.cell.layout)));
        disk
    }

    /// As [`crate::assert_books`].
    pub fn assert_books(&self, engine: &Engine) -> Disk {
        assert_books_of(engine, &self.dirs, self.cell.layout)
    }

    /// Names of the unfinished stores.
    pub fn unfinished(&self) -> Vec<PathBuf> {
        self.dirs.iter().flat_map(|dir| unfinished(dir)).collect()
    }
}

/// A mounted adapter. What a host calls goes through the adapter's trait, everything else to the engine beneath.
#[derive(Debug)]
pub struct Host(Box<dyn Adapter>);

impl Host {
    fn new(adapter: impl Adapter + 'static) -> Self {
        Self(Box::new(adapter))
    }

    /// The adapter, to be called as hosts call it.
    pub fn adapter(&self) -> &dyn Adapter {
        &*self.0
    }

    /// As [`Adapter::store`].
    pub fn store(&self, batch: Vec<(ObjectKey, Buffer)>) -> Ticket<StoreReport> {
        let (keys, buffers): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        self.0.store(&keys, buffers).expect("they pair")
    }

    /// As [`Adapter::load`].
    pub fn load(&self, batch: Vec<(ObjectKey, Buffer)>) -> Ticket<LoadReport> {
        let (keys, buffers): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        self.0.load(&keys, buffers).expect("they pair")
    }

    /// As [`Adapter::lookup_and_pin`].
    pub fn lookup_and_pin(&self, keys: &[ObjectKey]) -> Ticket<LookupReport> {
        self.0.lookup_and_pin(keys)
    }

    /// As [`Adapter::unpin`].
    pub fn unpin(&self, keys: &[ObjectKey]) -> usize {
        self.0.unpin(keys)
    }

    /// As [`Adapter::delete`].
    pub fn delete(&self, keys: &[ObjectKey]) -> Ticket<DeleteReport> {
        self.0.delete(keys)
    }

    /// As [`Adapter::usage`].
    pub fn usage(&self) -> AdapterUsage {
        self.0.usage()
    }

    /// As [`Adapter::status`].
    pub fn status(&self) -> Status {
        self.0.status()
    }

    /// As [`Adapter::subscribe`].
    ///
    /// # Errors
    /// The adapter's answer.
    pub fn subscribe(&self, listener: Arc<dyn Listener>) -> Result<(), Error> {
        self.0.subscribe(listener)
    }

    /// As [`Adapter::event_fd`].
    pub fn event_fd(&self, class: Class) -> BorrowedFd<'_> {
        self.0.event_fd(class)
    }

    /// As [`Adapter::close`].
    pub fn close(self) {
        self.0.close();
    }
}

impl Deref for Host {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        self.0.engine()
    }
}

/// What takes a host's calls: an engine, or an adapter over one.
pub trait Called {
    /// As [`Engine::store`].
    fn stores(&self, batch: Vec<(ObjectKey, Buffer)>) -> Ticket<StoreReport>;
    /// As [`Engine::load`].
    fn loads(&self, batch: Vec<(ObjectKey, Buffer)>) -> Ticket<LoadReport>;
    /// As [`Engine::lookup_and_pin`].
    fn looks_up(&self, keys: &[ObjectKey]) -> Ticket<LookupReport>;
    /// As [`Engine::unpin`].
    fn unpins(&self, keys: &[ObjectKey]) -> usize;
    /// As [`Engine::delete`].
    fn deletes(&self, keys: &[ObjectKey]) -> Ticket<DeleteReport>;
}

macro_rules! called {
    ($($host:ty),*) => {$(
        impl Called for $host {
            fn stores(&self, batch: Vec<(ObjectKey, Buffer)>) -> Ticket<StoreReport> {
                self.store(batch)
            }

            fn loads(&self, batch: Vec<(ObjectKey, Buffer)>) -> Ticket<LoadReport> {
                self.load(batch)
            }

            fn looks_up(&self, keys: &[ObjectKey]) -> Ticket<LookupReport> {
                self.lookup_and_pin(keys)
            }

            fn unpins(&self, keys: &[ObjectKey]) -> usize {
                self.unpin(keys)
            }

            fn deletes(&self, keys: &[ObjectKey]) -> Ticket<DeleteReport> {
                self.delete(keys)
            }
        }
    )*};
}

called!(Engine, &Engine, Arc<Engine>, Host, &Host, Arc<Host>);
