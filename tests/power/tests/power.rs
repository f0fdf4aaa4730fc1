//! Power cuts by seed, on ext4 and xfs: some cells of the fault lab's matrix, with few images. `cargo run --release -p saltern-lab power`
//! runs all of them.
//!
//! `SALTERN_POWER_IMAGES=n` for more, `SALTERN_POWER_SEED` to repeat one, `SALTERN_POWER_KEEP=DIR` to keep the images that
//! show something, `SALTERN_POWER_REQUIRED=1` where a machine that cannot run the lab is a failure.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use saltern::{Durability, Integrity, Layout};
use saltern_power::cell::{Cell, Means, Mode, Outcome, Recycling, Scale, Setup, Subject};
use saltern_power::{Error, FileSystem, Lab};

/// Power cuts of each cell.
const IMAGES: u64 = 4;

/// Power cuts of a control, which has to fail on one of them.
const CONTROL_IMAGES: usize = 8;

/// One lab at a time: each uses gigabytes of memory, and all processors.
static ONE: Mutex<()> = Mutex::new(());

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

fn lab(file_systems: &[FileSystem]) -> Option<(Lab, MutexGuard<'static, ()>)> {
    let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    match Lab::new(env!("CARGO_BIN_EXE_saltern-power-disk"), file_systems) {
        Ok(lab) => Some((lab, one)),
        Err(Error::Unavailable(why)) if number("SALTERN_POWER_REQUIRED").is_none() => {
            eprintln!("SKIPPED: the power-cut lab cannot run here: {why}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn seed() -> u64 {
    // The standard library's hasher is seeded at random.
    number("SALTERN_POWER_SEED").unwrap_or_else(|| RandomState::new().build_hasher().finish() >> 32)
}

fn run(lab: &Lab, cells: &[Cell], seed: u64) -> Vec<Outcome> {
    println!("SALTERN_POWER_SEED={seed}");
    let run = |cell: &Cell| match cell.run(lab, seed) {
        Ok(outcome) => outcome,
        Err(error) => panic!("SALTERN_POWER_SEED={seed}: {cell:?}: {error}"),
    };
    cells.iter().map(run).inspect(|outcome| println!("{outcome:?}")).collect()
}

fn expect_clean(outcomes: &[Outcome], seed: u64) {
    for outcome in outcomes {
        assert!(outcome.is_clean(), "SALTERN_POWER_SEED={seed}: {:?}:\n{}", outcome.cell, outcome.details.join("\n"));
        assert!(outcome.objects > 0, "nothing was checked: {outcome:?}");
        if let Subject::Engine(_) = outcome.cell.subject {
            assert!(outcome.recycled > 0, "nothing was recycled: {outcome:?}");
        }
    }
}

fn cell(file_system: FileSystem, subject: Subject, images: usize) -> Cell {
    Cell { file_system, subject, mode: Mode::Steady, again: false, images, scale: Scale::SMALL }
}

fn engine_on(file_system: FileSystem) {
    use {Durability as D, Integrity as I, Layout as L};
    let Some((lab, _one)) = lab(&[file_system]) else { return };
    let seed = seed();
    let images = number("SALTERN_POWER_IMAGES").unwrap_or(IMAGES) as usize;
    let cells = [(D::None, I::Off, L::Fs), (D::Full, I::Verify, L::Fs), (D::Data, I::Verify, L::NixlSharded)].map(
        |(durability, integrity, layout)| {
            let setup = Setup { durability, integrity, recycling: Recycling::On, layout, buffered: false };
            cell(file_system, Subject::Engine(setup), images)
        },
    );
    expect_clean(&run(&lab, &cells, seed), seed);
}

#[test]
fn no_wrong_byte_and_nothing_lost_on_ext4() {
    engine_on(FileSystem::Ext4);
}

#[test]
fn no_wrong_byte_and_nothing_lost_on_xfs() {
    engine_on(FileSystem::Xfs);
}

/// What the lab says of a disk that lies, and of the engine without its quarantine: recycled files come back under their old names,
/// and only checksums see it.
#[test]
fn what_is_wrong_is_seen() {
    use FileSystem::{Ext4, Ext4NoBarrier};
    let Some((lab, _one)) = lab(&[Ext4]) else { return };
    let seed = seed();
    let unguarded = [Integrity::Off, Integrity::Verify].map(|integrity| {
        let recycling = Recycling::WithoutQuarantine;
        let setup = Setup { durability: Durability::None, integrity, recycling, layout: Layout::Fs, buffered: false };
        cell(Ext4, Subject::Engine(setup), CONTROL_IMAGES)
    });
    let liar = cell(Ext4NoBarrier, Subject::Plain(Means::NewSynced), CONTROL_IMAGES);
    let outcomes = run(&lab, &[unguarded[0], unguarded[1], liar], seed);
    let [unchecked, checked, liar] = &outcomes[..] else { panic!("three cells") };
    assert!(unchecked.bad_files > 0 && unchecked.bad_loads > 0, "SALTERN_POWER_SEED={seed}: nothing wrong was loaded");
    assert!(checked.bad_files > 0, "SALTERN_POWER_SEED={seed}: {:?} passed", checked.cell);
    assert_eq!(checked.bad_loads, 0, "SALTERN_POWER_SEED={seed}: a checksum did not see wrong bytes");
    assert!(checked.refused >= checked.bad_files, "SALTERN_POWER_SEED={seed}: {checked:?}");
    let is_seen = liar.missing + liar.faults + liar.unmountable > 0;
    assert!(is_seen, "SALTERN_POWER_SEED={seed}: a disk that lies passed");
}
