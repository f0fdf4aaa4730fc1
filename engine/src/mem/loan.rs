//! Spans lent to threads that copy: a [`Span`] itself stays on its shard's thread.

use std::fmt;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::Span;

#[derive(Default)]
struct Borrower {
    is_done: Mutex<bool>,
    returned: Condvar,
}

/// Keeps a span's memory for another thread. Dropping it waits until the other side is dropped; forgetting it keeps the memory for good.
pub(crate) struct Loan {
    // Dropped after `drop` below has waited.
    _span: Span,
    borrower: Arc<Borrower>,
}

/// The other side: the bytes, on any thread.
pub(crate) struct Lent {
    ptr: *mut u8,
    len: usize,
    borrower: Arc<Borrower>,
}

// SAFETY: the memory stays for as long as this lives (`Loan`), and who holds the loan leaves it alone: the slot and the caller's
// memory belong to the copy until it is reported (`CopyEngine`). Nothing here has to do with the span's own counts.
unsafe impl Send for Lent {}

impl Span {
    /// Lends the bytes to another thread.
    pub(crate) fn lend(self) -> (Loan, Lent) {
        let borrower = Arc::new(Borrower::default());
        let lent = Lent { ptr: self.ptr(), len: self.len(), borrower: borrower.clone() };
        (Loan { _span: self, borrower }, lent)
    }
}

impl Lent {
    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Copies bytes to this offset.
    ///
    /// # Panics
    /// When they do not lie inside.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        // SAFETY: `to` has as many bytes; `bytes` are other memory, or the same (loopback), which `copy` allows.
        unsafe { std::ptr::copy(bytes.as_ptr(), to, bytes.len()) };
    }

    /// Copies from this offset.
    ///
    /// # Panics
    /// When they do not lie inside.
    pub(crate) fn read(&self, offset: usize, bytes: &mut [u8]) {
        let from = self.at(offset, bytes.len());
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy(from.cast_const(), bytes.as_mut_ptr(), bytes.len()) };
    }

    /// Copies the first `len` bytes of another one.
    ///
    /// # Panics
    /// When one of the two is shorter.
    pub(crate) fn copy_from(&self, other: &Self, len: usize) {
        let (from, to) = (other.at(0, len), self.at(0, len));
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy(from.cast_const(), to, len) };
    }

    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "part outside its loan");
        self.ptr.wrapping_add(offset)
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let mut is_done = self.borrower.is_done.lock();
        while !*is_done {
            self.borrower.returned.wait(&mut is_done);
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        *self.borrower.is_done.lock() = true;
        self.borrower.returned.notify_one();
    }
}

impl fmt::Debug for Loan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Loan({:?})", self._span)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Buffer, IoBuffer};

    #[test]
    fn a_loan_ends_when_the_other_thread_is_done() {
        let buffer = IoBuffer::new(Buffer::from(vec![1_u8; 100]));
        let (loan, lent) = buffer.span(10, 50).lend();
        let other = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            lent.write(5, &[2; 45]);
        });
        drop(loan);
        let bytes = buffer.into_buffer().ok().expect("nobody has it any more").into_vec();
        assert_eq!((bytes[14], bytes[15], bytes[59], bytes[60]), (1, 2, 2, 1));
        other.join().unwrap();
    }

    #[test]
    #[should_panic(expected = "part outside its loan")]
    fn nothing_outside_of_a_loan_is_touched() {
        let buffer = IoBuffer::new(Buffer::from(vec![1_u8; 100]));
        let (_loan, lent) = buffer.span(0, 10).lend();
        lent.write(5, &[0; 6]);
    }
}
