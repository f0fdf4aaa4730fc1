//! libcufile's functions, loaded by name. Signatures are those of cufile.h (CUDA 12.8); codes stay integers.

use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{RecvTimeoutError, bounded};
use libloading::Library;
use parking_lot::Mutex;
use saltern::device::{DeviceRange, Direction};

use super::batch::{Batch, CuBatch, Functions};
use crate::cuda::{Gpu, open_library};
use crate::error::{GdsError, Result};

/// CUfileError_t: both its parts are enums there.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Status {
    code: c_int,
    cuda: c_int,
}

impl Status {
    pub(super) fn check(self, call: &'static str) -> Result<()> {
        if self.code == 0 {
            return Ok(());
        }
        let mut meaning = meaning_of(self.code);
        if self.cuda != 0 {
            meaning.push_str(&format!(", CUDA error {}", self.cuda));
        }
        Err(GdsError::CuFile { call, code: self.code, meaning })
    }
}

/// CUfileDescr_t. The union of handles is a descriptor or a pointer.
#[repr(C)]
struct Descr {
    kind: c_int,
    /// The union is as aligned as a pointer.
    padding: c_int,
    fd: c_int,
    fd_rest: c_int,
    fs_ops: *const c_void,
}

const _: () = assert!(size_of::<Status>() == 8 && size_of::<Descr>() == 24 && std::mem::offset_of!(Descr, fd) == 8);

/// CU_FILE_HANDLE_TYPE_OPAQUE_FD
const HANDLE_TYPE_FD: c_int = 1;
/// CUFILE_PARAM_PROPERTIES_ALLOW_COMPAT_MODE
const PARAM_ALLOW_COMPAT: c_int = 1;
/// CUFILE_PARAM_FORCE_COMPAT_MODE
const PARAM_FORCE_COMPAT: c_int = 2;
/// CUFILE_PARAM_USE_PCIP2PDMA, which is off unless cufile.json says otherwise
const PARAM_P2PDMA: c_int = 7;

/// What registering a file gives where cuFile does not find out its file system (observed; the header calls them
/// CU_FILE_HANDLE_NOT_REGISTERED and CU_FILE_INTERNAL_ERROR).
const NO_FILE_SYSTEM: [c_int; 2] = [5027, 5030];

/// A file as cuFile knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileHandle(pub usize);

/// Memory of the GPU as cuFile is told of it: a block, an offset in it, and a length. Where the block is registered, nothing has to be
/// mapped for the transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceSpan {
    /// Address of the block.
    pub base: u64,
    /// From there, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub len: usize,
    /// Whether the block is registered: else it has no offset, and what goes on from the middle of it is a block by itself.
    pub is_registered: bool,
}

impl DeviceSpan {
    /// What is left of it from `at` on.
    ///
    /// # Panics
    /// When it is shorter than that.
    pub fn rest(self, at: usize) -> Self {
        let (len, at) = (self.len - at, at as u64);
        match self.is_registered {
            true => Self { offset: self.offset + at, len, ..self },
            false => Self { base: self.base + at, len, ..self },
        }
    }
}

impl From<DeviceRange> for DeviceSpan {
    /// A block by itself.
    fn from(range: DeviceRange) -> Self {
        Self { base: range.address, offset: 0, len: range.len, is_registered: false }
    }
}

/// What blocks: transfers between files and memory of the GPU, as cuFile does them. Thread-safe.
pub trait FileIo: Send + Sync {
    /// Makes a file known; it stays open until [`FileIo::close`].
    ///
    /// # Errors
    /// What the library says, among it that the file would not be direct.
    fn open(&self, fd: BorrowedFd<'_>) -> Result<FileHandle>;

    /// Forgets a file.
    fn close(&self, handle: FileHandle);

    /// Moves bytes between a file at this offset and memory of the GPU; blocks. Gives how many moved: all, or fewer.
    ///
    /// # Errors
    /// What the library says.
    fn transfer(&self, direction: Direction, handle: FileHandle, offset: u64, memory: DeviceSpan) -> Result<usize>;

    /// Makes a block of memory known, until [`FileIo::deregister`]. The GPU's context has to be current, for both.
    ///
    /// # Errors
    /// What the library says.
    fn register(&self, range: DeviceRange) -> Result<()>;

    /// Forgets a block of memory, by its address.
    fn deregister(&self, address: u64);

    /// A batch for at most so many transfers.
    ///
    /// # Errors
    /// Why there are none here; transfers go one by one then.
    fn batch(&self, most: usize) -> Result<Box<dyn Batch>>;
}

const OPEN_DIRECTLY: &str =
    "this process has cuFile open to be direct, and a process has one mode: compare in another one";
const OPEN_FOR_COMPARISON: &str = "this process has cuFile open in its compatibility mode, and a process has one mode";

/// The library, with its driver open.
pub(crate) struct CuFile {
    read: unsafe extern "C" fn(*mut c_void, *mut c_void, usize, i64, i64) -> isize,
    write: unsafe extern "C" fn(*mut c_void, *const c_void, usize, i64, i64) -> isize,
    register: unsafe extern "C" fn(*mut *mut c_void, *mut Descr) -> Status,
    deregister: unsafe extern "C" fn(*mut c_void),
    memory_register: unsafe extern "C" fn(*const c_void, usize, c_int) -> Status,
    memory_deregister: unsafe extern "C" fn(*const c_void) -> Status,
    batches: std::result::Result<Functions, &'static str>,
    /// Never closed: its driver's threads live as long as the process.
    _library: std::mem::ManuallyDrop<Library>,
}

/// Which of the two the library may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Directly, or not at all.
    Direct {
        /// By the kernel's P2PDMA, not by nvidia-fs.
        by_p2pdma: bool,
        /// Whether batches are known to come back.
        in_batches: bool,
    },
    /// Through the host's memory, by its own slabs: what it does where it is not direct. To be compared with, never to be called GDS.
    Compatibility,
}

