//! The engine makes room: who goes, who stays, and that the books are right afterwards.

use std::collections::HashSet;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use macro_rules_attribute::apply;
use rand::Rng;
use rand::seq::SliceRandom;
use saltern::eviction::PolicyKind;
use saltern::{Buffer, Config, Discovery, Engine, Error, Eviction, ObjectKey};
use saltern_tests::{Cell, Host, Mount, Recorder, Seed, done, find, get, key, payload, put, remove, salted, until};

use crate::{mount, policies};

const OBJECT_BYTES: usize = 10_000;
const CAPACITY: u64 = 100 * OBJECT_BYTES as u64;

/// From 80 objects down to 60.
fn evicting(mount: &Mount, policy: PolicyKind) -> Config {
    let mut config = mount.config();
    config.capacity_bytes = Some(CAPACITY);
    config.eviction = eviction(policy, 0.8, 0.2);
    config
}

fn eviction(kind: PolicyKind, mark: f64, by: f64) -> Eviction {
    let mut eviction = Eviction::engine(kind);
    let Eviction::Engine { watermark, ratio, .. } = &mut eviction else { unreachable!("the engine's") };
    (*watermark, *ratio) = (mark, by);
    eviction
}

fn fill(engine: &Host, numbers: std::ops::Range<u32>) {
    for n in numbers {
        assert!(
            matches!(put(engine, &key(n), &payload(n.into(), OBJECT_BYTES)), Ok(bytes) if bytes == OBJECT_BYTES as u64)
        );
    }
}

fn settled(engine: &Engine) {
    until("nothing is on its way out", || {
        let status = engine.status();
        status.evicting_objects == 0 && status.waiting_stores == 0 && status.queued_objects == 0
    });
}

fn present(engine: &Host, numbers: std::ops::Range<u32>) -> Vec<u32> {
    numbers.filter(|n| find(engine, &key(*n)).is_some()).collect()
}

/// Files as an earlier run left them, number 0 the oldest.
fn write_aged(mount: &Mount, keys: &[ObjectKey]) {
    for (age, key) in keys.iter().enumerate() {
        let file = File::create(mount.ground(key)).expect("create");
        file.set_len(OBJECT_BYTES as u64).expect("truncate");
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000) + Duration::from_millis(age as u64);
        file.set_modified(at).expect("utimens");
    }
}

#[apply(each_cell!)]
fn above_the_watermark_the_oldest_go_until_below_it(cell: Cell) {
    for policy in policies(cell) {
        for shards in cell.sized(&[1, 3][..], &[2]).iter().copied() {
            let mount = mount(cell, "watermark");
            let mut config = evicting(&mount, policy);
            config.shards = shards;
            let engine = mount.open_as(config);
            let heard = Recorder::new();
            engine.subscribe(heard.clone()).expect("subscribe");
            fill(&engine, 0..80);
            settled(&engine);
            assert_eq!(engine.status().counters.evictions, 0, "{policy}: not above it");
            fill(&engine, 80..81);
            settled(&engine);
            assert_eq!(present(&engine, 0..81), (21..81).collect::<Vec<_>>(), "{policy}, {shards} shards");
            let counters = engine.status().counters;
            assert_eq!((counters.evictions, counters.evicted_bytes), (21, 21 * OBJECT_BYTES as u64));
            assert_eq!((counters.deletes, counters.quota_evictions, counters.eviction_errors), (0, 0, 0));
            let disk = mount.assert_books(&engine);
            assert_eq!(disk.files.len(), 60);
            engine.close();
            assert_eq!(heard.objects().len(), 60, "listeners hear of evictions as deletions");
        }
    }
}

