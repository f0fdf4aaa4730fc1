//! Walking a volume's directory, or two levels of shard directories, with several threads.
//!
//! Reading names is serial in the kernel (a directory has one lock and one position), looking at the files is not: so
//! threads take turns in reading some hundred names, and look at them side by side.

use std::borrow::Cow;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::sys::{FileStat, stat_at};
use crate::volume::STATE_DIR;

/// Names that a thread takes at a time.
const CHUNK_NAMES: usize = 256;

/// How deep shard directories are.
const SHARD_DEPTH: usize = 2;

const OPEN_DIR: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC).union(OFlag::O_NOFOLLOW);

/// A directory whose names are being read.
struct Level {
    /// `ab/cd/`, or empty.
    prefix: Arc<str>,
    depth: usize,
    /// For looking at files; shared with the threads that do.
    dir: Arc<OwnedFd>,
    names: nix::dir::OwningIter,
}

/// Names of one directory, read by one thread in its turn.
pub(crate) struct Names {
    prefix: Arc<str>,
    dir: Arc<OwnedFd>,
    text: String,
    /// End of each name in `text`, and what is known of it.
    ends: Vec<(usize, Kind)>,
}

/// One of them.
#[derive(Clone, Copy)]
pub(crate) struct Name<'a> {
    of: &'a Names,
    name: &'a str,
    kind: Kind,
}

impl Names {
    pub(crate) fn iter(&self) -> impl Iterator<Item = Name<'_>> {
        let mut start = 0;
        self.ends.iter().map(move |(end, kind)| {
            let name = &self.text[start..*end];
            start = *end;
            Name { of: self, name, kind: *kind }
        })
    }

    fn add(&mut self, name: &str, kind: Kind) {
        self.text.push_str(name);
        self.ends.push((self.text.len(), kind));
    }
}

impl<'a> Name<'a> {
    /// Relative to the volume.
    pub(crate) fn path(&self) -> Cow<'a, str> {
        let prefix = &*self.of.prefix;
        if prefix.is_empty() { Cow::Borrowed(self.name) } else { Cow::Owned([prefix, self.name].concat()) }
    }

    /// Why it cannot be an object, where its type tells.
    pub(crate) fn foreign(&self) -> Option<&'static str> {
        match self.kind {
            Kind::File | Kind::Untold => None,
            Kind::Foreign(reason) => Some(reason),
        }
    }

    /// Whether it is a regular file, as the listing says.
    pub(crate) fn is_file(&self) -> bool {
        matches!(self.kind, Kind::File)
    }

    /// Looks at the file: its type may not have been known.
    pub(crate) fn stat(&self) -> Result<FileStat, Errno> {
        stat_at(self.of.dir.as_fd(), self.name)
    }
}

#[derive(Clone, Copy)]
enum Kind {
    /// A regular file, as the listing says.
    File,
    /// The listing does not say.
    Untold,
    Foreign(&'static str),
}

pub(crate) struct Walk<'a> {
    root: PathBuf,
    layout: Layout,
    levels: Mutex<Vec<Level>>,
    failed: Mutex<Option<Error>>,
    seen: AtomicU64,
    stop: &'a AtomicBool,
}

impl<'a> Walk<'a> {
    /// Walks the open directory `fd`, called `root` in errors. Ends early when `stop` becomes true.
    pub(crate) fn new(fd: OwnedFd, root: &Path, layout: Layout, stop: &'a AtomicBool) -> Result<Self> {
        let walk = Self {
            root: root.into(),
            layout,
            levels: Mutex::default(),
            failed: Mutex::default(),
            seen: AtomicU64::new(0),
            stop,
        };
        walk.levels.lock().push(walk.level(fd, "".into(), 0).map_err(|errno| Error::io("readdir", root, errno))?);
        Ok(walk)
    }

    fn level(&self, fd: OwnedFd, prefix: Arc<str>, depth: usize) -> Result<Level, Errno> {
        let names = Dir::openat(&fd, ".", OPEN_DIR, Mode::empty())?.into_iter();
        Ok(Level { prefix, depth, dir: Arc::new(fd), names })
    }

