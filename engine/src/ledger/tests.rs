use super::*;

fn check(ledger: &Ledger) -> u64 {
    let usage = ledger.usage();
    assert_eq!(usage.bytes_by_salt.values().sum::<u64>(), usage.total_bytes_used);
    usage.total_bytes_used
}

fn recovered(ledger: &Ledger, amounts: &[(SaltId, u64)]) {
    let mut deltas = Deltas::new();
    amounts.iter().for_each(|(salt, bytes)| deltas.recovered(*salt, *bytes));
    ledger.apply(&deltas);
}

#[test]
fn reservations_keep_concurrent_stores_inside_the_capacity() {
    let ledger = Ledger::new(Some(100));
    let (a, b) = (ledger.salt("a"), ledger.salt("b"));
    assert_eq!(ledger.salt("a"), a);
    ledger.reserve(a, 60).unwrap();
    assert_eq!(ledger.reserve(b, 41), Err(Refusal::Capacity(NoRoom { free: 40, capacity: 100 })));
    ledger.reserve(b, 40).unwrap();
    assert_eq!(check(&ledger), 0);
    let mut deltas = Deltas::new();
    deltas.stored(a, 60);
    deltas.cancelled(b, 40);
    ledger.apply(&deltas);
    assert_eq!(check(&ledger), 60);
    assert_eq!(ledger.totals(), (60, 0));
    assert_eq!(ledger.usage().usage_fraction, 0.6);
    ledger.reserve(b, 40).unwrap();
}

