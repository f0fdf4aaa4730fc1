//! A GPU, as the engine's device.

use std::ffi::{CStr, c_char};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use saltern::Pool;
use saltern::device::{
    CopyEngine, Device, DeviceBuffer, DeviceError, DeviceId, DeviceRange, Fence, Registration, Route, RouteChoice,
};
use serde::Serialize;

use super::copier::CudaCopier;
use super::driver::{ATTRIBUTE_HOST_NUMA_ID, ATTRIBUTE_RDMA, Driver, HOST_REGISTER_PORTABLE, Handle};
use super::slice::DeviceSlice;
use super::stream::CudaFence;
use crate::cufile::{CuFile, FileIo, Mode, OPEN_DEADLINE, ProbeReport, Prober, Slab, Slabs};
use crate::error::{GdsError, Result};
use crate::machine::{Machine, P2PDMA};

/// Where the libraries are, and how cuFile is probed. The defaults are right where CUDA is installed in the usual way.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CudaOptions {
    /// libcuda; else by its usual names.
    pub libcuda: Option<PathBuf>,
    /// libcufile; else by its usual names.
    pub libcufile: Option<PathBuf>,
    /// A program that runs [`crate::helper_main`] when it is called with [`crate::HELPER_SUBCOMMAND`]: the command line
    /// `saltern`. Without one cuFile is not probed, and so not used: opening its driver may never return, and only another
    /// process can be given up.
    pub helper: Option<PathBuf>,
    /// How long a batch of direct transfers may go on without that one of them ends. Then it is cancelled, and what does not end even so
    /// is given up: its objects fail, and their memory and files are never used again. 20 s where it is not told.
    pub batch_deadline: Option<Duration>,
    /// How long opening cuFile's driver may take in this process, after the probe in another one. Then cuFile is not used in this
    /// process, in which the call goes on for as long as it will. 10 s where it is not told.
    pub open_deadline: Option<Duration>,
    /// What the kernel shows of itself; tests have their own.
    #[doc(hidden)]
    pub machine: Machine,
}

impl CudaOptions {
    /// As the environment says: `SALTERN_LIBCUDA`, `SALTERN_LIBCUFILE` and `SALTERN_GDS_HELPER` are paths.
    pub fn from_env() -> Self {
        let path = |name| std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
        Self {
            libcuda: path("SALTERN_LIBCUDA"),
            libcufile: path("SALTERN_LIBCUFILE"),
            helper: path("SALTERN_GDS_HELPER"),
            ..Self::default()
        }
    }
}

/// What a GPU says of itself.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct GpuInfo {
    /// Its number, as CUDA counts.
    pub ordinal: u32,
    /// Its name.
    pub name: String,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// Domain, bus, device and function.
    pub pci: String,
    /// The host's NUMA node next to it; -1 where unknown.
    pub numa_node: i32,
    /// Whether other devices may address its memory (GPUDirect RDMA).
    pub rdma: bool,
}

/// A GPU with its primary context retained.
pub(crate) struct Gpu {
    pub(super) driver: Arc<Driver>,
    pub(super) context: Handle,
    device: i32,
    id: DeviceId,
    info: GpuInfo,
    options: CudaOptions,
    /// Set when a probe has shown that cuFile is direct.
    cufile: parking_lot::Mutex<Option<Arc<CuFile>>>,
    /// Memory that cuFile is told of as soon as it is open.
    pub(super) slabs: Arc<Slabs>,
}

// SAFETY: a context may be made current on any thread; the driver's functions are thread-safe.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// Makes the context current on this thread, for good: for threads that are the engine's, or this crate's.
    pub(crate) fn bind(&self) -> Result<()> {
        // SAFETY: the context is retained for as long as `self` lives.
        let code = unsafe { (self.driver.ctx_set_current)(self.context) };
        self.driver.check("cuCtxSetCurrent", code)
    }

    /// Makes the context current on this thread until the guard is dropped. On a caller's thread another one may be current, which
    /// has to be so again afterwards: it is what PyTorch, and the CUDA runtime, take for the chosen GPU.
    pub(crate) fn enter(&self) -> Result<Entered<'_>> {
        // SAFETY: as in `bind`; popped when the guard is dropped.
        let code = unsafe { (self.driver.ctx_push_current)(self.context) };
        self.driver.check("cuCtxPushCurrent", code)?;
        Ok(Entered { gpu: self, _stays: PhantomData })
    }
}

