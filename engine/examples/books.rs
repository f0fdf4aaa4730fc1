//! How many events a second the books take on one core: stored, accessed and deleted objects through the ledger, a policy and the
//! order inside each salt, as an engine that evicts keeps them.
//!
//! ```text
//! cargo run --release -p saltern --example books [EVENTS]
//! ```
//!
//! With one salt and with 10,000, a million objects, batches of 64 in one step of the ledger. Each event is drawn: half are uses, a
//! quarter stores, a quarter deletes or evictions.

use std::time::Instant;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use saltern::eviction::{Id, Object, PolicyKind, SaltOrder};
use saltern::ledger::{Deltas, Ledger, SaltId};

const OBJECTS: u32 = 1_000_000;
const SALTS: [u32; 2] = [1, 10_000];
const BATCH: u64 = 64;
const BYTES: u64 = 256 << 10;

fn main() {
    let events = std::env::args().nth(1).map_or(Ok(5_000_000), |text| text.parse());
    let events: u64 = events.expect("EVENTS is a number");
    println!("policy    salts    events/s  ns/event");
    for kind in PolicyKind::ALL {
        for salts in SALTS {
            let seconds = run(kind, salts, events);
            let (rate, each_ns) = (events as f64 / seconds, seconds * 1e9 / events as f64);
            println!("{:8}{salts:7}{rate:12.0}{each_ns:10.0}", kind.name());
        }
    }
}

fn run(kind: PolicyKind, count: u32, events: u64) -> f64 {
    let capacity = u64::from(OBJECTS) * BYTES;
    let ledger = Ledger::new(Some(2 * capacity));
    let salts: Vec<SaltId> = (0..count).map(|n| ledger.salt(&format!("tenant-{n}"))).collect();
    let (mut policy, mut order, mut deltas) = (kind.build(capacity), SaltOrder::new(), Deltas::new());
    let mut rng = SmallRng::seed_from_u64(1);
    let (mut free, mut next_hash): (Vec<Id>, u64) = (Vec::new(), 0);
    let mut is_present = vec![false; OBJECTS as usize];
    let mut store = |id: Id, policy: &mut dyn saltern::eviction::Policy, order: &mut SaltOrder, deltas: &mut Deltas| {
        // Scattered, as hashes are.
        next_hash = next_hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
        ledger.reserve(salts[(id % count) as usize], BYTES).expect("there is room");
        policy.insert(Object { id, hash: next_hash, bytes: BYTES });
        order.insert(id, id % count);
        deltas.stored(salts[(id % count) as usize], BYTES);
    };
    for id in 0..OBJECTS {
        store(id, &mut *policy, &mut order, &mut deltas);
        is_present[id as usize] = true;
        if u64::from(id) % BATCH == 0 {
            ledger.apply(&deltas);
            deltas.clear();
        }
    }
    let started = Instant::now();
    for event in 1..=events {
        match rng.random_range(0..4) {
            0 if !free.is_empty() => {
                let id = free.pop().expect("asked just now");
                store(id, &mut *policy, &mut order, &mut deltas);
                is_present[id as usize] = true;
            }
            0 | 1 => {
                // Every other goes by the policy, the rest because the host says so.
                let id = if event % 2 == 0 { policy.victim() } else { Some(rng.random_range(0..OBJECTS)) };
                let Some(id) = id.filter(|id| is_present[*id as usize]) else { continue };
                if event % 2 == 0 {
                    policy.evict(id)
                } else {
                    policy.remove(id)
                }
                order.remove(id);
                deltas.deleted(salts[(id % count) as usize], BYTES);
                is_present[id as usize] = false;
                free.push(id);
            }
            _ => {
                let id = rng.random_range(0..OBJECTS);
                policy.access(id);
                order.access(id);
            }
        }
        if event % BATCH == 0 {
            ledger.apply(&deltas);
            deltas.clear();
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    ledger.apply(&deltas);
    let usage = ledger.usage();
    assert_eq!((ledger.underflows(), usage.total_bytes_used), (0, policy.len() as u64 * BYTES), "the books are right");
    assert_eq!(usage.bytes_by_salt.values().sum::<u64>(), usage.total_bytes_used);
    seconds
}
