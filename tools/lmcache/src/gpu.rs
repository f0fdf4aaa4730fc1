//! Memory of GPUs: tensors of PyTorch, whatever has `__cuda_array_interface__` or DLPack, and lists of pages (`pages.rs`), lent to the
//! engine by address.
//!
//! A GPU is opened, and attached to the engine, when the first object on it comes. Copies wait for what is on the object's stream:
//! PyTorch's current one, or the one that the interface names. All objects of a call are described before the first fence is set:
//! describing one may queue work (DLPack), and what is on one stream needs one fence.

#![expect(unsafe_code, reason = "memory of GPUs is lent to the engine by address")]

use std::collections::HashMap;
use std::ffi::{c_char, c_void};
use std::sync::Arc;

use parking_lot::Mutex;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::types::PyDict;
use pyo3::{ffi, intern, prelude::*};
use saltern::device::{DeviceOptions, DeviceRange, Fence};
use saltern::{Buffer, Error};
use saltern_gds::{CudaDevice, CudaOptions, DeviceSlab, Driver, GdsError};

use crate::errors::raise;
use crate::handle::Handle;
use crate::pages::Pages;

/// kDLCUDA
const DLPACK_CUDA: i32 = 2;

/// DLTensor of dlpack.h, the first member of DLManagedTensor.
#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    ndim: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

const _: () = assert!(size_of::<DlTensor>() == 48);

/// GPU memory that a Python object stands for: one block, or pages in this order.
pub(crate) struct Memory {
    pub(crate) ranges: Vec<DeviceRange>,
    /// The GPU, where the object says which; else the driver is asked.
    pub(crate) ordinal: Option<u32>,
    /// A CUstream, as a number.
    pub(crate) stream: Option<u64>,
    pub(crate) read_only: bool,
    /// What keeps it alive.
    pub(crate) owners: Vec<Py<PyAny>>,
}

impl Memory {
    fn block(address: u64, len: usize, owner: Py<PyAny>) -> Self {
        let ranges = vec![DeviceRange { address, len }];
        Self { ranges, ordinal: None, stream: None, read_only: false, owners: vec![owner] }
    }
}

/// Held by a loan.
struct Owners(#[expect(dead_code, reason = "kept, not looked at")] Vec<Py<PyAny>>);

/// The GPUs that are attached to an engine, each with the same options.
pub(crate) struct Gpus {
    open: Mutex<HashMap<u32, CudaDevice>>,
    options: DeviceOptions,
}

/// Lends memory for one call of the engine's.
pub(crate) struct Lender<'a> {
    gpus: &'a Gpus,
    handle: &'a Handle,
    /// By GPU and stream.
    fences: HashMap<(u32, u64), Fence>,
}

impl Lender<'_> {
    /// Lends an object's memory. That nobody writes meanwhile, or reads while a load is under way, is the caller's promise.
    ///
    /// # Errors
    /// `BufferError` for memory that is not writable where it has to be; `SalternError` where the GPU cannot be used, and why.
    pub(crate) fn lend(&mut self, py: Python<'_>, memory: Memory, writable: bool) -> PyResult<Buffer> {
        if writable && memory.read_only {
            return Err(PyBufferError::new_err("the object's memory on the GPU is read-only"));
        }
        let Memory { ranges, ordinal, stream, owners, .. } = memory;
        let address = ranges.first().map_or(0, |range| range.address);
        let device = py.detach(|| self.gpus.device(self.handle, ordinal, address)).map_err(|error| raise(&error))?;
        let after = stream.map(|stream| self.fence(&device, stream)).transpose().map_err(|error| raise(&error))?;
        // SAFETY: the object says that these are blocks of the GPU's memory, and is kept alive; who else uses them meanwhile is the
        // caller's promise.
        let memory = unsafe { device.lend(ranges, after, Some(Arc::new(Owners(owners)))) };
        Ok(memory.into())
    }

    fn fence(&mut self, device: &CudaDevice, stream: u64) -> Result<Fence, Error> {
        let key = (device.info().ordinal, stream);
        if let Some(fence) = self.fences.get(&key) {
            return Ok(fence.clone());
        }
        // SAFETY: the object says that this is a stream of its GPU's context, which PyTorch shares with this module: the primary one.
        let fence = unsafe { device.fence(stream) }.map_err(|error| failed(&error))?;
        self.fences.insert(key, fence.clone());
        Ok(fence)
    }
}

impl Gpus {
    pub(crate) fn new(options: DeviceOptions) -> Self {
        Self { open: Mutex::default(), options }
    }

