//! What a machine and a directory offer, for tools that advise; nothing is left behind.

use std::path::Path;

use crate::error::Result;
pub use crate::ring::RingReport;
use crate::status::VolumeStatus;

/// What io_uring offers here.
///
/// # Errors
/// [`crate::Error::RingUnavailable`] says why there is none, and what to set.
pub fn ring() -> Result<RingReport> {
    crate::ring::report()
}

/// What the file system of a directory takes. Needs write permission: it makes a file without a name.
///
/// # Errors
/// [`crate::Error::Io`].
pub fn directory(dir: &Path) -> Result<VolumeStatus> {
    crate::volume::survey_status(dir)
}
