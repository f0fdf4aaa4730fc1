//! What listeners hear: every change of what the volume holds, in bytes.
//!
//! State changes enter the queue under the lock of the index partition that they happen in, so events of one key
//! are in order; one thread delivers them outside of any lock. Before anybody subscribes nothing is queued. A
//! new listener first hears of every object that there is, oldest use first; the snapshot and its place in the
//! queue are taken with all partitions locked, so that nothing is missed and nothing told twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, ThreadId};

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::index::Index;
use crate::key::ObjectKey;

/// Most events that wait for a slow listener. Past it they are dropped, and the listeners start over: `on_reset`, then
/// a replay of what is there.
pub const EVENT_QUEUE_MAX: usize = 1 << 20;

/// Most events in one call of a listener.
pub const EVENT_BATCH_MAX: usize = 4096;

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// Found on disk: from an earlier run, or written by another program.
    Recovered,
    /// Stored by this engine.
    Stored,
    /// Loaded, or stored again while present.
    Accessed,
    /// Deleted, evicted, or found to be gone.
    Deleted,
    /// A delete found no such object: whoever still holds the key may forget it. Changes no bytes.
    Absent,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// To which object.
    pub key: ObjectKey,
    /// Size of the object.
    pub bytes: u64,
}

impl Event {
    /// By how much the bytes in use changed.
    pub fn delta_bytes(&self) -> i64 {
        match self.kind {
            EventKind::Recovered | EventKind::Stored => self.bytes as i64,
            EventKind::Accessed | EventKind::Absent => 0,
            EventKind::Deleted => -(self.bytes as i64),
        }
    }
}

/// Somebody who wants to know. Called on one thread of the engine, outside of its locks; calls of one listener
/// never overlap. A listener may call the engine, but must not close it.
pub trait Listener: Send + Sync {
    /// Some changes, in order for each key.
    fn on_events(&self, events: &[Event]);

    /// The listener was too slow, and events were dropped: forget everything; a replay follows.
    fn on_reset(&self) {}
}

/// A place in the stream of events; see [`crate::Engine::event_mark`].
#[derive(Debug)]
pub struct EventMark {
    receiver: Receiver<()>,
    thread: Option<ThreadId>,
}

impl EventMark {
    /// Blocks until every listener has heard all that was queued before the mark. Returns at once when a listener calls it,
    /// which would wait for itself.
    pub fn wait(self) {
        if self.thread != Some(std::thread::current().id()) {
            // Nothing is ever sent: the other end is dropped at the mark, or with the queue.
            let _ = self.receiver.recv();
        }
    }
}

enum Message {
    Event(Event),
    Subscribe(Arc<dyn Listener>, Vec<Event>),
    /// Dropped when everything before it was delivered.
    Mark(Sender<()>),
    Close,
}

/// The queue and its thread.
pub(crate) struct Hub {
    sender: Sender<Message>,
    receiver: Receiver<Message>,
    /// Whether anybody listens; if not, events cost one load.
    active: AtomicBool,
    overflowed: AtomicBool,
    queued: AtomicUsize,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Subscribers that came before the recovery scan was complete.
    early: Mutex<Option<Vec<Arc<dyn Listener>>>>,
}

