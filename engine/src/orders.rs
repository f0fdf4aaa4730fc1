//! Every order of what can happen to one key at once, tried: stores, failing stores, deletes, loads, loads that find damage, pins,
//! the scan, somebody who asks the disk, and a snapshot that is read meanwhile, as steps that are each atomic (a lock is held for each), on a real
//! index and ledger and a model of the disk.
//!
//! The search is complete: it takes each choice of who goes next, and starts over for each. A shard's deltas are shared and
//! applied when it answers, as in the shard.

use std::sync::Arc;
use std::time::Duration;

use crate::discover::Seen;
use crate::events::Hub;
use crate::index::{BeginStore, Entered, Held, Index, Keyed, Moments, Recount, Sight};
use crate::key::{ObjectKey, kv_rank};
use crate::ledger::{Deltas, Ledger};
use crate::snapshot::Record;

const BYTES: u64 = 100;
/// What a snapshot says, where the object has changed since.
const OTHER_BYTES: u64 = 70;
const LEASE: Duration = Duration::from_secs(600);

/// A scan has looked often enough: something must be wrong.
const LOOKS_MAX: u32 = 10;

/// What the actors share.
struct World {
    index: Index,
    ledger: Ledger,
    keyed: Keyed,
    deltas: Deltas,
    /// The object's file.
    disk: Option<u64>,
    pins: u32,
    loads: u32,
}

impl World {
    fn new(disk: Option<u64>) -> Self {
        let (index, ledger) = (Index::new(Arc::new(Hub::new()), None), Ledger::new(Some(10 * BYTES)));
        let key = ObjectKey::new("m", kv_rank(1, 0, 1, 0), 0, &[7; 32], "t").expect("a valid key");
        let keyed = index.keyed(&key, &ledger);
        Self { index, ledger, keyed, deltas: Deltas::new(), disk, pins: 0, loads: 0 }
    }

    fn apply(&mut self) {
        self.ledger.apply(&self.deltas);
        self.deltas.clear();
    }

    /// As `Shard::forget`.
    fn forget(&mut self, bytes: u64) {
        self.deltas.deleted(self.keyed.salt, bytes);
        self.apply();
        self.index.end_delete(&self.keyed);
    }

    /// As `Discover::recount`.
    fn recount(&self, from: u64, to: u64) {
        let mut deltas = Deltas::new();
        deltas.recovered(self.keyed.salt, to);
        deltas.deleted(self.keyed.salt, from);
        self.ledger.apply(&deltas);
    }

    /// As `Discover::recount_all`.
    fn recount_all(&self, changes: &[Recount]) {
        let mut deltas = Deltas::new();
        for Recount { salt, from, to } in changes {
            to.iter().for_each(|to| deltas.recovered(*salt, to.bytes));
            from.iter().for_each(|from| deltas.deleted(*salt, from.bytes));
        }
        self.ledger.apply(&deltas);
    }

    /// A snapshot tells of the object.
    fn hint(&self, bytes: u64) {
        let scopes = [self.index.hint_scope(self.keyed.key.scope(), &self.ledger)];
        let records = [Record { scope: 0, chunk: self.keyed.key.chunk_hash().clone(), bytes, used_ns: 1 }];
        // A snapshot that is vouched for says what is there, or what was.
        self.index.add_hints(0, &scopes, &records, bytes == BYTES, |added| {
            let mut deltas = Deltas::new();
            added.iter().for_each(|(salt, bytes)| deltas.recovered(*salt, *bytes));
            self.ledger.apply(&deltas);
        });
    }

