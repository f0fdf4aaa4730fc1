//! `saltern bench`: the arguments, the run, and its tables.

use std::path::{Path, PathBuf};

use saltern::{Integrity, Layout};
use saltern_bench::gpu::Target;
use saltern_bench::report::{EngineName, LatencyUs, PhaseResult, Report};
use saltern_bench::{Hooks, Options, Phase, page, run as run_bench};

use crate::bench_gpu;
use crate::failure::{Failure, Outcome};
use crate::human::{self, Columns};
use crate::output::{self, JsonArgs};
use crate::progress::Bar;
use crate::signals::cancel_flag;

/// Arguments; the defaults are a run in less than a minute.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A scratch directory saltern-bench-* is made in --dir, and removed at the end, also after errors and Ctrl-C (a second \
Ctrl-C does not wait for that). The ceiling is what the same device does with one preallocated file, at the same object \
size and depth, measured between the rounds of each phase: random overwrites for fresh and steady, random reads for load, both for mixed. \
Rounds that store end when everything is on the device (syncfs), the ceiling's as well: what a device takes into its cache at first says \
nothing about a cache that is full and stores for hours.

On ext4 without a journal, leave a minute between two runs: making files soon after many were deleted is several times slower there.

Exit codes: 0 no errors; 1 it could not run; 2 wrong usage; 3 it ran, and operations failed or bytes were wrong; 130 interrupted.")]
pub(crate) struct Args {
    /// Directory in which the scratch directory is made; its file system is what is measured
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// What memory objects move to and from: host, gpu, gpu:N, or gpu-sim (a software device). For GPUs the rows are the engine by
    /// its pinned pipeline and by cuFile where that is direct, plain read + copy with threads, and cuFile's compatibility mode;
    /// --phases, --layout and --baselines are for the host
    #[arg(long, default_value = "host")]
    target: Target,
    /// How keys become file names: fs, fs3, nixl, nixl3, nixl-sharded
    #[arg(long, default_value_t = Layout::Fs)]
    layout: Layout,
    /// Object sizes
    #[arg(long, value_delimiter = ',', value_parser = human::parse_size, default_value = "64KiB,256KiB,1MiB,4MiB")]
    sizes: Vec<u64>,
    /// Bytes of objects for each size, and of the ceiling's file [default: what fits into a minute]
    #[arg(long, value_name = "SIZE", value_parser = human::parse_size)]
    total: Option<u64>,
    /// Objects in flight [default: 32, for large objects as many as make 32 MiB]
    #[arg(long, value_name = "N")]
    depth: Option<usize>,
    /// Shards of the engine
    #[arg(long, value_name = "N", default_value_t = 1)]
    shards: usize,
    /// Checksums of payloads: off, store (computed by stores), verify (checked by loads as well)
    #[arg(long, default_value_t = Integrity::default())]
    integrity: Integrity,
    /// Phases: fresh, steady, load, mixed, lookup, restart
    #[arg(long, value_delimiter = ',', default_value = "fresh,load,lookup,restart")]
    phases: Vec<Phase>,
    /// Slices of each phase, with the ceiling measured between them
    #[arg(long, value_name = "N", default_value_t = Options::default().rounds)]
    rounds: usize,
    /// Let plain pread/pwrite with threads, and tokio-uring, do the same in the same rounds
    #[arg(long)]
    baselines: bool,
    /// For GPUs: leave cuFile's direct rows out, so that its compatibility mode can be measured where it is direct: a process has
    /// one of the two
    #[arg(long)]
    no_direct: bool,
    /// Measure nothing: show again what an earlier run wrote with --json
    #[arg(long, value_name = "FILE.json", conflicts_with_all = ["dir", "layout", "sizes", "total", "depth", "shards",
        "integrity", "phases", "rounds", "baselines", "no_direct"])]
    from: Option<PathBuf>,
    /// Write a page with plots to this file
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    #[command(flatten)]
    json: JsonArgs,
}

pub(crate) fn run(args: Args) -> Result<Outcome, Failure> {
    args.json.check()?;
    if let Some(path) = &args.report {
        output::check_writable(path, "--report")?;
    }
    let (report_path, json) = (args.report.clone(), args.json.clone());
    let report = match &args.from {
        Some(path) => read(path)?,
        None => {
            let target = args.target;
            let options = options(args)?;
            if target != Target::Host {
                return bench_gpu::run(&options, target, &json, report_path.as_deref());
            }
            measure(&options)?
        }
    };
    if let Some(path) = &report_path {
        output::write(path, "--report", &page::render(&report)?)?;
    }
    json.finish(&report, || render(&report))?;
    Ok(if report.errors() == 0 { Outcome::Clean } else { Outcome::Problems })
}

/// The report of an earlier run; distributions are not in it.
fn read(path: &Path) -> Result<Report, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        let failure = Failure::new(format_args!("{}: {error}", path.display()));
        failure.hint("name a file that `saltern bench --json` wrote")
    };
    let text = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
    serde_json::from_str(&text).map_err(|error| failed(&error))
}

fn options(args: Args) -> Result<Options, Failure> {
    let to_usize = |bytes: &u64| usize::try_from(*bytes).map_err(Failure::new);
    let options = Options {
        parent: args.dir,
        layout: args.layout,
        sizes: args.sizes.iter().map(to_usize).collect::<Result<_, _>>()?,
        total_bytes: args.total,
        depth: args.depth,
        shards: args.shards,
        integrity: args.integrity,
        phases: args.phases,
        rounds: args.rounds,
        baselines: args.baselines,
        gpu_direct: !args.no_direct,
        ..Options::default()
    };
    options.validate()?;
    Ok(options)
}

