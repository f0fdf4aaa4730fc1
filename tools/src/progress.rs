//! Progress bars on stderr, where that is a terminal.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use saltern_bench::Progress;

/// One bar, for one thing after the other. Gone when it is dropped.
pub(crate) struct Bar {
    bar: ProgressBar,
    shown: AtomicU64,
}

/// Steps between two updates of an open-ended count.
const COUNT_STEP: u64 = 1000;

impl Bar {
    pub(crate) fn new() -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let target = if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { bar: ProgressBar::with_draw_target(None, target), shown: AtomicU64::new(0) }
    }

    /// Shows a count without an end.
    pub(crate) fn count(&self, label: &str, seen: u64) {
        if self.shown.load(Ordering::Relaxed) == 0 {
            self.bar.set_style(style("{msg} {human_pos} ({per_sec})"));
            self.bar.set_message(label.to_owned());
        }
        if seen >= self.shown.load(Ordering::Relaxed) + COUNT_STEP {
            self.shown.store(seen, Ordering::Relaxed);
            self.bar.set_position(seen);
        }
    }

    /// Shows items out of `total`; without an end where that is 0.
    pub(crate) fn items(&self, label: &str, done: u64, total: u64) {
        if total == 0 {
            return self.count(label, done);
        }
        if done == 0 || done == total || done.is_multiple_of(COUNT_STEP) {
            self.portion(label, "{human_pos}/{human_len}", done, total);
        }
    }

    /// Shows bytes out of `total`; counts entries where that is 0.
    pub(crate) fn bytes(&self, label: &str, done: u64, total: u64) {
        if total == 0 {
            return self.count(label, done);
        }
        // Told of by several threads, each with what all have done.
        let shown = self.shown.load(Ordering::Relaxed);
        if self.bar.length() != Some(total) || done >= shown + BYTES_STEP || done == total {
            self.shown.store(done, Ordering::Relaxed);
            self.portion(label, "{binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}", done, total);
        }
    }

    fn portion(&self, label: &str, figures: &str, done: u64, total: u64) {
        if self.bar.length() != Some(total) {
            self.bar.set_style(style(&format!("{{msg}} {{wide_bar}} {figures} {{eta:>4}}")));
            self.bar.set_message(label.to_owned());
            self.bar.set_length(total);
            self.bar.reset();
        }
        self.bar.set_position(done);
    }
}

/// How often a bar is told of bytes, at most.
const BYTES_STEP: u64 = 8 << 20;

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Progress for Bar {
    fn begin(&self, label: &str, steps: u64) {
        self.bar.set_style(style("{msg:<32} {wide_bar} {human_pos}/{human_len} {elapsed:>4}"));
        self.bar.set_message(label.to_owned());
        self.bar.set_length(steps);
        self.bar.set_position(0);
        self.bar.tick();
    }

    fn advance(&self, steps: u64) {
        self.bar.inc(steps);
        self.bar.tick();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
