use std::fs::File;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use parking_lot::Mutex;
use saltern::device::{DeviceRange, Direction};

use super::super::batch::{Ended, Entry};
use super::super::library::DeviceSpan;
use super::*;

/// What takes longer has failed.
const HANG: Duration = Duration::from_secs(20);

/// cuFile of software: counts what is open, moves at most `most` bytes a call, and fails at an address.
#[derive(Default)]
struct Fake {
    open: Mutex<Vec<RawFd>>,
    opened: AtomicUsize,
    /// Files with an odd number are not direct.
    refuses_odd_files: bool,
    most: usize,
    ends_at: Option<u64>,
    moved: Mutex<Vec<(Direction, u64, DeviceSpan)>>,
    /// Calls that a thread is in.
    calls: AtomicUsize,
    slabs: Mutex<Vec<u64>>,
    /// Batches, and how they fail.
    batches: Option<Arc<Batches>>,
    has_no_batches: bool,
}

#[derive(Default)]
struct Batches {
    /// Sizes of those that were submitted.
    sizes: Mutex<Vec<usize>>,
    refuses: AtomicBool,
    refused: AtomicUsize,
    /// What one look says: an error, or at most so many, the last first.
    silent_looks: AtomicUsize,
    /// Nothing goes before the test says so.
    held: AtomicBool,
}

struct FakeBatch {
    batches: Arc<Batches>,
    most: usize,
    under_way: Vec<Entry>,
}

impl Batch for FakeBatch {
    fn submit(&mut self, entries: &[Entry]) -> Result<()> {
        assert!(self.under_way.is_empty() && entries.len() <= BATCH_MAX);
        if self.batches.refuses.load(Ordering::Relaxed) {
            self.batches.refused.fetch_add(1, Ordering::Relaxed);
            self.under_way = entries.to_vec();
            return Err(GdsError::NoCuFile("the test takes no batch".into()));
        }
        self.batches.sizes.lock().push(entries.len());
        self.under_way = entries.to_vec();
        Ok(())
    }

    fn wait(&mut self, ended: &mut Vec<Ended>) -> Result<()> {
        while self.batches.held.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        // Two threads look at their batches at once.
        let is_silent =
            self.batches.silent_looks.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if is_silent.is_ok() {
            return Err(GdsError::NoCuFile("the test says nothing".into()));
        }
        let never_began = self.batches.refuses.load(Ordering::Relaxed);
        for entry in self.under_way.split_off(self.under_way.len().saturating_sub(3)) {
            let result = match entry.memory.base + entry.memory.offset {
                _ if never_began => Err(GdsError::NoCuFile("it was not enqueued".into())),
                5 => Err(GdsError::CuFile { call: "cuFileBatchIO", code: -5, meaning: "as told".into() }),
                _ => Ok(entry.memory.len.min(self.most)),
            };
            ended.push(Ended { token: entry.token, result, never_began });
        }
        Ok(())
    }

    fn cancel(&mut self) -> Result<()> {
        Err(GdsError::NoCuFile("no test cancels this one".into()))
    }
}

impl FileIo for Fake {
    fn open(&self, fd: BorrowedFd<'_>) -> Result<FileHandle> {
        use std::os::fd::AsRawFd;
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        if self.refuses_odd_files && number % 2 == 1 {
            return Err(GdsError::CuFile { call: "cuFileHandleRegister", code: 5008, meaning: "as told".into() });
        }
        self.open.lock().push(fd.as_raw_fd());
        Ok(FileHandle(number))
    }

    fn close(&self, _: FileHandle) {
        self.open.lock().pop();
    }

