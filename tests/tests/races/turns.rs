//! In which order a shard takes what waits for it.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};

use saltern::Engine;
use saltern::steps::{Step, Steps};
use saltern_tests::{WAIT_MAX, checked, config, done, key, payload, put};

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
