//! Whether a volume takes stores. Once it does not, it does not until it is opened again: a sync that has failed once says
//! nothing the second time (the kernel marks what it could not write as written), a file system that has turned itself
//! read-only has found damage, and what is written into a directory that is not at its path any more goes nowhere.
//! Loads and deletes go on, as far as the disk takes them.

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::error::{Error, Result};

/// How often stores look whether the directory is still at its path.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// So many changes of names that fail one after the other, without one that succeeds between, are not bad luck: a file system
/// that has shut itself down (xfs) answers EIO to each, for good.
const FAILURES_MAX: u32 = 8;

/// See the module. Thread-safe.
#[derive(Debug)]
pub(crate) struct Health {
    read_only: OnceLock<String>,
    opened: Instant,
    /// When somebody last looked, in milliseconds after `opened`.
    looked_ms: AtomicU64,
    /// Changes of names that have failed since the last that succeeded.
    failures: AtomicU32,
}

impl Health {
    pub(crate) fn new() -> Self {
        Self {
            read_only: OnceLock::new(),
            opened: Instant::now(),
            looked_ms: AtomicU64::new(0),
            failures: AtomicU32::new(0),
        }
    }

    /// Why no stores are taken, if they are not.
    pub(crate) fn read_only(&self) -> Option<&str> {
        self.read_only.get().map(String::as_str)
    }

    /// Takes no stores any more. The first reason counts; false when there was one already.
    pub(crate) fn turn_read_only(&self, reason: String) -> bool {
        let is_first = self.read_only.get().is_none();
        if is_first {
            tracing::error!(reason, "the volume is read-only from now on");
            let _ = self.read_only.set(reason);
        }
        is_first
    }

    /// Takes notice of what a call that writes has answered.
    pub(crate) fn heed(&self, op: &str, name: &str, errno: Errno) {
        match errno {
            Errno::EROFS => {
                self.turn_read_only(format!("the file system has turned read-only ({op} {name})"));
            }
            Errno::EIO | Errno::ENODEV | Errno::ENXIO | Errno::ENOTCONN | Errno::ESHUTDOWN | Errno::ESTALE
                if matches!(op, "create" | "rename") =>
            {
                let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
                if failures >= FAILURES_MAX {
                    let what = format!("{op}: {}", errno.desc());
                    self.turn_read_only(format!(
                        "{failures} changes one after the other have failed, the last: {what}"
                    ));
                }
            }
            _ => {}
        }
    }

    /// A change of names has succeeded.
    pub(crate) fn went_well(&self) {
        if self.failures.load(Ordering::Relaxed) > 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Whether it is time to look at the directory again; true for one caller.
    pub(crate) fn wants_look(&self) -> bool {
        let now_ms = self.opened.elapsed().as_millis() as u64;
        let looked_ms = self.looked_ms.load(Ordering::Relaxed);
        now_ms - looked_ms.min(now_ms) >= LOOK_EVERY.as_millis() as u64
            && self.looked_ms.compare_exchange(looked_ms, now_ms, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// # Errors
    /// [`Error::ReadOnly`] where no stores are taken.
    pub(crate) fn check(&self, dir: &Path) -> Result<()> {
        match self.read_only() {
            None => Ok(()),
            Some(reason) => Err(Error::ReadOnly { dir: dir.into(), reason: reason.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_refuses_everything_is_noticed_and_bad_luck_is_not() {
        let health = Health::new();
        for round in 0..10 * FAILURES_MAX {
            health.heed("create", "x", Errno::EIO);
            if round % (FAILURES_MAX - 1) == 0 {
                health.went_well();
            }
        }
        (0..100).for_each(|_| health.heed("write", "x", Errno::EIO));
        assert_eq!(health.read_only(), None);
        (0..FAILURES_MAX).for_each(|_| health.heed("rename", "x", Errno::EIO));
        assert!(health.read_only().is_some());
    }

    #[test]
    fn the_first_reason_stays() {
        let health = Health::new();
        health.heed("write", "x", Errno::EIO);
        assert!(health.check(Path::new("/d")).is_ok());
        assert!(health.turn_read_only("a sync failed".into()));
        health.heed("write", "x", Errno::EROFS);
        assert_eq!(health.read_only(), Some("a sync failed"));
        let error = health.check(Path::new("/d")).unwrap_err().to_string();
        assert!(error.contains("/d") && error.contains("a sync failed"), "{error}");
    }
}
