//! Store admission: a filter in front of the disk that spares its wear. Objects that were asked for, or offered, once only are not
//! written; most of what a cache is offered is never asked for again.
//!
//! ```text
//! lookups (any thread) -----count--+
//! stores (claimed, not reserved) --+--> counters --often enough?--> reserve, write
//!                                                 \--no--> Error::NotAdmitted, no I/O
//! ```
//!
//! Counts are kept as in TinyLFU (Einziger, Friedman, Manes: "TinyLFU: a highly efficient cache admission policy", ACM ToS 2017): a
//! count-min sketch of 4-bit counters, conservatively updated, that ages. All counters of a key lie in one cache line, and ageing is a hand
//! that goes round: every [`EVENTS_PER_BLOCK`] events it halves one line, so each once a window, and nobody ever waits for it.
//! Lookups and stores of a key are counted apart, and the higher count decides: a host that looks up before it stores would otherwise
//! have two counts for one request.
//!
//! Counts can be too high, where keys share counters (one first store in some hundreds is let in for that), and too low by races of
//! threads and by ageing. Either costs a write or a miss, never a wrong answer. Memory: 8 bytes an event of the window, from the start.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Fewest and most uses that can be asked for: one would let everything in, and counters end at 15.
pub const ADMISSION_USES_RANGE: (u8, u8) = (2, 15);

/// Shortest and longest window in events; 8 KiB to 2 GiB of memory.
pub const ADMISSION_WINDOW_RANGE: (u64, u64) = (1 << 10, 1 << 28);

/// Which of the objects that are offered are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Admission {
    /// All that fit.
    #[default]
    All,
    /// Those that were looked up, or offered to be stored, this one counted, several times of late. What is refused is answered with
    /// [`Error::NotAdmitted`]. What is there already is found, and stored again with 0 bytes, as ever.
    Frequent {
        /// How often; in [`ADMISSION_USES_RANGE`].
        uses: u8,
        /// "Of late": events, which are keys looked up and keys offered, after which a use counts half; in
        /// [`ADMISSION_WINDOW_RANGE`]. Each takes 8 bytes of memory.
        window: u64,
    },
}

impl Admission {
    /// From the second use on, within about a million events (8 MiB).
    pub fn frequent() -> Self {
        Self::Frequent { uses: 2, window: 1 << 20 }
    }

    pub(crate) fn validate(self) -> Result<()> {
        let Self::Frequent { uses, window } = self else { return Ok(()) };
        let fail = |reason: String| Err(Error::Config { option: "admission", reason });
        let ((uses_min, uses_max), (window_min, window_max)) = (ADMISSION_USES_RANGE, ADMISSION_WINDOW_RANGE);
        if uses < uses_min || uses > uses_max {
            return fail(format!("uses {uses} is not in {uses_min}..={uses_max}"));
        }
        if window < window_min || window > window_max {
            return fail(format!("window {window} is not in {window_min}..={window_max}"));
        }
        Ok(())
    }
}

/// Events for which there is one line of counters.
const EVENTS_PER_BLOCK: u64 = 8;

const COUNTER_BITS: u32 = 4;
const COUNTER_MAX: u64 = (1 << COUNTER_BITS) - 1;
const WORDS: usize = 8;

/// Keeps what a counter has left when its word is shifted to the right: no bit of its neighbour.
const HALVES: u64 = 0x7777_7777_7777_7777;

/// Counters of a line, as bits of an index.
const INDEX_BITS: u32 = (WORDS as u32 * (u64::BITS / COUNTER_BITS)).trailing_zeros();

/// Counters of a key, of each kind.
const ROWS: u32 = 4;

/// One cache line of counters.
#[derive(Default)]
#[repr(align(64))]
struct Block([AtomicU64; WORDS]);

const _: () = assert!(size_of::<Block>() as u64 == EVENTS_PER_BLOCK * 8, "8 bytes an event");

/// What is counted.
#[derive(Clone, Copy)]
enum Kind {
    Lookup,
    Store,
}

