//! A listener that remembers everything.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use saltern::{Event, EventKind, Listener, ObjectKey};

/// Remembers every event.
#[derive(Default)]
pub struct Recorder {
    events: Mutex<Vec<Event>>,
    resets: AtomicUsize,
}

impl Recorder {
    /// An empty one.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// What was heard so far.
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().expect("not poisoned").clone()
    }

    /// Bytes in use, as the events add up.
    pub fn bytes(&self) -> u64 {
        let sum: i64 = self.events.lock().expect("not poisoned").iter().map(Event::delta_bytes).sum();
        u64::try_from(sum).expect("deletes never exceed stores")
    }

    /// How often the listener was told that it was too slow.
    pub fn resets(&self) -> usize {
        self.resets.load(Ordering::Relaxed)
    }

    /// The objects that are there according to the events.
    ///
    /// # Panics
    /// When the events of a key are out of order: it appears twice, or is used or deleted while it is not there,
    /// or changes its size.
    pub fn objects(&self) -> HashMap<ObjectKey, u64> {
        let mut present: HashMap<ObjectKey, u64> = HashMap::new();
        for (at, event) in self.events().iter().enumerate() {
            let before = present.get(&event.key).copied();
            match event.kind {
                EventKind::Recovered | EventKind::Stored => {
                    assert_eq!(before, None, "event {at}: {event:?}, but the object was there");
                    present.insert(event.key.clone(), event.bytes);
                }
                EventKind::Accessed => assert_eq!(before, Some(event.bytes), "event {at}: {event:?}"),
                EventKind::Deleted => {
                    assert_eq!(before, Some(event.bytes), "event {at}: {event:?}");
                    present.remove(&event.key);
                }
                EventKind::Absent => assert_eq!((before, event.bytes), (None, 0), "event {at}: {event:?}"),
                _ => panic!("event {at}: {event:?} is of a kind that this suite does not know"),
            }
        }
        present
    }
}

impl Listener for Recorder {
    fn on_events(&self, events: &[Event]) {
        self.events.lock().expect("not poisoned").extend_from_slice(events);
    }

    fn on_reset(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
        self.events.lock().expect("not poisoned").clear();
    }
}
