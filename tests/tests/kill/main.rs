//! SIGKILL at random moments under load: no wrong byte, nothing unfinished, books that are right, and everything
//! that was acknowledged.
//!
//! The test runs itself again as a child (see [`saltern_tests::kill`]). `SALTERN_SEED=n` repeats the choices of a failed run,
//! though not its timing; `SALTERN_LONG=1` kills more.

use std::process::Command;
use std::time::Duration;

use rand::Rng;
use saltern_tests::kill::{Killer, Volume};
use saltern_tests::{Scratch, Seed};

/// The volume is another one after so many kills.
const KILLS_PER_VOLUME: u32 = 5;

#[test]
fn nothing_is_wrong_after_fifty_kills() {
    let seed = Seed::new("nothing_is_wrong_after_fifty_kills");
    let mut rng = seed.rng(0);
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "kill");
    let kills = if saltern_tests::is_long() { 1000 } else { 50 };
    let mut killer = Killer::new(scratch.path(), || {
        let mut command = Command::new(std::env::current_exe().expect("this binary"));
        command.args(["--exact", "child", "--ignored", "--nocapture"]);
        command
    });
    let mut spares = 0;
    for round in 0..kills {
        let volume = Volume::numbered(scratch.path(), (round / KILLS_PER_VOLUME) as usize);
        if round % KILLS_PER_VOLUME == 0 {
            killer.begin();
        }
        let after = Duration::from_millis(rng.random_range(1..=150));
        killer.kill(&volume, &mut rng, after);
        spares += killer.check(&volume, &mut rng, || {});
    }
    let acknowledged = killer.acknowledged;
    assert!(acknowledged > u64::from(kills), "the children did something: {acknowledged} stores and deletes");
    eprintln!("{kills} kills, {acknowledged} acknowledged stores and deletes, {spares} spares found");
}

#[test]
#[ignore = "runs in a process of its own, by nothing_is_wrong_after_fifty_kills"]
fn child() {
    saltern_tests::kill::child();
}
