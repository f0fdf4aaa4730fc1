//! Tickets: every one completes, hands its results out once, and can be waited for in every way.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use macro_rules_attribute::apply;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use rand::Rng;
use saltern::{Buffer, Class, Error, ObjectKey};
use saltern_tests::{Cell, Seed, WAIT_MAX, block_on, done, find, get, key, payload, put, remove, salted, until};

use crate::mount;

fn is_readable(fd: BorrowedFd<'_>, timeout: Duration) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(timeout).expect("a valid timeout");
    poll(&mut fds, timeout).expect("poll") == 1
}

/// Reads an eventfd: how many tickets it counted since the last time.
fn drain(fd: BorrowedFd<'_>) -> u64 {
    let mut counter = [0; 8];
    assert_eq!(nix::unistd::read(fd, &mut counter).expect("readable"), 8);
    u64::from_ne_bytes(counter)
}

fn stores(numbers: std::ops::Range<u32>, bytes: usize) -> Vec<(ObjectKey, Buffer)> {
    numbers.map(|n| (key(n), payload(n.into(), bytes).into())).collect()
}

fn loads(numbers: std::ops::Range<u32>, bytes: usize) -> Vec<(ObjectKey, Buffer)> {
    numbers.map(|n| (key(n), vec![0; bytes].into())).collect()
}

#[apply(each_cell!)]
fn three_event_descriptors_tell_the_classes_apart(cell: Cell) {
    let mount = mount(cell, "eventfds");
    let engine = mount.open();
    let [store, lookup, load] = [Class::Store, Class::Lookup, Class::Load].map(|class| engine.event_fd(class));
    let raw = [store, lookup, load].map(|fd| fd.as_raw_fd());
    assert!(raw[0] != raw[1] && raw[1] != raw[2] && raw[0] != raw[2], "{raw:?}");
    assert_eq!(engine.event_fd(Class::Load).as_raw_fd(), raw[2], "the same one each time");
    let readable = || [store, lookup, load].map(|fd| is_readable(fd, Duration::ZERO));
    assert_eq!(readable(), [false; 3]);

    let mut ticket = engine.store(stores(0..3, 5000));
    assert!(is_readable(store, WAIT_MAX));
    assert_eq!(readable(), [true, false, false]);
    assert_eq!(drain(store), 1, "one ticket, however many keys");
    assert_eq!(ticket.try_take().expect("done").results.len(), 3);

    let mut ticket = engine.lookup_and_pin(&[key(0), key(9)]);
    assert!(is_readable(lookup, WAIT_MAX));
    assert_eq!((readable(), drain(lookup)), ([false, true, false], 1));
    assert_eq!(ticket.try_take().expect("done").sizes, [Some(5000), None]);

    let mut tickets = [engine.load(loads(0..3, 5000)), engine.load(vec![])];
    let mut counted = 0;
    while counted < 2 {
        assert!(is_readable(load, WAIT_MAX));
        counted += drain(load);
    }
    assert_eq!((readable(), counted), ([false; 3], 2));
    assert!(tickets.iter_mut().all(|ticket| ticket.try_take().is_some()));
}

#[apply(each_cell!)]
fn epoll_wakes_for_a_ticket(cell: Cell) {
    let mount = mount(cell, "epoll");
    let engine = mount.open();
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("epoll");
    for (class, data) in [(Class::Store, 1), (Class::Lookup, 2), (Class::Load, 3)] {
        epoll.add(engine.event_fd(class), EpollEvent::new(EpollFlags::EPOLLIN, data)).expect("epoll_ctl");
    }
    let mut events = [EpollEvent::empty(); 4];
    let mut wait = || {
        let count = epoll.wait(&mut events, PollTimeout::try_from(WAIT_MAX).expect("valid")).expect("epoll_wait");
        events[..count].iter().map(EpollEvent::data).collect::<Vec<_>>()
    };
    let mut ticket = engine.store(stores(0..1, 1));
    assert_eq!(wait(), [1]);
    assert!(ticket.try_take().is_some());
    drain(engine.event_fd(Class::Store));
    let mut ticket = engine.load(loads(0..1, 1));
    assert_eq!(wait(), [3]);
    assert!(matches!(ticket.try_take().expect("done").results[..], [Ok(1)]));
}

