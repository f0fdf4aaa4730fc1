//! What a million objects weigh in index, ledger and lists of eviction together.

use std::sync::Arc;

use super::{BeginStore, Found, Index, Whose};
use crate::events::Hub;
use crate::eviction::PolicyKind;
use crate::key::Scope;
use crate::ledger::{Deltas, Ledger};

const OBJECTS: u64 = 1_000_000;
const OBJECT_BYTES: u64 = 1 << 20;

/// Most bytes that an object may cost.
const BYTES_MAX: u64 = 200;

/// Stores objects of these numbers, of one model and one salt; as many go before as there are more than [`OBJECTS`].
fn fill(index: &Index, ledger: &Ledger, scope: &Arc<Scope>, numbers: std::ops::Range<u64>) {
    let mut deltas = Deltas::new();
    for n in numbers {
        if n >= OBJECTS {
            let Found::Victim(victim) = index.take_victim(Whose::All, &mut 1) else { panic!("there is a victim") };
            index.end_delete(&victim.keyed);
            deltas.deleted(victim.keyed.salt, victim.held.bytes);
        }
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&n.to_le_bytes());
        let keyed = index.keyed(&scope.key(&hash).unwrap(), ledger);
        assert_eq!(index.begin_store(&keyed), BeginStore::New);
        assert!(index.commit_store(&keyed, OBJECT_BYTES, 0));
        // Used once more, so that ARC keeps a ghost of it.
        assert_eq!(index.begin_store(&keyed), BeginStore::Present);
        deltas.recovered(keyed.salt, OBJECT_BYTES);
    }
    ledger.apply(&deltas);
}

fn weigh(kind: PolicyKind) -> u64 {
    let capacity = OBJECTS * OBJECT_BYTES;
    let mut kept = None;
    let info = allocation_counter::measure(|| {
        let (index, ledger) = (Index::new(Arc::new(Hub::new()), Some((kind, capacity))), Ledger::new(None));
        let scope = Scope::new("meta-llama/Llama-3.1-8B", 0x0100_0100, 0, "tenant-1").unwrap();
        index.start_order();
        // As many again, so that there are as many ghosts as there ever are.
        fill(&index, &ledger, &scope, 0..2 * OBJECTS);
        kept = Some((index, ledger));
    });
    let (index, ledger) = kept.unwrap();
    assert_eq!((index.objects(), ledger.totals().0), (OBJECTS, capacity));
    info.bytes_current as u64 / OBJECTS
}

#[test]
fn a_million_objects_cost_at_most_200_bytes_each() {
    // LRU keeps less of an object, and nothing of one that has gone.
    for kind in [PolicyKind::S3Fifo, PolicyKind::Arc] {
        let bytes = weigh(kind);
        println!("{kind}: {bytes} bytes an object");
        assert!(bytes <= BYTES_MAX, "{kind}: {bytes} bytes an object");
    }
}