#[apply(each_cell!)]
fn what_is_used_stays_longer(cell: Cell) {
    for policy in policies(cell) {
        let mount = mount(cell, "used");
        let engine = mount.open_as(evicting(&mount, policy));
        fill(&engine, 0..80);
        for n in (0..10).chain(0..10) {
            get(&engine, &key(n), OBJECT_BYTES).expect("load");
        }
        // Storing again is a use, too.
        for n in (10..20).chain(10..20) {
            assert!(matches!(put(&engine, &key(n), b"again"), Ok(0)));
        }
        fill(&engine, 80..101);
        settled(&engine);
        assert_eq!(present(&engine, 0..20).len(), 20, "{policy}");
        assert_eq!(present(&engine, 20..40).len(), 0, "{policy}");
        mount.assert_books(&engine);
    }
}

#[apply(each_cell!)]
fn pinned_objects_are_never_victims(cell: Cell) {
    for policy in policies(cell) {
        let mount = mount(cell, "pinned-victims");
        let engine = mount.open_as(evicting(&mount, policy));
        fill(&engine, 0..50);
        let pinned: Vec<ObjectKey> = (0..50).map(key).collect();
        assert_eq!(done(engine.lookup_and_pin(&pinned)).hits(), 50);
        fill(&engine, 50..300);
        settled(&engine);
        assert_eq!(present(&engine, 0..50).len(), 50, "{policy}");
        assert!(engine.status().counters.evictions_in_use > 0);
        mount.assert_books(&engine);
        assert_eq!(engine.unpin(&pinned), 50);
        assert_eq!(engine.evict_to(0).expect("evict").used_bytes, 0, "{policy}: after that they go like the others");
        mount.assert_books(&engine);
    }
}

#[apply(each_cell!)]
fn stores_beyond_the_capacity_wait_for_room_in_one_batch(cell: Cell) {
    for (policy, shards) in policies(cell).into_iter().zip([1, 3, 2]) {
        let mount = mount(cell, "one-batch");
        let mut config = evicting(&mount, policy);
        config.shards = shards;
        let engine = mount.open_as(config);
        let count = cell.sized(1000, 150);
        let batch = (0..count).map(|n| (key(n), Buffer::from(payload(n.into(), OBJECT_BYTES)))).collect();
        let report = done(engine.store(batch));
        assert!(report.results.iter().all(|result| matches!(result, Ok(bytes) if *bytes == OBJECT_BYTES as u64)));
        settled(&engine);
        let status = engine.status();
        assert!(status.used_bytes <= CAPACITY * 8 / 10, "{}", status.used_bytes);
        assert_eq!(status.counters.stores_refused, 0);
        for n in present(&engine, 0..count) {
            assert!(get(&engine, &key(n), OBJECT_BYTES).expect("load") == payload(n.into(), OBJECT_BYTES));
        }
        mount.assert_books(&engine);
    }
}

#[apply(each_cell!)]
fn what_can_never_fit_is_refused_and_evicts_nothing(cell: Cell) {
    let mount = mount(cell, "never-fits");
    let engine = mount.open_as(evicting(&mount, PolicyKind::Lru));
    fill(&engine, 0..10);
    let large = vec![1; CAPACITY as usize + 1];
    assert!(matches!(put(&engine, &key(1000), &large), Err(Error::Full { capacity: CAPACITY, .. })));
    assert_eq!(engine.status().counters.evictions, 0);
    // As large as all of it: everything else goes.
    assert!(matches!(put(&engine, &key(1001), &large[1..]), Ok(CAPACITY)));
    settled(&engine);
    assert_eq!(present(&engine, 0..10), [0; 0]);
    mount.assert_books(&engine);
}

#[apply(each_cell!)]
fn when_everything_is_in_use_a_store_is_refused_at_once(cell: Cell) {
    for policy in policies(cell) {
        let mount = mount(cell, "all-pinned");
        let mut config = evicting(&mount, policy);
        config.eviction = eviction(policy, 1.0, 0.1);
        config.store_deadline = Duration::from_secs(3600);
        let engine = mount.open_as(config);
        fill(&engine, 0..100);
        let all: Vec<ObjectKey> = (0..100).map(key).collect();
        assert_eq!(done(engine.lookup_and_pin(&all)).hits(), 100);
        assert!(
            matches!(put(&engine, &key(500), &[1; 100]), Err(Error::Full { needed: 100, free: 0, .. })),
            "{policy}"
        );
        assert!(matches!(put(&engine, &key(500), &[]), Ok(0)), "nothing needs no room");
        engine.unpin(&all[..1]);
        assert!(matches!(put(&engine, &key(501), &[1; 100]), Ok(100)));
        settled(&engine);
        assert_eq!(present(&engine, 0..100), (1..100).collect::<Vec<_>>());
        mount.assert_books(&engine);
    }
}

