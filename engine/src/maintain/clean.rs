//! Finding, and taking away, what interrupted programs have left.
//!
//! | kind | where | whose |
//! |---|---|---|
//! | unfinished store | `.saltern/tmp/` | ours; the next engine to open the directory would take it away as well |
//! | spare | `.saltern/spares/` | ours: files kept to be overwritten, which is faster than making new ones |
//! | half-written state | `.saltern/*.new` | ours |
//! | leftover | beside the objects | LMCache's: `<object>.tmp`, `<object>.tmp.<hex>`, and `<object>` with `.tmp` for its extension |
//!
//! Leftovers of other programs count only from an age on: their program may run. What merely contains `.tmp` is left alone (a salt
//! may): a leftover's name is one of the three forms around the name of an object, and no object's name itself.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::dir::Dir as Listing;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode as FileMode;
use serde::Serialize;

use super::dir::Dir;
use super::{Mode, Progress, Refusal, io_error};
use crate::error::Result;
use crate::layout::Layout;
use crate::scan::{Names, Walk};
use crate::sys::{FileStat, stat_at};
use crate::volume::{SPARES_DIR, STATE_DIR, TEMP_DIR};

const OPEN_DIR: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC).union(OFlag::O_NOFOLLOW);

/// What kind of leftover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum LeftoverKind {
    /// A store of an engine that did not end.
    Unfinished,
    /// A file kept to be overwritten.
    Spare,
    /// A half-written file of the engine's own.
    State,
    /// A temporary file of LMCache.
    Lmcache,
}

impl LeftoverKind {
    /// All that there are.
    pub const ALL: [Self; 4] = [Self::Unfinished, Self::Spare, Self::State, Self::Lmcache];

    /// The name in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unfinished => "unfinished",
            Self::Spare => "spare",
            Self::State => "state",
            Self::Lmcache => "lmcache",
        }
    }
}

/// A file to be taken away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Leftover {
    /// What it is.
    pub kind: LeftoverKind,
    /// Path relative to the directory.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Time since its last change.
    pub age_seconds: u64,
}

/// What a cleaning has done, or would do.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct Cleaning {
    /// The files that were removed; in a dry run, those that would be.
    pub removed: Vec<Leftover>,
    /// Leftovers of LMCache that are too young.
    pub young: Vec<Leftover>,
    /// Files that could not be removed.
    pub refused: Vec<Refusal>,
}

/// Takes leftovers away. Those of LMCache have to be at least `older_than`. Blocks.
///
/// # Errors
/// With [`Mode::Apply`] [`crate::Error::VolumeOwned`]; [`crate::Error::Io`] for a directory that cannot be read.
pub fn clean(
    path: &Path,
    kinds: &[LeftoverKind],
    older_than: Duration,
    mode: Mode,
    progress: Progress<'_>,
) -> Result<Cleaning> {
    let dir = Dir::open(path)?;
    let _lock = if mode == Mode::Apply { Some(dir.lock()?) } else { None };
    let mut found = Vec::new();
    if let Some(state) = dir.state()? {
        let mut list = |kind: LeftoverKind, below: &str, wanted: fn(&str) -> bool| {
            if kinds.contains(&kind) { list_state(path, &state, below, kind, wanted, &mut found) } else { Ok(()) }
        };
        list(LeftoverKind::Unfinished, TEMP_DIR, |_| true)?;
        list(LeftoverKind::Spare, SPARES_DIR, |_| true)?;
        list(LeftoverKind::State, "", |name| name.ends_with(".new"))?;
    }
    if kinds.contains(&LeftoverKind::Lmcache) {
        list_lmcache(path, &mut found, progress)?;
    }
    found.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
    let is_young = |left: &Leftover| left.kind == LeftoverKind::Lmcache && left.age_seconds < older_than.as_secs();
    let (young, old): (Vec<_>, Vec<_>) = found.into_iter().partition(is_young);
    let mut cleaning = Cleaning { young, ..Cleaning::default() };
    for leftover in old {
        if mode == Mode::Apply
            && let Err(errno) = dir.remove(&leftover.name)
        {
            if errno != Errno::ENOENT {
                cleaning.refused.push(Refusal::new(&leftover.name, errno.desc()));
            }
            continue;
        }
        cleaning.removed.push(leftover);
    }
    Ok(cleaning)
}

fn leftover(kind: LeftoverKind, name: String, stat: &FileStat) -> Leftover {
    let now_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let age_seconds = now_ns.saturating_sub(stat.modified_ns) / 1_000_000_000;
    Leftover { kind, name, bytes: stat.bytes, age_seconds }
}