#[test]
fn threads_that_reserve_at_once_never_pass_the_capacity() {
    let ledger = Ledger::new(Some(10_000));
    let granted: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|n| {
                let ledger = &ledger;
                scope.spawn(move || {
                    let salt = ledger.salt(&format!("t{n}"));
                    (0..2000).filter(|_| ledger.reserve(salt, 7).is_ok()).count() as u64 * 7
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(granted, 10_000 / 7 * 7);
    assert_eq!(ledger.totals(), (0, granted));
}

#[test]
fn what_was_recovered_may_exceed_the_capacity_and_blocks_stores() {
    let ledger = Ledger::new(Some(10));
    let salt = ledger.salt("");
    recovered(&ledger, &[(salt, 25)]);
    assert_eq!(ledger.usage().usage_fraction, 2.5);
    assert_eq!(ledger.reserve(salt, 0), Ok(()));
    assert_eq!(ledger.reserve(salt, 1), Err(Refusal::Capacity(NoRoom { free: 0, capacity: 10 })));
}

#[test]
fn an_underflow_is_counted_in_total_and_by_salt_and_leaves_the_other_salts_alone() {
    let ledger = Ledger::new(None);
    let (a, b) = (ledger.salt("a"), ledger.salt("b"));
    recovered(&ledger, &[(a, 5), (b, 7)]);
    let mut wrong = Deltas::new();
    wrong.deleted(a, 6);
    wrong.cancelled(a, 1);
    wrong.deleted(b, 3);
    ledger.apply(&wrong);
    // More than all that there is, in total.
    let mut wrong = Deltas::new();
    wrong.deleted(b, u64::MAX / 4);
    ledger.apply(&wrong);
    assert_eq!(check(&ledger), 0);
    assert_eq!(ledger.totals(), (0, 0));
    assert_eq!(ledger.underflows(), 3);
    let by_salt: Vec<u64> = ledger.page(0, 10).salts.iter().map(|salt| salt.underflows).collect();
    assert_eq!(by_salt, [2, 1]);
    assert_eq!(ledger.usage().usage_fraction, -1.0);
    recovered(&ledger, &[(a, 1)]);
    assert_eq!(check(&ledger), 1);
}

#[test]
fn adapters_share_salts_and_quotas_and_have_their_own_sums() {
    let disk = Ledger::new(Some(100));
    let early = disk.salt("early");
    let other = disk.join(None);
    let late = other.salt("late");
    assert_eq!((disk.salt("late"), other.salt("early")), (late, early));
    recovered(&disk, &[(early, 10), (late, 1)]);
    recovered(&other, &[(early, 20), (late, 2)]);
    assert_eq!((check(&disk), check(&other)), (11, 22));
    let shared = disk.shared_usage();
    assert_eq!(shared, other.shared_usage());
    assert_eq!((shared.total_bytes_used, shared.bytes_by_salt["early"], shared.total_capacity_bytes), (33, 30, 0));
    let third = disk.join(Some(50));
    assert_eq!(disk.join(Some(10)).shared_usage().total_capacity_bytes, 0, "one has no limit");
    assert_eq!(check(&third), 0);
    assert_eq!((disk.usage().usage_fraction, other.usage().usage_fraction), (0.11, -1.0));
    // The quota is over both, the capacity of one only.
    disk.set_quota(early, Some(200));
    assert_eq!(disk.reserve(early, 90), Err(Refusal::Capacity(NoRoom { free: 89, capacity: 100 })));
    other.reserve(early, 170).unwrap();
    assert_eq!(disk.reserve(early, 1), Err(Refusal::Quota(NoRoom { free: 0, capacity: 200 })));
    // A delete through the wrong adapter is an underflow there, and takes nothing from the other.
    let mut wrong = Deltas::new();
    wrong.deleted(late, 2);
    disk.apply(&wrong);
    assert_eq!((check(&disk), check(&other), disk.underflows(), other.underflows()), (10, 22, 1, 1));
    assert_eq!(disk.shared_usage().bytes_by_salt["late"], 2);
}

#[test]
fn a_snapshot_does_not_change() {
    let ledger = Ledger::new(Some(100));
    let salt = ledger.salt("a");
    recovered(&ledger, &[(salt, 5)]);
    let before = ledger.usage();
    let copy = before.clone();
    recovered(&ledger, &[(salt, 5), (ledger.salt("b"), 1)]);
    assert_eq!(before, copy);
    assert_ne!(before, ledger.usage());
}

#[test]
fn quotas_follow_the_default_until_they_are_set() {
    let ledger = Ledger::new(None);
    let (a, b) = (ledger.salt("a"), ledger.salt("b"));
    recovered(&ledger, &[(a, 50), (b, 5)]);
    assert!(ledger.all_over_quota().is_empty());
    ledger.set_quota(b, Some(100));
    ledger.set_default_quota(Some(20));
    assert_eq!((ledger.over_quota(a, 7), ledger.over_quota(b, 90)), (37, 0));
    assert_eq!(ledger.all_over_quota(), [a]);
    assert_eq!(ledger.reserve(ledger.salt("new"), 21), Err(Refusal::Quota(NoRoom { free: 20, capacity: 20 })));
    assert_eq!(ledger.reserve(b, 95), Ok(()));
    ledger.set_quota(b, None);
    assert_eq!((ledger.over_quota(b, 0), ledger.reserved(b)), (80, 95));
    ledger.set_default_quota(None);
    assert!(ledger.all_over_quota().is_empty());
    assert_eq!(ledger.over_quota(a, u64::MAX), 0);
    assert_eq!(ledger.reserve(a, 1 << 40), Ok(()));
    ledger.set_quota(a, Some(0));
    assert_eq!(ledger.reserve(a, 0), Ok(()));
    assert_eq!(ledger.reserve(a, 1), Err(Refusal::Quota(NoRoom { free: 0, capacity: 0 })));
}

#[test]
fn pages_show_every_salt_once() {
    let ledger = Ledger::new(None);
    let ids: Vec<SaltId> = (0..10_000).map(|n| ledger.salt(&format!("tenant-{n}"))).collect();
    let amounts: Vec<_> = ids.iter().enumerate().map(|(n, id)| (*id, n as u64)).collect();
    recovered(&ledger, &amounts);
    ledger.set_quota(ids[9999], Some(1));
    let (mut from, mut seen) = (Some(0), Vec::new());
    while let Some(at) = from {
        let page = ledger.page(at, 999);
        assert_eq!(page.salts_total, ledger.salts());
        assert!(page.salts.len() <= 999);
        seen.extend(page.salts);
        from = page.next;
        // Those that come meanwhile are shown too, at the end.
        if seen.len() == 999 {
            ledger.salt("late");
        }
    }
    assert_eq!(seen.len(), 10_001);
    assert!(seen[..10_000].iter().enumerate().all(|(n, salt)| *salt.salt == format!("tenant-{n}")));
    assert!(seen[..10_000].iter().enumerate().all(|(n, salt)| salt.used_bytes == n as u64));
    assert_eq!((seen[9999].quota_bytes, seen[9998].quota_bytes), (Some(1), None));
    assert_eq!(ledger.page(0, usize::MAX).salts.len(), SALT_PAGE_MAX);
    assert_eq!(ledger.page(u64::MAX, 10).salts, []);
    assert_eq!(ledger.page(0, 0).next, None);
}

#[test]
fn ten_thousand_salts_cost_the_hot_path_no_memory() {
    let ledger = Ledger::new(Some(1 << 40));
    let ids: Vec<SaltId> = (0..10_000).map(|n| ledger.salt(&format!("tenant-{n}"))).collect();
    let mut deltas = Deltas::new();
    let mut batch = |from: usize| {
        for id in &ids[from..from + 64] {
            ledger.reserve(*id, 10).unwrap();
            deltas.stored(*id, 10);
        }
        ledger.apply(&deltas);
        deltas.clear();
    };
    batch(0);
    let info = allocation_counter::measure(|| (1..150).for_each(|n| batch(n * 64)));
    assert_eq!(info.count_total, 0, "{info:?}");
    assert_eq!(check(&ledger), 150 * 64 * 10);
}

#[test]
fn adapters_share_a_capacity_beside_their_own() {
    let first = Ledger::within(Some(100), Some(70));
    let second = first.join(Some(70));
    let salt = first.salt("a");
    first.reserve(salt, 70).unwrap();
    assert_eq!(first.reserve(salt, 1), Err(Refusal::Capacity(NoRoom { free: 0, capacity: 70 })));
    assert_eq!(second.reserve(salt, 31), Err(Refusal::Shared(NoRoom { free: 30, capacity: 100 })));
    second.reserve(salt, 30).unwrap();
    assert_eq!(first.shared_totals(), (0, 100));
    assert_eq!((first.shared_capacity_bytes(), second.shared_usage().total_capacity_bytes), (Some(100), 100));
    let mut deltas = Deltas::new();
    deltas.cancelled(salt, 30);
    second.apply(&deltas);
    assert_eq!(second.shared_totals(), (0, 70));
}

#[test]
fn a_reservation_moves_to_another_adapter_that_has_room() {
    let first = Ledger::within(Some(100), None);
    let second = first.join(Some(50));
    let salt = first.salt("a");
    first.reserve(salt, 60).unwrap();
    assert_eq!(first.hand_over(&second, salt, 60), Err(NoRoom { free: 50, capacity: 50 }));
    assert_eq!((first.totals(), second.totals()), ((0, 60), (0, 0)));
    first.hand_over(&second, salt, 40).unwrap();
    assert_eq!((first.totals(), second.totals(), first.shared_totals()), ((0, 20), (0, 40), (0, 60)));
    assert_eq!(first.reserved(salt), 60);
    let mut deltas = Deltas::new();
    deltas.stored(salt, 40);
    second.apply(&deltas);
    assert_eq!((check(&second), check(&first), first.shared_totals()), (40, 0, (40, 20)));
    assert_eq!(first.underflows(), 0);
    // What is not reserved does not move, and is counted as what it is.
    first.hand_over(&second, salt, 21).unwrap_err();
    second.hand_over(&first, salt, 5).unwrap();
    assert_eq!((first.totals(), second.totals(), first.underflows()), ((0, 20), (40, 0), 1));
}
