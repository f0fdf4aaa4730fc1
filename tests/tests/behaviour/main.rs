//! How the engine behaves, on real directories, through each adapter with each of its layouts, on one volume and on three
//! (`saltern_tests::Cell`): a test that says `#[apply(each_cell!)]` runs once in each of the ten cells, under its name and the cell's.
//!
//! `SALTERN_SEED=n` repeats the random choices of a failed run, `SALTERN_LONG=1` makes more of them, and
//! `SALTERN_TEST_DIR=dir` runs on another file system.

/// The cells that this binary runs a test in: all.
macro_rules! in_cells {
    ($test:ident, each) => {
        in_cells!($test, fs);
        in_cells!($test, nixl);
    };
    ($test:ident, each_alone) => {
        tests_in!($test: fs_alone Fs 1, fs3_alone Fs3 1);
        tests_in!($test: nixl_alone Nixl 1, nixl3_alone Nixl3 1, nixl_sharded_alone NixlSharded 1);
    };
    ($test:ident, fs) => {
        tests_in!($test: fs_alone Fs 1, fs_on_three Fs 3, fs3_alone Fs3 1, fs3_on_three Fs3 3);
    };
    ($test:ident, nixl) => {
        tests_in!($test: nixl_alone Nixl 1, nixl_on_three Nixl 3, nixl3_alone Nixl3 1, nixl3_on_three Nixl3 3,
            nixl_sharded_alone NixlSharded 1, nixl_sharded_on_three NixlSharded 3);
    };
    ($test:ident, simplest) => { tests_in!($test: fs_alone Fs 1); };
    ($test:ident, sharded) => {
        tests_in!($test: nixl_sharded_alone NixlSharded 1, nixl_sharded_on_three NixlSharded 3);
    };
}

#[path = "suite.rs"]
mod suite;

use saltern_tests::is_long;
use suite::{gate, mount, policies, scratch};
