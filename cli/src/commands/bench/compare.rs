//! A run of benches against an earlier one: what became slower by more than runs differ.

use lapidary_hardware::calibrate::bench::{Bench, Measurement};
use std::fmt;

/// A kernel in both documents.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// Kernel, type and sizes.
    pub name: String,
    /// Earlier time over time now: above 1 is faster.
    pub speed: f64,
    /// Whether it is slower by more than both spreads and the tolerance.
    pub slower: bool,
}

/// Every kernel of a run that the earlier one has too, and those that only one of them has.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    pairs: Vec<Pair>,
    fresh: usize,
    gone: usize,
}

impl Comparison {
    /// Compares; `tolerance` is in percent.
    pub fn new(now: &Bench, before: &Bench, tolerance: f64) -> Comparison {
        let same = |a: &Measurement, b: &Measurement| {
            a.kernel == b.kernel && a.shape == b.shape && a.dtype == b.dtype
        };
        let pair = |one: &Measurement| {
            let earlier = before.results.iter().find(|other| same(one, other))?;
            let allowed = 1.0 + (one.spread_pct.max(earlier.spread_pct) + tolerance) / 100.0;
            let speed = earlier.median_s / one.median_s;
            Some(Pair { name: name(one), speed, slower: one.median_s > earlier.median_s * allowed })
        };
        let pairs: Vec<Pair> = now.results.iter().filter_map(pair).collect();
        let missing = |b: &&Measurement| !now.results.iter().any(|one| same(one, b));
        let gone = before.results.iter().filter(missing).count();
        Comparison { fresh: now.results.len() - pairs.len(), pairs, gone }
    }

    /// What became slower.
    pub fn slower(&self) -> impl Iterator<Item = String> {
        let told = |pair: &Pair| format!("{} at {:.2} of its speed", pair.name, pair.speed);
        self.pairs.iter().filter(|pair| pair.slower).map(told)
    }
}

fn name(one: &Measurement) -> String {
    let sizes: Vec<String> = one.shape.iter().map(|(name, size)| format!("{name} {size}")).collect();
    format!("{} {} ({})", one.kernel, one.dtype, sizes.join(", "))
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for pair in &self.pairs {
            let verdict = if pair.slower { "SLOWER" } else { "ok" };
            writeln!(f, "{}: {:.3} x the baseline's speed, {verdict}", pair.name, pair.speed)?;
        }
        writeln!(f, "{} compared, {} new, {} only in the baseline", self.pairs.len(), self.fresh, self.gone)
    }
}
