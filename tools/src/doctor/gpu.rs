//! GPUs: the driver, cuFile, how far each volume's disk is from each of them, and what an engine would use between the two.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use saltern::device::{Device, Route, RouteChoice};
use saltern_gds::machine::Machine;
use saltern_gds::{CudaDevice, CudaOptions, Driver, GdsError, GpuInfo, Prober};

use super::{Check, Status, of_volume};
use crate::human;

const DRIVER: &str = "CUDA driver";
const CUFILE: &str = "cuFile";

/// Most GPUs that are looked at one by one.
const GPUS_MAX: u32 = 16;

/// Nothing here stops an engine: without a GPU there is nothing to do about it.
pub(super) fn checks(dirs: &[PathBuf], quick: bool) -> Vec<Check> {
    let driver = match Driver::load(CudaOptions::from_env().libcuda.as_deref()) {
        Ok(driver) => driver,
        // Most machines that run this have none, and need none.
        Err(GdsError::NoLibrary { .. }) => {
            return vec![Check::ok(DRIVER, "not installed; only GPU memory would need it")];
        }
        Err(error) => {
            let advice = "objects cannot go to GPU memory: see `nvidia-smi`, and whether the container has the GPU";
            return vec![Check::new(Status::Note, DRIVER, error.to_string(), advice)];
        }
    };
    let machine = Machine::default();
    let (version, kernel) = (driver.version(), machine.kernel_driver());
    let kernel = kernel.map_or_else(String::new, |kernel| format!(", kernel driver {kernel}"));
    let mut checks = vec![Check::ok(DRIVER, format!("CUDA {}.{}{kernel}", version / 1000, version % 1000 / 10))];
    checks.push(cufile());
    for ordinal in 0..driver.device_count().unwrap_or(0).min(GPUS_MAX) {
        match CudaDevice::info_of(&driver, ordinal) {
            // A line for each volume: the disk's place, and the way to it, are each one's own.
            Ok(info) => checks.extend(
                dirs.iter().flat_map(|dir| of_volume(dirs, dir, vec![gpu(&driver, &info, &machine, dir, quick)])),
            ),
            Err(error) => checks.push(Check::new(Status::Note, "GPU", error.to_string(), "see `nvidia-smi`")),
        }
    }
    checks
}

/// What does not need a GPU's context: the library, and the drivers beneath it.
fn cufile() -> Check {
    let mut prober = Prober::default();
    prober.libcufile = CudaOptions::from_env().libcufile;
    let state = prober.state();
    let version = state.version.map_or_else(|| "not installed".to_owned(), |version| format!("version {version}"));
    match (state.by, state.why_not) {
        (Some(by), None) => Check::ok(CUFILE, format!("{version}, over {by}")),
        (_, why) => {
            let why = why.unwrap_or_default();
            let advice = "the pinned pipeline is used instead; it keeps the disk as busy, at more CPU";
            Check::new(Status::Note, CUFILE, format!("{version}; {why}"), advice)
        }
    }
}

fn gpu(driver: &Arc<Driver>, info: &GpuInfo, machine: &Machine, dir: &Path, quick: bool) -> Check {
    let name = format!("{}: {}, {}", info.ordinal, info.name, human::size(info.memory_bytes));
    let (disk, gpu) =
        (machine.disk_node(dir), machine.pci_node(&info.pci).or(Some(info.numa_node).filter(|node| *node >= 0)));
    let distance = disk.zip(gpu).and_then(|(disk, gpu)| machine.node_distance(gpu, disk));
    let far = places(disk, gpu, distance);
    let is_far = disk.zip(gpu).is_some_and(|(disk, gpu)| disk != gpu);
    let route = if quick { None } else { Some(route(driver, info, dir)) };
    let used = match &route {
        None => "not probed".to_owned(),
        Some(Ok(Route::Direct { by })) => format!("would use {by}"),
        Some(Ok(Route::Pipeline { why })) => format!("would use the pinned pipeline: {why}"),
        Some(Ok(_)) => "would use a way that this program does not know".to_owned(),
        Some(Err(error)) => format!("cannot be used: {error}"),
    };
    let value = format!("{name}, {far}; {used}");
    match route {
        Some(Err(_)) => Check::new(Status::Note, "GPU", value, "see `nvidia-smi`; is another program using all of it?"),
        _ if is_far => {
            Check::new(Status::Note, "GPU", value, "a disk on the GPU's own node saves a hop between the sockets")
        }
        _ => Check::ok("GPU", value),
    }
}

/// Where both are, by NUMA node.
fn places(disk: Option<i32>, gpu: Option<i32>, distance: Option<u32>) -> String {
    let distance = distance.map_or_else(String::new, |far| format!(" (distance {far})"));
    match (disk, gpu) {
        (Some(disk), Some(gpu)) if disk == gpu => format!("on NUMA node {gpu}, as the disk"),
        (Some(disk), Some(gpu)) => format!("on NUMA node {gpu}, the disk on {disk}{distance}"),
        (None, Some(gpu)) => format!("on NUMA node {gpu}, the disk's is not known"),
        (Some(disk), None) => format!("NUMA node not known, the disk on {disk}"),
        (None, None) => "NUMA nodes not known".to_owned(),
    }
}

fn route(driver: &Arc<Driver>, info: &GpuInfo, dir: &Path) -> Result<Route, String> {
    let mut options = CudaOptions::from_env();
    options.helper = options.helper.or(std::env::current_exe().ok());
    let device = CudaDevice::with_driver(driver.clone(), info.ordinal, options).map_err(|error| error.to_string())?;
    device.route(dir, RouteChoice::Auto).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_not_known_is_said_to_be_so() {
        assert_eq!(places(Some(1), Some(1), Some(10)), "on NUMA node 1, as the disk");
        assert_eq!(places(Some(0), Some(1), Some(32)), "on NUMA node 1, the disk on 0 (distance 32)");
        assert_eq!(places(Some(0), Some(1), None), "on NUMA node 1, the disk on 0");
        assert_eq!(places(None, Some(1), None), "on NUMA node 1, the disk's is not known");
        assert_eq!(places(Some(0), None, None), "NUMA node not known, the disk on 0");
        assert_eq!(places(None, None, None), "NUMA nodes not known");
    }
}
