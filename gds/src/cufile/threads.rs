//! The threads behind a shard's direct transfers: cuFile's calls block. Where there are batches, a thread takes what waits for it, up to
//! [`BATCH_MAX`] at once, and answers each when it has ended; else it makes one call after the other.

use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender};
use saltern::device::{CopyDone, DeviceError, Direction};

use super::batch::{BATCH_MAX, Batch, Ended, Entry};
use super::library::DeviceSpan;
use super::queue::Registered;
use super::slab::Slab;
use crate::cuda::Gpu;
use crate::error::{GdsError, Result};

/// How long a thread rests when cuFile does not say how its batch is.
const REST: Duration = Duration::from_millis(10);

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
}

impl<'a> Held<'a> {
    fn new(done: &'a Sender<CopyDone>, job: Job) -> Self {
        Self { done, token: job.token, job: Some(job), result: None }
    }

    fn job(&self) -> &Job {
        self.job.as_ref().expect("until it is answered")
    }

    fn answer(mut self, result: Result<()>) {
        self.result = Some(result.map_err(DeviceError::from));
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // The file is let go of before the answer: who has it may close the queue.
        self.job = None;
        let result = self.result.take().unwrap_or_else(|| Err(DeviceError::new("cuFile", "its thread panicked")));
        let _ = self.done.send(CopyDone { token: self.token, result });
    }
}

/// A thread's life: until nobody sends any more.
pub(super) fn work(
    jobs: &Receiver<Job>,
    done: &Sender<CopyDone>,
    gpu: Option<&Gpu>,
    mut batch: Option<Box<dyn Batch>>,
) {
    let bound = gpu.map_or(Ok(()), Gpu::bind);
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
        let together = batch.as_mut().filter(|_| held.len() > 1).map(|batch| move_together(&mut **batch, &mut held));
        if let Some(Err(error)) = together {
            tracing::warn!(%error, "cuFile takes no batches: its calls are made one by one");
            batch = None;
        }
        for held in held.into_iter().flatten() {
            let result = transfer(held.job(), 0);
            held.answer(result);
        }
    }
}

/// Moves jobs in one batch; those that stay in `held` have to be moved one by one.
///
/// # Errors
/// The batch was not taken, and is not to be used any more.
fn move_together(batch: &mut dyn Batch, held: &mut [Option<Held<'_>>]) -> Result<()> {
    let entries = held.iter().enumerate().filter_map(|(token, held)| {
        let Job { file, direction, offset, memory, .. } = held.as_ref()?.job();
        Some(Entry { direction: *direction, file: file.handle, offset: *offset, memory: *memory, token })
    });
    let entries: Vec<_> = entries.collect();
    batch.submit(&entries)?;
    let (mut left, mut ended, mut is_told) = (entries.len(), Vec::new(), false);
    let mut short = Vec::new();
    while left > 0 {
        if let Err(error) = batch.wait(&mut ended) {
            // Nothing is known of what is under way, so its memory has to stay.
            if !std::mem::replace(&mut is_told, true) {
                tracing::error!(%error, "cuFile does not say how a batch is");
            }
            std::thread::sleep(REST);
        }
        for Ended { token, result } in ended.drain(..) {
            left -= 1;
            let Some(held) = held[token].take() else { continue };
            match result {
                Ok(moved) if moved >= held.job().memory.len => held.answer(Ok(())),
                Ok(moved) => short.push((held, moved)),
                Err(error) => held.answer(Err(error)),
            }
        }
    }
    for (held, moved) in short {
        let result = transfer(held.job(), moved);
        held.answer(result);
    }
    Ok(())
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
