//! Power cuts by seed, on ext4 and xfs.
//!
//! `SALTERN_POWER_IMAGES=40` for the full matrix, `SALTERN_POWER_SEED` to repeat one, `SALTERN_POWER_KEEP=DIR` to keep the images that
//! show something, `SALTERN_POWER_REQUIRED=1` where a machine that cannot run the lab is a failure.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use comfy_table::{Table, presets::ASCII_MARKDOWN};
use saltern::{Durability, Integrity, Layout};
use saltern_power::cell::{Cell, Means, Mode, Outcome, Recycling, Scale, Setup, Subject};
use saltern_power::{Error, FileSystem, Lab};

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
    let run = |cell: &Cell| match cell.run(lab, seed) {
        Ok(outcome) => outcome,
        Err(error) => panic!("SALTERN_POWER_SEED={seed}: {cell:?}: {error}"),
    };
    let outcomes: Vec<_> = cells.iter().map(run).collect();
    println!("\nseed {seed}\n{}", table(&outcomes));
    outcomes
}

fn table(outcomes: &[Outcome]) -> Table {
    const COLUMNS: [&str; 20] = [
        "file system",
        "mode",
        "layout",
        "durability",
        "recycling",
        "integrity",
        "images",
        "objects",
        "bad files",
        "bad loads",
        "missing",
        "refused",
        "faults",
        "unmountable",
        "recycled",
        "requests",
        "flushes",
        "MiB",
        "workload s",
        "all s",
    ];
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN).set_header(COLUMNS);
    for outcome in outcomes {
        let Outcome { cell, objects, bad_files, bad_loads, missing, refused, faults, unmountable, .. } = outcome;
        let Outcome { recycled, logged, seconds, .. } = outcome;
        let Cell { file_system, subject, mode, again, images, .. } = cell;
        let mode = format!("{mode}{}", if *again { ", cut before" } else { "" });
        let [layout, durability, recycling, integrity] = match subject {
            Subject::Engine(Setup { durability, integrity, recycling, layout, buffered }) => {
                let durability = format!("{durability:?}{}", if *buffered { ", buffered" } else { "" });
                [layout.to_string(), durability, recycling.to_string(), format!("{integrity:?}")]
            }
            Subject::Plain(means) => {
                let synced = if *means == Means::NewSynced { "Full" } else { "None" };
                ["plain".into(), synced.into(), format!("{means:?}"), "-".into()]
            }
        };
        // What an engine may lose is shown, in brackets.
        let missing = if subject.is_durable() { missing.to_string() } else { format!("({missing})") };
        let numbers = [*bad_files, *bad_loads];
        let more = [*refused, *faults, *unmountable, *recycled as usize, logged.0, logged.1, (logged.2 >> 20) as usize];
        table.add_row(
            [file_system.to_string(), mode, layout, durability, recycling, integrity]
                .into_iter()
                .chain([*images, *objects].map(|number| number.to_string()))
                .chain(numbers.map(|number| number.to_string()))
                .chain([missing])
                .chain(more.map(|number| number.to_string()))
                .chain([seconds.0, seconds.1].map(|seconds| format!("{seconds:.1}"))),
        );
    }
    table
}

fn expect_clean(outcomes: &[Outcome], seed: u64) {
    for outcome in outcomes {
        assert!(outcome.is_clean(), "SALTERN_POWER_SEED={seed}: {:?}:\n{}", outcome.cell, outcome.details.join("\n"));
        assert!(outcome.objects > 0, "nothing was checked: {outcome:?}");
        if let Cell { subject: Subject::Engine(setup), mode, .. } = outcome.cell {
            let recycles = setup.recycling != Recycling::Off && mode != Mode::Fresh;
            assert_eq!(outcome.recycled > 0, recycles, "{outcome:?}");
        }
    }
}

/// Power cuts of each cell.
fn images() -> usize {
    number("SALTERN_POWER_IMAGES").unwrap_or(6) as usize
}

/// From this many images on, the matrix is complete; below, it is the cells that differ most.
const COMPLETE_FROM: usize = 20;

