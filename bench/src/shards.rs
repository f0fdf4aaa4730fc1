//! How many shards are worth their CPUs on a directory: the engine itself is measured with some numbers of shards, for about
//! two seconds in all.
//!
//! One volume of small objects, where CPU counts most, is filled once, and opened with each number in turn, twice; each time
//! objects are displaced and loaded for a moment. Bytes are not compared: that is what [`crate::run`] does.
//!
//! ```text
//! fill -> (open with n shards -> displace, load, displace, load, ... -> close) for each n, twice -> Trial for each n -> fewest_good
//! ```

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use saltern::{Config, Engine, ObjectKey, Scope, kv_rank};

use crate::arena::Arena;
use crate::error::Result;
use crate::scratch::Scratch;
use crate::stage::keys;
use crate::tally::Problems;
use crate::transfer::{Mover, Step, make_ready};

/// Objects are as small as the engine is made for.
pub const OBJECT_BYTES: usize = 64 << 10;

/// Objects in flight.
pub const DEPTH: usize = 32;

/// Objects of the volume, and of one slice of work.
const OBJECTS: usize = 1024;
const SLICE: usize = 256;

/// Bytes that have to be free: the objects, their spares, and room for others.
const FREE_BYTES: u64 = 4 * (OBJECTS * OBJECT_BYTES) as u64;

/// Each number of shards is measured so many times, in turns with the others.
const TURNS: u32 = 2;

/// The share of the time that the filling may take: a slow disk gets fewer objects.
const FILL_SHARE: u32 = 4;

/// More shards have to move so many times the bytes to be worth their CPUs: of small objects, where they gain most. What they gain of
/// objects of 256 KiB and more is a fraction of it, for as much more CPU.
const WORTH: f64 = 1.25;

/// What one number of shards did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trial {
    /// The number.
    pub shards: usize,
    /// Stores at capacity, in bytes a second.
    pub displaced_per_s: f64,
    /// Loads, in bytes a second.
    pub loaded_per_s: f64,
}

impl Trial {
    /// Both as one figure: their geometric mean.
    pub fn bytes_per_s(&self) -> f64 {
        (self.displaced_per_s * self.loaded_per_s).sqrt()
    }
}

/// Measures each number of shards, in about `time`. Blocks; what it writes is removed before it returns.
///
/// # Errors
/// [`crate::Error`]; operations that fail move no bytes, and are no errors.
pub fn measure(parent: &Path, numbers: &[usize], time: Duration, cancel: &AtomicBool) -> Result<Vec<Trial>> {
    let scratch = Scratch::create(parent)?;
    scratch.require(FREE_BYTES)?;
    let scope = Scope::new("saltern/doctor", kv_rank(1, 0, 1, 0), 0, "").map_err(saltern::Error::from)?;
    let mut volume = Volume {
        config: Config::new(scratch.join("volume")),
        arena: Arena::new(Arena::bytes_needed(OBJECT_BYTES, SLICE))?,
        keys: keys(&scope, 1, 0..OBJECTS as u64)?,
        more_keys: Box::new(move |numbers| keys(&scope, 1, numbers)),
        live: 0..0,
        cancel,
    };
    volume.arena.cut(OBJECT_BYTES, SLICE);
    volume.fill(time / FILL_SHARE)?;
    let turn = time * (FILL_SHARE - 1) / FILL_SHARE / TURNS / numbers.len().max(1) as u32;
    let mut sums = vec![[Moved::default(); 2]; numbers.len()];
    for _ in 0..TURNS {
        for (shards, sums) in numbers.iter().zip(&mut sums) {
            volume.turn(*shards, turn, sums)?;
        }
    }
    let trial = |(shards, [displaced, loaded]): (&usize, [Moved; 2])| Trial {
        shards: *shards,
        displaced_per_s: displaced.per_s(),
        loaded_per_s: loaded.per_s(),
    };
    Ok(numbers.iter().zip(sums).map(trial).collect())
}

/// The fewest shards that no larger number beats by a quarter; `None` of no trials.
pub fn fewest_good(trials: &[Trial]) -> Option<usize> {
    let best = trials.iter().map(Trial::bytes_per_s).fold(0.0, f64::max);
    trials.iter().filter(|trial| trial.bytes_per_s() * WORTH >= best).map(|trial| trial.shards).min()
}

#[derive(Debug, Clone, Copy, Default)]
struct Moved {
    bytes: u64,
    seconds: f64,
}

impl Moved {
    fn per_s(self) -> f64 {
        self.bytes as f64 / self.seconds.max(1e-9)
    }
}

/// The volume that is measured, while no engine has it.
struct Volume<'a> {
    config: Config,
    arena: Arena,
    keys: Vec<ObjectKey>,
    more_keys: Box<dyn Fn(Range<u64>) -> Result<Vec<ObjectKey>>>,
    /// Objects that are stored, as numbers of `keys`.
    live: Range<usize>,
    cancel: &'a AtomicBool,
}

