//! Whether what is found on disk may be served unchecked.
//!
//! ```text
//! DIR/.saltern/running-<boot id>   made when an engine opens the directory, removed when it has closed it
//! DIR/.saltern/closed-<time>-<time>  made when it has closed it, removed when one opens it: when its snapshot was written, when a name in DIR was changed last
//! DIR/.saltern/unverified          since the time of this file objects have to be checked before their first use
//! ```
//!
//! A mark `running-` of another boot says that the machine went down under an engine, without a chance to write what was
//! in flight. From then on (`unverified`) each object that was found is checked before it is served for the first time:
//! against its checksum, whatever [`crate::Integrity`] says of loads. What has none and is older than that is dropped,
//! where this volume's objects have checksums: programs that write without syncing leave torn files behind. Where integrity is
//! off nothing can be checked, and the order of writes has to be enough (ARCHITECTURE.md says where it is). The file goes when
//! everything that there is has been checked.
//!
//! A mark `closed-` vouches for what that snapshot says of files, as long as the directory's own time of change is still that one: then
//! nobody, an engine or another program, has made, removed or renamed a file in it since. The kernel keeps that time, and nobody can set it. What it does not tell is that
//! somebody has written into a file.
//!
//! All are names without contents: a journal makes them durable before the objects that are published later, so no sync is
//! needed on ext4 and xfs.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use parking_lot::Mutex;

use super::lock::LOCK_FILE;
use crate::sys::{FileStat, stat_at};

const RUNNING: &str = "running-";
const UNVERIFIED: &str = "unverified";
const CLOSED: &str = "closed-";

/// Where Linux tells the number of its boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// See the module. Thread-safe.
#[derive(Debug)]
pub(crate) struct Trust {
    state: OwnedFd,
    mark: String,
    suspect: Option<Suspect>,
    /// When the snapshot was written that is vouched for.
    vouched_ns: Option<u64>,
    /// To be put back if no engine comes to use the directory.
    before: Before,
    /// What this engine leaves has to be checked as well.
    is_withdrawn: AtomicBool,
}

/// What can be said of a directory that was closed, in nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed {
    /// When its snapshot was written.
    pub(crate) written_ns: u64,
    /// When a name in it was changed last.
    pub(crate) changed_ns: u64,
}

/// The marks that were there.
#[derive(Debug)]
struct Before {
    closed: Option<String>,
    /// An engine of this boot was killed.
    is_marked: bool,
    /// An engine uses the directory.
    is_past: AtomicBool,
}

#[derive(Debug)]
struct Suspect {
    /// What was written later needs no check.
    since_ns: u64,
    /// Hashes of keys whose objects were checked, or stored since.
    proven: Mutex<HashSet<u64>>,
}

impl Trust {
    /// Marks the directory as in use, and sees what was left. `state` is the directory of the engine's own files; the lock is
    /// held. `boot_id` replaces the machine's. `changed_ns` is the time of change of the directory above it.
    pub(crate) fn begin(state: OwnedFd, boot_id: Option<&str>, changed_ns: u64) -> Result<Self, Errno> {
        let read = || std::fs::read_to_string(BOOT_ID).unwrap_or_default();
        let id: String = boot_id.map_or_else(read, str::to_owned).chars().filter(char::is_ascii_graphic).collect();
        let mark = format!("{RUNNING}{}", id.replace('/', "-"));
        let old = marks(state.as_fd(), RUNNING)?;
        let closed = marks(state.as_fd(), CLOSED)?;
        // Without a number every boot is another one.
        let mut is_suspect = old.iter().any(|old| *old != mark) || (id.is_empty() && !old.is_empty());
        if is_suspect {
            touch(state.as_fd(), UNVERIFIED)?;
        }
        match touch(state.as_fd(), &mark) {
            // No inode is free: another name of the lock's file needs none.
            Err(Errno::ENOSPC | Errno::EDQUOT) => linkat(&state, LOCK_FILE, &state, mark.as_str(), AtFlags::empty())?,
            touched => touched?,
        }
        // One that stays keeps the doubt.
        for old in old.iter().filter(|old| **old != mark) {
            remove(state.as_fd(), old);
        }
        // What cannot be removed would be there still when it is not true any more.
        let is_removed = closed.iter().all(|mark| remove(state.as_fd(), mark));
        let closed = closed.into_iter().next().filter(|_| is_removed && old.is_empty());
        let vouched_ns = closed.as_deref().and_then(parse_closed).filter(|closed| closed.changed_ns == changed_ns);
        let before = Before { closed, is_marked: old.contains(&mark), is_past: AtomicBool::new(false) };
        let since_ns = match stat_at(state.as_fd(), UNVERIFIED) {
            Ok(stat) => {
                is_suspect = true;
                stat.modified_ns
            }
            Err(Errno::ENOENT) => 0,
            Err(errno) => return Err(errno),
        };
        let suspect = is_suspect.then(|| Suspect { since_ns, proven: Mutex::default() });
        let vouched_ns = vouched_ns.filter(|_| suspect.is_none()).map(|closed| closed.written_ns);
        Ok(Self { state, mark, suspect, vouched_ns, before, is_withdrawn: AtomicBool::new(false) })
    }