fn engine_cells(file_system: FileSystem) -> Vec<Cell> {
    use {Durability as D, Integrity as I, Layout as L, Mode as M, Recycling as R};
    let mut cells = Vec::new();
    let mut add = |mode, durability, recycling, integrity, layout, again| {
        let subject = Subject::Engine(Setup { durability, integrity, recycling, layout, buffered: false });
        cells.push(Cell { file_system, subject, mode, again, images: images(), scale: Scale::FULL });
    };
    if images() >= COMPLETE_FROM {
        for durability in [D::None, D::Data, D::Full] {
            for integrity in [I::Off, I::Verify] {
                add(M::Fresh, durability, R::On, integrity, L::Fs, false);
                for mode in [M::Steady, M::DeleteHeavy] {
                    for recycling in [R::Off, R::On] {
                        add(mode, durability, recycling, integrity, L::Fs, false);
                    }
                }
            }
            add(M::Steady, durability, R::On, I::Verify, L::NixlSharded, false);
            add(M::Steady, durability, R::On, I::Verify, L::Fs, true);
            add(M::DeleteHeavy, durability, R::On, I::Off, L::Fs, true);
        }
    } else {
        add(M::Fresh, D::None, R::On, I::Off, L::Fs, false);
        add(M::Fresh, D::Full, R::On, I::Verify, L::Fs, false);
        add(M::Steady, D::None, R::On, I::Off, L::Fs, false);
        add(M::Steady, D::Data, R::On, I::Verify, L::Fs, false);
        add(M::Steady, D::Full, R::On, I::Verify, L::Fs, false);
        add(M::Steady, D::Full, R::Off, I::Off, L::Fs, false);
        add(M::DeleteHeavy, D::None, R::On, I::Verify, L::Fs, false);
        add(M::DeleteHeavy, D::Full, R::On, I::Off, L::Fs, false);
        add(M::Steady, D::None, R::On, I::Verify, L::NixlSharded, false);
        add(M::Steady, D::Full, R::On, I::Verify, L::Fs, true);
    }
    cells
}

fn engine_on(file_system: FileSystem) {
    let Some((lab, _one)) = lab(&[file_system]) else { return };
    let seed = seed();
    let outcomes = run(&lab, &engine_cells(file_system), seed);
    expect_clean(&outcomes, seed);
}

#[test]
fn no_wrong_byte_and_nothing_lost_on_ext4() {
    engine_on(FileSystem::Ext4);
}

#[test]
fn no_wrong_byte_and_nothing_lost_on_xfs() {
    engine_on(FileSystem::Xfs);
}

/// What the lab says of writers of which it is known whether they are right.
#[test]
fn the_lab_tells_right_from_wrong() {
    use FileSystem::{Ext4, Ext4NoBarrier, Xfs};
    let Some((lab, _one)) = lab(&[Ext4, Xfs]) else { return };
    let cell = |file_system, means| Cell {
        file_system,
        subject: Subject::Plain(means),
        mode: Mode::Steady,
        again: false,
        images: images(),
        scale: Scale::FULL,
    };
    let seed = seed();
    let cells = [
        cell(Ext4, Means::RecycledAtOnce),
        cell(Xfs, Means::RecycledAtOnce),
        cell(Ext4NoBarrier, Means::NewSynced),
        cell(Ext4, Means::NewSynced),
        cell(Xfs, Means::NewSynced),
        cell(Ext4, Means::RecycledFromQuarantine),
        cell(Xfs, Means::RecycledFromQuarantine),
    ];
    let outcomes = run(&lab, &cells, seed);
    let (wrong, right) = outcomes.split_at(3);
    assert!(
        wrong[0].bad_files > 0 && wrong[1].bad_files > 0,
        "SALTERN_POWER_SEED={seed}: recycling without a quarantine passed"
    );
    assert!(
        wrong[2].missing + wrong[2].faults + wrong[2].unmountable > 0,
        "SALTERN_POWER_SEED={seed}: a disk that lies passed"
    );
    expect_clean(right, seed);
}

/// The engine without its quarantine: recycled files come back under their old names, and only checksums see it.
#[test]
fn without_the_quarantine_the_same_test_fails() {
    use FileSystem::{Ext4, Xfs};
    let Some((lab, _one)) = lab(&[Ext4, Xfs]) else { return };
    let cell = |file_system, integrity| {
        let setup = Setup {
            durability: Durability::None,
            integrity,
            recycling: Recycling::WithoutQuarantine,
            layout: Layout::Fs,
            buffered: false,
        };
        let subject = Subject::Engine(setup);
        Cell { file_system, subject, mode: Mode::Steady, again: false, images: images(), scale: Scale::FULL }
    };
    let seed = seed();
    let cells = [Integrity::Off, Integrity::Verify].map(|integrity| [Ext4, Xfs].map(|under| cell(under, integrity)));
    let outcomes = run(&lab, cells.as_flattened(), seed);
    for outcome in &outcomes {
        assert!(outcome.bad_files > 0, "SALTERN_POWER_SEED={seed}: {:?} passed", outcome.cell);
    }
    let (unchecked, checked) = outcomes.split_at(2);
    assert!(
        unchecked.iter().all(|outcome| outcome.bad_loads > 0),
        "SALTERN_POWER_SEED={seed}: nothing wrong was loaded"
    );
    for outcome in checked {
        assert_eq!(outcome.bad_loads, 0, "SALTERN_POWER_SEED={seed}: a checksum did not see wrong bytes");
        assert!(outcome.refused >= outcome.bad_files, "SALTERN_POWER_SEED={seed}: {outcome:?}");
    }
}
