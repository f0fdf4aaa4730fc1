//! Building a ring: what the kernel has is used, what is missing is named.

use std::io;

use io_uring::{IoUring, Probe, opcode};
use nix::errno::Errno;
use serde::Serialize;

use crate::error::{Error, Result};

/// A ring, and the names of the features that it got.
pub(super) struct Built {
    pub(super) uring: IoUring,
    pub(super) features: Vec<&'static str>,
}

/// What this kernel offers, for `doctor`.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct RingReport {
    /// `uname -r`.
    pub kernel: String,
    /// Features that a shard's ring gets: `single-issuer`, `defer-taskrun`, ...
    pub features: Vec<&'static str>,
    /// Whether one registration of buffers can serve all rings (6.12).
    pub clone_buffers: bool,
}

const NEEDED: [(u8, &str); 5] = [
    (opcode::Read::CODE, "READ"),
    (opcode::Write::CODE, "WRITE"),
    (opcode::ReadFixed::CODE, "READ_FIXED"),
    (opcode::WriteFixed::CODE, "WRITE_FIXED"),
    (opcode::Fsync::CODE, "FSYNC"),
];

/// Builds a ring for `limit` requests in flight, with the best flags that the kernel takes.
pub(super) fn build(limit: usize) -> Result<Built> {
    // The submission queue holds every request at once; the completion queue twice that: it cannot overflow.
    let entries = (limit as u32).next_power_of_two();
    let mut features = Vec::new();
    let best = IoUring::builder()
        .setup_clamp()
        .setup_cqsize(entries * 2)
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(entries);
    let uring = match best {
        Ok(uring) => {
            features.extend(["single-issuer", "defer-taskrun"]);
            uring
        }
        Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => {
            IoUring::builder().setup_clamp().setup_cqsize(entries * 2).build(entries).map_err(|e| unavailable(&e))?
        }
        Err(error) => return Err(unavailable(&error)),
    };
    if !uring.params().is_feature_ext_arg() || !uring.params().is_feature_nodrop() {
        return Err(too_old("the features EXT_ARG and NODROP"));
    }
    if (uring.params().cq_entries() as usize) < limit || (uring.params().sq_entries() as usize) < limit {
        return Err(Error::Config { option: "depth", reason: format!("the kernel's rings are too small for {limit}") });
    }
    let mut probe = Probe::new();
    uring.submitter().register_probe(&mut probe).map_err(|_| too_old("IORING_REGISTER_PROBE"))?;
    if let Some((_, name)) = NEEDED.iter().find(|(code, _)| !probe.is_supported(*code)) {
        return Err(too_old(name));
    }
    Ok(Built { uring, features })
}

fn too_old(missing: &str) -> Error {
    Error::RingUnavailable {
        cause: format!("kernel {} lacks {missing}", kernel()),
        remedy: "Linux 5.15 or newer is needed, 6.1 or newer recommended",
    }
}

fn unavailable(error: &io::Error) -> Error {
    let remedy = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM | Errno::EACCES) => {
            "it is forbidden here: set kernel.io_uring_disabled=0 (sysctl), and allow io_uring_setup, io_uring_enter and \
             io_uring_register in the container's seccomp profile"
        }
        Some(Errno::ENOSYS) => "the kernel is built without it, or a sandbox hides it: use Linux 5.15 or newer",
        Some(Errno::ENOMEM) => "raise the locked-memory limit (ulimit -l, LimitMEMLOCK=infinity)",
        Some(Errno::EMFILE | Errno::ENFILE) => "raise the open-file limit (ulimit -n, LimitNOFILE=)",
        _ => "see `saltern doctor`",
    };
    Error::RingUnavailable { cause: format!("io_uring_setup: {error}"), remedy }
}

/// `uname -r`.
fn kernel() -> String {
    nix::sys::utsname::uname().map_or("?".into(), |name| name.release().to_string_lossy().into_owned())
}

/// What this kernel offers.
///
/// # Errors
/// [`Error::RingUnavailable`] as a shard would meet it.
pub(crate) fn report() -> Result<RingReport> {
    let built = build(8)?;
    let clone_buffers = IoUring::new(1).is_ok_and(|source| super::buffers::can_clone(&source, &built.uring));
    Ok(RingReport { kernel: kernel(), features: built.features, clone_buffers })
}
