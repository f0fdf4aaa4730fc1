//! Where the lab works: a memory-backed scratch directory in a mount namespace of its own, the disk's process, loop
//! devices and file systems.
//!
//! Everything is undone on drop, also on a panic. After a SIGKILL the kernel undoes it: the namespace goes with its last
//! process and takes all mounts along, loop devices clear themselves when nothing uses them, and the disk's process
//! ends when its standard input does. What stays then is one empty directory.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Whence, geteuid, lseek};
use tempfile::TempDir;

use crate::disk::IMAGE_NAME;
use crate::error::{Doing, Error, Result};
use crate::log::LogReader;
use crate::served::{Program, Served};

/// Size of the disk: xfs takes nothing below 300 MiB.
const DISK_BYTES: u64 = 512 << 20;

/// Bound of the scratch directory: the disk, its base, a rolling and a crash image, and the log.
const SCRATCH_BYTES: u64 = 4 << 30;

/// How often, and in what steps, an unmount waits for what a closed ring still holds.
const UNMOUNT_TRIES: u32 = 2_000;
const UNMOUNT_STEP: Duration = Duration::from_millis(5);

/// A file system under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// ext4 with its defaults.
    Ext4,
    /// ext4 that does not flush the disk: a disk that loses what it has acknowledged.
    Ext4NoBarrier,
    /// xfs with its defaults.
    Xfs,
}

impl FileSystem {
    fn kind(self) -> &'static str {
        match self {
            Self::Ext4 | Self::Ext4NoBarrier => "ext4",
            Self::Xfs => "xfs",
        }
    }

    fn mkfs(self, image: &Path) -> Result<()> {
        let image = path_str(image);
        match self {
            Self::Ext4 | Self::Ext4NoBarrier => {
                let lazy = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
                run("mkfs.ext4", &["-q", "-F", "-b", "4096", "-I", "256", "-m", "0", "-E", lazy, image])
            }
            Self::Xfs => run("mkfs.xfs", &["-q", "-f", "-K", image]),
        }
        .map(drop)
    }

    fn workload_options(self) -> &'static str {
        match self {
            Self::Ext4 => "noatime",
            Self::Ext4NoBarrier => "noatime,nobarrier",
            Self::Xfs => "noatime,nouuid",
        }
    }

    fn image_options(self) -> &'static str {
        match self {
            Self::Ext4 | Self::Ext4NoBarrier => "noatime,loop",
            Self::Xfs => "noatime,nouuid,loop",
        }
    }

    /// Checks an unmounted image whose journal has been recovered; says what is wrong with it.
    pub(crate) fn fsck(self, image: &Path) -> Option<String> {
        let image = path_str(image);
        let checked = match self {
            Self::Ext4 | Self::Ext4NoBarrier => run("e2fsck", &["-f", "-n", image]),
            Self::Xfs => run("xfs_repair", &["-n", image]),
        };
        checked.err().map(|error| error.to_string())
    }

    fn tools(self) -> [&'static str; 2] {
        match self {
            Self::Ext4 | Self::Ext4NoBarrier => ["mkfs.ext4", "e2fsck"],
            Self::Xfs => ["mkfs.xfs", "xfs_repair"],
        }
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ext4 => "ext4",
            Self::Ext4NoBarrier => "ext4 nobarrier",
            Self::Xfs => "xfs",
        })
    }
}

fn path_str(path: &Path) -> &str {
    path.to_str().expect("the lab's paths are ASCII")
}

/// Runs a command to its end; gives what it printed.
fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let command = || format!("{program} {}", arguments.join(" "));
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().doing(command())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let printed = format!("{}: {} {}", output.status, text(&output.stderr), text(&output.stdout));
    Err(Error::Command { command: command(), output: printed })
}

fn has_tool(name: &str) -> bool {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&dirs).chain(["/sbin".into(), "/usr/sbin".into()]).any(|dir| dir.join(name).exists())
}

/// The scratch directory and its namespace. The thread that made it, and those that it spawns, see its mounts.
pub struct Lab {
    scratch: TempDir,
    disk_program: Program,
}