/// The filter. Thread-safe and lock-free; a call touches one or two cache lines.
pub(crate) struct Filter {
    blocks: Box<[Block]>,
    events: AtomicU64,
    uses: u64,
}

impl Filter {
    /// As configured; `None` where everything is let in.
    pub(crate) fn new(admission: Admission) -> Option<Self> {
        let Admission::Frequent { uses, window } = admission else { return None };
        let blocks = (0..window.div_ceil(EVENTS_PER_BLOCK)).map(|_| Block::default()).collect();
        Some(Self { blocks, events: AtomicU64::new(0), uses: uses.into() })
    }

    /// A key was looked up.
    pub(crate) fn looked_up(&self, hash: u64) {
        self.count(hash, Kind::Lookup);
    }

    /// A key is offered; says whether it is to be written.
    ///
    /// # Errors
    /// [`Error::NotAdmitted`].
    pub(crate) fn admit(&self, hash: u64) -> Result<()> {
        let stores = self.count(hash, Kind::Store);
        let seen = stores.max(self.estimate(hash, Kind::Lookup));
        if seen >= self.uses { Ok(()) } else { Err(Error::NotAdmitted { seen: seen as u8, needed: self.uses as u8 }) }
    }

    fn block(&self, hash: u64) -> &Block {
        // The upper half of the hash, scaled to the number of lines; the rest picks counters.
        &self.blocks[(((hash >> 32) * self.blocks.len() as u64) >> 32) as usize]
    }

    fn estimate(&self, hash: u64, kind: Kind) -> u64 {
        let block = self.block(hash);
        let count = |(word, shift): (usize, u32)| (block.0[word].load(Ordering::Relaxed) >> shift) & COUNTER_MAX;
        places(hash, kind).map(count).min().unwrap_or(0)
    }

    /// Counts a use; gives the count.
    fn count(&self, hash: u64, kind: Kind) -> u64 {
        self.age();
        let before = self.estimate(hash, kind);
        if before == COUNTER_MAX {
            return before;
        }
        let block = self.block(hash);
        for (word, shift) in places(hash, kind) {
            // Only the lowest counters go up: the others count other keys as well.
            let raise = |word: u64| ((word >> shift) & COUNTER_MAX == before).then(|| word + (1 << shift));
            let _ = block.0[word].fetch_update(Ordering::Relaxed, Ordering::Relaxed, raise);
        }
        before + 1
    }

    /// Moves the hand on.
    fn age(&self) {
        let event = self.events.fetch_add(1, Ordering::Relaxed);
        if event.is_multiple_of(EVENTS_PER_BLOCK) {
            let block = (event / EVENTS_PER_BLOCK) % self.blocks.len() as u64;
            for word in &self.blocks[block as usize].0 {
                let _ = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| Some((word >> 1) & HALVES));
            }
        }
    }
}

