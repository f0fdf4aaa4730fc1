//! What the kernel shows of the way between disks and GPUs. Reads files, runs nothing.

use std::fs;
use std::path::{Path, PathBuf};

/// The first kernel with PCI peer-to-peer transfers for files (P2PDMA in the block layer and `O_DIRECT`).
const P2PDMA_KERNEL: (u32, u32) = (6, 2);

/// How [`Machine::direct_by`] calls the two.
pub(crate) const NVIDIA_FS: &str = "nvidia-fs";
pub(crate) const P2PDMA: &str = "P2PDMA";

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

    /// The NUMA node of the block device under a directory, by the directory's device number; `None` where it has none.
    pub fn disk_node(&self, dir: &Path) -> Option<i32> {
        let device = nix::sys::stat::stat(dir).ok()?.st_dev;
        let at = format!("sys/dev/block/{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
        // From the partition up to the controller, the first that knows.
        let mut path = fs::canonicalize(self.path(&at)).ok()?;
        loop {
            let node = fs::read_to_string(path.join("numa_node"))
                .or_else(|_| fs::read_to_string(path.join("device/numa_node")));
            if let Ok(node) = node {
                return node.trim().parse().ok().filter(|node| *node >= 0);
            }
            if !path.pop() || path.parent().is_none() {
                return None;
            }
        }
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

/// The numbers of a list as the kernel writes them (`0,2-3`), in order; `None` when it is not one.
fn numbers(list: &str) -> Option<impl Iterator<Item = u32>> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u32>().ok()?..=last.parse().ok()?)
    };
    let ranges: Vec<_> = list.split(',').map(range).collect::<Option<_>>()?;
    Some(ranges.into_iter().flatten())
}
