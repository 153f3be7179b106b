//! What published runs of a plan's kind were off by: the error bar of a plan.
//!
//! Runs are alike where the same things take their time: tensor parallelism, a pipeline, sharded weights. The bar of a
//! kind is the error that nine of ten of its runs stay under, every group of runs counting the same and predicted by
//! constants that were fitted without it (`planner/error-bars.toml`, printed by `cargo run --release -p lapidary-planner --example fit -- published.csv left-out`).
//! Software that nobody measured has the spread of the measured stacks' pace on top.

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

/// The bars of runs by their kind, group and absolute error in percent.
pub fn bars(runs: impl Iterator<Item = (&'static str, String, f64)>) -> Bars {
    let mut kinds: BTreeMap<&str, Vec<(String, f64)>> = BTreeMap::new();
    runs.for_each(|(kind, group, error)| kinds.entry(kind).or_default().push((group, error)));
    kinds.into_iter().map(|(kind, runs)| (kind.to_string(), bar(&runs))).collect()
}

fn bar(runs: &[(String, f64)]) -> Bar {
    let mut groups: BTreeMap<&str, f64> = BTreeMap::new();
    runs.iter().for_each(|(group, _)| *groups.entry(group).or_default() += 1.0);
    let mut errors: Vec<(f64, f64)> =
        runs.iter().map(|(group, error)| (*error, 1.0 / groups[group.as_str()])).collect();
    errors.sort_by(|a, b| a.0.total_cmp(&b.0));
    let wanted = 0.9 * groups.len() as f64;
    let mut below = 0.0;
    let ninth = errors.iter().find(|(_, weight)| {
        below += weight;
        below >= wanted - 1e-9
    });
    let nine_of_ten_pct = ninth.or(errors.last()).map_or(0.0, |(error, _)| (error * 10.0).round() / 10.0);
    Bar { nine_of_ten_pct, runs: runs.len(), groups: groups.len() }
}

/// The error bar of a layout under a software stack, percent: that of its kind, and for software that no run was
/// fitted to, the spread of the others' pace beside it.
pub fn error_bar(layout: &Layout, stack: &Stack) -> (f64, &'static Bar, &'static str) {
    static BARS: OnceLock<Bars> = OnceLock::new();
    static NONE: Bar = Bar { nine_of_ten_pct: 30.0, runs: 0, groups: 0 };
    let kind = kind(layout);
    let bar = BARS.get_or_init(|| toml::from_str(TEXT).unwrap_or_default()).get(kind).unwrap_or(&NONE);
    (bar.nine_of_ten_pct.hypot(unknown_pace_pct(stack)), bar, kind)
}

/// What the pace of software that no run was fitted to may be off by, percent; 0 for software that runs were fitted to.
pub fn unknown_pace_pct(stack: &Stack) -> f64 {
    if stack.fitted == Fitted::Nothing { pace_spread_pct() } else { 0.0 }
}

/// What nine of ten fitted stacks' pace is within of their mean, percent: 1.65 deviations.
pub(super) fn pace_spread_pct() -> f64 {
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
    fn nine_of_ten_runs_stay_under_a_bar_and_groups_count_the_same() {
        let runs = |group: &str, count: usize| {
            let group = group.to_string();
            (1..=count).map(move |n| ("pipeline", group.clone(), 10.0 * n as f64 / count as f64))
        };
        let found = bars(runs("one", 10));
        assert_eq!(found["pipeline"], Bar { nine_of_ten_pct: 9.0, runs: 10, groups: 1 });
        // A hundred good runs of one group do not hide that the other is off.
        let good = (0..100).map(|_| ("pipeline", "good".to_string(), 1.0));
        let found = bars(runs("bad", 10).chain(good));
        assert_eq!(found["pipeline"], Bar { nine_of_ten_pct: 8.0, runs: 110, groups: 2 });
    }

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
