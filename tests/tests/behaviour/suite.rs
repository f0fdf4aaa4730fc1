//! The behaviour suite. Which cells it runs in says the binary that it is part of, by the macro `in_cells`.
//!
//! Tests that are not about every cell say which by their attribute, or, where they are about one directory, medium or option and
//! not about what is mounted, are plain tests, and their module says why.

/// In every cell: each adapter, each layout, one volume and three.
macro_rules! each_cell {
    ($($test:tt)*) => { test_in_cells!(each, $($test)*); };
}

/// In the cells of the adapter that needs no capacity: NIXL-dynamic's has one always, so that its stores wait for the scan.
macro_rules! each_cell_without_capacity {
    ($($test:tt)*) => { test_in_cells!(fs, $($test)*); };
}

/// In the cells of one volume: what happens to the only one happens to one of several in another way (`several`).
macro_rules! each_cell_of_one_volume {
    ($($test:tt)*) => { test_in_cells!(each_alone, $($test)*); };
}

/// In the cells of NIXL-dynamic: about what it alone has.
macro_rules! each_cell_of_nixl {
    ($($test:tt)*) => { test_in_cells!(nixl, $($test)*); };
}

/// In the cells of the layout that has directories of its own.
macro_rules! each_cell_with_shard_directories {
    ($($test:tt)*) => { test_in_cells!(sharded, $($test)*); };
}

/// In the simplest cell: about parts that know nothing of names and volumes, at a cost that nine cells more would not repay.
macro_rules! one_cell {
    ($($test:tt)*) => { test_in_cells!(simplest, $($test)*); };
}

/// One test for each cell of a list, for `in_cells`.
macro_rules! tests_in {
    ($test:ident: $($cell:ident $layout:ident $volumes:literal),*) => {$(
        #[test]
        fn $cell() {
            super::$test(saltern_tests::Cell { layout: saltern::Layout::$layout, volumes: $volumes });
        }
    )*};
}

macro_rules! test_in_cells {
    ($cells:ident, $(#[$attribute:meta])* fn $test:ident($cell:ident: $type:ident) $body:block) => {
        $(#[$attribute])*
        fn $test($cell: $type) $body

        mod $test {
            in_cells!($test, $cells);
        }
    };
}

mod admission;
mod eviction;
mod file_systems;
mod forbidden;
pub(crate) mod gate;
mod health;
mod limits;
mod listing;
mod model;
mod obstacles;
mod pins;
mod priorities;
mod quotas;
mod recovery;
mod recycling;
mod secondary;
mod several;
mod snapshot;
mod tickets;
mod volume;
mod watching;
mod zeroes;

use saltern::Layout;
use saltern::eviction::PolicyKind;
use saltern_tests::{Cell, Mount, Scratch};

pub(crate) fn scratch(name: &str) -> Scratch {
    Scratch::new(env!("CARGO_TARGET_TMPDIR"), name)
}

/// A cell's directories.
pub(crate) fn mount(cell: Cell, name: &str) -> Mount {
    Mount::new(cell, scratch(name))
}

/// All policies in the simplest cell, one of them in each other: what a policy says does not depend on where it is asked.
pub(crate) fn policies(cell: Cell) -> Vec<PolicyKind> {
    let turn = Layout::ALL.iter().position(|layout| *layout == cell.layout).unwrap_or_default() + cell.volumes;
    cell.sized(PolicyKind::ALL.to_vec(), vec![PolicyKind::ALL[turn % PolicyKind::ALL.len()]])
}
