//! `saltern bench --target` end to end, tiny. No timings are asserted.

mod common;

use common::{saltern, temp_dir};

#[test]
fn the_software_device_has_all_rows_and_every_byte_is_compared() {
    let dir = temp_dir();
    let args = ["bench", "--target", "gpu-sim", "--sizes", "64KiB,1MiB", "--total", "4MiB", "--rounds", "1"];
    let ran = saltern(dir.path(), &[&args[..], &["--json", "out.json", "--report", "page.html"]].concat());
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    let words = ran.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    for word in
        ["software device", "pipeline", "direct", "read+copy", "page cache", "0 errors", "say nothing about one"]
    {
        assert!(words.contains(word), "{word}: {}", ran.stdout);
    }
    let too_long = |line: &&str| line.chars().count() > 80;
    assert_eq!(ran.stdout.lines().find(too_long), None, "{}", ran.stdout);
    let page = std::fs::read_to_string(dir.path().join("page.html")).unwrap();
    for word in ["<svg", "disk to device", "page cache to device", "read+copy", "say nothing about one"] {
        assert!(page.contains(word), "{word}");
    }
    let report: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(dir.path().join("out.json")).unwrap()).unwrap();
    let results = report["results"].as_array().unwrap();
    assert_eq!((report["schema"].as_u64(), results.len()), (Some(1), 20), "{report}");
    for row in results {
        assert!(row["mib_per_s"].as_f64().unwrap() > 0.0 && row["errors"].as_u64() == Some(0), "{row}");
        assert_eq!(row["verified_bytes"].as_u64(), Some(4 << 20), "{row}");
    }
}

#[test]
fn without_a_gpu_it_says_so_and_what_to_do() {
    let dir = temp_dir();
    // More GPUs than any machine has.
    let ran = saltern(dir.path(), &["bench", "--target", "gpu:4000", "--sizes", "1MiB"]);
    assert_eq!(ran.code, 1, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.starts_with("error: ") && ran.stderr.contains("gpu-sim"), "{}", ran.stderr);
    let ran = saltern(dir.path(), &["bench", "--target", "tpu"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("known are host, gpu, gpu:N and gpu-sim"), "{}", ran.stderr);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn the_helper_answers_in_one_line() {
    let dir = temp_dir();
    let ran = saltern(dir.path(), &["gds-probe", "--gpu", "0", "--file", "f", "--libcuda", "/no/such/libcuda.so"]);
    assert_eq!((ran.code, ran.stdout.lines().count()), (0, 1), "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("failed") && ran.stdout.contains("libcuda.so"), "{}", ran.stdout);
}
