//! Whether a volume takes part. It does from its opening to its loss, and does not come back before the engine is opened again.
//! Several reasons take it out (see `loss.rs`); the one that is counted here are reads that fail: what syncs and changes
//! of names answer is the business of `health.rs`.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;

/// Reads that fail in a row, without one that succeeds between, that a volume is taken out for. One bad sector must not be enough, nor a
/// host that asks for its object again a few times.
pub(crate) const READ_ERRORS_MAX: u32 = 32;

/// See the module. Thread-safe.
#[derive(Debug, Default)]
pub(crate) struct Presence {
    lost: OnceLock<String>,
    /// Reads that have failed since the last that succeeded.
    read_errors: AtomicU32,
}

impl Presence {
    /// Whether the volume takes part.
    pub(crate) fn is_up(&self) -> bool {
        self.lost.get().is_none()
    }

    /// Why it does not.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.lost.get().map(String::as_str)
    }

    /// Something was read.
    pub(crate) fn read(&self) {
        // Mostly there are none, and then nothing is written.
        if self.read_errors.load(Ordering::Relaxed) > 0 {
            self.read_errors.store(0, Ordering::Relaxed);
        }
    }

    /// Something could not be read. Gives the reason to take the volume out, when there is one.
    pub(crate) fn read_failed(&self, op: &str, errno: Errno) -> Option<String> {
        let is_of_the_disk = matches!(
            errno,
            Errno::EIO
                | Errno::ENODEV
                | Errno::ENXIO
                | Errno::ESHUTDOWN
                | Errno::EUCLEAN
                | Errno::ENOTCONN
                | Errno::ESTALE
                | Errno::EREMOTEIO
                | Errno::ENOMEDIUM
        );
        if !is_of_the_disk {
            return None;
        }
        let errors = self.read_errors.fetch_add(1, Ordering::Relaxed) + 1;
        (errors >= READ_ERRORS_MAX)
            .then(|| format!("{errors} reads in a row have failed, the last: {op}: {}", errno.desc()))
    }

    /// Marks the volume; false when it was marked before.
    pub(super) fn lose(&self, reason: String) -> bool {
        self.lost.set(reason).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_in_a_row_are_enough_and_a_success_between_them_is_not() {
        let presence = Presence::default();
        for round in 0..3 {
            for n in 1..READ_ERRORS_MAX {
                assert_eq!(presence.read_failed("read", Errno::EIO), None, "{round}, {n}");
                assert_eq!(presence.read_failed("open", Errno::EMFILE), None, "says nothing of the disk");
            }
            presence.read();
        }
        (1..READ_ERRORS_MAX).for_each(|_| drop(presence.read_failed("read", Errno::EIO)));
        let reason = presence.read_failed("open", Errno::ENODEV).expect("enough");
        assert!(reason.contains("32") && reason.contains("open"), "{reason}");
        assert!(presence.is_up(), "to take it out is for others");
        assert!(presence.lose("one".into()) && !presence.lose("two".into()) && !presence.is_up());
        assert_eq!(presence.reason(), Some("one"));
    }
}
