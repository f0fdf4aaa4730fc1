//! A software device that refuses, fails and loses what a test says.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use saltern::Pool;
use saltern::device::sim::SimDevice;
use saltern::device::{
    CopyDone, CopyEngine, Device, DeviceCopy, DeviceError, DeviceId, DirectOp, Direction, Fence, Place, Registration,
    Route, RouteChoice,
};

/// What is to become of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Good,
    Fails,
    /// It is not ended before the test says so, and then fails.
    FailsLate,
    Lost,
}

/// A copy as it was submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) direction: Direction,
    pub(crate) host: usize,
    pub(crate) len: usize,
    /// Of its first block.
    pub(crate) address: u64,
}

pub(crate) type Which = Box<dyn Fn(&DeviceCopy) -> bool + Send + Sync>;

/// What the copiers of a device do with copies, and what they were given.
pub(crate) struct Fates {
    fate: Box<dyn Fn(&DeviceCopy) -> Fate + Send + Sync>,
    /// Which of those that end late may end now.
    may_end: Mutex<Which>,
    seen: Mutex<Vec<Seen>>,
}

impl Fates {
    pub(crate) fn new(fate: impl Fn(&DeviceCopy) -> Fate + Send + Sync + 'static) -> Arc<Self> {
        let may_end: Which = Box::new(|_| false);
        Arc::new(Self { fate: Box::new(fate), may_end: Mutex::new(may_end), seen: Mutex::default() })
    }

    pub(crate) fn end_late(&self, which: impl Fn(&DeviceCopy) -> bool + Send + Sync + 'static) {
        *self.may_end.lock().expect("not poisoned") = Box::new(which);
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("not poisoned").clone()
    }
}

/// The software device, with trouble.
pub(crate) struct Odd {
    pub(crate) device: SimDevice,
    /// Memory that it still knows.
    pub(crate) registered: Arc<AtomicUsize>,
    /// Which registration, and which queue of copies, it refuses, counted from 0.
    pub(crate) refuses: [Option<usize>; 2],
    pub(crate) asked: [AtomicUsize; 2],
    /// The only directory whose files go directly, if there is one.
    pub(crate) direct_dir: Option<PathBuf>,
    /// One file of so many is not direct when it is asked about; one direct transfer of so many fails.
    pub(crate) refused_files_one_in: usize,
    pub(crate) failed_directs_one_in: usize,
    pub(crate) fates: Arc<Fates>,
}

impl Odd {
    pub(crate) fn new(device: &SimDevice) -> Self {
        Self {
            device: device.clone(),
            registered: Arc::default(),
            refuses: [None, None],
            asked: Default::default(),
            direct_dir: None,
            refused_files_one_in: usize::MAX,
            failed_directs_one_in: usize::MAX,
            fates: Fates::new(|_| Fate::Good),
        }
    }

    pub(crate) fn with_fates(device: &SimDevice, fates: &Arc<Fates>) -> Self {
        Self { fates: fates.clone(), ..Self::new(device) }
    }

    fn ask(&self, what: usize) -> Result<(), DeviceError> {
        match Some(self.asked[what].fetch_add(1, Ordering::Relaxed)) == self.refuses[what] {
            true => Err(DeviceError::new("ask", "the test refuses this one")),
            false => Ok(()),
        }
    }
}

struct Counted(Arc<AtomicUsize>, #[expect(dead_code, reason = "kept, not looked at")] Registration);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Device for Odd {
    fn id(&self) -> DeviceId {
        self.device.id()
    }

    fn name(&self) -> String {
        "odd device".into()
    }

    fn register(&self, pool: &Pool) -> Result<Registration, DeviceError> {
        self.ask(0)?;
        self.registered.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Counted(self.registered.clone(), self.device.register(pool)?)))
    }

    fn route(&self, dir: &Path, choice: RouteChoice) -> Result<Route, DeviceError> {
        let is_direct = self.direct_dir.as_deref().is_none_or(|direct| direct == dir);
        if is_direct { self.device.route(dir, choice) } else { self.device.route(dir, RouteChoice::Pipeline) }
    }

    fn copier(&self) -> Result<Box<dyn CopyEngine>, DeviceError> {
        self.ask(1)?;
        let (files, directs) = (self.refused_files_one_in, self.failed_directs_one_in);
        let (inner, fates) = (self.device.copier()?, self.fates.clone());
        let (asked, moved, failed, late) = (0, 0, Vec::new(), Vec::new());
        Ok(Box::new(OddCopier { inner, files, directs, asked, moved, failed, fates, late }))
    }

    fn poisons_slots(&self) -> bool {
        self.device.poisons_slots()
    }
}

struct OddCopier {
    inner: Box<dyn CopyEngine>,
    files: usize,
    directs: usize,
    asked: usize,
    moved: usize,
    failed: Vec<CopyDone>,
    fates: Arc<Fates>,
    late: Vec<DeviceCopy>,
}

pub(crate) fn as_told() -> DeviceError {
    DeviceError::new("as told", "the test lets it fail")
}

impl CopyEngine for OddCopier {
    fn has_happened(&mut self, fence: &Fence) -> Result<bool, DeviceError> {
        self.inner.has_happened(fence)
    }

    fn submit(&mut self, copy: DeviceCopy) {
        let Place::Device(ranges) = &copy.place else { unreachable!("no loopback here") };
        let (host, len, address) = (copy.host.ptr() as usize, copy.host.len(), ranges[0].address);
        let seen = Seen { direction: copy.direction, host, len, address };
        self.fates.seen.lock().expect("not poisoned").push(seen);
        match (self.fates.fate)(&copy) {
            Fate::Good => self.inner.submit(copy),
            Fate::Fails => self.failed.push(CopyDone::new(copy.token, Err(as_told()))),
            Fate::FailsLate => self.late.push(copy),
            Fate::Lost => self.failed.push(CopyDone::lost(copy.token, as_told())),
        }
    }

    fn admit_direct(&mut self, _: &Rc<OwnedFd>) -> Result<(), DeviceError> {
        self.asked += 1;
        match self.asked.is_multiple_of(self.files) {
            true => Err(DeviceError::new("register", "the test says that this file is not direct")),
            false => Ok(()),
        }
    }

    fn submit_direct(&mut self, op: DirectOp) {
        self.moved += 1;
        match self.moved.is_multiple_of(self.directs) {
            true => self.failed.push(CopyDone::new(op.token, Err(as_told()))),
            false => self.inner.submit_direct(op),
        }
    }

    fn flush(&mut self) {
        self.inner.flush();
    }

    fn poll(&mut self, each: &mut dyn FnMut(CopyDone)) {
        self.failed.drain(..).for_each(&mut *each);
        let may_end = self.fates.may_end.lock().expect("not poisoned");
        let ended = self.late.extract_if(.., |copy| may_end(copy));
        ended.for_each(|copy| each(CopyDone::new(copy.token, Err(as_told()))));
        self.inner.poll(each);
    }

    fn direct_limit(&self) -> usize {
        self.inner.direct_limit()
    }
}