fn measure(options: &Options) -> Result<Report, Failure> {
    let cancel = cancel_flag()?;
    let bar = Bar::new();
    Ok(run_bench(options, Hooks { progress: &bar, cancel: &cancel })?)
}

fn render(report: &Report) -> String {
    let mut out = heading(report);
    let (transfers, others): (Vec<_>, Vec<_>) = report.results.iter().partition(|result| result.mib_per_s.is_some());
    if !transfers.is_empty() {
        out.push_str(&format!("\n{}", transfer_table(&transfers)));
    }
    if !others.is_empty() {
        out.push_str(&format!("\n{}", other_table(&others)));
    }
    let at_capacity: Vec<_> = report.results.iter().filter(|result| result.recycled.is_some()).collect();
    if !at_capacity.is_empty() {
        out.push_str(&format!("\n{}", capacity_table(&at_capacity)));
    }
    let verified: u64 = report.results.iter().map(|result| result.verified_bytes).sum();
    out.push_str(&format!(
        "\n{} read back and compared, {}, {} in all\n",
        human::size(verified),
        human::plural(report.errors(), "error"),
        human::seconds(report.seconds),
    ));
    for result in &report.results {
        for example in &result.error_examples {
            out.push_str(&format!("error: {} {}: {example}\n", result.phase, human::size(result.object_bytes)));
        }
    }
    for note in &report.notes {
        out.push_str(&format!("note: {note}\n"));
    }
    out
}

fn heading(report: &Report) -> String {
    let (machine, volume) = (&report.machine, &report.volume);
    let direct = if volume.direct_io { "O_DIRECT" } else { "buffered" };
    let layout = report.results.first().map_or(Layout::Fs, |result| result.layout);
    format!(
        "saltern {} on {}\n{}, {}, Linux {}\n{direct} on {}, layout {layout}, {}, integrity {}\n",
        report.version,
        human::printable(&volume.dir),
        machine.cpu,
        human::plural(machine.cores as u64, "CPU"),
        machine.kernel,
        volume.fs,
        human::plural(volume.shards as u64, "shard"),
        volume.integrity,
    )
}

fn transfer_table(results: &[&PhaseResult]) -> String {
    let with_peers = results.iter().any(|result| result.vs_best_peer.is_some());
    let mut header = vec!["phase", "size", "MiB/s", "objects/s", "p50 us", "p99 us", "p99.9 us", "CPU s/GB", "ratio"];
    header.extend(with_peers.then_some("x best peer"));
    let mut table = Columns::new(&header, 1);
    for result in results {
        let optional = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), human::figure);
        let name = match result.engine {
            EngineName::Saltern => result.phase.to_string(),
            other => format!("  {}", other.short_name()),
        };
        let ratio = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        let mut row = vec![
            name,
            human::size(result.object_bytes),
            optional(result.mib_per_s),
            human::count(result.objects_per_s.round() as u64),
            human::count(result.latency_us.p50.round() as u64),
            human::count(result.latency_us.p99.round() as u64),
            human::count(result.latency_us.p999.round() as u64),
            optional(result.cpu_seconds_per_gb),
            ratio(result.ratio),
        ];
        row.extend(with_peers.then(|| ratio(result.vs_best_peer)));
        table.row(row);
    }
    let mut out = table.render();
    out.push_str("ratio: of what the device does with one preallocated file, measured beside it\n");
    for engine in EngineName::ALL.into_iter().filter(|engine| *engine != EngineName::Saltern) {
        if results.iter().any(|result| result.engine == engine) {
            out.push_str(&format!("{}: {}\n", engine.short_name(), engine.description()));
        }
    }
    out
}

/// What loads wait for when stores displace objects beside them, and how the stores were done.
fn capacity_table(results: &[&PhaseResult]) -> String {
    let header = ["at capacity", "size", "recycled", "spares", "loads p50 us", "p99 us", "idle p50 us", "p99 us"];
    let mut table = Columns::new(&header, 1);
    for result in results {
        let latency = |of: Option<LatencyUs>, quantile: fn(LatencyUs) -> f64| {
            of.map_or_else(|| "-".to_owned(), |of| human::count(quantile(of).round() as u64))
        };
        let (loads, idle) = (result.load_latency_us, result.idle_load_latency_us);
        table.row([
            result.phase.to_string(),
            human::size(result.object_bytes),
            result.recycled.map_or_else(|| "-".to_owned(), |share| format!("{:.0}%", share * 100.0)),
            result.spare_bytes.map_or_else(|| "-".to_owned(), human::size),
            latency(loads, |of| of.p50),
            latency(loads, |of| of.p99),
            latency(idle, |of| of.p50),
            latency(idle, |of| of.p99),
        ]);
    }
    table.render()
}

/// Lookups and restarts move no payload: their own table.
fn other_table(results: &[&PhaseResult]) -> String {
    let mut table = Columns::new(&["phase", "of size", "what", "per second", "p50 us", "p99 us", "p99.9 us"], 3);
    for result in results {
        let what = match (result.phase, &result.variant) {
            (Phase::Lookup, Some(variant)) if result.engine != EngineName::Saltern => {
                format!("{variant} keys, {}", result.engine.short_name())
            }
            (Phase::Lookup, Some(variant)) => format!("{variant} keys"),
            (Phase::Restart, _) => human::plural(result.objects, "object"),
            (_, variant) => variant.clone().unwrap_or_default(),
        };
        table.row([
            result.phase.to_string(),
            human::size(result.object_bytes),
            what,
            human::rate(result.objects_per_s),
            human::figure(result.latency_us.p50),
            human::figure(result.latency_us.p99),
            human::figure(result.latency_us.p999),
        ]);
    }
    table.render()
}
