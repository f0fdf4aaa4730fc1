//! Salts: their quotas, that a restart keeps those, and that no salt ever sees or pays for another.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use macro_rules_attribute::apply;
use rand::Rng;
use saltern::eviction::PolicyKind;
use saltern::{Buffer, Config, Engine, Error, Eviction, ListCursor, ObjectKey};
use saltern_tests::{Cell, Host, Mount, Recorder, Seed, done, find, get, payload, put, remove, salted, until};

use crate::{mount, policies};

const OBJECT_BYTES: usize = 5000;
const CAPACITY: u64 = 1000 * OBJECT_BYTES as u64;
const QUOTAS: &str = ".saltern/quotas";

fn objects(count: u64) -> u64 {
    count * OBJECT_BYTES as u64
}

fn evicting(mount: &Mount, policy: PolicyKind) -> Config {
    let mut config = mount.config();
    config.capacity_bytes = Some(CAPACITY);
    config.eviction = Eviction::engine(policy);
    config
}

fn store(engine: &Host, salt: &str, numbers: std::ops::Range<u32>) {
    for n in numbers {
        let stored = put(engine, &salted(n, salt), &payload(n.into(), OBJECT_BYTES));
        assert!(matches!(stored, Ok(bytes) if bytes == OBJECT_BYTES as u64), "{salt} {n}: {stored:?}");
    }
}

fn present(engine: &Host, salt: &str, numbers: std::ops::Range<u32>) -> Vec<u32> {
    numbers.filter(|n| find(engine, &salted(*n, salt)).is_some()).collect()
}

fn settled(engine: &Engine) {
    until("nothing is on its way out", || {
        let status = engine.status();
        status.evicting_objects == 0 && status.waiting_stores == 0 && status.queued_objects == 0
    });
}

#[apply(each_cell!)]
fn a_salt_at_its_quota_gives_up_its_own_oldest_and_nobody_elses(cell: Cell) {
    for policy in policies(cell) {
        for shards in cell.sized(&[1, 3][..], &[2]).iter().copied() {
            let mount = mount(cell, "own-oldest");
            let mut config = evicting(&mount, policy);
            config.shards = shards;
            let engine = mount.open_as(config);
            assert!(matches!(engine.set_quota("greedy", objects(10)), Ok(None)));
            // The neighbours' are older.
            store(&engine, "", 0..20);
            store(&engine, "small", 0..20);
            store(&engine, "greedy", 0..10);
            get(&engine, &salted(0, "greedy"), OBJECT_BYTES).expect("load");
            store(&engine, "greedy", 10..15);
            settled(&engine);
            assert_eq!(present(&engine, "greedy", 0..15), [0, 6, 7, 8, 9, 10, 11, 12, 13, 14], "{policy}");
            // In one batch, more than all of it.
            let more = cell.sized(200, 40);
            let batch = (100..100 + more).map(|n| (salted(n, "greedy"), Buffer::from(payload(n.into(), OBJECT_BYTES))));
            let report = done(engine.store(batch.collect()));
            assert!(report.results.iter().all(Result::is_ok), "{policy}: {:?}", report.results);
            settled(&engine);
            assert_eq!(engine.usage().bytes_by_salt["greedy"], objects(10), "{policy}");
            assert_eq!(present(&engine, "", 0..20).len() + present(&engine, "small", 0..20).len(), 40, "{policy}");
            let counters = engine.status().counters;
            let gone = u64::from(more) + 5;
            assert_eq!((counters.evictions, counters.quota_evictions), (gone, gone), "{policy}");
            mount.assert_books(&engine);
        }
    }
}