    /// What has to be so when nobody is in the middle of anything.
    fn check(&self) {
        let there = self.disk.unwrap_or(0);
        assert_eq!(self.ledger.totals(), (there, 0), "the books");
        assert_eq!(self.ledger.underflows(), 0);
        assert_eq!((self.index.objects(), self.index.hints()), (u64::from(self.disk.is_some()), 0), "objects, hints");
        let found = self.index.lookup_and_pin(std::slice::from_ref(&self.keyed.key), LEASE)[0];
        assert_eq!(found, self.disk, "what a lookup finds");
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Store,
    /// Fails when it writes.
    FailingStore,
    Delete,
    Load,
    /// Finds another file than the index knows.
    DamagedLoad,
    Pin,
    /// Somebody who asks the disk for this key alone.
    Ask,
    /// Asks the disk, and then stores.
    AskedStore,
    /// The scan, which looks before it knows anything.
    Scan,
    /// The scan, of a name that was listed: what a snapshot vouches for it does not look at.
    ListedScan,
    /// The snapshot's record of the object, as it is; of one that has another size by now.
    Hint,
    OldHint,
}

/// Somebody who does something to the key, a step at a time.
struct Actor {
    kind: Kind,
    at: u32,
    bytes: u64,
    counted: u64,
    sight: Option<Sight>,
    moments: Option<Moments>,
    looks: u32,
}

impl Actor {
    fn new(kind: Kind) -> Self {
        Self { kind, at: 0, bytes: 0, counted: 0, sight: None, moments: None, looks: 0 }
    }

    /// True when it is done.
    fn step(&mut self, world: &mut World) -> bool {
        self.at += 1;
        match self.kind {
            Kind::Store | Kind::FailingStore => self.store(world),
            Kind::Delete => self.delete(world),
            Kind::Load | Kind::DamagedLoad => self.load(world),
            Kind::Pin => self.pin(world),
            Kind::Ask => self.ask(world),
            Kind::AskedStore => {
                if self.ask(world) {
                    *self = Self::new(Kind::Store);
                }
                false
            }
            Kind::Scan | Kind::ListedScan => self.scan(world),
            Kind::Hint | Kind::OldHint => {
                world.hint(if self.kind == Kind::Hint { BYTES } else { OTHER_BYTES });
                true
            }
        }
    }

    fn store(&mut self, world: &mut World) -> bool {
        let salt = world.keyed.salt;
        match self.at {
            1 => {
                if world.index.begin_store(&world.keyed) != BeginStore::New {
                    return true;
                }
                world.ledger.reserve(salt, BYTES).expect("there is room for all");
            }
            2 if self.kind == Kind::FailingStore => {
                world.deltas.cancelled(salt, BYTES);
                world.apply();
                world.index.abort_store(&world.keyed);
                return true;
            }
            2 => world.disk = Some(BYTES),
            3 => {
                assert!(world.index.commit_store(&world.keyed, BYTES, 0));
                world.deltas.stored(salt, BYTES);
            }
            _ => {
                world.apply();
                return true;
            }
        }
        false
    }

    fn delete(&mut self, world: &mut World) -> bool {
        match self.at {
            1 => {
                let Ok(Held { bytes, .. }) = world.index.begin_delete(&world.keyed, true) else { return true };
                assert_eq!((world.pins, world.loads), (0, 0), "something in use is deleted");
                self.bytes = bytes;
            }
            2 => {
                assert_eq!(world.loads, 0, "a file is removed under a load");
                world.disk = None;
            }
            _ => {
                world.forget(self.bytes);
                return true;
            }
        }
        false
    }

    fn load(&mut self, world: &mut World) -> bool {
        match self.at {
            1 => {
                let Some(Held { bytes, .. }) = world.index.begin_load(&world.keyed) else { return true };
                world.loads += 1;
                self.bytes = bytes;
            }
            2 => {
                assert_eq!(world.disk, Some(self.bytes), "the file of a load is gone");
                if self.kind == Kind::DamagedLoad {
                    world.index.doom(&world.keyed);
                }
            }
            _ => {
                world.loads -= 1;
                if let Some(Held { bytes, .. }) = world.index.end_load(&world.keyed, self.kind == Kind::Load) {
                    assert_eq!(world.loads, 0, "an object goes before its last load");
                    world.disk = None;
                    world.forget(bytes);
                }
                return true;
            }
        }
        false
    }

