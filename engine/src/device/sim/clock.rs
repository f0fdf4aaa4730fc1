//! A clock that stands still unless it is moved, or the wall's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[derive(Debug)]
enum Kind {
    Moved(AtomicU64),
    Wall(Instant),
}

/// Nanoseconds since it was made. Clones are the same clock.
#[derive(Debug, Clone)]
pub struct Clock(Arc<Kind>);

impl Default for Clock {
    /// One that is moved.
    fn default() -> Self {
        Self(Arc::new(Kind::Moved(AtomicU64::new(0))))
    }
}

impl Clock {
    /// One that goes by itself; moving it does nothing.
    pub fn wall() -> Self {
        Self(Arc::new(Kind::Wall(Instant::now())))
    }

    /// Whether it goes by itself.
    pub(super) fn is_wall(&self) -> bool {
        matches!(&*self.0, Kind::Wall(_))
    }

    /// What it shows, in nanoseconds.
    pub fn now_ns(&self) -> u64 {
        match &*self.0 {
            Kind::Moved(now) => now.load(Ordering::Acquire),
            Kind::Wall(start) => start.elapsed().as_nanos() as u64,
        }
    }

    /// Moves it forward by so many nanoseconds.
    pub fn advance(&self, ns: u64) {
        if let Kind::Moved(now) = &*self.0 {
            now.fetch_add(ns, Ordering::AcqRel);
        }
    }

    /// Moves it forward to this moment, unless it is later already.
    pub fn advance_to(&self, ns: u64) {
        if let Kind::Moved(now) = &*self.0 {
            now.fetch_max(ns, Ordering::AcqRel);
        }
    }

    /// Waits for this moment; one that is moved is moved there.
    pub fn wait_until(&self, ns: u64) {
        self.advance_to(ns);
        let now = self.now_ns();
        if now < ns {
            std::thread::sleep(Duration::from_nanos(ns - now));
        }
    }
}