#[apply(each_cell!)]
fn what_is_in_use_stays_and_what_never_fits_is_refused(cell: Cell) {
    let mount = mount(cell, "quota-pinned");
    let engine = mount.open_as(evicting(&mount, PolicyKind::Lru));
    engine.set_quota("a", objects(3)).expect("set");
    store(&engine, "a", 0..3);
    let pinned: Vec<ObjectKey> = (0..2).map(|n| salted(n, "a")).collect();
    assert_eq!(done(engine.lookup_and_pin(&pinned)).hits(), 2);
    store(&engine, "a", 3..5);
    settled(&engine);
    assert_eq!(present(&engine, "a", 0..5), [0, 1, 4]);
    let two = payload(9, 2 * OBJECT_BYTES);
    let refused = put(&engine, &salted(9, "a"), &two);
    assert!(
        matches!(refused, Err(Error::OverQuota { needed, quota, .. }) if needed == objects(2) && quota == objects(3))
    );
    let four = vec![1; 4 * OBJECT_BYTES];
    assert!(matches!(put(&engine, &salted(10, "a"), &four), Err(Error::OverQuota { .. })));
    settled(&engine);
    assert_eq!(present(&engine, "a", 0..2), [0, 1], "pinned");
    store(&engine, "b", 0..20);
    engine.unpin(&pinned);
    assert!(put(&engine, &salted(9, "a"), &two).is_ok());
    settled(&engine);
    assert_eq!(engine.status().counters.stores_over_quota, 2);
    mount.assert_books(&engine);
}

#[apply(each_cell!)]
fn where_the_host_evicts_a_salt_at_its_quota_is_refused(cell: Cell) {
    let mount = mount(cell, "host-quota");
    let engine = mount.open();
    store(&engine, "a", 0..5);
    engine.set_quota("a", objects(3)).expect("set");
    assert_eq!(present(&engine, "a", 0..5).len(), 5, "nothing is taken away");
    let full = put(&engine, &salted(5, "a"), &[1; 10]);
    assert!(matches!(full, Err(Error::OverQuota { needed: 10, free: 0, quota }) if quota == objects(3)), "{full:?}");
    assert!(matches!(put(&engine, &salted(0, "a"), &[1; 10]), Ok(0)), "it is there");
    store(&engine, "b", 0..5);
    for n in 0..3 {
        remove(&engine, &salted(n, "a")).expect("delete");
    }
    assert!(put(&engine, &salted(5, "a"), &[1; OBJECT_BYTES]).is_ok());
    let counters = engine.status().counters;
    assert_eq!((counters.stores_over_quota, counters.stores_refused, counters.evictions), (1, 0, 0));
    mount.assert_books(&engine);
}

#[apply(each_cell!)]
fn a_lower_quota_is_followed_at_once_and_a_removed_one_no_longer(cell: Cell) {
    let mount = mount(cell, "quota-changes");
    let mut config = evicting(&mount, PolicyKind::S3Fifo);
    config.default_quota_bytes = Some(objects(20));
    let engine = mount.open_as(config);
    store(&engine, "a", 0..30);
    settled(&engine);
    assert_eq!(present(&engine, "a", 0..30), (10..30).collect::<Vec<_>>(), "the default");
    assert_eq!(engine.set_quota("a", objects(12)).expect("set"), None);
    settled(&engine);
    assert_eq!(present(&engine, "a", 0..30), (18..30).collect::<Vec<_>>());
    assert_eq!(engine.set_quota("a", objects(30)).expect("set"), Some(objects(12)));
    store(&engine, "a", 30..48);
    settled(&engine);
    assert_eq!(present(&engine, "a", 0..48).len(), 30);
    assert_eq!(engine.remove_quota("a").expect("remove"), Some(objects(30)));
    assert_eq!(engine.remove_quota("a").expect("remove"), None);
    settled(&engine);
    assert_eq!(present(&engine, "a", 0..48), (28..48).collect::<Vec<_>>(), "the default again");
    engine.set_quota("a", 0).expect("set");
    settled(&engine);
    assert_eq!(present(&engine, "a", 0..48), [0; 0]);
    assert!(matches!(put(&engine, &salted(1, "a"), b"x"), Err(Error::OverQuota { quota: 0, .. })));
    assert!(matches!(engine.set_quota("a/b", 1), Err(Error::Key(_))));
    mount.assert_books(&engine);
}