/// The counters of a key in its line: word and shift.
fn places(hash: u64, kind: Kind) -> impl Iterator<Item = (usize, u32)> {
    const SCATTER: u64 = 0x9e37_79b9_7f4a_7c15;
    let first = match kind {
        Kind::Lookup => 0,
        Kind::Store => ROWS,
    };
    // The upper bits of a product depend on all bits of the hash.
    let scattered = hash.wrapping_mul(SCATTER) >> (u64::BITS - 2 * ROWS * INDEX_BITS);
    (first..first + ROWS).map(move |row| {
        let index = (scattered >> (row * INDEX_BITS)) as u32 & ((1 << INDEX_BITS) - 1);
        let per_word = u64::BITS / COUNTER_BITS;
        ((index / per_word) as usize, (index % per_word) * COUNTER_BITS)
    })
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    const WINDOW: u64 = 1 << 16;

    fn filter(uses: u8) -> Filter {
        Filter::new(Admission::Frequent { uses, window: WINDOW }).expect("it is on")
    }

    fn hashes(seed: u64, count: usize) -> Vec<u64> {
        let mut rng = StdRng::seed_from_u64(seed);
        (0..count).map(|_| rng.random()).collect()
    }

    #[test]
    fn from_the_configured_use_on_a_key_is_let_in() {
        for uses in [2, 3, 15] {
            let filter = filter(uses);
            for hash in hashes(1, 100) {
                for seen in 1..uses {
                    let refused = filter.admit(hash);
                    let expected = (seen, uses);
                    assert!(
                        matches!(refused, Err(Error::NotAdmitted { seen, needed }) if (seen, needed) == expected),
                        "{refused:?}, not {expected:?}"
                    );
                }
                (0..3).for_each(|_| filter.admit(hash).expect("often enough"));
            }
        }
    }

    #[test]
    fn lookups_count_as_well_but_one_lookup_and_one_store_are_one_request() {
        let filter = filter(2);
        for hash in hashes(2, 100) {
            filter.looked_up(hash);
            assert!(filter.admit(hash).is_err(), "asked for once");
        }
        for hash in hashes(2, 100) {
            filter.looked_up(hash);
            filter.admit(hash).expect("asked for twice");
        }
        for hash in hashes(3, 100) {
            filter.looked_up(hash);
            filter.looked_up(hash);
            filter.admit(hash).expect("asked for twice, offered once");
        }
    }

    #[test]
    fn few_keys_are_let_in_for_others() {
        let filter = filter(2);
        let keys = hashes(4, 10 * WINDOW as usize);
        let admitted = keys.iter().filter(|hash| filter.admit(**hash).is_ok()).count();
        // Windows without end, each key once: the sketch is as full as it gets.
        assert!(admitted < keys.len() / 200, "{admitted} of {}", keys.len());
    }

    #[test]
    fn what_was_used_long_ago_is_forgotten_and_what_was_used_of_late_is_not() {
        let filter = filter(2);
        let (old, noise) = (hashes(5, 1000), hashes(6, 3 * WINDOW as usize));
        old.iter().for_each(|hash| drop(filter.admit(*hash)));
        noise[..2 * WINDOW as usize].iter().for_each(|hash| filter.looked_up(*hash));
        let remembered = old.iter().filter(|hash| filter.admit(**hash).is_ok()).count();
        assert!(remembered < 20, "after two windows: {remembered}");
        noise[2 * WINDOW as usize..][..WINDOW as usize / 10].iter().for_each(|hash| filter.looked_up(*hash));
        let remembered = old.iter().filter(|hash| filter.admit(**hash).is_ok()).count();
        assert!(remembered > 800, "after a tenth of one: {remembered}");
    }

    #[test]
    fn threads_that_count_at_once_lose_little_and_spill_nothing() {
        let filter = filter(15);
        let keys = hashes(7, 64);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..100).for_each(|_| keys.iter().for_each(|hash| filter.looked_up(*hash))));
            }
        });
        // 25,600 events are less than half a window: what was aged has come back since.
        let full = keys.iter().filter(|hash| filter.estimate(**hash, Kind::Lookup) >= 8).count();
        assert_eq!(full, keys.len());
        let others = hashes(8, 1000);
        assert_eq!(others.iter().filter(|hash| filter.estimate(**hash, Kind::Store) > 0).count(), 0, "a carry");
    }

    #[test]
    fn limits_are_named() {
        let check = |uses, window| Admission::Frequent { uses, window }.validate();
        assert!(check(2, 1 << 10).is_ok() && check(15, 1 << 28).is_ok());
        for (uses, window) in [(0, 1 << 20), (1, 1 << 20), (16, 1 << 20), (2, 1023), (2, (1 << 28) + 1)] {
            assert!(matches!(check(uses, window), Err(Error::Config { option: "admission", .. })), "{uses}, {window}");
        }
        let (all, frequent) = (Admission::default(), Admission::frequent());
        assert!(Filter::new(all).is_none() && frequent.validate().is_ok());
        let json = serde_json::to_string(&frequent).expect("JSON");
        assert_eq!(json, r#"{"mode":"frequent","uses":2,"window":1048576}"#);
        assert_eq!(serde_json::from_str::<Admission>(&json).expect("JSON"), frequent);
        assert_eq!(serde_json::to_string(&all).expect("JSON"), r#"{"mode":"all"}"#);
    }
}
