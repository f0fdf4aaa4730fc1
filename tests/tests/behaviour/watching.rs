//! What an engine says of itself while it works: queues, latencies, and the same as OpenMetrics text.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier};

use macro_rules_attribute::apply;
use saltern::steps::{Step, Steps};
use saltern::{Buffer, Discovery, Error, LatencyStatus, Layout};
use saltern_tests::{Cell, Exposition, Host, Mount, done, find, get, key, payload, put, remove, until};

use crate::{mount, scratch};

/// A Python that has `prometheus_client`, as LMCache's has.
const PYTHON: &str = "SALTERN_LMCACHE_PYTHON";

fn count(latency: Option<LatencyStatus>) -> u64 {
    latency.map_or(0, |latency| latency.count)
}

fn check_order(latency: LatencyStatus) {
    let LatencyStatus { mean_us, p50_us, p90_us, p99_us, p999_us, max_us, .. } = latency;
    assert!(0.0 < mean_us && mean_us <= max_us, "{latency:?}");
    assert!(p50_us <= p90_us && p90_us <= p99_us && p99_us <= p999_us && p999_us <= max_us, "{latency:?}");
}

#[apply(each_cell!)]
fn latencies_count_what_the_counters_count(cell: Cell) {
    for shards in [1, 3] {
        let mount = mount(cell, "latencies");
        let mut config = mount.config();
        (config.shards, config.capacity_bytes) = (shards, Some(1 << 20));
        let engine = mount.open_as(config);
        let before = engine.status().latency;
        assert!(before.store.is_none() && before.load.is_none(), "nothing was done");
        for n in 0..50 {
            put(&engine, &key(n), &payload(n.into(), 10_000)).expect("store");
        }
        // Neither what is there already, nor what is refused, nor a miss was moved.
        assert!(matches!(put(&engine, &key(0), b"again"), Ok(0)));
        assert!(matches!(put(&engine, &key(99), &payload(99, 1 << 20)), Err(Error::Full { .. })));
        assert!(matches!(get(&engine, &key(99), 10), Err(Error::NotFound)));
        for n in 0..40 {
            get(&engine, &key(n), 10_000).expect("load");
        }
        let status = engine.status();
        assert_eq!((count(status.latency.store), status.counters.stores), (50, 50));
        assert_eq!((count(status.latency.load), status.counters.loads), (40, 40));
        status.latency.store.into_iter().chain(status.latency.load).for_each(check_order);
        for _ in 0..2000 {
            find(&engine, &key(0));
        }
        let lookups = engine.status().latency.lookup.expect("some of them were measured");
        assert!(lookups.count < 500, "not each: {lookups:?}");
        check_order(lookups);
        mount.assert_books(&engine);
    }
}

#[apply(each_cell!)]
fn lookups_that_ask_the_disk_are_measured_one_by_one(cell: Cell) {
    let mount = mount(cell, "disk-lookups");
    let mut config = mount.config();
    (config.discovery, config.absent_ttl) = (Discovery::ScanAndAsk, Default::default());
    let engine = mount.open_as(config);
    assert_eq!(done(engine.lookup_and_pin(&[key(1), key(2), key(3)])).hits(), 0);
    assert_eq!(count(engine.status().latency.disk_lookup), 3);
}

#[apply(each_cell_of_one_volume!)]
fn queues_show_what_waits_and_a_shard_that_stands_can_be_asked(cell: Cell) {
    let mount = mount(cell, "queues");
    let (came, may_go) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let (at, go) = (came.clone(), may_go.clone());
    let mut config = mount.config();
    config.steps = Steps::new(move |step, at_key| {
        if step == Step::Loading && *at_key == key(1) {
            at.wait();
            go.wait();
        }
    });
    let engine = mount.open_as(config);
    for n in 1..=2 {
        put(&engine, &key(n), &payload(n.into(), 5000)).expect("store");
    }
    let held = engine.load(vec![(key(1), vec![0; 5000].into())]);
    came.wait();
    let waiting = engine.load((0..20).map(|_| (key(2), Buffer::from(vec![0; 5000]))).collect());
    let status = engine.status();
    assert_eq!((status.shards[0].queues.mailbox, status.queued_objects), (20, 21), "{:?}", status.shards);
    let metrics = Exposition::parse(&engine.metrics()).expect("metrics");
    assert_eq!(metrics.value("saltern_shard_waiting", &[("shard", "0"), ("kind", "new")]), 20.0);
    assert_eq!(metrics.value("saltern_queued_objects", &[]), 21.0);
    may_go.wait();
    assert!(done(held).results.iter().chain(&done(waiting).results).all(Result::is_ok));
    let is_idle = || serde_json::to_value(engine.status().shards[0].queues).expect("JSON");
    until("nothing waits", || is_idle().as_object().expect("fields").values().all(|value| value == 0));
    assert_eq!(count(engine.status().latency.load), 21);
}

