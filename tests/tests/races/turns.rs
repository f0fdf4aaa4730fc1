//! In which order a shard takes what waits for it.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};

use saltern::steps::{Step, Steps};
use saltern::{Engine, Error};
use saltern_tests::{LoopMount, Unmountable, WAIT_MAX, checked, config, done, get, key, payload, put};

use crate::hold::Hold;
use crate::scratch;

/// What was seen at one step: names taken away so far, objects published, and files of stores that are under way.
#[derive(Clone, Copy, Debug)]
struct Seen {
    removed: usize,
    published: usize,
    unfinished: usize,
}

/// Steps that stop the shard at the first removal until `go`, and note what there is at each later one.
fn watched(temp: PathBuf, seen: Arc<Mutex<Vec<Seen>>>, go: mpsc::Receiver<()>, stands: mpsc::Sender<()>) -> Steps {
    let hook = Mutex::new((go, stands, 0, 0));
    checked(Steps::new(move |step, _| {
        // The others are of the caller's thread, which must not wait for the shard.
        if !matches!(step, Step::Removed | Step::Published) {
            return;
        }
        let mut hook = hook.lock().expect("not poisoned");
        let (go, stands, removed, published) = &mut *hook;
        match step {
            Step::Removed if *removed == 0 => {
                stands.send(()).expect("the test waits");
                go.recv_timeout(WAIT_MAX).expect("the test lets it go");
                *removed += 1;
                return;
            }
            Step::Removed => *removed += 1,
            _ => *published += 1,
        }
        let unfinished = fs::read_dir(&temp).expect("readdir").count();
        seen.lock().expect("not poisoned").push(Seen { removed: *removed, published: *published, unfinished });
    }))
}

/// Who deletes to make room and stores into it waits for neither: a name is taken away for each store that begins, and a long list
/// of either does not hold up the other.
#[test]
fn names_are_taken_away_as_stores_begin() {
    const OLD: u32 = 24;
    const NEW: u32 = 60;
    const DEPTH: usize = 8;
    let scratch = scratch("turns");
    let (seen, (go, gone), (stands, standing)) = (Arc::new(Mutex::new(Vec::new())), mpsc::channel(), mpsc::channel());
    let mut config = config(scratch.path());
    // New files for all: they are counted in `.saltern/tmp`.
    (config.shards, config.depth, config.spare_bytes) = (1, DEPTH, 0);
    config.steps = watched(scratch.join(".saltern/tmp"), seen.clone(), gone, stands);
    let engine = Engine::open(config).expect("open");
    for n in 0..=OLD {
        put(&engine, &key(n), &payload(n.into(), 5000)).expect("store");
    }
    seen.lock().expect("not poisoned").clear();

    let first = engine.delete(&[key(0)]);
    standing.recv_timeout(WAIT_MAX).expect("the shard came to the removal");
    let mut tickets = Vec::new();
    let deletes = engine.delete(&(1..=OLD).map(key).collect::<Vec<_>>());
    for n in 100..100 + NEW {
        tickets.push(engine.store(vec![(key(n), payload(n.into(), 5000).into())]));
    }
    go.send(()).expect("the shard waits");
    assert!(done(first).results[0].is_ok());
    assert!(done(deletes).results.iter().all(Result::is_ok));
    assert!(tickets.into_iter().all(|ticket| matches!(done(ticket).results[..], [Ok(5000)])));
    engine.close();

    let seen = seen.lock().expect("not poisoned");
    let all_removed = OLD as usize + 1;
    assert_eq!(seen.len(), (OLD + NEW) as usize);
    let before = usize::try_from(OLD).expect("small") + 1; // published by the test itself
    for at in seen.iter().filter(|at| at.removed < all_removed) {
        let begun = at.unfinished + at.published - before;
        assert!(begun <= at.removed, "a store began before its room was made: {at:?} in {seen:?}");
        assert!(begun + 2 >= at.removed.min(DEPTH / 2), "stores wait for all that goes: {at:?} in {seen:?}");
    }
}

/// The one store needs what several deletes in front of it leave, and the disk has nothing else.
#[test]
fn what_waits_to_be_removed_makes_room_before_a_store_is_refused() {
    const OBJECT: usize = 1 << 20;
    const LARGE: usize = 8 * OBJECT;
    const OBJECTS: u32 = 20;
    let mount = match LoopMount::new(env!("CARGO_TARGET_TMPDIR"), "ext4", 64 << 20, &["-q"]) {
        Ok(mount) => mount,
        Err(Unmountable(why)) => return eprintln!("SKIPPED: no file system of its own: {why}"),
    };
    let hold = Hold::default();
    let with_floor = |floor: u64| {
        let mut config = config(mount.path().join("volume"));
        (config.shards, config.spare_bytes, config.min_free_bytes) = (1, 0, Some(floor));
        config.steps = hold.steps();
        Engine::open(config).expect("open")
    };
    let engine = with_floor(0);
    for n in 0..OBJECTS {
        put(&engine, &key(n), &payload(n.into(), OBJECT)).expect("store");
    }
    engine.close();

    let stat = nix::sys::statvfs::statvfs(mount.path()).expect("statvfs");
    let engine = with_floor(stat.blocks_available() * stat.fragment_size() - OBJECT as u64);
    // Dropped before the engine, which cannot close while its thread is stopped.
    let hold = hold;
    engine.wait_recovered();
    assert!(matches!(put(&engine, &key(99), &payload(99, LARGE)), Err(Error::Full { .. })));
    hold.arm(Step::Removed, &key(0));
    let first = engine.delete(&[key(0)]);
    hold.wait(Step::Removed, &key(0));
    let deletes = engine.delete(&(1..OBJECTS).map(key).collect::<Vec<_>>());
    let store = engine.store(vec![(key(99), payload(99, LARGE).into())]);
    hold.free(Step::Removed, &key(0));
    let stored = done(store).results.remove(0);
    assert!(matches!(stored, Ok(bytes) if bytes == LARGE as u64), "{stored:?}");
    assert!(done(first).results[0].is_ok() && done(deletes).results.iter().all(Result::is_ok));
    assert!(get(&engine, &key(99), LARGE).expect("load") == payload(99, LARGE));
    engine.close();
}