/// A context that is current on this thread while this lives.
#[must_use = "it is not current any more when this is dropped"]
pub(crate) struct Entered<'a> {
    gpu: &'a Gpu,
    /// It is popped on the thread that it was pushed on.
    _stays: PhantomData<*const ()>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut popped = std::ptr::null_mut();
        // SAFETY: writes one handle; what was pushed in `enter` is on top, since guards of a thread end in reverse order.
        let code = unsafe { (self.gpu.driver.ctx_pop_current)(&mut popped) };
        if let Err(error) = self.gpu.driver.check("cuCtxPopCurrent", code) {
            tracing::error!(%error, "the GPU's context stays current on this thread");
        }
    }
}

impl Gpu {
    pub(super) fn batch_deadline(&self) -> Option<Duration> {
        self.options.batch_deadline
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: balances the retain in `open`; memory, streams and events of the context hold `self`, so none is left.
        unsafe { (self.driver.primary_ctx_release)(self.device) };
    }
}

/// A GPU. Clones are the same device. Thread-safe.
#[derive(Clone)]
pub struct CudaDevice(pub(super) Arc<Gpu>);

impl CudaDevice {
    /// Opens GPU `ordinal` of this process. Takes its primary context, which CUDA programs in this process (PyTorch) share.
    ///
    /// # Errors
    /// [`GdsError`] says what is missing. Never panics where there is no CUDA.
    pub fn open(ordinal: u32, options: CudaOptions) -> Result<Self> {
        let driver = Driver::load(options.libcuda.as_deref())?;
        Self::with_driver(driver, ordinal, options)
    }

    /// As [`CudaDevice::open`], with a driver that is loaded.
    ///
    /// # Errors
    /// As [`CudaDevice::open`].
    pub fn with_driver(driver: Arc<Driver>, ordinal: u32, options: CudaOptions) -> Result<Self> {
        let (device, info) = describe(&driver, ordinal)?;
        let mut context = std::ptr::null_mut();
        // SAFETY: writes one handle; balanced in `Gpu::drop`.
        let code = unsafe { (driver.primary_ctx_retain)(&mut context, device) };
        driver.check("cuDevicePrimaryCtxRetain", code)?;
        let (id, cufile, slabs) = (DeviceId::new(), parking_lot::Mutex::default(), Arc::default());
        let gpu = Gpu { driver, context, device, id, info, options, cufile, slabs };
        // Whether it can be used at all.
        drop(gpu.enter()?);
        Ok(Self(Arc::new(gpu)))
    }

    /// What a GPU says of itself, without taking its context.
    ///
    /// # Errors
    /// [`GdsError::NoDevice`], [`GdsError::Cuda`].
    pub fn info_of(driver: &Driver, ordinal: u32) -> Result<GpuInfo> {
        Ok(describe(driver, ordinal)?.1)
    }

    /// What it says of itself.
    pub fn info(&self) -> &GpuInfo {
        &self.0.info
    }

    /// The driver.
    pub fn driver(&self) -> &Arc<Driver> {
        &self.0.driver
    }

    /// Memory of this GPU.
    ///
    /// # Errors
    /// [`GdsError::Cuda`], out of memory among them.
    pub fn alloc(&self, len: usize) -> Result<DeviceSlice> {
        DeviceSlice::alloc(self.0.clone(), len)
    }

    /// A fence at this point of a stream (a CUstream as a number; 0 is the default stream): the engine touches a buffer made with it
    /// only when all work that is queued there now is done. Answers of the engine need none: what is launched after them, on any
    /// stream, sees the bytes.
    ///
    /// # Safety
    /// `stream` is a stream of this GPU's primary context.
    ///
    /// # Errors
    /// [`GdsError::Cuda`].
    pub unsafe fn fence(&self, stream: u64) -> Result<Fence> {
        let _current = self.0.enter()?;
        // SAFETY: the caller's promise.
        Ok(Arc::new(unsafe { CudaFence::record(self.0.clone(), stream as usize as Handle)? }))
    }

    /// Memory of this GPU that somebody else allocated, as the memory of one object.
    ///
    /// # Safety
    /// As [`DeviceBuffer::new`].
    pub unsafe fn lend(
        &self,
        ranges: Vec<DeviceRange>,
        after: Option<Fence>,
        keepalive: Option<saltern::Keepalive>,
    ) -> DeviceBuffer {
        // SAFETY: the caller's promise.
        unsafe { DeviceBuffer::new(self.0.id, ranges, after, keepalive) }
    }

