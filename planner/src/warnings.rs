//! What to know about a plan before one runs it: slow links, idle stages, waste where sizes do not divide.

use crate::cost::{Bound, Cost, pipeline_share};
use crate::plan::GpuPlan;
use crate::rank::rank_spec;
use lapidary_hardware::price::collective::{Group, Ring};
use lapidary_hardware::{Bytes, HardwareSpec};
use lapidary_models::ModelSpec;

/// A pipeline that idles longer than this share of the step is worth a warning.
const BUBBLE: f64 = 0.1;
/// So is waiting for data-parallel traffic.
const DATA: f64 = 0.1;
/// A longest stage, or a padded vocabulary, that is larger by this part than it had to be.
const WASTE: f64 = 0.02;
/// Memory that is full up to this part, with the room that is left in any case.
const FULL: f64 = 0.97;
/// Sides of products that are a multiple of this run on the fast kernels.
const ALIGNED: u64 = 8;

/// Warnings about a plan for GPUs.
pub(crate) fn of_gpus(
    machine: &HardwareSpec,
    model: &ModelSpec,
    plan: &GpuPlan,
    cost: Option<&Cost>,
    memory: Bytes,
) -> Vec<String> {
    let mut list = Vec::new();
    list.extend(slow_link(machine, plan, cost));
    let share = |name: &str| {
        let seconds =
            |cost: &Cost| cost.terms.get(name).map_or(0.0, |(_, seconds)| seconds.0 / cost.time().0);
        cost.map_or(0.0, seconds)
    };
    let bubble = cost.map_or(0.0, pipeline_share);
    if bubble > BUBBLE {
        let few = if plan.accumulation < 4 * plan.pp {
            format!("; {} micro-batches are few for {} stages", plan.accumulation, plan.pp)
        } else {
            String::new()
        };
        list.push(format!("the pipeline idles {:.0} % of the step{few}", bubble * 100.0));
    }
    if share("dp_comm") > DATA {
        list.push(format!("{:.0} % of the step waits for data-parallel traffic", share("dp_comm") * 100.0));
    }
    list.extend(experts(machine, model, plan, share("ep_comm")));
    list.extend(waste(model, plan));
    let capacity = machine.device.memory();
    if memory.0 <= capacity.0 && memory.0 > FULL * capacity.0 {
        list.push(format!(
            "memory is {:.0} % full, the room for what is not modelled counted",
            memory.0 / capacity.0 * 100.0
        ));
    }
    list
}

/// Tensor parallelism over links between nodes.
fn slow_link(machine: &HardwareSpec, plan: &GpuPlan, cost: Option<&Cost>) -> Option<String> {
    let per_node = machine.node.devices;
    if plan.tp <= per_node {
        return None;
    }
    let rate = |size| Ring::new(machine, Group { size, stride: 1 }).bandwidth.0 / 1e9;
    let waits = cost.map_or(0.0, |cost| {
        let network = cost.terms.get("tp_comm").filter(|(bound, _)| *bound == Bound::Network);
        network.map_or(0.0, |(_, seconds)| seconds.0 / cost.time().0)
    });
    Some(format!(
        "tensor parallelism over {} ranks leaves nodes of {per_node}: its collectives run at {:.0} GB/s instead of {:.0} and take {:.0} % of the step",
        plan.tp,
        rate(plan.tp),
        rate(per_node),
        waits * 100.0
    ))
}

/// What is taken for granted of experts, and tokens that leave their node.
fn experts(machine: &HardwareSpec, model: &ModelSpec, plan: &GpuPlan, waits: f64) -> Vec<String> {
    let Some(experts) = model.experts else { return Vec::new() };
    let mut list = Vec::new();
    if experts.capacity.is_none() {
        list.push(
            "experts are taken to get equal shares of the tokens: a step takes as long as the fullest one"
                .into(),
        );
    }
    let per_node = machine.node.devices;
    if plan.ep * plan.tp > per_node {
        list.push(format!(
            "expert parallelism over {} ranks leaves nodes of {per_node}: tokens on their way take {:.0} % of the step",
            plan.ep,
            waits * 100.0
        ));
    }
    list
}

