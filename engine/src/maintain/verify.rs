//! Reading every object of a directory, and comparing it with its stamp.
//!
//! ```text
//! names, sizes -> threads: open -> pieces in the ring, one an object at a time -> checksum -> same file still? -> stamp
//! ```
//!
//! Each thread has a ring, and as many objects in flight as it has buffers: the device's queue is as deep as a load's. An engine may
//! work on the directory meanwhile, unless something is to be changed: what it takes away or stores is not found fault with.
//!
//! Repair moves what is damaged to `.saltern/quarantine/`, into a directory of its own for each run, and never deletes.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crc_fast::Digest;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;
use serde::Serialize;
use slab::Slab;

use super::dir::Dir;
use super::object::{TRIES_MAX, is_same};
use super::{Progress, Refusal, io_error};
use crate::error::{Error, Result};
use crate::integrity::{ALGORITHM, STAMP_NAME, Stamp};
use crate::key::ObjectKey;
use crate::layout::Layout;
use crate::mem::{IoBuffer, Pool};
use crate::open::register;
use crate::ring::{BufferRegistry, Completion, Op, Request, Ring, Wait};
use crate::scan::{Foreign, Found, survey};
use crate::sys::{FileStat, get_attribute, set_attribute, stat_fd};
use crate::volume::STATE_DIR;

/// Bytes of one read.
const PIECE_BYTES: usize = 1 << 20;

/// Objects in flight, if nothing else is asked for. A device's queue of 64, and half as many that are being opened and summed: with 64 the device was idle
/// now and then (ARCHITECTURE.md has the figures).
pub const DEPTH_DEFAULT: usize = 96;

/// Where reads begin and what they are a multiple of, where the file system does not tell.
const ALIGN_DEFAULT: usize = 4096;

/// Longest attribute that is told apart from none.
const ATTRIBUTE_BYTES: usize = 256;

/// Where repair moves things, in the directory.
const QUARANTINE: &str = "quarantine";

/// What to do beside reading.
#[derive(Debug, Clone, Copy)]
pub struct Verify {
    /// Threads that read, with a ring each.
    pub threads: usize,
    /// Objects in flight, on all threads together.
    pub depth: usize,
    /// Move what is damaged to the quarantine.
    pub repair: bool,
    /// Give those a stamp that have none.
    pub stamp: bool,
}

impl Default for Verify {
    fn default() -> Self {
        Self { threads: 2, depth: DEPTH_DEFAULT, repair: false, stamp: false }
    }
}

/// What is wrong with an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "trouble", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Trouble {
    /// Its bytes are not those that were stored.
    Checksum,
    /// Its file is longer or shorter than what was stored.
    Size {
        /// What was stored.
        stored_bytes: u64,
        /// What is there.
        found_bytes: u64,
    },
    /// It cannot be read.
    Unreadable {
        /// What the kernel says.
        error: String,
    },
    /// It did not stop changing while it was read.
    Changing,
}

/// A damaged object.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// Its key.
    pub key: ObjectKey,
    /// Its path relative to the directory.
    pub name: String,
    /// What is wrong.
    pub trouble: Trouble,
    /// Where repair has moved it, relative to the directory.
    pub moved_to: Option<String>,
}

/// What was read, and found.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Verification {
    /// Objects that were read to their end.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of these objects, those whose bytes are what their stamp says.
    pub right: u64,
    /// Those without a stamp: nothing can be said of them.
    pub unstamped: u64,
    /// Of those without, how many were given one.
    pub stamped: u64,
    /// Objects that went away, or were replaced, before they were read.
    pub gone: u64,
    /// What is damaged, by name.
    pub damaged: Vec<Finding>,
    /// What could not be moved or stamped.
    pub refused: Vec<Refusal>,
    /// Entries that are not objects of the layout.
    pub foreign: Foreign,
    /// Unfinished stores.
    pub unfinished: u64,
    /// Time that reading took, without that for names and sizes, and for memory.
    pub seconds: f64,
    /// Whether it was stopped before its end.
    pub is_cancelled: bool,
}

