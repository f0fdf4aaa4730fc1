//! A report as one HTML page, with nothing outside of it: plots, and the figures as a table.

mod gpu;
mod panels;
mod plot;
mod text;

use std::fmt::Write as _;

pub use self::gpu::render_gpu;
use self::panels::Panel;
use self::text::{date, escape, size};
use crate::error::{Error, Result};
use crate::report::{EngineName, PhaseResult, Report};

const STYLE: &str = include_str!("page.css");

/// The page.
///
/// # Errors
/// [`Error::Plot`].
pub fn render(report: &Report) -> Result<String> {
    let failed = |error: Box<dyn std::error::Error>| Error::Plot(error.to_string());
    let others = EngineName::ALL.into_iter().filter(|engine| {
        *engine != EngineName::Saltern && report.results.iter().any(|result| result.engine == *engine)
    });
    let mut engines = vec![("saltern", "saltern"), ("ceiling", "ceiling: the device with one preallocated file")];
    engines.extend(others.map(|engine| (class(engine), engine.description())));
    let mut page = head(report);
    section(
        &mut page,
        "Throughput by object size",
        "Higher is better: the nearer a line is to the dashed one, the less of the device is lost. Each panel has its own scale.",
        &engines,
        &panels::throughput(report).map_err(failed)?,
    );
    section(
        &mut page,
        "Latency of loads, by object size",
        "Lower is better: each curve says how long the slowest loads take; where the two lie together, stores do not \
         hold loads up.",
        &[("saltern", "loads alone"), ("busy", "loads among stores that displace (mixed)")],
        &panels::latency(report).map_err(failed)?,
    );
    section(
        &mut page,
        "CPU time for 10<sup>9</sup> bytes",
        "Lower is better, on a logarithmic axis: user and system time of the whole process.",
        &engines,
        &panels::cpu(report).map_err(failed)?,
    );
    table(&mut page, report);
    page.push_str("</body></html>\n");
    Ok(page)
}

/// How the style sheet calls an engine's colour.
fn class(engine: EngineName) -> &'static str {
    match engine {
        EngineName::Saltern => "saltern",
        EngineName::PreadPwrite => "pread",
        EngineName::TokioUring => "tokio",
        EngineName::SalternNative => "native",
        EngineName::LmcacheFs => "fs",
        EngineName::LmcacheFsNative => "fs-native",
        EngineName::LmcacheNixlDynamic => "nixl",
    }
}

fn head(report: &Report) -> String {
    let (machine, volume) = (&report.machine, &report.volume);
    let direct = if volume.direct_io { "O_DIRECT" } else { "buffered" };
    let title = format!("saltern {} bench", escape(&report.version));
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\n<style>\n{STYLE}</style></head>\n\
         <body>\n<h1>{title}</h1>\n<p>{}, {} CPUs, {:.1} GiB, Linux {} &middot; {direct} on {}, {} shard{}, integrity \
         {}, durability {} &middot; <span>{}</span></p>\n",
        escape(&machine.cpu),
        machine.cores,
        machine.memory_bytes as f64 / (1u64 << 30) as f64,
        escape(&machine.kernel),
        escape(&volume.fs),
        volume.shards,
        if volume.shards == 1 { "" } else { "s" },
        volume.integrity,
        format!("{:?}", volume.durability).to_lowercase(),
        date(report.started_unix_seconds),
    )
}

fn section(page: &mut String, title: &str, aid: &str, key: &[(&str, &str)], panels: &[Panel]) {
    if panels.is_empty() {
        return;
    }
    let _ = write!(page, "<h2>{title}</h2>\n<p>{aid}</p>\n<div class=\"key\">");
    for (class, name) in key {
        let _ = write!(page, "<span><i class=\"{class}\"></i>{name}</span>");
    }
    page.push_str("</div>\n<div class=\"grid\">\n");
    for Panel { title, svg } in panels {
        let _ = writeln!(page, "<div class=\"card\"><h3>{title}</h3>\n{svg}</div>");
    }
    page.push_str("</div>\n");
}

fn table(page: &mut String, report: &Report) {
    let columns = [
        "phase",
        "engine",
        "size",
        "MiB/s",
        "ceiling",
        "ratio",
        "&times; pread",
        "&times; best peer",
        "p50 &micro;s",
        "p99 &micro;s",
        "CPU s/GB",
        "recycled",
        "errors",
    ];
    page.push_str(
        "<h2>Figures</h2>\n<p>Ratio: the median over the rounds of throughput by ceiling; latencies are those \
                   of all operations of a phase. Rounds that store end when everything is on the device, the ceiling's as well.</p>\n<div class=\"scroll\"><table><tr>",
    );
    columns.iter().for_each(|column| page.push_str(&format!("<th>{column}</th>")));
    page.push_str("</tr>\n");
    for result in report.results.iter().filter(|result| result.mib_per_s.is_some()) {
        page.push_str("<tr>");
        cells(result).iter().for_each(|cell| page.push_str(&format!("<td>{cell}</td>")));
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div>\n");
    for note in &report.notes {
        let _ = writeln!(page, "<p>Note: {}</p>", escape(note));
    }
}

fn cells(result: &PhaseResult) -> [String; 13] {
    let number =
        |value: Option<f64>, decimals: usize| value.map_or_else(String::new, |value| format!("{value:.decimals$}"));
    [
        result.phase.to_string(),
        result.engine.name().to_owned(),
        size(result.object_bytes),
        number(result.mib_per_s, 0),
        number(result.ceiling_mib_per_s, 0),
        number(result.ratio, 2),
        number(result.vs_baseline, 2),
        number(result.vs_best_peer, 2),
        number(Some(result.latency_us.p50), 0),
        number(Some(result.latency_us.p99), 0),
        number(result.cpu_seconds_per_gb, 3),
        result.recycled.map_or_else(String::new, |share| format!("{:.0}%", share * 100.0)),
        result.errors.to_string(),
    ]
}
