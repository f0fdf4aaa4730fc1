//! One plot as SVG. Colours are the ones of [`Ink`]; the page's style sheet finds them by attribute and replaces them,
//! so that one picture serves light and dark.

use std::ops::Range;

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::{
    ChartBuilder, Circle, Color, DashedLineSeries, IntoDrawingArea, IntoFont, LineSeries, RGBColor, SVGBackend,
    TextStyle,
};

/// Width and height of a plot, in the units of its view box.
const SIZE: (u32, u32) = (440, 280);

const TEXT_SIZE: i32 = 13;

/// What a line is drawn with. The style sheet has the same numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ink {
    Saltern,
    Ceiling,
    Pread,
    TokioUring,
    SalternNative,
    Fs,
    FsNative,
    Nixl,
    Busy,
    Text,
    Grid,
}

impl Ink {
    const fn color(self) -> RGBColor {
        match self {
            Self::Saltern => RGBColor(0x1f, 0x6f, 0xeb),
            Self::Ceiling => RGBColor(0x8a, 0x90, 0x99),
            Self::Pread => RGBColor(0xd9, 0x73, 0x0d),
            Self::TokioUring => RGBColor(0x2d, 0x93, 0x5c),
            Self::SalternNative => RGBColor(0x7d, 0x5b, 0xd6),
            Self::Fs => RGBColor(0xa8, 0x7b, 0x12),
            Self::FsNative => RGBColor(0xd9, 0x73, 0x0e),
            Self::Nixl => RGBColor(0x2d, 0x93, 0x5d),
            Self::Busy => RGBColor(0xcf, 0x2c, 0x5b),
            Self::Text => RGBColor(0x33, 0x3a, 0x44),
            Self::Grid => RGBColor(0xe2, 0xe5, 0xe9),
        }
    }
}

/// One line.
pub(super) struct Line {
    pub(super) ink: Ink,
    pub(super) points: Vec<(f64, f64)>,
    /// Whether each point is a measurement of its own, and gets a mark.
    pub(super) marks: bool,
}

/// One axis: its ticks are all that is labelled.
pub(super) struct Axis {
    pub(super) range: Range<f64>,
    pub(super) ticks: Vec<(f64, String)>,
    pub(super) title: &'static str,
}

impl Axis {
    /// From 0 to above the largest value, in round steps.
    pub(super) fn linear(values: impl Iterator<Item = f64>, title: &'static str) -> Self {
        const STEPS: f64 = 4.0;
        let most = values.fold(0.0, f64::max).max(1.0);
        let step = round_up(most / STEPS);
        let count = (most * 1.02 / step).ceil() as u32;
        let ticks = (0..=count).map(|number| f64::from(number) * step).map(|at| (at, format!("{at}"))).collect();
        Self { range: 0.0..f64::from(count) * step, ticks, title }
    }

    /// Logarithmic: values have to be given as their logarithms to base 10. `label` gets a value.
    pub(super) fn logarithmic(
        logs: impl Iterator<Item = f64>,
        title: &'static str,
        label: impl Fn(f64) -> String,
    ) -> Self {
        const FEW_DECADES: f64 = 0.7;
        const SOME_DECADES: f64 = 2.6;
        let (least, most) = logs.fold((f64::MAX, f64::MIN), |(least, most), log| (least.min(log), most.max(log)));
        let (least, most) = if least > most { (0.0, 1.0) } else { (least - 0.02, most + 0.02) };
        let steps: &[f64] = match most - least {
            span if span < FEW_DECADES => &[1.0, 1.5, 2.0, 3.0, 5.0, 7.0],
            span if span < SOME_DECADES => &[1.0, 2.0, 5.0],
            _ => &[1.0],
        };
        let decades = least.floor() as i32 - 1..=most.ceil() as i32 + 1;
        let candidates: Vec<f64> =
            decades.flat_map(|decade| steps.iter().map(move |step| step.log10() + f64::from(decade))).collect();
        let from = candidates.iter().copied().filter(|log| *log <= least).fold(f64::MIN, f64::max);
        let to = candidates.iter().copied().filter(|log| *log >= most).fold(f64::MAX, f64::min);
        let inside = candidates.into_iter().filter(|log| (from..=to).contains(log));
        Self { range: from..to, ticks: inside.map(|log| (log, label(10_f64.powf(log)))).collect(), title }
    }