    /// For one call.
    pub(crate) fn lender<'a>(&'a self, handle: &'a Handle) -> Lender<'a> {
        Lender { gpus: self, handle, fences: HashMap::new() }
    }

    /// Makes a block known to cuFile as a whole, until what this gives is dropped.
    ///
    /// # Errors
    /// `ValueError` for pages, `SalternError` where the GPU cannot be used.
    pub(crate) fn register(&self, py: Python<'_>, handle: &Handle, memory: Memory) -> PyResult<DeviceSlab> {
        let Memory { ranges, ordinal, owners, .. } = memory;
        let [range] = ranges[..] else {
            return Err(PyValueError::new_err(
                "pages are not registered one by one: register the block that they lie in",
            ));
        };
        let register = || {
            let device = self.device(handle, ordinal, range.address)?;
            // SAFETY: the object says that this is memory of the GPU, and is kept alive.
            Ok(unsafe { device.lend_slab(range, Some(Arc::new(Owners(owners)))) })
        };
        py.detach(register).map_err(|error: Error| raise(&error))
    }

    fn device(&self, handle: &Handle, ordinal: Option<u32>, address: u64) -> Result<CudaDevice, Error> {
        let mut open = self.open.lock();
        let options = CudaOptions::from_env();
        let ordinal = match (ordinal, open.values().next()) {
            (Some(ordinal), _) => ordinal,
            (None, Some(any)) => any.driver().device_of(address).map_err(|error| failed(&error))?,
            (None, None) => {
                let driver = Driver::load(options.libcuda.as_deref()).map_err(|error| failed(&error))?;
                driver.device_of(address).map_err(|error| failed(&error))?
            }
        };
        if let Some(device) = open.get(&ordinal) {
            return Ok(device.clone());
        }
        let device = CudaDevice::open(ordinal, options).map_err(|error| failed(&error))?;
        handle.with(|engine| engine.attach_device(Arc::new(device.clone()), self.options.clone()))??;
        open.insert(ordinal, device.clone());
        Ok(device)
    }
}

fn failed(error: &GdsError) -> Error {
    Error::Device { device: "GPU".into(), op: "use", reason: error.to_string() }
}

/// What an object says of its memory; `None` when it is not on a GPU.
///
/// # Errors
/// `ValueError` for memory that is not one block, and for what its interface may not say.
pub(crate) fn describe(object: &Bound<'_, PyAny>) -> PyResult<Option<Memory>> {
    let py = object.py();
    if let Ok(pages) = object.cast_exact::<Pages>() {
        return Ok(Some(Pages::memory(pages)));
    }
    if object.hasattr(intern!(py, "data_ptr"))? && object.hasattr(intern!(py, "is_contiguous"))? {
        return of_torch(object);
    }
    // Attributes that raise stand for objects that are elsewhere: PyTorch's do so.
    if let Ok(interface) = object.getattr(intern!(py, "__cuda_array_interface__")) {
        return of_interface(object, interface.cast::<PyDict>()?).map(Some);
    }
    if let Ok(place) = object.call_method0(intern!(py, "__dlpack_device__")) {
        let (kind, ordinal): (i32, u32) = place.extract()?;
        if kind == DLPACK_CUDA {
            return of_dlpack(object, ordinal).map(Some);
        }
    }
    Ok(None)
}

fn of_torch(tensor: &Bound<'_, PyAny>) -> PyResult<Option<Memory>> {
    let py = tensor.py();
    let device = tensor.getattr(intern!(py, "device"))?;
    if !device.getattr(intern!(py, "type"))?.eq("cuda")? {
        return Ok(None);
    }
    if !tensor.call_method0(intern!(py, "is_contiguous"))?.is_truthy()? {
        return Err(not_one_block());
    }
    let items: usize = tensor.call_method0(intern!(py, "numel"))?.extract()?;
    let item_bytes: usize = tensor.call_method0(intern!(py, "element_size"))?.extract()?;
    let cuda = py.import(intern!(py, "torch.cuda"))?;
    let stream = cuda.call_method1(intern!(py, "current_stream"), (&device,))?;
    let address = tensor.call_method0(intern!(py, "data_ptr"))?.extract()?;
    Ok(Some(Memory {
        ordinal: device.getattr(intern!(py, "index"))?.extract()?,
        stream: Some(stream.getattr(intern!(py, "cuda_stream"))?.extract()?),
        ..Memory::block(address, items * item_bytes, tensor.clone().unbind())
    }))
}

