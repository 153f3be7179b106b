//! One line per stage on stderr, with a bar while it runs, when a terminal is there.

use crate::args::Global;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// The stages of a command.
pub struct Progress {
    bar: Option<ProgressBar>,
    timings: Vec<(String, Duration)>,
}

impl Progress {
    /// Progress over `stages` stages; silent without a terminal or with `--quiet`.
    pub fn new(global: &Global, stages: u64) -> Self {
        let shown = !global.quiet && std::io::stderr().is_terminal();
        let bar = shown.then(|| ProgressBar::new(stages).with_style(style()));
        Progress { bar, timings: Vec::new() }
    }

    /// Runs one stage under its name.
    pub fn stage<T>(&mut self, name: &str, work: impl FnOnce() -> T) -> T {
        if let Some(bar) = &self.bar {
            bar.set_message(name.to_string());
            bar.tick();
        }
        let start = Instant::now();
        let result = work();
        tracing::info!("{name}: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
        self.timings.push((name.to_string(), start.elapsed()));
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
        result
    }

    /// Removes the bar and returns the time of every stage, in order.
    pub fn finish(self) -> Vec<(String, Duration)> {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.timings
    }
}

/// A bar over things that are counted.
pub struct Counter {
    bar: Option<ProgressBar>,
}

impl Counter {
    /// `done` of `all` things, called `what`; silent without a terminal or with `--quiet`.
    pub fn new(global: &Global, all: usize, done: usize, what: &str) -> Self {
        let shown = !global.quiet && std::io::stderr().is_terminal();
        let form = format!("{{bar:24}} {{pos}}/{{len}} {what}, {{eta}} left");
        let style = ProgressStyle::with_template(&form).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = shown.then(|| {
            let bar = ProgressBar::new(all as u64).with_style(style).with_position(done as u64);
            bar.reset_eta();
            bar
        });
        Counter { bar }
    }

    /// So many are done.
    pub fn at(&mut self, done: usize) {
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
        }
    }

    /// Removes the bar.
    pub fn finish(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A bar over `total` bytes; hidden without a terminal or with `--quiet`.
pub fn bytes(global: &Global, total: u64) -> ProgressBar {
    if global.quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:24} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{bar:24} {pos}/{len} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}
