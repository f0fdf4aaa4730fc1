//! What runs in the other process: cuFile's driver is opened, and a file goes to the GPU and back.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use nix::fcntl::OFlag;
use saltern::device::{DeviceRange, Direction};

use super::batch::{BATCH_MAX, Ended, Entry};
use super::library::{CuFile, DeviceSpan, FileHandle, FileIo, Mode};
use super::probe::Outcome;
use crate::cuda::{CudaDevice, CudaOptions, DeviceSlice};
use crate::error::{GdsError, Result};
use crate::machine::P2PDMA;

/// The first argument that a helper is called with; those that follow are for [`helper_main`].
pub const HELPER_SUBCOMMAND: &str = "gds-probe";

/// Bytes that go there and back: one bounce buffer of any mode is smaller.
const TRIAL_BYTES: usize = 2 << 20;

/// Runs the probe with the arguments that follow [`HELPER_SUBCOMMAND`], and prints what came of it, a line of JSON for each step. A
/// process that calls this should do nothing else, and end.
pub fn helper_main(arguments: impl IntoIterator<Item = OsString>) {
    if let Err(error) = parse(arguments).and_then(Trial::run) {
        say(&Outcome::Failed(error.to_string()));
    }
}

/// Each line is written when it is known: what follows may never come back.
fn say(outcome: &Outcome) {
    let line = serde_json::to_string(outcome).unwrap_or_default();
    println!("{line}");
}

#[derive(Default)]
struct Trial {
    gpu: u32,
    file: PathBuf,
    by_p2pdma: bool,
    libcuda: Option<PathBuf>,
    libcufile: Option<PathBuf>,
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Trial> {
    let usage = || {
        let usage = "--gpu N --file FILE [--by P2PDMA] [--libcuda LIB] [--libcufile LIB]";
        GdsError::NoCuFile(format!("{HELPER_SUBCOMMAND} {usage}"))
    };
    let (mut trial, mut arguments) = (Trial::default(), arguments.into_iter());
    while let Some(option) = arguments.next() {
        let value = arguments.next().ok_or_else(usage)?;
        match option.to_str() {
            Some("--gpu") => trial.gpu = value.to_str().and_then(|text| text.parse().ok()).ok_or_else(usage)?,
            Some("--file") => trial.file = value.into(),
            Some("--by") => trial.by_p2pdma = value == P2PDMA,
            Some("--libcuda") => trial.libcuda = Some(value.into()),
            Some("--libcufile") => trial.libcufile = Some(value.into()),
            _ => return Err(usage()),
        }
    }
    Ok(trial)
}

/// Memory that is written, and what it is compared with when it comes back.
struct Bytes {
    content: Vec<u8>,
    from: DeviceSlice,
    into: DeviceSlice,
}

impl Trial {
    fn run(self) -> Result<()> {
        let options =
            CudaOptions { libcuda: self.libcuda, libcufile: self.libcufile.clone(), ..CudaOptions::default() };
        let device = CudaDevice::open(self.gpu, options)?;
        device.bind_thread()?;
        let mode = Mode::Direct { by_p2pdma: self.by_p2pdma, in_batches: true };
        let cufile = CuFile::open(self.libcufile.as_deref(), mode)?;
        let content: Vec<u8> = (0..TRIAL_BYTES as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let bytes = Bytes { content, from: device.alloc(TRIAL_BYTES)?, into: device.alloc(TRIAL_BYTES)? };
        bytes.from.write(&bytes.content)?;
        let file = OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_DIRECT.bits()).open(&self.file);
        let file = file.map_err(|error| GdsError::Io { op: "open", path: self.file, reason: error.to_string() })?;
        let handle = cufile.open(file.as_fd())?;
        there_and_back(&bytes, |direction, memory| move_all(&cufile, direction, handle, memory))?;
        say(&Outcome::Direct);
        bytes.into.write(&vec![0; TRIAL_BYTES])?;
        let in_batches = there_and_back(&bytes, |direction, memory| move_in_batch(&cufile, direction, handle, memory));
        say(&Outcome::Batches(in_batches.err().map(|error| error.to_string())));
        cufile.close(handle);
        Ok(())
    }
}

fn there_and_back(bytes: &Bytes, go: impl Fn(Direction, DeviceSpan) -> Result<()>) -> Result<()> {
    for (direction, slice) in [(Direction::FromDevice, &bytes.from), (Direction::ToDevice, &bytes.into)] {
        go(direction, DeviceRange { address: slice.address(), len: slice.len() }.into())?;
    }
    match bytes.into.read()? == bytes.content {
        true => Ok(()),
        false => Err(GdsError::NoCuFile("what came back was not what was written".to_owned())),
    }
}

fn move_all(cufile: &CuFile, direction: Direction, file: FileHandle, memory: DeviceSpan) -> Result<()> {
    let mut moved = 0;
    while moved < memory.len {
        match cufile.transfer(direction, file, moved as u64, memory.rest(moved))? {
            0 => return Err(GdsError::NoCuFile(format!("it stopped after {moved} bytes"))),
            more => moved += more,
        }
    }
    Ok(())
}

/// In as many parts as a batch has; what is short goes on by itself.
fn move_in_batch(cufile: &CuFile, direction: Direction, file: FileHandle, memory: DeviceSpan) -> Result<()> {
    let mut batch = cufile.batch(BATCH_MAX)?;
    let part = memory.len / BATCH_MAX;
    let span = |number: usize| DeviceSpan { len: part, ..memory.rest(number * part) };
    let entry = |token: usize| Entry { direction, file, offset: (token * part) as u64, memory: span(token), token };
    batch.submit(&(0..BATCH_MAX).map(entry).collect::<Vec<_>>())?;
    let mut ended = Vec::new();
    while ended.len() < BATCH_MAX {
        batch.wait(&mut ended)?;
    }
    for Ended { token, result, .. } in ended {
        let mut moved = result?;
        while moved < part {
            match cufile.transfer(direction, file, (token * part + moved) as u64, span(token).rest(moved))? {
                0 => return Err(GdsError::NoCuFile("a transfer of a batch stopped".to_owned())),
                more => moved += more,
            }
        }
    }
    Ok(())
}