    /// Makes memory known to cuFile once, and not for each transfer: the one block, or the few, that a cache's objects have their
    /// places in. cuFile maps it for the drive; what is not in such a block goes through a bounce buffer of its own on the GPU.
    /// Registered as soon as cuFile is open, which it is where a probe has shown that it is direct, and until the slab and the last
    /// transfer that uses it are gone. Memory that cannot be mapped (more than the GPU's BAR has, for example) is no error: see
    /// [`DeviceSlab::why_not`].
    pub fn slab(&self, memory: &DeviceSlice) -> DeviceSlab {
        let range = DeviceRange { address: memory.address(), len: memory.len() };
        // SAFETY: the memory is kept by the slab.
        unsafe { self.lend_slab(range, Some(memory.keepalive())) }
    }

    /// As [`CudaDevice::slab`], of memory that somebody else allocated.
    ///
    /// # Safety
    /// The range is memory of this GPU, and stays allocated for as long as the slab, or `keepalive`, lives.
    pub unsafe fn lend_slab(&self, range: DeviceRange, keepalive: Option<saltern::Keepalive>) -> DeviceSlab {
        // Held while it is added, so that an opening of cuFile beside this misses none.
        let cufile = self.0.cufile.lock();
        let slab = self.0.slabs.add(range, keepalive);
        if let Some(cufile) = &*cufile
            && let Ok(_current) = self.0.enter()
        {
            slab.register(&(cufile.clone() as Arc<dyn FileIo>));
        }
        DeviceSlab { slab: Some(slab), gpu: self.0.clone() }
    }

    /// Looks whether cuFile is direct for files of this directory.
    pub(crate) fn prober(&self) -> Prober {
        Prober {
            libcuda: self.0.options.libcuda.clone(),
            libcufile: self.0.options.libcufile.clone(),
            helper: self.0.options.helper.clone(),
            ordinal: self.0.info.ordinal,
            machine: self.0.options.machine.clone(),
            ..Prober::default()
        }
    }

    /// Makes this GPU's context current on the calling thread, for calls of cuFile.
    ///
    /// # Errors
    /// [`GdsError::Cuda`].
    pub fn bind_thread(&self) -> Result<()> {
        self.0.bind()
    }

    /// cuFile in its compatibility mode, where it copies through its own host memory: to be compared with. Not direct, and not
    /// to be called GDS. A process has one mode, which is the driver's. Blocks for [`CudaOptions::open_deadline`] at most.
    ///
    /// # Errors
    /// [`GdsError::NoCuFile`] where opening the driver would never return, or has not returned by the deadline, and what the library says.
    pub fn compatibility_io(&self) -> Result<Arc<dyn FileIo>> {
        let prober = self.prober();
        if !prober.machine.has_modules() {
            return Err(GdsError::NoCuFile(prober.state().why_not.unwrap_or_default()));
        }
        Ok(self.shared_cufile(Mode::Compatibility)?)
    }

    fn shared_cufile(&self, mode: Mode) -> Result<Arc<CuFile>> {
        let options = &self.0.options;
        CuFile::shared(&self.0, options.libcufile.as_deref(), mode, options.open_deadline.unwrap_or(OPEN_DEADLINE))
    }

    fn open_cufile(&self, report: &ProbeReport) -> Result<()> {
        let mut cufile = self.0.cufile.lock();
        if cufile.is_none() {
            let mode = Mode::Direct { by_p2pdma: report.by == P2PDMA, in_batches: report.no_batches.is_none() };
            let opened = self.shared_cufile(mode)?;
            let _current = self.0.enter()?;
            self.0.slabs.register_all(&(opened.clone() as Arc<dyn FileIo>));
            *cufile = Some(opened);
        }
        Ok(())
    }
}

impl Device for CudaDevice {
    fn id(&self) -> DeviceId {
        self.0.id
    }

    fn name(&self) -> String {
        format!("GPU {} ({}, {})", self.0.info.ordinal, self.0.info.name, self.0.info.pci)
    }

    fn host_node(&self) -> Option<u32> {
        let GpuInfo { pci, numa_node, .. } = &self.0.info;
        let node = self.0.options.machine.pci_node(pci).unwrap_or(*numa_node);
        u32::try_from(node).ok()
    }

    fn register(&self, pool: &Pool) -> Result<Registration, DeviceError> {
        let _current = self.0.enter()?;
        let (ptr, len) = pool.span();
        // SAFETY: the pool is mapped for as long as the clone in the registration lives, which unregisters first.
        let code = unsafe { (self.0.driver.mem_host_register)(ptr.cast(), len, HOST_REGISTER_PORTABLE) };
        self.0.driver.check("cuMemHostRegister", code)?;
        Ok(Box::new(Registered { gpu: self.0.clone(), pool: pool.clone() }))
    }