    fn transfer(&self, direction: Direction, _: FileHandle, offset: u64, memory: DeviceSpan) -> Result<usize> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        while self.batches.as_ref().is_some_and(|batches| batches.held.load(Ordering::Relaxed)) {
            std::thread::yield_now();
        }
        self.calls.fetch_sub(1, Ordering::Relaxed);
        let address = memory.base + memory.offset;
        assert!(address != 13, "the test wants a panic here");
        if address == 5 {
            return Err(GdsError::CuFile { call: "cuFileRead", code: -5, meaning: "as told".into() });
        }
        let len = memory.len.min(self.most);
        let len = self.ends_at.map_or(len, |end| len.min(end.saturating_sub(offset) as usize));
        self.moved.lock().push((direction, offset, DeviceSpan { len, ..memory }));
        Ok(len)
    }

    fn register(&self, range: DeviceRange) -> Result<()> {
        self.slabs.lock().push(range.address);
        Ok(())
    }

    fn deregister(&self, address: u64) {
        let mut slabs = self.slabs.lock();
        let index = slabs.iter().position(|slab| *slab == address).expect("it was registered");
        slabs.remove(index);
    }

    fn batch(&self, _: usize) -> Result<Box<dyn Batch>> {
        let batches = self.batches.clone().filter(|_| !self.has_no_batches);
        let batches = batches.ok_or_else(|| GdsError::NoCuFile("the test has no batches".into()))?;
        Ok(Box::new(FakeBatch { batches, most: self.most, under_way: Vec::new() }))
    }
}

fn file() -> Rc<OwnedFd> {
    Rc::new(File::open("/dev/null").unwrap().into())
}

