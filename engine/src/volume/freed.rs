//! Room that a file system counts as free and does not give out yet. ext4 gives the blocks of removed files out again once its
//! journal has committed the removal, which takes up to five seconds by itself. A call that finds no other blocks forces a commit
//! and tries again, three times, and can still be too early: the commit is told before the blocks are back. Whoever replaces
//! objects faster than that on a small or nearly full file system then gets ENOSPC from one that says it has room.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::statvfs::fstatvfs;

/// The pauses between the attempts are 1, 2, 4 ms and so on; with so many all of them together are 63 ms, and the syncs.
const ATTEMPTS_MAX: u32 = 6;

/// After attempts that were in vain it is taken at its word for so long: it may lack something that it does not tell of.
const REST: Duration = Duration::from_secs(5);

/// See the module. Thread-safe.
#[derive(Debug)]
pub(super) struct Freed {
    opened: Instant,
    /// Until when, in milliseconds after `opened`, a refusal is taken at its word.
    believed_until_ms: AtomicU64,
}

impl Freed {
    pub(super) fn new() -> Self {
        Self { opened: Instant::now(), believed_until_ms: AtomicU64::new(0) }
    }

    /// Does what needs `bytes` of room, again while the file system refuses although it has them. Blocks then: for a commit of the
    /// file system's journal, and the pauses. `dir` is a directory of that file system that was changed not long ago.
    ///
    /// # Errors
    /// Those of `act`; that of the sync, if it fails: such a file system is in trouble, and to be treated so.
    pub(super) fn until_given<T>(
        &self,
        dir: BorrowedFd<'_>,
        bytes: u64,
        mut act: impl FnMut() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let mut attempts = 0;
        loop {
            let result = act();
            if !matches!(result, Err(Errno::ENOSPC)) {
                if attempts > 0 {
                    tracing::debug!(attempts, "waited for blocks of removed files");
                }
                return result;
            }
            if self.is_believed() || !has_room(dir, bytes) {
                return result;
            }
            if attempts == ATTEMPTS_MAX {
                let until = self.opened.elapsed() + REST;
                self.believed_until_ms.store(until.as_millis() as u64, Ordering::Relaxed);
                return result;
            }
            // The directory's last change is later than the removals, or not much earlier; its commit is theirs.
            nix::unistd::fsync(dir)
                .inspect_err(|errno| tracing::error!(%errno, "fsync, to have the room of removed files"))?;
            std::thread::sleep(Duration::from_millis(1 << attempts));
            attempts += 1;
        }
    }

    fn is_believed(&self) -> bool {
        let until_ms = self.believed_until_ms.load(Ordering::Relaxed);
        (self.opened.elapsed().as_millis() as u64) < until_ms
    }
}

/// Whether the file system says that it has room for so many bytes and another file.
fn has_room(dir: BorrowedFd<'_>, bytes: u64) -> bool {
    let Ok(stat) = fstatvfs(dir) else { return false };
    let free = stat.blocks_available().saturating_mul(stat.fragment_size());
    // Those without a fixed number of inodes say zero of zero.
    let has_inodes = stat.files() == 0 || stat.files_available() > 0;
    free > bytes && has_inodes
}