    fn pin(&mut self, world: &mut World) -> bool {
        let keys = std::slice::from_ref(&world.keyed.key);
        match self.at {
            1 => {
                let Some(bytes) = world.index.lookup_and_pin(keys, LEASE)[0] else { return true };
                self.bytes = bytes;
                world.pins += 1;
            }
            2 => assert!(world.disk.is_none_or(|there| there == self.bytes)),
            _ => {
                world.pins -= 1;
                world.index.unpin(keys);
                return true;
            }
        }
        false
    }

    /// As `Discover::settle`.
    fn ask(&mut self, world: &mut World) -> bool {
        let found = seen(self.bytes);
        match self.at {
            1 => {
                self.count_look();
                self.sight = Some(world.index.sight(&world.keyed));
            }
            2 => self.bytes = world.disk.unwrap_or(0),
            3 if matches!(self.sight, Some(Sight::Absent(_))) && self.bytes > 0 => {
                world.recount(self.counted, self.bytes);
                self.counted = self.bytes;
            }
            3 => {}
            4 => {
                let entered = match (self.sight.take(), found) {
                    (Some(Sight::Hinted(at)), found) => {
                        world.index.settle_hint(&world.keyed, found, at, |changes| world.recount_all(changes))
                    }
                    (Some(Sight::Absent(at)), Some(found)) => world.index.insert_recovered(&world.keyed, found, at),
                    _ => Entered::Known,
                };
                match entered {
                    Entered::New => return true,
                    Entered::Stale => self.at = 0,
                    Entered::Known | Entered::Gone => {}
                }
            }
            _ => {
                world.recount(self.counted, 0);
                return true;
            }
        }
        false
    }

    /// As `Discover::enter_all`.
    fn scan(&mut self, world: &mut World) -> bool {
        let keys = std::slice::from_ref(&world.keyed);
        match self.at {
            // A name that is not listed is not entered.
            1 if self.kind == Kind::ListedScan => return world.disk.is_none(),
            1 => {}
            2 => {
                self.count_look();
                self.moments = Some(world.index.moments(keys, 0, &[self.kind == Kind::ListedScan]));
            }
            3 => self.bytes = world.disk.unwrap_or(0),
            _ => {
                let moments = self.moments.take().expect("taken before");
                let found = [moments.vouched[0].or_else(|| seen(self.bytes))];
                let entered = world.index.enter_all(keys, &found, &moments, |changes| world.recount_all(changes));
                if entered[..] != [Entered::Stale] {
                    return true;
                }
                *self = Self { looks: self.looks, ..Self::new(Kind::Ask) };
            }
        }
        false
    }

