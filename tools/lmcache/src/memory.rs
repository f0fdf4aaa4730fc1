//! Memory of Python objects and of the host's arena, lent to the engine without a copy.
//!
//! The only module with unsafe code. Three kinds of memory come in: an object with the buffer protocol or a tensor, which
//! is kept alive with the loan; an address inside the host's arena, for which the host answers; and the arena itself.

#![expect(unsafe_code, reason = "memory of Python objects is lent to the engine by address")]

use std::ffi::{c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::types::PyMemoryView;
use pyo3::{ffi, intern, prelude::*};
use saltern::{Buffer, Engine, Result};

/// `Py_buffer` of CPython: in the stable ABI since 3.11, and laid out like this since 3.3.
#[repr(C)]
struct RawBuffer {
    buf: *mut c_void,
    obj: *mut ffi::PyObject,
    len: ffi::Py_ssize_t,
    itemsize: ffi::Py_ssize_t,
    readonly: c_int,
    ndim: c_int,
    format: *mut c_char,
    shape: *mut ffi::Py_ssize_t,
    strides: *mut ffi::Py_ssize_t,
    suboffsets: *mut ffi::Py_ssize_t,
    internal: *mut c_void,
}

/// One block of bytes without gaps; and one that may be written.
const SIMPLE: c_int = 0;
const WRITABLE: c_int = 1;

// SAFETY: both functions are part of every CPython 3 and have these signatures (Include/cpython/object.h, later
// Include/pybuffer.h).
unsafe extern "C" {
    fn PyObject_GetBuffer(exporter: *mut ffi::PyObject, view: *mut RawBuffer, flags: c_int) -> c_int;
    fn PyBuffer_Release(view: *mut RawBuffer);
}

/// Held by a loan: the object whose memory it is.
struct Owner(#[expect(dead_code, reason = "kept, not looked at")] Py<PyAny>);

/// Lends the bytes of a Python object: a tensor on the CPU, or anything with the buffer protocol that is one block.
///
/// The object, and its memory at this address, stays until the loan ends: a memory view holds the buffer, and a tensor its
/// storage. That nobody writes meanwhile, or reads while a load is under way, is the caller's promise, as for any
/// non-blocking call in Python.
///
/// # Errors
/// `BufferError` and `ValueError` for memory that is not one block, not writable where it has to be, or not on the CPU.
pub(crate) fn lend_object(object: &Bound<'_, PyAny>, writable: bool) -> PyResult<Buffer> {
    let py = object.py();
    // Memory views come by the hundred, and to ask them for what they lack is slow.
    let is_view = object.is_exact_instance_of::<PyMemoryView>();
    if !is_view && object.hasattr(intern!(py, "data_ptr"))? && object.hasattr(intern!(py, "is_contiguous"))? {
        return lend_tensor(object);
    }
    let view = PyMemoryView::from(object)?.into_any();
    let mut raw = MaybeUninit::<RawBuffer>::zeroed();
    let flags = if writable { WRITABLE } else { SIMPLE };
    // SAFETY: the thread is attached (`py`), `view` is a live object, and `raw` is writable memory of the struct's size.
    if unsafe { PyObject_GetBuffer(view.as_ptr(), raw.as_mut_ptr(), flags) } != 0 {
        return Err(PyErr::fetch(py));
    }
    // SAFETY: the call above has succeeded, so it has filled the struct in.
    let (ptr, len) = unsafe { ((*raw.as_ptr()).buf, (*raw.as_ptr()).len) };
    // SAFETY: filled in by a call that succeeded, and released once. The memory stays where it is: `view` has a buffer of
    // its own on the same object, until the owner below is dropped.
    unsafe { PyBuffer_Release(raw.as_mut_ptr()) };
    let owner = Arc::new(Owner(view.unbind()));
    // SAFETY: `view` keeps `len` bytes at `ptr` valid for reads, and for writes where that was asked for; who else uses them
    // meanwhile is the caller's promise.
    Ok(unsafe { Buffer::foreign(ptr.cast(), len as usize, Some(owner)) })
}

fn lend_tensor(tensor: &Bound<'_, PyAny>) -> PyResult<Buffer> {
    let py = tensor.py();
    let device = tensor.getattr(intern!(py, "device"))?.getattr(intern!(py, "type"))?;
    if !device.eq("cpu")? {
        return Err(PyValueError::new_err(format!("the tensor is on {device}, only the CPU's memory can be used")));
    }
    if !tensor.call_method0(intern!(py, "is_contiguous"))?.is_truthy()? {
        return Err(PyValueError::new_err("the tensor is not contiguous; call .contiguous() first"));
    }
    let ptr: usize = tensor.call_method0(intern!(py, "data_ptr"))?.extract()?;
    let items: usize = tensor.call_method0(intern!(py, "numel"))?.extract()?;
    let item_bytes: usize = tensor.call_method0(intern!(py, "element_size"))?.extract()?;
    let owner = Arc::new(Owner(tensor.clone().unbind()));
    // SAFETY: a contiguous tensor on the CPU has its elements at its address; it is kept alive, and who else uses them
    // meanwhile is the caller's promise.
    Ok(unsafe { Buffer::foreign(ptr as *mut u8, items * item_bytes, Some(owner)) })
}

/// Lends the bytes of one of the host's memory objects (LMCache's `MemoryObj`): its logical size, or its whole slot.
///
/// The host keeps the memory until the task is complete; that is its side of the adapter interface. Objects without an
/// address lend their `byte_array`.
pub(crate) fn lend_memory_object(object: &Bound<'_, PyAny>, whole_slot: bool, writable: bool) -> PyResult<Buffer> {
    let py = object.py();
    let Some(ptr) = object.getattr(intern!(py, "data_ptr")).ok().and_then(|ptr| ptr.extract::<usize>().ok()) else {
        return lend_object(&object.getattr(intern!(py, "byte_array"))?, writable);
    };
    let mut len: usize = object.call_method0(intern!(py, "get_size"))?.extract()?;
    if whole_slot {
        len = len.max(object.call_method0(intern!(py, "get_physical_size"))?.extract()?);
    }
    // SAFETY: the host's promise, see above; its memory objects do not overlap, and the engine is closed, which waits for all
    // I/O, before the host frees the arena.
    Ok(unsafe { Buffer::foreign(ptr as *mut u8, len, None) })
}

/// Registers the host's arena, so that I/O on it costs less.
pub(crate) fn lend_arena(engine: &Engine, ptr: usize, len: usize) -> Result<()> {
    // SAFETY: the host frees its arena after it has closed its adapters, and never the part that it calls stable before.
    unsafe { engine.lend_arena(ptr as *mut u8, len) }
}
