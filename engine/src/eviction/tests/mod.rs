//! What every policy has to do, and how often it hits beside a plain simulation of its paper.

mod reference;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use reference::Reference;

/// Requests for `objects` objects, the n-th most popular as often as 1/n^`skew` says.
fn zipf(objects: u32, skew: f64, requests: usize, seed: u64) -> Vec<u32> {
    let mut sum = 0.0;
    let shares: Vec<f64> = (1..=objects).map(|n| f64::from(n).powf(-skew)).collect();
    let until: Vec<f64> = shares
        .iter()
        .map(|share| {
            sum += share;
            sum
        })
        .collect();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut draw = || rng.random::<f64>() * sum;
    (0..requests)
        .map(|_| {
            let at = draw();
            until.partition_point(|until| *until < at) as u32
        })
        .collect()
}

/// What an owner does: numbers are used again, and victims are asked for until the objects fit.
struct Cache {
    policy: Box<dyn Policy>,
    capacity: u64,
    used: u64,
    ids: std::collections::HashMap<u32, Id>,
    objects: Vec<(u32, u64)>,
    free: Vec<Id>,
}

impl Cache {
    fn new(kind: PolicyKind, capacity: u64) -> Self {
        let (ids, objects, free) = Default::default();
        Self { policy: kind.build(capacity), capacity, used: 0, ids, objects, free }
    }

    fn request(&mut self, key: u32, bytes: u64) -> bool {
        if let Some(id) = self.ids.get(&key) {
            self.policy.access(*id);
            return true;
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.objects.push((0, 0));
            self.objects.len() as Id - 1
        });
        self.objects[id as usize] = (key, bytes);
        self.ids.insert(key, id);
        self.policy.insert(Object { id, hash: hash(key), bytes });
        self.used += bytes;
        while self.used > self.capacity {
            let victim = self.policy.victim().expect("there is something");
            assert_eq!(self.policy.victim(), Some(victim), "asking changes nothing");
            self.policy.evict(victim);
            let (key, bytes) = self.objects[victim as usize];
            assert_eq!(self.ids.remove(&key), Some(victim), "a victim is there, and goes once");
            self.used -= bytes;
            self.free.push(victim);
        }
        assert_eq!(self.policy.len(), self.ids.len());
        false
    }
}

fn hash(key: u32) -> u64 {
    (u64::from(key) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn hit_rate(trace: &[u32], mut request: impl FnMut(u32) -> bool) -> f64 {
    // The first quarter fills the cache.
    let (fill, rest) = trace.split_at(trace.len() / 4);
    for key in fill {
        request(*key);
    }
    rest.iter().filter(|key| request(**key)).count() as f64 / rest.len() as f64
}

#[test]
fn hit_rates_are_those_of_the_papers() {
    const OBJECTS: u32 = 100_000;
    const CAPACITY: usize = 10_000;
    for (skew, seed) in [(0.8, 1), (1.0, 2), (1.2, 3)] {
        let trace = zipf(OBJECTS, skew, 800_000, seed);
        let mut rates = BTreeMap::new();
        for kind in PolicyKind::ALL {
            let mut reference: Box<dyn Reference> = match kind {
                PolicyKind::Lru => Box::new(reference::Lru::new(CAPACITY)),
                PolicyKind::S3Fifo => Box::new(reference::S3Fifo::new(CAPACITY)),
                PolicyKind::Arc => Box::new(reference::Arc::new(CAPACITY)),
            };
            let expected = hit_rate(&trace, |key| reference.request(key));
            let mut cache = Cache::new(kind, CAPACITY as u64 * 4096);
            let rate = hit_rate(&trace, |key| cache.request(key, 4096));
            println!("skew {skew}: {kind} hits {rate:.4}, its reference {expected:.4}");
            assert!((rate - expected).abs() <= 0.01 * expected, "{kind} at {skew}: {rate}, not {expected}");
            rates.insert(kind.name(), rate);
        }
        assert!(rates["s3-fifo"] >= rates["lru"] && rates["arc"] >= rates["lru"], "{rates:?}");
    }
}

#[test]
fn a_scan_does_not_push_out_what_is_used_again_and_again() {
    for kind in [PolicyKind::S3Fifo, PolicyKind::Arc] {
        let mut cache = Cache::new(kind, 1000);
        for key in (0..5).flat_map(|_| 0..500).chain(1000..4000) {
            cache.request(key, 1);
        }
        let left = (0..500).filter(|key| cache.ids.contains_key(key)).count();
        assert_eq!(left, 500, "{kind}");
    }
}

#[test]
fn what_was_never_used_goes_oldest_first() {
    for kind in PolicyKind::ALL {
        let mut policy = kind.build(1000);
        (0..100).for_each(|n| policy.insert(Object { id: (n * 37) % 100, hash: hash(n), bytes: 10 }));
        for n in 0..100 {
            assert_eq!(policy.victim(), Some((n * 37) % 100), "{kind}");
            policy.evict((n * 37) % 100);
        }
        assert_eq!((policy.victim(), policy.len()), (None, 0));
    }
}

#[test]
fn deferred_objects_stay_and_are_the_last_to_go_afterwards() {
    for kind in PolicyKind::ALL {
        let mut policy = kind.build(1000);
        (0..100).for_each(|id| policy.insert(Object { id, hash: hash(id), bytes: 10 }));
        let mut met = 0;
        while let Some(victim) = policy.victim() {
            if victim % 10 == 0 {
                policy.defer(victim);
                policy.access(victim);
            } else {
                policy.evict(victim);
            }
            met += 1;
        }
        assert_eq!((met, policy.len()), (100, 10), "{kind}: each is met once");
        policy.remove(50);
        policy.evict(60);
        policy.resume();
        let left: Vec<Id> = std::iter::from_fn(|| {
            let victim = policy.victim()?;
            policy.evict(victim);
            Some(victim)
        })
        .collect();
        assert_eq!(left, [0, 10, 20, 30, 40, 70, 80, 90], "{kind}");
    }
}

#[test]
fn names_and_policies_agree() {
    for kind in PolicyKind::ALL {
        assert_eq!(kind.to_string().parse(), Ok(kind));
        assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{kind}\""));
    }
    assert!("lifo".parse::<PolicyKind>().unwrap_err().contains("s3-fifo"));
}