impl Lab {
    /// Moves the calling thread into a mount namespace of its own, and mounts the scratch directory there. `disk_program` is
    /// the path of `saltern-power-disk`.
    ///
    /// # Errors
    /// [`Error::Unavailable`] names what this machine lacks.
    pub fn new(disk_program: impl Into<Program>, file_systems: &[FileSystem]) -> Result<Self> {
        let lacks = |what: String| Err(Error::Unavailable(what));
        if !geteuid().is_root() {
            return lacks("it needs root, to mount".into());
        }
        for device in ["/dev/fuse", "/dev/loop-control"] {
            if let Err(error) = File::options().read(true).write(true).open(device) {
                return lacks(format!("{device}: {error}"));
            }
        }
        let tools = file_systems.iter().flat_map(|file_system| file_system.tools());
        if let Some(tool) = ["mount", "umount", "losetup"].into_iter().chain(tools).find(|tool| !has_tool(tool)) {
            return lacks(format!("the command {tool} is missing"));
        }
        if let Err(errno) = unshare(CloneFlags::CLONE_NEWNS) {
            return lacks(format!("no mount namespace can be had: {errno}"));
        }
        let mounted = || -> Result<TempDir> {
            run("mount", &["--make-rprivate", "/"])?;
            let scratch =
                tempfile::Builder::new().prefix("saltern-power-").tempdir().doing("make a scratch directory")?;
            let size = format!("size={SCRATCH_BYTES},mode=0700");
            run("mount", &["-t", "tmpfs", "-o", &size, "saltern-power", path_str(scratch.path())])?;
            Ok(scratch)
        };
        match mounted() {
            Ok(scratch) => Ok(Self { scratch, disk_program: disk_program.into() }),
            Err(error) => lacks(format!("no scratch directory can be mounted: {error}")),
        }
    }

    /// A path in the scratch directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Makes an empty directory in the scratch directory.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).doing(format!("clear {name}")),
            _ => {}
        }
        fs::create_dir(&path).doing(format!("mkdir {name}"))?;
        Ok(path)
    }

    /// Makes an image with an empty file system.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make_image(&self, name: &str, file_system: FileSystem) -> Result<PathBuf> {
        let path = self.path(name);
        let image = File::create(&path).doing("create an image")?;
        image.set_len(DISK_BYTES).doing("size an image")?;
        drop(image);
        file_system.mkfs(&path)?;
        Ok(path)
    }

    /// Starts a disk with the contents of `base`, which logs what is written to it.
    pub(crate) fn start_disk(&self, base: &Path) -> Result<Disk> {
        let backing = self.path("backing");
        copy_sparse(base, &backing)?;
        let log_dir = self.dir("log")?;
        self.serve_disk(&backing, Some(log_dir))
    }

    /// Starts a disk on an image, without a log.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_plain_disk(&self, image: &Path) -> Result<Disk> {
        self.serve_disk(image, None)
    }

    fn serve_disk(&self, backing: &Path, log_dir: Option<PathBuf>) -> Result<Disk> {
        let mount_point = self.dir("disk")?;
        let paths = [&mount_point, backing].into_iter().map(|path| path.into());
        let served = Served::start(&self.disk_program, paths.chain(log_dir.iter().map(|path| path.into())))?;
        let (image, mount_dir) = (mount_point.join(IMAGE_NAME), self.dir("mnt")?);
        Ok(Disk { served, image, mount_dir, mounted: false, log_dir })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Lazily: an image that could not be unmounted must not keep the rest.
        if let Err(error) = run("umount", &["--lazy", path_str(self.scratch.path())]) {
            eprintln!("the scratch directory stays: {error}");
        }
    }
}

fn unmount(dir: &Path) -> Result<()> {
    let mut tries = 0;
    loop {
        let error = match run("umount", &[path_str(dir)]) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        tries += 1;
        if tries == UNMOUNT_TRIES || !error.to_string().contains("busy") {
            return Err(error);
        }
        std::thread::sleep(UNMOUNT_STEP);
    }
}

