//! `saltern top`: how a running engine is, once or again and again.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use saltern::serve::ask;
use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::human::{self, Columns};
use crate::output::{self, JsonArgs};
use crate::signals::cancel_flag;

/// Salts that are shown.
const SALTS_SHOWN: usize = 10;

/// Columns of the screen, where the terminal does not tell.
const WIDTH: usize = 80;

/// How often the wait for the next look checks whether it was interrupted.
const TICK: Duration = Duration::from_millis(50);

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The engine serves its status on a socket in DIR/.saltern, for its own user alone (Config::status_socket). Rates are those since the look \
before, or, with --once, those since the engine was opened. --json - writes one JSON document a look, each on a line of its own: what the \
engine served, unchanged. Ends at Ctrl-C.

Exit codes: 0 it was asked; 1 no engine answers; 2 wrong usage; 3 the engine says that it is not healthy (with --once).")]
pub(crate) struct Args {
    /// The directory of a running engine
    dir: PathBuf,
    /// Look once
    #[arg(long)]
    once: bool,
    /// Time between two looks: 1, 5s, 1m
    #[arg(long, value_name = "TIME", value_parser = human::parse_time, default_value = "1s")]
    interval: Duration,
    #[command(flatten)]
    json: JsonArgs,
}

/// What was served, and when it was asked for.
struct Look {
    at: Instant,
    served: Value,
}

pub(crate) fn run(args: &Args) -> Result<Outcome, Failure> {
    std::fs::read_dir(&args.dir).map_err(|error| Failure::directory(&args.dir, &error))?;
    if !args.once && args.json.is_asked() && !args.json.is_stdout() {
        return Err(Failure::usage("without --once, --json takes only `-`"));
    }
    let first = look(&args.dir)?;
    if args.once {
        args.json.finish(&first.served, || render(&args.dir, &first, None))?;
        let is_healthy = first.served["status"]["is_healthy"].as_bool() == Some(true);
        return Ok(if is_healthy { Outcome::Clean } else { Outcome::Problems });
    }
    watch(args, first)
}

fn look(dir: &Path) -> Result<Look, Failure> {
    let failed = |error: saltern::Error| {
        Failure::new(error).hint("is an engine running on this directory, as this user, with status_socket on?")
    };
    parse(&ask(dir).map_err(failed)?)
}

fn parse(served: &str) -> Result<Look, Failure> {
    let served = serde_json::from_str(served)
        .map_err(|error| Failure::new(format_args!("what the engine served is not JSON: {error}")))?;
    Ok(Look { at: Instant::now(), served })
}

/// What is shown of a document, alone and after the same one; nothing of what is none.
pub(crate) fn outline(dir: &Path, served: &str) -> Option<[String; 2]> {
    let (before, now) = (parse(served).ok()?, parse(served).ok()?);
    Some([render(dir, &now, None), render(dir, &now, Some(&before))])
}

/// Looks again and again, until interrupted or until the engine is gone.
fn watch(args: &Args, first: Look) -> Result<Outcome, Failure> {
    let cancel = cancel_flag()?;
    let is_screen = std::io::stdout().is_terminal() && !args.json.is_asked();
    let (mut before, mut now) = (None, first);
    loop {
        if args.json.is_asked() {
            output::print(&format!("{}\n", now.served))?;
        } else {
            let text = render(&args.dir, &now, before.as_ref());
            // Home, then each line up to its end, then what is below: nothing flickers.
            let screen =
                text.lines().fold(String::from("\x1b[H"), |screen, line| screen + line + "\x1b[K\n") + "\x1b[J";
            output::print(&if is_screen { screen } else { text + "\n" })?;
        }
        let until = now.at + args.interval;
        loop {
            if cancel.load(Ordering::Relaxed) {
                return Ok(Outcome::Clean);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(TICK));
        }
        before = Some(now);
        now = look(&args.dir)?;
    }
}

