//! Direct transfers beside a shard's ring. cuFile's calls block, so they run on a few threads (`threads.rs`); the shard registers files,
//! hands transfers over, and takes results, without ever waiting.
//!
//! A file stays registered for as long as the engine keeps it open: the cache holds a descriptor of its own, so that a file is never
//! closed under cuFile, and lets go of what the engine has closed, so that no deleted file keeps its blocks. With compatibility mode
//! forbidden, that a file can be registered is the probe of the file: one that cannot is not direct, and its objects go through slots.
//!
//! Not cuFile's asynchronous calls: what they write their results to has to outlive a stream that nobody can be made to drain.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use saltern::device::{CopyDone, DeviceError, DirectOp};

use super::batch::{BATCH_MAX, Batch};
use super::library::{FileHandle, FileIo};
use super::slab::Slabs;
use super::threads::{Alive, BATCH_DEADLINE, Job, Worker};
use crate::cuda::Gpu;
use crate::error::{GdsError, Result};

/// Most threads of one shard where cuFile takes one transfer a call: each is a transfer that the drive has to work on, and a chunk of
/// 4 MiB takes 0.3 to 2 ms on one drive. Not measured on a GPU. One is started when there is a transfer for it.
const CALL_THREADS: usize = 8;

/// Threads of one shard where it takes batches: while one batch is under way, the next comes together.
const BATCH_THREADS: usize = 2;

/// Most transfers of one shard under way: one in each thread, and one that waits for each; or as many as the batches hold, also when
/// they are not used any more.
const CALL_LIMIT: usize = 2 * CALL_THREADS;
const BATCH_LIMIT: usize = BATCH_THREADS * BATCH_MAX;

/// Most files kept registered by one shard; then all are forgotten, which is cheaper than to know which were used last.
const FILES_MAX: usize = 1024;

/// A registered file.
pub(super) struct Registered {
    pub(super) io: Arc<dyn FileIo>,
    pub(super) handle: FileHandle,
    /// Of the cache's own: what cuFile knows stays open until it is forgotten.
    _fd: OwnedFd,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.io.close(self.handle);
    }
}

/// See the module. Used by one shard.
pub(crate) struct DirectQueue {
    io: Arc<dyn FileIo>,
    slabs: Arc<Slabs>,
    /// What each thread needs.
    worker: Worker,
    /// By the address of the engine's descriptor, which it is as long as the weak pointer lives; with why one is not direct.
    files: HashMap<*const OwnedFd, (Weak<OwnedFd>, Result<Arc<Registered>>)>,
    /// [`FILES_MAX`], but for tests.
    files_max: usize,
    jobs: Option<Sender<Job>>,
    done: Receiver<CopyDone>,
    refused: Vec<CopyDone>,
    threads: Vec<JoinHandle<()>>,
    limit: usize,
    /// Handed to the threads, and not reported yet.
    under_way: usize,
    /// A thread could not be started; those that are there do it all.
    is_full: bool,
}

impl DirectQueue {
    /// Starts the first threads; `gpu`'s context is current on them, and has to be here.
    ///
    /// `deadline`: how long a batch may go on without that a transfer ends; [`BATCH_DEADLINE`] unless it says otherwise.
    pub(crate) fn new(
        io: Arc<dyn FileIo>,
        gpu: Option<Arc<Gpu>>,
        slabs: Arc<Slabs>,
        deadline: Option<Duration>,
    ) -> Result<Self> {
        let deadline = deadline.unwrap_or(BATCH_DEADLINE);
        let batches: Result<Vec<_>> = (0..BATCH_THREADS).map(|_| io.batch(BATCH_MAX)).collect();
        let (batches, limit) = match batches {
            Ok(batches) => (batches.into_iter().map(Some).collect(), BATCH_LIMIT),
            Err(error) => {
                tracing::debug!(%error, "direct transfers go one by one");
                (vec![None], CALL_LIMIT)
            }
        };
        let calls = Arc::new(AtomicBool::new(limit == CALL_LIMIT));
        let (jobs, receiver) = bounded::<Job>(limit);
        let (sender, done) = unbounded();
        let (files, refused, threads) = (HashMap::new(), Vec::new(), Vec::new());
        let alive = Arc::new(AtomicUsize::new(0));
        let worker = Worker { jobs: receiver, done: sender, gpu, calls, alive, deadline };
        let (jobs, under_way, is_full) = (Some(jobs), 0, false);
        let files_max = FILES_MAX;
        let mut queue =
            Self { io, slabs, worker, files, files_max, jobs, done, refused, threads, limit, under_way, is_full };
        batches.into_iter().try_for_each(|batch| queue.start(batch))?;
        Ok(queue)
    }