/// Reads and checks every object of a directory. Blocks, until done or until `cancel` is set; `progress` gets bytes.
///
/// # Errors
/// With `repair` or `stamp` [`Error::VolumeOwned`]; [`Error::RingUnavailable`]; [`Error::Io`] for the directory. What is wrong with an
/// object is no error.
pub fn verify(
    path: &Path,
    layout: Layout,
    options: Verify,
    cancel: &AtomicBool,
    progress: Progress<'_>,
) -> Result<Verification> {
    let dir = Dir::open(path)?;
    let _lock = if options.repair || options.stamp { Some(dir.lock()?) } else { None };
    let found = survey(path, layout, options.threads, &|seen| progress(seen, 0))?;
    let threads = options.threads.max(1);
    let memory = Memory::new(options.depth.div_ceil(threads).max(1), threads)?;
    let work = Work {
        dir: &dir,
        layout,
        stamp: options.stamp,
        objects: &found.objects,
        total: found.objects.iter().map(|object| object.bytes).sum(),
        next: AtomicUsize::new(0),
        read: AtomicU64::new(0),
        all: Mutex::new(Verification { foreign: found.foreign, unfinished: found.unfinished, ..Default::default() }),
        cancel,
        progress,
    };
    let start = Instant::now();
    let run = || -> Result<()> { Reader::new(&work, &memory)?.run() };
    std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(run)).collect();
        let mine = run();
        helpers.into_iter().try_for_each(|helper| helper.join().unwrap_or(Err(Error::ShardFailed))).and(mine)
    })?;
    let mut all = work.all.into_inner();
    all.seconds = start.elapsed().as_secs_f64();
    all.is_cancelled = cancel.load(Ordering::Relaxed);
    all.damaged.sort_by(|a, b| a.name.cmp(&b.name));
    if options.repair {
        quarantine(&dir, &mut all)?;
    }
    Ok(all)
}

/// Moves what is damaged out of the way.
fn quarantine(dir: &Dir, all: &mut Verification) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    for finding in all.damaged.iter_mut().filter(|finding| finding.trouble != Trouble::Changing) {
        let file = finding.name.rsplit('/').next().unwrap_or_default();
        let to = format!("{STATE_DIR}/{QUARANTINE}/{now}/{file}");
        match dir.rename(&finding.name, &to) {
            Ok(()) => finding.moved_to = Some(to),
            Err(errno) => all.refused.push(Refusal::new(&finding.name, format!("not moved: {}", errno.desc()))),
        }
    }
    if all.damaged.iter().any(|finding| finding.moved_to.is_some()) { dir.sync() } else { Ok(()) }
}

/// The buffers of all threads, known to their rings: else the kernel pins their pages for each read. Lives longer than
/// the rings.
struct Memory {
    /// Of each thread.
    depth: usize,
    pool: Pool,
    registry: BufferRegistry,
}

impl Memory {
    fn new(depth: usize, threads: usize) -> Result<Self> {
        let (pool, registry) = (Pool::new(threads * depth * PIECE_BYTES)?, BufferRegistry::new());
        register(&registry, &pool)?;
        Ok(Self { depth, pool, registry })
    }
}

/// What the threads share.
struct Work<'a> {
    dir: &'a Dir,
    layout: Layout,
    stamp: bool,
    objects: &'a [Found],
    total: u64,
    next: AtomicUsize,
    read: AtomicU64,
    all: Mutex<Verification>,
    cancel: &'a AtomicBool,
    progress: Progress<'a>,
}

/// An object being read.
struct Active {
    object: usize,
    name: String,
    fd: Rc<OwnedFd>,
    stat: FileStat,
    /// What its attribute holds: nothing, a stamp, or something that this version does not know.
    stamp: Option<Option<Stamp>>,
    align: usize,
    digest: Digest,
    offset: u64,
    buffer: IoBuffer,
    tries: u32,
}