    /// Whether the snapshot of this time says what files there are, and nothing but their contents can have changed since.
    pub(crate) fn vouches(&self, written_ns: u64) -> bool {
        self.vouched_ns == Some(written_ns)
    }

    /// From now on objects come and go.
    pub(crate) fn start(&self) {
        self.before.is_past.store(true, Ordering::Release);
    }

    /// Whether objects are to be checked before their first use.
    pub(crate) fn is_limited(&self) -> bool {
        self.suspect.is_some()
    }

    /// Whether the object of this key has to be checked before it is served.
    pub(crate) fn doubts(&self, hash: u64) -> bool {
        self.suspect.as_ref().is_some_and(|suspect| !suspect.proven.lock().contains(&hash))
    }

    /// Whether a file is of the time that is in doubt.
    pub(crate) fn is_old(&self, stat: &FileStat) -> bool {
        self.suspect.as_ref().is_some_and(|suspect| stat.modified_ns <= suspect.since_ns)
    }

    /// The object of this key is right.
    pub(crate) fn prove(&self, hash: u64) {
        if let Some(suspect) = &self.suspect {
            suspect.proven.lock().insert(hash);
        }
    }

    /// The next engine has to check what it finds: a sync has failed.
    pub(crate) fn withdraw(&self) {
        self.is_withdrawn.store(true, Ordering::Release);
        if let Err(errno) = touch(self.state.as_fd(), UNVERIFIED) {
            tracing::warn!(%errno, "could not note that objects have to be checked");
        }
    }

    /// The engine has closed the directory. `present` gives the hashes of the keys whose objects are there, if all are known; it is
    /// asked where that matters. `closed` is what can be vouched for.
    pub(crate) fn end(&self, closed: Option<Closed>, present: impl FnOnce() -> Option<Vec<u64>>) {
        if let Some(suspect) = &self.suspect
            && !self.is_withdrawn.load(Ordering::Acquire)
        {
            let proven = suspect.proven.lock();
            if present().is_some_and(|present| present.iter().all(|hash| proven.contains(hash))) {
                remove(self.state.as_fd(), UNVERIFIED);
            }
        }
        if let Some(Closed { written_ns, changed_ns }) = closed
            && let Err(errno) = touch(self.state.as_fd(), &format!("{CLOSED}{written_ns}-{changed_ns}"))
        {
            tracing::warn!(%errno, "a mark could not be made; the next start looks at every file");
        }
        remove(self.state.as_fd(), &self.mark);
    }
}

impl Drop for Trust {
    /// The directory was not used: something else has kept the engine from starting.
    fn drop(&mut self) {
        if self.before.is_past.load(Ordering::Acquire) {
            return;
        }
        if let Some(closed) = &self.before.closed {
            let _ = touch(self.state.as_fd(), closed);
        }
        if !self.before.is_marked {
            remove(self.state.as_fd(), &self.mark);
        }
    }
}

fn parse_closed(mark: &str) -> Option<Closed> {
    let (written_ns, changed_ns) = mark.strip_prefix(CLOSED)?.split_once('-')?;
    Some(Closed { written_ns: written_ns.parse().ok()?, changed_ns: changed_ns.parse().ok()? })
}

/// Removes a mark; false when it is there still.
fn remove(state: BorrowedFd<'_>, name: &str) -> bool {
    match unlinkat(state, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => true,
        Err(errno) => {
            tracing::warn!(name, %errno, "a mark could not be removed; more is checked than has to be");
            false
        }
    }
}

