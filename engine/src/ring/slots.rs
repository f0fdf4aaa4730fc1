//! The slot table: what is in flight, by index and generation, and how a request goes on with each result of the kernel. Used by one thread.
//!
//! ```text
//! free --insert--> in flight --complete: the rest is still to come, or it was interrupted--> in flight
//!                            --complete: all is there, or it failed--> free, one generation later
//! ```

use nix::errno::Errno;

use super::{Completion, Op, Request, Span};

/// How often one request is continued or repeated before it fails with EIO.
const CONTINUE_MAX: u32 = 256;

/// A request in the kernel's hands, with how far it has come.
pub(super) struct InFlight {
    pub(super) request: Request,
    /// The registered buffer that the span lies in.
    pub(super) fixed: Option<u16>,
    pub(super) done: usize,
    pub(super) rounds: u32,
}

/// What is left of a transfer.
pub(super) struct Rest {
    pub(super) ptr: *mut u8,
    pub(super) len: u32,
    pub(super) offset: u64,
}

impl InFlight {
    pub(super) fn rest(&self, span: &Span) -> Rest {
        Rest {
            ptr: span.ptr().wrapping_add(self.done),
            len: (span.len() - self.done) as u32,
            offset: self.request.offset + self.done as u64,
        }
    }

    /// Takes one result of the kernel; `Some` when the request has ended, `None` when it has to go on.
    fn progress(&mut self, result: i32, align: usize) -> Option<Result<usize, Errno>> {
        let len = self.request.span.as_ref().map_or(0, Span::len);
        self.rounds += 1;
        if self.rounds > CONTINUE_MAX {
            return Some(Err(Errno::EIO));
        }
        if result < 0 {
            return match Errno::from_raw(-result) {
                // Not a sync: repeated, it may succeed without having written what the first could not.
                Errno::EINTR | Errno::EAGAIN if matches!(self.request.op, Op::Read | Op::Write) => None,
                errno => Some(Err(errno)),
            };
        }
        self.done += result as usize;
        if self.done >= len {
            return Some(Ok(self.done));
        }
        match self.request.op {
            // A direct read that stops off the grid has met the end of the file, as one that reads nothing.
            Op::Read if result == 0 || !self.done.is_multiple_of(align) => Some(Ok(self.done)),
            Op::Write if result == 0 => Some(Err(Errno::EIO)),
            _ => {
                self.done -= self.done % align;
                None
            }
        }
    }
}

/// What a result of the kernel means for its request.
pub(super) enum Step {
    /// It has ended; its slot is free.
    Ended(Completion),
    /// What is left of this slot's request has to be handed in again.
    Again(u32),
}

struct Slot {
    generation: u32,
    flight: Option<InFlight>,
}

/// A fixed number of slots. A completion of an earlier tenant of a slot is recognised by its generation.
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Slots {
    pub(super) fn new(count: usize) -> Self {
        Self {
            slots: (0..count).map(|_| Slot { generation: 0, flight: None }).collect(),
            free: (0..count as u32).rev().collect(),
        }
    }

    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    pub(super) fn busy(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, flight: InFlight) -> Result<u32, Request> {
        let Some(slot) = self.free.pop() else { return Err(flight.request) };
        self.slots[slot as usize].flight = Some(flight);
        Ok(slot)
    }

    /// The tenant of a slot, and the number that its completion will carry.
    pub(super) fn get(&self, slot: u32) -> (&InFlight, u64) {
        let Slot { generation, flight } = &self.slots[slot as usize];
        let flight = flight.as_ref().expect("a slot handed out has a tenant");
        (flight, (u64::from(*generation) << 32) | u64::from(slot))
    }

    /// One result of the kernel; `None` for a request that has ended before.
    pub(super) fn complete(&mut self, user_data: u64, result: i32, align: usize) -> Option<Step> {
        let (generation, index) = ((user_data >> 32) as u32, user_data as u32);
        let slot = self.slots.get_mut(index as usize).filter(|slot| slot.generation == generation)?;
        let flight = slot.flight.as_mut()?;
        let Some(result) = flight.progress(result, align) else { return Some(Step::Again(index)) };
        let token = flight.request.token;
        slot.flight = None;
        slot.generation = generation.wrapping_add(1);
        self.free.push(index);
        Some(Step::Ended(Completion { token, result }))
    }

    /// Forgets what is in flight without freeing its memory.
    pub(super) fn leak(&mut self) {
        for slot in &mut self.slots {
            std::mem::forget(slot.flight.take());
        }
    }
}

#[cfg(test)]
#[path = "slots_tests.rs"]
mod tests;
