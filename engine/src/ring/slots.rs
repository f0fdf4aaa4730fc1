//! The slot table: what is in flight, by index and generation.

use super::{Request, Span};

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

    pub(super) fn get_mut(&mut self, slot: u32) -> &mut InFlight {
        self.slots[slot as usize].flight.as_mut().expect("a slot handed out has a tenant")
    }

    /// The slot that a completion belongs to, unless its tenant has changed.
    pub(super) fn resolve(&self, user_data: u64) -> Option<u32> {
        let (generation, index) = ((user_data >> 32) as u32, user_data as u32);
        let slot = self.slots.get(index as usize)?;
        (slot.generation == generation && slot.flight.is_some()).then_some(index)
    }

    pub(super) fn remove(&mut self, slot: u32) -> InFlight {
        let Slot { generation, flight } = &mut self.slots[slot as usize];
        *generation = generation.wrapping_add(1);
        self.free.push(slot);
        flight.take().expect("a slot handed out has a tenant")
    }

    /// Forgets what is in flight without freeing its memory.
    pub(super) fn leak(&mut self) {
        for slot in &mut self.slots {
            std::mem::forget(slot.flight.take());
        }
    }
}