/// The usual names; the wheel on PyPI has the first one only.
fn names(path: Option<&Path>) -> Vec<PathBuf> {
    path.map_or_else(|| vec!["libcufile.so.0".into(), "libcufile.so".into()], |path| vec![path.to_owned()])
}

fn load(path: Option<&Path>) -> Result<(PathBuf, Library)> {
    open_library(&names(path), "install libcufile (the package gds-tools or nvidia-cufile), or name its path")
}

/// The version of libcufile, without opening its driver: 1013 is 1.13. 0 where it does not tell.
///
/// # Errors
/// [`GdsError::NoLibrary`].
pub fn library_version(path: Option<&Path>) -> Result<i32> {
    let (_, library) = load(path)?;
    // Not closed again: the library is not made for that.
    Ok(version_of(&std::mem::ManuallyDrop::new(library)))
}

fn version_of(library: &Library) -> i32 {
    let mut version: c_int = 0;
    // SAFETY: the signature is cufile.h's; it writes one integer, and needs no driver.
    unsafe {
        let get = library.get::<unsafe extern "C" fn(*mut c_int) -> Status>(b"cuFileGetVersion\0");
        if let Ok(get) = get {
            get(&mut version);
        }
    }
    version
}

/// As people write it.
pub(crate) fn version_text(version: i32) -> String {
    if version == 0 { "(version unknown)".to_owned() } else { format!("{}.{}", version / 1000, version / 10 % 100) }
}

/// A library whose driver this process has open, and how; or the error where opening it has not come back.
struct Opened {
    path: Option<PathBuf>,
    mode: Mode,
    library: Result<Arc<CuFile>>,
}

/// How long opening cuFile's driver may take in this process; it takes well below a second.
pub(crate) const OPEN_DEADLINE: Duration = Duration::from_secs(10);

/// The driver is opened once a process: its parameters cannot be set after that, and closing it while anything lives is undefined.
static OPENED: Mutex<Vec<Opened>> = Mutex::new(Vec::new());

impl CuFile {
    /// The library with its driver open, for all devices of this process. As [`CuFile::open`], the first time, with `gpu`'s context.
    /// Blocks for `deadline` at most.
    ///
    /// # Errors
    /// [`GdsError::NoCuFile`] when it is open the other way, or opening has not come back, now or at an earlier call; and what opening
    /// says.
    pub(crate) fn shared(gpu: &Arc<Gpu>, path: Option<&Path>, mode: Mode, deadline: Duration) -> Result<Arc<Self>> {
        let mut opened = OPENED.lock();
        let Some(found) = opened.iter().find(|opened| opened.path.as_deref() == path) else {
            let library = match Self::open_within(gpu.clone(), path, mode, deadline) {
                Some(library) => Ok(Arc::new(library?)),
                None => Err(GdsError::NoCuFile(format!(
                    "opening its driver did not come back within {} s, and is not tried again in this process",
                    deadline.as_secs_f64()
                ))),
            };
            opened.push(Opened { path: path.map(Path::to_owned), mode, library: library.clone() });
            return library;
        };
        let library = found.library.clone()?;
        match (found.mode, mode) {
            (Mode::Direct { .. }, Mode::Direct { .. }) | (Mode::Compatibility, Mode::Compatibility) => Ok(library),
            (Mode::Direct { .. }, _) => Err(GdsError::NoCuFile(OPEN_DIRECTLY.into())),
            (Mode::Compatibility, _) => Err(GdsError::NoCuFile(OPEN_FOR_COMPARISON.into())),
        }
    }

