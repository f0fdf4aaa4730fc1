//! What the kernel shows of the way between disks and GPUs. Reads files, runs nothing.

use std::fs;
use std::path::{Path, PathBuf};

/// The first kernel with PCI peer-to-peer transfers for files (P2PDMA in the block layer and `O_DIRECT`).
const P2PDMA_KERNEL: (u32, u32) = (6, 2);

/// How [`Machine::direct_by`] calls the two.
pub(crate) const NVIDIA_FS: &str = "nvidia-fs";
pub(crate) const P2PDMA: &str = "P2PDMA";

/// Most devices upon each other: RAID, encryption and LVM are three.
const STACK_MAX: usize = 8;

/// The root of what is read; tests have another.
#[derive(Debug, Clone)]
pub struct Machine {
    root: PathBuf,
}

impl Default for Machine {
    fn default() -> Self {
        Self::at("/")
    }
}

impl Machine {
    /// A machine whose `/proc`, `/sys` and `/boot` are below `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.root.join(below)
    }

    fn read(&self, below: &str) -> Option<String> {
        fs::read_to_string(self.path(below)).ok().map(|text| text.trim().to_owned())
    }

    pub(crate) fn modules(&self) -> PathBuf {
        self.path("proc/modules")
    }

    pub(crate) fn has_modules(&self) -> bool {
        self.modules().exists()
    }

    /// The version of the NVIDIA kernel driver.
    pub fn kernel_driver(&self) -> Option<String> {
        let text = self.read("proc/driver/nvidia/version")?;
        let line = text.lines().next()?;
        line.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit())).map(str::to_owned)
    }

    /// Whether the kernel driver is the open one, which P2PDMA needs.
    fn has_open_driver(&self) -> bool {
        self.read("proc/driver/nvidia/version").is_some_and(|text| text.contains("Open Kernel Module"))
    }

    /// How cuFile could go directly: by `nvidia-fs`, or by `P2PDMA`.
    ///
    /// # Errors
    /// Why neither.
    pub fn direct_by(&self) -> Result<&'static str, String> {
        if self.path("proc/driver/nvidia-fs").exists() {
            return Ok(NVIDIA_FS);
        }
        let without = "the nvidia-fs driver is not loaded, and P2PDMA";
        let release = self.read("proc/sys/kernel/osrelease").unwrap_or_default();
        let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
        let kernel = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if kernel < P2PDMA_KERNEL {
            return Err(format!("{without} needs Linux 6.2; this is {release}"));
        }
        if self.has_p2pdma(&release) == Some(false) {
            return Err(format!("{without} needs CONFIG_PCI_P2PDMA, which this kernel was built without"));
        }
        match self.kernel_driver() {
            None => Err(format!("{without} needs NVIDIA's kernel driver, which is not loaded")),
            Some(version) if !self.has_open_driver() => {
                Err(format!("{without} needs NVIDIA's open kernel driver; this is the closed one, {version}"))
            }
            Some(version) if version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0) < 565 => {
                Err(format!("{without} needs NVIDIA's open kernel driver 565 or newer; this is {version}"))
            }
            Some(_) => Ok(P2PDMA),
        }
    }

    /// Whether the kernel was built with P2PDMA; `None` where it does not tell.
    fn has_p2pdma(&self, release: &str) -> Option<bool> {
        let config = self.read(&format!("boot/config-{release}"))?;
        Some(config.lines().any(|line| line == "CONFIG_PCI_P2PDMA=y"))
    }

    /// The NUMA node of the block device under a directory, where all disks that it is made of (RAID, LVM, btrfs) are on one; `None`
    /// where that is not known.
    pub fn disk_node(&self, dir: &Path) -> Option<i32> {
        let device = nix::sys::stat::stat(dir).ok()?.st_dev;
        let at = format!("sys/dev/block/{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
        let devices = match fs::canonicalize(self.path(&at)) {
            Ok(device) => vec![device],
            // File systems of several devices have numbers that are no device's.
            Err(_) => self.devices_of_mount(dir)?,
        };
        same(devices.into_iter().map(|device| node_of(device, STACK_MAX)))
    }

    /// The block devices of the mount that a directory is on, by the mount's source, as paths in `/sys`.
    fn devices_of_mount(&self, dir: &Path) -> Option<Vec<PathBuf>> {
        let source = mount_source(&self.read("proc/self/mountinfo")?, &fs::canonicalize(dir).ok()?)?;
        // `/dev/mapper/NAME` is a link to the device.
        let device = fs::canonicalize(self.path(source.strip_prefix('/')?)).ok()?;
        let name = device.file_name()?;
        let named = |devices: PathBuf| devices.join(name).exists().then_some(devices);
        // Of btrfs the mount's source is one device, and these are all.
        let btrfs = children(&self.path("sys/fs/btrfs")).find_map(|volume| named(volume.join("devices")));
        let devices: Vec<_> = match btrfs {
            Some(devices) => children(&devices).map(fs::canonicalize).collect::<Result<_, _>>().ok()?,
            None => vec![fs::canonicalize(self.path("sys/class/block").join(name)).ok()?],
        };
        Some(devices)
    }

    /// The NUMA node of a PCI device (`0000:3b:00.0`).
    pub fn pci_node(&self, address: &str) -> Option<i32> {
        // CUDA writes domains with four or eight digits, the kernel with four.
        let address = if address.len() > 12 { &address[address.len() - 12..] } else { address };
        self.read(&format!("sys/bus/pci/devices/{address}/numa_node"))?.parse().ok().filter(|node| *node >= 0)
    }

    /// How far two NUMA nodes are from each other, as the firmware says: 10 is the same node. `None` where the kernel does not say.
    pub fn node_distance(&self, from: i32, to: i32) -> Option<u32> {
        let row = self.read(&format!("sys/devices/system/node/node{from}/distance"))?;
        // A column for each node that is online, whose numbers may have gaps.
        let online = self.read("sys/devices/system/node/online")?;
        let column = numbers(&online)?.position(|node| i32::try_from(node) == Ok(to))?;
        row.split_whitespace().nth(column)?.parse().ok()
    }
}