    fn start(&mut self, batch: Option<Box<dyn Batch>>) -> Result<()> {
        let (worker, alive) = (self.worker.clone(), Alive::new(&self.worker));
        let name = format!("saltern-cufile-{}", self.threads.len());
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let _alive = alive;
            worker.run(batch);
        });
        let thread = thread.map_err(|error| GdsError::Io {
            op: "spawn",
            path: "saltern-cufile".into(),
            reason: error.to_string(),
        })?;
        self.threads.push(thread);
        Ok(())
    }

    /// Starts a thread where transfers go call by call and all threads have one. Those that panicked are counted no more.
    fn grow(&mut self) {
        // They end by a panic alone, as long as there may be transfers. One that has not quite ended is found the next time.
        let before = self.threads.len();
        if self.worker.alive.load(Ordering::Relaxed) < before {
            self.threads.retain(|thread| !thread.is_finished());
        }
        if self.threads.len() < before {
            tracing::error!("a thread of cuFile's has panicked");
            self.worker.calls.store(true, Ordering::Relaxed);
        }
        let wanted = self.under_way.min(CALL_THREADS);
        while !self.is_full && self.threads.len() < wanted && self.worker.calls.load(Ordering::Relaxed) {
            if let Err(error) = self.start(None) {
                tracing::error!(%error, "direct transfers go on with the threads that there are");
                self.is_full = true;
            }
        }
        if self.threads.is_empty() {
            for job in self.worker.jobs.try_iter() {
                self.under_way -= 1;
                let error = DeviceError::new("cuFile", "its threads have ended, and no other could be started");
                self.refused.push(CopyDone::new(job.token, Err(error)));
            }
        }
    }

    /// Most transfers under way.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Whether a file is direct, found out once as long as the engine keeps it open.
    pub(crate) fn admit(&mut self, fd: &Rc<OwnedFd>) -> Result<()> {
        self.file(fd).map(drop)
    }

    /// Hands a transfer over. Does not block: no more than [`Self::limit`] are under way.
    pub(crate) fn submit(&mut self, op: DirectOp) {
        let DirectOp { direction, fd, offset, range, token } = op;
        let file = match self.file(&fd) {
            Ok(file) => file,
            Err(error) => return self.refused.push(CopyDone::new(token, Err(error.into()))),
        };
        let (memory, slab) = self.slabs.find(range);
        let job = Job { file, direction, offset, memory, _slab: slab, token };
        match self.jobs.as_ref().map(|jobs| jobs.try_send(job)) {
            Some(Ok(())) => self.under_way += 1,
            _ => self.refused.push(CopyDone::new(token, Err(DeviceError::new("cuFile", "more than its limit")))),
        }
        self.grow();
    }

    /// Reports what has ended. Does not block.
    pub(crate) fn poll(&mut self, each: &mut dyn FnMut(CopyDone)) {
        // Batches may have failed since.
        self.grow();
        self.refused.drain(..).for_each(&mut *each);
        for done in self.done.try_iter() {
            self.under_way -= 1;
            each(done);
        }
    }

    fn file(&mut self, fd: &Rc<OwnedFd>) -> Result<Arc<Registered>> {
        if let Some((known, file)) = self.files.get(&Rc::as_ptr(fd))
            && known.strong_count() > 0
        {
            return file.clone();
        }
        self.files.retain(|_, (known, _)| known.strong_count() > 0);
        if self.files.len() >= self.files_max {
            self.files.clear();
        }
        let file = self.register(fd);
        self.files.insert(Rc::as_ptr(fd), (Rc::downgrade(fd), file.clone()));
        file
    }

    fn register(&self, fd: &Rc<OwnedFd>) -> Result<Arc<Registered>> {
        let own = fd.try_clone().map_err(|error| GdsError::Io {
            op: "dup",
            path: "an object's file".into(),
            reason: error.to_string(),
        })?;
        let handle = self.io.open(own.as_fd())?;
        Ok(Arc::new(Registered { io: self.io.clone(), handle, _fd: own }))
    }
}

impl Drop for DirectQueue {
    fn drop(&mut self) {
        // The threads end what they have; nothing new comes.
        self.jobs = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of cuFile's had panicked");
            }
        }
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
