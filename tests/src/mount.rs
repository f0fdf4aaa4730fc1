//! File systems in a file, for tests that need another one than the disk has. Needs root and a loop device.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::scratch::Scratch;

/// Why there is no such file system here. Tests print it and pass.
#[derive(Debug)]
pub struct Unmountable(pub String);

/// A mounted image; unmounted, detached and deleted when it is dropped, also by a panic.
pub struct LoopMount {
    at: PathBuf,
    // Dropped after `drop` has unmounted what lies in it.
    _scratch: Scratch,
}

impl LoopMount {
    /// Makes a file system of this kind with `mkfs.<kind>` and mounts it.
    ///
    /// # Errors
    /// [`Unmountable`] when a tool is missing or the machine does not allow it.
    pub fn new(base: &str, kind: &str, bytes: u64, options: &[&str]) -> Result<Self, Unmountable> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Unmountable("mounting needs root".into()));
        }
        // Never elsewhere: the image has to lie on a disk.
        let scratch = Scratch::exactly_under(Path::new(base), kind);
        let (image, at) = (scratch.join("image"), scratch.join("mount"));
        let file = File::create(&image).expect("an image file");
        file.set_len(bytes).expect("an image file");
        fs::create_dir(&at).expect("a mount point");
        run(Command::new(format!("mkfs.{kind}")).args(options).arg(&image))?;
        // The loop device is of the kind that goes with its mount.
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at))?;
        Ok(Self { at, _scratch: scratch })
    }

    /// The root of the file system.
    pub fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for LoopMount {
    fn drop(&mut self) {
        if run(Command::new("umount").arg(&self.at)).is_err() {
            // Something is open still, after a panic: away from the tree now, and gone with its last user.
            if let Err(Unmountable(why)) = run(Command::new("umount").arg("-l").arg(&self.at)) {
                eprintln!("{} stays mounted: {why}", self.at.display());
            }
        }
    }
}

fn run(command: &mut Command) -> Result<(), Unmountable> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| Unmountable(format!("{name}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Unmountable(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}
