//! Direct transfers beside a shard's ring. cuFile's calls block, so each runs on one of a few threads; the shard registers files,
//! hands transfers over, and takes results, without ever waiting.
//!
//! A file stays registered for as long as the engine keeps it open: the cache holds a descriptor of its own, so that a file is never
//! closed under cuFile, and lets go of what the engine has closed, so that no deleted file keeps its blocks.
//!
//! Not cuFile's batches: in compatibility mode more than 64 entries can hang inside of a submit, and a batch is answered as one. Not
//! its asynchronous calls: what they write their results to has to outlive a stream that nobody can be made to drain.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use saltern::device::{CopyDone, DeviceError, DeviceRange, DirectOp, Direction, Fence};

use super::library::{FileHandle, FileIo};
use crate::cuda::{CudaFence, Gpu};
use crate::error::{GdsError, Result};

/// Threads of one shard. Each has one transfer under way; a chunk of 4 MiB takes 0.3 to 2 ms on one drive.
const THREADS: usize = 8;

/// Most transfers of one shard under way: one in each thread, and one that waits for each.
const LIMIT: usize = 2 * THREADS;

/// Most files kept registered by one shard.
const FILES_MAX: usize = 1024;

/// A registered file.
struct Registered {
    io: Arc<dyn FileIo>,
    handle: FileHandle,
    /// Of the cache's own: what cuFile knows stays open until it is forgotten.
    _fd: OwnedFd,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.io.close(self.handle);
    }
}

struct Job {
    file: Arc<Registered>,
    direction: Direction,
    offset: u64,
    range: DeviceRange,
    after: Option<Fence>,
    token: usize,
}

/// See the module. Used by one shard.
pub(crate) struct DirectQueue {
    io: Arc<dyn FileIo>,
    /// By the address of the engine's descriptor, which it is as long as the weak pointer lives.
    files: HashMap<*const OwnedFd, (Weak<OwnedFd>, Arc<Registered>)>,
    jobs: Option<Sender<Job>>,
    done: Receiver<CopyDone>,
    refused: Vec<CopyDone>,
    threads: Vec<JoinHandle<()>>,
}

impl DirectQueue {
    /// Starts the threads; `gpu`'s context is current on them.
    pub(crate) fn new(io: Arc<dyn FileIo>, gpu: Option<Arc<Gpu>>) -> Result<Self> {
        let (jobs, receiver) = bounded::<Job>(LIMIT);
        let (sender, done) = unbounded();
        let mut queue =
            Self { io, files: HashMap::new(), jobs: Some(jobs), done, refused: Vec::new(), threads: Vec::new() };
        for number in 0..THREADS {
            let (receiver, sender, gpu) = (receiver.clone(), sender.clone(), gpu.clone());
            let work = move || work(&receiver, &sender, gpu.as_deref());
            let thread = std::thread::Builder::new().name(format!("saltern-cufile-{number}")).spawn(work);
            let thread = thread.map_err(|error| GdsError::Io {
                op: "spawn",
                path: "saltern-cufile".into(),
                reason: error.to_string(),
            })?;
            queue.threads.push(thread);
        }
        Ok(queue)
    }

    /// Most transfers under way.
    pub(crate) fn limit(&self) -> usize {
        LIMIT
    }

    /// Hands a transfer over. Does not block: no more than [`LIMIT`] are under way.
    pub(crate) fn submit(&mut self, op: DirectOp) {
        let DirectOp { direction, fd, offset, range, after, token } = op;
        let file = match self.file(&fd) {
            Ok(file) => file,
            Err(error) => return self.refused.push(CopyDone { token, result: Err(error.into()) }),
        };
        let job = Job { file, direction, offset, range, after, token };
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if !sent {
            let error = DeviceError::new("cuFile", "its threads have ended");
            self.refused.push(CopyDone { token, result: Err(error) });
        }
    }

    /// Reports what has ended. Does not block.
    pub(crate) fn poll(&mut self, each: &mut dyn FnMut(CopyDone)) {
        self.refused.drain(..).for_each(&mut *each);
        self.done.try_iter().for_each(each);
    }

    fn file(&mut self, fd: &Rc<OwnedFd>) -> Result<Arc<Registered>> {
        if let Some((known, file)) = self.files.get(&Rc::as_ptr(fd))
            && known.strong_count() > 0
        {
            return Ok(file.clone());
        }
        self.files.retain(|_, (known, _)| known.strong_count() > 0);
        if self.files.len() >= FILES_MAX {
            self.files.clear();
        }
        let own = fd.try_clone().map_err(|error| GdsError::Io {
            op: "dup",
            path: "an object's file".into(),
            reason: error.to_string(),
        })?;
        let handle = self.io.open(own.as_fd())?;
        let file = Arc::new(Registered { io: self.io.clone(), handle, _fd: own });
        self.files.insert(Rc::as_ptr(fd), (Rc::downgrade(fd), file.clone()));
        Ok(file)
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

/// Answers a job, also when its thread panics: no transfer may be waited for in vain.
struct Answer<'a> {
    done: &'a Sender<CopyDone>,
    token: usize,
    result: Option<Result<(), DeviceError>>,
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        let result = self.result.take().unwrap_or_else(|| Err(DeviceError::new("cuFile", "its thread panicked")));
        let _ = self.done.send(CopyDone { token: self.token, result });
    }
}

fn work(jobs: &Receiver<Job>, done: &Sender<CopyDone>, gpu: Option<&Gpu>) {
    let bound = gpu.map_or(Ok(()), Gpu::bind);
    for job in jobs {
        let mut answer = Answer { done, token: job.token, result: None };
        let result = bound.clone().and_then(|()| transfer(&job));
        // The file is let go of before the answer: who has it may close the queue.
        drop(job);
        answer.result = Some(result.map_err(DeviceError::from));
    }
}