impl Active {
    /// Bytes that the next read has to bring.
    fn wanted(&self) -> usize {
        (self.stat.bytes - self.offset).min(PIECE_BYTES as u64) as usize
    }
}

/// One thread's part.
struct Reader<'a> {
    work: &'a Work<'a>,
    ring: Ring,
    free: Vec<IoBuffer>,
    actives: Slab<Active>,
    again: Vec<(usize, u32)>,
}

impl<'a> Reader<'a> {
    fn new(work: &'a Work<'a>, memory: &Memory) -> Result<Self> {
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC)
            .map_err(|errno| Error::io("eventfd", "(verify)", errno))?;
        let free = (0..memory.depth)
            .map(|_| memory.pool.alloc(PIECE_BYTES).map(|buffer| IoBuffer::new(buffer.into())))
            .collect::<Result<_>>()?;
        let mut ring = Ring::new(memory.depth, ALIGN_DEFAULT, Arc::new(wake))?;
        ring.adopt(&memory.registry);
        Ok(Self { work, ring, free, actives: Slab::with_capacity(memory.depth), again: Vec::new() })
    }

    fn run(mut self) -> Result<()> {
        let mut ended = VecDeque::new();
        loop {
            while !self.free.is_empty()
                && !self.work.cancel.load(Ordering::Relaxed)
                && let Some((object, tries)) = self.next()
            {
                self.begin(object, tries)?;
            }
            if self.actives.is_empty() {
                return Ok(());
            }
            let wait = if ended.is_empty() { Wait::Forever } else { Wait::No };
            self.ring.submit(wait, |completion| ended.push_back(completion))?;
            // One at a time: while its bytes are summed, the device has what comes next.
            if let Some(completion) = ended.pop_front() {
                self.end_piece(completion)?;
            }
        }
    }

    fn next(&mut self) -> Option<(usize, u32)> {
        self.again.pop().or_else(|| {
            let object = self.work.next.fetch_add(1, Ordering::Relaxed);
            (object < self.work.objects.len()).then_some((object, 0))
        })
    }

    /// Opens an object, and asks for its first piece.
    fn begin(&mut self, object: usize, tries: u32) -> Result<()> {
        let name = self.work.layout.encode(&self.work.objects[object].key)?;
        match self.open(object, &name, tries) {
            Ok(Some(active)) if active.stat.bytes == 0 => self.finish(active),
            Ok(Some(active)) => {
                let at = self.actives.insert(active);
                self.ask(at);
                Ok(())
            }
            Ok(None) => {
                self.work.all.lock().gone += 1;
                Ok(())
            }
            Err(errno) => {
                self.find(object, name, Trouble::Unreadable { error: errno.desc().into() });
                Ok(())
            }
        }
    }

    fn open(&mut self, object: usize, name: &str, tries: u32) -> Result<Option<Active>, Errno> {
        let dir = self.work.dir;
        let fd = match dir.open_file(name, OFlag::O_DIRECT) {
            Err(Errno::EINVAL) => dir.open_file(name, OFlag::empty()),
            other => other,
        };
        let fd = match fd {
            Ok(fd) => fd,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let stat = stat_fd(fd.as_fd())?;
        if !stat.is_regular {
            return Ok(None);
        }
        let mut raw = [0; ATTRIBUTE_BYTES];
        let stamp = get_attribute(fd.as_fd(), STAMP_NAME, &mut raw)?.map(|len| Stamp::parse(&raw[..len]));
        let align = stat.direct_align.map_or(ALIGN_DEFAULT, |(_, offset)| offset.max(1) as usize);
        let Some(buffer) = self.free.pop() else { unreachable!("the caller has looked") };
        let (name, digest) = (name.to_owned(), Digest::new(ALGORITHM));
        Ok(Some(Active { object, name, fd: Rc::new(fd), stat, stamp, align, digest, offset: 0, buffer, tries }))
    }

    fn ask(&mut self, at: usize) {
        let active = &self.actives[at];
        let len = active.wanted().next_multiple_of(active.align).min(PIECE_BYTES);
        let span = Some(active.buffer.span(0, len));
        let request = Request { op: Op::Read, fd: active.fd.clone(), span, offset: active.offset, token: at };
        assert!(self.ring.push(request).is_ok(), "a ring has as many slots as there are buffers");
    }

    fn end_piece(&mut self, completion: Completion) -> Result<()> {
        let at = completion.token;
        let active = &mut self.actives[at];
        let wanted = active.wanted();
        match completion.result {
            Ok(bytes) if bytes >= wanted => {
                let Active { digest, buffer, .. } = active;
                buffer.span(0, wanted).with_bytes(|bytes| digest.update(bytes));
                active.offset += wanted as u64;
                let read = self.work.read.fetch_add(wanted as u64, Ordering::Relaxed) + wanted as u64;
                (self.work.progress)(read.min(self.work.total), self.work.total);
                if active.offset < active.stat.bytes {
                    self.ask(at);
                    return Ok(());
                }
                let active = self.actives.remove(at);
                self.finish(active)
            }
            // It was cut: another file, or a damaged one, which the next look tells.
            Ok(_) => {
                let active = self.actives.remove(at);
                self.retry(active);
                Ok(())
            }
            Err(errno) => {
                let Active { object, name, buffer, .. } = self.actives.remove(at);
                self.free.push(buffer);
                self.find(object, name, Trouble::Unreadable { error: errno.desc().into() });
                Ok(())
            }
        }
    }

    /// All bytes are there.
    fn finish(&mut self, active: Active) -> Result<()> {
        let at = |op| io_error(op, self.work.dir.path().join(&active.name));
        if !is_same(self.work.dir, &active.name, &active.stat).map_err(at("statx"))? {
            self.retry(active);
            return Ok(());
        }
        let Active { object, name, fd, stat, stamp, digest, buffer, .. } = active;
        self.free.push(buffer);
        let checksum = digest.finalize();
        let mut all = self.work.all.lock();
        all.objects += 1;
        all.bytes += stat.bytes;
        let trouble = match stamp {
            Some(Some(stamp)) if stamp.bytes() != stat.bytes => {
                Trouble::Size { stored_bytes: stamp.bytes(), found_bytes: stat.bytes }
            }
            Some(Some(stamp)) if stamp.checksum() != checksum => Trouble::Checksum,
            Some(Some(_)) => {
                all.right += 1;
                return Ok(());
            }
            Some(None) | None => {
                all.unstamped += 1;
                // An attribute that this version does not know is somebody's: it stays.
                if self.work.stamp && stamp.is_none() {
                    match set_attribute(fd.as_fd(), STAMP_NAME, Stamp::new(stat.bytes, checksum).as_bytes()) {
                        Ok(()) => all.stamped += 1,
                        Err(errno) => all.refused.push(Refusal::new(&name, format!("not stamped: {}", errno.desc()))),
                    }
                }
                return Ok(());
            }
        };
        drop(all);
        self.find(object, name, trouble);
        Ok(())
    }

    /// The file is not what it was: once more, from the start.
    fn retry(&mut self, active: Active) {
        let Active { object, name, buffer, tries, .. } = active;
        self.free.push(buffer);
        if tries + 1 < TRIES_MAX {
            self.again.push((object, tries + 1));
        } else {
            self.find(object, name, Trouble::Changing);
        }
    }

    fn find(&self, object: usize, name: String, trouble: Trouble) {
        let key = self.work.objects[object].key.clone();
        self.work.all.lock().damaged.push(Finding { key, name, trouble, moved_to: None });
    }
}