#[apply(each_cell!)]
fn results_are_handed_out_once(cell: Cell) {
    let mount = mount(cell, "once");
    let engine = mount.open();
    let mut ticket = engine.store(stores(0..4, 4096));
    until("the store is done", || ticket.is_done());
    assert_eq!(ticket.try_take().expect("the first time").results.len(), 4);
    assert!(ticket.try_take().is_none());
    assert!(ticket.wait_timeout(Duration::ZERO).is_none());
    assert!(ticket.is_done());

    let mut ticket = engine.load(loads(0..4, 4096));
    assert!(ticket.wait_timeout(WAIT_MAX).is_some());
    assert!(ticket.wait_timeout(WAIT_MAX).is_none(), "taken, so it does not wait");

    let mut ticket = engine.lookup_and_pin(&[key(0)]);
    assert!(ticket.wait_timeout(WAIT_MAX).is_some());
    assert!(ticket.try_take().is_none());
    assert_eq!(engine.unpin(&[key(0)]), 1);
    assert_eq!(engine.delete(&[key(0)]).wait().results.len(), 1);
}

#[apply(each_cell!)]
fn tickets_have_different_numbers(cell: Cell) {
    let mount = mount(cell, "numbers");
    let engine = mount.open();
    let (a, b) = (engine.store(stores(0..1, 1)), engine.store(stores(1..2, 1)));
    let (c, d, e) = (engine.load(vec![]), engine.lookup_and_pin(&[]), engine.delete(&[]));
    let ids = std::collections::HashSet::from([a.id(), b.id(), c.id(), d.id(), e.id()]);
    assert_eq!(ids.len(), 5);
    done(a);
    done(b);
}

#[apply(each_cell!)]
fn tickets_can_be_awaited(cell: Cell) {
    let mount = mount(cell, "await");
    let engine = mount.open();
    block_on(async {
        let first = engine.store(stores(0..8, 70_000));
        let second = engine.store(stores(8..16, 70_000));
        assert!(second.await.results.iter().all(|result| matches!(result, Ok(70_000))));
        assert!(first.await.results.iter().all(|result| matches!(result, Ok(70_000))));
        let report = engine.load(loads(0..16, 70_000)).await;
        for (n, buffer) in (0..).zip(report.buffers) {
            assert!(buffer.expect("comes back").as_slice() == payload(n, 70_000), "object {n}");
        }
        assert_eq!(engine.lookup_and_pin(&[key(15), key(16)]).await.sizes, [Some(70_000), None]);
        assert_eq!(engine.unpin(&[key(15)]), 1);
        assert!(matches!(engine.delete(&[key(15), key(16)]).await.results[..], [Ok(70_000), Err(Error::NotFound)]));
        assert!(engine.store(vec![]).await.results.is_empty());
    });
}

#[apply(each_cell!)]
fn a_ticket_can_be_awaited_on_another_thread(cell: Cell) {
    let mount = mount(cell, "await-elsewhere");
    let engine = mount.open();
    let tickets: Vec<_> = (0..32).map(|n| engine.store(stores(n..n + 1, 300_000))).collect();
    let waiter = std::thread::spawn(move || tickets.into_iter().map(|ticket| block_on(ticket).results.len()).sum());
    let results: usize = waiter.join().expect("no panic");
    assert_eq!(results, 32);
}