    fn label(&self, at: f64) -> String {
        let near = |tick: &&(f64, String)| (tick.0 - at).abs() < 1e-9 * (1.0 + at.abs());
        self.ticks.iter().find(near).map_or_else(String::new, |(_, label)| label.clone())
    }
}

/// 1, 2 or 5 times a power of ten.
fn round_up(value: f64) -> f64 {
    let decade = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0].map(|step| step * decade).into_iter().find(|step| *step >= value).unwrap_or(10.0 * decade)
}

/// Draws.
pub(super) fn draw(x: &Axis, y: &Axis, lines: &[Line]) -> Result<String, Box<dyn std::error::Error>> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let color = Ink::Text.color();
        let text = TextStyle::from(("sans-serif", TEXT_SIZE).into_font()).color(&color);
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .margin_right(24)
            .x_label_area_size(46)
            .y_label_area_size(66)
            .build_cartesian_2d(Linear::of(x), Linear::of(y))?;
        chart
            .configure_mesh()
            .x_desc(x.title)
            .y_desc(y.title)
            .x_label_formatter(&|at| x.label(*at))
            .y_label_formatter(&|at| y.label(*at))
            .label_style(text.clone())
            .axis_desc_style(text)
            .axis_style(Ink::Text.color())
            .bold_line_style(Ink::Grid.color())
            .draw()?;
        for Line { ink, points, marks } in lines {
            let style = ink.color().stroke_width(2);
            if *ink == Ink::Ceiling {
                chart.draw_series(DashedLineSeries::new(points.iter().copied(), 5, 4, style))?;
            } else {
                chart.draw_series(LineSeries::new(points.iter().copied(), style))?;
            }
            if *marks {
                chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, ink.color().filled())))?;
            }
        }
        area.present()?;
    }
    Ok(svg)
}

/// An axis as plotters takes it, with ticks where they are wanted.
struct Linear {
    range: Range<f64>,
    ticks: Vec<f64>,
}

impl Linear {
    fn of(axis: &Axis) -> Self {
        Self { range: axis.range.clone(), ticks: axis.ticks.iter().map(|(at, _)| *at).collect() }
    }
}

impl Ranged for Linear {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_ticks_that_enclose_the_values() {
        let labels = |axis: &Axis| axis.ticks.iter().map(|(_, label)| label.clone()).collect::<Vec<_>>();
        let linear = Axis::linear([0.0, 1234.0, 2890.0].into_iter(), "x");
        assert_eq!(labels(&linear), ["0", "1000", "2000", "3000"]);
        let log = |values: &[f64]| {
            Axis::logarithmic(values.iter().map(|value| value.log10()), "x", |value| format!("{value:.0}"))
        };
        assert_eq!(labels(&log(&[30.0, 450.0])), ["20", "50", "100", "200", "500"]);
        assert_eq!(labels(&log(&[5.0, 30_000.0])), ["1", "10", "100", "1000", "10000", "100000"]);
        assert!(log(&[]).range.start < log(&[]).range.end, "an empty plot has an axis");
    }

    #[test]
    fn lines_and_titles_are_in_the_picture() {
        let axis = |title| Axis::linear([0.0, 4.0].into_iter(), title);
        let line = Line { ink: Ink::Saltern, points: vec![(0.0, 1.0), (4.0, 3.0)], marks: true };
        let svg = draw(&axis("across"), &axis("up"), &[line]).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("across") && svg.contains("up"));
        assert!(svg.contains("#1F6FEB") && svg.contains("<circle"), "{svg}");
    }
}