#[apply(each_cell!)]
fn quotas_survive_a_restart_and_nothing_is_wiped_without_them(cell: Cell) {
    let mount = mount(cell, "quota-restart");
    let engine = mount.open_as(evicting(&mount, PolicyKind::Lru));
    store(&engine, "kept", 0..20);
    store(&engine, "free", 0..20);
    engine.set_quota("kept", objects(10)).expect("set");
    engine.set_quota("unseen\n\"salt\"", 7).expect("set");
    settled(&engine);
    let quotas = BTreeMap::from([("kept".into(), objects(10)), ("unseen\n\"salt\"".into(), 7)]);
    assert_eq!(engine.quotas().expect("quotas"), quotas);
    engine.close();

    // Files of another program: more than the quota, and older than what is there.
    for n in 100..110 {
        mount.plant(&salted(n, "kept"), &[7; OBJECT_BYTES]);
    }
    let engine = mount.open_as(evicting(&mount, PolicyKind::Lru));
    assert_eq!(engine.quotas().expect("quotas"), quotas);
    assert_eq!(engine.quota("kept").expect("quota"), Some(objects(10)));
    settled(&engine);
    assert_eq!(present(&engine, "kept", 0..200), (100..110).collect::<Vec<_>>(), "the oldest went");
    assert_eq!(present(&engine, "free", 0..20).len(), 20);
    let page = engine.salts(0, 10);
    let shown: BTreeMap<_, _> =
        page.salts.iter().map(|salt| (&*salt.salt, (salt.used_bytes, salt.quota_bytes))).collect();
    assert_eq!(shown["kept"], (objects(10), Some(objects(10))));
    assert_eq!(shown["free"], (objects(20), None));
    assert_eq!((page.salts_total, page.next, engine.status().salts), (3, None, 3));
    mount.assert_books(&engine);
    engine.close();

    // Nobody has set quotas yet: everything stays.
    mount.each(QUOTAS).iter().for_each(|path| fs::remove_file(path).expect("unlink"));
    let engine = mount.open_as(evicting(&mount, PolicyKind::Lru));
    settled(&engine);
    assert_eq!((present(&engine, "kept", 0..200).len(), present(&engine, "free", 0..20).len()), (10, 20));
    assert_eq!(engine.status().counters.evictions, 0);
}

#[apply(each_cell!)]
fn damaged_quotas_are_left_alone_and_wipe_nothing(cell: Cell) {
    let fixture = fs::read(saltern_tests::fixtures().join("quotas-v1-flipped"));
    let damages = [fixture.expect("fixture"), Vec::new(), b"saltern quotas, version 2, crc64 0\n{}".to_vec()];
    for damage in damages {
        let mount = mount(cell, "quota-damaged");
        let engine = mount.open_as(evicting(&mount, PolicyKind::Lru));
        store(&engine, "a", 0..20);
        engine.set_quota("a", objects(20)).expect("set");
        engine.close();
        mount.each(QUOTAS).iter().for_each(|path| fs::write(path, &damage).expect("write"));

        let mut config = evicting(&mount, PolicyKind::Lru);
        config.default_quota_bytes = Some(objects(5));
        let engine = mount.open_as(config.clone());
        settled(&engine);
        assert_eq!(present(&engine, "a", 0..20).len(), 20, "the default must not stand for what was lost");
        let status = engine.status();
        assert!(status.notes.len() == 1 && status.notes[0].contains(QUOTAS), "{:?}", status.notes);
        assert!(status.is_healthy);
        for error in [engine.set_quota("a", 1).unwrap_err(), engine.quotas().unwrap_err()] {
            assert!(matches!(&error, Error::Quotas { path, .. } if path.ends_with(QUOTAS)), "{error}");
        }
        engine.close();
        mount.each(QUOTAS).iter().for_each(|path| assert_eq!(fs::read(path).expect("read"), damage));

        mount.each(QUOTAS).iter().for_each(|path| fs::remove_file(path).expect("unlink"));
        let engine = mount.open_as(config);
        settled(&engine);
        assert_eq!(present(&engine, "a", 0..20).len(), 5);
        assert_eq!(engine.status().notes, [""; 0]);
    }
}

/// The salts that have the chunk, and one that has it not.
const SALTS: [&str; 5] = ["", "a", "b", "A", "0"];
const ABSENT: &str = "aa";

