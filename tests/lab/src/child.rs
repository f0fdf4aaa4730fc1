//! What this program is as a child of itself, by its first argument.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::sys::signal::Signal;

/// Serves a disk: mount point, image, perhaps a directory for its log.
pub const DISK: &str = "serve-disk";
/// Serves a file system: directory, mount point.
pub const THROUGH: &str = "serve-through";
/// Works until it is killed.
pub const KILLED: &str = "be-killed";
/// Writes into a slow disk until it is killed.
pub const HOLDING: &str = "hold-the-lock";
/// Works within a limit: its name, a directory.
pub const LIMITED: &str = "be-limited";

/// Plays the part, if the first argument names one.
pub fn play(arguments: &[OsString]) -> Option<ExitCode> {
    let role = arguments.first()?.to_str()?;
    let paths: Vec<PathBuf> = arguments[1..].iter().map(PathBuf::from).collect();
    let path = |at: usize| paths.get(at).map_or(Path::new("."), PathBuf::as_path);
    let played = match role {
        DISK => saltern_power::disk::serve(path(0), path(1), paths.get(2).map(PathBuf::as_path)),
        THROUGH => crate::through::serve(path(0), path(1)),
        KILLED | HOLDING | LIMITED => {
            // When the lab is killed, nobody else ends this process.
            if let Err(errno) = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL) {
                eprintln!("prctl: {errno}");
            }
            match role {
                KILLED => saltern_tests::kill::child(),
                HOLDING => crate::kills::hold(path(0)),
                _ => crate::resources::limited(&path(0).to_string_lossy(), path(1)),
            }
            Ok(())
        }
        _ => return None,
    };
    Some(match played {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("saltern-lab {role}: {error}");
            ExitCode::FAILURE
        }
    })
}
