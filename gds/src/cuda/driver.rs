//! libcuda's functions, loaded by name. Signatures are those of cuda.h (CUDA 12.8); codes stay integers.
//!
//! Why not a crate of bindings: `cudarc` panics on a missing symbol, takes codes as Rust enums (undefined behaviour with a newer
//! driver's codes), and loads one library a process, by its usual names, where the tests need several by path. It is what the declarations
//! are compared with, below: its own were made from NVIDIA's header.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libloading::Library;

use crate::error::{GdsError, Result};

pub(super) type DevicePtr = u64;
/// CUcontext, CUstream and CUevent are pointers to what only the driver knows.
pub(super) type Handle = *mut c_void;

pub(super) const SUCCESS: i32 = 0;
/// CUDA_ERROR_NO_DEVICE
const NO_DEVICE: i32 = 100;
/// CUDA_ERROR_NOT_READY: an event has not happened.
pub(super) const NOT_READY: i32 = 600;
/// CUDA_ERROR_NOT_SUPPORTED
pub(super) const NOT_SUPPORTED: i32 = 801;

/// CU_STREAM_NON_BLOCKING: not ordered with the default stream.
pub(super) const STREAM_NON_BLOCKING: c_uint = 1;
/// CU_EVENT_DISABLE_TIMING
pub(super) const EVENT_DISABLE_TIMING: c_uint = 2;
/// CU_MEMHOSTREGISTER_PORTABLE: pinned for every context.
pub(super) const HOST_REGISTER_PORTABLE: c_uint = 1;
/// CU_MEMHOSTALLOC_PORTABLE
pub(super) const HOST_ALLOC_PORTABLE: c_uint = 1;
/// CU_MEMHOSTALLOC_WRITECOMBINED
pub(super) const HOST_ALLOC_WRITE_COMBINED: c_uint = 4;
/// CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID
pub(super) const ATTRIBUTE_HOST_NUMA_ID: c_int = 134;
/// CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_SUPPORTED
pub(super) const ATTRIBUTE_RDMA: c_int = 116;

/// CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
const POINTER_DEVICE_ORDINAL: c_int = 9;

/// CUmemLocation: a hint, of which none is given.
#[repr(C)]
#[derive(Default, Clone, Copy)]
pub(super) struct MemLocation {
    kind: c_int,
    id: c_int,
}

/// CUmemcpyAttributes.
#[repr(C)]
#[derive(Default, Clone, Copy)]
pub(super) struct MemcpyAttributes {
    /// CU_MEMCPY_SRC_ACCESS_ORDER_STREAM is 1: the source is read in the stream's order.
    src_access_order: c_int,
    src_hint: MemLocation,
    dst_hint: MemLocation,
    flags: c_uint,
}

impl MemcpyAttributes {
    /// In the stream's order, without hints.
    pub(super) fn in_order() -> Self {
        Self { src_access_order: 1, ..Self::default() }
    }
}

const _: () = assert!(size_of::<MemcpyAttributes>() == 24);

macro_rules! driver {
    (required { $($field:ident = $symbol:ident ($($arg:ty),*);)* } optional { $($opt:ident = $opt_symbol:ident ($($opt_arg:ty),*);)* }) => {
        /// See the module.
        pub struct Driver {
            $(pub(super) $field: unsafe extern "C" fn($($arg),*) -> c_int,)*
            $(pub(super) $opt: Option<unsafe extern "C" fn($($opt_arg),*) -> c_int>,)*
            library: PathBuf,
            /// Never closed: the driver's threads live as long as the process.
            _library: std::mem::ManuallyDrop<Library>,
        }

        impl Driver {
            fn resolve(path: PathBuf, library: Library) -> Result<Self> {
                // SAFETY: the signatures are those of cuda.h; the pointers stay valid because the library is never closed.
                unsafe {
                    Ok(Self {
                        $($field: *library.get::<unsafe extern "C" fn($($arg),*) -> c_int>(concat!(stringify!($symbol), "\0").as_bytes()).map_err(|_| GdsError::NoSymbol {
                            library: path.display().to_string(),
                            symbol: stringify!($symbol),
                        })?,)*
                        $($opt: library
                            .get::<unsafe extern "C" fn($($opt_arg),*) -> c_int>(concat!(stringify!($opt_symbol), "\0").as_bytes())
                            .ok()
                            .map(|found| *found),)*
                        library: path,
                        _library: std::mem::ManuallyDrop::new(library),
                    })
                }
            }
        }

        /// What an argument is in each of this table's functions, and what it is in NVIDIA's header.
        #[cfg(test)]
        fn compared() -> Vec<(&'static str, Vec<usize>, Vec<usize>)> {
            use tests::Sizes as _;
            vec![
                $((stringify!($symbol), <unsafe fn($($arg),*) -> c_int>::sizes(), {
                    let theirs: unsafe fn($(tests::any!($arg)),*) -> _ = cudarc::driver::sys::$symbol;
                    tests::sizes_of(theirs)
                }),)*
                $((stringify!($opt_symbol), <unsafe fn($($opt_arg),*) -> c_int>::sizes(), {
                    let theirs: unsafe fn($(tests::any!($opt_arg)),*) -> _ = cudarc::driver::sys::$opt_symbol;
                    tests::sizes_of(theirs)
                }),)*
            ]
        }
    };
}