    fn route(&self, dir: &Path, choice: RouteChoice) -> Result<Route, DeviceError> {
        if choice == RouteChoice::Pipeline {
            return Ok(Route::Pipeline { why: "it was asked for".to_owned() });
        }
        let direct = self.prober().probe(dir).and_then(|report| {
            self.open_cufile(&report)?;
            let how = report.no_batches.map_or_else(|| "in batches".to_owned(), |why| format!("call by call: {why}"));
            Ok(format!("cuFile {} over {}, {how}", report.version, report.by))
        });
        match (direct, choice) {
            (Ok(by), _) => Ok(Route::Direct { by }),
            (Err(error), RouteChoice::Direct) => Err(error.into()),
            (Err(error), _) => Ok(Route::Pipeline { why: error.to_string() }),
        }
    }

    fn copier(&self) -> Result<Box<dyn CopyEngine>, DeviceError> {
        Ok(Box::new(CudaCopier::new(self.0.clone(), self.0.cufile.lock().clone())?))
    }
}

/// Memory of a GPU that cuFile knows as a whole: see [`CudaDevice::slab`].
pub struct DeviceSlab {
    slab: Option<Arc<Slab>>,
    gpu: Arc<Gpu>,
}

impl DeviceSlab {
    /// Whether cuFile has it registered.
    pub fn is_registered(&self) -> bool {
        self.slab.as_ref().is_some_and(|slab| slab.is_registered())
    }

    /// Why it is not registered; `None` where it is.
    pub fn why_not(&self) -> Option<String> {
        self.slab.as_ref().and_then(|slab| slab.why_not())
    }
}

impl Drop for DeviceSlab {
    fn drop(&mut self) {
        // cuFile wants the context where it unmaps; a context that cannot be had has nothing mapped any more.
        let _current = self.gpu.enter();
        self.slab = None;
    }
}

/// A pool that CUDA knows.
struct Registered {
    gpu: Arc<Gpu>,
    pool: Pool,
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Ok(_current) = self.gpu.enter() {
            // SAFETY: registered in `register`, and still mapped: `pool` is dropped after this.
            let code = unsafe { (self.gpu.driver.mem_host_unregister)(self.pool.span().0.cast()) };
            if let Err(error) = self.gpu.driver.check("cuMemHostUnregister", code) {
                tracing::error!(%error, "a pool stays registered");
            }
        }
    }
}

fn describe(driver: &Driver, ordinal: u32) -> Result<(i32, GpuInfo)> {
    let count = driver.device_count()?;
    if ordinal >= count {
        return Err(GdsError::NoDevice { ordinal, count });
    }
    let (mut device, mut memory) = (0, 0);
    // SAFETY: writes one integer.
    driver.check("cuDeviceGet", unsafe { (driver.device_get)(&mut device, ordinal as i32) })?;
    // SAFETY: writes one size.
    driver.check("cuDeviceTotalMem", unsafe { (driver.device_total_mem)(&mut memory, device) })?;
    let mut name: [c_char; 128] = [0; 128];
    // SAFETY: writes at most as many bytes as it is told.
    driver.check("cuDeviceGetName", unsafe { (driver.device_get_name)(name.as_mut_ptr(), 128, device) })?;
    let mut pci: [c_char; 32] = [0; 32];
    // SAFETY: as above.
    driver.check("cuDeviceGetPCIBusId", unsafe { (driver.device_get_pci_bus_id)(pci.as_mut_ptr(), 32, device) })?;
    let attribute = |attribute| {
        let mut value = 0;
        // SAFETY: writes one integer.
        let code = unsafe { (driver.device_get_attribute)(&mut value, attribute, device) };
        (code == super::driver::SUCCESS).then_some(value)
    };
    let info = GpuInfo {
        ordinal,
        name: text(&name),
        memory_bytes: memory as u64,
        pci: text(&pci).to_lowercase(),
        numa_node: attribute(ATTRIBUTE_HOST_NUMA_ID).unwrap_or(-1),
        rdma: attribute(ATTRIBUTE_RDMA).unwrap_or(0) != 0,
    };
    Ok((device, info))
}

/// A string that a function has written; its last byte was never given away.
fn text(buffer: &[c_char]) -> String {
    let bytes: Vec<u8> = buffer.iter().map(|byte| *byte as u8).chain([0]).collect();
    CStr::from_bytes_until_nul(&bytes).map_or_else(|_| String::new(), |text| text.to_string_lossy().into_owned())
}