    /// As [`CuFile::open`], on a thread of its own; `None` when that has not come back. The thread stays then, and with it the context:
    /// the driver may loop for ever, and nobody can stop it.
    fn open_within(gpu: Arc<Gpu>, path: Option<&Path>, mode: Mode, deadline: Duration) -> Option<Result<Self>> {
        let (sender, receiver) = bounded(1);
        let path = path.map(Path::to_owned);
        let open = move || {
            let opened = gpu.bind().and_then(|()| Self::open(path.as_deref(), mode));
            // Before anybody goes on who may count on it being the last one.
            drop(gpu);
            let _ = sender.send(opened);
        };
        if let Err(error) = std::thread::Builder::new().name("saltern-cufile-open".into()).spawn(open) {
            let (op, path, reason) = ("spawn", "saltern-cufile-open".into(), error.to_string());
            return Some(Err(GdsError::Io { op, path, reason }));
        }
        match receiver.recv_timeout(deadline) {
            Ok(opened) => Some(opened),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                Some(Err(GdsError::NoCuFile("the thread that opened its driver panicked".into())))
            }
        }
    }

    /// Opens the driver. A context has to be current. Directly only after a probe in another process has come back: the call may never
    /// return.
    pub(crate) fn open(path: Option<&Path>, mode: Mode) -> Result<Self> {
        let (path, library) = load(path)?;
        macro_rules! symbol {
            ($name:literal, $kind:ty) => {
                // SAFETY: the signature is cufile.h's, and the library is never closed.
                *unsafe { library.get::<$kind>(concat!($name, "\0").as_bytes()) }
                    .map_err(|_| GdsError::NoSymbol { library: path.display().to_string(), symbol: $name })?
            };
        }
        let set_bool = symbol!("cuFileSetParameterBool", unsafe extern "C" fn(c_int, bool) -> Status);
        let driver_open = symbol!("cuFileDriverOpen", unsafe extern "C" fn() -> Status);
        let (parameter, value) = match mode {
            Mode::Direct { .. } => (PARAM_ALLOW_COMPAT, false),
            Mode::Compatibility => (PARAM_FORCE_COMPAT, true),
        };
        if let Mode::Direct { by_p2pdma: true, .. } = mode {
            // Libraries that do not know this parameter do not know P2PDMA, and say so when a file is registered.
            // SAFETY: as below.
            unsafe { set_bool(PARAM_P2PDMA, true) };
        }
        // SAFETY: sets a parameter, before the driver is open, as it asks for.
        unsafe { set_bool(parameter, value) }.check("cuFileSetParameterBool")?;
        // SAFETY: a context is current (the caller), and the checks of `probe.rs` have passed.
        unsafe { driver_open() }.check("cuFileDriverOpen")?;
        let batches = match mode {
            Mode::Direct { in_batches: true, .. } => batch_functions(&library),
            _ => Err("they were not asked for"),
        };
        Ok(Self {
            read: symbol!("cuFileRead", unsafe extern "C" fn(*mut c_void, *mut c_void, usize, i64, i64) -> isize),
            write: symbol!("cuFileWrite", unsafe extern "C" fn(*mut c_void, *const c_void, usize, i64, i64) -> isize),
            register: symbol!("cuFileHandleRegister", unsafe extern "C" fn(*mut *mut c_void, *mut Descr) -> Status),
            deregister: symbol!("cuFileHandleDeregister", unsafe extern "C" fn(*mut c_void)),
            memory_register: symbol!("cuFileBufRegister", unsafe extern "C" fn(*const c_void, usize, c_int) -> Status),
            memory_deregister: symbol!("cuFileBufDeregister", unsafe extern "C" fn(*const c_void) -> Status),
            batches,
            _library: std::mem::ManuallyDrop::new(library),
        })
    }
}

/// All of them, or what is missing.
fn batch_functions(library: &Library) -> std::result::Result<Functions, &'static str> {
    macro_rules! symbol {
        ($name:literal) => {
            // SAFETY: the signature is cufile.h's (see `Functions`), and the library is never closed.
            *unsafe { library.get(concat!($name, "\0").as_bytes()) }.map_err(|_| concat!("libcufile has no ", $name))?
        };
    }
    Ok(Functions {
        set_up: symbol!("cuFileBatchIOSetUp"),
        submit: symbol!("cuFileBatchIOSubmit"),
        get_status: symbol!("cuFileBatchIOGetStatus"),
        cancel: symbol!("cuFileBatchIOCancel"),
        destroy: symbol!("cuFileBatchIODestroy"),
    })
}

