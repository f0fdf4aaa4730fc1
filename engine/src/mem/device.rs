//! Memory of a device, as callers lend it: addresses, never bytes. The engine copies to and from it by a device's
//! [`CopyEngine`](crate::device::CopyEngine), and looks at nothing of it.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::buffer::Keepalive;

/// A device of this process. No two have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceId(u64);

impl DeviceId {
    /// One that no other device of this process has.
    #[expect(clippy::new_without_default, reason = "each is another one: nothing about it is a default")]
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A block of device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceRange {
    /// The device's address of its first byte.
    pub address: u64,
    /// Length in bytes.
    pub len: usize,
}

/// What has to have happened on the device before the engine may touch a buffer: work of the caller's stream. Only the device
/// that made it knows what is in it.
pub type Fence = Arc<dyn Any + Send + Sync>;

/// The memory of one object on a device: one block, or a list of pages that the object is gathered from and scattered to,
/// in this order.
pub struct DeviceBuffer {
    device: DeviceId,
    ranges: Vec<DeviceRange>,
    /// Where each range ends in the object.
    ends: Vec<usize>,
    after: Option<Fence>,
    _keepalive: Option<Keepalive>,
}

impl DeviceBuffer {
    /// Lends memory of a device by address. Empty ranges are left out.
    ///
    /// # Safety
    /// From this call until the buffer is dropped, by the caller who got it back or by the engine:
    /// - each range is memory of `device`, valid for reads, and for writes where the buffer is given to a load;
    /// - no work on the device writes it, and, while it is given to a load, none reads it, but what `after` waits for.
    ///
    /// As with [`Buffer::foreign`](super::Buffer::foreign), the engine drops a buffer that it does not give back as soon as
    /// no copy is under way on it, and with it `keepalive`.
    pub unsafe fn new(
        device: DeviceId,
        ranges: Vec<DeviceRange>,
        after: Option<Fence>,
        keepalive: Option<Keepalive>,
    ) -> Self {
        Self::checked(device, ranges, after, keepalive)
    }

    /// As [`DeviceBuffer::new`], of a device that checks every address when it copies.
    pub(crate) fn checked(
        device: DeviceId,
        mut ranges: Vec<DeviceRange>,
        after: Option<Fence>,
        keepalive: Option<Keepalive>,
    ) -> Self {
        ranges.retain(|range| range.len > 0);
        let ends = ranges.iter().scan(0, |end, range| {
            *end += range.len;
            Some(*end)
        });
        Self { device, ends: ends.collect(), ranges, after, _keepalive: keepalive }
    }

    /// Length of the object in bytes.
    pub fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whose memory it is.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// The blocks, in the object's order.
    pub fn ranges(&self) -> &[DeviceRange] {
        &self.ranges
    }

    pub(crate) fn after(&self) -> Option<&Fence> {
        self.after.as_ref()
    }

    /// The blocks that `len` bytes of the object at `offset` lie in.
    ///
    /// # Panics
    /// When they do not lie inside the buffer.
    pub(crate) fn part(&self, offset: usize, len: usize) -> Vec<DeviceRange> {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len()), "a part outside its buffer");
        let mut parts = Vec::new();
        let (mut at, end) = (offset, offset + len);
        let mut index = self.ends.partition_point(|end| *end <= offset);
        while at < end {
            let range = self.ranges[index];
            let skipped = at - (self.ends[index] - range.len);
            let len = (range.len - skipped).min(end - at);
            parts.push(DeviceRange { address: range.address + skipped as u64, len });
            at += len;
            index += 1;
        }
        parts
    }
}

impl fmt::Debug for DeviceBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceBuffer({} bytes in {} ranges of {:?})", self.len(), self.ranges.len(), self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_the_pages() {
        let range = |address, len| DeviceRange { address, len };
        let pages = vec![range(1000, 10), range(5000, 0), range(0, 5), range(2000, 20)];
        let buffer = DeviceBuffer::checked(DeviceId::new(), pages, None, None);
        assert_eq!((buffer.len(), buffer.ranges().len()), (35, 3));
        assert_eq!(buffer.part(0, 35), [range(1000, 10), range(0, 5), range(2000, 20)]);
        assert_eq!(buffer.part(9, 2), [range(1009, 1), range(0, 1)]);
        assert_eq!(buffer.part(10, 5), [range(0, 5)]);
        assert_eq!(buffer.part(16, 3), [range(2001, 3)]);
        assert_eq!(buffer.part(35, 0), []);
        assert!(DeviceBuffer::checked(DeviceId::new(), vec![], None, None).is_empty());
    }
}
