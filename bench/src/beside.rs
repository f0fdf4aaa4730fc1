//! The ceiling on request, for benches that run in another process (`bench/peers`): they ask, between rounds of their own, what
//! the device does now.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use saltern::Config;
use serde::{Deserialize, Serialize};

use crate::ceiling::{Kind, Memory, Rig};
use crate::error::{Error, Result};
use crate::scratch::Scratch;
use crate::test_file::TestFile;

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// Random overwrites; else random reads.
    pub overwrite: bool,
    /// Bytes of one object.
    pub object_bytes: usize,
    /// How many.
    pub objects: usize,
    /// Objects in flight.
    pub depth: usize,
    /// Objects that the memory holds at a time.
    pub buffers: usize,
}

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Answer {
    /// Bytes that were moved.
    pub bytes: u64,
    /// Wall time.
    pub seconds: f64,
    /// User and system time.
    pub cpu_seconds: f64,
}

/// A preallocated file, and a ring for what was asked for last.
pub struct Beside {
    file: TestFile,
    rig: Option<(Ask, Rig)>,
    chance: StdRng,
    // Dropped last: the file is in it.
    _scratch: Scratch,
}

impl Beside {
    /// Makes the file, of so many bytes, in a scratch directory in `parent`. Blocks until it is written.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`], [`Error::Interrupted`].
    pub fn create(parent: &Path, bytes: u64, cancel: &AtomicBool) -> Result<Self> {
        let scratch = Scratch::create(parent)?;
        scratch.require(bytes)?;
        let file = TestFile::create(&scratch.join("ceiling"), bytes, Duration::MAX, cancel)?;
        Ok(Self { file, rig: None, chance: StdRng::seed_from_u64(1), _scratch: scratch })
    }

    /// Measures it.
    ///
    /// # Errors
    /// [`Error::Usage`] when the file does not hold so much, and as [`Rig::run`].
    pub fn measure(&mut self, ask: Ask, cancel: &AtomicBool) -> Result<Answer> {
        let shape = Ask { overwrite: false, objects: 0, ..ask };
        if self.rig.as_ref().is_none_or(|(known, _)| *known != shape) {
            // The old one's memory first: both may be too much.
            self.rig = None;
            let segment_bytes = Config::new("").segment_bytes;
            self.rig = Some((shape, Rig::new(ask.object_bytes, segment_bytes, ask.depth, ask.buffers)?));
        }
        let Some((_, rig)) = &mut self.rig else { unreachable!("it was made above") };
        let slot = rig.object_bytes() as u64;
        let mut offsets: Vec<u64> = (0..self.file.bytes() / slot).map(|block| block * slot).collect();
        if ask.objects == 0 || offsets.len() < ask.objects {
            return Err(Error::Usage(format!("{} objects are not in 1..={}", ask.objects, offsets.len())));
        }
        offsets.shuffle(&mut self.chance);
        offsets.truncate(ask.objects);
        let kind = if ask.overwrite { Kind::Overwrite } else { Kind::Read };
        let sample = rig.run(&self.file, kind, Memory::Spread, &offsets, cancel)?;
        Ok(Answer { bytes: sample.bytes, seconds: sample.spent.seconds, cpu_seconds: sample.spent.cpu_seconds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_moved() {
        let dir = crate::test_dir();
        let cancel = AtomicBool::new(false);
        let mut beside = Beside::create(dir.path(), 2 << 20, &cancel).unwrap();
        for (overwrite, object_bytes, objects) in [(false, 65_536, 20), (true, 65_536, 32), (true, 1 << 20, 2)] {
            let ask = Ask { overwrite, object_bytes, objects, depth: 4, buffers: 8 };
            let answer = beside.measure(ask, &cancel).unwrap();
            assert_eq!(answer.bytes, (objects * object_bytes) as u64);
            assert!(answer.seconds > 0.0);
        }
        let too_many = Ask { overwrite: false, object_bytes: 1 << 20, objects: 3, depth: 1, buffers: 1 };
        assert!(matches!(beside.measure(too_many, &cancel), Err(Error::Usage(_))));
        drop(beside);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
