//! Objects whose memory their caller's own work on the device still uses: what has to happen before is a fence.
//!
//! The host looks at the fence, and hands a copy over only when it has happened. Made to wait in the device's queue instead, one
//! caller's work would hold up the copies of all others behind it, and what waits for an event that never comes could not be taken back.
//! What an object may do meanwhile: a load reads ahead into slots, as long as such loads have no more than half of them; a store has
//! nothing to do, and takes no slot. It waits until the fence has happened, has failed, its ticket's deadline has answered, or
//! `fence_deadline` has passed; while the engine closes, no longer than `close_deadline`.

use std::sync::Arc;
use std::time::Instant;

use super::device::Tag;
use super::transfer::{Piece, Target};
use super::{Class, Shard};
use crate::device::{DeviceError, Direction, Fence};
use crate::error::Error;
use crate::mem::IoBuffer;

/// Of the slots of one direction, what loads that read ahead may have: one part of this many.
const AHEAD_SHARE: usize = 2;

/// What an object waits for.
#[derive(Default)]
pub(super) struct Gate {
    /// `None`: it is open.
    fence: Option<Fence>,
    /// When it was first found closed; it is looked at since then.
    since: Option<Instant>,
    /// It has no turn until the gate is open.
    is_parked: bool,
    /// Bytes that were asked of the disk ahead, and those that have come, in their slots.
    ahead: usize,
    held: Vec<(Piece, IoBuffer)>,
}

impl Gate {
    pub(super) fn new(fence: Option<Fence>) -> Self {
        Self { fence, ..Self::default() }
    }

    pub(super) fn is_open(&self) -> bool {
        self.fence.is_none()
    }

    /// Keeps what has come from the disk ahead.
    pub(super) fn hold(&mut self, piece: Piece, slot: IoBuffer) {
        self.held.push((piece, slot));
    }
}

impl Shard {
    /// Whether the object may have its next piece begun; what may not is looked at again by `open_gates`.
    pub(super) fn pass_gate(&mut self, class: Class, active: usize, piece: Piece) -> bool {
        let Target::Device(device) = &mut self.actives[active].transfer().target else { return true };
        let Some(fence) = &device.gate.fence else { return true };
        let lane = &mut self.devices.lanes[device.lane];
        if device.gate.since.is_none() {
            if let Ok(true) = lane.has_happened(fence) {
                device.gate.fence = None;
                return true;
            }
            device.gate.since = Some(Instant::now());
            self.devices.gated.push(active);
        }
        let limit = lane.attached().options.transit_bytes / AHEAD_SHARE;
        let ahead = &mut self.devices.ahead[device.lane];
        // One piece always goes: chunks may be as large as that.
        if class == Class::Load && piece.bounce && (*ahead == 0 || *ahead + piece.len <= limit) {
            *ahead += piece.len;
            device.gate.ahead += piece.len;
            return true;
        }
        device.gate.is_parked = true;
        false
    }

    /// So many bytes of a piece that `pass_gate` let through did not go after all.
    pub(super) fn take_back_ahead(&mut self, active: usize, bytes: usize) {
        if let Target::Device(device) = &mut self.actives[active].transfer().target
            && !device.gate.is_open()
        {
            self.devices.ahead[device.lane] -= bytes;
            device.gate.ahead -= bytes;
        }
    }

    /// Looks at the fences that objects wait for; whether one of them was settled.
    pub(super) fn open_gates(&mut self) -> bool {
        let waiting = std::mem::take(&mut self.devices.gated);
        let (now, before) = (Instant::now(), waiting.len());
        // Objects of one batch have one fence: it is asked once.
        let mut asked: Option<(Fence, bool)> = None;
        for active in waiting {
            let is_expired = self.actives[active].is_expired();
            let Target::Device(device) = &mut self.actives[active].transfer().target else { continue };
            let (Some(fence), Some(since)) = (device.gate.fence.clone(), device.gate.since) else { continue };
            let lane = &mut self.devices.lanes[device.lane];
            let happened = match &asked {
                Some((known, happened)) if Arc::ptr_eq(known, &fence) => Ok(*happened),
                _ => lane.has_happened(&fence),
            };
            let options = &lane.attached().options;
            let is_late = now.duration_since(since) > options.fence_deadline
                || self.devices.closing.is_some_and(|closing| now.duration_since(closing) > options.close_deadline);
            if let Ok(happened) = happened {
                asked = Some((fence, happened));
            }
            match happened {
                Ok(true) => self.open_gate(active),
                Ok(false) if is_expired || is_late => {
                    let reason = "the work on the caller's stream that it waits for was not done in time";
                    self.fail_gate(active, DeviceError::new("fence", reason));
                }
                Ok(false) => self.devices.gated.push(active),
                Err(error) => self.fail_gate(active, error),
            }
        }
        self.devices.gated.len() < before
    }

    /// What has come ahead goes on, and the object has its turns again.
    fn open_gate(&mut self, active: usize) {
        let class = self.actives[active].class();
        let Target::Device(device) = &mut self.actives[active].transfer().target else { return };
        let Gate { is_parked, ahead, held, .. } = std::mem::take(&mut device.gate);
        self.devices.ahead[device.lane] -= ahead;
        for (piece, slot) in held {
            let place = device.place(piece);
            let lane = &mut self.devices.lanes[device.lane];
            lane.copy(Direction::ToDevice, slot, piece.len, place, Tag::new(active, piece));
        }
        if is_parked {
            self.lane(class).ready.push_back(active);
        }
    }

    /// The fence does not come: the object fails, and its slots are free.
    fn fail_gate(&mut self, active: usize, error: DeviceError) {
        let Target::Device(device) = &self.actives[active].transfer().target else { return };
        let error = Error::device(&*self.devices.lanes[device.lane].attached().device, error);
        self.actives[active].transfer().fail(error);
        self.drop_held(active);
        self.settle_transfer(active);
    }

    /// Ends the pieces that have come ahead, of an object that has failed.
    pub(super) fn drop_held(&mut self, active: usize) {
        let transfer = self.actives[active].transfer();
        let Target::Device(device) = &mut transfer.target else { return };
        for _ in std::mem::take(&mut device.gate.held) {
            transfer.end();
        }
    }

    /// The object has ended: it waits for nothing any more.
    pub(super) fn forget_gate(&mut self, active: usize) {
        let Target::Device(device) = &mut self.actives[active].transfer().target else { return };
        if !device.gate.is_open() {
            self.devices.ahead[device.lane] -= std::mem::take(&mut device.gate).ahead;
            self.devices.gated.retain(|waiting| *waiting != active);
        }
    }
}