fn op(fd: &Rc<OwnedFd>, address: u64, token: usize) -> DirectOp {
    let range = DeviceRange { address, len: 10_000 };
    DirectOp { direction: Direction::ToDevice, fd: fd.clone(), offset: 4096, range, token }
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
    let mut queue = DirectQueue::new(fake.clone(), None, Arc::default(), None).unwrap();
    let fd = file();
    queue.submit(op(&fd, 1 << 20, 0));
    assert_eq!(wait(&mut queue, 1)[0].result, Ok(()));
    let parts: Vec<_> =
        fake.moved.lock().iter().map(|(_, offset, to)| (*offset, to.base + to.offset, to.len)).collect();
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
fn threads_that_panicked_are_replaced_however_many_they_are() {
    let fake = Arc::new(Fake { most: 1 << 20, ..Fake::default() });
    let mut queue = DirectQueue::new(fake, None, Arc::default(), None).unwrap();
    let fd = file();
    for round in 0..4 {
        for token in 0..CALL_LIMIT {
            queue.submit(op(&fd, 13, token));
        }
        let done = wait(&mut queue, CALL_LIMIT);
        assert!(done.iter().all(|done| done.result.is_err()), "round {round}: {done:?}");
        queue.submit(op(&fd, 1 << 20, 0));
        assert_eq!(wait(&mut queue, 1)[0].result, Ok(()), "round {round}");
    }
    // Handles of those that ended are not kept.
    let started = Instant::now();
    while queue.threads.len() != queue.worker.alive.load(Ordering::Relaxed) && started.elapsed() < HANG {
        queue.poll(&mut |done| panic!("{done:?}, and nothing is under way"));
    }
    assert!((1..=CALL_THREADS).contains(&queue.threads.len()), "{} threads", queue.threads.len());
    assert_eq!(queue.threads.len(), queue.worker.alive.load(Ordering::Relaxed));
}

#[test]
fn a_file_that_is_too_short_is_an_error() {
    let fake = Arc::new(Fake { most: 1 << 20, ends_at: Some(9000), ..Fake::default() });
    let mut queue = DirectQueue::new(fake, None, Arc::default(), None).unwrap();
    queue.submit(op(&file(), 0, 7));
    let done = wait(&mut queue, 1);
    assert!(done[0].result.as_ref().unwrap_err().reason.contains("5096 bytes too early"), "{done:?}");
}

#[test]
fn files_are_registered_once_and_forgotten_with_the_engines_descriptor() {
    let fake = Arc::new(Fake { most: 1 << 20, ..Fake::default() });
    let mut queue = DirectQueue::new(fake.clone(), None, Arc::default(), None).unwrap();
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

#[test]
fn no_more_files_are_registered_than_the_bound_allows() {
    const MOST: usize = 4;
    let fake = Arc::new(Fake { most: 1 << 20, ..Fake::default() });
    let mut queue = DirectQueue::new(fake.clone(), None, Arc::default(), None).unwrap();
    queue.files_max = MOST;
    // All stay open in the engine, and each is used twice in a row.
    let files: Vec<_> = (0..3 * MOST).map(|_| file()).collect();
    for (token, fd) in files.iter().enumerate() {
        for _ in 0..2 {
            queue.submit(op(fd, 1 << 20, token));
            assert_eq!(wait(&mut queue, 1)[0].result, Ok(()));
        }
        assert_eq!(fake.open.lock().len(), token % MOST + 1, "after file {token}");
    }
    assert_eq!(fake.opened.load(Ordering::Relaxed), files.len(), "none was registered twice");
    // One that was forgotten is registered again.
    queue.submit(op(&files[0], 1 << 20, 0));
    assert_eq!(wait(&mut queue, 1)[0].result, Ok(()));
    assert_eq!(fake.opened.load(Ordering::Relaxed), files.len() + 1);
    drop(queue);
    assert!(fake.open.lock().is_empty());
}

/// Queues transfers to these addresses while both threads are kept busy, so that they come together in batches.
fn together(batches: &Batches, queue: &mut DirectQueue, fd: &Rc<OwnedFd>, addresses: &[u64]) -> Vec<CopyDone> {
    batches.held.store(true, Ordering::Relaxed);
    for (token, address) in addresses.iter().enumerate() {
        queue.submit(op(fd, *address, token));
    }
    batches.held.store(false, Ordering::Relaxed);
    wait(queue, addresses.len())
}

#[test]
fn what_waits_goes_in_batches_and_each_is_answered_for_itself() {
    let batches = Arc::new(Batches::default());
    batches.silent_looks.store(3, Ordering::Relaxed);
    let fake = Arc::new(Fake { most: 4096, batches: Some(batches.clone()), ..Fake::default() });
    let mut queue = DirectQueue::new(fake.clone(), None, Arc::default(), None).unwrap();
    assert_eq!(queue.limit(), BATCH_LIMIT);
    let addresses: Vec<u64> = (0..BATCH_LIMIT as u64).map(|at| if at % 10 == 9 { 5 } else { at << 20 }).collect();
    let done = together(&batches, &mut queue, &file(), &addresses);
    for (done, address) in done.iter().zip(&addresses) {
        assert_eq!(done.result.is_err(), *address == 5, "{done:?}");
    }
    let sizes = batches.sizes.lock().clone();
    assert!(sizes.iter().all(|size| (2..=BATCH_MAX).contains(size)), "{sizes:?}");
    assert!(sizes.iter().any(|size| *size > 2), "{sizes:?}");
    // What a batch has moved in part is moved on from there, by calls.
    let moved = fake.moved.lock();
    let rest =
        |at: u64| moved.iter().filter(|(_, _, to)| to.base >> 20 == at >> 20).map(|(_, _, to)| to.len).sum::<usize>();
    let whole = addresses.iter().filter(|address| **address != 5).map(|address| rest(*address));
    assert!(whole.into_iter().all(|len| len == 10_000 - 4096 || len == 10_000), "{moved:?}");
}

#[test]
fn a_batch_that_is_refused_goes_call_by_call_from_then_on() {
    let batches = Arc::new(Batches::default());
    batches.refuses.store(true, Ordering::Relaxed);
    let fake = Arc::new(Fake { most: 1 << 20, batches: Some(batches.clone()), ..Fake::default() });
    let mut queue = DirectQueue::new(fake.clone(), None, Arc::default(), None).unwrap();
    let addresses: Vec<u64> = (1..=BATCH_LIMIT as u64).map(|at| at << 20).collect();
    let done = together(&batches, &mut queue, &file(), &addresses);
    assert!(done.iter().all(|done| done.result.is_ok()), "{done:?}");
    assert_eq!((fake.moved.lock().len(), batches.sizes.lock().len()), (BATCH_LIMIT, 0));
}

#[test]
fn threads_are_started_for_calls_when_there_are_transfers_for_them() {
    for has_batches in [false, true] {
        // Not used where there are none, but for being held.
        let batches = Arc::new(Batches::default());
        batches.refuses.store(true, Ordering::Relaxed);
        let fake = Arc::new(Fake {
            most: 1 << 20,
            batches: Some(batches.clone()),
            has_no_batches: !has_batches,
            ..Fake::default()
        });
        let mut queue = DirectQueue::new(fake.clone(), None, Arc::default(), None).unwrap();
        let first = if has_batches { BATCH_THREADS } else { 1 };
        let fd = file();
        // One after the other needs no more than there are.
        for token in 0..4 {
            queue.submit(op(&fd, 1 << 20, token));
            wait(&mut queue, 1);
        }
        assert_eq!(queue.threads.len(), first, "batches: {has_batches}");
        let started = Instant::now();
        // Until both threads have found out that batches are refused.
        while has_batches && batches.refused.load(Ordering::Relaxed) < BATCH_THREADS {
            together(&batches, &mut queue, &fd, &[1 << 20; BATCH_LIMIT]);
            assert!(started.elapsed() < HANG, "no batch was made");
        }
        batches.held.store(true, Ordering::Relaxed);
        for token in 0..CALL_LIMIT {
            queue.submit(op(&fd, 1 << 20, token));
        }
        while fake.calls.load(Ordering::Relaxed) < CALL_THREADS && started.elapsed() < HANG {
            queue.poll(&mut |done| panic!("{done:?} while all are held"));
            std::thread::yield_now();
        }
        let calls = fake.calls.load(Ordering::Relaxed);
        // Before anything can fail: the queue waits for its threads.
        batches.held.store(false, Ordering::Relaxed);
        assert_eq!(calls, CALL_THREADS, "calls at a time");
        let done = wait(&mut queue, CALL_LIMIT);
        assert!(done.iter().all(|done| done.result.is_ok()), "{done:?}");
        assert_eq!(queue.threads.len(), CALL_THREADS);
    }
}

#[test]
fn a_file_that_is_not_direct_is_asked_about_once() {
    let fake = Arc::new(Fake { most: 1 << 20, refuses_odd_files: true, ..Fake::default() });
    let mut queue = DirectQueue::new(fake.clone(), None, Arc::default(), None).unwrap();
    let (good, bad) = (file(), file());
    for _ in 0..3 {
        queue.admit(&good).unwrap();
        assert!(queue.admit(&bad).unwrap_err().to_string().contains("as told"));
    }
    assert_eq!((fake.opened.load(Ordering::Relaxed), fake.open.lock().len()), (2, 1));
}

#[test]
fn memory_in_a_slab_is_named_by_it_and_the_slab_outlives_its_transfers() {
    let fake = Arc::new(Fake { most: 1 << 20, ..Fake::default() });
    let io: Arc<dyn FileIo> = fake.clone();
    let slabs = Arc::new(Slabs::default());
    let owner = Arc::new(());
    let slab = slabs.add(DeviceRange { address: 1 << 20, len: 1 << 20 }, Some(owner.clone()));
    let mut queue = DirectQueue::new(fake.clone(), None, slabs.clone(), None).unwrap();
    let fd = file();
    let run = |queue: &mut DirectQueue, address| {
        queue.submit(op(&fd, address, 0));
        assert_eq!(wait(queue, 1)[0].result, Ok(()));
        let (_, _, to) = fake.moved.lock().pop().unwrap();
        (to.base, to.offset)
    };
    let inside = (1 << 20) + 4096;
    assert_eq!(run(&mut queue, inside), (inside, 0), "not registered yet");
    slabs.register_all(&io);
    slabs.register_all(&io);
    assert_eq!((fake.slabs.lock().clone(), slab.is_registered()), (vec![1 << 20], true), "once");
    assert_eq!(run(&mut queue, inside), (1 << 20, 4096));
    // What only begins in it is not in it.
    assert_eq!(run(&mut queue, (2 << 20) - 4096), ((2 << 20) - 4096, 0));
    let kept = slabs.find(DeviceRange { address: 1 << 20, len: 10 }).1;
    drop(slab);
    assert_eq!((fake.slabs.lock().len(), Arc::strong_count(&owner)), (1, 2), "a transfer still names it");
    drop(kept);
    assert_eq!((fake.slabs.lock().len(), Arc::strong_count(&owner)), (0, 1));
    assert_eq!(run(&mut queue, inside), (inside, 0));
}
