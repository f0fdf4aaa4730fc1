//! The threads behind a shard's direct transfers: cuFile's calls block. Where there are batches, a thread takes what waits for it, up to
//! [`BATCH_MAX`] at once, and answers each when it has ended; else it makes one call after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender};
use saltern::device::{CopyDone, DeviceError, Direction};

use super::batch::{BATCH_MAX, Batch, Ended, Entry};
use super::library::DeviceSpan;
use super::queue::Registered;
use super::slab::Slab;
use crate::cuda::Gpu;
use crate::error::{GdsError, Result};

/// How long a thread rests when cuFile does not say how its batch is, or when it says nothing of one that was cancelled.
const REST: Duration = Duration::from_millis(10);

/// How long a batch may go on without that one of its transfers ends; then it is cancelled. Longer than any drive takes for
/// [`BATCH_MAX`] chunks, errors that it corrects itself included.
pub(super) const BATCH_DEADLINE: Duration = Duration::from_secs(20);

/// How long a batch that was cancelled may go on without it, as a part of its deadline; then it is given up.
const CANCEL_SHARE: u32 = 4;

/// A transfer.
pub(super) struct Job {
    pub(super) file: Arc<Registered>,
    pub(super) direction: Direction,
    pub(super) offset: u64,
    pub(super) memory: DeviceSpan,
    /// What `memory` is in, registered until this has ended.
    pub(super) _slab: Option<Arc<Slab>>,
    pub(super) token: usize,
}

/// A job in a thread's hands. It is answered also when its thread panics: no transfer may be waited for in vain.
struct Held<'a> {
    done: &'a Sender<CopyDone>,
    job: Option<Job>,
    token: usize,
    result: Option<Result<(), DeviceError>>,
    is_lost: bool,
}

impl<'a> Held<'a> {
    fn new(done: &'a Sender<CopyDone>, job: Job) -> Self {
        Self { done, token: job.token, job: Some(job), result: None, is_lost: false }
    }

    fn job(&self) -> &Job {
        self.job.as_ref().expect("until it is answered")
    }

    fn answer(mut self, result: Result<()>) {
        self.result = Some(result.map_err(DeviceError::from));
    }

    /// cuFile may still be at work on it: the file stays open and registered, and so does the slab, for good.
    fn give_up(mut self, error: GdsError) {
        std::mem::forget(self.job.take());
        self.is_lost = true;
        self.answer(Err(error));
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // The file is let go of before the answer: who has it may close the queue.
        self.job = None;
        let result = self.result.take().unwrap_or_else(|| Err(DeviceError::new("cuFile", "its thread panicked")));
        let _ = self.done.send(CopyDone { token: self.token, result, is_lost: self.is_lost });
    }
}

/// What all threads of a shard have.
#[derive(Clone)]
pub(super) struct Worker {
    pub(super) jobs: Receiver<Job>,
    pub(super) done: Sender<CopyDone>,
    pub(super) gpu: Option<Arc<Gpu>>,
    /// Set when a thread makes its calls one by one, so that there should be more threads.
    pub(super) calls: Arc<AtomicBool>,
    /// Threads that have not ended.
    pub(super) alive: Arc<AtomicUsize>,
    pub(super) deadline: Duration,
}

/// Counts a thread for as long as it runs, also when it panics.
pub(super) struct Alive(Arc<AtomicUsize>);