/// All of a job; cuFile may move less than it was asked for.
fn transfer(job: &Job) -> Result<()> {
    if let Some(fence) = job.after.as_ref().and_then(|fence| fence.downcast_ref::<CudaFence>()) {
        fence.wait()?;
    }
    let Job { file, direction, offset, range, .. } = job;
    let mut moved = 0;
    while moved < range.len {
        let rest = DeviceRange { address: range.address + moved as u64, len: range.len - moved };
        let now = file.io.transfer(*direction, file.handle, offset + moved as u64, rest)?;
        if now == 0 {
            let (call, meaning) = match direction {
                Direction::ToDevice => ("cuFileRead", format!("the file ends {} bytes too early", rest.len)),
                Direction::FromDevice => ("cuFileWrite", "nothing was written".to_owned()),
            };
            return Err(GdsError::CuFile { call, code: 0, meaning });
        }
        moved += now.min(rest.len);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::{BorrowedFd, RawFd};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use parking_lot::Mutex;

    use super::*;

    /// cuFile of software: counts what is open, moves at most `most` bytes a call, and fails at an address.
    #[derive(Default)]
    struct Fake {
        open: Mutex<Vec<RawFd>>,
        opened: AtomicUsize,
        most: usize,
        ends_at: Option<u64>,
        moved: Mutex<Vec<(Direction, u64, DeviceRange)>>,
    }

    impl FileIo for Fake {
        fn open(&self, fd: BorrowedFd<'_>) -> Result<FileHandle> {
            use std::os::fd::AsRawFd;
            self.open.lock().push(fd.as_raw_fd());
            Ok(FileHandle(self.opened.fetch_add(1, Ordering::Relaxed)))
        }

        fn close(&self, _: FileHandle) {
            self.open.lock().pop();
        }

        fn transfer(&self, direction: Direction, _: FileHandle, offset: u64, range: DeviceRange) -> Result<usize> {
            assert!(range.address != 13, "the test wants a panic here");
            if range.address == 5 {
                return Err(GdsError::CuFile { call: "cuFileRead", code: -5, meaning: "as told".into() });
            }
            let len = range.len.min(self.most);
            let len = self.ends_at.map_or(len, |end| len.min(end.saturating_sub(offset) as usize));
            self.moved.lock().push((direction, offset, DeviceRange { len, ..range }));
            Ok(len)
        }
    }

    fn file() -> Rc<OwnedFd> {
        Rc::new(File::open("/dev/null").unwrap().into())
    }

    fn op(fd: &Rc<OwnedFd>, address: u64, token: usize) -> DirectOp {
        let range = DeviceRange { address, len: 10_000 };
        DirectOp { direction: Direction::ToDevice, fd: fd.clone(), offset: 4096, range, after: None, token }
    }

    fn wait(queue: &mut DirectQueue, count: usize) -> Vec<CopyDone> {
        let mut done = Vec::new();
        while done.len() < count {
            queue.poll(&mut |ended| done.push(ended));
            std::thread::yield_now();
        }
        done.sort_by_key(|done| done.token);
        done
    }

    #[test]
    fn short_transfers_go_on_and_failures_are_told() {
        let fake = Arc::new(Fake { most: 4096, ..Fake::default() });
        let mut queue = DirectQueue::new(fake.clone(), None).unwrap();
        let fd = file();
        queue.submit(op(&fd, 1 << 20, 0));
        assert_eq!(wait(&mut queue, 1)[0].result, Ok(()));
        let parts: Vec<_> =
            fake.moved.lock().iter().map(|(_, offset, range)| (*offset, range.address, range.len)).collect();
        let at = 1 << 20;
        assert_eq!(parts, [(4096, at, 4096), (8192, at + 4096, 4096), (12_288, at + 8192, 1808)]);
        queue.submit(op(&fd, 5, 1));
        queue.submit(op(&fd, 13, 2));
        let done = wait(&mut queue, 2);
        assert!(done[0].result.as_ref().unwrap_err().reason.contains("as told"), "{done:?}");
        assert!(done[1].result.as_ref().unwrap_err().reason.contains("panicked"), "{done:?}");
        // Other threads go on.
        queue.submit(op(&fd, 1 << 20, 3));
        assert_eq!(wait(&mut queue, 1)[0].result, Ok(()));
        drop(queue);
        assert!(fake.open.lock().is_empty());
    }

    #[test]
    fn a_file_that_is_too_short_is_an_error() {
        let fake = Arc::new(Fake { most: 1 << 20, ends_at: Some(9000), ..Fake::default() });
        let mut queue = DirectQueue::new(fake, None).unwrap();
        queue.submit(op(&file(), 0, 7));
        let done = wait(&mut queue, 1);
        assert!(done[0].result.as_ref().unwrap_err().reason.contains("5096 bytes too early"), "{done:?}");
    }

    #[test]
    fn files_are_registered_once_and_forgotten_with_the_engines_descriptor() {
        let fake = Arc::new(Fake { most: 1 << 20, ..Fake::default() });
        let mut queue = DirectQueue::new(fake.clone(), None).unwrap();
        let (first, second) = (file(), file());
        for token in 0..4 {
            queue.submit(op(&first, 0, token));
        }
        wait(&mut queue, 4);
        assert_eq!((fake.opened.load(Ordering::Relaxed), fake.open.lock().len()), (1, 1));
        drop(first);
        queue.submit(op(&second, 0, 4));
        wait(&mut queue, 1);
        assert_eq!((fake.opened.load(Ordering::Relaxed), fake.open.lock().len()), (2, 1), "the first was forgotten");
        drop(queue);
        assert_eq!(fake.open.lock().len(), 0);
    }
}
