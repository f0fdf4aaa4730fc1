//! The straightforward thing with `tokio-uring`: one task for each object in flight, `write_all_at` and `read_exact_at` with
//! owned buffers, rename and unlink by the standard library.

#![expect(unsafe_code, reason = "tokio-uring takes owned buffers by an unsafe trait")]

use std::cell::RefCell;
use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio_uring::buf::{IoBuf, IoBufMut};
use tokio_uring::fs::{File, OpenOptions};

use super::{Baseline, Files};
use crate::arena::{Arena, Slot};
use crate::error::{Error, Result};
use crate::meter::{Latencies, Meter};
use crate::report::EngineName;
use crate::tally::Problems;
use crate::transfer::{Gathered, Step, Timed};

/// Entries of the ring: more than are ever in flight.
const RING_ENTRIES: u32 = 1024;

pub(super) struct TokioUring {
    files: Files,
    depth: usize,
}

impl TokioUring {
    pub(super) fn new(files: Files, depth: usize) -> Self {
        Self { files, depth }
    }
}

/// A slot, as the crate takes it.
struct Owned(Slot);

// SAFETY: the bytes are in the arena's memory, which does not move and which the slot keeps mapped; nobody else has them
// while this value lives.
unsafe impl IoBuf for Owned {
    fn stable_ptr(&self) -> *const u8 {
        self.0.as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.0.len()
    }

    fn bytes_total(&self) -> usize {
        self.0.len()
    }
}

// SAFETY: as above; the pointer comes from a unique borrow.
unsafe impl IoBufMut for Owned {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }

    unsafe fn set_init(&mut self, _pos: usize) {}
}

/// What the tasks share.
struct Work {
    files: Files,
    queue: Vec<(usize, usize, Step, Slot)>,
    done: Vec<(usize, Slot, io::Result<()>)>,
    loads: Latencies,
    stores: Latencies,
}

async fn task(work: Rc<RefCell<Work>>) {
    let files = work.borrow().files.clone();
    loop {
        let Some((number, object, step, slot)) = work.borrow_mut().queue.pop() else { return };
        let started = Instant::now();
        let (result, slot) = match step {
            Step::Load => load(&files, object, slot).await,
            Step::Store | Step::Displace { .. } => store(&files, object, step, slot).await,
        };
        let mut work = work.borrow_mut();
        let latencies = if step == Step::Load { &mut work.loads } else { &mut work.stores };
        latencies.record(started.elapsed());
        work.done.push((number, slot, result));
    }
}

async fn load(files: &Files, object: usize, slot: Slot) -> (io::Result<()>, Slot) {
    let opened = OpenOptions::new().read(true).custom_flags(files.flags()).open(files.path(object)).await;
    let file = match opened {
        Ok(file) => file,
        Err(error) => return (Err(error), slot),
    };
    let (result, Owned(slot)) = file.read_exact_at(Owned(slot), 0).await;
    (close(file, result).await, slot)
}

async fn store(files: &Files, object: usize, step: Step, slot: Slot) -> (io::Result<()>, Slot) {
    let temporary = files.temporary(object);
    let created = match files.displace(step) {
        Ok(()) => {
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o600).custom_flags(files.flags());
            options.open(&temporary).await
        }
        Err(error) => Err(error),
    };
    let file = match created {
        Ok(file) => file,
        Err(error) => return (Err(error), slot),
    };
    let (written, Owned(slot)) = file.write_all_at(Owned(slot), 0).await;
    let renamed = written.and_then(|()| fs::rename(temporary, files.path(object)));
    (close(file, renamed).await, slot)
}

async fn close(file: File, result: io::Result<()>) -> io::Result<()> {
    result.and(file.close().await)
}

impl Baseline for TokioUring {
    fn engine(&self) -> EngineName {
        EngineName::TokioUring
    }

    fn run(
        &self,
        arena: &mut Arena,
        order: &[usize],
        steps: &[Step],
        problems: &mut Problems,
        cancel: &AtomicBool,
    ) -> Result<Timed> {
        let lend = |slot| Some((slot, order[slot], steps[slot], arena.lend_slot(slot)?));
        // Taken from the back.
        let queue: Vec<_> = (0..order.len()).rev().filter_map(lend).collect();
        let (loads, stores) = (Latencies::new(), Latencies::new());
        let work = Work { files: self.files.clone(), queue, done: Vec::with_capacity(order.len()), loads, stores };
        let work = Rc::new(RefCell::new(work));
        let spent = tokio_uring::builder().entries(RING_ENTRIES).start(async {
            let meter = Meter::process();
            let tasks: Vec<_> = (0..self.depth).map(|_| tokio_uring::spawn(task(work.clone()))).collect();
            for task in tasks {
                task.await.expect("it does not panic");
            }
            meter.stop()
        });
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let mut work = work.borrow_mut();
        let mut gathered = Gathered::new(order.len());
        gathered.loads.add(&work.loads);
        gathered.stores.add(&work.stores);
        for (number, slot, result) in work.done.drain(..) {
            arena.take_slot_back(number, slot);
            gathered.enter(arena, order, number, result, problems);
        }
        Ok(gathered.finish(spent))
    }
}
