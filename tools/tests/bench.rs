//! `saltern bench` end to end, tiny. No timings are asserted.

mod common;

use std::io::{Read, Write};
use std::process::Stdio;

use common::{command, saltern, temp_dir};
use serde_json::Value;

const PHASES: [&str; 9] = [
    "fresh",
    "steady",
    "load",
    "mixed",
    "lookup present",
    "lookup absent",
    "lookup present-busy",
    "lookup absent-busy",
    "restart",
];

/// Those that move objects.
const MOVES: [&str; 4] = ["fresh", "steady", "load", "mixed"];

fn name(result: &Value) -> String {
    let phase = result["phase"].as_str().unwrap();
    result["variant"].as_str().map_or_else(|| phase.to_owned(), |variant| format!("{phase} {variant}"))
}

#[test]
fn the_integrity_that_is_asked_for_is_used_and_told() {
    let dir = temp_dir();
    let args = ["bench", "--sizes", "64KiB", "--total", "2MiB", "--rounds", "1", "--phases", "steady,load"];
    for integrity in ["off", "store", "verify"] {
        let more = ["--integrity", integrity, "--json", "out.json", "--report", "out.html"];
        let ran = saltern(dir.path(), &[&args[..], &more].concat());
        assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
        let told = format!("integrity {integrity}");
        assert!(ran.stdout.contains(&told), "{}", ran.stdout);
        let text = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(text("out.html").contains(&told));
        let report: Value = serde_json::from_str(&text("out.json")).unwrap();
        assert_eq!(report["volume"]["integrity"], integrity);
    }
    let wrong = saltern(dir.path(), &[&args[..], &["--integrity", "on"]].concat());
    assert!(wrong.code == 2 && wrong.stderr.contains("off, store, verify"), "{}", wrong.stderr);
}

#[test]
fn all_phases_run_and_verify_in_every_layout() {
    for layout in ["fs", "fs3", "nixl", "nixl3", "nixl-sharded"] {
        let dir = temp_dir();
        let mut args =
            vec!["bench", "--sizes", "64KiB,1MiB", "--total", "4MiB", "--layout", layout, "--json", "out.json"];
        args.extend(["--phases", "fresh,steady,load,mixed,lookup,restart"]);
        let ran = saltern(dir.path(), &args);
        assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
        assert!(ran.stdout.lines().skip(1).all(|line| line.chars().count() <= 80), "{}", ran.stdout);
        assert!(ran.stdout.contains("ratio: of what") && ran.stdout.contains(" 0 errors"), "{}", ran.stdout);
        assert_eq!(ran.stderr, "");

        let report: Value = serde_json::from_slice(&std::fs::read(dir.path().join("out.json")).unwrap()).unwrap();
        assert_eq!(report["schema"], 1);
        assert!(report["machine"]["cores"].as_u64().unwrap() > 0);
        for field in ["fs", "durability", "integrity", "fixed_buffers"] {
            assert!(!report["volume"][field].as_str().unwrap().is_empty(), "{field}");
        }
        let results = report["results"].as_array().unwrap();
        let names: Vec<_> = results.iter().map(name).collect();
        assert_eq!(names, [PHASES, PHASES].concat());
        for (result, name) in results.iter().zip(names) {
            assert_eq!((&result["errors"], &result["layout"]), (&Value::from(0), &Value::from(layout)), "{result}");
            let moves = MOVES.contains(&&*name);
            for field in ["mib_per_s", "cpu_seconds_per_gb", "ceiling_mib_per_s", "ratio"] {
                assert_eq!(result[field].as_f64().is_some_and(|value| value >= 0.0), moves, "{field} of {result}");
            }
            for field in ["seconds", "objects_per_s"] {
                assert!(result[field].as_f64().unwrap() > 0.0, "{field} of {result}");
            }
            let latency = |quantile: &str| result["latency_us"][quantile].as_f64().unwrap();
            let quantiles = ["p50", "p90", "p99", "p999", "max"].map(latency);
            assert!(quantiles[0] > 0.0 && quantiles.is_sorted(), "{result}");
            let is_verified = result["verified_bytes"].as_u64().unwrap() > 0;
            assert_eq!(is_verified, moves || name == "restart" || name.ends_with("busy"), "{result}");
            let at_capacity = name == "steady" || name == "mixed";
            for field in ["recycled", "spare_bytes"] {
                assert_eq!(result[field].is_number(), at_capacity, "{field} of {result}");
            }
            let own = ["load_latency_us", "idle_load_latency_us"];
            for field in own.into_iter().chain(["device_load_latency_us", "device_idle_load_latency_us"]) {
                assert_eq!(result[field]["p99"].as_f64().is_some_and(|us| us > 0.0), name == "mixed", "{result}");
            }
            assert_eq!((&result["engine"], &result["vs_baseline"]), (&Value::from("saltern"), &Value::Null));
            assert_eq!(result["keys_per_s"].is_number(), name.starts_with("lookup"), "{result}");
        }
        assert_eq!(results[0]["verified_bytes"], 4 << 20);
        assert_eq!((&results[0]["objects"], &results[9]["objects"]), (&Value::from(64), &Value::from(4)));
        // The scratch directory is gone.
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["out.json"]);
    }
}