/// Numba's interface, version 2 or 3.
fn of_interface(object: &Bound<'_, PyAny>, interface: &Bound<'_, PyDict>) -> PyResult<Memory> {
    let missing = |name: &str| PyValueError::new_err(format!("__cuda_array_interface__ has no {name:?}"));
    let get = |name: &str| interface.get_item(name)?.ok_or_else(|| missing(name));
    let shape: Vec<i64> = get("shape")?.extract()?;
    let kind: String = get("typestr")?.extract()?;
    let item_bytes: i64 =
        kind.get(2..).and_then(|digits| digits.parse().ok()).ok_or_else(|| missing("typestr with a size"))?;
    let (address, read_only): (u64, bool) = get("data")?.extract()?;
    let strides: Option<Vec<i64>> =
        interface.get_item("strides")?.map(|strides| strides.extract()).transpose()?.flatten();
    let len = length(&shape, strides.as_deref(), item_bytes, 1)?;
    if interface.get_item("mask")?.is_some_and(|mask| !mask.is_none()) {
        return Err(PyValueError::new_err(
            "__cuda_array_interface__ has a \"mask\": which items of the array count cannot be stored; pass the array without one",
        ));
    }
    let stream: Option<u64> = interface.get_item("stream")?.map(|stream| stream.extract()).transpose()?.flatten();
    if stream == Some(0) {
        return Err(PyValueError::new_err(
            "__cuda_array_interface__ has \"stream\" 0, which the protocol forbids, since it could be either default stream: 1 is the \
             legacy one, 2 that of the thread, and None needs no waiting",
        ));
    }
    Ok(Memory { stream, read_only, ..Memory::block(address, len, object.clone().into_any().unbind()) })
}

fn of_dlpack(object: &Bound<'_, PyAny>, ordinal: u32) -> PyResult<Memory> {
    const NAME: *const c_char = c"dltensor".as_ptr();
    let py = object.py();
    // Stream 1, the default one: the producer makes its work there wait, or be waited for.
    let arguments = PyDict::new(py);
    arguments.set_item("stream", 1)?;
    let capsule = object.call_method(intern!(py, "__dlpack__"), (), Some(&arguments))?;
    // SAFETY: checks that it is a capsule of this name, and gives null with an exception otherwise.
    let tensor = unsafe { ffi::PyCapsule_GetPointer(capsule.as_ptr(), NAME) }.cast::<DlTensor>();
    if tensor.is_null() {
        return Err(PyErr::fetch(py));
    }
    // SAFETY: a capsule of this name holds a DLManagedTensor, which begins with the tensor, for as long as the capsule lives.
    let tensor = unsafe { &*tensor };
    let ndim = usize::try_from(tensor.ndim).map_err(|_| PyValueError::new_err("a tensor of negative dimensions"))?;
    let list = |ptr: *const i64| match ptr.is_null() || ndim == 0 {
        true => None,
        // SAFETY: both lists have `ndim` numbers (dlpack.h).
        false => Some(unsafe { std::slice::from_raw_parts(ptr, ndim) }.to_vec()),
    };
    let (shape, strides) = (list(tensor.shape).unwrap_or_default(), list(tensor.strides));
    let item_bytes = i64::from(tensor.bits) * i64::from(tensor.lanes) / 8;
    // DLPack counts strides in items, the other interface in bytes.
    let len = length(&shape, strides.as_deref(), item_bytes, item_bytes)?;
    let address = tensor.data as u64 + tensor.byte_offset;
    // The capsule was not taken over, so dropping it gives the memory back.
    Ok(Memory { ordinal: Some(ordinal), stream: Some(1), ..Memory::block(address, len, capsule.unbind()) })
}

/// Bytes of an array that is one block, in C order. `unit` is what strides are counted in.
fn length(shape: &[i64], strides: Option<&[i64]>, item_bytes: i64, unit: i64) -> PyResult<usize> {
    let items: i64 = shape.iter().product();
    if let Some(strides) = strides.filter(|_| items > 0) {
        let mut expected = item_bytes;
        for (size, stride) in shape.iter().zip(strides).rev() {
            if *size > 1 && stride * unit != expected {
                return Err(not_one_block());
            }
            expected *= size;
        }
    }
    usize::try_from(items * item_bytes).map_err(|_| PyValueError::new_err("an array of negative size"))
}

fn not_one_block() -> PyErr {
    PyValueError::new_err("the memory on the GPU is not one block; make the tensor contiguous first")
}
