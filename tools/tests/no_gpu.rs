//! What is missing on a machine, told by `doctor` and `bench --target gpu`: no driver, a driver without a GPU, an old one, no libcufile. Each
//! takes milliseconds; the bound only turns a hang into a failure.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Ran, command, temp_dir};

const WAIT_MAX: Duration = Duration::from_secs(10);

/// Builds a library of software; `None`, said, without a C compiler.
fn library(dir: &Path, source: &str, option: &str) -> Option<PathBuf> {
    let path = dir.join(format!("lib{source}{option}.so"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../gds/tests/fake/{source}.c"));
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&path).arg(&source);
    if !option.is_empty() {
        cc.arg(option);
    }
    match cc.output() {
        Ok(built) if built.status.success() => Some(path),
        Ok(built) => panic!("{}", String::from_utf8_lossy(&built.stderr)),
        Err(error) => {
            eprintln!("skipped: no C compiler: {error}");
            None
        }
    }
}

/// Runs `saltern` with these libraries; it has to end by itself.
fn run(dir: &Path, args: &[&str], libcuda: &Path, libcufile: &Path) -> Ran {
    let mut command = command(dir, args);
    command.env("SALTERN_LIBCUDA", libcuda).env("SALTERN_LIBCUFILE", libcufile);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > WAIT_MAX {
            child.kill().unwrap();
            panic!("{args:?} hangs with {}", libcuda.display());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("{args:?}: {:?}", started.elapsed());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[test]
fn doctor_and_bench_name_what_is_missing_and_end() {
    let dir = temp_dir();
    let none = Path::new("/no/such/library.so");
    let build = |option| library(dir.path(), "cuda", option);
    let (Some(no_gpu), Some(old), Some(gpu)) = (build("-DDEVICES=0"), build("-DLACKS_A_SYMBOL"), build("")) else {
        return;
    };
    let not_a_library = dir.path().join("text.so");
    std::fs::write(&not_a_library, "no library").unwrap();
    for (libcuda, says) in [
        (none, "not installed"),
        (not_a_library.as_path(), "not installed"),
        (no_gpu.as_path(), "CUDA_ERROR_NO_DEVICE"),
        (old.as_path(), "has no cuPointerGetAttribute"),
    ] {
        let doctor = run(dir.path(), &["doctor", "--quick", ".", "--json", "-"], libcuda, none);
        assert_eq!(doctor.code, 0, "{}{}", doctor.stdout, doctor.stderr);
        let report = doctor.json();
        let checks = report["checks"].as_array().unwrap();
        let driver = checks.iter().find(|check| check["item"] == "CUDA driver").unwrap();
        assert!(driver["value"].as_str().unwrap().contains(says), "{driver}");
        assert!(!checks.iter().any(|check| check["item"] == "GPU"), "{report}");
        let scratch = temp_dir();
        let bench = run(scratch.path(), &["bench", "--target", "gpu", "--sizes", "1MiB"], libcuda, none);
        assert_eq!(bench.code, 1, "{}{}", bench.stdout, bench.stderr);
        assert!(bench.stderr.starts_with("error: ") && bench.stderr.contains("gpu-sim"), "{}", bench.stderr);
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
    // A GPU, and no libcufile.
    let doctor = run(dir.path(), &["doctor", "--quick", ".", "--json", "-"], &gpu, none).json();
    let value = |item: &str| {
        let check = doctor["checks"].as_array().unwrap().iter().find(|check| check["item"] == item).unwrap();
        check["value"].as_str().unwrap().to_owned()
    };
    assert!(value("CUDA driver").contains("CUDA 12.8"), "{doctor}");
    assert!(value("cuFile").contains("not installed") && value("cuFile").contains("library.so"), "{doctor}");
    assert!(value("GPU").contains("Software GPU"), "{doctor}");
    // Of each volume: where it is, and the way to it.
    let (first, second) = (temp_dir(), temp_dir());
    let volumes = [first.path(), second.path()].map(|dir| dir.canonicalize().unwrap().display().to_string());
    let args = ["doctor", &volumes[0], &volumes[1], "--json", "-"];
    let report = run(dir.path(), &args, &gpu, none).json();
    assert_eq!((&report["dir"], &report["dirs"]), (&volumes[0].as_str().into(), &volumes.to_vec().into()));
    for item in ["GPU", "file system", "O_DIRECT"] {
        let of_item = report["checks"].as_array().unwrap().iter().filter(|check| check["item"] == item);
        let values: Vec<_> = of_item.map(|check| check["value"].as_str().unwrap()).collect();
        let is_told = values.iter().zip(&volumes).all(|(value, volume)| value.starts_with(&format!("{volume}: ")));
        assert!(values.len() == 2 && is_told, "{item}: {values:?}");
        assert!(
            item != "GPU" || values.iter().all(|value| value.contains("would use the pinned pipeline")),
            "{values:?}"
        );
    }
    // cuFile whose driver never comes back: it is not opened where there are no modules, and given up where there are.
    let Some(hangs) = library(dir.path(), "cufile", "-DHANGS") else { return };
    let doctor = run(dir.path(), &["doctor", "--quick", ".", "--json", "-"], &gpu, &hangs).json();
    let checks = doctor["checks"].as_array().unwrap();
    let cufile = checks.iter().find(|check| check["item"] == "cuFile").unwrap();
    assert!(cufile["value"].as_str().unwrap().contains("version 1.13"), "{cufile}");
    if !Path::new("/proc/modules").exists() {
        assert!(cufile["value"].as_str().unwrap().contains("/proc/modules does not exist"), "{cufile}");
    }
    // The route as an engine would have it: the pipeline, and why.
    let doctor = run(dir.path(), &["doctor", "."], &gpu, none);
    let words = doctor.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("would use the pinned pipeline: cuFile cannot be used:"), "{words}");
}

#[test]
fn the_bench_measures_a_gpu_of_software_in_every_way_that_it_has() {
    let dir = temp_dir();
    let (Some(libcuda), Some(libcufile)) = (library(dir.path(), "cuda", ""), library(dir.path(), "cufile", "")) else {
        return;
    };
    let args =
        ["bench", "--target", "gpu", "--sizes", "100KiB", "--total", "1MiB", "--rounds", "1", "--json", "out.json"];
    let ran = run(dir.path(), &args, &libcuda, &libcufile);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    let report: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(dir.path().join("out.json")).unwrap()).unwrap();
    assert_eq!(report["copies"].as_array().unwrap().len(), 6, "{report}");
    let rows = report["results"].as_array().unwrap();
    let has = |way: &str| rows.iter().any(|row| row["way"] == way);
    // cuFile needs /proc/modules, which not every machine has; what is left out is told.
    assert!(has("pipeline") && has("read-copy"), "{report}");
    assert_eq!(has("cufile-compat"), Path::new("/proc/modules").exists(), "{report}");
    assert!(has("direct") || report["notes"].to_string().contains("no direct rows"), "{report}");
    assert!(rows.iter().all(|row| row["errors"] == 0 && row["ratio"].as_f64().unwrap() > 0.0), "{report}");
}