driver! {
    required {
        init = cuInit (c_uint);
        driver_get_version = cuDriverGetVersion (*mut c_int);
        get_error_name = cuGetErrorName (c_int, *mut *const c_char);
        device_get_count = cuDeviceGetCount (*mut c_int);
        device_get = cuDeviceGet (*mut c_int, c_int);
        device_get_name = cuDeviceGetName (*mut c_char, c_int, c_int);
        device_get_attribute = cuDeviceGetAttribute (*mut c_int, c_int, c_int);
        device_total_mem = cuDeviceTotalMem_v2 (*mut usize, c_int);
        device_get_pci_bus_id = cuDeviceGetPCIBusId (*mut c_char, c_int, c_int);
        primary_ctx_retain = cuDevicePrimaryCtxRetain (*mut Handle, c_int);
        primary_ctx_release = cuDevicePrimaryCtxRelease_v2 (c_int);
        ctx_set_current = cuCtxSetCurrent (Handle);
        ctx_push_current = cuCtxPushCurrent_v2 (Handle);
        ctx_pop_current = cuCtxPopCurrent_v2 (*mut Handle);
        mem_alloc = cuMemAlloc_v2 (*mut DevicePtr, usize);
        mem_free = cuMemFree_v2 (DevicePtr);
        mem_host_alloc = cuMemHostAlloc (*mut *mut c_void, usize, c_uint);
        mem_free_host = cuMemFreeHost (*mut c_void);
        mem_host_register = cuMemHostRegister_v2 (*mut c_void, usize, c_uint);
        mem_host_unregister = cuMemHostUnregister (*mut c_void);
        memcpy_htod = cuMemcpyHtoD_v2 (DevicePtr, *const c_void, usize);
        memcpy_dtoh = cuMemcpyDtoH_v2 (*mut c_void, DevicePtr, usize);
        memcpy_htod_async = cuMemcpyHtoDAsync_v2 (DevicePtr, *const c_void, usize, Handle);
        memcpy_dtoh_async = cuMemcpyDtoHAsync_v2 (*mut c_void, DevicePtr, usize, Handle);
        stream_create = cuStreamCreate (*mut Handle, c_uint);
        stream_destroy = cuStreamDestroy_v2 (Handle);
        stream_synchronize = cuStreamSynchronize (Handle);
        event_create = cuEventCreate (*mut Handle, c_uint);
        event_destroy = cuEventDestroy_v2 (Handle);
        event_record = cuEventRecord (Handle, Handle);
        event_query = cuEventQuery (Handle);
        pointer_get_attribute = cuPointerGetAttribute (*mut c_void, c_int, DevicePtr);
    }
    optional {
        // CUDA 12.8. Newer drivers keep this one beside `_v2`.
        memcpy_batch_async = cuMemcpyBatchAsync
            (*mut DevicePtr, *mut DevicePtr, *mut usize, usize, *mut MemcpyAttributes, *mut usize, usize, *mut usize, Handle);
    }
}

impl Driver {
    /// Loads and initialises the driver: from this path, or by the usual names.
    ///
    /// # Errors
    /// [`GdsError::NoLibrary`], [`GdsError::NoSymbol`], and [`GdsError::Cuda`] where there is no GPU or no kernel driver.
    pub fn load(path: Option<&Path>) -> Result<Arc<Self>> {
        let names = path.map_or_else(|| vec!["libcuda.so.1".into(), "libcuda.so".into()], |path| vec![path.to_owned()]);
        let (path, library) = open_library(&names, "install the NVIDIA driver, or run where there is one")?;
        let driver = Self::resolve(path, library)?;
        // SAFETY: the first call of the library, as it asks for.
        let code = unsafe { (driver.init)(0) };
        driver.check("cuInit", code)?;
        Ok(Arc::new(driver))
    }

    /// Where the library was found.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// As CUDA counts: 12080 is 12.8.
    pub fn version(&self) -> i32 {
        let mut version = 0;
        // SAFETY: writes one integer.
        let code = unsafe { (self.driver_get_version)(&mut version) };
        if code == SUCCESS { version } else { 0 }
    }

    /// GPUs that this process may use.
    ///
    /// # Errors
    /// [`GdsError::Cuda`].
    pub fn device_count(&self) -> Result<u32> {
        let mut count = 0;
        // SAFETY: writes one integer.
        match unsafe { (self.device_get_count)(&mut count) } {
            NO_DEVICE => Ok(0),
            code => self.check("cuDeviceGetCount", code).map(|()| count.max(0) as u32),
        }
    }

    /// The GPU that an address belongs to.
    ///
    /// # Errors
    /// [`GdsError::Cuda`] where it is no address of CUDA's.
    pub fn device_of(&self, address: u64) -> Result<u32> {
        let mut ordinal: c_int = 0;
        // SAFETY: the attribute is one integer; any number may be asked about.
        let code = unsafe { (self.pointer_get_attribute)((&raw mut ordinal).cast(), POINTER_DEVICE_ORDINAL, address) };
        self.check("cuPointerGetAttribute", code).map(|()| ordinal.max(0) as u32)
    }

