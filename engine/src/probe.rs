//! What a machine and a directory offer, for tools that advise; nothing is left behind.

use std::path::Path;

use crate::error::{Error, Result};
pub use crate::ring::RingReport;
use crate::status::MediumStatus;

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
pub fn directory(dir: &Path) -> Result<MediumStatus> {
    crate::volume::survey_status(dir)
}

/// Who owns a directory at this moment: `pid 4711`; `None` when no engine does. Changes nothing.
///
/// # Errors
/// [`crate::Error::Io`]. A directory that no engine has ever opened is owned by nobody.
pub fn owner(dir: &Path) -> Result<Option<String>> {
    crate::volume::owner(dir)
}

/// Number and bytes of the files that are kept to be overwritten: disk space beside the objects. Works while an engine runs.
///
/// # Errors
/// [`crate::Error::Io`].
pub fn spares(dir: &Path) -> Result<(u64, u64)> {
    let spares = dir.join(crate::volume::STATE_DIR).join(crate::volume::SPARES_DIR);
    let failed = |error: &std::io::Error| Error::file("readdir", &spares, error);
    let mut entries = match std::fs::read_dir(&spares) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((0, 0)),
        entries => entries.map_err(|error| failed(&error))?,
    };
    entries.try_fold((0, 0), |(count, bytes), entry| match entry.and_then(|entry| entry.metadata()) {
        Ok(metadata) => Ok((count + 1, bytes + metadata.len())),
        // It was taken meanwhile.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok((count, bytes)),
        Err(error) => Err(failed(&error)),
    })
}