/// What sizes that do not divide cost.
fn waste(model: &ModelSpec, plan: &GpuPlan) -> Vec<String> {
    let mut list = Vec::new();
    let inner = model.n_layers.saturating_sub(plan.first_layers + plan.last_layers);
    let longest = if plan.pp > 2 { inner.div_ceil(plan.pp - 2) } else { 0 };
    let longest = longest.max(plan.first_layers).max(plan.last_layers);
    let even = model.n_layers as f64 / plan.pp as f64;
    if plan.pp > 1 && longest as f64 > even * (1.0 + WASTE) {
        list.push(format!(
            "{} layers do not divide by {} stages: the longest has {longest}, {:.0} % over an even share",
            model.n_layers,
            plan.pp,
            (longest as f64 / even - 1.0) * 100.0
        ));
    }
    let vocab = model.vocab_padded_to.unwrap_or(model.vocab);
    let rows = vocab.next_multiple_of(128 * plan.tp);
    if rows as f64 > vocab as f64 * (1.0 + WASTE) {
        let more = (rows as f64 / vocab as f64 - 1.0) * 100.0;
        list.push(format!(
            "the vocabulary of {vocab} is padded to {rows} for tp {}, {more:.0} % more",
            plan.tp
        ));
    }
    let Ok(rank) = rank_spec(model, plan.tp) else { return list };
    let sides = [("a head's width", rank.head_dim), ("a rank's MLP features", rank.d_ff)];
    for (what, side) in sides.into_iter().filter(|(_, side)| !side.is_multiple_of(ALIGNED)) {
        list.push(format!(
            "{what}, {side}, is no multiple of {ALIGNED}: its products leave the fast kernels"
        ));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapidary_hardware::Seconds;
    use lapidary_hardware::builtin::machine;

    fn told(plan: &GpuPlan, change: impl Fn(&mut ModelSpec), terms: &[(&'static str, Bound, f64)]) -> String {
        let mut model = lapidary_models::builtin("amber").unwrap();
        change(&mut model);
        let terms = terms.iter().map(|(name, bound, seconds)| (*name, (*bound, Seconds(*seconds))));
        let cost = Cost { terms: terms.collect() };
        let dgx = machine("dgx-a100").unwrap().with_devices(64).unwrap();
        of_gpus(&dgx, &model, plan, Some(&cost), Bytes(0.99 * dgx.device.memory().0)).join("\n")
    }

    #[test]
    fn each_cause_is_told_with_its_size() {
        let plan = GpuPlan { first_layers: 11, last_layers: 10, ..GpuPlan::of_degrees(16, 3, 1, 32) };
        let terms = [
            ("matmul", Bound::Compute, 4.0),
            ("tp_comm", Bound::Network, 2.0),
            ("pp_bubble", Bound::Pipeline, 2.0),
            ("dp_comm", Bound::Network, 2.0),
        ];
        let odd = |model: &mut ModelSpec| {
            (model.d_ff, model.vocab, model.vocab_padded_to) = (11024 + 16, 32001, None);
        };
        let text = told(&plan, odd, &terms);
        for part in [
            "leaves nodes of 8: its collectives run at",
            "take 20 % of the step",
            "the pipeline idles 20 % of the step; 1 micro-batches are few for 3 stages",
            "20 % of the step waits for data-parallel traffic",
            "32 layers do not divide by 3 stages: the longest has 11, 3 % over an even share",
            "the vocabulary of 32001 is padded to 32768 for tp 16, 2 % more",
            "a rank's MLP features, 690, is no multiple of 8",
            "memory is 99 % full",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let plain = GpuPlan { accumulation: 64, ..GpuPlan::of_degrees(4, 1, 16, 32) };
        assert_eq!(told(&plain, |_| (), &[("matmul", Bound::Compute, 4.0)]).lines().count(), 1);
    }
}
