//! The engine's errors as Python exceptions.

use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use saltern::Error;

create_exception!(saltern, SalternError, PyException, "Base of all errors of the engine.");
create_exception!(saltern, ConfigError, SalternError, "An option is not usable; the text names it.");
create_exception!(
    saltern,
    InvalidKey,
    SalternError,
    "The parts make no key, or one that has no file name in the layout."
);
create_exception!(saltern, NotFound, SalternError, "There is no such object (a miss).");
create_exception!(saltern, Full, SalternError, "The object does not fit: delete or evict, then try again.");
create_exception!(saltern, OverQuota, Full, "The object does not fit into the quota of its salt.");
create_exception!(saltern, NotAdmitted, SalternError, "The object was not used often enough of late to be written.");
create_exception!(saltern, TooLarge, SalternError, "The object is larger than max_object_mb; it will never fit.");
create_exception!(saltern, Pinned, SalternError, "The object is in use and was not deleted.");
create_exception!(saltern, WrongSize, SalternError, "The buffer does not fit the object; nothing was written into it.");
create_exception!(saltern, TimedOut, SalternError, "The deadline passed. The kernel may still use the memory.");
create_exception!(saltern, Closed, SalternError, "The engine is closed.");
create_exception!(saltern, VolumeOwned, SalternError, "Another engine owns the directory.");
create_exception!(
    saltern,
    IoError,
    SalternError,
    "A system call failed, or a file is damaged; `errno` where there is one."
);

/// Adds the exceptions to the module.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("SalternError", py.get_type::<SalternError>())?;
    module.add("ConfigError", py.get_type::<ConfigError>())?;
    module.add("InvalidKey", py.get_type::<InvalidKey>())?;
    module.add("NotFound", py.get_type::<NotFound>())?;
    module.add("Full", py.get_type::<Full>())?;
    module.add("OverQuota", py.get_type::<OverQuota>())?;
    module.add("NotAdmitted", py.get_type::<NotAdmitted>())?;
    module.add("TooLarge", py.get_type::<TooLarge>())?;
    module.add("Pinned", py.get_type::<Pinned>())?;
    module.add("WrongSize", py.get_type::<WrongSize>())?;
    module.add("TimedOut", py.get_type::<TimedOut>())?;
    module.add("Closed", py.get_type::<Closed>())?;
    module.add("VolumeOwned", py.get_type::<VolumeOwned>())?;
    module.add("IoError", py.get_type::<IoError>())
}

/// The exception for an error.
pub(crate) fn raise(error: &Error) -> PyErr {
    let text = error.to_string();
    match error {
        Error::Config { .. } | Error::RingUnavailable { .. } | Error::LengthMismatch { .. } => {
            ConfigError::new_err(text)
        }
        Error::Key(_) | Error::Name(_) => InvalidKey::new_err(text),
        Error::NotFound => NotFound::new_err(text),
        Error::Full { .. } | Error::QueueFull { .. } | Error::PoolExhausted { .. } => Full::new_err(text),
        Error::OverQuota { .. } => OverQuota::new_err(text),
        Error::NotAdmitted { .. } => NotAdmitted::new_err(text),
        Error::TooLarge { .. } => TooLarge::new_err(text),
        Error::Pinned { .. } => Pinned::new_err(text),
        Error::WrongSize { .. } => WrongSize::new_err(text),
        Error::TimedOut { .. } => TimedOut::new_err(text),
        Error::Closed => Closed::new_err(text),
        Error::Device { .. } | Error::NotAttached => SalternError::new_err(text),
        Error::VolumeOwned { .. } => VolumeOwned::new_err(text),
        other => {
            let raised = IoError::new_err(text);
            if let Some(errno) = other.errno() {
                Python::attach(|py| {
                    // An exception takes attributes; if it would not, its text still says all.
                    let _ = raised.value(py).setattr("errno", errno);
                });
            }
            raised
        }
    }
}
