//! The behaviour suite once more, on the software device: all memory that it hands to the engine plays memory of a device, so that
//! each byte goes through slots and copies, whose completions come in any order, and some of them late, and some of which fail and are
//! made again (`saltern_tests::config`).
//!
//! The process has a seed, which it prints: `SALTERN_SEED=n` makes the same choices again. No copy fails for good here, since an object
//! whose copy does so fails, and these tests say what has to be answered; `device_model.rs` is about those.

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

use saltern::{Buffer, Engine};
use saltern_tests::{Scratch, config, done, get, is_long, key, payload};
use suite::{gate, mount, policies, scratch};

#[test]
fn copies_fail_here_and_end_in_any_order_and_slots_are_overwritten() {
    const OBJECTS: u32 = 200;
    const BYTES: usize = 10_000;
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "on-device");
    let config = config(scratch.path());
    let device = config.loopback.clone().expect("every engine of this process has one");
    let engine = Engine::open(config).expect("open");
    let batch = (0..OBJECTS).map(|n| (key(n), Buffer::from(payload(n.into(), BYTES)))).collect();
    assert!(done(engine.store(batch)).results.iter().all(Result::is_ok));
    for n in 0..OBJECTS {
        assert!(get(&engine, &key(n), BYTES).expect("load") == payload(n.into(), BYTES), "object {n}");
    }
    // One of 20 is the least: of 400 copies none fails once in 10^8 runs.
    let (copies, failed) = device.counts();
    assert!(failed > 0, "none of {copies} copies has failed");
    assert_eq!(copies - failed, 2 * u64::from(OBJECTS), "copies that went well");
    let status = engine.status().devices.remove(0);
    assert_eq!(status.repeated_copies, failed, "each that failed was made again: {status:?}");
    assert!(status.last_repeat.is_some_and(|why| why.contains("told to fail")));
    assert!(device.overtakings() > 0, "all copies have ended in their order");
    assert!(saltern::device::Device::poisons_slots(&device));
    assert_eq!(status.transit_used_bytes, 0, "slots are held");
}
