//! What the software device does with bytes, on whichever thread that is.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::memory::Memory;
use crate::device::{DeviceCopy, DeviceError, DeviceRange, DirectOp, Direction, Place};
use crate::mem::{Lent, Loan};

/// A copy or a direct transfer, as the device's engines take it.
pub(super) struct Job {
    pub(super) direction: Direction,
    pub(super) bytes: usize,
    work: Work,
}

enum Work {
    Copy(Lent, Far),
    Direct {
        file: File,
        offset: u64,
        range: DeviceRange,
    },
    /// It could not be begun.
    Refused(DeviceError),
}

enum Far {
    Device(Vec<DeviceRange>),
    Loopback(Lent),
}

impl Job {
    /// A copy, and what keeps its memory until it is done.
    pub(super) fn copy(copy: DeviceCopy) -> (Self, Vec<Loan>) {
        let DeviceCopy { direction, host, place, .. } = copy;
        let (loan, host) = host.lend();
        let (mut loans, bytes) = (vec![loan], host.len());
        let far = match place {
            Place::Device(ranges) => Far::Device(ranges),
            Place::Loopback(place) => {
                let (loan, place) = place.lend();
                loans.push(loan);
                Far::Loopback(place)
            }
        };
        (Self { direction, bytes, work: Work::Copy(host, far) }, loans)
    }

    pub(super) fn direct(op: &DirectOp) -> Self {
        let work = match op.fd.try_clone() {
            Ok(fd) => Work::Direct { file: File::from(fd), offset: op.offset, range: op.range },
            Err(error) => Work::Refused(DeviceError::new("direct transfer", error)),
        };
        Self { direction: op.direction, bytes: op.range.len, work }
    }

    pub(super) fn is_direct(&self) -> bool {
        !matches!(self.work, Work::Copy(..))
    }

    /// Moves the bytes; half of them where it is to fail. What it was lent is given back when this returns.
    pub(super) fn perform(self, memory: &Memory, fails: bool) -> Result<(), DeviceError> {
        let Self { direction, bytes, work } = self;
        match work {
            Work::Copy(host, Far::Loopback(place)) => {
                let len = if fails { bytes / 2 } else { bytes };
                match direction {
                    Direction::ToDevice => place.copy_from(&host, len),
                    Direction::FromDevice => host.copy_from(&place, len),
                }
            }
            Work::Copy(host, Far::Device(ranges)) => copy(memory, direction, &host, &ranges, fails)?,
            Work::Direct { file, offset, range } => direct(memory, direction, &file, offset, range, fails)?,
            Work::Refused(error) => return Err(error),
        }
        if fails { Err(told_to_fail()) } else { Ok(()) }
    }
}

pub(super) fn told_to_fail() -> DeviceError {
    DeviceError::new("copy", "the software device was told to fail")
}

fn copy(
    memory: &Memory,
    direction: Direction,
    host: &Lent,
    ranges: &[DeviceRange],
    half: bool,
) -> Result<(), DeviceError> {
    let mut at = 0;
    for range in ranges {
        memory.with(*range, |bytes| {
            let len = if half { bytes.len() / 2 } else { bytes.len() };
            match direction {
                Direction::ToDevice => host.read(at, &mut bytes[..len]),
                Direction::FromDevice => host.write(at, &bytes[..len]),
            }
        })?;
        at += range.len;
    }
    Ok(())
}

fn direct(
    memory: &Memory,
    direction: Direction,
    file: &File,
    offset: u64,
    range: DeviceRange,
    half: bool,
) -> Result<(), DeviceError> {
    // Blocks begin at addresses that O_DIRECT takes, as the device's do.
    memory
        .with(range, |bytes| {
            let len = if half { bytes.len() / 8192 * 4096 } else { bytes.len() };
            match direction {
                Direction::ToDevice => file.read_exact_at(&mut bytes[..len], offset),
                Direction::FromDevice => file.write_all_at(&bytes[..len], offset),
            }
        })?
        .map_err(|error| DeviceError::new("direct transfer", error))
}
