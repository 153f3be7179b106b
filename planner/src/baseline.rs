//! Names of plans, and the wafer plans that a user would try without a planner.

use crate::plan::{Degrees, WaferMode};
use crate::search::Evaluated;
use std::collections::BTreeSet;

/// The best plan of each tag has the bare tag for a name, the others all their decisions.
pub(crate) fn names(ranked: &[Evaluated]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let name = |plan: &Evaluated| {
        let tag = plan.degrees.tag();
        if seen.insert(tag.clone()) { tag } else { plan.degrees.to_string() }
    };
    ranked.iter().map(name).collect()
}

/// The best plan for one system whose weights stream in, by its rank.
pub(crate) fn one_system(ranked: &[Evaluated]) -> Option<usize> {
    ranked.iter().position(|plan| match plan.degrees {
        Degrees::Wafer(degrees) => {
            degrees.systems == 1 && degrees.mode == WaferMode::WeightStreaming && plan.cost.is_some()
        }
        Degrees::Gpu(_) => false,
    })
}

/// What wafer plans are alike in of which one stands for all rejected ones.
pub(crate) fn wafer_first(degrees: &Degrees) -> String {
    match degrees {
        Degrees::Wafer(plan) => {
            let kept = if plan.outside { "outside" } else { "on the wafer" };
            format!("{} {} {} {kept}", plan.systems, plan.mode.name(), plan.recompute.name())
        }
        Degrees::Gpu(plan) => plan.tag(),
    }
}
