//! Streams and events. All live in a GPU's primary context, and hold it.

use std::sync::Arc;

use super::device::Gpu;
use super::driver::{EVENT_DISABLE_TIMING, Handle, NOT_READY, STREAM_NON_BLOCKING};
use crate::error::Result;

/// A queue of work, not ordered with the default stream.
pub(super) struct Stream {
    pub(super) gpu: Arc<Gpu>,
    pub(super) raw: Handle,
}

impl Stream {
    pub(super) fn new(gpu: Arc<Gpu>) -> Result<Self> {
        let current = gpu.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes one handle.
        let code = unsafe { (gpu.driver.stream_create)(&mut raw, STREAM_NON_BLOCKING) };
        gpu.driver.check("cuStreamCreate", code)?;
        drop(current);
        Ok(Self { gpu, raw })
    }

    /// Waits until everything in it is done.
    pub(super) fn synchronize(&self) -> Result<()> {
        let _current = self.gpu.enter()?;
        // SAFETY: the stream is alive.
        let code = unsafe { (self.gpu.driver.stream_synchronize)(self.raw) };
        self.gpu.driver.check("cuStreamSynchronize", code)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Ok(_current) = self.gpu.enter() {
            // SAFETY: created in `new`, and dropped once.
            unsafe { (self.gpu.driver.stream_destroy)(self.raw) };
        }
    }
}

/// A point in a stream, without a time stamp: those that have one make streams wait.
pub(super) struct Event {
    gpu: Arc<Gpu>,
    raw: Handle,
}

impl Event {
    pub(super) fn new(gpu: Arc<Gpu>) -> Result<Self> {
        let current = gpu.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes one handle.
        let code = unsafe { (gpu.driver.event_create)(&mut raw, EVENT_DISABLE_TIMING) };
        gpu.driver.check("cuEventCreate", code)?;
        drop(current);
        Ok(Self { gpu, raw })
    }

    /// Sets it at the end of a stream.
    pub(super) fn record(&self, stream: Handle) -> Result<()> {
        // SAFETY: the event is alive, and so is the stream: the caller's or this crate's.
        let code = unsafe { (self.gpu.driver.event_record)(self.raw, stream) };
        self.gpu.driver.check("cuEventRecord", code)
    }

    /// Whether the stream has passed it.
    pub(super) fn is_done(&self) -> Result<bool> {
        // SAFETY: the event is alive.
        match unsafe { (self.gpu.driver.event_query)(self.raw) } {
            NOT_READY => Ok(false),
            code => self.gpu.driver.check("cuEventQuery", code).map(|()| true),
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_current) = self.gpu.enter() {
            // SAFETY: created in `new`, and dropped once; the driver defers it while the event is waited for.
            unsafe { (self.gpu.driver.event_destroy)(self.raw) };
        }
    }
}

/// What a caller's stream has to have done before.
pub(crate) struct CudaFence {
    event: Event,
}

// SAFETY: events may be used from any thread that has the context current, which every use makes sure of.
unsafe impl Send for CudaFence {}
// SAFETY: as above; the driver's functions are thread-safe.
unsafe impl Sync for CudaFence {}

impl CudaFence {
    /// # Safety
    /// `stream` is a stream of this GPU's primary context.
    pub(super) unsafe fn record(gpu: Arc<Gpu>, stream: Handle) -> Result<Self> {
        let event = Event::new(gpu)?;
        event.record(stream)?;
        Ok(Self { event })
    }

    /// Whether it has happened. The context has to be current.
    pub(super) fn is_done(&self) -> Result<bool> {
        self.event.is_done()
    }
}
