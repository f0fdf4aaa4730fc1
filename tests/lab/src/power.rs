//! Power cuts: every mode, durability and integrity on ext4 and xfs, and controls that must fail.

use saltern::{Durability, Integrity, Layout};
use saltern_power::cell::{Cell, Means, Mode, Outcome, Recycling, Scale, Setup, Subject};
use saltern_power::{FileSystem, Lab};

use crate::context::Context;
use crate::table::Row;

/// Images of a cell of the matrix, and of one in the long run.
const IMAGES: (u64, u64) = (40, 400);

/// Images of a control: it has to fail on one of them.
const CONTROL_IMAGES: usize = 12;

/// The matrix on one file system.
pub fn matrix(cx: &Context, file_system: FileSystem) -> Row {
    let mut row = Row::new(format!("power cuts on {file_system}: 3 modes, 3 durabilities, integrity off and verify"));
    let lab = match cx.lab(&[file_system]) {
        Ok(lab) => lab,
        Err(error) => return row.skipped(error),
    };
    for cell in cells(file_system, cx.images.unwrap_or(cx.times(IMAGES.0, IMAGES.1)) as usize) {
        match cell.run(&lab, cx.seed) {
            Ok(outcome) => {
                row.cases += cell.images as u64;
                row.faults += cell.images as u64;
                let (all_s, found) = (outcome.seconds.1, outcome.details.len());
                eprintln!("{file_system}, {}: {} images, {found} bad, {all_s:.1} s", cell.mode, cell.images);
                judge(&mut row, &outcome);
            }
            Err(error) => row.bad(format!("{cell:?}: {error}")),
        }
    }
    row.done()
}

fn cells(file_system: FileSystem, images: usize) -> Vec<Cell> {
    use {Durability as D, Integrity as I, Layout as L, Mode as M};
    let mut cells = Vec::new();
    let mut add = |mode, durability, integrity, layout, buffered, again| {
        let setup = Setup { durability, integrity, recycling: Recycling::On, layout, buffered };
        let subject = Subject::Engine(setup);
        cells.push(Cell { file_system, subject, mode, again, images, scale: Scale::SMALL });
    };
    for mode in [M::Fresh, M::Steady, M::DeleteHeavy] {
        for durability in [D::None, D::Data, D::Full] {
            for integrity in [I::Off, I::Verify] {
                add(mode, durability, integrity, L::Fs, false, false);
            }
        }
    }
    add(M::Steady, D::None, I::Off, L::NixlSharded, false, false);
    // Buffered bytes are synced before they are published.
    add(M::Steady, D::None, I::Off, L::Fs, true, false);
    // The recovery from a first cut is cut as well.
    add(M::Steady, D::Full, I::Verify, L::Fs, false, true);
    cells
}

fn judge(row: &mut Row, outcome: &Outcome) {
    for detail in &outcome.details {
        row.bad(format!("{:?}: {detail}", outcome.cell));
    }
    if outcome.objects == 0 || outcome.opened == 0 {
        row.bad(format!("nothing was checked: {outcome:?}"));
    }
    if (outcome.recycled > 0) != (outcome.cell.mode != Mode::Fresh) {
        row.bad(format!("files were not recycled as planned: {outcome:?}"));
    }
}

/// Writers that are known to be wrong: the lab has to see it.
pub fn controls(cx: &Context) -> Row {
    let mut row = Row::new("power cuts, controls that have to fail: no quarantine, no barriers");
    let lab = match cx.lab(&[FileSystem::Ext4, FileSystem::Xfs]) {
        Ok(lab) => lab,
        Err(error) => return row.skipped(error),
    };
    for file_system in [FileSystem::Ext4, FileSystem::Xfs] {
        let setup = Setup {
            durability: Durability::None,
            integrity: Integrity::Off,
            recycling: Recycling::WithoutQuarantine,
            layout: Layout::Fs,
            buffered: false,
        };
        let cell = control(file_system, Subject::Engine(setup));
        expect_failure(&mut row, &lab, cx.seed, &cell, |outcome| outcome.bad_files > 0 && outcome.bad_loads > 0);
    }
    let cell = control(FileSystem::Ext4NoBarrier, Subject::Plain(Means::NewSynced));
    let is_seen = |outcome: &Outcome| outcome.missing + outcome.faults + outcome.unmountable > 0;
    expect_failure(&mut row, &lab, cx.seed, &cell, is_seen);
    row.done()
}

fn control(file_system: FileSystem, subject: Subject) -> Cell {
    let scale = Scale { engine_one_of: 1, ..Scale::SMALL };
    Cell { file_system, subject, mode: Mode::Steady, again: false, images: CONTROL_IMAGES, scale }
}

fn expect_failure(row: &mut Row, lab: &Lab, seed: u64, cell: &Cell, is_seen: impl Fn(&Outcome) -> bool) {
    row.cases += 1;
    row.faults += cell.images as u64;
    match cell.run(lab, seed) {
        Ok(outcome) if is_seen(&outcome) => {}
        Ok(outcome) => row.bad(format!("a control passed: {outcome:?}")),
        Err(error) => row.bad(format!("{cell:?}: {error}")),
    }
}
