//! Names of plans, and the plans that a user would try without a planner.

use crate::plan::{Degrees, GpuPlan, Sharding, WaferMode};
use crate::search::Evaluated;
use lapidary_hardware::HardwareSpec;
use std::collections::{BTreeMap, BTreeSet};

/// The best plan of each tag has the bare tag for a name, the others all their decisions.
pub(crate) fn names(ranked: &[Evaluated]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let name = |plan: &Evaluated| {
        let tag = plan.degrees.tag();
        if seen.insert(tag.clone()) { tag } else { plan.degrees.to_string() }
    };
    ranked.iter().map(name).collect()
}

/// What a user would try without a planner, by its rank.
pub(crate) fn baselines(machine: &HardwareSpec, ranked: &[Evaluated]) -> BTreeMap<usize, &'static str> {
    let first = |wanted: &dyn Fn(&Evaluated) -> bool| ranked.iter().position(wanted);
    let mut found = BTreeMap::new();
    let gpu = |plan: &Evaluated, wanted: &dyn Fn(GpuPlan) -> bool| match plan.degrees {
        Degrees::Gpu(degrees) => wanted(degrees) && plan.cost.is_some(),
        Degrees::Wafer(_) => false,
    };
    let fsdp = |plan: GpuPlan| plan.tp == 1 && plan.pp == 1 && plan.sharding == Sharding::Full;
    // Where full sharding cannot be built, the plan over all devices as data-parallel ranks says why.
    let refused = |plan: &Evaluated| matches!(plan.degrees, Degrees::Gpu(p) if p.tp == 1 && p.pp == 1);
    if let Some(index) = first(&|plan| gpu(plan, &fsdp)).or_else(|| first(&refused)) {
        found.insert(index, "pure-fsdp");
    }
    if let Some(index) = megatron_default(machine, ranked) {
        found.insert(index, "megatron-default");
    }
    let one = |plan: &Evaluated| match plan.degrees {
        Degrees::Wafer(degrees) => {
            degrees.systems == 1 && degrees.mode == WaferMode::WeightStreaming && plan.cost.is_some()
        }
        Degrees::Gpu(_) => false,
    };
    if let Some(index) = first(&one) {
        found.insert(index, "one-system");
    }
    found
}

/// Tensor parallelism over a node, the fewest stages that fit, a distributed optimizer over the rest
/// (arXiv 2104.04473, takeaways 1 and 2).
fn megatron_default(machine: &HardwareSpec, ranked: &[Evaluated]) -> Option<usize> {
    let plans = || {
        ranked.iter().enumerate().filter_map(|(index, plan)| match plan.degrees {
            Degrees::Gpu(degrees) if plan.cost.is_some() => Some((index, plan, degrees)),
            _ => None,
        })
    };
    let tp = plans().map(|(_, _, degrees)| degrees.tp).filter(|tp| *tp <= machine.node.devices).max()?;
    let default = |degrees: &GpuPlan| {
        let whole = if degrees.dp > 1 { Sharding::Optimizer } else { Sharding::None };
        degrees.tp == tp && degrees.sharding == whole
    };
    let fits = plans().filter(|(_, plan, degrees)| default(degrees) && plan.feasible());
    let pp = fits.map(|(_, _, degrees)| degrees.pp).min();
    let fitting =
        plans().find(|(_, plan, degrees)| default(degrees) && Some(degrees.pp) == pp && plan.feasible());
    fitting.or_else(|| plans().find(|(_, _, degrees)| default(degrees))).map(|(index, _, _)| index)
}