#[apply(each_cell!)]
fn a_dropped_ticket_abandons_nothing(cell: Cell) {
    let mount = mount(cell, "dropped");
    let engine = mount.open();
    let pool_bytes = engine.pool().status().used_bytes;
    for n in 0..50 {
        let mut buffer = engine.pool().alloc_timeout(100_000, WAIT_MAX).expect("buffers come back to the pool");
        buffer.copy_from_slice(&payload(n.into(), 100_000));
        drop(engine.store(vec![(key(n), buffer.into())]));
    }
    until("all are stored", || engine.usage().total_bytes_used == 50 * 100_000);
    for n in 0..50 {
        let buffer = engine.pool().alloc_timeout(100_000, WAIT_MAX).expect("buffers come back to the pool");
        drop(engine.load(vec![(key(n), buffer.into())]));
    }
    until("all buffers are back", || engine.pool().status().used_bytes == pool_bytes);
    for n in 0..50 {
        assert!(get(&engine, &key(n), 100_000).expect("stored") == payload(n.into(), 100_000), "object {n}");
    }
    drop(engine.delete(&[key(0)]));
    until("it is deleted", || engine.usage().total_bytes_used == 49 * 100_000);
    drop(engine.lookup_and_pin(&[key(1)]));
    assert!(matches!(remove(&engine, &key(1)), Err(Error::Pinned { pins: 1, .. })), "the lookup pinned");
    mount.assert_books(&engine);
}

#[apply(each_cell!)]
fn empty_batches_complete(cell: Cell) {
    let mount = mount(cell, "empty");
    let engine = mount.open();
    let store = done(engine.store(vec![]));
    assert!(store.results.is_empty() && store.buffers.is_empty());
    let load = done(engine.load(vec![]));
    assert!(load.results.is_empty() && load.buffers.is_empty());
    assert!(done(engine.lookup_and_pin(&[])).sizes.is_empty());
    assert!(done(engine.delete(&[])).results.is_empty());
    assert_eq!(engine.unpin(&[]), 0);
}

