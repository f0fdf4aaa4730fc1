//! Renaming the objects of a directory from one layout to another, in place.
//!
//! One rename an object, which the file system makes whole or not at all; no other state is kept. So a migration that was killed is
//! taken up by asking for it again, and undone by asking for the way back. For that, a name has to tell which layout it is of: an object
//! whose new name would read as an object of the old layout is refused (names of three fields with a salt and names of four
//! fields can be alike).
//!
//! Refused, and left as they are: objects without a name in the new layout, objects whose new name is taken, and the above.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use nix::errno::Errno;
use serde::Serialize;

use super::dir::Dir;
use super::{Mode, Progress, Refusal, io_error};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::saved;
use crate::scan::survey;
use crate::snapshot::{Contents, FILE, FILE_BYTES_MAX, Snapshot};

/// What a migration has done, or would do.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Migration {
    /// The old layout.
    pub from: Layout,
    /// The new one.
    pub to: Layout,
    /// Objects of the old layout.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of these, renamed; in a dry run, those that would be.
    pub renamed: u64,
    /// Objects that were of the new layout already.
    pub already: u64,
    /// Objects that were left as they are.
    pub refused: Vec<Refusal>,
    /// Entries that are objects of neither.
    pub foreign: u64,
    /// An example: old and new name.
    pub example: Option<(String, String)>,
    /// Time it took.
    pub seconds: f64,
}

/// Renames the objects of a directory. Blocks; uses `threads` threads to read the directory.
///
/// # Errors
/// [`Error::Config`] when the layouts are the same; with [`Mode::Apply`] [`Error::VolumeOwned`]; [`Error::Io`]: what is renamed by then
/// stays so, and another call goes on.
pub fn migrate(
    path: &Path,
    from: Layout,
    to: Layout,
    mode: Mode,
    threads: usize,
    progress: Progress<'_>,
) -> Result<Migration> {
    if from == to {
        return Err(Error::Config { option: "to", reason: format!("the layouts are the same, {from}") });
    }
    let start = Instant::now();
    let dir = Dir::open(path)?;
    let _lock = if mode == Mode::Apply { Some(dir.lock()?) } else { None };
    let old = survey(path, from, threads, &|seen| progress(seen, 0))?;
    let already = survey(path, to, threads, &|seen| progress(seen, 0))?.objects.len() as u64;
    let total = old.objects.len() as u64;
    let mut migration = Migration {
        from,
        to,
        objects: total,
        bytes: old.objects.iter().map(|object| object.bytes).sum(),
        renamed: 0,
        already,
        refused: Vec::new(),
        foreign: old.foreign.count.saturating_sub(already),
        example: None,
        seconds: 0.0,
    };
    let mut emptied = BTreeSet::new();
    for (done, object) in old.objects.iter().enumerate() {
        progress(done as u64, total);
        let name = from.encode(&object.key)?;
        match new_name(&dir, object, from, to) {
            Ok(new) => {
                if mode == Mode::Apply {
                    match dir.rename(&name, &new) {
                        Ok(()) => {}
                        // It has come since it was looked for, or it has gone.
                        Err(Errno::EEXIST) => {
                            migration.refused.push(Refusal::new(&name, format!("{new:?} is there already")));
                            continue;
                        }
                        Err(Errno::ENOENT) => continue,
                        Err(errno) => return Err(io_error("rename", path.join(&name))(errno)),
                    }
                    if let Some((below, _)) = name.rsplit_once('/') {
                        emptied.insert(below.to_owned());
                    }
                }
                migration.renamed += 1;
                migration.example.get_or_insert((name, new));
            }
            Err(reason) => migration.refused.push(Refusal::new(&name, reason?)),
        }
    }
    progress(total, total);
    if mode == Mode::Apply {
        remove_emptied(&dir, emptied)?;
        dir.sync()?;
        take_snapshot_along(&dir, from, to)?;
    }
    migration.refused.sort_by(|a, b| a.name.cmp(&b.name));
    migration.seconds = start.elapsed().as_secs_f64();
    Ok(migration)
}

/// The name that an object gets, or why it gets none.
fn new_name(dir: &Dir, object: &crate::scan::Found, from: Layout, to: Layout) -> Result<String, Result<String>> {
    let new = to.encode(&object.key).map_err(|error| Ok(error.to_string()))?;
    if let Ok(other) = from.decode(&new) {
        return Err(Ok(format!("its new name {new:?} reads as {other} in layout {from}")));
    }
    match dir.stat(&new) {
        Ok(None) => Ok(new),
        Ok(Some(_)) => Err(Ok(format!("its new name {new:?} is taken"))),
        Err(errno) => Err(Err(io_error("statx", dir.path().join(&new))(errno))),
    }
}

/// Removes the shard directories that hold nothing any more, and those above them.
fn remove_emptied(dir: &Dir, mut emptied: BTreeSet<String>) -> Result<()> {
    let above: Vec<String> =
        emptied.iter().filter_map(|name| name.split_once('/')).map(|(above, _)| above.to_owned()).collect();
    emptied.extend(above);
    // What is above sorts before what is below.
    for name in emptied.iter().rev() {
        dir.remove_empty(name).map_err(io_error("rmdir", dir.path().join(name)))?;
    }
    Ok(())
}

/// The snapshot of the index knows keys, not names: with the number of the new layout it serves on, and the order of use stays.
/// One that cannot be used is left alone.
fn take_snapshot_along(dir: &Dir, from: Layout, to: Layout) -> Result<()> {
    let Some(state) = dir.state()? else { return Ok(()) };
    let at = |error: std::io::Error| Error::file("write", dir.path().join(".saltern/index"), &error);
    let Ok(Some(contents)) = saved::read(state.as_fd(), FILE, FILE_BYTES_MAX) else { return Ok(()) };
    let Ok(snapshot) = Snapshot::parse(&contents, from) else { return Ok(()) };
    let (scopes, written_ns) = (snapshot.scopes.clone(), snapshot.written_ns);
    let Ok(records) = snapshot.collect::<Result<Vec<_>, _>>() else { return Ok(()) };
    let moved = Contents { layout: to, written_ns, scopes, records };
    saved::replace(state.as_fd(), FILE, |out| moved.write(out)).map_err(at)
}