impl FileIo for CuFile {
    fn open(&self, fd: BorrowedFd<'_>) -> Result<FileHandle> {
        let mut descr =
            Descr { kind: HANDLE_TYPE_FD, padding: 0, fd: fd.as_raw_fd(), fd_rest: 0, fs_ops: std::ptr::null() };
        let mut handle = std::ptr::null_mut();
        // SAFETY: reads the description, writes one handle; the queue keeps the descriptor open until `close`.
        let status = unsafe { (self.register)(&mut handle, &mut descr) };
        if NO_FILE_SYSTEM.contains(&status.code) {
            return Err(GdsError::CuFile {
                call: "cuFileHandleRegister",
                code: status.code,
                meaning: unknown_file_system(fd),
            });
        }
        status.check("cuFileHandleRegister")?;
        Ok(FileHandle(handle as usize))
    }

    fn close(&self, handle: FileHandle) {
        // SAFETY: a handle of `open`, closed once, with no transfer under way on it (`Handle` in `queue.rs`).
        unsafe { (self.deregister)(handle.0 as *mut c_void) };
    }

    fn transfer(&self, direction: Direction, handle: FileHandle, offset: u64, memory: DeviceSpan) -> Result<usize> {
        let DeviceSpan { base, offset: at, len, .. } = memory;
        let (handle, base, offset, at) = (handle.0 as *mut c_void, base as *mut c_void, offset as i64, at as i64);
        // SAFETY: the handle is open, and this is memory of the GPU that the engine holds until the transfer is reported.
        let (call, moved) = unsafe {
            match direction {
                Direction::ToDevice => ("cuFileRead", (self.read)(handle, base, len, offset, at)),
                Direction::FromDevice => ("cuFileWrite", (self.write)(handle, base, len, offset, at)),
            }
        };
        if moved >= 0 {
            return Ok(moved as usize);
        }
        // -1: errno says more; else a negative code of cuFile's.
        let meaning =
            if moved == -1 { std::io::Error::last_os_error().to_string() } else { meaning_of(-moved as c_int) };
        Err(GdsError::CuFile { call, code: moved as i32, meaning })
    }

    fn register(&self, range: DeviceRange) -> Result<()> {
        // SAFETY: memory of the GPU, which its slab keeps until `deregister`.
        unsafe { (self.memory_register)(range.address as *const c_void, range.len, 0) }.check("cuFileBufRegister")
    }

    fn deregister(&self, address: u64) {
        // SAFETY: registered in `register`, once; no transfer names it any more (`Slab`).
        let status = unsafe { (self.memory_deregister)(address as *const c_void) };
        if let Err(error) = status.check("cuFileBufDeregister") {
            tracing::error!(%error, "memory of the GPU stays registered");
        }
    }

    fn batch(&self, most: usize) -> Result<Box<dyn Batch>> {
        let functions = self.batches.map_err(|why| GdsError::NoCuFile(why.to_owned()))?;
        Ok(Box::new(CuBatch::set_up(functions, most)?))
    }
}

/// What cuFile's 5027 (or 5030) is about: it asks udev's database what the device is.
fn unknown_file_system(fd: BorrowedFd<'_>) -> String {
    let device = nix::sys::stat::fstat(fd).map(|stat| stat.st_dev).unwrap_or(0);
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    format!("file system type unknown to cuFile: no udev record for {major}:{minor}")
}

/// CUfileOpError (cufile.h), as far as somebody can do something about it.
pub(super) fn meaning_of(code: c_int) -> String {
    let text = match code {
        5001 => "nvidia-fs is not loaded, and compatibility mode was forbidden",
        5002 | 5004 | 5005 => "nvidia-fs and libcufile do not fit together: update both",
        5003 => "a limit of nvidia-fs is not supported",
        5007 => "this platform is not supported",
        5008 => "this file system or device is not supported for direct transfers",
        5009 => "this GPU does not support GPUDirect Storage",
        5010 => "nvidia-fs failed: see `dmesg`",
        5011 => "the CUDA driver failed",
        5012..=5015 => "the memory is not of the GPU whose context is current",
        5016 | 5017 => "the memory cannot be mapped for other devices: is the GPU's BAR too small?",
        5018 => "this kind of file is not supported",
        5019 | 5020 => "the file is not open with O_DIRECT",
        5022 => "an invalid argument",
        5025 => "permission denied",
        5028 => "the file is registered already",
        5029 => "no device of this number",
        5030 => "an internal error of cuFile",
        5033 => "nvidia-fs could not be set up",
        5034 => "transfers are disabled",
        _ => "see CUfileOpError in cufile.h",
    };
    text.to_owned()
}
