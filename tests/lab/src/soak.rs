//! The soak: a mixed load at capacity with deletes, evictions, reopenings and faults, for long; resident memory, descriptors, spares
//! and latency stay flat. Bounded to a fraction of a processor, so that it can run beside other work.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use plotters::prelude::*;
use saltern::eviction::PolicyKind;
use saltern::{Config, Engine, Eviction, Integrity, Layout};
use saltern_power::FileSystem;
use saltern_power::trouble::{Call, Rule, Trouble};
use saltern_tests::config;

use crate::context::Context;
use crate::table::Row;
use crate::world::{Tolerance, World};

/// Seconds: short, and when it may take long.
const SOAK_S: (u64, u64) = (60, 1200);

/// So often something is measured, and so many times of that pass between reopenings.
const STEP: Duration = Duration::from_secs(1);
const REOPEN_EVERY: u64 = 12;

/// Of each second the load takes at most about this.
const WORK: Duration = Duration::from_millis(250);

/// More keys than fit: the engine evicts all the time.
const KEYS: u32 = 400;
const CAPACITY_BYTES: u64 = 8 << 20;

/// What may grow between the second quarter and the last: memory by a tenth and 4 MiB, descriptors by 8, the median of the latency
/// to four times and 20 ms (the machine may have other work); with the engine open descriptors follow the load, and spares the bound.
const RSS_SLACK_KIB: f64 = 4096.0;
const RSS_GROWTH: f64 = 1.1;
const DESCRIPTORS_SLACK: f64 = 8.0;
const OPEN_GROWTH: f64 = 2.0;
const OPEN_SLACK: f64 = 100.0;
const SPARES_SLACK_MIB: f64 = 1.0;
const LATENCY_GROWTH: f64 = 4.0;
const LATENCY_SLACK_MS: f64 = 20.0;

/// One moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at_s: f64,
    rss_kib: f64,
    /// With the engine open: they follow the load, up to the bound of those kept open.
    descriptors: f64,
    /// When the engine was closed last.
    descriptors_closed: f64,
    /// On the disk, in quarantine or clean, whatever the engine says of them: it keeps to its bound by what it counts.
    spares: f64,
    latency_ms: f64,
    faults: f64,
}

/// Soaks.
pub fn run(cx: &Context) -> Row {
    let seconds = cx.soak_s.unwrap_or(cx.times(SOAK_S.0, SOAK_S.1));
    let mut row = Row::new(format!("soak, {seconds} s: at capacity, with deletes, evictions, reopenings and faults"));
    match soak(cx, seconds, &mut row) {
        Ok(samples) => {
            judge(&samples, &mut row);
            if let Some(path) = &cx.plot
                && let Err(error) = plot(&samples, path)
            {
                row.bad(format!("{}: {error}", path.display()));
            }
        }
        Err(Failed::Lab(error)) => return row.stopped(&error),
        Err(Failed::Bad(why)) => row.bad(why),
    }
    row.done()
}

enum Failed {
    Lab(saltern_power::Error),
    Bad(String),
}

impl From<saltern_power::Error> for Failed {
    fn from(error: saltern_power::Error) -> Self {
        Self::Lab(error)
    }
}

fn volume(dir: &Path) -> Config {
    let mut config = config(dir);
    config.capacity_bytes = Some(CAPACITY_BYTES);
    config.eviction = Eviction::engine(PolicyKind::Lru);
    config.integrity = Integrity::Verify;
    config.spare_bytes = CAPACITY_BYTES / 4;
    config.segment_bytes = 64 << 10;
    config.pool_bytes = 4 << 20;
    config
}

fn open(dir: &Path) -> Result<Engine, Failed> {
    Engine::open(volume(dir)).map_err(|error| Failed::Bad(format!("open: {error}")))
}

/// Faults that a real file system lives through: reads fail, everything is late now and then.
fn faults() -> [Rule; 4] {
    let rule = |call, trouble, per_million| Rule { call, trouble, per_million };
    [
        rule(Call::Read, Trouble::Error(Errno::EIO as i32), 10_000),
        rule(Call::Read, Trouble::Delay(Duration::from_millis(30)), 10_000),
        rule(Call::Write, Trouble::Delay(Duration::from_millis(30)), 10_000),
        rule(Call::Sync, Trouble::Delay(Duration::from_millis(30)), 50_000),
    ]
}