/// Everybody is answered for his own, and nobody else's shows in what he is told.
fn assert_isolated(engine: &Host) {
    for (n, salt) in (0..).zip(SALTS) {
        let len = 1000 + n as usize;
        assert_eq!(find(engine, &salted(1, salt)), Some(len as u64), "{salt:?}");
        assert!(get(engine, &salted(1, salt), len).expect("load") == payload(n, len), "{salt:?}");
        // A wrong size is said of the salt's own object.
        let wrong = get(engine, &salted(1, salt), 999).unwrap_err();
        assert!(matches!(wrong, Error::WrongSize { object_bytes, .. } if object_bytes == len as u64), "{wrong}");
    }
    let absent = salted(1, ABSENT);
    assert_eq!(find(engine, &absent), None);
    let error = get(engine, &absent, 1000).unwrap_err();
    assert!(matches!(error, Error::NotFound) && error.to_string() == "no such object", "{error}");
    assert!(matches!(remove(engine, &absent), Err(Error::NotFound)));
    assert_eq!(engine.unpin(&[absent]), 0);
    // Listed once each, with its own salt and size.
    let listed = engine.list(ListCursor::default(), 100, None).objects;
    let listed: BTreeMap<_, _> = listed.into_iter().map(|(key, bytes)| (key.cache_salt().to_owned(), bytes)).collect();
    assert_eq!(listed, (0..).zip(SALTS).map(|(n, salt)| (salt.to_owned(), 1000 + n)).collect());
    let used = engine.salts(0, 100).salts;
    let used = used.into_iter().filter(|salt| salt.used_bytes > 0);
    let used: BTreeMap<_, _> = used.map(|salt| (salt.salt.to_string(), salt.used_bytes)).collect();
    assert_eq!(used, listed, "usage by salt");
}

#[apply(each_cell!)]
fn a_salt_never_answers_for_another(cell: Cell) {
    let mount = mount(cell, "isolation");
    let engine = mount.open();
    let heard = Recorder::new();
    engine.subscribe(heard.clone()).expect("subscribe");
    for (n, salt) in (0..).zip(SALTS) {
        // The same chunk for all, with bytes of their own.
        let stored = put(&engine, &salted(1, salt), &payload(n, 1000 + n as usize));
        assert!(matches!(stored, Ok(bytes) if bytes == 1000 + n), "{stored:?}");
    }
    assert_isolated(&engine);
    let names: BTreeSet<_> = SALTS.iter().chain([&ABSENT]).map(|salt| mount.file(&salted(1, salt))).collect();
    assert_eq!(names.len(), SALTS.len() + 1);
    assert_eq!(mount.assert_books(&engine).files.len(), SALTS.len());
    engine.close();
    let engine = mount.open();
    assert_isolated(&engine);
    // One salt's objects go, the others' stay.
    remove(&engine, &salted(1, "a")).expect("delete");
    assert_eq!((find(&engine, &salted(1, "a")), find(&engine, &salted(1, "A"))), (None, Some(1003)));
    mount.assert_books(&engine);
    assert_eq!(heard.objects().len(), SALTS.len());
}

#[apply(each_cell!)]
fn salts_at_their_quotas_from_many_threads_and_the_books_agree(cell: Cell) {
    let seed = Seed::new("salts_at_their_quotas_from_many_threads_and_the_books_agree");
    let rounds = cell.sized(600, 200);
    let mount = mount(cell, "quota-threads");
    let mut config = evicting(&mount, PolicyKind::Arc);
    config.shards = 2;
    config.capacity_bytes = Some(objects(120));
    let engine = mount.open_as(config);
    let salts = ["a", "b", "c", "d"];
    for salt in &salts[..3] {
        engine.set_quota(salt, objects(20)).expect("set");
    }
    std::thread::scope(|scope| {
        for (stream, salt) in (0..).zip(salts) {
            let (engine, seed) = (&engine, &seed);
            scope.spawn(move || {
                let mut rng = seed.rng(stream);
                for round in 0..rounds {
                    let n = rng.random_range(0..100);
                    let bytes = rng.random_range(0..3 * OBJECT_BYTES);
                    match rng.random_range(0..6) {
                        0 => drop(remove(engine, &salted(n, salt))),
                        1 if round % 50 == 0 && salt != "d" => {
                            engine.set_quota(salt, objects(rng.random_range(5..30))).expect("set");
                        }
                        _ => match put(engine, &salted(n, salt), &vec![n as u8; bytes]) {
                            Ok(_) | Err(Error::Full { .. } | Error::OverQuota { .. }) => {}
                            other => panic!("{other:?}"),
                        },
                    }
                }
            });
        }
    });
    settled(&engine);
    let usage = engine.usage();
    for salt in &salts[..3] {
        let quota = engine.quota(salt).expect("quota").expect("set");
        assert!(usage.bytes_by_salt.get(*salt).is_none_or(|used| *used <= quota), "{salt}: {usage:?}, {quota}");
    }
    assert!(engine.status().counters.quota_evictions > 0);
    mount.assert_books(&engine);
}