fn touch(state: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    openat(state, name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map(drop)
}

/// The marks that begin so.
fn marks(state: BorrowedFd<'_>, prefix: &str) -> Result<Vec<String>, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut listing = nix::dir::Dir::openat(state, ".", flags, Mode::empty())?;
    let mut marks = Vec::new();
    for entry in listing.iter() {
        if let Ok(name) = entry?.file_name().to_str()
            && name.starts_with(prefix)
        {
            marks.push(name.to_owned());
        }
    }
    Ok(marks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::open_dir;

    #[test]
    fn another_boot_limits_trust_until_everything_is_proven() {
        let scratch = tempfile::tempdir_in(".").unwrap();
        let begin = |boot| Trust::begin(open_dir(scratch.path()).unwrap(), Some(boot), 1).unwrap();
        let names = || {
            let names = std::fs::read_dir(scratch.path()).unwrap();
            let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        let kill = |trust: Trust| {
            trust.start();
            drop(trust);
        };
        // A kill, and a clean close: the machine has stayed up.
        kill(begin("a"));
        let again = begin("a");
        assert!(!again.is_limited() && !again.doubts(1));
        again.end(None, || panic!("nobody asks"));
        assert_eq!(names(), [""; 0]);

        // The machine goes down.
        kill(begin("a"));
        let after = begin("b");
        assert!(after.is_limited() && after.doubts(1));
        after.prove(1);
        assert!(!after.doubts(1) && after.doubts(2));
        assert_eq!(names(), ["running-b", "unverified"]);
        after.end(None, || Some(vec![1, 2]));
        // Not everything was looked at: the doubt stays, over clean closes, too.
        assert_eq!(names(), ["unverified"]);
        let later = begin("c");
        assert!(later.doubts(1) && later.doubts(2));
        later.prove(1);
        later.end(None, || None);
        assert_eq!(names(), ["unverified"]);
        let last = begin("c");
        last.prove(1);
        last.end(None, || Some(vec![1]));
        assert_eq!(names(), [""; 0]);
    }

    #[test]
    fn a_snapshot_is_vouched_for_until_the_directory_is_changed_or_used() {
        let scratch = tempfile::tempdir_in(".").unwrap();
        let state = || open_dir(scratch.path()).unwrap();
        let begin = |boot, changed_ns| Trust::begin(state(), Some(boot), changed_ns).unwrap();
        let close = |trust: Trust, written_ns, changed_ns| {
            trust.start();
            trust.end(Some(Closed { written_ns, changed_ns }), || None);
        };
        let first = begin("a", 5);
        assert!(!first.vouches(17));
        close(first, 17, 5);
        // After a reboot, too: it was closed before. Something else kept this engine from starting.
        let second = begin("b", 5);
        assert!(second.vouches(17) && !second.vouches(16));
        drop(second);
        assert!(!begin("b", 6).vouches(17), "somebody has changed a name");
        let third = begin("b", 5);
        assert!(third.vouches(17));
        third.start();
        drop(third);
        // That one was killed, so the files may be others by now.
        let fourth = begin("b", 5);
        assert!(!fourth.vouches(17));
        fourth.start();
        fourth.end(None, || None);
        // It has saved nothing.
        let last = begin("b", 5);
        assert!(!last.vouches(17));
        close(last, 18, 5);
        // Killed between the two marks.
        touch(state().as_fd(), "running-b").unwrap();
        let after = begin("b", 5);
        assert!(!after.vouches(18));
        close(after, 19, 5);
        // What is no mark of ours is in nobody's way.
        std::fs::create_dir(scratch.path().join("closed-1")).unwrap();
        assert!(!begin("b", 5).vouches(19));
    }

    #[test]
    fn an_engine_that_does_not_start_leaves_what_it_found() {
        let scratch = tempfile::tempdir_in(".").unwrap();
        let begin = |boot| Trust::begin(open_dir(scratch.path()).unwrap(), Some(boot), 5).unwrap();
        drop(begin("a"));
        assert!(!begin("b").is_limited(), "nobody has used the directory");
        let killed = begin("b");
        killed.start();
        drop(killed);
        drop(begin("b"));
        assert!(begin("c").is_limited(), "the machine went down under one that has");
    }

    #[test]
    fn a_failed_sync_leaves_doubt_to_the_next() {
        let scratch = tempfile::tempdir_in(".").unwrap();
        let begin = || Trust::begin(open_dir(scratch.path()).unwrap(), Some("a"), 1).unwrap();
        let first = begin();
        first.withdraw();
        first.end(None, || panic!("nobody asks"));
        assert!(begin().doubts(7));
    }
}
