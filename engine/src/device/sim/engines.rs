//! The software device's copy engines where its clock is the wall's: a thread for each direction, which takes one copy at a time, as
//! a GPU has a DMA engine for each; and threads for direct transfers, whose calls block as cuFile's do.
//!
//! ```text
//! copier: submit -> flush -> engine's thread: bytes, and when the copy ends by the device's figures -> copier: poll
//! ```
//! So neither a shard nor a disk waits for bytes that are being copied; their end is found by looking, as that of an event is.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, unbounded};

use super::Shared;
use super::job::Job;
use crate::device::{DIRECT_ALIGN_BYTES, DeviceError};

/// Most direct transfers of one copier that are under way, and threads of the device for those of all of them.
pub(super) const DIRECT_LIMIT: usize = 8;
const DIRECT_THREADS: usize = 8;

const _: () = assert!(DIRECT_ALIGN_BYTES == super::memory::ALIGN as usize);

/// Work for an engine. Their number is bounded by the slots, and by [`DIRECT_LIMIT`].
pub(super) struct Task {
    pub(super) job: Job,
    pub(super) fails: bool,
    pub(super) token: usize,
    pub(super) done: Sender<Ended>,
}

/// Bytes that have moved.
pub(super) struct Ended {
    pub(super) token: usize,
    /// When the copy ends as the device's figures say: not before.
    pub(super) ends_ns: u64,
    pub(super) result: Result<(), DeviceError>,
}

/// See the module. Dropped when all work is done.
pub(super) struct Engines {
    copies: Option<[Sender<Task>; 2]>,
    direct: Option<Sender<Task>>,
    threads: Vec<JoinHandle<()>>,
}

impl Engines {
    /// Starts the threads; without those that cannot be had, their work is done by who hands it over.
    pub(super) fn start(shared: &Arc<Shared>) -> Self {
        let mut threads = Vec::new();
        let mut queue = |name: &str, count: usize| {
            let (sender, tasks) = unbounded();
            for _ in 0..count {
                let (shared, tasks) = (shared.clone(), tasks.clone());
                let thread = std::thread::Builder::new().name(format!("saltern-sim-{name}"));
                threads.extend(thread.spawn(move || work(&shared, &tasks)));
            }
            sender
        };
        let copies = Some([queue("to", 1), queue("from", 1)]);
        let direct = shared.options.direct.then(|| queue("direct", DIRECT_THREADS));
        Self { copies, direct, threads }
    }

    /// Hands a task over.
    pub(super) fn take(&self, shared: &Shared, task: Task) {
        let queue = match task.job.is_direct() {
            true => self.direct.as_ref(),
            false => self.copies.as_ref().map(|copies| &copies[task.job.direction as usize]),
        };
        let left = match queue {
            Some(queue) => queue.send(task).err().map(|unsent| unsent.into_inner()),
            None => Some(task),
        };
        if let Some(task) = left {
            run(shared, task);
        }
    }
}

impl Drop for Engines {
    fn drop(&mut self) {
        (self.copies, self.direct) = (None, None);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("an engine of the software device had panicked");
            }
        }
    }
}

fn work(shared: &Shared, tasks: &Receiver<Task>) {
    tasks.iter().for_each(|task| run(shared, task));
}

fn run(shared: &Shared, task: Task) {
    let Task { job, fails, token, done } = task;
    let (ends_ns, result) = shared.move_now(job, fails);
    let _ = done.send(Ended { token, ends_ns, result });
}
