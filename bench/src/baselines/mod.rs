//! What others do with the same objects, the same memory and the same number in flight: one file an object.
//!
//! Files have the length of their object rounded up to whole blocks, are written under a temporary name and renamed.

mod threads;
mod tokio_uring;

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use crate::arena::Arena;
use crate::error::{Error, Result};
use crate::report::EngineName;
use crate::tally::Problems;
use crate::transfer::{Step, Timed};

/// One of them.
pub(crate) trait Baseline {
    /// What it is called.
    fn engine(&self) -> EngineName;

    /// Does `steps[i]` with object `order[i]` and slot `i`.
    fn run(
        &self,
        arena: &mut Arena,
        order: &[usize],
        steps: &[Step],
        problems: &mut Problems,
        cancel: &AtomicBool,
    ) -> Result<Timed>;
}

/// All of them, each in a directory of its own beside `dir`.
pub(crate) fn all(dir: &Path, depth: usize, direct: bool) -> Result<Vec<Box<dyn Baseline>>> {
    let files = |engine: EngineName| {
        let mut name = dir.as_os_str().to_owned();
        name.push("-");
        name.push(engine.name());
        let dir = PathBuf::from(name);
        fs::create_dir_all(&dir).map_err(|error| Error::io("make", &dir, error))?;
        Ok::<_, Error>(Files { dir, direct })
    };
    Ok(vec![
        Box::new(threads::Threads::new(files(EngineName::PreadPwrite)?, depth)),
        Box::new(tokio_uring::TokioUring::new(files(EngineName::TokioUring)?, depth)),
    ])
}

/// Names and flags of files.
#[derive(Debug, Clone)]
struct Files {
    dir: PathBuf,
    direct: bool,
}

impl Files {
    fn path(&self, object: usize) -> PathBuf {
        self.dir.join(format!("{object:016x}"))
    }

    fn temporary(&self, object: usize) -> PathBuf {
        self.dir.join(format!("{object:016x}.tmp"))
    }

    fn flags(&self) -> i32 {
        if self.direct { libc::O_DIRECT } else { 0 }
    }

    fn create(&self, path: &Path) -> io::Result<fs::File> {
        OpenOptions::new().write(true).create_new(true).mode(0o600).custom_flags(self.flags()).open(path)
    }

    fn open(&self, path: &Path) -> io::Result<fs::File> {
        OpenOptions::new().read(true).custom_flags(self.flags()).open(path)
    }

    /// Makes room, where the step asks for it.
    fn displace(&self, step: Step) -> io::Result<()> {
        match step {
            Step::Displace { victim } => fs::remove_file(self.path(victim)),
            Step::Store | Step::Load => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfer::{compare, make_ready};

    #[test]
    fn objects_come_back_and_victims_are_gone() {
        let dir = crate::test_dir();
        let cancel = AtomicBool::new(false);
        let mut arena = Arena::new(4 * 8192).unwrap();
        arena.cut(5000, 4);
        for baseline in all(&dir.path().join("volume"), 3, true).unwrap() {
            let mut problems = Problems::default();
            let mut run = |order: &[usize], steps: &[Step]| {
                make_ready(&mut arena, 1, order, steps);
                let timed = baseline.run(&mut arena, order, steps, &mut problems, &cancel).unwrap();
                let right = compare(&arena, 1, order, &timed.good, &mut problems);
                (timed.operations, timed.bytes, right)
            };
            assert_eq!(run(&[0, 1, 2, 3], &[Step::Store; 4]), (4, 20_000, 20_000));
            assert_eq!(run(&[3, 0], &[Step::Load; 2]), (2, 10_000, 10_000));
            assert_eq!(run(&[4, 2], &[Step::Displace { victim: 0 }, Step::Load]), (2, 10_000, 10_000));
            assert_eq!(run(&[4, 0], &[Step::Load; 2]), (2, 5000, 5000));
            assert_eq!(problems.count(), 1, "object 0 was displaced");
            let files = dir.path().join(format!("volume-{}", baseline.engine().name()));
            assert_eq!(fs::read_dir(files).unwrap().count(), 4);
        }
    }
}