    fn count_look(&mut self) {
        self.looks += 1;
        assert!(self.looks < LOOKS_MAX, "the disk is looked at for ever");
    }
}

/// What a look at the disk has found.
fn seen(bytes: u64) -> Option<Seen> {
    let object = Held { bytes, volume: 0 };
    (bytes > 0).then_some(Seen { object, modified_ns: 1, is_unseen: false })
}

/// Runs one order: `choices` says who goes next, as a number among those who are not done; from its end on the first goes.
/// Gives how many there were to choose from each time.
fn run(kinds: &[Kind], disk: Option<u64>, hint: Option<u64>, choices: &[usize]) -> Vec<usize> {
    let mut world = World::new(disk);
    hint.iter().for_each(|bytes| world.hint(*bytes));
    let mut actors: Vec<Actor> = kinds.iter().map(|kind| Actor::new(*kind)).collect();
    let mut widths = Vec::new();
    while !actors.is_empty() {
        let next = choices.get(widths.len()).copied().unwrap_or(0);
        widths.push(actors.len());
        if actors[next].step(&mut world) {
            actors.remove(next);
        }
    }
    world.apply();
    // What comes from a snapshot last, and what is not listed, is looked for when the scan has ended.
    if kinds.iter().any(|kind| matches!(kind, Kind::Hint | Kind::OldHint | Kind::ListedScan)) {
        let mut sweep = Actor::new(Kind::Ask);
        while !sweep.step(&mut world) {}
    }
    if disk.is_none() || kinds.iter().any(|kind| matches!(kind, Kind::Scan | Kind::ListedScan | Kind::Ask)) {
        world.check();
    }
    widths
}

/// Tries every order; gives their number.
fn search(kinds: &[Kind], disk: Option<u64>) -> u64 {
    search_hinted(kinds, disk, None)
}

/// As [`search`], of a key that a snapshot has told of.
fn search_hinted(kinds: &[Kind], disk: Option<u64>, hint: Option<u64>) -> u64 {
    let mut choices: Vec<usize> = Vec::new();
    let mut orders = 0;
    loop {
        let tried = choices.clone();
        let ran = std::panic::catch_unwind(|| run(kinds, disk, hint, &tried));
        let widths =
            ran.unwrap_or_else(|_| panic!("{kinds:?}, on disk {disk:?}, hinted {hint:?}, in this order: {tried:?}"));
        orders += 1;
        // The next order: the last choice that has another alternative takes it.
        choices.resize(widths.len(), 0);
        loop {
            match choices.pop() {
                None => return orders,
                Some(last) if last + 1 < widths[choices.len()] => {
                    choices.push(last + 1);
                    break;
                }
                Some(_) => {}
            }
        }
    }
}

#[test]
fn no_order_of_what_happens_to_a_key_breaks_index_or_books() {
    use Kind::{Ask, AskedStore, DamagedLoad, Delete, FailingStore, Hint, ListedScan, Load, OldHint, Pin, Scan, Store};
    let mut orders = 0;
    // Where the index is whole, nothing is on disk that it does not know.
    for kinds in [
        &[Store, Store, Delete][..],
        &[Store, FailingStore, Delete],
        &[Store, Delete, Delete],
        &[Store, Load, Delete],
        &[Store, Pin, Delete],
        &[Store, DamagedLoad, Load],
        &[Store, DamagedLoad, Delete],
        &[Store, DamagedLoad, Pin],
    ] {
        orders += search(kinds, None);
    }
    // While the scan runs, whoever claims a key has asked the disk before; deletes and loads have, too.
    for kinds in [
        &[Ask, Ask, Delete][..],
        &[Ask, Load, Delete],
        &[Ask, Ask, Load],
        &[Ask, DamagedLoad, Ask],
        &[Scan, Ask, Delete],
        &[Scan, Load, Delete],
        &[Scan, Scan, Load],
        &[Scan, DamagedLoad, Ask],
        &[Scan, AskedStore, Delete],
    ] {
        orders += search(kinds, Some(BYTES));
    }
    for store in [Store, AskedStore] {
        orders += search(&[Scan, store, Delete], None);
    }
    // The scan begins before the snapshot is read; callers come after that, so they meet at most one of both.
    for hint in [Hint, OldHint] {
        for disk in [Some(BYTES), None] {
            for kinds in [
                &[hint, Scan][..],
                &[hint, Scan, Scan],
                &[hint, Scan, Ask],
                &[hint, Ask, Ask],
                &[hint, ListedScan],
                &[hint, ListedScan, ListedScan],
                &[hint, ListedScan, Ask],
            ] {
                orders += search(kinds, disk);
            }
        }
    }
    assert!(orders > 5_000, "{orders} orders");
}

#[test]
fn no_order_of_what_happens_to_a_hint_breaks_index_or_books() {
    use Kind::{Ask, AskedStore, DamagedLoad, Delete, ListedScan, Load, Scan};
    let mut orders = 0;
    for hint in [BYTES, OTHER_BYTES] {
        for disk in [Some(BYTES), None] {
            for kinds in [
                &[Scan, Ask, Delete][..],
                &[Scan, Ask, Load],
                &[Scan, AskedStore],
                &[Ask, Ask, Delete],
                &[Ask, AskedStore],
                &[ListedScan, Ask, Delete],
                &[ListedScan, Ask, Load],
                &[ListedScan, Ask, DamagedLoad],
                &[ListedScan, AskedStore, Delete],
                &[ListedScan, ListedScan, Delete],
            ] {
                orders += search_hinted(kinds, disk, Some(hint));
            }
        }
    }
    assert!(orders > 5_000, "{orders} orders");
}
