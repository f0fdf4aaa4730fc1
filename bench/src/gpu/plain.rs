//! What others do: threads, each of which reads a file, copies it to the device, waits, and takes the next.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::fcntl::OFlag;
use parking_lot::Mutex;
use saltern::device::Direction;
use saltern_gds::{CudaDevice, DeviceSpan, FileIo, HostKind, HostMemory};

use super::device::{Block, Gpu};
use crate::ceiling::ALIGN_BYTES;
use crate::error::{Error, Result};
use crate::memory;

/// Moves all objects, one after the other in each thread; gives what failed.
pub(super) trait PlainIo {
    fn run(&self, files: &[PathBuf], blocks: &[Block], store: bool, direct: bool) -> Vec<String>;
}

/// Runs `work` for each number below `count`, on a thread for each state.
fn spread<S: Send>(states: &mut [S], count: usize, work: impl Fn(&mut S, usize) -> Result<()> + Sync) -> Vec<String> {
    let (next, errors) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for state in states.iter_mut().take(count) {
            scope.spawn(|| {
                loop {
                    let object = next.fetch_add(1, Ordering::Relaxed);
                    if object >= count {
                        return;
                    }
                    if let Err(error) = work(state, object) {
                        errors.lock().push(format!("object {object}: {error}"));
                    }
                }
            });
        }
    });
    errors.into_inner()
}

fn open(path: &Path, store: bool, direct: bool) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(store).create(store);
    let flags = if direct { OFlag::O_DIRECT.bits() } else { 0 };
    let opened = options.custom_flags(flags).open(path);
    // Not every file system takes O_DIRECT.
    let opened = opened.or_else(|error| match error.raw_os_error() {
        Some(code) if direct && code == nix::errno::Errno::EINVAL as i32 => options.custom_flags(0).open(path),
        _ => Err(error),
    });
    opened.map_err(|error| Error::io("open", path, error))
}

/// Host memory of one thread, pinned where there is CUDA.
enum Host {
    Pool(saltern::PoolBuffer),
    Pinned(HostMemory),
}

impl Host {
    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Self::Pool(buffer) => buffer,
            Self::Pinned(memory) => memory.as_mut_slice(),
        }
    }
}

/// Plain read (or write) and copy, through pinned memory of each thread, which is there before anything is timed.
pub(super) struct Plain {
    object_bytes: usize,
    hosts: Mutex<Vec<Host>>,
    /// Else the bytes stay in the host's memory: what bounds both, with the data in the page cache.
    copies: bool,
}

impl Plain {
    pub(super) fn new(gpu: &Gpu, object_bytes: usize, threads: usize, copies: bool) -> Result<Self> {
        let padded = object_bytes.next_multiple_of(ALIGN_BYTES);
        let host = |_| match gpu {
            Gpu::Sim(_) => Ok(Host::Pool(memory::alone(padded)?)),
            Gpu::Cuda(device) => Ok(Host::Pinned(HostMemory::alloc(device, HostKind::Pinned, padded)?)),
        };
        let hosts = (0..threads).map(host).collect::<Result<Vec<_>>>()?;
        Ok(Self { object_bytes, hosts: Mutex::new(hosts), copies })
    }
}

impl PlainIo for Plain {
    fn run(&self, files: &[PathBuf], blocks: &[Block], store: bool, direct: bool) -> Vec<String> {
        let padded = self.object_bytes.next_multiple_of(ALIGN_BYTES);
        spread(&mut self.hosts.lock(), files.len(), |host, object| {
            let (path, block, bytes) = (&files[object], &blocks[object], &mut host.bytes()[..padded]);
            let file = open(path, store, direct)?;
            let failed = |error| Error::io("read or write", path, error);
            if store {
                if self.copies {
                    block.copy_out(&mut bytes[..block.len()])?;
                }
                file.write_all_at(bytes, 0).map_err(failed)?;
                return file.set_len(block.len() as u64).map_err(failed);
            }
            let mut read = 0;
            while read < block.len() {
                match file.read_at(&mut bytes[read..], read as u64).map_err(failed)? {
                    0 => return Err(failed(std::io::ErrorKind::UnexpectedEof.into())),
                    more => read += more,
                }
            }
            if self.copies {
                block.copy_in(&bytes[..block.len()])?;
            }
            Ok(())
        })
    }
}

/// cuFile in its compatibility mode: the same threads, no host memory of ours.
pub(super) struct CompatFiles<'a> {
    pub(super) io: Arc<dyn FileIo>,
    pub(super) threads: usize,
    pub(super) device: &'a CudaDevice,
}

impl PlainIo for CompatFiles<'_> {
    fn run(&self, files: &[PathBuf], blocks: &[Block], store: bool, direct: bool) -> Vec<String> {
        spread(&mut vec![(); self.threads], files.len(), |(), object| {
            self.device.bind_thread()?;
            let file = open(&files[object], store, direct)?;
            let handle = self.io.open(file.as_fd())?;
            let (range, direction) =
                (blocks[object].range(), if store { Direction::FromDevice } else { Direction::ToDevice });
            let mut moved = 0;
            while moved < range.len {
                match self.io.transfer(direction, handle, moved as u64, DeviceSpan::from(range).rest(moved)) {
                    Ok(more) if more > 0 => moved += more,
                    ended => {
                        self.io.close(handle);
                        ended?;
                        return Err(Error::io(
                            "cuFile",
                            &files[object],
                            std::io::Error::from(std::io::ErrorKind::UnexpectedEof),
                        ));
                    }
                }
            }
            self.io.close(handle);
            Ok(())
        })
    }
}
