//! Orders of threads, chosen by a seed: at each step a thread goes on at once, or lets others go first.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use saltern::steps::Steps;
use saltern_tests::checked;

/// How long a thread lets others go first when none comes: they may all be waiting for it.
const YIELD_MAX: Duration = Duration::from_micros(300);

struct State {
    rng: StdRng,
    /// Threads that have come to a step.
    arrivals: u64,
}

/// Shared by the engine's hook and the threads of a test.
#[derive(Clone)]
pub(crate) struct Schedule(Arc<(Mutex<State>, Condvar)>);

impl Schedule {
    pub(crate) fn new(rng: StdRng) -> Self {
        Self(Arc::new((Mutex::new(State { rng, arrivals: 0 }), Condvar::new())))
    }

    /// The hook for an engine's configuration.
    pub(crate) fn steps(&self) -> Steps {
        let schedule = self.clone();
        checked(Steps::new(move |_, _| schedule.step()))
    }

    /// Starts the choices of one history.
    pub(crate) fn reseed(&self, rng: StdRng) {
        self.0.0.lock().expect("not poisoned").rng = rng;
    }

    /// A step: goes on at once, or after some others have come to theirs.
    pub(crate) fn step(&self) {
        let (state, came) = &*self.0;
        let mut state = state.lock().expect("not poisoned");
        state.arrivals += 1;
        came.notify_all();
        let until = state.arrivals + state.rng.random_range(0..3);
        let too_early = |state: &mut State| state.arrivals < until;
        drop(came.wait_timeout_while(state, YIELD_MAX, too_early));
    }
}