/// The node of a device in `/sys`: from the partition up to the controller, the first that knows; of what is made of other devices, theirs.
fn node_of(mut device: PathBuf, deep: usize) -> Option<i32> {
    loop {
        let mut slaves = children(&device.join("slaves")).peekable();
        if slaves.peek().is_some() {
            let deep = deep.checked_sub(1)?;
            return same(slaves.map(|slave| node_of(fs::canonicalize(slave).ok()?, deep)));
        }
        let node = fs::read_to_string(device.join("numa_node"))
            .or_else(|_| fs::read_to_string(device.join("device/numa_node")));
        if let Ok(node) = node {
            return node.trim().parse().ok().filter(|node| *node >= 0);
        }
        if !device.pop() || device.parent().is_none() {
            return None;
        }
    }
}

/// The one node that all are on.
fn same(mut nodes: impl Iterator<Item = Option<i32>>) -> Option<i32> {
    let first = nodes.next()??;
    nodes.all(|node| node == Some(first)).then_some(first)
}

/// What is in a directory; nothing where there is none.
fn children(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// The source of the mount that a canonical path is on (`id parent major:minor root point options [optional]... - type source options`):
/// the longest mount point, and of equals the last, which covers the others.
fn mount_source(table: &str, path: &Path) -> Option<String> {
    let mounts = table.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        Some((unescape(before.split(' ').nth(4)?), unescape(after.split(' ').nth(1)?)))
    });
    let above = mounts.filter(|(point, _)| path.starts_with(point));
    above.max_by_key(|(point, _)| point.len()).map(|(_, source)| source)
}

/// Blanks in names are written as `\040`.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// The numbers of a list as the kernel writes them (`0,2-3`), in order; `None` when it is not one.
fn numbers(list: &str) -> Option<impl Iterator<Item = u32>> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u32>().ok()?..=last.parse().ok()?)
    };
    let ranges: Vec<_> = list.split(',').map(range).collect::<Option<_>>()?;
    Some(ranges.into_iter().flatten())
}
