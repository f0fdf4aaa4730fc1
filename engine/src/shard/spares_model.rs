//! Any sequence of what shards of one volume do with their spares, against a plain model of each file. `SALTERN_MODEL_CASES` tries more.

use std::collections::HashMap;
use std::time::Instant;

use proptest::prelude::*;

use super::spares::{Spare, Spares};
use crate::volume::{Quarantine, SyncNumber};

const SHARDS: usize = 2;
const LIMIT: u64 = 1000;

#[derive(Debug, Clone)]
enum Event {
    /// A deleted object's file, of so many bytes, if there is room for it.
    Retire(usize, u64),
    /// A file of an earlier run.
    Adopt(usize, u64),
    Begin,
    End,
    Fail,
    /// A shard looks what is clean by now.
    Settle(usize),
    Take(usize, u64),
    GiveBack(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let shard = || 0..SHARDS;
    let bytes = || prop_oneof![Just(100_u64), Just(150), Just(200), Just(450), Just(LIMIT + 1), 1..LIMIT];
    prop_oneof![
        5 => (shard(), bytes()).prop_map(|(shard, bytes)| Event::Retire(shard, bytes)),
        1 => (shard(), bytes()).prop_map(|(shard, bytes)| Event::Adopt(shard, bytes)),
        3 => Just(Event::Begin),
        3 => Just(Event::End),
        1 => Just(Event::Fail),
        4 => shard().prop_map(Event::Settle),
        4 => (shard(), bytes()).prop_map(|(shard, bytes)| Event::Take(shard, bytes)),
        1 => shard().prop_map(Event::GiveBack),
    ]
}

/// A file, as the model knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its rename is not known to be durable.
    Renamed,
    /// It was renamed before the sync that runs began.
    Syncing,
    /// It may be overwritten, whether its shard has noticed or not.
    Durable,
}

#[derive(Debug, Clone, Copy)]
struct File {
    shard: usize,
    bytes: u64,
    state: State,
    /// Its shard has seen that it is clean.
    is_settled: bool,
}

struct World {
    quarantine: Quarantine,
    now: Instant,
    sync: Option<SyncNumber>,
    spares: Vec<Spares>,
    files: HashMap<String, File>,
    names: u32,
}

impl World {
    fn new() -> Self {
        Self {
            quarantine: Quarantine::default(),
            now: Instant::now(),
            sync: None,
            spares: (0..SHARDS).map(|_| Spares::new(LIMIT)).collect(),
            files: HashMap::new(),
            names: 0,
        }
    }

    /// A spare leaves its shard.
    fn leaves(&mut self, shard: usize, spare: &Spare) -> File {
        let file = self.files.remove(&spare.name).expect("a file leaves once");
        assert_eq!((file.shard, file.bytes), (shard, spare.bytes));
        assert_eq!((file.state, file.is_settled), (State::Durable, true), "a power cut would bring its old name back");
        file
    }

    fn add(&mut self, shard: usize, bytes: u64, state: State) -> Spare {
        self.names += 1;
        let name = self.names.to_string();
        let is_settled = state == State::Durable;
        self.files.insert(name.clone(), File { shard, bytes, state, is_settled });
        Spare { name, bytes, fd: None }
    }

    fn make_room(&mut self, shard: usize, bytes: u64) -> bool {
        let mut removed = Vec::new();
        let has_room = self.spares[shard].make_room(bytes, |spare| removed.push(spare));
        for spare in removed {
            assert!(self.leaves(shard, &spare).bytes != bytes, "one of this very size is as good");
        }
        assert!(!has_room || self.spares[shard].bytes() + bytes <= LIMIT);
        has_room
    }

    fn of(&self, shard: usize) -> impl Iterator<Item = &File> {
        self.files.values().filter(move |file| file.shard == shard)
    }

    fn take(&mut self, shard: usize, bytes: u64) {
        let fits = |size: u64| size <= bytes.saturating_mul(2) && size.saturating_mul(2) >= bytes;
        let there: Vec<u64> =
            self.of(shard).filter(|file| file.is_settled && fits(file.bytes)).map(|file| file.bytes).collect();
        let larger = there.iter().filter(|size| **size >= bytes).min();
        let best = larger.or_else(|| there.iter().max()).copied();
        let taken = self.spares[shard].take(bytes);
        assert_eq!(taken.as_ref().map(|spare| spare.bytes), best, "for {bytes} of {there:?}");
        if let Some(spare) = taken {
            self.leaves(shard, &spare);
        }
    }

    fn change(&mut self, from: State, to: State) {
        self.files.values_mut().filter(|file| file.state == from).for_each(|file| file.state = to);
    }

    fn step(&mut self, event: &Event) {
        match *event {
            Event::Retire(shard, bytes) => {
                if self.make_room(shard, bytes) {
                    let spare = self.add(shard, bytes, State::Renamed);
                    self.spares[shard].retire(spare, self.quarantine.enter());
                }
            }
            Event::Adopt(shard, bytes) => {
                if self.make_room(shard, bytes) {
                    let spare = self.add(shard, bytes, State::Durable);
                    self.spares[shard].adopt_clean(spare);
                }
            }
            Event::Begin => {
                let sync = self.quarantine.try_begin(self.now, 0);
                assert_eq!(sync.is_some(), self.sync.is_none() && !self.quarantine.has_failed(), "one at a time");
                if sync.is_some() {
                    self.sync = sync;
                    self.change(State::Renamed, State::Syncing);
                }
            }
            Event::End => {
                let Some(sync) = self.sync.take() else { return };
                self.quarantine.end(sync, true, self.now);
                self.change(State::Syncing, State::Durable);
            }
            Event::Fail => {
                let Some(sync) = self.sync.take() else { return };
                self.quarantine.end(sync, false, self.now);
                self.fail();
            }
            Event::Settle(shard) => {
                self.spares[shard].settle(self.quarantine.clean_below());
                let settled =
                    self.files.values_mut().filter(|file| file.shard == shard && file.state == State::Durable);
                settled.for_each(|file| file.is_settled = true);
            }
            Event::Take(shard, bytes) => self.take(shard, bytes),
            Event::GiveBack(shard) => {
                if let Some(spare) = self.spares[shard].pop_any() {
                    self.leaves(shard, &spare);
                }
            }
        }
    }

    /// Every shard hears of it. What it knew to be clean stays so.
    fn fail(&mut self) {
        for shard in 0..SHARDS {
            for spare in self.spares[shard].fail_sync() {
                let file = self.files.remove(&spare.name).expect("a file leaves once");
                assert!(!file.is_settled && file.shard == shard);
            }
            assert!(self.of(shard).all(|file| file.is_settled), "nothing waits any more");
            assert!(!self.spares[shard].is_on() && !self.make_room(shard, 1));
        }
    }

    fn check(&self) {
        for (shard, spares) in self.spares.iter().enumerate() {
            let (count, bytes) = (self.of(shard).count(), self.of(shard).map(|file| file.bytes).sum::<u64>());
            assert_eq!((spares.count(), spares.bytes()), (count, bytes));
            assert!(bytes <= LIMIT);
            let waits = self.of(shard).any(|file| !file.is_settled);
            assert_eq!(spares.wants_sync(true), waits, "what waits is asked for when a store has found nothing");
        }
    }
}

fn cases() -> u32 {
    std::env::var("SALTERN_MODEL_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(2000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_given_out_is_clean_fits_best_and_is_counted_in_every_sequence(
        events in proptest::collection::vec(event(), 1..80)
    ) {
        let mut world = World::new();
        for event in &events {
            world.step(event);
            world.check();
        }
    }
}
