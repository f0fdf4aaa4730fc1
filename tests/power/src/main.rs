//! `saltern-power-disk MOUNT_POINT BACKING_FILE LOG_DIR`: the logging disk, a process of its own. See [`saltern_power::disk`].

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [mount_point, backing, log_dir] = paths.as_slice() else {
        eprintln!("usage: saltern-power-disk MOUNT_POINT BACKING_FILE LOG_DIR");
        return ExitCode::FAILURE;
    };
    match saltern_power::disk::serve(mount_point, backing, log_dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("saltern-power-disk: {error}");
            ExitCode::FAILURE
        }
    }
}
