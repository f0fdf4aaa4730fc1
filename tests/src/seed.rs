//! Random choices that a failing run can repeat.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Write;
use std::sync::OnceLock;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config as Runs, RngSeed, TestRunner};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// Sets the seed of every test, in decimal.
const VARIABLE: &str = "SALTERN_SEED";

/// The seed of one test. When the test panics, it says how to run it again.
pub struct Seed {
    test: &'static str,
    value: u64,
}

impl Seed {
    /// Takes `SALTERN_SEED`, else a new one.
    pub fn new(test: &'static str) -> Self {
        let given = std::env::var(VARIABLE).ok();
        let value = given.map_or_else(fresh, |text| {
            text.trim().parse().unwrap_or_else(|_| panic!("{VARIABLE}={text:?} is not a decimal number"))
        });
        Self { test, value }
    }

    /// The number.
    pub fn value(&self) -> u64 {
        self.value
    }

    /// A generator; each thread of a test takes its own stream.
    pub fn rng(&self, stream: u64) -> StdRng {
        StdRng::seed_from_u64(self.value ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

impl Seed {
    /// Tries so many cases of the seed's choice.
    ///
    /// # Panics
    /// With a case that panics, after at most `shrinks` trials to find a smaller one.
    pub fn try_cases<S: Strategy>(&self, cases: u32, shrinks: u32, strategy: S, test: impl Fn(S::Value)) {
        let mut runner = TestRunner::new(Runs {
            cases,
            rng_seed: RngSeed::Fixed(self.value),
            failure_persistence: None,
            max_shrink_iters: shrinks,
            ..Runs::default()
        });
        let outcome = runner.run(&strategy, |case| {
            test(case);
            Ok(())
        });
        if let Err(error) = outcome {
            panic!("{error}");
        }
    }
}

/// Whether to take minutes instead of seconds.
pub fn is_long() -> bool {
    std::env::var_os("SALTERN_LONG").is_some_and(|value| value == "1")
}

/// The seed of choices that are made for all tests of a process. It is printed with the first of them, past what the test harness keeps to
/// itself, since any test may be the one that fails.
pub(crate) fn process_seed() -> &'static Seed {
    static SEED: OnceLock<Seed> = OnceLock::new();
    SEED.get_or_init(|| {
        let seed = Seed::new("all tests");
        let _ = writeln!(std::io::stderr(), "{VARIABLE}={} makes the choices of this process again", seed.value);
        seed
    })
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: {VARIABLE}={} makes the same choices again", self.test, self.value);
        }
    }
}

/// A number that no other run has: the standard library seeds its hashers with the system's randomness.
fn fresh() -> u64 {
    RandomState::new().build_hasher().finish()
}