impl Volume<'_> {
    /// Stores the objects, or as many as `time` allows, and at least as many as a slice has.
    fn fill(&mut self, time: Duration) -> Result<()> {
        let engine = self.arena.lend_to(Engine::open(self.config.clone())?)?;
        let started = Instant::now();
        while self.live.is_empty() || (self.live.end < OBJECTS && started.elapsed() < time) {
            let new: Vec<_> = (self.live.end..self.live.end + SLICE).collect();
            self.slice(&engine, &new, &[Step::Store; SLICE])?;
            self.live.end += SLICE;
        }
        engine.close();
        Ok(())
    }

    /// Displaces and loads with so many shards, for about `time`. The first displacement is not counted: it finds the
    /// spares where another number of shards has left them.
    fn turn(&mut self, shards: usize, time: Duration, [displaced, loaded]: &mut [Moved; 2]) -> Result<()> {
        self.config.shards = shards;
        self.config.pool_bytes = self.config.pool_bytes.max(shards * 16 * self.config.segment_bytes);
        self.config.capacity_bytes = Some(((self.live.len() + 2 * DEPTH) * OBJECT_BYTES) as u64);
        let engine = self.arena.lend_to(Engine::open(self.config.clone())?)?;
        self.displace(&engine)?;
        let started = Instant::now();
        loop {
            let moved = self.displace(&engine)?;
            (displaced.bytes, displaced.seconds) = (displaced.bytes + moved.bytes, displaced.seconds + moved.seconds);
            let objects: Vec<_> = self.live.clone().take(SLICE).collect();
            let moved = self.slice(&engine, &objects, &[Step::Load; SLICE])?;
            (loaded.bytes, loaded.seconds) = (loaded.bytes + moved.bytes, loaded.seconds + moved.seconds);
            if started.elapsed() >= time {
                break;
            }
        }
        engine.close();
        Ok(())
    }

    /// One slice of stores, each of which displaces the oldest object.
    fn displace(&mut self, engine: &Engine) -> Result<Moved> {
        let new: Vec<_> = (self.live.end..self.live.end + SLICE).collect();
        let have = self.keys.len() as u64;
        self.keys.extend((self.more_keys)(have..have.max(self.live.end as u64 + SLICE as u64))?);
        let steps: Vec<_> = self.live.clone().take(SLICE).map(|victim| Step::Displace { victim }).collect();
        let moved = self.slice(engine, &new, &steps)?;
        self.live = self.live.start + SLICE..self.live.end + SLICE;
        Ok(moved)
    }

    fn slice(&mut self, engine: &Engine, order: &[usize], steps: &[Step]) -> Result<Moved> {
        make_ready(&mut self.arena, 1, order, steps);
        let mover = Mover { engine, keys: &self.keys, depth: DEPTH, cancel: self.cancel, stop: None };
        let timed = mover.run(&mut self.arena, order, steps, &mut Problems::default())?;
        Ok(Moved { bytes: timed.bytes, seconds: timed.spent.seconds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(shards: usize, displaced_per_s: f64, loaded_per_s: f64) -> Trial {
        Trial { shards, displaced_per_s, loaded_per_s }
    }

    #[test]
    fn more_shards_have_to_gain_a_quarter() {
        assert_eq!(fewest_good(&[]), None);
        assert_eq!(fewest_good(&[trial(1, 100.0, 100.0), trial(2, 150.0, 100.0)]), Some(1));
        assert_eq!(fewest_good(&[trial(1, 100.0, 100.0), trial(2, 160.0, 100.0)]), Some(2));
        // Four are not a quarter better than two, but two are better than one.
        assert_eq!(fewest_good(&[trial(1, 1.0, 1.0), trial(2, 1.9, 1.9), trial(4, 2.0, 2.0)]), Some(2));
        assert_eq!(fewest_good(&[trial(1, 2.0, 2.0), trial(2, 1.0, 1.0)]), Some(1));
    }

    #[test]
    fn every_number_moves_bytes_and_nothing_stays() {
        let parent = crate::test_dir();
        let trials = measure(parent.path(), &[1, 2], Duration::from_millis(50), &AtomicBool::new(false)).unwrap();
        assert_eq!(trials.iter().map(|trial| trial.shards).collect::<Vec<_>>(), [1, 2]);
        assert!(trials.iter().all(|trial| trial.displaced_per_s > 0.0 && trial.loaded_per_s > 0.0), "{trials:?}");
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn it_can_be_interrupted() {
        let parent = crate::test_dir();
        let stopped = measure(parent.path(), &[1], Duration::from_secs(60), &AtomicBool::new(true));
        assert!(matches!(stopped, Err(crate::Error::Interrupted)), "{stopped:?}");
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