#[apply(each_cell!)]
fn recovered_objects_are_victims_at_once_oldest_first(cell: Cell) {
    let seed = Seed::new("recovered_objects_are_victims_at_once_oldest_first");
    for policy in policies(cell) {
        for background in [false, true] {
            let mount = mount(cell, "recovered-victims");
            let mut order: Vec<u32> = (0..90).collect();
            order.shuffle(&mut seed.rng(0));
            write_aged(&mount, &order.iter().map(|n| key(*n)).collect::<Vec<_>>());
            let opener = Engine::opener(evicting(&mount, policy)).background(background);
            let engine = mount.open_with(opener);
            engine.wait_recovered();
            settled(&engine);
            let left: HashSet<u32> = present(&engine, 0..90).into_iter().collect();
            assert_eq!(left, order[30..].iter().copied().collect(), "{policy}: it was above the watermark");
            fill(&engine, 1000..1021);
            settled(&engine);
            let left: HashSet<u32> = present(&engine, 0..90).into_iter().collect();
            assert_eq!(left, order[51..].iter().copied().collect(), "{policy}");
            mount.assert_books(&engine);
        }
    }
}

#[apply(each_cell!)]
fn room_can_be_asked_for(cell: Cell) {
    let mount = mount(cell, "evict-to");
    let engine = mount.open_as(evicting(&mount, PolicyKind::Lru));
    fill(&engine, 0..50);
    assert_eq!(engine.evict_to(CAPACITY).expect("evict").objects, 0);
    let report = engine.evict_to(30 * OBJECT_BYTES as u64 + 1).expect("evict");
    assert_eq!((report.objects, report.used_bytes, report.errors), (20, 30 * OBJECT_BYTES as u64, 0));
    assert_eq!(present(&engine, 0..50), (20..50).collect::<Vec<_>>());
    assert_eq!(done(engine.lookup_and_pin(&[key(25)])).hits(), 1);
    let report = engine.evict_to(0).expect("evict");
    assert_eq!((report.objects, report.used_bytes), (29, OBJECT_BYTES as u64));
    assert!(report.in_use > 0);
    mount.assert_books(&engine);
    drop(engine);
    let engine = mount.open();
    assert!(matches!(engine.evict_to(0), Err(Error::Config { option: "eviction", .. })));
}

#[apply(each_cell!)]
fn what_has_taken_a_victims_name_is_left_alone(cell: Cell) {
    let mount = mount(cell, "stuck-victim");
    let mut config = evicting(&mount, PolicyKind::Lru);
    config.spare_bytes = 0;
    let engine = mount.open_as(config);
    fill(&engine, 0..80);
    // Something else has taken the oldest one's name.
    let name = mount.file(&key(0));
    std::fs::remove_file(&name).expect("unlink");
    std::fs::create_dir(&name).expect("mkdir");
    fill(&engine, 80..81);
    settled(&engine);
    assert!(name.is_dir(), "not ours to remove");
    std::fs::remove_dir(&name).expect("rmdir");
    assert_eq!(present(&engine, 0..81), (21..81).collect::<Vec<_>>());
    mount.assert_books(&engine);
}

