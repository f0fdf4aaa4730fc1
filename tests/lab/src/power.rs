//! Power cuts: every mode, durability and integrity on ext4 and xfs, and controls: writers of which it is known whether they are
//! right, and an engine without its quarantine.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use saltern::{Durability, Integrity, Layout};
use saltern_power::cell::{Cell, Means, Mode, Outcome, Recycling, Scale, Setup, Subject};
use saltern_power::{Error, FileSystem};

use crate::context::Context;
use crate::table::Row;

/// Images of a cell of the matrix, and of one in the long run.
const IMAGES: (u64, u64) = (40, 400);

/// Images of a control: it has to fail on one of them.
const CONTROL_IMAGES: usize = 12;

/// Cells that run side by side: mounting and unmounting is mostly waiting.
const WORKERS: usize = 4;

/// Runs cells on so many threads, each with a lab of its own; gives what each has shown, in their order.
///
/// # Errors
/// When this machine cannot run them.
fn run(cx: &Context, cells: &[Cell]) -> Result<Vec<Result<Outcome, Error>>, Error> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<_>> = Mutex::new(cells.iter().map(|_| None).collect());
    let work = || {
        let lab = cx.lab(&[FileSystem::Ext4, FileSystem::Xfs])?;
        while let Some((number, cell)) = cells.iter().enumerate().nth(next.fetch_add(1, Ordering::Relaxed)) {
            let outcome = cell.run(&lab, cx.seed.wrapping_add(number as u64));
            let told = outcome.as_ref().map_or_else(ToString::to_string, |outcome| {
                let (found, (work_s, all_s)) = (outcome.details.len(), outcome.seconds);
                format!(
                    "{} images, {} in doubt, {found} with findings, {all_s:.1} s, {work_s:.1} of these for the load",
                    cell.images, outcome.doubted
                )
            });
            eprintln!("{}: {told}", name(cell));
            results.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[number] = Some(outcome);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS.min(cells.len())).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    let results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(results.into_iter().map(|result| result.expect("each cell was run")).collect())
}

fn name(cell: &Cell) -> String {
    let subject = match cell.subject {
        Subject::Engine(Setup { durability, integrity, recycling, layout, buffered }) => {
            let buffered = if buffered { ", buffered" } else { "" };
            format!("{durability:?}, integrity {integrity:?}, recycling {recycling}, {layout}{buffered}")
        }
        Subject::Plain(means) => format!("plain, {means:?}"),
    };
    let again = if cell.again { ", cut before" } else { "" };
    format!("{}, {}, {subject}{again}", cell.file_system, cell.mode)
}

/// The matrix, a row for each file system.
pub fn matrix(cx: &Context) -> Vec<Row> {
    let images = cx.images.unwrap_or(cx.times(IMAGES.0, IMAGES.1)) as usize;
    let file_systems = [FileSystem::Ext4, FileSystem::Xfs];
    let mut rows = file_systems.map(|file_system| {
        Row::new(format!(
            "power cuts on {file_system}: fresh, steady and delete-heavy; durability none, data and full; integrity off and verify"
        ))
    });
    let cells: Vec<Cell> = file_systems.into_iter().flat_map(|file_system| cells(file_system, images)).collect();
    match run(cx, &cells) {
        Ok(outcomes) => {
            for (cell, outcome) in cells.iter().zip(outcomes) {
                let row = &mut rows[usize::from(cell.file_system == FileSystem::Xfs)];
                match outcome {
                    Ok(outcome) => judge(row, &outcome),
                    Err(error) => row.bad(format!("{}: {error}", name(cell))),
                }
            }
            rows.map(Row::done).into()
        }
        Err(error) => rows.map(|row| row.stopped(&error)).into(),
    }
}

fn cells(file_system: FileSystem, images: usize) -> Vec<Cell> {
    use {Durability as D, Integrity as I, Layout as L, Mode as M, Recycling as R};
    let mut cells = Vec::new();
    let base = Setup { durability: D::None, integrity: I::Off, recycling: R::On, layout: L::Fs, buffered: false };
    let mut add = |mode, setup, again| {
        cells.push(Cell { file_system, subject: Subject::Engine(setup), mode, again, images, scale: Scale::SMALL });
    };
    for mode in [M::Fresh, M::Steady, M::DeleteHeavy] {
        for durability in [D::None, D::Data, D::Full] {
            for integrity in [I::Off, I::Verify] {
                add(mode, Setup { durability, integrity, ..base }, false);
            }
        }
    }
    // Names in many directories.
    add(M::Steady, Setup { layout: L::NixlSharded, integrity: I::Verify, ..base }, false);
    add(M::Steady, Setup { layout: L::NixlSharded, durability: D::Full, ..base }, false);
    // Deleted files are removed.
    add(M::Steady, Setup { recycling: R::Off, durability: D::Full, ..base }, false);
    add(M::DeleteHeavy, Setup { recycling: R::Off, integrity: I::Verify, ..base }, false);
    // Buffered bytes are synced before they are published.
    add(M::Steady, Setup { buffered: true, ..base }, false);
    // The recovery from a first cut is cut as well.
    add(M::Steady, Setup { durability: D::Full, integrity: I::Verify, ..base }, true);
    add(M::DeleteHeavy, base, true);
    cells
}

