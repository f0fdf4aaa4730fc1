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

/// Moves all objects, one after the other in each thread.
pub(super) trait PlainIo {
    fn run(&self, files: &[PathBuf], blocks: &[Block], store: bool, direct: bool) -> Outcome;
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Outcome {
    /// One for each object that failed.
    pub(super) errors: Vec<String>,
    /// Files that were to be open with O_DIRECT, and are not, because their file system takes none.
    pub(super) buffered: usize,
}

/// Runs `work` for each number below `count`, on a thread for each state. `work` says whether the file was open as it was asked for.
fn spread<S: Send>(states: &mut [S], count: usize, work: impl Fn(&mut S, usize) -> Result<Opened> + Sync) -> Outcome {
    let (next, errors) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let buffered = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for state in states.iter_mut().take(count) {
            scope.spawn(|| {
                loop {
                    let object = next.fetch_add(1, Ordering::Relaxed);
                    if object >= count {
                        return;
                    }
                    match work(state, object) {
                        Ok(Opened::AsAsked) => {}
                        Ok(Opened::Buffered) => drop(buffered.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => errors.lock().push(format!("object {object}: {error}")),
                    }
                }
            });
        }
    });
    Outcome { errors: errors.into_inner(), buffered: buffered.into_inner() }
}

/// How a file is open.
enum Opened {
    AsAsked,
    /// Without O_DIRECT, which was asked for.
    Buffered,
}

fn open(path: &Path, store: bool, direct: bool) -> Result<(File, Opened)> {
    let mut options = OpenOptions::new();
    options.read(true).write(store).create(store);
    let flags = if direct { OFlag::O_DIRECT.bits() } else { 0 };
    let opened = match options.custom_flags(flags).open(path) {
        // Not every file system takes O_DIRECT.
        Err(error) if direct && error.raw_os_error() == Some(nix::errno::Errno::EINVAL as i32) => {
            options.custom_flags(0).open(path).map(|file| (file, Opened::Buffered))
        }
        opened => opened.map(|file| (file, Opened::AsAsked)),
    };
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
    fn run(&self, files: &[PathBuf], blocks: &[Block], store: bool, direct: bool) -> Outcome {
        let padded = self.object_bytes.next_multiple_of(ALIGN_BYTES);
        spread(&mut self.hosts.lock(), files.len(), |host, object| {
            let (path, block, bytes) = (&files[object], &blocks[object], &mut host.bytes()[..padded]);
            let (file, opened) = open(path, store, direct)?;
            let failed = |error| Error::io("read or write", path, error);
            if store {
                if self.copies {
                    block.copy_out(&mut bytes[..block.len()])?;
                }
                file.write_all_at(bytes, 0).map_err(failed)?;
                return file.set_len(block.len() as u64).map(|()| opened).map_err(failed);
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
            Ok(opened)
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
    fn run(&self, files: &[PathBuf], blocks: &[Block], store: bool, direct: bool) -> Outcome {
        spread(&mut vec![(); self.threads], files.len(), |(), object| {
            self.device.bind_thread()?;
            let (file, opened) = open(&files[object], store, direct)?;
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
            Ok(opened)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::target::Target;
    use super::*;

    #[test]
    fn files_that_cannot_be_open_with_o_direct_are_counted() {
        // The kernel's own files take none.
        let path = PathBuf::from("/proc/version");
        let bytes = std::fs::read(&path).unwrap();
        let gpu = Gpu::open(Target::GpuSim, None).unwrap();
        let memory = gpu.alloc(1, bytes.len()).unwrap();
        let plain = Plain::new(&gpu, bytes.len(), 1, true).unwrap();
        for (direct, buffered) in [(true, 1), (false, 0)] {
            let outcome = plain.run(std::slice::from_ref(&path), &memory.blocks, false, direct);
            assert!(outcome.errors.is_empty() && outcome.buffered == buffered, "{outcome:?}");
            assert!(memory.blocks[0].read().unwrap() == bytes);
        }
    }
}
