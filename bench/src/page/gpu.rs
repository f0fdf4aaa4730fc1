//! A run on a device as one HTML page, in the style of the other.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::panels::{Panel, size_axis, values};
use super::plot::{Axis, Ink, Line, draw};
use super::text::{date, escape, size, tick};
use super::{STYLE, section};
use crate::error::{Error, Result};
use crate::gpu::{Data, GpuReport, GpuResult, Way};

/// Each way with its colour, as the style sheet and as the plots call it.
const WAYS: [(Way, &str, Ink, &str); 4] = [
    (Way::Pipeline, "saltern", Ink::Saltern, "engine, pinned pipeline"),
    (Way::Direct, "tokio", Ink::TokioUring, "engine, direct"),
    (Way::ReadCopy, "pread", Ink::Pread, "threads: read, copy, wait"),
    (Way::CufileCompat, "native", Ink::SalternNative, "cuFile, compatibility mode"),
];

/// What a panel shows.
const PANELS: [(&str, bool, Data); 4] = [
    ("disk to device", false, Data::Disk),
    ("device to disk", true, Data::Disk),
    ("page cache to device", false, Data::PageCache),
    ("device to page cache", true, Data::PageCache),
];

/// The page of a run on a device.
///
/// # Errors
/// [`Error::Plot`].
pub fn render_gpu(report: &GpuReport) -> Result<String> {
    let failed = |error: Box<dyn std::error::Error>| Error::Plot(error.to_string());
    let mut key = vec![("ceiling", "bound: the slower of disk (or page cache) and pinned copies")];
    let is_there = |way: Way| report.results.iter().any(|row| row.way == way);
    key.extend(WAYS.iter().filter(|(way, ..)| is_there(*way)).map(|(_, class, _, name)| (*class, *name)));
    let mut page = head(report);
    let rate = |row: &GpuResult| Some(row.mib_per_s);
    let bound = |row: &GpuResult| row.bound_mib_per_s;
    let most = report.results.iter().map(|row| row.mib_per_s.max(row.bound_mib_per_s.unwrap_or(0.0)));
    let throughput = panels(report, &Axis::linear(most, "MiB/s"), rate, bound).map_err(failed)?;
    section(&mut page, "Throughput by object size", "Higher is better.", &key, &throughput);
    let log = |row: &GpuResult| Some(row.cpu_seconds_per_gb).filter(|value| *value > 0.0).map(f64::log10);
    let axis = Axis::logarithmic(report.results.iter().filter_map(log), "CPU s/GB", tick);
    let cpu = panels(report, &axis, log, |_| None).map_err(failed)?;
    let aid = "Lower is better, on a logarithmic axis: user and system time of the whole process.";
    section(&mut page, "CPU time for 10<sup>9</sup> bytes", aid, &key[1..], &cpu);
    copies(&mut page, report);
    table(&mut page, report);
    page.push_str("</body></html>\n");
    Ok(page)
}

fn head(report: &GpuReport) -> String {
    let (machine, title) = (&report.machine, format!("saltern {} bench to {}", report.version, escape(&report.device)));
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\n<style>\n{STYLE}</style></head>\n\
         <body>\n<h1>{title}</h1>\n<p>{}, {} CPUs, {:.1} GiB, Linux {} &middot; route of an engine here: {} &middot; \
         <span>{}</span></p>\n",
        escape(&machine.cpu),
        machine.cores,
        machine.memory_bytes as f64 / (1u64 << 30) as f64,
        escape(&machine.kernel),
        escape(&report.route),
        date(report.started_unix_seconds),
    )
}

type Drawn = std::result::Result<Vec<Panel>, Box<dyn std::error::Error>>;

fn panels(
    report: &GpuReport,
    y: &Axis,
    own: impl Fn(&GpuResult) -> Option<f64>,
    bound: impl Fn(&GpuResult) -> Option<f64>,
) -> Drawn {
    let sizes: Vec<u64> =
        report.results.iter().map(|row| row.object_bytes as u64).collect::<BTreeSet<_>>().into_iter().collect();
    let at = |row: &GpuResult| sizes.iter().position(|bytes| *bytes == row.object_bytes as u64).unwrap_or(0) as f64;
    let mut panels = Vec::new();
    for (title, store, data) in PANELS {
        let rows: Vec<_> = report.results.iter().filter(|row| row.store == store && row.data == data).collect();
        let line = |way: Way, ink: Ink, value: &dyn Fn(&GpuResult) -> Option<f64>| {
            let of = rows.iter().filter(|row| row.way == way);
            Line { ink, points: of.filter_map(|row| Some((at(row), value(row)?))).collect(), marks: true }
        };
        let mut lines = vec![line(Way::Pipeline, Ink::Ceiling, &bound)];
        // The engine's own line over the others'.
        lines.extend(WAYS.iter().rev().map(|(way, _, ink, _)| line(*way, *ink, &own)));
        lines.retain(|line| !line.points.is_empty());
        if values(&lines).next().is_some() {
            panels.push(Panel { title: title.to_owned(), svg: draw(&size_axis(&sizes), y, &lines)? });
        }
    }
    Ok(panels)
}

fn copies(page: &mut String, report: &GpuReport) {
    if report.copies.is_empty() {
        return;
    }
    page.push_str(
        "<h2>Copies alone</h2>\n<div class=\"scroll\"><table><tr><th>memory</th><th>way</th><th>MiB/s</th></tr>\n",
    );
    for copy in &report.copies {
        let way = if copy.to_device { "to the device" } else { "from the device" };
        let _ = writeln!(page, "<tr><td>{}</td><td>{way}</td><td>{:.0}</td></tr>", copy.memory, copy.mib_per_s);
    }
    page.push_str("</table></div>\n");
}

fn table(page: &mut String, report: &GpuReport) {
    let columns = ["way", "what", "data", "size", "MiB/s", "bound", "ratio", "CPU s/GB", "errors"];
    page.push_str("<h2>Figures</h2>\n<div class=\"scroll\"><table><tr>");
    columns.iter().for_each(|column| page.push_str(&format!("<th>{column}</th>")));
    page.push_str("</tr>\n");
    let number =
        |value: Option<f64>, decimals: usize| value.map_or_else(String::new, |value| format!("{value:.decimals$}"));
    for row in &report.results {
        let cells = [
            row.way.name().to_owned(),
            if row.store { "store" } else { "load" }.to_owned(),
            if row.data == Data::Disk { "disk" } else { "page cache" }.to_owned(),
            size(row.object_bytes as u64),
            number(Some(row.mib_per_s), 0),
            number(row.bound_mib_per_s, 0),
            number(row.ratio, 2),
            number(Some(row.cpu_seconds_per_gb), 3),
            row.errors.to_string(),
        ];
        page.push_str("<tr>");
        cells.iter().for_each(|cell| page.push_str(&format!("<td>{cell}</td>")));
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div>\n");
    for note in &report.notes {
        let _ = writeln!(page, "<p>Note: {}</p>", escape(note));
    }
}
