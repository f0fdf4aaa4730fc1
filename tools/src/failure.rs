//! How a subcommand ends: exit codes, messages, and what to do about them.

use std::path::Path;

use saltern_bench as bench;

/// A subcommand that ran to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Exit code 0.
    Clean,
    /// It found something wrong: exit code 3.
    Problems,
}

/// A subcommand that did not.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

/// The operation failed.
const FAILED: u8 = 1;
/// Wrong usage; clap uses the same.
const USAGE: u8 = 2;
/// 128 + SIGINT, as shells have it.
pub(crate) const INTERRUPTED: u8 = 130;

impl Failure {
    pub(crate) fn new(message: impl ToString) -> Self {
        Self { code: FAILED, message: message.to_string(), hint: None }
    }

    /// What clap could not see to be wrong.
    pub(crate) fn usage(message: impl ToString) -> Self {
        Self { code: USAGE, message: message.to_string(), hint: Some("see `saltern COMMAND --help`".into()) }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What a directory cannot be used for, and why.
    pub(crate) fn directory(dir: &Path, error: &std::io::Error) -> Self {
        let failure = Self::new(format_args!("{}: {error}", dir.display()));
        match error.kind() {
            std::io::ErrorKind::NotFound => failure.hint("check the path; the directory has to exist"),
            std::io::ErrorKind::PermissionDenied => failure.hint("run as the user who owns the directory"),
            std::io::ErrorKind::NotADirectory => failure.hint("name the directory that holds the files"),
            _ => failure,
        }
    }
}

impl From<saltern::Error> for Failure {
    fn from(error: saltern::Error) -> Self {
        let hint = match &error {
            saltern::Error::RingUnavailable { .. } => Some("`saltern doctor DIR` shows what is missing"),
            saltern::Error::VolumeOwned { .. } => Some("commands that only read work beside it"),
            saltern::Error::Io { errno, .. } => io_hint(*errno as i32),
            _ => None,
        };
        let failure = Self::new(error);
        hint.into_iter().fold(failure, Self::hint)
    }
}

impl From<bench::Error> for Failure {
    fn from(error: bench::Error) -> Self {
        let message = error.to_string();
        match error {
            bench::Error::Engine(error) => error.into(),
            bench::Error::Usage(_) => Self { code: USAGE, message, hint: Some("see `saltern bench --help`".into()) },
            bench::Error::Interrupted => {
                Self { code: INTERRUPTED, message, hint: Some("the scratch directory was removed".into()) }
            }
            bench::Error::NoSpace { .. } => {
                Self::new(message).hint("pass a smaller --total, or --dir on a disk with more room")
            }
            bench::Error::Io { source, .. } => {
                let hint = source.raw_os_error().and_then(io_hint);
                hint.into_iter().fold(Self::new(message), Self::hint)
            }
            bench::Error::Gpu(_) => {
                Self::new(message).hint("`saltern doctor` shows what is missing; `--target gpu-sim` needs no GPU")
            }
            bench::Error::Stuck { .. } | bench::Error::MemoryKept => {
                Self::new(message).hint("look for disk errors with `dmesg`")
            }
            _ => Self::new(message),
        }
    }
}

fn io_hint(errno: i32) -> Option<&'static str> {
    use nix::errno::Errno;
    Some(match Errno::from_raw(errno) {
        Errno::EACCES | Errno::EPERM => "check the permissions, and whether a sandbox forbids the call",
        Errno::ENOENT => "check the path; the directory has to exist",
        Errno::ENOTDIR => "name the directory that holds the files",
        Errno::EROFS => "choose a directory on a file system that is mounted writable",
        Errno::ENOSPC | Errno::EDQUOT => "free some room, or choose a directory on another disk",
        Errno::EMFILE | Errno::ENFILE => "raise the open-file limit, for example with `ulimit -n 65536`",
        Errno::ENOMEM => "raise the memlock limit (`ulimit -l unlimited`), or use less memory",
        Errno::ENOSYS => "io_uring needs Linux 5.19 or later, and a sandbox that allows it",
        Errno::EIO => "look for disk errors with `dmesg`",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_hints() {
        assert_eq!(Failure::from(bench::Error::Interrupted).code, INTERRUPTED);
        let usage = Failure::from(bench::Error::Usage("x".into()));
        assert_eq!((usage.code, usage.message.as_str()), (USAGE, "x"));
        let closed = Failure::from(saltern::Error::Closed);
        assert_eq!((closed.code, closed.hint), (FAILED, None));
        let missing = Failure::directory(Path::new("/x"), &std::io::ErrorKind::NotFound.into());
        assert!(missing.message.starts_with("/x: ") && missing.hint.is_some());
    }
}