#[test]
fn baselines_do_the_same_and_the_report_is_one_page_with_plots() {
    let dir = temp_dir();
    let args = [
        "bench",
        "--sizes",
        "64KiB,256KiB",
        "--total",
        "4MiB",
        "--rounds",
        "2",
        "--phases",
        "fresh,steady,load,mixed",
        "--baselines",
        "--report",
        "page.html",
        "--json",
        "-",
    ];
    let ran = saltern(dir.path(), &args);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    let report = ran.json();
    let results = report["results"].as_array().unwrap();
    let names: Vec<_> =
        results.iter().map(|result| format!("{} {}", name(result), result["engine"].as_str().unwrap())).collect();
    let engines = |phase: &str| ["saltern", "pread-pwrite", "tokio-uring"].map(|engine| format!("{phase} {engine}"));
    let of_size = [engines("fresh"), engines("steady"), engines("load")].concat();
    let of_size = [of_size, vec!["mixed saltern".to_owned()]].concat();
    assert_eq!(names, [of_size.clone(), of_size].concat());
    for (result, name) in results.iter().zip(names) {
        assert_eq!(result["errors"], 0, "{result}");
        assert!(
            result["verified_bytes"].as_u64().unwrap() > 0 && result["mib_per_s"].as_f64().unwrap() > 0.0,
            "{name}"
        );
        let compared = name.ends_with(" saltern") && !name.starts_with("mixed");
        assert_eq!(result["vs_baseline"].as_f64().is_some_and(|ratio| ratio > 0.0), compared, "{result}");
    }
    let page = std::fs::read_to_string(dir.path().join("page.html")).unwrap();
    // Throughput and CPU of four phases, latencies at two sizes.
    assert_eq!(page.matches("<svg").count(), 4 + 2 + 4);
    for text in
        ["MiB/s", "CPU s/GB", "object size", "share of loads that are faster", "64 KiB", "UTC", "prefers-color-scheme"]
    {
        assert!(page.contains(text), "{text}");
    }
    // Nothing from outside.
    for text in ["<script", "<link", "@import", "src=", "url(", "href="] {
        assert!(!page.contains(text), "{text}");
    }
    let unwritable = saltern(dir.path(), &["bench", "--report", "no/such/dir/page.html"]);
    assert_eq!(unwritable.code, 1, "{}", unwritable.stderr);
    assert!(unwritable.stderr.contains("--report"), "{}", unwritable.stderr);
}

#[test]
fn an_earlier_run_is_shown_again() {
    let dir = temp_dir();
    let args = ["bench", "--sizes", "64KiB", "--total", "2MiB", "--rounds", "1", "--phases", "fresh,load,lookup"];
    let ran = saltern(dir.path(), &[&args[..], &["--json", "out.json"]].concat());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let again = saltern(dir.path(), &["bench", "--from", "out.json", "--report", "page.html"]);
    assert_eq!((again.code, &again.stdout), (0, &ran.stdout), "{}", again.stderr);
    assert!(std::fs::read_to_string(dir.path().join("page.html")).unwrap().contains("<svg"));

    // As bench/peers writes it: other adapters, and how they compare.
    let text = std::fs::read_to_string(dir.path().join("out.json")).unwrap();
    let mut report: Value = serde_json::from_str(&text).unwrap();
    let mut peer = report["results"][1].clone();
    peer["engine"] = "lmcache-fs-native".into();
    report["results"][1]["vs_best_peer"] = 2.5.into();
    report["results"].as_array_mut().unwrap().insert(2, peer);
    std::fs::write(dir.path().join("peers.json"), report.to_string()).unwrap();
    let peers = saltern(dir.path(), &["bench", "--from", "peers.json", "--report", "page.html"]);
    assert_eq!(peers.code, 0, "{}", peers.stderr);
    for text in ["x best peer", "2.50", "  fs_native", "fs_native: LMCache's fs_native"] {
        assert!(peers.stdout.contains(text), "{text}: {}", peers.stdout);
    }
    let page = std::fs::read_to_string(dir.path().join("page.html")).unwrap();
    assert!(page.contains("LMCache&#39;s fs_native") || page.contains("LMCache's fs_native"));

    for wrong in ["no.json", "page.html"] {
        let failed = saltern(dir.path(), &["bench", "--from", wrong]);
        assert_eq!(failed.code, 1, "{}", failed.stderr);
        assert!(failed.stderr.contains(wrong) && failed.stderr.contains("--json"), "{}", failed.stderr);
    }
    assert_eq!(saltern(dir.path(), &["bench", "--from", "out.json", "--rounds", "3"]).code, 2);
}

