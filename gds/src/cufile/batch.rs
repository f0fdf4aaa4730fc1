//! Many transfers in one call of cuFile's. A batch is set up once and used again and again: what was submitted has ended before the next
//! is. Its structures are those of cufile.h (CUDA 12.8); codes stay integers.

use std::ffi::{c_int, c_uint, c_void};
use std::time::Duration;

use nix::libc::timespec;
use saltern::device::Direction;

use super::library::{DeviceSpan, FileHandle, Status, meaning_of};
use crate::error::{GdsError, Result};

/// Most transfers of one batch. With more than 64 of 1 MiB a submit can hang (observed in compatibility mode: each takes a buffer
/// of a bounded cache).
pub const BATCH_MAX: usize = 16;

const _: () = assert!(BATCH_MAX <= 64);

/// How long one look waits for a transfer to end.
const LOOK: Duration = Duration::from_millis(100);

/// CUFILE_BATCH
const MODE_BATCH: c_int = 1;
/// CUFILE_READ, CUFILE_WRITE
const READ: c_int = 0;
const WRITE: c_int = 1;

/// CUfileStatus_t: waiting and pending have not ended; what is invalid could not be enqueued.
const WAITING: c_int = 1;
const PENDING: c_int = 2;
const INVALID: c_int = 4;
const CANCELED: c_int = 8;
const COMPLETE: c_int = 16;
const TIMEOUT: c_int = 32;

/// CUfileIOParams_t.
#[repr(C)]
struct Params {
    mode: c_int,
    padding: c_int,
    base: *mut c_void,
    file_offset: i64,
    offset: i64,
    size: usize,
    file: *mut c_void,
    opcode: c_int,
    padding_2: c_int,
    cookie: *mut c_void,
}

/// CUfileIOEvents_t.
#[repr(C)]
#[derive(Clone, Copy)]
struct Event {
    cookie: *mut c_void,
    status: c_int,
    padding: c_int,
    /// Bytes, or a negative error.
    moved: isize,
}

const _: () = assert!(size_of::<Params>() == 64 && size_of::<Event>() == 24);
const _: () = assert!(std::mem::offset_of!(Params, file) == 40 && std::mem::offset_of!(Params, cookie) == 56);
const _: () = assert!(std::mem::offset_of!(Event, moved) == 16);

/// One transfer of a batch.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Which way.
    pub direction: Direction,
    /// The file.
    pub file: FileHandle,
    /// Where in it.
    pub offset: u64,
    /// The memory.
    pub memory: DeviceSpan,
    /// Comes back with its end; no two of a batch have the same.
    pub token: usize,
}

/// A transfer of a batch that has ended.
#[derive(Debug)]
pub struct Ended {
    /// Of the entry.
    pub token: usize,
    /// How many bytes have moved: all, or fewer.
    pub result: Result<usize>,
    /// The library says that it was never enqueued, so it may be moved in another way at once. Only with an error.
    pub never_began: bool,
}

/// A batch of transfers. One that is dropped with transfers under way is leaked: the library may still use it.
pub trait Batch: Send {
    /// Begins transfers, at most as many as it was set up for, when none of the last ones is under way.
    ///
    /// # Errors
    /// What the library says. Any of them may be under way all the same: each has ended only when [`Batch::wait`] says so. No other
    /// batch may be submitted after it.
    fn submit(&mut self, entries: &[Entry]) -> Result<()>;

    /// Waits until some have ended, or a moment has passed, and gives each that has ended once.
    ///
    /// # Errors
    /// What the library says. It says nothing of the transfers, which are under way as before.
    fn wait(&mut self, ended: &mut Vec<Ended>) -> Result<()>;

    /// Asks that what is under way ends; it has only when [`Batch::wait`] says so.
    ///
    /// # Errors
    /// What the library says.
    fn cancel(&mut self) -> Result<()>;
}

/// cuFile's functions for batches; libraries before CUDA 11.6 have none.
#[derive(Clone, Copy)]
pub(super) struct Functions {
    pub(super) set_up: unsafe extern "C" fn(*mut *mut c_void, c_uint) -> Status,
    pub(super) submit: unsafe extern "C" fn(*mut c_void, c_uint, *mut c_void, c_uint) -> Status,
    pub(super) get_status: unsafe extern "C" fn(*mut c_void, c_uint, *mut c_uint, *mut c_void, *mut timespec) -> Status,
    pub(super) cancel: unsafe extern "C" fn(*mut c_void) -> Status,
    pub(super) destroy: unsafe extern "C" fn(*mut c_void),
}

/// A batch of cuFile's.
pub(super) struct CuBatch {
    functions: Functions,
    raw: *mut c_void,
    most: usize,
    /// The library may look at what was submitted until it has ended.
    params: Vec<Params>,
    events: Vec<Event>,
    /// Tokens of what is under way.
    under_way: Vec<usize>,
}

// SAFETY: the handle may be used from any thread, by one at a time, which `&mut` makes sure of; the pointers in `params` and
// `events` are addresses of the GPU and numbers.
unsafe impl Send for CuBatch {}

impl CuBatch {
    pub(super) fn set_up(functions: Functions, most: usize) -> Result<Self> {
        let most = most.min(BATCH_MAX);
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes one handle; the driver is open.
        unsafe { (functions.set_up)(&mut raw, most as c_uint) }.check("cuFileBatchIOSetUp")?;
        let empty = Event { cookie: std::ptr::null_mut(), status: WAITING, padding: 0, moved: 0 };
        let (params, events) = (Vec::with_capacity(most), vec![empty; most]);
        Ok(Self { functions, raw, most, params, events, under_way: Vec::new() })
    }
}