impl Hub {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = unbounded();
        Self {
            sender,
            receiver,
            active: AtomicBool::new(false),
            overflowed: AtomicBool::new(false),
            queued: AtomicUsize::new(0),
            thread: Mutex::new(None),
            early: Mutex::new(Some(Vec::new())),
        }
    }

    /// Whether anybody listens.
    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    /// Queues an event; called with the key's partition locked. The key is only built when somebody listens.
    pub(crate) fn push(&self, kind: EventKind, bytes: u64, key: impl FnOnce() -> ObjectKey) {
        if !self.is_active() || self.overflowed.load(Ordering::Relaxed) {
            return;
        }
        if self.queued.fetch_add(1, Ordering::Relaxed) >= EVENT_QUEUE_MAX {
            self.overflowed.store(true, Ordering::Relaxed);
            return;
        }
        let _ = self.sender.send(Message::Event(Event { kind, key: key(), bytes }));
    }

    /// Adds a listener; before the recovery is complete it is kept until then.
    pub(crate) fn subscribe(self: &Arc<Self>, index: &Arc<Index>, listener: Arc<dyn Listener>) -> Result<()> {
        self.start(index)?;
        let mut early = self.early.lock();
        match &mut *early {
            Some(waiting) => waiting.push(listener),
            None => self.join(index, listener),
        }
        Ok(())
    }

    /// The scan is complete: whoever waited gets the replay now.
    pub(crate) fn recovered(&self, index: &Index) {
        let mut early = self.early.lock();
        for listener in early.take().into_iter().flatten() {
            self.join(index, listener);
        }
    }

    fn join(&self, index: &Index, listener: Arc<dyn Listener>) {
        let all = index.lock_all();
        self.active.store(true, Ordering::Relaxed);
        let _ = self.sender.send(Message::Subscribe(listener, all.snapshot()));
    }

    fn start(self: &Arc<Self>, index: &Arc<Index>) -> Result<()> {
        let mut thread = self.thread.lock();
        if thread.is_none() {
            let (hub, index) = (self.clone(), index.clone());
            let spawned = std::thread::Builder::new().name("saltern-events".into()).spawn(move || hub.deliver(&index));
            *thread = Some(spawned.map_err(|error| Error::spawn("saltern-events", &error))?);
        }
        Ok(())
    }

    /// A mark behind everything that is queued now.
    pub(crate) fn mark(&self) -> EventMark {
        let thread = self.thread.lock().as_ref().map(|thread| thread.thread().id());
        let (sender, receiver) = bounded(0);
        if thread.is_some() {
            let _ = self.sender.send(Message::Mark(sender));
        }
        EventMark { receiver, thread }
    }

    fn deliver(&self, index: &Index) {
        let mut listeners: Vec<Arc<dyn Listener>> = Vec::new();
        let mut batch = Vec::with_capacity(EVENT_BATCH_MAX);
        loop {
            let message = match self.receiver.try_recv() {
                Ok(message) => Ok(message),
                Err(_) => {
                    self.flush(&listeners, &mut batch);
                    self.receiver.recv()
                }
            };
            match message {
                Ok(Message::Event(event)) => {
                    self.queued.fetch_sub(1, Ordering::Relaxed);
                    batch.push(event);
                    if batch.len() == EVENT_BATCH_MAX {
                        self.flush(&listeners, &mut batch);
                    }
                }
                Ok(Message::Subscribe(listener, mut present)) => {
                    self.flush(&listeners, &mut batch);
                    replay(&*listener, &mut present);
                    listeners.push(listener);
                }
                Ok(Message::Mark(mark)) => {
                    self.flush(&listeners, &mut batch);
                    drop(mark);
                }
                Ok(Message::Close) | Err(_) => {
                    self.flush(&listeners, &mut batch);
                    return;
                }
            }
            if self.overflowed.load(Ordering::Relaxed) {
                batch.clear();
                self.start_over(index, &mut listeners);
            }
        }
    }

    fn flush(&self, listeners: &[Arc<dyn Listener>], batch: &mut Vec<Event>) {
        if !batch.is_empty() {
            for listener in listeners {
                guard(|| listener.on_events(batch));
            }
            batch.clear();
        }
    }

    fn start_over(&self, index: &Index, listeners: &mut Vec<Arc<dyn Listener>>) {
        tracing::warn!(limit = EVENT_QUEUE_MAX, "listeners are too slow: events were dropped, replaying");
        let all = index.lock_all();
        let (mut closed, mut marks) = (false, Vec::new());
        while let Ok(message) = self.receiver.try_recv() {
            match message {
                Message::Event(_) => {}
                Message::Subscribe(listener, _) => listeners.push(listener),
                Message::Mark(mark) => marks.push(mark),
                Message::Close => closed = true,
            }
        }
        self.queued.store(0, Ordering::Relaxed);
        self.overflowed.store(false, Ordering::Relaxed);
        let mut present = all.snapshot();
        drop(all);
        for listener in listeners.iter() {
            guard(|| listener.on_reset());
            replay(&**listener, &mut present);
        }
        drop(marks);
        if closed {
            let _ = self.sender.send(Message::Close);
        }
    }

    /// Delivers what is queued and ends the thread.
    pub(crate) fn close(&self) {
        self.early.lock().take();
        let _ = self.sender.send(Message::Close);
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

fn replay(listener: &dyn Listener, present: &mut [Event]) {
    for chunk in present.chunks(EVENT_BATCH_MAX) {
        guard(|| listener.on_events(chunk));
    }
}

/// A listener that panics must not take the delivery to the others down.
fn guard(call: impl FnOnce()) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_err() {
        tracing::error!("a listener panicked; the events of this call are lost to it");
    }
}
