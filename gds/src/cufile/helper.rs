//! What runs in the other process: cuFile's driver is opened, and a file goes to the GPU and back.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use nix::fcntl::OFlag;
use saltern::device::{DeviceRange, Direction};

use super::library::{CuFile, FileIo};
use super::probe::Outcome;
use crate::cuda::{CudaDevice, CudaOptions};
use crate::error::{GdsError, Result};

/// The first argument that a helper is called with; those that follow are for [`helper_main`].
pub const HELPER_SUBCOMMAND: &str = "gds-probe";

/// Bytes that go there and back: one bounce buffer of any mode is smaller.
const TRIAL_BYTES: usize = 2 << 20;

/// Runs the probe with the arguments that follow [`HELPER_SUBCOMMAND`], and prints what came of it in one line of JSON. A process
/// that calls this should do nothing else, and end.
pub fn helper_main(arguments: impl IntoIterator<Item = OsString>) {
    let outcome = match parse(arguments).and_then(Trial::run) {
        Ok(()) => Outcome::Direct,
        Err(error) => Outcome::Failed(error.to_string()),
    };
    let line = serde_json::to_string(&outcome).unwrap_or_default();
    println!("{line}");
}

#[derive(Default)]
struct Trial {
    gpu: u32,
    file: PathBuf,
    libcuda: Option<PathBuf>,
    libcufile: Option<PathBuf>,
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Trial> {
    let usage =
        || GdsError::NoCuFile(format!("{HELPER_SUBCOMMAND} --gpu N --file FILE [--libcuda LIB] [--libcufile LIB]"));
    let (mut trial, mut arguments) = (Trial::default(), arguments.into_iter());
    while let Some(option) = arguments.next() {
        let value = arguments.next().ok_or_else(usage)?;
        match option.to_str() {
            Some("--gpu") => trial.gpu = value.to_str().and_then(|text| text.parse().ok()).ok_or_else(usage)?,
            Some("--file") => trial.file = value.into(),
            Some("--libcuda") => trial.libcuda = Some(value.into()),
            Some("--libcufile") => trial.libcufile = Some(value.into()),
            _ => return Err(usage()),
        }
    }
    Ok(trial)
}

impl Trial {
    fn run(self) -> Result<()> {
        let options =
            CudaOptions { libcuda: self.libcuda, libcufile: self.libcufile.clone(), ..CudaOptions::default() };
        let device = CudaDevice::open(self.gpu, options)?;
        let cufile = CuFile::open_direct(self.libcufile.as_deref())?;
        let content: Vec<u8> = (0..TRIAL_BYTES as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let (from, into) = (device.alloc(TRIAL_BYTES)?, device.alloc(TRIAL_BYTES)?);
        from.write(&content)?;
        let file = OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_DIRECT.bits()).open(&self.file);
        let file = file.map_err(|error| GdsError::Io { op: "open", path: self.file, reason: error.to_string() })?;
        let handle = cufile.open(file.as_fd())?;
        for (direction, slice) in [(Direction::FromDevice, &from), (Direction::ToDevice, &into)] {
            let mut moved = 0;
            while moved < TRIAL_BYTES {
                let range = DeviceRange { address: slice.address() + moved as u64, len: TRIAL_BYTES - moved };
                match cufile.transfer(direction, handle, moved as u64, range)? {
                    0 => return Err(GdsError::NoCuFile(format!("it stopped after {moved} bytes"))),
                    more => moved += more,
                }
            }
        }
        cufile.close(handle);
        if into.read()? != content {
            return Err(GdsError::NoCuFile("what came back was not what was written".to_owned()));
        }
        Ok(())
    }
}