impl Batch for CuBatch {
    fn submit(&mut self, entries: &[Entry]) -> Result<()> {
        assert!(
            self.under_way.is_empty() && entries.len() <= self.most,
            "one batch at a time, and not more than it holds"
        );
        self.params.clear();
        self.params.extend(entries.iter().map(|entry| Params {
            mode: MODE_BATCH,
            padding: 0,
            base: entry.memory.base as *mut c_void,
            file_offset: entry.offset as i64,
            offset: entry.memory.offset as i64,
            size: entry.memory.len,
            file: entry.file.0 as *mut c_void,
            opcode: if entry.direction == Direction::ToDevice { READ } else { WRITE },
            padding_2: 0,
            cookie: entry.token as *mut c_void,
        }));
        let count = entries.len() as c_uint;
        // SAFETY: as many parameters as are told, which stay until all have ended; files and memory are the caller's, who keeps them
        // as long.
        let status = unsafe { (self.functions.submit)(self.raw, count, self.params.as_mut_ptr().cast(), 0) };
        // Also of a submit that failed: it does not say how far it came.
        self.under_way.extend(entries.iter().map(|entry| entry.token));
        status.check("cuFileBatchIOSubmit")
    }

    fn wait(&mut self, ended: &mut Vec<Ended>) -> Result<()> {
        let mut count = self.under_way.len() as c_uint;
        let mut timeout = timespec { tv_sec: 0, tv_nsec: LOOK.as_nanos() as i64 };
        // SAFETY: there is room for as many events as are told, and as many are under way at most.
        let status = unsafe {
            (self.functions.get_status)(self.raw, 1, &mut count, self.events.as_mut_ptr().cast(), &mut timeout)
        };
        status.check("cuFileBatchIOGetStatus")?;
        for event in &self.events[..(count as usize).min(self.events.len())] {
            let token = event.cookie as usize;
            let Some(index) = self.under_way.iter().position(|under_way| *under_way == token) else { continue };
            if !matches!(event.status, WAITING | PENDING) {
                self.under_way.swap_remove(index);
                ended.push(Ended { token, result: result_of(event), never_began: event.status == INVALID });
            }
        }
        Ok(())
    }

    fn cancel(&mut self) -> Result<()> {
        // SAFETY: the batch is alive.
        unsafe { (self.functions.cancel)(self.raw) }.check("cuFileBatchIOCancel")
    }
}

fn result_of(event: &Event) -> Result<usize> {
    let why = match event.status {
        COMPLETE if event.moved >= 0 => return Ok(event.moved as usize),
        INVALID => "it was refused: ",
        CANCELED => "it was cancelled: ",
        TIMEOUT => "it took too long: ",
        _ => "",
    };
    // A negative errno, or a negative code of cuFile's.
    let code = event.moved as c_int;
    let meaning = match -code {
        errno @ 1..5000 => std::io::Error::from_raw_os_error(errno).to_string(),
        code => meaning_of(code),
    };
    Err(GdsError::CuFile { call: "cuFileBatchIO", code, meaning: format!("{why}{meaning}") })
}

impl Drop for CuBatch {
    fn drop(&mut self) {
        if !self.under_way.is_empty() {
            std::mem::forget((std::mem::take(&mut self.params), std::mem::take(&mut self.events)));
            return;
        }
        // SAFETY: set up in `set_up`; nothing is under way.
        unsafe { (self.functions.destroy)(self.raw) };
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use cudarc::cufile::sys;

    use super::*;

    #[test]
    fn structures_and_constants_are_those_of_nvidias_header() {
        assert_eq!(size_of::<Params>(), size_of::<sys::CUfileIOParams>());
        assert_eq!(size_of::<Event>(), size_of::<sys::CUfileIOEvents>());
        let ours = [offset_of!(Params, mode), offset_of!(Params, base), offset_of!(Params, file)];
        let theirs = [
            offset_of!(sys::CUfileIOParams, mode),
            offset_of!(sys::CUfileIOParams, u),
            offset_of!(sys::CUfileIOParams, fh),
        ];
        assert_eq!(ours, theirs);
        assert_eq!(offset_of!(Params, opcode), offset_of!(sys::CUfileIOParams, opcode));
        assert_eq!(offset_of!(Params, cookie), offset_of!(sys::CUfileIOParams, cookie));
        let events = [offset_of!(sys::CUfileIOEvents, status), offset_of!(sys::CUfileIOEvents, ret)];
        assert_eq!([offset_of!(Event, status), offset_of!(Event, moved)], events);
        assert_eq!(MODE_BATCH, sys::CUfileBatchMode_t::CUFILE_BATCH as c_int);
        let opcodes = [sys::CUfileOpcode_t::CUFILE_READ as c_int, sys::CUfileOpcode_t::CUFILE_WRITE as c_int];
        assert_eq!([READ, WRITE], opcodes);
        use sys::CUfileStatus_t as status;
        for (ours, theirs) in [
            (WAITING, status::CUFILE_WAITING),
            (PENDING, status::CUFILE_PENDING),
            (INVALID, status::CUFILE_INVALID),
            (CANCELED, status::CUFILE_CANCELED),
            (COMPLETE, status::CUFILE_COMPLETE),
            (TIMEOUT, status::CUFILE_TIMEOUT),
        ] {
            assert_eq!(ours, theirs as c_int);
        }
    }
}
