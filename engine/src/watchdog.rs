//! Deadlines: a thread that answers for tickets whose time is up, whatever the shards are stuck in.
//!
//! Batches of one kind share a deadline, so each kind has a first-in-first-out line, and looking at its head is
//! enough. What the kernel has in hand is not touched: it keeps its buffers until it ends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::completion::CompletionFds;
use crate::config::Config;
use crate::counts::Counts;
use crate::error::Error;
use crate::ticket::Expire;

/// How often deadlines are looked at, and so how late one can be noticed.
const TICK: Duration = Duration::from_millis(20);

/// Stands for a deadline that the clock cannot hold.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Kinds of batches, by their deadline.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Line {
    Store,
    /// Loads and deletes.
    Load,
    Lookup,
}

struct Queue {
    deadline: Duration,
    waiting: Mutex<VecDeque<(Instant, Arc<dyn Expire>)>>,
}

struct Shared {
    lines: [Queue; 3],
    stop: Mutex<bool>,
    stopped: Condvar,
    counts: Arc<Counts>,
    completion: Arc<CompletionFds>,
}

/// The thread, and a line for each deadline.
pub(crate) struct Watchdog {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Watchdog {
    /// Starts the thread, with the deadline of each [`Line`].
    pub(crate) fn start(config: &Config, counts: Arc<Counts>, completion: Arc<CompletionFds>) -> std::io::Result<Self> {
        let lines = [config.store_deadline, config.load_deadline, config.lookup_deadline]
            .map(|deadline| Queue { deadline, waiting: Mutex::default() });
        let shared = Arc::new(Shared { lines, stop: Mutex::new(false), stopped: Condvar::new(), counts, completion });
        let thread = std::thread::Builder::new().name("saltern-deadline".into()).spawn({
            let shared = shared.clone();
            move || shared.run()
        })?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Watches a batch, from now on.
    pub(crate) fn watch(&self, line: Line, batch: Arc<dyn Expire>) {
        let line = &self.shared.lines[line as usize];
        let mut waiting = line.waiting.lock();
        // What is done leaves here, so that the line is as long as what is in flight.
        while waiting.front().is_some_and(|(_, batch)| batch.is_done()) {
            waiting.pop_front();
        }
        let now = Instant::now();
        waiting.push_back((now.checked_add(line.deadline).unwrap_or(now + FOREVER), batch));
    }

    /// Ends the thread. Batches still watched stay as they are.
    pub(crate) fn stop(&self) {
        *self.shared.stop.lock() = true;
        self.shared.stopped.notify_all();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut stop = self.stop.lock();
        while !*stop {
            self.stopped.wait_for(&mut stop, TICK);
            for line in &self.lines {
                self.expire(line);
            }
            self.completion.flush();
        }
    }

    fn expire(&self, line: &Queue) {
        let now = Instant::now();
        loop {
            let batch = {
                let mut waiting = line.waiting.lock();
                match waiting.front() {
                    Some((at, batch)) if batch.is_done() || *at <= now => waiting.pop_front(),
                    _ => return,
                }
            };
            if let Some((_, batch)) = batch.filter(|(_, batch)| !batch.is_done()) {
                self.counts.timeouts.add(1);
                batch.expire(&Error::TimedOut { deadline_ms: line.deadline.as_millis().min(u64::MAX.into()) as u64 });
            }
        }
    }
}