fn render(dir: &Path, now: &Look, before: Option<&Look>) -> String {
    let served = &now.served;
    let status = &served["status"];
    let mut out = heading(dir, served);
    out.push_str(&space(status));
    out.push_str(&format!("\n{}", work(now, before)));
    out.push_str(&latencies(&status["latency"]));
    out.push_str(&salts(served));
    for (what, list) in [("problem", &status["problems"]), ("note", &status["notes"])] {
        for text in list.as_array().into_iter().flatten().filter_map(Value::as_str) {
            let text = human::wrap(&human::printable(text), WIDTH, 2);
            out.push_str(&format!("\n{what}: {text}\n"));
        }
    }
    out
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// Whoever serves a socket may be anybody's program.
fn word(value: &Value) -> String {
    human::printable(value.as_str().unwrap_or("?"))
}

fn heading(dir: &Path, served: &Value) -> String {
    let status = &served["status"];
    let health = if status["is_healthy"].as_bool() == Some(true) { "healthy" } else { "NOT HEALTHY" };
    let scan = if status["recovered"].as_bool() == Some(true) { "" } else { ", scanning" };
    format!(
        "{}: {health}{scan}, pid {}, open for {}\nlayout {}, {}, integrity {}, durability {}, {}\n\n",
        human::printable(&dir.display().to_string()),
        number(&served["pid"]),
        human::age(served["open_seconds"].as_f64().unwrap_or(0.0) as u64),
        word(&status["layout"]),
        human::plural(status["shards"].as_array().map_or(0, Vec::len) as u64, "shard"),
        word(&status["integrity"]),
        word(&status["durability"]),
        word(&status["volumes"][0]["file_system"]),
    )
}

/// Bytes and objects.
fn space(status: &Value) -> String {
    let used = number(&status["used_bytes"]);
    let of = status["capacity_bytes"].as_u64().map_or_else(String::new, |capacity| {
        let percent = 100.0 * used as f64 / capacity.max(1) as f64;
        format!(" of {} ({percent:.1}%)", human::size(capacity))
    });
    let spares = &status["spares"];
    let mut out = format!(
        "used    {}{of}, {}, {} reserved\n",
        human::size(used),
        human::plural(number(&status["objects"]), "object"),
        human::size(number(&status["reserved_bytes"])),
    );
    out.push_str(&format!(
        "spares  {}, {} of {}\n",
        human::plural(number(&spares["count"]), "file"),
        human::size(number(&spares["bytes"])),
        human::size(number(&spares["limit_bytes"])),
    ));
    out.push_str(&format!(
        "queues  {} in hand, {} for room, {} on their way out\n",
        human::plural(number(&status["queued_objects"]), "object"),
        human::plural(number(&status["waiting_stores"]), "store"),
        human::plural(number(&status["evicting_objects"]), "object"),
    ));
    let hinted = number(&status["snapshot"]["hinted_objects"]);
    if hinted > 0 {
        out.push_str(&format!("scan    {} known from the snapshot alone\n", human::plural(hinted, "object")));
    }
    out
}

/// What is done: in a second, and since the engine was opened.
fn work(now: &Look, before: Option<&Look>) -> String {
    let counters = &now.served["status"]["counters"];
    let seconds = match before {
        Some(before) => (now.at - before.at).as_secs_f64(),
        None => now.served["open_seconds"].as_f64().unwrap_or(0.0),
    };
    let total = |name: &str| number(&counters[name]);
    let rate = |name: &str| {
        let from = before.map_or(0, |before| number(&before.served["status"]["counters"][name]));
        total(name).saturating_sub(from) as f64 / seconds.max(1e-3)
    };
    let mut table = Columns::new(&["", "a second", "bytes/s", "total", "bytes", "failed", "remarks"], 1);
    let share = |hits: f64, misses: f64| match hits + misses {
        0.0 => String::new(),
        all => format!("{:.1}% hits", 100.0 * hits / all),
    };
    let (hits, misses) = (rate("lookup_hits"), rate("lookup_misses"));
    table.row([
        "lookups".into(),
        human::rate(hits + misses),
        String::new(),
        human::count(total("lookup_hits").saturating_add(total("lookup_misses"))),
        String::new(),
        String::new(),
        share(hits, misses),
    ]);
    let mut row = |what: &str, count: &str, bytes: Option<&str>, failed: &str, remarks: String| {
        table.row([
            what.into(),
            human::rate(rate(count)),
            bytes.map_or_else(String::new, |bytes| human::size(rate(bytes) as u64)),
            human::count(total(count)),
            bytes.map_or_else(String::new, |bytes| human::size(total(bytes))),
            human::count(total(failed)),
            remarks,
        ]);
    };
    let misses = total("load_misses");
    let remark =
        |count: u64, what: &str| if count > 0 { format!("{} {what}", human::count(count)) } else { String::new() };
    row("loads", "loads", Some("loaded_bytes"), "load_errors", remark(misses, "misses"));
    let refused = total("stores_refused").saturating_add(total("stores_over_quota"));
    row("stores", "stores", Some("stored_bytes"), "store_errors", remark(refused, "refused"));
    row("deletes", "deletes", None, "deletes_refused", String::new());
    row("evictions", "evictions", Some("evicted_bytes"), "eviction_errors", String::new());
    table.render()
}

/// How long operations took since the engine was opened, where it says so.
fn latencies(latency: &Value) -> String {
    let kinds = [("load", "load"), ("store", "store"), ("lookup", "lookup"), ("disk_lookup", "disk lookup")];
    let measured: Vec<_> = kinds.iter().filter(|(kind, _)| latency[*kind].is_object()).collect();
    if measured.is_empty() {
        return String::new();
    }
    let mut table = Columns::new(&["latency, us", "p50", "p90", "p99", "p99.9", "most"], 1);
    for (kind, name) in measured {
        let us = |quantile: &str| human::figure(latency[*kind][quantile].as_f64().unwrap_or(0.0));
        table.row([(*name).into(), us("p50_us"), us("p90_us"), us("p99_us"), us("p999_us"), us("max_us")]);
    }
    format!("\n{}", table.render())
}

fn salts(served: &Value) -> String {
    let all = served["salts"].as_array().map_or(&[][..], Vec::as_slice);
    let used: Vec<&Value> = all.iter().filter(|salt| number(&salt["used_bytes"]) > 0).collect();
    if used.is_empty() {
        return String::new();
    }
    let whole = number(&served["status"]["used_bytes"]).max(1) as f64;
    let mut table = Columns::new(&["salt", "used", "share", "reserved", "quota"], 1);
    for salt in used.iter().take(SALTS_SHOWN) {
        let (name, bytes) = (salt["salt"].as_str().unwrap_or_default(), number(&salt["used_bytes"]));
        let name = if name.is_empty() { "(none)".into() } else { human::printable(name) };
        let quota = salt["quota_bytes"].as_u64().map_or_else(|| "-".into(), human::size);
        let share = format!("{:.1}%", 100.0 * bytes as f64 / whole);
        table.row([name, human::size(bytes), share, human::size(number(&salt["reserved_bytes"])), quota]);
    }
    // Those that use least were not served.
    let unserved = number(&served["status"]["salts"]).saturating_sub(all.len() as u64);
    let more = unserved.saturating_add(used.len().saturating_sub(SALTS_SHOWN) as u64);
    format!("\n{}{}", table.render(), human::and_more(more))
}
