//! What published runs of a plan's kind were off by: the error bar of a plan.
//!
//! Runs are alike where the same things take their time: tensor parallelism, a pipeline, sharded weights. The bar of a
//! kind is the error that nine of ten of its runs stay under, every group of runs counting the same
//! (`planner/error-bars.toml`, printed by `cargo run --release -p lapidary-planner --example fit -- published.csv bars`).
//! Software that nobody measured has the spread of the measured stacks' pace on top.

use super::score::Prediction;
use crate::plan::Sharding;
use crate::step::stack::Fitted;
use crate::step::{Layout, Stack};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// How far published runs of one kind were from their predictions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bar {
    /// Percent that nine of ten runs stay under, groups counting the same.
    pub nine_of_ten_pct: f64,
    /// Runs.
    pub runs: usize,
    /// Groups of runs.
    pub groups: usize,
}

/// Error bars by kind.
pub type Bars = BTreeMap<String, Bar>;

const TEXT: &str = include_str!("../../error-bars.toml");

/// The kind of a layout.
pub fn kind(layout: &Layout) -> &'static str {
    match (layout.tensor > 1, layout.pipeline > 1, layout.sharding) {
        (_, false, Sharding::Full | Sharding::Hybrid) => "sharded-weights",
        (false, false, _) => "data-parallel",
        (true, false, _) => "tensor-parallel",
        (false, true, _) => "pipeline",
        (true, true, _) => "tensor-and-pipeline",
    }
}

/// The bars of some predictions.
pub fn bars<'a>(rows: impl Iterator<Item = &'a Prediction>) -> Bars {
    let mut kinds: BTreeMap<String, Vec<&Prediction>> = BTreeMap::new();
    for row in rows.filter(|row| row.scored && matches!(row.unit, "s" | "ms")) {
        kinds.entry(row.kind.to_string()).or_default().push(row);
    }
    kinds.into_iter().map(|(kind, rows)| (kind, bar(&rows))).collect()
}

fn bar(rows: &[&Prediction]) -> Bar {
    let mut groups: BTreeMap<&str, f64> = BTreeMap::new();
    rows.iter().for_each(|row| *groups.entry(&row.group).or_default() += 1.0);
    let mut errors: Vec<(f64, f64)> =
        rows.iter().map(|row| (row.error_pct.abs(), 1.0 / groups[row.group.as_str()])).collect();
    errors.sort_by(|a, b| a.0.total_cmp(&b.0));
    let wanted = 0.9 * groups.len() as f64;
    let mut below = 0.0;
    let ninth = errors.iter().find(|(_, weight)| {
        below += weight;
        below >= wanted - 1e-9
    });
    let nine_of_ten_pct = ninth.or(errors.last()).map_or(0.0, |(error, _)| (error * 10.0).round() / 10.0);
    Bar { nine_of_ten_pct, runs: rows.len(), groups: groups.len() }
}

/// The error bar of a layout under a software stack, percent: that of its kind, and for software that no run was
/// fitted to, the spread of the others' pace beside it.
pub fn error_bar(layout: &Layout, stack: &Stack) -> (f64, &'static Bar, &'static str) {
    static BARS: OnceLock<Bars> = OnceLock::new();
    static NONE: Bar = Bar { nine_of_ten_pct: 30.0, runs: 0, groups: 0 };
    let kind = kind(layout);
    let bar = BARS.get_or_init(|| toml::from_str(TEXT).unwrap_or_default()).get(kind).unwrap_or(&NONE);
    let more = if stack.fitted == Fitted::Nothing { pace_spread_pct() } else { 0.0 };
    (bar.nine_of_ten_pct.hypot(more), bar, kind)
}

/// What nine of ten fitted stacks' pace is within of their mean, percent: 1.65 deviations.
fn pace_spread_pct() -> f64 {
    let fitted = Stack::builtin().iter().filter(|stack| stack.fitted == Fitted::Pace);
    let paces: Vec<f64> = fitted.map(|stack| stack.pace).collect();
    let count = paces.len().max(1) as f64;
    let mean = paces.iter().sum::<f64>() / count;
    let square = paces.iter().map(|pace| (pace / mean - 1.0).powi(2)).sum::<f64>() / count;
    165.0 * square.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_bar() {
        let bars: Bars = toml::from_str(TEXT).unwrap();
        for kind in ["sharded-weights", "data-parallel", "tensor-parallel", "pipeline", "tensor-and-pipeline"]
        {
            let bar = &bars[kind];
            assert!(bar.runs >= bar.groups && bar.groups > 0 && bar.nine_of_ten_pct > 0.0, "{kind}");
        }
        assert!((5.0..30.0).contains(&pace_spread_pct()), "{}", pace_spread_pct());
    }
}
