//! Whether cuFile is direct for files of a directory, found out without ever hanging.
//!
//! Two traps make this more than a call: cuFileDriverOpen loops for ever where `/proc/modules` does not exist, and its success
//! proves nothing. So cheap checks come first, each with its reason; then another process opens the driver with compatibility mode
//! forbidden, and moves a file to the GPU and back, before a deadline. Only that is direct.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::helper::HELPER_SUBCOMMAND;
use super::library::{library_version, version_text};
use crate::error::{GdsError, Result};
use crate::machine::Machine;

/// How long the other process may take: opening a driver and a context takes about a second.
pub const PROBE_DEADLINE: Duration = Duration::from_secs(10);

/// A probe that showed direct transfers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProbeReport {
    /// libcufile's version.
    pub version: String,
    /// `nvidia-fs` or `P2PDMA`.
    pub by: &'static str,
    /// Why transfers do not go in batches; `None` where they do.
    pub no_batches: Option<String>,
}

/// What the cheap checks say of cuFile on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CuFileState {
    /// libcufile's version, where there is one.
    pub version: Option<String>,
    /// How it could be direct: `nvidia-fs` or `P2PDMA`.
    pub by: Option<&'static str>,
    /// Why it cannot be, or has to be taken for it.
    pub why_not: Option<String>,
}

/// How to probe.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Prober {
    /// libcuda, for the other process.
    pub libcuda: Option<PathBuf>,
    /// libcufile.
    pub libcufile: Option<PathBuf>,
    /// The program of the other process.
    pub helper: Option<PathBuf>,
    /// The GPU.
    pub ordinal: u32,
    /// How long it may take.
    pub deadline: Duration,
    /// What the kernel shows of itself; tests have their own.
    pub machine: Machine,
}

impl Default for Prober {
    fn default() -> Self {
        let deadline = PROBE_DEADLINE;
        Self { libcuda: None, libcufile: None, helper: None, ordinal: 0, deadline, machine: Machine::default() }
    }
}

/// What the other process says, in a line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Outcome {
    /// Calls that block have moved a file there and back.
    Direct,
    /// Batches have, too; or why not.
    Batches(Option<String>),
    Failed(String),
}

/// How the other process has ended.
enum End {
    Itself,
    /// It was killed at the deadline.
    Hung,
}

impl Prober {
    /// The cheap checks: no driver is opened. Within milliseconds.
    pub fn state(&self) -> CuFileState {
        let version = library_version(self.libcufile.as_deref());
        let by = self.machine.direct_by();
        let why_not = match (&version, &by) {
            (Err(error), _) => Some(error.to_string()),
            _ if !self.machine.has_modules() => Some(format!(
                "{} does not exist, and cuFile would look for it for ever: this kernel has no loadable modules",
                self.machine.modules().display()
            )),
            (_, Err(why)) => Some(why.clone()),
            _ => None,
        };
        CuFileState { version: version.ok().map(version_text), by: by.ok(), why_not }
    }

    /// All of it.
    ///
    /// # Errors
    /// [`GdsError::NoCuFile`] says why files of this directory do not go directly.
    pub fn probe(&self, dir: &Path) -> Result<ProbeReport> {
        let CuFileState { version: Some(version), by: Some(by), why_not: None } = self.state() else {
            return Err(GdsError::NoCuFile(self.state().why_not.unwrap_or_default()));
        };
        let helper = self.helper.as_ref().ok_or_else(|| {
            let why = "there is no helper program to try it in, and its driver is not opened untried; name the program `saltern`";
            GdsError::NoCuFile(why.to_owned())
        })?;
        let file = TrialFile::create(dir)?;
        let mut command = Command::new(helper);
        command.arg(HELPER_SUBCOMMAND).arg("--gpu").arg(self.ordinal.to_string()).arg("--file").arg(&file.0);
        command.args(["--by", by]);
        for (option, path) in [("--libcuda", &self.libcuda), ("--libcufile", &self.libcufile)] {
            if let Some(path) = path {
                command.arg(option).arg(path);
            }
        }
        let no_batches = self.run(command)?;
        Ok(ProbeReport { version, by, no_batches })
    }

    /// Runs the other process. That calls which block are direct is enough: a batch that hangs after that costs the batches alone.
    fn run(&self, mut command: Command) -> Result<Option<String>> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let program = command.get_program().to_owned();
        let failed = |why: String| GdsError::NoCuFile(format!("the helper {} {why}", program.display()));
        let mut child =
            Reaped(Command::spawn(&mut command).map_err(|error| failed(format!("did not start: {error}")))?);
        let end = self.wait(&mut child).map_err(|error| failed(format!("cannot be waited for: {error}")))?;
        // A few short lines, which fit into the pipe: the process could end without a reader.
        let mut text = String::new();
        if let Some(stdout) = &mut child.0.stdout {
            let _ = stdout.read_to_string(&mut text);
        }
        let (mut is_direct, mut batches) = (false, None);
        for outcome in text.lines().filter_map(|line| serde_json::from_str(line).ok()) {
            match outcome {
                Outcome::Direct => is_direct = true,
                Outcome::Batches(why_not) => batches = Some(why_not),
                Outcome::Failed(why) => return Err(GdsError::NoCuFile(why)),
            }
        }
        match (is_direct, batches, end) {
            (true, Some(why_not), _) => Ok(why_not),
            (true, None, End::Hung) => Ok(Some("a batch did not come back".to_owned())),
            (true, None, End::Itself) => Ok(Some("cuFile crashed in a batch".to_owned())),
            (false, _, End::Itself) => Err(failed("ended without an answer: did cuFile crash?".to_owned())),
            (false, _, End::Hung) => {
                let seconds = self.deadline.as_secs_f64();
                Err(failed(format!("did not come back within {seconds} s, and was killed: cuFile hangs here")))
            }
        }
    }

    fn wait(&self, child: &mut Reaped) -> std::io::Result<End> {
        let started = Instant::now();
        while child.0.try_wait()?.is_none() {
            if started.elapsed() >= self.deadline {
                child.0.kill()?;
                child.0.wait()?;
                return Ok(End::Hung);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(End::Itself)
    }
}

/// A child that is gone when this is.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A file in the directory that is to be probed, removed at the end.
struct TrialFile(PathBuf);

impl TrialFile {
    fn create(dir: &Path) -> Result<Self> {
        // Where an engine has the directory, unfinished files have their place, and are removed should this be killed.
        let own = dir.join(".saltern/tmp");
        let dir = if own.is_dir() { own } else { dir.to_owned() };
        let made = tempfile::Builder::new().prefix("gds-probe-").tempfile_in(&dir);
        let kept = made.and_then(|file| file.into_temp_path().keep().map_err(|error| error.error));
        kept.map(Self).map_err(|error| GdsError::Io { op: "create a file in", path: dir, reason: error.to_string() })
    }
}

impl Drop for TrialFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
