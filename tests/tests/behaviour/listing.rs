//! Listings, and marks in the stream of events.

use std::collections::HashMap;

use macro_rules_attribute::apply;
use saltern::{EventKind, ListCursor};
use saltern_tests::{Cell, Recorder, key, payload, put, remove, salted};

use crate::mount;

#[apply(each_cell!)]
fn every_object_is_listed_once_page_by_page(cell: Cell) {
    let mount = mount(cell, "pages");
    let engine = mount.open();
    let mut stored = HashMap::new();
    for n in 0..300 {
        let key = if n % 3 == 0 { salted(n, "tenant") } else { key(n) };
        put(&engine, &key, &payload(n.into(), n as usize + 1)).expect("store");
        stored.insert(key, u64::from(n) + 1);
    }
    // Slots that are free are none of the objects.
    for n in [1, 2, 4, 5] {
        remove(&engine, &key(n)).expect("delete");
        stored.remove(&key(n));
    }
    for limit in [1, 7, 296, 1000] {
        let (mut seen, mut from) = (Vec::new(), Some(ListCursor::default()));
        while let Some(cursor) = from {
            let page = engine.list(cursor, limit, None);
            assert!(page.objects.len() <= limit && !page.objects.is_empty());
            seen.extend(page.objects);
            // A cursor survives the way through another program.
            from = page.next.map(|next| ListCursor::from(u64::from(next)));
        }
        assert_eq!(seen.len(), stored.len());
        assert_eq!(seen.into_iter().collect::<HashMap<_, _>>(), stored);
    }
    let model = key(0).model_name().to_owned();
    assert_eq!(engine.list(ListCursor::default(), 1000, Some(&model)).objects.len(), stored.len());
    assert_eq!(engine.list(ListCursor::default(), 1000, Some("another")).objects, []);
    assert_eq!(engine.list(ListCursor::from(u64::MAX), 10, None).objects, [], "a made-up cursor harms nobody");
}

#[apply(each_cell!)]
fn what_was_done_before_a_mark_is_heard_when_it_is_reached(cell: Cell) {
    let mount = mount(cell, "mark");
    let engine = mount.open();
    engine.event_mark().wait();
    let heard = Recorder::new();
    engine.subscribe(heard.clone()).expect("subscribe");
    for n in 0..100 {
        put(&engine, &key(n), &[1; 10]).expect("store");
        remove(&engine, &key(n)).expect("delete");
        engine.event_mark().wait();
        assert_eq!(heard.events().len(), 2 * n as usize + 2);
    }
    let late = Recorder::new();
    put(&engine, &key(7), &[1; 10]).expect("store");
    engine.subscribe(late.clone()).expect("subscribe");
    engine.event_mark().wait();
    assert_eq!(late.objects().into_iter().collect::<Vec<_>>(), [(key(7), 10)], "replays come before the mark");
    let mark = engine.event_mark();
    engine.close();
    mark.wait();
}

#[apply(each_cell!)]
fn a_delete_that_finds_nothing_is_heard_of(cell: Cell) {
    let mount = mount(cell, "absent");
    let engine = mount.open();
    let heard = Recorder::new();
    engine.subscribe(heard.clone()).expect("subscribe");
    remove(&engine, &key(1)).expect_err("there is no such object");
    put(&engine, &key(1), &[1; 10]).expect("store");
    remove(&engine, &key(1)).expect("delete");
    remove(&engine, &key(1)).expect_err("there is no such object any more");
    engine.close();
    let kinds: Vec<_> = heard.events().iter().map(|event| (event.kind, event.bytes)).collect();
    use EventKind::{Absent, Deleted, Stored};
    assert_eq!(kinds, [(Absent, 0), (Stored, 10), (Deleted, 10), (Absent, 0)]);
    assert_eq!(heard.objects(), HashMap::new());
}