/// An engine that has done some of everything, in a directory whose name needs quoting.
fn busy(cell: Cell) -> (Mount, Host) {
    let mount = Mount::below(cell, scratch("metrics"), "a \"quoted\\\" näme\nwith a break");
    let mut config = mount.config();
    (config.shards, config.capacity_bytes, config.volume_capacity_bytes) = (2, Some(100_000), Some(90_000));
    let engine = mount.open_as(config);
    for n in 0..9 {
        put(&engine, &key(n), &payload(n.into(), 10_000)).expect("store");
    }
    assert!(matches!(put(&engine, &key(9), &payload(9, 50_000)), Err(Error::Full { .. })));
    assert!(matches!(put(&engine, &key(1), b"again"), Ok(0)));
    for n in 0..5 {
        get(&engine, &key(n), 10_000).expect("load");
    }
    assert_eq!((find(&engine, &key(0)), find(&engine, &key(77))), (Some(10_000), None));
    remove(&engine, &key(8)).expect("delete");
    until("nothing is queued", || engine.status().queued_objects == 0);
    (mount, engine)
}

#[apply(each_cell!)]
fn metrics_say_what_status_says(cell: Cell) {
    let (mount, engine) = busy(cell);
    let (text, status) = (engine.metrics(), engine.status());
    let metrics = Exposition::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let value = |name: &str| metrics.value(&format!("saltern_{name}"), &[]);
    let of = |name: &str, label, of| metrics.value(&format!("saltern_{name}"), &[(label, of)]);
    assert_eq!((value("healthy"), value("recovered"), value("objects")), (1.0, 1.0, 8.0));
    assert_eq!((value("used_bytes"), value("capacity_bytes")), (80_000.0, 100_000.0));
    assert_eq!((of("stores_total", "result", "stored"), of("stores_total", "result", "present")), (9.0, 1.0));
    assert_eq!((of("stores_total", "result", "full"), of("stores_total", "result", "error")), (1.0, 0.0));
    assert_eq!((value("stored_bytes_total"), value("loaded_bytes_total")), (90_000.0, 50_000.0));
    assert_eq!((of("lookups_total", "result", "hit"), of("lookups_total", "result", "miss")), (1.0, 1.0));
    assert_eq!(of("deletes_total", "result", "deleted"), 1.0);
    assert_eq!((value("store_duration_seconds_count"), value("load_duration_seconds_count")), (9.0, 5.0));
    assert!(value("store_duration_seconds_sum") > 0.0);
    assert_eq!(value("spares_bytes"), status.spares.bytes as f64);
    for shard in ["0", "1"] {
        assert_eq!(of("shard_up", "shard", shard), 1.0);
    }
    assert_eq!(status.volumes.len(), cell.volumes);
    for (number, (volume, dir)) in status.volumes.iter().zip(mount.dirs()).enumerate() {
        let of = |name: &str| {
            let labels = [("volume", &*number.to_string()), ("dir", dir.to_str().expect("text"))];
            metrics.value(&format!("saltern_volume_{name}"), &labels)
        };
        assert_eq!((of("up"), of("writable"), of("reserved_bytes")), (1.0, 1.0, 0.0));
        assert_eq!((of("used_bytes"), of("capacity_bytes")), (volume.used_bytes as f64, 90_000.0));
        assert!(of("free_bytes") > 0.0 && of("size_bytes") >= of("free_bytes"));
        assert_eq!(of("spares_bytes"), volume.spares.bytes as f64);
    }
    let used: u64 = status.volumes.iter().map(|volume| volume.used_bytes).sum();
    assert_eq!(used, 80_000, "volumes add up");
    let info = &metrics.0["saltern_engine"].samples[0].1;
    assert_eq!(info["dir"], mount.dirs()[0].display().to_string());
    assert_eq!((info["layout"].as_str(), info["eviction"].as_str()), (cell.layout.name(), "host"));
}

#[apply(each_cell!)]
fn names_are_as_prometheus_has_them(cell: Cell) {
    let (_mount, engine) = busy(cell);
    let metrics = Exposition::parse(&engine.metrics()).expect("metrics");
    for (name, family) in &metrics.0 {
        assert!(name.starts_with("saltern_") && !name.ends_with("_total"), "{name}");
        assert!(["", "bytes", "seconds"].contains(&family.unit.as_str()), "{name}: a base unit");
        let is_named_after_a_unit = name.ends_with("_bytes") || name.ends_with("_seconds");
        assert_eq!(is_named_after_a_unit, !family.unit.is_empty(), "{name}");
        assert!(family.samples.len() <= 32, "{name}: as many samples as there are objects, or salts?");
    }
    // What status counts is there, except what is there as a sum or under another name.
    let total: f64 =
        ["loaded", "miss", "error"].map(|of| metrics.value("saltern_loads_total", &[("result", of)])).iter().sum();
    assert_eq!(total, 5.0);
}

#[test]
fn prometheus_own_parser_takes_the_text() {
    let Some(python) = std::env::var_os(PYTHON) else {
        println!("skipped: {PYTHON} is not set; the text is checked by this suite's own parser");
        return;
    };
    // A volume is a label: the more of them, the more there is to take.
    let (_mount, engine) = busy(Cell { layout: Layout::Fs, volumes: 3 });
    let script = "import sys\nfrom prometheus_client.openmetrics.parser import text_string_to_metric_families as parse\n\
                  print(sum(len(family.samples) for family in parse(sys.stdin.read())))";
    let mut child = Command::new(python)
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python");
    let text = engine.metrics();
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("write");
    let output = child.wait_with_output().expect("python");
    assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stderr));
    let ours: usize = Exposition::parse(&text).expect("metrics").0.values().map(|family| family.samples.len()).sum();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), ours.to_string());
}
