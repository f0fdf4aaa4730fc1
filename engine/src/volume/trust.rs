//! Whether what is found on disk may be served unchecked.
//!
//! ```text
//! DIR/.saltern/running-<boot id>   made when an engine opens the directory, removed when it has closed it
//! DIR/.saltern/closed-<time>       made when it has closed it with a snapshot of this time, removed when one opens it
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
//! A mark `closed-` vouches for what the snapshot says of files: since then no engine has changed any.
//!
//! All are names without contents: a journal makes them durable before the objects that are published later, so no sync is
//! needed.

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
    /// When the snapshot was written with which the engine before this one closed the directory, if it did.
    closed_with: Option<u64>,
    /// What this engine leaves has to be checked as well.
    is_withdrawn: AtomicBool,
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
    /// held. `boot_id` replaces the machine's.
    pub(crate) fn begin(state: OwnedFd, boot_id: Option<&str>) -> Result<Self, Errno> {
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
        for old in old.iter().filter(|old| **old != mark) {
            unlinkat(&state, old.as_str(), UnlinkatFlags::NoRemoveDir)?;
        }
        for closed in &closed {
            unlinkat(&state, closed.as_str(), UnlinkatFlags::NoRemoveDir)?;
        }
        let closed_with = match (&closed[..], &old[..]) {
            ([one], []) => one[CLOSED.len()..].parse().ok(),
            _ => None,
        };
        let since_ns = match stat_at(state.as_fd(), UNVERIFIED) {
            Ok(stat) => {
                is_suspect = true;
                stat.modified_ns
            }
            Err(Errno::ENOENT) => 0,
            Err(errno) => return Err(errno),
        };
        let suspect = is_suspect.then(|| Suspect { since_ns, proven: Mutex::default() });
        Ok(Self { state, mark, suspect, closed_with, is_withdrawn: AtomicBool::new(false) })
    }

    /// When the snapshot was written, in nanoseconds since 1970, with which the engine before this one closed the directory: what it says of files
    /// was so then, and no engine has changed any since.
    pub(crate) fn closed_with(&self) -> Option<u64> {
        self.closed_with
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

    /// The engine has closed the directory, with the snapshot that it wrote at `saved_ns`, if it did. `present` gives the hashes of the keys whose objects are there, if all are known; it is
    /// asked where that matters.
    pub(crate) fn end(&self, saved_ns: Option<u64>, present: impl FnOnce() -> Option<Vec<u64>>) {
        if let Some(suspect) = &self.suspect
            && !self.is_withdrawn.load(Ordering::Acquire)
        {
            let proven = suspect.proven.lock();
            if present().is_some_and(|present| present.iter().all(|hash| proven.contains(hash))) {
                self.remove(UNVERIFIED);
            }
        }
        if let Some(saved_ns) = saved_ns
            && let Err(errno) = touch(self.state.as_fd(), &format!("{CLOSED}{saved_ns}"))
        {
            tracing::warn!(%errno, "a mark could not be made; the next start looks at every file");
        }
        self.remove(&self.mark);
    }

    fn remove(&self, name: &str) {
        if let Err(errno) = unlinkat(&self.state, name, UnlinkatFlags::NoRemoveDir)
            && errno != Errno::ENOENT
        {
            tracing::warn!(name, %errno, "a mark could not be removed; the next start checks more than it has to");
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
        let begin = |boot| Trust::begin(open_dir(scratch.path()).unwrap(), Some(boot)).unwrap();
        let names = || {
            let names = std::fs::read_dir(scratch.path()).unwrap();
            let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        // A kill, and a clean close: the machine has stayed up.
        drop(begin("a"));
        let again = begin("a");
        assert!(!again.is_limited() && !again.doubts(1));
        again.end(None, || panic!("nobody asks"));
        assert_eq!(names(), [""; 0]);

        // The machine goes down.
        drop(begin("a"));
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
    fn a_snapshot_is_vouched_for_until_an_engine_has_opened_the_directory() {
        let scratch = tempfile::tempdir_in(".").unwrap();
        let begin = |boot| Trust::begin(open_dir(scratch.path()).unwrap(), Some(boot)).unwrap();
        let first = begin("a");
        assert_eq!(first.closed_with(), None);
        first.end(Some(17), || None);
        // After a reboot, too: it was closed before.
        let second = begin("b");
        assert_eq!(second.closed_with(), Some(17));
        drop(second);
        // That one was killed, so the files may be others by now.
        let third = begin("b");
        assert_eq!(third.closed_with(), None);
        third.end(None, || None);
        // It has saved nothing.
        let last = begin("b");
        assert_eq!(last.closed_with(), None);
        last.end(Some(18), || None);
        // Killed between the two marks.
        touch(open_dir(scratch.path()).unwrap().as_fd(), "running-b").unwrap();
        assert_eq!(begin("b").closed_with(), None);
    }

    #[test]
    fn a_failed_sync_leaves_doubt_to_the_next() {
        let scratch = tempfile::tempdir_in(".").unwrap();
        let begin = || Trust::begin(open_dir(scratch.path()).unwrap(), Some("a")).unwrap();
        let first = begin();
        first.withdraw();
        first.end(None, || panic!("nobody asks"));
        assert!(begin().doubts(7));
    }
}
