//! The behaviour suite once more, on the software device: all memory that it hands to the engine plays memory of a device, so that
//! each byte goes through slots and copies, whose completions come in any order, and some of them late (`saltern_tests::config`).
//!
//! The process has a seed, which it prints: `SALTERN_SEED=n` makes the same choices again. Copies do not fail here, since an object
//! whose copy fails does, and these tests say what has to be answered; `device_model.rs` is about those.

/// The cells that this binary runs a test in: the simplest, and the one with the most to it. What the device does ends where names
/// and volumes begin, so the others would show nothing that these two do not.
macro_rules! in_cells {
    ($test:ident, each) => { tests_in!($test: fs_alone Fs 1, nixl_sharded_on_three NixlSharded 3); };
    ($test:ident, each_alone) => { tests_in!($test: fs_alone Fs 1, nixl_sharded_alone NixlSharded 1); };
    ($test:ident, fs) => { tests_in!($test: fs_alone Fs 1, fs3_on_three Fs3 3); };
    ($test:ident, nixl) => { tests_in!($test: nixl_sharded_on_three NixlSharded 3); };
    ($test:ident, simplest) => { tests_in!($test: fs_alone Fs 1); };
    ($test:ident, sharded) => {
        tests_in!($test: nixl_sharded_alone NixlSharded 1, nixl_sharded_on_three NixlSharded 3);
    };
}

#[path = "behaviour/suite.rs"]
mod suite;

use saltern_tests::is_long;
use suite::{gate, mount, policies, scratch};
