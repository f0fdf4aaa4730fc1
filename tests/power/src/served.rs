//! A file system in user space that is served by a process of its own: started, told what to do, and ended.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use parking_lot::Mutex;

use crate::error::{Doing, Error, Result};
use crate::trouble::Rule;

/// A program that serves a file system, and what it is called with first.
#[derive(Debug, Clone)]
pub struct Program {
    /// Its path.
    pub path: PathBuf,
    /// Its first arguments.
    pub arguments: Vec<OsString>,
}

impl<T: Into<PathBuf>> From<T> for Program {
    fn from(path: T) -> Self {
        Self { path: path.into(), arguments: Vec::new() }
    }
}

/// The process. It ends when this is dropped; what is mounted on what it serves has to be unmounted before.
pub struct Served {
    child: Child,
    pipes: Option<Mutex<(ChildStdin, BufReader<ChildStdout>)>>,
}

impl Served {
    /// Starts it, and waits until it says that it is ready.
    ///
    /// # Errors
    /// When it does not: whether this machine has FUSE is known before (see [`crate::Lab::new`]), so this is no reason to skip.
    pub fn start(program: &Program, arguments: impl IntoIterator<Item = OsString>) -> Result<Self> {
        let mut child = Command::new(&program.path)
            .args(&program.arguments)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .doing(format!("start {}", program.path.display()))?;
        let pipes = child.stdin.take().zip(child.stdout.take().map(BufReader::new));
        let mut served = Self { child, pipes: pipes.map(Mutex::new) };
        if served.answer()? == "ready" {
            return Ok(served);
        }
        drop(served.pipes.take());
        let status = served.child.wait().doing("wait for a served file system")?;
        let command = format!("serve {}", program.path.display());
        Err(Error::Command { command, output: format!("a FUSE file system did not start ({status})") })
    }

    fn answer(&self) -> Result<String> {
        let mut line = String::new();
        if let Some(pipes) = &self.pipes {
            pipes.lock().1.read_line(&mut line).doing("wait for a served file system")?;
        }
        Ok(line.trim().to_owned())
    }

    fn tell(&self, command: &str) -> Result<String> {
        let mut line = String::new();
        if let Some(pipes) = &self.pipes {
            let (stdin, stdout) = &mut *pipes.lock();
            writeln!(stdin, "{command}").doing("tell a served file system")?;
            stdout.read_line(&mut line).doing("hear a served file system")?;
        }
        Ok(line.trim().to_owned())
    }

    /// From now on these rules are in force, and no others.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn trouble(&self, seed: u64, rules: &[Rule]) -> Result<()> {
        let commands = ["clear".to_owned(), format!("seed {seed}")].into_iter();
        for command in commands.chain(rules.iter().map(|rule| format!("rule {rule}"))) {
            let answer = self.tell(&command)?;
            if answer != "ok" {
                return Err(Error::Command { command, output: answer });
            }
        }
        Ok(())
    }

    /// Troubles made so far, and delays that are going on.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn count(&self) -> Result<(u64, u64)> {
        let answer = self.tell("count")?;
        let numbers = answer.split_once(' ').and_then(|(made, held)| Some((made.parse().ok()?, held.parse().ok()?)));
        numbers.ok_or(Error::Command { command: "count".into(), output: answer })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.pipes.take());
        if let Err(error) = self.child.wait() {
            eprintln!("the process of a served file system: {error}");
        }
    }
}
