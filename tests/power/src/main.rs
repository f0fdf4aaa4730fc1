//! `saltern-power-disk MOUNT_POINT BACKING_FILE [LOG_DIR]`: the logging disk, a process of its own. See [`saltern_power::disk`].

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let (mount_point, backing, log_dir) = match paths.as_slice() {
        [mount_point, backing] => (mount_point, backing, None),
        [mount_point, backing, log_dir] => (mount_point, backing, Some(log_dir.as_path())),
        _ => {
            eprintln!("usage: saltern-power-disk MOUNT_POINT BACKING_FILE [LOG_DIR]");
            return ExitCode::FAILURE;
        }
    };
    match saltern_power::disk::serve(mount_point, backing, log_dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("saltern-power-disk: {error}");
            ExitCode::FAILURE
        }
    }
}
