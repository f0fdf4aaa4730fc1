//! Stops a thread of the engine at a place, until the test lets it go.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex};

use saltern::ObjectKey;
use saltern::steps::{Step, Steps};
use saltern_tests::{WAIT_MAX, checked};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// The next thread that comes here is stopped.
    Armed,
    /// A thread stands here.
    Taken,
    /// It may go on; those who come later are not stopped.
    Free,
}

type Places = HashMap<(Step, ObjectKey), Place>;

/// The places of one test. All are freed when this is dropped: else the engine could not close.
#[derive(Default)]
pub(crate) struct Hold {
    places: Arc<(Mutex<Places>, Condvar)>,
}

impl Hold {
    /// The hook for an engine's configuration.
    pub(crate) fn steps(&self) -> Steps {
        let places = self.places.clone();
        checked(Steps::new(move |step, key| {
            let (places, changed) = &*places;
            let mut places = places.lock().expect("not poisoned");
            let here = (step, key.clone());
            if places.get(&here) == Some(&Place::Armed) {
                places.insert(here.clone(), Place::Taken);
                changed.notify_all();
                drop(changed.wait_while(places, |places| places.get(&here) == Some(&Place::Taken)));
            }
        }))
    }

    /// Stops the next thread that comes to this step with this key.
    pub(crate) fn arm(&self, step: Step, key: &ObjectKey) {
        self.places.0.lock().expect("not poisoned").insert((step, key.clone()), Place::Armed);
    }

    /// Waits until a thread stands there.
    pub(crate) fn wait(&self, step: Step, key: &ObjectKey) {
        let here = (step, key.clone());
        let places = self.places.0.lock().expect("not poisoned");
        let not_there = |places: &mut Places| places.get(&here) != Some(&Place::Taken);
        let (places, late) = self.places.1.wait_timeout_while(places, WAIT_MAX, not_there).expect("not poisoned");
        drop(places);
        assert!(!late.timed_out(), "nobody came to {step:?}");
    }

    /// Lets the thread go on.
    pub(crate) fn free(&self, step: Step, key: &ObjectKey) {
        self.places.0.lock().expect("not poisoned").insert((step, key.clone()), Place::Free);
        self.places.1.notify_all();
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Ok(mut places) = self.places.0.lock() {
            places.values_mut().for_each(|place| *place = Place::Free);
        }
        self.places.1.notify_all();
    }
}