fn soak(cx: &Context, seconds: u64, row: &mut Row) -> Result<Vec<Sample>, Failed> {
    let lab = cx.lab(&[FileSystem::Ext4])?;
    let image = lab.make_image("soak", FileSystem::Ext4)?;
    let mut disk = lab.start_plain_disk(&image)?;
    let dir = disk.mount(FileSystem::Ext4)?.join("volume");
    let mut world = World::new(cx.seed, KEYS, Tolerance { evicts: true, ..Tolerance::default() });
    let closed = descriptors();
    let mut engine = open(&dir)?;
    disk.served.trouble(cx.seed, &faults())?;
    let (mut samples, mut evictions) = (Vec::new(), 0);
    let mut descriptors_closed = closed;
    let start = Instant::now();
    for step in 1.. {
        let begun = Instant::now();
        while begun.elapsed() < WORK {
            world.act(&engine, 1);
        }
        let status = engine.status();
        let latency_ms = median(world.load_times.drain(..).map(|time| time.as_secs_f64() * 1e3).collect());
        samples.push(Sample {
            at_s: start.elapsed().as_secs_f64(),
            rss_kib: rss_kib(),
            descriptors: descriptors(),
            descriptors_closed,
            spares: spares_mib(&dir),
            latency_ms,
            faults: disk.served.count()?.0 as f64,
        });
        if status.spares.bytes > status.spares.limit_bytes || status.used_bytes > CAPACITY_BYTES {
            row.bad(format!("{} bytes of spares, {} bytes used", status.spares.bytes, status.used_bytes));
        }
        if !world.bad.is_empty() || start.elapsed().as_secs() >= seconds {
            break;
        }
        if step % REOPEN_EVERY == 0 {
            world.books(&engine, &dir, Layout::Fs);
            evictions += engine.status().counters.evictions;
            engine.close();
            descriptors_closed = descriptors();
            engine = open(&dir)?;
            row.cases += 1;
        }
        std::thread::sleep(STEP.saturating_sub(begun.elapsed()));
    }
    disk.served.trouble(0, &[])?;
    world.lives_or_says_why(&engine);
    world.check(&engine, &dir, Layout::Fs);
    evictions += engine.status().counters.evictions;
    engine.close();
    row.cases += 1;
    row.faults = disk.served.count()?.0;
    if evictions == 0 || row.faults == 0 {
        row.bad(format!("the soak did little: {evictions} evictions, {} faults", row.faults));
    }
    row.bad.append(&mut world.bad);
    disk.unmount()?;
    Ok(samples)
}

fn descriptors() -> f64 {
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as f64
}

fn spares_mib(dir: &Path) -> f64 {
    let entries = fs::read_dir(dir.join(".saltern/spares")).into_iter().flatten().flatten();
    // Some may be taken meanwhile.
    let bytes: u64 = entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum();
    bytes as f64 / f64::from(1 << 20)
}

fn rss_kib() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0.0)
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 2).copied().unwrap_or(0.0)
}

type Part = fn(&Sample) -> f64;

/// What is called so, where it is in a sample, and how much of it there may be late for what there was early.
type Figure = (&'static str, Part, fn(f64) -> f64);

/// The second quarter is the warm state that the last is held against.
fn judge(samples: &[Sample], row: &mut Row) {
    let quarter = samples.len() / 4;
    if quarter == 0 {
        return row.bad(format!("{} samples are too few", samples.len()));
    }
    let parts = |of: Part| {
        let of = |part: &[Sample]| median(part.iter().map(of).collect());
        (of(&samples[quarter..2 * quarter]), of(&samples[samples.len() - quarter..]))
    };
    let figures: [Figure; 5] = [
        ("resident memory, KiB", |sample| sample.rss_kib, |early| early * RSS_GROWTH + RSS_SLACK_KIB),
        (
            "descriptors while the engine is closed",
            |sample| sample.descriptors_closed,
            |early| early + DESCRIPTORS_SLACK,
        ),
        ("descriptors while it is open", |sample| sample.descriptors, |early| early * OPEN_GROWTH + OPEN_SLACK),
        ("spares on disk, MiB", |sample| sample.spares, |early| early + SPARES_SLACK_MIB),
        ("latency of loads, ms", |sample| sample.latency_ms, |early| early * LATENCY_GROWTH + LATENCY_SLACK_MS),
    ];
    for (what, of, bound) in figures {
        let (early, late) = parts(of);
        println!("soak: {what}: {early:.2} in the second quarter, {late:.2} in the last");
        if late > bound(early) {
            row.bad(format!("{what} has grown: {early:.2} in the second quarter, {late:.2} in the last"));
        }
    }
}

/// Curves over time, one above the other.
fn plot(samples: &[Sample], path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    const SIZE: (u32, u32) = (900, 1200);
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let curves: [(&str, Part); 6] = [
        ("resident memory, MiB", |sample| sample.rss_kib / 1024.0),
        ("descriptors, engine open", |sample| sample.descriptors),
        ("descriptors, engine closed", |sample| sample.descriptors_closed),
        ("spares on disk, MiB", |sample| sample.spares),
        ("median latency of a batch of loads, ms", |sample| sample.latency_ms),
        ("faults so far", |sample| sample.faults),
    ];
    let end_s = samples.last().map_or(1.0, |sample| sample.at_s).max(1.0);
    for (area, (what, of)) in root.split_evenly((curves.len(), 1)).iter().zip(curves) {
        let most = samples.iter().map(of).fold(1.0, f64::max) * 1.15;
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .margin_right(30)
            .caption(what, ("sans-serif", 16))
            .x_label_area_size(28)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..end_s, 0.0..most)?;
        chart.configure_mesh().x_desc("seconds").x_labels(10).y_labels(5).light_line_style(WHITE).draw()?;
        let points = samples.iter().map(|sample| (sample.at_s, of(sample)));
        chart.draw_series(LineSeries::new(points, &BLUE))?;
    }
    root.present()?;
    Ok(())
}