    /// Names read so far.
    pub(crate) fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    /// Runs on `threads` threads (this one among them, once it has done `first`); each gets a visitor of its own, and every name is seen once.
    pub(crate) fn run<V: FnMut(&Names) -> Result<()> + Send>(
        &self,
        threads: usize,
        first: impl FnOnce(),
        visitor: impl Fn() -> V + Sync,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        std::thread::scope(|scope| {
            for _ in 1..threads {
                let work = || self.work(visitor(), &|_| {});
                // A thread that cannot be had is no error: the others do its work.
                let _ = std::thread::Builder::new().name("saltern-scan".into()).spawn_scoped(scope, work);
            }
            first();
            self.work(visitor(), progress);
        });
        progress(self.seen());
        self.failed.lock().take().map_or(Ok(()), Err)
    }

    fn work(&self, mut visit: impl FnMut(&Names) -> Result<()>, progress: &dyn Fn(u64)) {
        let mut spare = String::new();
        while let Some(names) = self.next_names(std::mem::take(&mut spare)) {
            if let Err(error) = visit(&names) {
                self.fail(error);
                return;
            }
            let count = names.ends.len() as u64;
            progress(self.seen.fetch_add(count, Ordering::Relaxed) + count);
            spare = names.text;
        }
    }

    fn fail(&self, error: Error) {
        self.failed.lock().get_or_insert(error);
        self.levels.lock().clear();
    }

    /// Reads the next names, whichever directory they are in.
    fn next_names(&self, mut text: String) -> Option<Names> {
        text.clear();
        let mut levels = self.levels.lock();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            let level = levels.last_mut()?;
            let mut names = Names {
                prefix: level.prefix.clone(),
                dir: level.dir.clone(),
                text,
                ends: Vec::with_capacity(CHUNK_NAMES),
            };
            let mut below = Vec::new();
            let mut ended = false;
            while names.ends.len() < CHUNK_NAMES {
                match level.names.next() {
                    None => {
                        ended = true;
                        break;
                    }
                    Some(Ok(entry)) => self.sort_in(level.depth, &entry, &mut names, &mut below),
                    Some(Err(errno)) => {
                        let path = self.root.join(&*level.prefix);
                        self.failed.lock().get_or_insert(Error::io("readdir", path, errno));
                        levels.clear();
                        return None;
                    }
                }
            }
            if ended {
                levels.pop();
            }
            self.descend(&mut levels, &mut names, below);
            if names.ends.is_empty() {
                text = names.text;
                continue;
            }
            return Some(names);
        }
    }

    /// Sorts one name into files, directories to walk, and what is foreign.
    fn sort_in(&self, depth: usize, entry: &nix::dir::Entry, names: &mut Names, below: &mut Vec<(String, usize)>) {
        let raw = entry.file_name().to_bytes();
        let is_state = depth == 0 && raw == STATE_DIR.as_bytes();
        if raw == b"." || raw == b".." || is_state {
            return;
        }
        let Ok(name) = std::str::from_utf8(raw) else {
            return names.add(&String::from_utf8_lossy(raw), Kind::Foreign("its name is not UTF-8"));
        };
        match entry.file_type() {
            Some(Type::File) => names.add(name, Kind::File),
            // Statx will tell.
            None => names.add(name, Kind::Untold),
            Some(Type::Directory) => {
                let shard = name.len() == 2 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                if self.layout.is_sharded() && depth < SHARD_DEPTH && shard {
                    below.push((format!("{}{name}/", names.prefix), depth + 1));
                } else {
                    names.add(name, Kind::Foreign("a directory"));
                }
            }
            Some(Type::Symlink) => names.add(name, Kind::Foreign("a symbolic link; links are not followed")),
            Some(_) => names.add(name, Kind::Foreign("not a regular file")),
        }
    }

    fn descend(&self, levels: &mut Vec<Level>, names: &mut Names, below: Vec<(String, usize)>) {
        for (prefix, depth) in below {
            let name = &prefix[names.prefix.len()..prefix.len() - 1];
            let opened = nix::fcntl::openat(&*names.dir, name, OPEN_DIR, Mode::empty())
                .and_then(|fd| self.level(fd, prefix.as_str().into(), depth));
            match opened {
                Ok(level) => levels.push(level),
                Err(Errno::ENOENT) => {}
                Err(_) => names.add(name, Kind::Foreign("a directory that cannot be opened")),
            }
        }
    }
}