#[apply(each_cell!)]
fn close_completes_what_is_in_flight(cell: Cell) {
    let seed = Seed::new("close_completes_what_is_in_flight");
    let mut rng = seed.rng(0);
    let mount = mount(cell, "close");
    for round in 0..cell.sized(12, 3) {
        let mut config = mount.config();
        config.shards = 1 + round % 2;
        let engine = mount.open_as(config);
        let before = engine.usage().total_bytes_used;
        let base = 1000 * round as u32;
        done(engine.store(stores(base..base + 20, 200_000)));
        let mut stored: Vec<_> =
            (1..=8).map(|batch| engine.store(stores(base + 20 * batch..base + 20 * batch + 20, 200_000))).collect();
        let mut loaded: Vec<_> = (0..8).map(|_| engine.load(loads(base..base + 20, 200_000))).collect();
        let mut found = engine.lookup_and_pin(&[key(base), key(base + 999)]);
        let mut deleted = engine.delete(&[key(base + 998)]);
        for _ in 0..rng.random_range(0..3) {
            done(loaded.swap_remove(rng.random_range(0..loaded.len())));
        }
        engine.close();

        let mut added = 0;
        for ticket in &mut stored {
            let report = ticket.try_take().expect("done when close returns");
            assert_eq!((report.results.len(), report.buffers.iter().flatten().count()), (20, 20), "buffers come back");
            for result in report.results {
                match result {
                    Ok(bytes) => added += bytes,
                    Err(Error::Closed) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        for ticket in &mut loaded {
            let report = ticket.try_take().expect("done when close returns");
            for ((n, result), buffer) in (base..).zip(&report.results).zip(&report.buffers) {
                let bytes = buffer.as_ref().expect("comes back").as_slice();
                match result {
                    Ok(_) => assert!(bytes == payload(n.into(), 200_000), "object {n}"),
                    Err(Error::Closed) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        assert!(found.try_take().is_some() && deleted.try_take().is_some());
        assert_eq!(mount.unfinished().len(), 0);
        let disk = mount.disk();
        assert_eq!(disk.bytes, before + 20 * 200_000 + added, "what was acknowledged, and nothing else");
    }
}

#[apply(each_cell!)]
fn dropping_the_engine_closes_it(cell: Cell) {
    let mount = mount(cell, "drop");
    let engine = mount.open();
    let mut ticket = engine.store(stores(0..40, 200_000));
    drop(engine);
    let report = ticket.try_take().expect("done when the engine is gone");
    let stored = report.results.iter().filter(|result| result.is_ok()).count();
    let engine = mount.open();
    assert_eq!(engine.status().objects, stored as u64);
}

#[apply(each_cell!)]
fn nothing_is_lost_between_eight_threads(cell: Cell) {
    const THREADS: u32 = 8;
    const OWN: u32 = 40;
    const SHARED: u32 = 30;
    let seed = Seed::new("nothing_is_lost_between_eight_threads");
    for shards in [1, 2] {
        let mount = mount(cell, "threads");
        let mut config = mount.config();
        config.shards = shards;
        let engine = &mount.open_as(config);
        // Winners of the keys that all threads store, each with bytes of its own.
        let wins: Vec<HashMap<u32, u64>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let mut rng = seed.rng(thread.into());
                    scope.spawn(move || {
                        let mut wins = HashMap::new();
                        let mut waiting = Vec::new();
                        for n in 0..OWN {
                            let shared = rng.random_range(0..SHARED);
                            let (own, content) = (salted(1000 * thread + n, "own"), u64::from(thread) << 32);
                            waiting.push((
                                shared,
                                engine.store(vec![
                                    (own.clone(), payload(content | u64::from(n), 10_001).into()),
                                    (key(shared), payload(content | u64::from(shared), 50_000).into()),
                                ]),
                            ));
                            if rng.random_bool(0.5) {
                                let (shared, ticket) = waiting.swap_remove(rng.random_range(0..waiting.len()));
                                reap(shared, ticket, &mut wins);
                            }
                        }
                        waiting.into_iter().for_each(|(shared, ticket)| reap(shared, ticket, &mut wins));
                        for n in 0..OWN {
                            let bytes = get(engine, &salted(1000 * thread + n, "own"), 10_001).expect("own object");
                            assert!(bytes == payload(u64::from(thread) << 32 | u64::from(n), 10_001), "{thread}: {n}");
                        }
                        wins
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });

        let mut objects = 0;
        for shared in 0..SHARED {
            let winners: Vec<u64> =
                (0..).zip(&wins).filter(|(_, wins)| wins.contains_key(&shared)).map(|w| w.0).collect();
            assert!(winners.len() <= 1, "{shared}: stored by {winners:?}");
            assert_eq!(winners.is_empty(), find(engine, &key(shared)).is_none());
            for winner in winners {
                let bytes = get(engine, &key(shared), 50_000).expect("shared object");
                assert!(bytes == payload(winner << 32 | u64::from(shared), 50_000), "{shared}: not of {winner}");
                objects += 1;
            }
        }
        let disk = mount.assert_books(engine);
        assert_eq!(disk.files.len(), (THREADS * OWN) as usize + objects);
        assert_eq!(disk.bytes_by_salt["own"], u64::from(THREADS * OWN) * 10_001);
    }
}

fn reap(shared: u32, ticket: saltern::Ticket<saltern::StoreReport>, wins: &mut HashMap<u32, u64>) {
    let report = done(ticket);
    assert!(matches!(report.results[0], Ok(10_001)), "{:?}", report.results);
    match report.results[1] {
        Ok(0) => {}
        Ok(bytes @ 50_000) => assert_eq!(wins.insert(shared, bytes), None, "stored twice"),
        _ => panic!("{:?}", report.results),
    }
}

#[apply(each_cell!)]
fn a_full_queue_refuses_and_goes_on(cell: Cell) {
    let mount = mount(cell, "queue-full");
    let mut config = mount.config();
    config.max_queued_objects = 4;
    let engine = mount.open_as(config);
    let (mut refused, mut stored) = (Vec::new(), 0);
    // No machine stores as fast as this submits; but that is timing, so more is tried if need be.
    for round in 0..100 {
        let batches = (0..32).map(|batch| 64 * round + 2 * batch);
        let tickets: Vec<_> = batches.map(|n| (n, engine.store(stores(n..n + 2, 200_000)))).collect();
        for (first, ticket) in tickets {
            let report = done(ticket);
            assert_eq!(report.buffers.iter().flatten().count(), 2, "refused buffers come back, too");
            match report.results[..] {
                [Ok(200_000), Ok(200_000)] => stored += 2,
                // A batch is refused as a whole.
                [Err(Error::QueueFull { limit: 4 }), Err(Error::QueueFull { limit: 4 })] => {
                    refused.extend([first, first + 1]);
                }
                _ => panic!("{first}: {:?}", report.results),
            }
        }
        if !refused.is_empty() {
            break;
        }
    }
    assert!(stored > 0, "an empty queue takes four");
    assert!(!refused.is_empty(), "the limit was never reached");
    until("nothing is queued", || engine.status().queued_objects == 0);
    assert_eq!(engine.status().objects, stored);
    for n in refused.iter().take(20) {
        assert!(matches!(get(&engine, &key(*n), 200_000), Err(Error::NotFound)), "{n} was refused");
        assert!(matches!(put(&engine, &key(*n), &payload((*n).into(), 200_000)), Ok(200_000)), "{n} fits now");
    }
    mount.assert_books(&engine);
}

#[apply(each_cell!)]
fn tickets_past_their_deadline_complete_and_leave_the_books_right(cell: Cell) {
    let mount = mount(cell, "deadline");
    let mut late = mount.config();
    late.store_deadline = Duration::from_millis(1);
    late.load_deadline = Duration::from_millis(1);
    let engine = mount.open_as(late);
    let pool_bytes = engine.pool().status().used_bytes;
    let stores: Vec<_> = (0..10).map(|batch| engine.store(stores(batch * 10..batch * 10 + 10, 1_000_003))).collect();
    let loads: Vec<_> = (0..10).map(|batch| engine.load(loads(batch * 10..batch * 10 + 10, 1_000_003))).collect();
    for ticket in stores {
        for (result, buffer) in done(ticket).results.iter().zip(0..) {
            assert!(matches!(result, Ok(1_000_003) | Err(Error::TimedOut { .. })), "{buffer}: {result:?}");
        }
    }
    for (batch, ticket) in (0..).zip(loads) {
        let report = done(ticket);
        for ((n, result), buffer) in (batch * 10..).zip(report.results).zip(report.buffers) {
            match result {
                Ok(_) => assert!(buffer.expect("comes back").as_slice() == payload(n, 1_000_003), "object {n}"),
                Err(Error::NotFound | Error::TimedOut { .. }) => {}
                other => panic!("{n}: {other:?}"),
            }
        }
    }
    let disk = mount.assert_books(&engine);
    until("all buffers are back", || engine.pool().status().used_bytes == pool_bytes);
    engine.close();

    let engine = mount.open();
    assert_eq!(engine.usage().total_bytes_used, disk.bytes);
    for n in 0..100 {
        match get(&engine, &key(n), 1_000_003) {
            Ok(bytes) => assert!(bytes == payload(n.into(), 1_000_003), "object {n}"),
            Err(error) => assert!(matches!(error, Error::NotFound), "{n}: {error}"),
        }
    }
}

#[apply(each_cell!)]
fn two_stores_in_flight_become_one(cell: Cell) {
    let mount = mount(cell, "two-stores");
    let engine = mount.open();
    for n in 0..30 {
        let mut tickets: Vec<_> = (0..4)
            .map(|try_| engine.store(vec![(key(n), payload(try_, 500_000).into()), (key(n), vec![1; 7].into())]))
            .collect();
        // A success says that the object is there, whoever stored it.
        let last = done(tickets.pop().expect("the fourth")).results;
        assert!(matches!(last[..], [Ok(0), Ok(0)]), "{last:?}");
        assert_eq!(find(&engine, &key(n)), Some(500_000));
        let added: Vec<_> = tickets
            .into_iter()
            .flat_map(|ticket| done(ticket).results)
            .map(|result| result.expect("stored, or there already"))
            .collect();
        assert_eq!(added, [500_000, 0, 0, 0, 0, 0], "the first one wins");
        assert!(get(&engine, &key(n), 500_000).expect("stored") == payload(0, 500_000));
    }
    mount.assert_books(&engine);
}