    /// Makes an error of every code but success.
    pub(super) fn check(&self, call: &'static str, code: c_int) -> Result<()> {
        if code == SUCCESS {
            return Ok(());
        }
        let mut name = std::ptr::null();
        // SAFETY: writes one pointer, to a constant string or null.
        let known = unsafe { (self.get_error_name)(code, &mut name) } == SUCCESS && !name.is_null();
        if !known {
            return Err(GdsError::Cuda { call, code, name: "unknown".to_owned() });
        }
        // SAFETY: the driver's names are constant strings.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
        Err(GdsError::Cuda { call, code, name })
    }
}

/// Loads the first of these libraries that can be loaded.
pub(crate) fn open_library(names: &[PathBuf], remedy: &'static str) -> Result<(PathBuf, Library)> {
    let mut reason = String::new();
    for name in names {
        // SAFETY: loading runs the library's initialisers; those of NVIDIA's libraries only set up their own state.
        match unsafe { Library::new(name) } {
            Ok(library) => return Ok((name.clone(), library)),
            Err(error) => reason = error.to_string(),
        }
    }
    let library = names.first().map_or_else(String::new, |name| name.display().to_string());
    Err(GdsError::NoLibrary { library, reason, remedy })
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use cudarc::driver::sys;

    use super::*;

    /// Any type.
    macro_rules! any {
        ($type:ty) => {
            _
        };
    }
    pub(super) use any;

    /// Bytes of each argument, and of the result.
    pub(super) trait Sizes {
        fn sizes() -> Vec<usize>;
    }

    macro_rules! sizes {
        ($($arg:ident)*) => {
            impl<R, $($arg),*> Sizes for unsafe fn($($arg),*) -> R {
                fn sizes() -> Vec<usize> {
                    vec![$(size_of::<$arg>(),)* size_of::<R>()]
                }
            }
        };
    }
    sizes!(A);
    sizes!(A B);
    sizes!(A B C);
    sizes!(A B C D);
    sizes!(A B C D E F G H I);

    pub(super) fn sizes_of<F: Sizes>(_: F) -> Vec<usize> {
        F::sizes()
    }

    #[test]
    fn every_declaration_is_that_of_nvidias_header() {
        let compared = compared();
        assert!(compared.len() > 25);
        for (symbol, ours, theirs) in compared {
            assert_eq!(ours, theirs, "{symbol}");
        }
        assert_eq!(size_of::<MemcpyAttributes>(), size_of::<sys::CUmemcpyAttributes>());
        let ours = [
            offset_of!(MemcpyAttributes, src_access_order),
            offset_of!(MemcpyAttributes, src_hint),
            offset_of!(MemcpyAttributes, dst_hint),
            offset_of!(MemcpyAttributes, flags),
        ];
        let theirs = [
            offset_of!(sys::CUmemcpyAttributes, srcAccessOrder),
            offset_of!(sys::CUmemcpyAttributes, srcLocHint),
            offset_of!(sys::CUmemcpyAttributes, dstLocHint),
            offset_of!(sys::CUmemcpyAttributes, flags),
        ];
        assert_eq!(ours, theirs);
    }

    #[test]
    fn every_constant_is_that_of_nvidias_header() {
        let codes = [(SUCCESS, sys::CUresult::CUDA_SUCCESS), (NO_DEVICE, sys::CUresult::CUDA_ERROR_NO_DEVICE)];
        let more = [
            (NOT_READY, sys::CUresult::CUDA_ERROR_NOT_READY),
            (NOT_SUPPORTED, sys::CUresult::CUDA_ERROR_NOT_SUPPORTED),
        ];
        assert!(codes.into_iter().chain(more).all(|(ours, theirs)| ours == theirs as i32));
        assert_eq!(STREAM_NON_BLOCKING, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32);
        assert_eq!(EVENT_DISABLE_TIMING, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32);
        assert_eq!(HOST_REGISTER_PORTABLE, sys::CU_MEMHOSTREGISTER_PORTABLE);
        assert_eq!(HOST_ALLOC_PORTABLE, sys::CU_MEMHOSTALLOC_PORTABLE);
        assert_eq!(HOST_ALLOC_WRITE_COMBINED, sys::CU_MEMHOSTALLOC_WRITECOMBINED);
        use sys::CUdevice_attribute as attribute;
        assert_eq!(ATTRIBUTE_HOST_NUMA_ID, attribute::CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID as i32);
        assert_eq!(ATTRIBUTE_RDMA, attribute::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_SUPPORTED as i32);
        let ordinal = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL;
        assert_eq!(POINTER_DEVICE_ORDINAL, ordinal as i32);
        let in_order = sys::CUmemcpySrcAccessOrder::CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
        assert_eq!(MemcpyAttributes::in_order().src_access_order, in_order as i32);
    }
}
