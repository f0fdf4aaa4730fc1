//! Operations on one key at the same time: each race once with the order that hurts most, forced, and a thousand
//! times with orders chosen by a seed, against a plain map.
//!
//! `SALTERN_SEED=n` repeats the choices of a failed run.

mod forced;
mod history;
mod hold;
mod schedule;
mod seeded;
mod turns;

use saltern_tests::Scratch;

fn scratch(name: &str) -> Scratch {
    Scratch::new(env!("CARGO_TARGET_TMPDIR"), name)
}