#[apply(each_cell!)]
fn closing_with_victims_and_waiting_stores_loses_nothing(cell: Cell) {
    let mount = mount(cell, "close-evicting");
    for round in 0..cell.sized(20, 4) {
        let mut config = evicting(&mount, PolicyKind::S3Fifo);
        config.shards = 2;
        let engine = mount.open_as(config);
        let batch = (0..300).map(|n| (key(round * 1000 + n), Buffer::from(payload(n.into(), OBJECT_BYTES)))).collect();
        let ticket = engine.store(batch);
        if round % 2 == 0 {
            std::thread::yield_now();
        }
        engine.close();
        let report = done(ticket);
        assert!(
            report.results.iter().all(|result| matches!(result, Ok(_) | Err(Error::Closed))),
            "{:?}",
            report.results
        );
        let engine = mount.open();
        assert!(engine.usage().total_bytes_used <= CAPACITY);
        mount.assert_books(&engine);
    }
}

#[apply(each_cell!)]
fn callers_of_every_kind_at_once_and_the_books_agree(cell: Cell) {
    let seed = Seed::new("callers_of_every_kind_at_once_and_the_books_agree");
    for policy in policies(cell) {
        let rounds = cell.sized(1500, 200);
        let mount = mount(cell, "everything-at-once");
        let mut config = evicting(&mount, policy);
        config.shards = 2;
        let engine = mount.open_as(config);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3_u64)
                .map(|n| {
                    let (engine, seed) = (&engine, &seed);
                    scope.spawn(move || {
                        let mut rng = seed.rng(n);
                        for _ in 0..rounds {
                            let n = rng.random_range(0..400_u32);
                            let key = salted(n, ["", "a", "b"][n as usize % 3]);
                            let bytes = 1000 + n as usize * 40;
                            match rng.random_range(0..10) {
                                0..5 => match put(engine, &key, &payload(n.into(), bytes)) {
                                    Ok(_) | Err(Error::Full { .. }) => {}
                                    other => panic!("{other:?}"),
                                },
                                5..8 => match get(engine, &key, bytes) {
                                    Ok(loaded) => assert!(loaded == payload(n.into(), bytes), "wrong bytes of {key}"),
                                    Err(Error::NotFound) => {}
                                    other => panic!("{other:?}"),
                                },
                                8 => drop(remove(engine, &key)),
                                _ => {
                                    if done(engine.lookup_and_pin(std::slice::from_ref(&key))).hits() == 1 {
                                        let loaded = get(engine, &key, bytes).expect("pinned objects stay");
                                        assert!(loaded == payload(n.into(), bytes), "wrong bytes of {key}");
                                        engine.unpin(&[key]);
                                    }
                                }
                            }
                        }
                    })
                })
                .collect();
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    assert!(engine.usage().total_bytes_used <= CAPACITY);
                    std::thread::yield_now();
                }
            });
            let ended: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
            stop.store(true, Ordering::Relaxed);
            ended.into_iter().for_each(|thread| thread.expect("no panic"));
        });
        settled(&engine);
        assert!(engine.status().counters.evictions > 0);
        mount.assert_books(&engine);
    }
}

#[apply(each_cell!)]
fn marks_that_make_no_sense_are_refused(cell: Cell) {
    let mount = mount(cell, "marks");
    let cases = [(0.0, 0.0), (1.1, 0.1), (0.5, 0.6), (0.5, -0.1), (f64::NAN, 0.1), (0.5, f64::NAN)];
    for (watermark, ratio) in cases {
        let mut config = evicting(&mount, PolicyKind::Lru);
        config.eviction = eviction(PolicyKind::Lru, watermark, ratio);
        assert!(
            matches!(mount.try_open(config), Err(Error::Config { option: "eviction", .. })),
            "{watermark}, {ratio}"
        );
    }
    let mut config = evicting(&mount, PolicyKind::Lru);
    config.capacity_bytes = None;
    // NIXL-dynamic's adapter misses it before the engine does.
    assert!(matches!(mount.try_open(config), Err(Error::Config { option: "eviction" | "capacity_bytes", .. })));
    let mut config = evicting(&mount, PolicyKind::Lru);
    config.discovery = Discovery::Ask;
    assert!(
        matches!(mount.try_open(config), Err(Error::Config { option: "eviction", .. })),
        "it cannot know what to evict"
    );
}
