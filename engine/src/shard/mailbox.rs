//! How work reaches a shard: a queue, and a wake-up when the shard sleeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crossbeam::channel::Sender;
use crossbeam::queue::SegQueue;
use crossbeam::sync::WaitGroup;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::core::Queued;
use crate::device::attached::Attached;
use crate::error::{Error, Result};
use crate::index::{Held, Keyed};
use crate::mem::{Buffer, DeviceId};
use crate::report::{DeleteReport, LoadReport, StoreReport};
use crate::ticket::Part;

/// One object to store.
pub(crate) struct StoreOp {
    pub(crate) keyed: Keyed,
    pub(crate) name: String,
    pub(crate) buffer: Buffer,
    pub(crate) part: Part<StoreReport>,
    /// The key is claimed in the index and its bytes are reserved in the ledger, on this volume.
    pub(crate) claimed: bool,
    pub(crate) volume: usize,
    pub(crate) _queued: Queued,
}

/// One object to load.
pub(crate) struct LoadOp {
    pub(crate) keyed: Keyed,
    pub(crate) name: String,
    pub(crate) buffer: Buffer,
    pub(crate) part: Part<LoadReport>,
    pub(crate) _queued: Queued,
}

/// One object to delete.
pub(crate) struct DeleteOp {
    pub(crate) keyed: Keyed,
    pub(crate) name: String,
    pub(crate) part: Part<DeleteReport>,
    pub(crate) _queued: Queued,
}

/// One object to evict: it is doomed already.
pub(crate) struct EvictOp {
    pub(crate) keyed: Keyed,
    pub(crate) held: Held,
    pub(crate) for_quota: bool,
}

/// A file that was found on a volume while the key was known already.
pub(crate) struct TwinOp {
    pub(crate) keyed: Keyed,
    pub(crate) name: String,
    pub(crate) volume: usize,
    /// Gone when it is dealt with, for a scan that waits.
    pub(crate) _done: Option<WaitGroup>,
}

pub(crate) enum Command {
    Store(StoreOp),
    Load(LoadOp),
    Delete(DeleteOp),
    Evict(EvictOp),
    Twin(TwinOp),
    /// This volume was lost, and the index and the books know.
    Lost(usize),
    /// A store's claim of this key was given up before it came here: those who wait for it may go on.
    Released(Keyed),
    /// Memory was registered: take it over.
    Adopt,
    /// Make what a device needs here, and say how it went.
    Attach(Arc<Attached>, Sender<Result<()>>),
    /// All shards have answered: take the device into use, or give up what was made.
    Settle {
        device: DeviceId,
        keep: bool,
        /// Gone when it is done.
        _done: WaitGroup,
    },
    Close,
}

/// A shard's queue. Bounded by the engine's count of queued objects (`max_queued_objects`).
pub(crate) struct Mailbox {
    queue: SegQueue<Command>,
    sleeping: AtomicBool,
    /// The shard has ended: nobody takes what comes.
    dead: AtomicBool,
    pub(crate) wake: Arc<EventFd>,
}

impl Mailbox {
    pub(crate) fn new() -> Result<Self> {
        // Blocking: the ring's read of a non-blocking eventfd would fail at once instead of waiting.
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC)
            .map_err(|errno| Error::io("eventfd", "(shard)", errno))?;
        Ok(Self {
            queue: SegQueue::new(),
            sleeping: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            wake: Arc::new(wake),
        })
    }

    /// Queues commands without waking the shard; [`Self::ring`] follows.
    pub(crate) fn push(&self, command: Command) {
        self.queue.push(command);
    }

    /// Wakes the shard if it sleeps: a batch costs at most one system call.
    pub(crate) fn ring(&self) {
        // Pairs with the fence in `may_sleep`: either this sees the sleeper, or the sleeper sees the command.
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed)
            && self.sleeping.swap(false, Ordering::Relaxed)
            && let Err(errno) = self.wake.write(1)
        {
            tracing::error!(%errno, "waking a shard failed");
        }
    }

    /// The shard has ended.
    pub(crate) fn die(&self) {
        self.dead.store(true, Ordering::SeqCst);
    }

    /// Whether the shard has ended; to be asked after a push, by whoever then has to answer what is queued.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// Commands that the shard has not taken yet.
    pub(crate) fn len(&self) -> u64 {
        self.queue.len() as u64
    }

    pub(crate) fn pop(&self) -> Option<Command> {
        self.queue.pop()
    }

    /// Announces that the shard is about to sleep; false when there is work after all.
    pub(super) fn may_sleep(&self) -> bool {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.queue.is_empty() {
            return true;
        }
        self.awake();
        false
    }

    pub(super) fn awake(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }
}