/// The files of a directory of the engine's own.
fn list_state(
    path: &Path,
    state: &OwnedFd,
    below: &str,
    kind: LeftoverKind,
    wanted: fn(&str) -> bool,
    found: &mut Vec<Leftover>,
) -> Result<()> {
    let at = || path.join(STATE_DIR).join(below);
    let fd = match openat(state, if below.is_empty() { "." } else { below }, OPEN_DIR, FileMode::empty()) {
        Ok(fd) => fd,
        Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(io_error("open", at())(errno)),
    };
    let mut listing = Listing::openat(&fd, ".", OPEN_DIR, FileMode::empty()).map_err(io_error("readdir", at()))?;
    for entry in listing.iter() {
        let entry = entry.map_err(io_error("readdir", at()))?;
        // The engine's own names are text; what is not a file is not the engine's.
        let Ok(name) = entry.file_name().to_str() else { continue };
        if let Ok(stat) = stat_at(fd.as_fd(), name)
            && stat.is_regular
            && wanted(name)
        {
            let separator = if below.is_empty() { "" } else { "/" };
            found.push(leftover(kind, format!("{STATE_DIR}/{below}{separator}{name}"), &stat));
        }
    }
    Ok(())
}

/// Temporary files beside the objects.
fn list_lmcache(path: &Path, found: &mut Vec<Leftover>, progress: Progress<'_>) -> Result<()> {
    let stop = AtomicBool::new(false);
    // The sharded layout descends into what looks like its directories, and lists flat names as well.
    let fd = Dir::open(path)?;
    let walk = Walk::new(nix::unistd::dup(fd.fd()).map_err(io_error("dup", path))?, path, Layout::NixlSharded, &stop)?;
    let all = Mutex::new(Vec::new());
    let visitor = || {
        |names: &Names| {
            for name in names.iter().filter(|name| name.foreign().is_none()) {
                let path = name.path();
                if is_lmcache_leftover(&path)
                    && let Ok(stat) = name.stat()
                    && stat.is_regular
                    && let Ok(mut all) = all.lock()
                {
                    all.push(leftover(LeftoverKind::Lmcache, path.into_owned(), &stat));
                }
            }
            Ok(())
        }
    };
    walk.run(1, || (), visitor, &|seen| progress(seen, 0))?;
    found.append(&mut all.into_inner().unwrap_or_default());
    Ok(())
}

/// Whether a name is that of a temporary file of LMCache's adapters (0.5.6): `fs` puts `.tmp` in place of the extension, `fs_native`
/// behind it, and `nixl_store_dynamic` adds `.tmp.` and a UUID in hexadecimal.
fn is_lmcache_leftover(name: &str) -> bool {
    let is_object = |name: &str| Layout::ALL.iter().any(|layout| layout.decode(name).is_ok());
    if !name.contains(".tmp") || is_object(name) {
        return false;
    }
    if let Some(stem) = name.strip_suffix(".tmp") {
        return is_object(stem) || [".data", ".bin"].iter().any(|extension| is_object(&format!("{stem}{extension}")));
    }
    name.rsplit_once(".tmp.").is_some_and(|(stem, tail)| {
        !tail.is_empty() && tail.bytes().all(|byte| byte.is_ascii_hexdigit()) && is_object(stem)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_forms_of_lmcache_around_an_object_are_leftovers() {
        let hash = "ab".repeat(32);
        let fs = format!("m@0x00000001@0@{hash}@s");
        let nixl = format!("m_00000001_0_{hash}");
        for leftover in [
            format!("{fs}.tmp"),
            format!("{fs}.data.tmp"),
            format!("{nixl}.bin.tmp.0123456789abcdef"),
            format!("ab/ab/{nixl}.bin.tmp.0f"),
            format!("{nixl}@s.bin.tmp"),
        ] {
            assert!(is_lmcache_leftover(&leftover), "{leftover}");
        }
        for other in [
            format!("{fs}.data"),
            // Salts with such names.
            format!("{nixl}@a.tmp.b.bin"),
            format!("m@0x00000001@0@{hash}@a.tmp.data"),
            format!("{nixl}.bin.tmp."),
            format!("{nixl}.bin.tmp.xyz"),
            format!("{nixl}.bin.tmp.0f.tmp"),
            "notes.tmp".into(),
            ".tmp".into(),
            "x.tmp.0f".into(),
        ] {
            assert!(!is_lmcache_leftover(&other), "{other}");
        }
    }
}
