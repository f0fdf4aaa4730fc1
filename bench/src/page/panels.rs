//! Which plots there are, and which lines are in them.

use std::collections::BTreeSet;
use std::error::Error;

use super::plot::{Axis, Ink, Line, draw};
use super::text::{percentile, size, tick, time};
use crate::phases::Phase;
use crate::report::{EngineName, PhaseResult, Report};

/// Phases that move objects.
const PHASES: [Phase; 4] = [Phase::Fresh, Phase::Steady, Phase::Load, Phase::Mixed];

/// Distributions begin here, just below the median: of the fastest loads nobody needs to know.
const FROM_SHARE: f64 = 0.498;

/// One plot, with what is written above it.
pub(super) struct Panel {
    pub(super) title: String,
    pub(super) svg: String,
}

type Drawn = Result<Vec<Panel>, Box<dyn Error>>;

fn ink(engine: EngineName) -> Ink {
    match engine {
        EngineName::Saltern => Ink::Saltern,
        EngineName::PreadPwrite => Ink::Pread,
        EngineName::TokioUring => Ink::TokioUring,
        EngineName::SalternNative => Ink::SalternNative,
        EngineName::LmcacheFs => Ink::Fs,
        EngineName::LmcacheFsNative => Ink::FsNative,
        EngineName::LmcacheNixlDynamic => Ink::Nixl,
    }
}

/// Object sizes, side by side in equal steps.
fn sizes(report: &Report) -> Vec<u64> {
    report.results.iter().map(|result| result.object_bytes).collect::<BTreeSet<_>>().into_iter().collect()
}

pub(super) fn size_axis(sizes: &[u64]) -> Axis {
    let ticks = sizes.iter().enumerate().map(|(at, bytes)| (at as f64, size(*bytes))).collect();
    Axis { range: -0.3..sizes.len() as f64 - 0.7, ticks, title: "object size" }
}

/// One line an engine, and the ceiling's.
fn by_size(
    results: &[&PhaseResult],
    sizes: &[u64],
    own: impl Fn(&PhaseResult) -> Option<f64>,
    ceiling: impl Fn(&PhaseResult) -> Option<f64>,
) -> Vec<Line> {
    let line = |engine: EngineName, ink: Ink, value: &dyn Fn(&PhaseResult) -> Option<f64>| {
        let of = |result: &&&PhaseResult| result.engine == engine;
        let at = |result: &PhaseResult| sizes.iter().position(|bytes| *bytes == result.object_bytes);
        let mut points: Vec<(f64, f64)> = results
            .iter()
            .filter(of)
            .filter_map(|result| Some((at(result)? as f64, value(result)?)))
            .filter(|(_, value)| value.is_finite())
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Line { ink, points, marks: true }
    };
    let mut lines = vec![line(EngineName::Saltern, Ink::Ceiling, &ceiling)];
    // The engine's own line over the others'.
    lines.extend(EngineName::ALL.into_iter().rev().map(|engine| line(engine, ink(engine), &own)));
    lines.retain(|line| !line.points.is_empty());
    lines
}

pub(super) fn values(lines: &[Line]) -> impl Iterator<Item = f64> {
    lines.iter().flat_map(|line| line.points.iter().map(|(_, y)| *y))
}

fn phases(report: &Report) -> impl Iterator<Item = (Phase, Vec<&PhaseResult>)> {
    PHASES.into_iter().filter_map(|phase| {
        let results: Vec<_> = report.results.iter().filter(|result| result.phase == phase).collect();
        (!results.is_empty()).then_some((phase, results))
    })
}

/// Throughput by object size, a panel a phase, each to its own scale: a disk writes at a fraction of what it reads.
pub(super) fn throughput(report: &Report) -> Drawn {
    let sizes = sizes(report);
    let panel = |(phase, results): (Phase, Vec<&PhaseResult>)| {
        let lines = by_size(&results, &sizes, |result| result.mib_per_s, |result| result.ceiling_mib_per_s);
        let y = Axis::linear(values(&lines), "MiB/s");
        Ok(Panel { title: phase.to_string(), svg: draw(&size_axis(&sizes), &y, &lines)? })
    };
    phases(report).map(panel).collect()
}

/// CPU time by object size, a panel a phase, all to one scale.
pub(super) fn cpu(report: &Report) -> Drawn {
    let sizes = sizes(report);
    let log = |value: Option<f64>| value.filter(|value| *value > 0.0).map(f64::log10);
    let all: Vec<(Phase, Vec<Line>)> = phases(report)
        .map(|(phase, results)| {
            let own = |result: &PhaseResult| log(result.cpu_seconds_per_gb);
            (phase, by_size(&results, &sizes, own, |result| log(result.ceiling_cpu_seconds_per_gb)))
        })
        .collect();
    let y = Axis::logarithmic(all.iter().flat_map(|(_, lines)| values(lines)), "CPU s/GB", tick);
    let panel = |(phase, lines): &(Phase, Vec<Line>)| {
        Ok(Panel { title: phase.to_string(), svg: draw(&size_axis(&sizes), &y, lines)? })
    };
    all.iter().map(panel).collect()
}

/// Distributions of the latencies of loads, a panel an object size.
pub(super) fn latency(report: &Report) -> Drawn {
    let own = |phase: Phase, bytes: u64| {
        let is_it = |result: &&PhaseResult| {
            result.phase == phase && result.object_bytes == bytes && result.engine == EngineName::Saltern
        };
        report.results.iter().find(is_it)
    };
    let line = |ink: Ink, curve: &[(f64, f64)]| {
        let slow = curve.iter().filter(|(share, _)| *share >= FROM_SHARE);
        let points = slow.map(|(share, us)| (-(1.0 - share).log10(), us.max(0.001).log10())).collect();
        Line { ink, points, marks: false }
    };
    let mut panels = Vec::new();
    for bytes in sizes(report) {
        let mixed = own(Phase::Mixed, bytes).map(|result| &result.curves);
        let alone = mixed.map(|curves| &curves.idle_loads);
        let alone = alone.or_else(|| own(Phase::Load, bytes).map(|result| &result.curves.loads));
        let mut lines = Vec::new();
        lines.extend(alone.map(|curve| line(Ink::Saltern, curve)));
        lines.extend(mixed.map(|curves| line(Ink::Busy, &curves.loads)));
        lines.retain(|line| !line.points.is_empty());
        if lines.is_empty() {
            continue;
        }
        let furthest = lines.iter().flat_map(|line| line.points.iter().map(|(x, _)| *x)).fold(1.0, f64::max);
        let ticks = [0.5, 0.9, 0.99, 0.999, 0.9999].map(|share: f64| (-(1.0 - share).log10(), percentile(share)));
        let x = Axis {
            range: -(1.0 - FROM_SHARE).log10()..furthest + 0.05,
            ticks: ticks.to_vec(),
            title: "share of loads that are faster",
        };
        let x = Axis { ticks: x.ticks.into_iter().filter(|(at, _)| *at < furthest + 0.05).collect(), ..x };
        let y = Axis::logarithmic(values(&lines), "latency", time);
        panels.push(Panel { title: size(bytes), svg: draw(&x, &y, &lines)? });
    }
    Ok(panels)
}