impl Alive {
    pub(super) fn new(worker: &Worker) -> Self {
        worker.alive.fetch_add(1, Ordering::Relaxed);
        Self(worker.alive.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Worker {
    /// A thread's life: until nobody sends any more.
    pub(super) fn run(&self, mut batch: Option<Box<dyn Batch>>) {
        let Self { jobs, done, gpu, calls, deadline, .. } = self;
        let bound = gpu.as_deref().map_or(Ok(()), Gpu::bind);
        for job in jobs {
            let first = Held::new(done, job);
            if let Err(error) = &bound {
                first.answer(Err(error.clone()));
                continue;
            }
            let mut held = vec![Some(first)];
            if batch.is_some() {
                held.extend(jobs.try_iter().take(BATCH_MAX - 1).map(|job| Some(Held::new(done, job))));
            }
            let together = batch
                .as_mut()
                .filter(|_| held.len() > 1)
                .map(|batch| move_together(&mut **batch, &mut held, *deadline));
            match together {
                Some(End::Unfit(error)) => {
                    tracing::warn!(%error, "cuFile's batches are not used any more: its calls are made one by one");
                    batch = None;
                }
                Some(End::Lost(error)) => {
                    tracing::error!(%error, "a batch was given up: its memory and files are never used again");
                    // The library may still write to it.
                    std::mem::forget(batch.take());
                }
                Some(End::Whole) | None => {}
            }
            calls.fetch_or(batch.is_none(), Ordering::Relaxed);
            for held in held.into_iter().flatten() {
                let result = transfer(held.job(), 0);
                held.answer(result);
            }
        }
    }
}

/// How a batch has ended. After the last two it is not to be used any more.
enum End {
    /// Each has its answer.
    Whole,
    /// It was not taken, or had to be cancelled, and nothing of it is under way any more.
    Unfit(GdsError),
    /// Of some transfers nothing was said until the deadline, also after they were cancelled; each has its answer.
    Lost(GdsError),
}

/// Moves jobs in one batch, and answers each: what it was short of, and what was not enqueued, goes by calls.
fn move_together(batch: &mut dyn Batch, held: &mut [Option<Held<'_>>], deadline: Duration) -> End {
    let entries = held.iter().enumerate().filter_map(|(token, held)| {
        let Job { file, direction, offset, memory, .. } = held.as_ref()?.job();
        Some(Entry { direction: *direction, file: file.handle, offset: *offset, memory: *memory, token })
    });
    let entries: Vec<_> = entries.collect();
    let refused = batch.submit(&entries).err();
    let (mut left, mut ended, mut silent) = (entries.len(), Vec::new(), None);
    let (mut rest, mut end) = (Vec::new(), End::Whole);
    let (mut moved, mut patience, mut is_cancelled) = (Instant::now(), deadline, false);
    if let Some(error) = &refused {
        // What it has begun is not to go on. How the cancelling went does not matter: only a look tells what has ended.
        let cancelled = batch.cancel();
        tracing::error!(%error, ?cancelled, "cuFile has not taken a batch, and is asked what became of it");
        (is_cancelled, end) = (true, End::Unfit(error.clone()));
    }
    while left > 0 {
        if let Err(error) = batch.wait(&mut ended) {
            // Nothing is known of what is under way, so its memory has to stay.
            if silent.is_none() {
                tracing::error!(%error, "cuFile does not say how a batch is");
            }
            silent = Some(error);
            std::thread::sleep(REST);
        } else if ended.is_empty() && is_cancelled {
            std::thread::sleep(REST);
        }
        if !ended.is_empty() {
            moved = Instant::now();
        } else if moved.elapsed() > patience && is_cancelled {
            let error = stuck(deadline, refused, silent);
            held.iter_mut().filter_map(Option::take).for_each(|held| held.give_up(error.clone()));
            end = End::Lost(error);
            break;
        } else if moved.elapsed() > patience {
            let cancelled = batch.cancel();
            tracing::error!(?cancelled, left, "a batch of cuFile's does not end, and was cancelled");
            (is_cancelled, moved, patience) = (true, Instant::now(), deadline / CANCEL_SHARE);
            end = End::Unfit(stuck(deadline, None, silent.clone()));
        }
        for Ended { token, result, never_began } in ended.drain(..) {
            left -= 1;
            let Some(held) = held[token].take() else { continue };
            match result {
                Ok(moved) if moved >= held.job().memory.len => held.answer(Ok(())),
                Ok(moved) => rest.push((held, moved)),
                Err(_) if never_began => rest.push((held, 0)),
                Err(error) => held.answer(Err(error)),
            }
        }
    }
    for (held, moved) in rest {
        let result = transfer(held.job(), moved);
        held.answer(result);
    }
    end
}

/// Why a batch was given up, or cancelled.
fn stuck(deadline: Duration, refused: Option<GdsError>, silent: Option<GdsError>) -> GdsError {
    let last = silent.map_or_else(|| "nothing".to_owned(), |error| error.to_string());
    let seconds = deadline.as_secs_f64();
    let refused = refused.map_or_else(String::new, |error| format!(" after it was not taken ({error})"));
    let meaning = format!(
        "none of a batch's transfers ended for {seconds} s{refused}, and it was cancelled; what it said last: {last}. Look at `dmesg`"
    );
    GdsError::CuFile { call: "cuFileBatchIOGetStatus", code: 0, meaning }
}

/// The rest of a job, from `moved` on; cuFile may move less than it was asked for.
fn transfer(job: &Job, mut moved: usize) -> Result<()> {
    let Job { file, direction, offset, memory, .. } = job;
    while moved < memory.len {
        let rest = memory.rest(moved);
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
