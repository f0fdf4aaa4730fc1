//! One object's bytes on their way: cut into pieces that the file system takes.
//!
//! A piece is a segment in the caller's memory where address and length are aligned, else (an unaligned address, the
//! tail of an odd length) a bounce buffer, padded to the alignment. A device's memory is cut into chunks, each of which goes
//! through a slot (see [`device`](super::device)).

use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::device::DeviceTarget;
use crate::error::Error;
use crate::integrity::Sum;
use crate::mem::{Buffer, IoBuffer};

/// What the file system and the configuration ask of pieces.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    pub(super) segment: usize,
    pub(super) mem_align: usize,
    pub(super) offset_align: usize,
}

/// A part of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: usize,
    pub(super) len: usize,
    /// It does not go to or from the caller's memory directly.
    pub(super) bounce: bool,
}

/// Where an object's bytes are, or are to be.
pub(super) enum Target {
    Host(IoBuffer),
    Device(Box<DeviceTarget>),
}

impl Target {
    /// Whether it is a caller's memory of a device.
    pub(super) fn is_lent(&self) -> bool {
        matches!(self, Self::Device(device) if device.is_lent())
    }

    /// The caller's memory, when nothing is in flight on it any more.
    pub(super) fn into_buffer(self) -> Option<Buffer> {
        match self {
            Self::Host(buffer) => buffer.into_buffer().ok(),
            Self::Device(device) => device.into_buffer(),
        }
    }
}

/// How far an object has come.
pub(super) struct Transfer {
    pub(super) target: Target,
    pub(super) fd: Rc<OwnedFd>,
    pub(super) len: usize,
    /// What its file's volume asks of pieces.
    pub(super) grid: Grid,
    /// Its pieces go one after the other, and are so long.
    in_turn: Option<usize>,
    issued: usize,
    in_flight: usize,
    pub(super) error: Option<Error>,
}

impl Transfer {
    pub(super) fn new(target: Target, fd: Rc<OwnedFd>, grid: Grid) -> Self {
        let len = match &target {
            Target::Host(buffer) => buffer.len(),
            Target::Device(device) => device.len(),
        };
        Self { target, fd, len, grid, in_turn: None, issued: 0, in_flight: 0, error: None }
    }

    /// Of a new file: pieces of at most `segment` bytes, one after the other.
    pub(super) fn in_turn(mut self, segment: usize) -> Self {
        if matches!(self.target, Target::Host(_)) {
            self.in_turn = Some(segment);
        }
        self
    }

    /// The next piece to be asked of the kernel; `None` when there is none left, or one has failed.
    pub(super) fn next(&self) -> Option<Piece> {
        let grid = self.grid;
        if self.issued == self.len || self.error.is_some() || (self.in_turn.is_some() && self.in_flight > 0) {
            return None;
        }
        let offset = self.issued;
        let buffer = match &self.target {
            Target::Host(buffer) => buffer,
            Target::Device(device) => return Some(device.piece(offset)),
        };
        let len = (self.len - offset).min(self.in_turn.unwrap_or(grid.segment));
        let tail = len % grid.offset_align;
        if !buffer.is_aligned(offset, grid.mem_align) || len == tail {
            return Some(Piece { offset, len: len.min(grid.segment), bounce: true });
        }
        Some(Piece { offset, len: len - tail, bounce: false })
    }

    pub(super) fn issue(&mut self, piece: Piece) {
        self.issued = piece.offset + piece.len;
        self.in_flight += 1;
    }

    /// A piece in flight becomes two.
    pub(super) fn split(&mut self) {
        self.in_flight += 1;
    }

    pub(super) fn end(&mut self) {
        self.in_flight -= 1;
    }

    /// Whether the piece that has ended lets the next one go.
    pub(super) fn waits_for_turn(&self) -> bool {
        self.in_turn.is_some() && self.next().is_some()
    }

    /// Whether nothing is in flight and nothing will be.
    pub(super) fn is_done(&self) -> bool {
        self.in_flight == 0 && (self.issued == self.len || self.error.is_some())
    }

    /// Adds a piece, whose bytes are there in the host's memory, to a checksum.
    pub(super) fn sum_piece(&self, sum: &mut Sum, piece: Piece) {
        if let Target::Host(buffer) = &self.target {
            sum.add(piece.offset, piece.len, |offset, len, take| {
                buffer.span(offset, len).with_bytes(|bytes| take(bytes))
            });
        }
    }

    /// Stops asking for more.
    pub(super) fn fail(&mut self, error: Error) {
        self.error.get_or_insert(error);
    }
}
