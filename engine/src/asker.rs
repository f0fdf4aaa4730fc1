//! Lookups that have to ask the disk, on a thread of their own: the index did not know the key, and is not whole (the scan
//! runs still, or other programs write to the directory). A disk that hangs holds up this thread, not the callers: their deadline answers.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use crate::core::{Core, Queued};
use crate::error::{Error, Result};
use crate::index::hash_of;
use crate::key::ObjectKey;
use crate::report::LookupReport;
use crate::ticket::Part;

/// Most lookups that wait for the disk; further ones are answered as misses.
const ASK_QUEUE_MAX: usize = 65_536;

/// One key to ask the disk for.
pub(crate) struct Ask {
    pub(crate) key: ObjectKey,
    pub(crate) part: Part<LookupReport>,
    pub(crate) _queued: Queued,
}

type Running = (Sender<Ask>, JoinHandle<()>);

/// The thread; started by the first lookup that needs it.
#[derive(Default)]
pub(crate) struct Asker(Mutex<Option<Running>>);

impl Asker {
    /// Hands a lookup over. It is answered as a miss where that is not possible.
    pub(crate) fn ask(&self, core: &Arc<Core>, ask: Ask) -> Result<()> {
        let mut running = self.0.lock();
        if running.is_none() {
            let (sender, receiver) = bounded(ASK_QUEUE_MAX);
            let core = core.clone();
            let thread = std::thread::Builder::new()
                .name("saltern-lookup".into())
                .spawn(move || serve(&core, &receiver))
                .map_err(|error| Error::spawn("saltern-lookup", &error))?;
            *running = Some((sender, thread));
        }
        if let Some((sender, _)) = &*running
            && let Err(refused) = sender.try_send(ask)
        {
            refused.into_inner().part.answer(None);
        }
        Ok(())
    }

    /// Answers what waits, and ends the thread.
    pub(crate) fn close(&self) {
        if let Some((sender, thread)) = self.0.lock().take() {
            drop(sender);
            let _ = thread.join();
        }
    }
}

/// Enters the key, if the disk has it; remembers it for a moment, if not.
fn look_up(core: &Core, key: &ObjectKey, name: &str) -> Result<()> {
    let hash = hash_of(key);
    // Looked at before the key is resolved: what is nowhere leaves no trace in index and ledger, whatever its salt.
    if !core.index.is_hint(key) && core.look(name)?.is_none() && core.latent.peek(hash).is_none() {
        core.absent.remember(hash);
        return Ok(());
    }
    core.ask_disk(&core.index.keyed(key, core.ledger()), name)
}

fn serve(core: &Core, receiver: &Receiver<Ask>) {
    for Ask { key, part, _queued } in receiver {
        if part.is_expired() {
            continue;
        }
        if let Ok(name) = core.config.layout.encode(&key)
            && let Err(error) = look_up(core, &key, &name)
        {
            tracing::warn!(%key, %error, "a lookup could not ask the disk; it is a miss");
        }
        let size = core.index.lookup_and_pin(std::slice::from_ref(&key), core.config.pin_lease)[0];
        core.count_lookups(&[size]);
        core.lookup_watch.disk.record(part.age());
        if !part.answer(size) && size.is_some() {
            // The caller was told of a miss by the deadline: it will not unpin.
            core.index.unpin(std::slice::from_ref(&key));
        }
        core.completion.lookup.flush();
    }
}
