//! `saltern bench --target gpu[:N]` and `--target gpu-sim`: the run, and its tables.

use std::path::Path;

use saltern_bench::gpu::{self, Data, GpuReport, Target};
use saltern_bench::{Hooks, Options, page};

use crate::failure::{Failure, Outcome};
use crate::human::{self, Columns};
use crate::output::{self, JsonArgs};
use crate::progress::Bar;
use crate::signals::cancel_flag;

pub(crate) fn run(
    options: &Options,
    target: Target,
    json: &JsonArgs,
    page_path: Option<&Path>,
) -> Result<Outcome, Failure> {
    json.check()?;
    let cancel = cancel_flag()?;
    let bar = Bar::new();
    // This program is the one in which a cuFile probe may hang.
    let helper = std::env::current_exe().ok();
    let report = gpu::run(options, target, helper, Hooks { progress: &bar, cancel: &cancel })?;
    drop(bar);
    if let Some(path) = page_path {
        output::write(path, "--report", &page::render_gpu(&report)?)?;
    }
    json.finish(&report, || render(&report))?;
    Ok(if report.errors() == 0 { Outcome::Clean } else { Outcome::Problems })
}

/// Columns of a terminal.
const WIDTH: usize = 80;

fn render(report: &GpuReport) -> String {
    let machine = &report.machine;
    let mut out = format!(
        "saltern {} to {}\n{}, {}, Linux {}\n",
        report.version,
        human::printable(&report.device),
        machine.cpu,
        human::plural(machine.cores as u64, "CPU"),
        machine.kernel,
    );
    if !report.route.is_empty() {
        let route = format!("route of an engine here: {}", human::printable(&report.route));
        out.push_str(&format!("{}\n", human::wrap(&route, WIDTH, 4)));
    }
    if !report.copies.is_empty() {
        let mut table = Columns::new(&["copies alone", "to GPU MiB/s", "from GPU MiB/s"], 1);
        for kind in ["pageable", "pinned", "write-combined"] {
            let rate = |to_device| {
                let copy = report.copies.iter().find(|copy| copy.memory == kind && copy.to_device == to_device);
                copy.map_or_else(|| "-".to_owned(), |copy| human::figure(copy.mib_per_s))
            };
            table.row([kind.to_owned(), rate(true), rate(false)]);
        }
        out.push_str(&format!("\n{}", table.render()));
    }
    out.push_str(&format!("\n{}", rows(report)));
    let verified: u64 = report.results.iter().filter(|row| !row.store).map(|row| row.verified_bytes).sum();
    out.push_str(&format!(
        "\n{} read back from the device and compared, {}, {} in all\n",
        human::size(verified),
        human::plural(report.errors(), "error"),
        human::seconds(report.seconds),
    ));
    for row in &report.results {
        if let Some(error) = &row.first_error {
            out.push_str(&format!("error: {} {}: {error}\n", row.way.name(), human::size(row.object_bytes as u64)));
        }
    }
    for note in &report.notes {
        out.push_str(&format!("{}\n", human::wrap(&format!("note: {note}"), WIDTH, 6)));
    }
    out
}

fn rows(report: &GpuReport) -> String {
    let mut table = Columns::new(&["way", "what", "data", "size", "MiB/s", "CPU s/GB", "bound MiB/s", "ratio"], 3);
    for row in &report.results {
        let optional = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), human::figure);
        table.row([
            row.way.name().to_owned(),
            if row.store { "store" } else { "load" }.to_owned(),
            if row.data == Data::Disk { "disk" } else { "page cache" }.to_owned(),
            human::size(row.object_bytes as u64),
            human::figure(row.mib_per_s),
            human::figure(row.cpu_seconds_per_gb),
            optional(row.bound_mib_per_s),
            row.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")),
        ]);
    }
    let mut out = table.render();
    out.push_str(
        "bound: the slower of the disk (page cache: of plain reads or writes by threads)\n\
         and of copies from pinned memory, in this run\n",
    );
    out
}