#[derive(Debug, Clone)]
enum Step {
    Insert(Id, u64),
    Access(Id),
    Remove(Id),
    Evict,
    Defer,
    Resume,
}

fn steps() -> impl Strategy<Value = Step> {
    let id = || 0..40_u32;
    prop_oneof![
        4 => (id(), prop_oneof![Just(0), 1..200_u64, Just(u64::MAX >> 8)]).prop_map(|(id, bytes)| Step::Insert(id, bytes)),
        4 => id().prop_map(Step::Access),
        2 => id().prop_map(Step::Remove),
        3 => Just(Step::Evict),
        2 => Just(Step::Defer),
        1 => Just(Step::Resume),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    /// Whatever is done, a policy knows what is there, and a victim is one of that.
    #[test]
    fn a_policy_never_loses_an_object(capacity in 0..2000_u64, steps in prop::collection::vec(steps(), 0..300)) {
        for kind in PolicyKind::ALL {
            let mut policy = kind.build(capacity);
            let mut present = BTreeMap::new();
            let mut deferred = BTreeSet::new();
            for step in &steps {
                match *step {
                    Step::Insert(id, bytes) => {
                        // Keys come back under other numbers.
                        if present.insert(id, bytes).is_none() {
                            policy.insert(Object { id, hash: hash(id % 7), bytes });
                        }
                    }
                    Step::Access(id) => policy.access(id),
                    Step::Remove(id) => {
                        policy.remove(id);
                        present.remove(&id);
                        deferred.remove(&id);
                    }
                    Step::Evict => {
                        let victim = policy.victim();
                        prop_assert_eq!(victim.is_some(), present.len() > deferred.len());
                        if let Some(victim) = victim {
                            prop_assert!(present.remove(&victim).is_some() && !deferred.contains(&victim));
                            policy.evict(victim);
                        }
                    }
                    Step::Defer => {
                        if let Some(victim) = policy.victim() {
                            policy.defer(victim);
                            prop_assert!(deferred.insert(victim), "{}", kind);
                        }
                    }
                    Step::Resume => {
                        policy.resume();
                        deferred.clear();
                    }
                }
                prop_assert_eq!(policy.len(), present.len());
            }
            policy.resume();
            while let Some(victim) = policy.victim() {
                prop_assert!(present.remove(&victim).is_some());
                policy.evict(victim);
            }
            prop_assert!(present.is_empty());
        }
    }
}