#[test]
fn the_ceiling_answers_line_by_line() {
    let dir = temp_dir();
    let mut child = command(dir.path(), &["ceiling", "--total", "2MiB"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for overwrite in [false, true] {
        writeln!(stdin, r#"{{"overwrite":{overwrite},"object_bytes":65536,"objects":32,"depth":8,"buffers":16}}"#)
            .unwrap();
    }
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines.len(), lines[0]), (3, "ready"));
    for line in &lines[1..] {
        let answer: Value = serde_json::from_str(line).unwrap();
        assert!(answer["bytes"] == 2 << 20 && answer["seconds"].as_f64().unwrap() > 0.0, "{line}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn phases_run_alone_with_odd_sizes_and_json_on_stdout() {
    let dir = temp_dir();
    for phase in ["fresh", "steady", "load", "mixed", "lookup", "restart"] {
        let args = [
            "bench", "--phases", phase, "--sizes", "5001", "--total", "100KiB", "--depth", "3", "--shards", "2",
            "--rounds", "2", "--json", "-",
        ];
        let ran = saltern(dir.path(), &args);
        assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
        let report = ran.json();
        let results = report["results"].as_array().unwrap();
        assert!(results.iter().all(|result| result["phase"] == phase && result["errors"] == 0), "{report:#}");
        assert_eq!(results[0]["object_bytes"], 5001);
        assert_eq!(report["volume"]["shards"], 2);
    }
}

#[test]
fn wrong_usage_is_told_apart_from_failure() {
    let dir = temp_dir();
    let run = |args: &[&str]| saltern(dir.path(), &[&["bench"], args].concat());
    let wrong: [(&[&str], &str); 7] = [
        (&["--phases", "warp"], "there are fresh, steady, load, mixed, lookup, restart"),
        (&["--phases", "fresh,unsteady"], "there is no phase \"unsteady\""),
        (&["--sizes", "12XB"], "is not a size"),
        (&["--layout", "zip"], "unknown layout"),
        (&["--depth", "0"], "a depth of 0"),
        (&["--total", "1KiB"], "holds no object"),
        (&["--no-such-option"], "--no-such-option"),
    ];
    for (args, message) in wrong {
        let ran = run(args);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.starts_with("error: ") && ran.stderr.contains(message), "{args:?}: {}", ran.stderr);
        assert_eq!(ran.stdout, "");
    }
    let missing = run(&["--dir", "no/such/directory"]);
    assert_eq!(missing.code, 1, "{}", missing.stderr);
    assert!(missing.stderr.contains("no/such/directory") && missing.stderr.contains("\nhint: "), "{}", missing.stderr);
    let too_much = run(&["--total", "4000TiB"]);
    assert_eq!(too_much.code, 1, "{}", too_much.stderr);
    assert!(too_much.stderr.contains("MiB free") && too_much.stderr.contains("--total"), "{}", too_much.stderr);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    assert_eq!(run(&["--help"]).code, 0);
}

#[test]
fn an_interrupt_cleans_up() {
    let dir = temp_dir();
    let mut child = command(dir.path(), &["bench", "--sizes", "64KiB", "--total", "256MiB", "--rounds", "50"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The scratch directory says that it has begun.
    while std::fs::read_dir(dir.path()).unwrap().count() == 0 {
        assert!(child.try_wait().unwrap().is_none(), "it ended without having begun");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGINT).unwrap();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    let code = child.wait().unwrap().code();
    assert_eq!((code, stderr.lines().next()), (Some(130), Some("error: interrupted")));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let dir = temp_dir();
    let mut child = command(dir.path(), &["bench", "--sizes", "64KiB", "--total", "256KiB", "--phases", "fresh"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}