/// A disk, and the file system on it while that is mounted.
pub struct Disk {
    /// Its process.
    pub served: Served,
    image: PathBuf,
    mount_dir: PathBuf,
    mounted: bool,
    log_dir: Option<PathBuf>,
}

impl Disk {
    /// Mounts the file system that is on the disk; gives its root.
    ///
    /// # Errors
    /// [`Error::Command`] when the file system does not mount, or loop devices cannot do direct I/O.
    pub fn mount(&mut self, file_system: FileSystem) -> Result<PathBuf> {
        let device = run("losetup", &["--direct-io=on", "--show", "-f", path_str(&self.image)])?;
        let (kind, options) = (file_system.kind(), file_system.workload_options());
        let mounted = run("mount", &["-t", kind, "-o", options, &device, path_str(&self.mount_dir)]);
        let direct = run("losetup", &["-n", "-O", "DIO", "-l", &device]);
        // In use, it is only marked: it goes when the file system does.
        run("losetup", &["-d", &device])?;
        mounted?;
        self.mounted = true;
        match direct?.as_str() {
            "1" => Ok(self.mount_dir.clone()),
            _ => Err(Error::Unavailable("the loop device has no direct I/O on the FUSE disk".into())),
        }
    }

    /// Unmounts; waits for what a closed ring still holds.
    ///
    /// # Errors
    /// [`Error::Command`] when it stays busy.
    pub fn unmount(&mut self) -> Result<()> {
        if std::mem::take(&mut self.mounted) { unmount(&self.mount_dir) } else { Ok(()) }
    }

    pub(crate) fn log(&self) -> Result<LogReader> {
        let dir = self.log_dir.as_ref().ok_or_else(|| Error::Unavailable("this disk has no log".into()))?;
        LogReader::open(dir).doing("open the disk's log")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            eprintln!("the workload's file system stays until the disk is gone: {error}");
        }
    }
}

/// A crash image, mounted: its journal has been recovered.
pub(crate) struct MountedImage {
    pub(crate) root: PathBuf,
    mounted: bool,
}

impl MountedImage {
    pub(crate) fn mount(lab: &Lab, image: &Path, file_system: FileSystem) -> Result<Self> {
        let root = lab.path("crashed");
        if !root.exists() {
            fs::create_dir(&root).doing("mkdir")?;
        }
        let (kind, options) = (file_system.kind(), file_system.image_options());
        run("mount", &["-t", kind, "-o", options, path_str(image), path_str(&root)])?;
        Ok(Self { root, mounted: true })
    }

    pub(crate) fn unmount(mut self) -> Result<()> {
        self.mounted = false;
        unmount(&self.root)
    }
}

impl Drop for MountedImage {
    fn drop(&mut self) {
        if self.mounted
            && let Err(error) = unmount(&self.root)
        {
            eprintln!("a crash image stays mounted: {error}");
        }
    }
}

/// Copies a file; what is a hole or zeroes in the one is a hole in the other.
pub(crate) fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    const CHUNK_BYTES: u64 = 1 << 20;
    let what = || format!("copy {} to {}", from.display(), to.display());
    let source = File::open(from).doing(what())?;
    let bytes = source.metadata().doing(what())?.len();
    let target = File::create(to).doing(what())?;
    target.set_len(bytes).doing(what())?;
    let seek = |offset: u64, whence| match lseek(&source, offset.cast_signed(), whence) {
        Ok(at) => Ok(at.cast_unsigned()),
        Err(Errno::ENXIO) => Ok(bytes),
        Err(errno) => Err(errno),
    };
    let mut buffer = vec![0; CHUNK_BYTES as usize];
    let mut end = 0;
    while end < bytes {
        let mut at = seek(end, Whence::SeekData).doing(what())?;
        end = if at < bytes { seek(at, Whence::SeekHole).doing(what())? } else { bytes };
        while at < end {
            let chunk = &mut buffer[..(end - at).min(CHUNK_BYTES) as usize];
            source.read_exact_at(chunk, at).doing(what())?;
            if chunk.iter().any(|byte| *byte != 0) {
                target.write_all_at(chunk, at).doing(what())?;
            }
            at += chunk.len() as u64;
        }
    }
    Ok(())
}
