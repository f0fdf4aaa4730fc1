//! I/O priorities of requests, for schedulers that take them.
//!
//! A request carries its priority in the SQE (`ioprio`; linux/ioprio.h: a class in the top three bits, a level below). What
//! becomes of it is the scheduler's matter (block/mq-deadline.c, block/bfq-iosched.c): `bfq` gives a level its share of the device,
//! `mq-deadline` knows classes alone, the others take none. ARCHITECTURE.md has what was measured.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::{Op, Request, Ring};
use crate::config::IoPriority;
use crate::error::Result;
use crate::mem::IoBuffer;

const BEST_EFFORT: u16 = 2 << 13;
const IDLE: u16 = 3 << 13;

/// The last level of a class; the first is 0.
const LOWEST: u16 = 7;

/// Priorities of reads and writes; 0 is the process's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Priorities {
    read: u16,
    write: u16,
}

impl Priorities {
    /// What a scheduler (its name in `queue/scheduler`) is told; `None` where it would make no difference.
    pub(crate) fn choose(wanted: IoPriority, scheduler: &str) -> Option<Self> {
        let write = match (wanted, scheduler) {
            (IoPriority::Auto, "bfq") => BEST_EFFORT | LOWEST,
            (IoPriority::StoresIdle, "bfq" | "mq-deadline") => IDLE,
            _ => return None,
        };
        Some(Self { read: 0, write })
    }

    pub(super) fn of(self, op: Op) -> u16 {
        match op {
            Op::Read => self.read,
            Op::Write => self.write,
            // Not taken by the kernel, and waited for by somebody.
            Op::SyncData | Op::SyncAll => 0,
        }
    }
}

impl Ring {
    /// Whether reads and writes have priorities.
    pub(crate) fn has_priorities(&self) -> bool {
        self.priorities != Priorities::default()
    }

    /// Gives reads and writes these priorities from now on, if the kernel lets this process, which it is asked with one
    /// request of each kind; else they go on without. To be called before the first request.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) when the ring is broken.
    pub(crate) fn prioritize(&mut self, priorities: Priorities) -> Result<()> {
        debug_assert!(self.is_idle(), "completions of others would be lost");
        let Ok(zero) = File::options().read(true).write(true).open("/dev/zero") else { return Ok(()) };
        let fd = Rc::new(OwnedFd::from(zero));
        let memory = IoBuffer::new(vec![0; 2].into());
        self.priorities = priorities;
        for (token, op) in [Op::Read, Op::Write].into_iter().enumerate() {
            let request = Request { op, fd: fd.clone(), span: Some(memory.span(token, 1)), offset: 0, token };
            let pushed = self.push(request);
            debug_assert!(pushed.is_ok(), "an idle ring has room");
        }
        let mut refusal = None;
        self.drain(|completion| refusal = refusal.or(completion.result.err()))?;
        if let Some(errno) = refusal {
            tracing::warn!(%errno, "I/O priorities are refused: requests go without");
            self.priorities = Priorities::default();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use nix::errno::Errno;
    use nix::sys::eventfd::{EfdFlags, EventFd};

    use super::*;

    /// A class that does not exist.
    const NO_CLASS: u16 = 6 << 13;

    fn ring() -> Ring {
        Ring::new(8, 1, Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap())).unwrap()
    }

    /// Writes a byte to `/dev/zero`, reads one, syncs a file.
    fn results(ring: &mut Ring) -> [Result<usize, Errno>; 3] {
        let zero = File::options().read(true).write(true).open("/dev/zero").unwrap();
        let fds = [Rc::new(OwnedFd::from(zero)), Rc::new(OwnedFd::from(tempfile::tempfile().unwrap()))];
        let memory = IoBuffer::new(vec![7; 2].into());
        for (token, op) in [Op::Read, Op::Write, Op::SyncData].into_iter().enumerate() {
            let span = (op != Op::SyncData).then(|| memory.span(token, 1));
            let request = Request { op, fd: fds[token / 2].clone(), span, offset: 0, token };
            assert!(ring.push(request).is_ok());
        }
        let mut results = [Err(Errno::UnknownErrno); 3];
        ring.drain(|completion| results[completion.token] = completion.result).unwrap();
        results
    }

    #[test]
    fn each_kind_of_request_carries_its_own() {
        // The kernel refuses a class that it does not know, and so tells which requests had it.
        let mut ring = ring();
        ring.priorities = Priorities { read: NO_CLASS, write: BEST_EFFORT | LOWEST };
        assert_eq!(results(&mut ring), [Err(Errno::EINVAL), Ok(1), Ok(0)]);
        ring.priorities = Priorities { read: BEST_EFFORT, write: NO_CLASS };
        assert_eq!(results(&mut ring), [Ok(1), Err(Errno::EINVAL), Ok(0)]);
    }

    #[test]
    fn schedulers_are_told_what_they_take() {
        use IoPriority::{Auto, Off, StoresIdle};
        let told =
            |wanted| ["bfq", "mq-deadline", "kyber", "none"].map(|name| Priorities::choose(wanted, name).is_some());
        assert_eq!(told(Auto), [true, false, false, false]);
        assert_eq!(told(StoresIdle), [true, true, false, false]);
        assert_eq!(told(Off), [false; 4]);
    }

    #[test]
    fn what_the_kernel_takes_is_kept() {
        let mut ring = ring();
        for wanted in [IoPriority::Auto, IoPriority::StoresIdle] {
            let priorities = Priorities::choose(wanted, "bfq").unwrap();
            ring.prioritize(priorities).unwrap();
            assert_eq!((ring.priorities, ring.has_priorities()), (priorities, true));
            assert_eq!(results(&mut ring), [Ok(1), Ok(1), Ok(0)]);
        }
    }

    #[test]
    fn what_the_kernel_refuses_is_not_used() {
        for wrong in [Priorities { read: NO_CLASS, write: 0 }, Priorities { read: 0, write: NO_CLASS }] {
            let mut ring = ring();
            ring.prioritize(wrong).unwrap();
            assert!(!ring.has_priorities());
            assert_eq!(results(&mut ring), [Ok(1), Ok(1), Ok(0)]);
        }
    }

    #[test]
    fn a_class_that_needs_a_right_is_not_used_without_it() {
        const REAL_TIME: u16 = 1 << 13;
        // Capabilities belong to threads; io_uring takes those of the thread that submits.
        std::thread::spawn(|| {
            drop_capabilities();
            let mut ring = ring();
            ring.prioritize(Priorities { read: REAL_TIME, write: REAL_TIME }).unwrap();
            assert!(!ring.has_priorities(), "EPERM");
            assert_eq!(results(&mut ring), [Ok(1), Ok(1), Ok(0)]);
        })
        .join()
        .unwrap();
    }

    /// Takes all capabilities from this thread.
    fn drop_capabilities() {
        /// linux/capability.h: version 3, two sets of 32.
        #[repr(C)]
        struct Header {
            version: u32,
            pid: i32,
        }
        let (header, sets) = (Header { version: 0x2008_0522, pid: 0 }, [0_u32; 6]);
        // SAFETY: both are of the layout that the call reads, and live until it returns.
        let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) };
        assert_eq!(result, 0, "a thread may always give rights up");
    }
}
