//! What Python hands in, and holds, of memory that is more than one block, or is to be known for longer than one call.

use parking_lot::Mutex;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use saltern::device::DeviceRange;
use saltern_gds::DeviceSlab;

use crate::gpu::{Memory, describe};

/// The memory of one object on a GPU: pages that it is gathered from and scattered to, in this order.
///
/// Args:
///     pages: For each page its address and length in bytes, or an object in a GPU's memory (a contiguous torch tensor, or one with
///         ``__cuda_array_interface__`` or DLPack).
///     device: The GPU's number. By default that of the pages which are objects; else the driver is asked.
///     stream: The CUDA stream whose work the copies wait for, as a number (``torch.cuda.current_stream().cuda_stream``). By default
///         that of the pages which are objects; addresses alone wait for nothing.
///     owner: Kept for as long as the engine may touch the pages. Objects among the pages are kept anyway; who gives addresses alone,
///         and no owner, has to keep the memory until the call has returned.
///
/// Raises:
///     ValueError: There are none, they overlap, or objects among them are on several GPUs, or on several streams without that one
///         is named.
///
/// An address that is not the GPU's fails the object, or the process, as it does in CUDA.
#[pyclass(frozen, module = "saltern._saltern")]
pub(crate) struct Pages {
    ranges: Vec<DeviceRange>,
    ordinal: Option<u32>,
    stream: Option<u64>,
    read_only: bool,
    owners: Vec<Py<PyAny>>,
}

#[pymethods]
impl Pages {
    #[new]
    #[pyo3(signature = (pages, *, device=None, stream=None, owner=None))]
    fn new(
        pages: &Bound<'_, PyAny>,
        device: Option<u32>,
        stream: Option<u64>,
        owner: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let owners = owner.into_iter().collect();
        let mut all = Self { ranges: Vec::new(), ordinal: device, stream, read_only: false, owners };
        for (number, page) in pages.try_iter()?.enumerate() {
            all.add(number, &page?, stream.is_some())?;
        }
        if all.ranges.is_empty() {
            return Err(PyValueError::new_err("an object has at least one page"));
        }
        all.check()?;
        Ok(all)
    }

    /// Bytes of all of them.
    #[getter]
    fn nbytes(&self) -> usize {
        self.ranges.iter().map(|range| range.len).sum()
    }

    fn __len__(&self) -> usize {
        self.ranges.len()
    }
}

impl Pages {
    /// As a call of the engine's takes it.
    pub(crate) fn memory(this: &Bound<'_, Self>) -> Memory {
        let Self { ranges, ordinal, stream, read_only, .. } = this.get();
        let owners = vec![this.clone().into_any().unbind()];
        Memory { ranges: ranges.clone(), ordinal: *ordinal, stream: *stream, read_only: *read_only, owners }
    }

    /// A page: an address and a length, or an object in a GPU's memory.
    fn add(&mut self, number: usize, page: &Bound<'_, PyAny>, stream_is_given: bool) -> PyResult<()> {
        let refuse = |why: &str| Err(PyValueError::new_err(format!("page {number}: {why}")));
        if let Ok((address, len)) = page.extract::<(u64, usize)>() {
            self.ranges.push(DeviceRange { address, len });
            return Ok(());
        }
        let Some(memory) = describe(page)? else {
            return refuse("neither (address, length) nor an object in a GPU's memory");
        };
        let Memory { ranges, ordinal, stream, read_only, owners } = memory;
        if self.ordinal.is_some() && ordinal.is_some() && self.ordinal != ordinal {
            return refuse("it is on another GPU than those before it");
        }
        if !stream_is_given && self.stream.is_some() && stream.is_some() && self.stream != stream {
            return refuse("its stream is another than those before it have; name one that has waited for all of them");
        }
        self.ordinal = self.ordinal.or(ordinal);
        self.stream = self.stream.or(stream);
        self.read_only |= read_only;
        self.ranges.extend(ranges);
        self.owners.extend(owners);
        Ok(())
    }

    /// What no GPU has, and what would make a load depend on the order of copies.
    fn check(&self) -> PyResult<()> {
        let mut sorted = self.ranges.clone();
        sorted.sort_unstable_by_key(|range| range.address);
        let ends: Option<Vec<u64>> =
            sorted.iter().map(|range| range.address.checked_add(range.len as u64).filter(|_| range.len > 0)).collect();
        let ends = ends.ok_or_else(|| PyValueError::new_err("a page is empty, or goes past the last address"))?;
        if ends.iter().zip(&sorted[1..]).any(|(end, next)| *end > next.address) {
            return Err(PyValueError::new_err("pages overlap"));
        }
        Ok(())
    }
}

/// Memory that is known to whoever moves its bytes: a block of a GPU's to cuFile, or the host's to io_uring. ``Engine.register``
/// makes them. Closing gives a GPU's memory back when the last transfer in it has ended; the host's stays until the engine is closed.
#[pyclass(frozen, module = "saltern._saltern")]
pub(crate) struct Registered {
    bytes: usize,
    /// `None`: of the host's, or given back.
    slab: Mutex<Option<DeviceSlab>>,
    is_host: bool,
}

impl Registered {
    pub(crate) fn on_gpu(bytes: usize, slab: DeviceSlab) -> Self {
        Self { bytes, slab: Mutex::new(Some(slab)), is_host: false }
    }

    pub(crate) fn on_host(bytes: usize) -> Self {
        Self { bytes, slab: Mutex::new(None), is_host: true }
    }
}

#[pymethods]
impl Registered {
    /// Bytes of it.
    #[getter]
    fn nbytes(&self) -> usize {
        self.bytes
    }

    #[getter]
    fn is_registered(&self) -> bool {
        self.is_host || self.slab.lock().as_ref().is_some_and(DeviceSlab::is_registered)
    }

    /// Why it is not registered.
    #[getter]
    fn why_not(&self) -> Option<String> {
        match &*self.slab.lock() {
            _ if self.is_host => None,
            Some(slab) => slab.why_not(),
            None => Some("it was given back".to_owned()),
        }
    }

    fn close(&self, py: Python<'_>) {
        // Unmapping takes a call of the driver's.
        py.detach(|| drop(self.slab.lock().take()));
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyAny>) {
        self.close(py);
    }
}
