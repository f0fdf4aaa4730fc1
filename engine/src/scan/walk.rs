//! Walking a volume's directory, or two levels of shard directories, with several threads.
//!
//! Reading names is serial in the kernel (a directory has one lock and one position), looking at the files is not: so
//! threads take turns in reading some hundred names, and look at them side by side.

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

/// One name, as the walk passes it on.
pub(crate) enum Seen<'a> {
    /// A regular file by its name's type, not looked at yet; path relative to the volume.
    File { path: &'a str, stat: &'a dyn Fn() -> Result<FileStat, Errno> },
    /// Something that cannot be an object, with the reason.
    Foreign { path: &'a str, reason: &'static str },
}

/// Names read by one thread in its turn.
struct Chunk {
    prefix: Arc<str>,
    dir: Arc<OwnedFd>,
    text: String,
    /// End of each name in `text`, and what is known of it.
    names: Vec<(usize, Kind)>,
}

#[derive(Clone, Copy)]
enum Kind {
    File,
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

    /// Runs on `threads` threads (this one among them); each gets a visitor of its own, which sees every name once.
    pub(crate) fn run<V: FnMut(Seen<'_>) -> Result<()> + Send>(
        &self,
        threads: usize,
        visitor: impl Fn() -> V + Sync,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        std::thread::scope(|scope| {
            for _ in 1..threads {
                let work = || self.work(visitor(), &|_| {});
                // A thread that cannot be had is no error: the others do its work.
                let _ = std::thread::Builder::new().name("saltern-scan".into()).spawn_scoped(scope, work);
            }
            self.work(visitor(), progress);
        });
        progress(self.seen());
        self.failed.lock().take().map_or(Ok(()), Err)
    }

    fn work(&self, mut visit: impl FnMut(Seen<'_>) -> Result<()>, progress: &dyn Fn(u64)) {
        let mut spare = String::new();
        while let Some(chunk) = self.next_chunk(std::mem::take(&mut spare)) {
            let mut start = 0;
            let mut path = String::with_capacity(256);
            for (end, kind) in &chunk.names {
                let name = &chunk.text[start..*end];
                start = *end;
                path.clear();
                path.push_str(&chunk.prefix);
                path.push_str(name);
                let seen = match kind {
                    Kind::File => Seen::File { path: &path, stat: &|| stat_at(chunk.dir.as_fd(), name) },
                    Kind::Foreign(reason) => Seen::Foreign { path: &path, reason },
                };
                if let Err(error) = visit(seen) {
                    self.fail(error);
                    return;
                }
            }
            progress(self.seen.fetch_add(chunk.names.len() as u64, Ordering::Relaxed) + chunk.names.len() as u64);
            spare = chunk.text;
        }
    }

    fn fail(&self, error: Error) {
        self.failed.lock().get_or_insert(error);
        self.levels.lock().clear();
    }

    /// Reads the next names, whichever directory they are in.
    fn next_chunk(&self, mut text: String) -> Option<Chunk> {
        text.clear();
        let mut levels = self.levels.lock();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            let level = levels.last_mut()?;
            let mut chunk = Chunk {
                prefix: level.prefix.clone(),
                dir: level.dir.clone(),
                text,
                names: Vec::with_capacity(CHUNK_NAMES),
            };
            let mut below = Vec::new();
            let mut ended = false;
            while chunk.names.len() < CHUNK_NAMES {
                match level.names.next() {
                    None => {
                        ended = true;
                        break;
                    }
                    Some(Ok(entry)) => self.sort_in(level.depth, &entry, &mut chunk, &mut below),
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
            self.descend(&mut levels, &mut chunk, below);
            if chunk.names.is_empty() {
                text = chunk.text;
                continue;
            }
            return Some(chunk);
        }
    }

    /// Sorts one name into files, directories to walk, and what is foreign.
    fn sort_in(&self, depth: usize, entry: &nix::dir::Entry, chunk: &mut Chunk, below: &mut Vec<(String, usize)>) {
        let raw = entry.file_name().to_bytes();
        let is_state = depth == 0 && raw == STATE_DIR.as_bytes();
        if raw == b"." || raw == b".." || is_state {
            return;
        }
        let mut add = |name: &str, kind| {
            chunk.text.push_str(name);
            chunk.names.push((chunk.text.len(), kind));
        };
        let Ok(name) = std::str::from_utf8(raw) else {
            return add(&String::from_utf8_lossy(raw), Kind::Foreign("its name is not UTF-8"));
        };
        match entry.file_type() {
            Some(Type::File) => add(name, Kind::File),
            // The file system does not tell in the listing: statx will.
            None => add(name, Kind::File),
            Some(Type::Directory) => {
                let shard = name.len() == 2 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                if self.layout.is_sharded() && depth < SHARD_DEPTH && shard {
                    below.push((format!("{}{name}/", chunk.prefix), depth + 1));
                } else {
                    add(name, Kind::Foreign("a directory"));
                }
            }
            Some(Type::Symlink) => add(name, Kind::Foreign("a symbolic link; links are not followed")),
            Some(_) => add(name, Kind::Foreign("not a regular file")),
        }
    }

    fn descend(&self, levels: &mut Vec<Level>, chunk: &mut Chunk, below: Vec<(String, usize)>) {
        for (prefix, depth) in below {
            let name = &prefix[chunk.prefix.len()..prefix.len() - 1];
            let opened = nix::fcntl::openat(&*chunk.dir, name, OPEN_DIR, Mode::empty())
                .and_then(|fd| self.level(fd, prefix.as_str().into(), depth));
            match opened {
                Ok(level) => levels.push(level),
                Err(Errno::ENOENT) => {}
                Err(_) => {
                    chunk.text.push_str(name);
                    chunk.names.push((chunk.text.len(), Kind::Foreign("a directory that cannot be opened")));
                }
            }
        }
    }
}
