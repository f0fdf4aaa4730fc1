//! Plain system calls on a pool of threads: create, pwrite, rename, close; open, pread, close; unlink and create.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::Instant;

use super::{Baseline, Files};
use crate::arena::{Arena, Slot};
use crate::error::{Error, Result};
use crate::meter::{Latencies, Meter};
use crate::report::EngineName;
use crate::tally::Problems;
use crate::transfer::{Gathered, Step, Timed};

/// More threads only wait for each other.
const THREADS_MAX: usize = 16;

pub(super) struct Threads {
    files: Files,
    threads: usize,
}

impl Threads {
    pub(super) fn new(files: Files, depth: usize) -> Self {
        Self { files, threads: depth.min(THREADS_MAX) }
    }

    fn step(&self, object: usize, step: Step, slot: &mut Slot) -> io::Result<()> {
        self.files.displace(step)?;
        let path = self.files.path(object);
        if step == Step::Load {
            return self.files.open(&path)?.read_exact_at(slot, 0);
        }
        let temporary = self.files.temporary(object);
        let file = self.files.create(&temporary)?;
        file.write_all_at(slot, 0)?;
        fs::rename(temporary, path)
    }
}

/// What one thread did: slots with their results, and latencies of loads and stores.
type Share = (Vec<(usize, Slot, io::Result<()>)>, Latencies, Latencies);

impl Baseline for Threads {
    fn engine(&self) -> EngineName {
        EngineName::PreadPwrite
    }

    fn run(
        &self,
        arena: &mut Arena,
        order: &[usize],
        steps: &[Step],
        problems: &mut Problems,
        cancel: &AtomicBool,
    ) -> Result<Timed> {
        let slots: Vec<_> = (0..order.len()).filter_map(|slot| Some((slot, arena.lend_slot(slot)?))).collect();
        let queue = Mutex::new(slots.into_iter());
        let next = || queue.lock().ok()?.next().filter(|_| !cancel.load(Ordering::Relaxed));
        let (ready, go) = (Barrier::new(self.threads + 1), Barrier::new(self.threads + 1));
        let work = || -> Share {
            let (mut done, mut loads, mut stores) = (Vec::new(), Latencies::new(), Latencies::new());
            ready.wait();
            go.wait();
            while let Some((number, mut slot)) = next() {
                let started = Instant::now();
                let result = self.step(order[number], steps[number], &mut slot);
                let latencies = if steps[number] == Step::Load { &mut loads } else { &mut stores };
                latencies.record(started.elapsed());
                done.push((number, slot, result));
            }
            (done, loads, stores)
        };
        let (spent, shares) = thread::scope(|scope| {
            let threads: Vec<_> = (0..self.threads).map(|_| scope.spawn(work)).collect();
            ready.wait();
            let meter = Meter::process();
            go.wait();
            let shares: Vec<Share> =
                threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect();
            (meter.stop(), shares)
        });
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let mut gathered = Gathered::new(order.len());
        for (done, loads, stores) in shares {
            gathered.loads.add(&loads);
            gathered.stores.add(&stores);
            for (number, slot, result) in done {
                arena.take_slot_back(number, slot);
                gathered.enter(arena, order, number, result, problems);
            }
        }
        Ok(gathered.finish(spent))
    }
}