fn judge(row: &mut Row, outcome: &Outcome) {
    let Outcome { cell, .. } = outcome;
    row.cases += cell.images as u64;
    row.faults += cell.images as u64;
    for detail in &outcome.details {
        row.bad(format!("{}: {detail}", name(cell)));
    }
    if outcome.objects == 0 {
        row.bad(format!("nothing was checked: {outcome:?}"));
    }
    if let Subject::Engine(Setup { integrity, .. }) = cell.subject {
        // As many images are opened as after a reboot (see `Setup::check_config`); of those that are cut while one engine follows
        // the other, some may bear no mark.
        let rebooted = if integrity == Integrity::Off { cell.images.div_ceil(2) } else { cell.images };
        if outcome.doubted < rebooted.div_ceil(2) {
            let doubted = outcome.doubted;
            row.bad(format!("{doubted} of {rebooted} images were seen to be of a machine that went down: {outcome:?}"));
        }
    }
    if let Subject::Engine(Setup { recycling, .. }) = cell.subject
        && (outcome.recycled > 0) != (cell.mode != Mode::Fresh && recycling != Recycling::Off)
    {
        row.bad(format!("files were not recycled as planned: {outcome:?}"));
    }
}

/// Writers that are known to be wrong, which the lab has to see, and some that are known to be right.
pub fn controls(cx: &Context) -> Row {
    use FileSystem::{Ext4, Ext4NoBarrier, Xfs};
    let mut row =
        Row::new("power cuts, controls: what is wrong (no quarantine, no barriers) is seen, what is right passes");
    let cells: Vec<Cell> = [
        (Ext4, unguarded(Integrity::Off)),
        (Xfs, unguarded(Integrity::Off)),
        (Ext4, unguarded(Integrity::Verify)),
        (Xfs, unguarded(Integrity::Verify)),
        (Ext4, Subject::Plain(Means::RecycledAtOnce)),
        (Xfs, Subject::Plain(Means::RecycledAtOnce)),
        (Ext4NoBarrier, Subject::Plain(Means::NewSynced)),
        (Ext4, Subject::Plain(Means::NewSynced)),
        (Xfs, Subject::Plain(Means::NewSynced)),
        (Ext4, Subject::Plain(Means::RecycledFromQuarantine)),
        (Xfs, Subject::Plain(Means::RecycledFromQuarantine)),
    ]
    .map(|(file_system, subject)| Cell {
        file_system,
        subject,
        mode: Mode::Steady,
        again: false,
        images: CONTROL_IMAGES,
        scale: Scale::SMALL,
    })
    .into();
    let outcomes = match run(cx, &cells) {
        Ok(outcomes) => outcomes,
        Err(error) => return row.stopped(&error),
    };
    for (cell, outcome) in cells.iter().zip(outcomes) {
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                row.bad(format!("{}: {error}", name(cell)));
                continue;
            }
        };
        if is_right(cell) {
            judge(&mut row, &outcome);
            continue;
        }
        row.cases += cell.images as u64;
        row.faults += cell.images as u64;
        if !is_seen(&outcome) {
            row.bad(format!("a control passed: {outcome:?}"));
        }
    }
    row.done()
}

/// The engine without its quarantine.
fn unguarded(integrity: Integrity) -> Subject {
    let recycling = Recycling::WithoutQuarantine;
    Subject::Engine(Setup { durability: Durability::None, integrity, recycling, layout: Layout::Fs, buffered: false })
}

fn is_right(cell: &Cell) -> bool {
    match cell.subject {
        Subject::Engine(_) => false,
        Subject::Plain(means) => means != Means::RecycledAtOnce && cell.file_system != FileSystem::Ext4NoBarrier,
    }
}

/// Whether the lab has seen what is wrong with a writer.
fn is_seen(outcome: &Outcome) -> bool {
    match outcome.cell.subject {
        Subject::Engine(Setup { integrity: Integrity::Verify, .. }) => {
            // Only checksums see the wrong bytes: each such file is refused, and none is loaded.
            outcome.bad_files > 0 && outcome.bad_loads == 0 && outcome.refused >= outcome.bad_files
        }
        Subject::Engine(_) => outcome.bad_files > 0 && outcome.bad_loads > 0,
        Subject::Plain(Means::RecycledAtOnce) => outcome.bad_files > 0,
        Subject::Plain(_) => outcome.missing + outcome.faults + outcome.unmountable > 0,
    }
}
