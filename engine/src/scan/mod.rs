//! Finding out what a directory holds: for an engine that starts, and for tools that only look.
//!
//! Names are parsed by the layout, sizes and times come from statx. Nothing is opened, followed or changed. What is not
//! an object of the layout is foreign: counted, some of it named with the reason, and left alone.

mod recover;
mod walk;

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use parking_lot::Mutex;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::key::ObjectKey;
use crate::layout::{Decoder, Layout};
use crate::volume::{STATE_DIR, TEMP_DIR, open_dir};

pub use recover::RecoveryReport;
pub(crate) use recover::{Recovery, scan_all};
pub(crate) use walk::{Name, Names, Walk};

/// Most foreign entries that a report names.
pub const FOREIGN_EXAMPLES_MAX: usize = 32;

/// An object on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Found {
    /// Its key.
    pub key: ObjectKey,
    /// Size of the file.
    pub bytes: u64,
    /// Time of the last modification, in nanoseconds since 1970.
    pub modified_ns: u64,
}

/// Entries of a directory that are not objects of the layout.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Foreign {
    /// How many there are.
    pub count: u64,
    /// Up to [`FOREIGN_EXAMPLES_MAX`] of them: path relative to the directory, and the reason.
    pub examples: Vec<(String, String)>,
}

impl Foreign {
    fn add(&mut self, path: &str, reason: impl ToString) {
        self.count += 1;
        if self.examples.len() < FOREIGN_EXAMPLES_MAX {
            self.examples.push((path.into(), reason.to_string()));
        }
    }

    fn merge(&mut self, other: Self) {
        self.count += other.count;
        let room = FOREIGN_EXAMPLES_MAX - self.examples.len();
        self.examples.extend(other.examples.into_iter().take(room));
    }
}

/// What [`survey`] found.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Survey {
    /// The objects, in no particular order.
    pub objects: Vec<Found>,
    /// Unfinished stores in `.saltern/tmp`.
    pub unfinished: u64,
    /// What is not an object.
    pub foreign: Foreign,
    /// Time it took.
    pub seconds: f64,
}

/// Lists a directory without changing anything, also while an engine owns it. Blocks; uses `threads` threads.
/// `progress` gets the number of entries seen so far, on the calling thread.
///
/// # Errors
/// [`Error::Io`] when a directory cannot be read.
pub fn survey(dir: &Path, layout: Layout, threads: usize, progress: &(dyn Fn(u64) + Sync)) -> Result<Survey> {
    let start = Instant::now();
    let stop = AtomicBool::new(false);
    let walk = Walk::new(open_dir(dir)?, dir, layout, &stop)?;
    let all = Mutex::new(Survey::default());
    let visitor = || {
        let mut decoder = Decoder::new(layout);
        let mut mine = Gather { all: &all, objects: Vec::new() };
        move |names: &Names| {
            names.iter().try_for_each(|name| {
                match look(&mut decoder, &name) {
                    Look::Object(key, stat) => {
                        mine.objects.push(Found { key, bytes: stat.bytes, modified_ns: stat.modified_ns });
                    }
                    Look::Foreign(reason) => mine.all.lock().foreign.add(&name.path(), reason),
                    Look::Gone => {}
                    Look::Failed(errno) => return Err(Error::io("statx", dir.join(&*name.path()), errno)),
                }
                Ok(())
            })
        }
    };
    walk.run(threads.max(1), || (), visitor, progress)?;
    let mut survey = all.into_inner();
    survey.unfinished = count_unfinished(dir)?;
    survey.seconds = start.elapsed().as_secs_f64();
    Ok(survey)
}

/// One thread's objects, handed in together when it ends.
struct Gather<'a> {
    all: &'a Mutex<Survey>,
    objects: Vec<Found>,
}

impl Drop for Gather<'_> {
    fn drop(&mut self) {
        self.all.lock().objects.append(&mut self.objects);
    }
}

/// Up to `limit` names of a directory (of one file of each shard directory, where there are such), for
/// [`crate::layout::detect`].
///
/// # Errors
/// [`Error::Io`] when the directory cannot be read.
pub fn sample_names(dir: &Path, limit: usize) -> Result<Vec<String>> {
    let stop = AtomicBool::new(false);
    // The sharded layout descends into what looks like its directories, and lists flat names as well.
    let walk = Walk::new(open_dir(dir)?, dir, Layout::NixlSharded, &stop)?;
    let names = Mutex::new(Vec::new());
    walk.run(
        1,
        || (),
        || {
            |seen: &Names| {
                let mut names = names.lock();
                let files = seen.iter().filter(|name| name.foreign().is_none());
                let room = limit - names.len();
                names.extend(files.take(room).map(|name| name.path().into_owned()));
                if names.len() == limit {
                    stop.store(true, std::sync::atomic::Ordering::Relaxed);
                }
                Ok(())
            }
        },
        &|_| {},
    )?;
    Ok(names.into_inner())
}

enum Look {
    Object(ObjectKey, crate::sys::FileStat),
    Foreign(String),
    /// It vanished while we looked.
    Gone,
    Failed(nix::errno::Errno),
}

/// Parses a name, and looks at the file where it is an object's.
fn look(decoder: &mut Decoder, name: &Name<'_>) -> Look {
    if let Some(reason) = name.foreign() {
        return Look::Foreign(reason.into());
    }
    match decoder.decode(&name.path()) {
        Err(reason) => Look::Foreign(reason.to_string()),
        Ok(key) => match name.stat() {
            Ok(stat) if stat.is_regular => Look::Object(key, stat),
            Ok(_) => Look::Foreign("not a regular file".into()),
            Err(nix::errno::Errno::ENOENT) => Look::Gone,
            Err(errno) => Look::Failed(errno),
        },
    }
}

fn count_unfinished(dir: &Path) -> Result<u64> {
    let temp = dir.join(STATE_DIR).join(TEMP_DIR);
    match std::fs::read_dir(&temp) {
        Ok(entries) => Ok(entries.count() as u64),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => {
            let errno = nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(0));
            Err(Error::io("readdir", temp, errno))
        }
    }
}
