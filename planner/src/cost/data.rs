//! Data parallelism: what of its traffic is not hidden behind compute.

use super::{GpuCase, compute, tensor};
use crate::memory::stage_parameters;
use crate::plan::{GpuPlan, Recompute, Sharding};
use lapidary_hardware::price::collective::{Group, Ring};
use lapidary_hardware::{Bytes, HardwareSpec, Seconds};

/// Ranks that share one copy of a fully sharded state.
pub fn shard_ranks(machine: &HardwareSpec, plan: &GpuPlan) -> u64 {
    match plan.sharding {
        Sharding::Full => plan.dp,
        Sharding::Hybrid => (machine.node.devices / plan.tp).clamp(1, plan.dp),
        Sharding::None | Sharding::Optimizer | Sharding::OptimizerInNode => 1,
    }
}

/// Exposed traffic of a step.
pub fn exposed(case: &GpuCase<'_>) -> Seconds {
    if case.plan.dp == 1 {
        return Seconds::ZERO;
    }
    match case.plan.sharding {
        Sharding::None => all_reduced(case),
        Sharding::Optimizer | Sharding::OptimizerInNode => optimizer_sharded(case),
        Sharding::Full | Sharding::Hybrid => gathered(case),
    }
}

/// Gradients are summed once a step, behind the last backward pass.
fn all_reduced(case: &GpuCase<'_>) -> Seconds {
    let traffic = whole(case).all_reduce(Bytes(parameters(case) * case.recipe.reduce));
    hidden_behind(case, traffic, stage_backward(case))
}

/// Gradients are scattered behind the last backward pass, weights gathered before the first forward pass.
fn optimizer_sharded(case: &GpuCase<'_>) -> Seconds {
    let ring = whole(case);
    let scatter = ring.reduce_scatter(Bytes(parameters(case) * case.recipe.reduce));
    let gather = ring.all_gather(Bytes(parameters(case) * case.recipe.gather));
    hidden_behind(case, scatter, stage_backward(case)) + hidden_behind(case, gather, stage_forward(case))
}

/// Weights are gathered for each forward and each backward pass and gradients scattered after it, a layer at a
/// time; a hybrid shard sums its gradients across nodes once a step.
fn gathered(case: &GpuCase<'_>) -> Seconds {
    let shards = shard_ranks(case.machine, &case.plan);
    let ring = Ring::new(case.machine, Group { size: shards, stride: case.plan.tp });
    let layers = case.stage_layers();
    let layer = case.work.layer_parameters;
    let ends = parameters(case) - layers * layer;
    let gather =
        |recipe: f64| ring.all_gather(Bytes(layer * recipe)) * layers + ring.all_gather(Bytes(ends * recipe));
    let forward = gather(case.recipe.gather);
    let backward = forward + gather(case.recipe.reduce_sharded);
    let each = hidden_behind(case, forward, stage_forward(case))
        + hidden_behind(case, backward, stage_backward(case));
    each * case.micro_batches() + across_shards(case, shards)
}

fn across_shards(case: &GpuCase<'_>, shards: u64) -> Seconds {
    let copies = case.plan.dp / shards;
    let ring = Ring::new(case.machine, Group { size: copies, stride: case.plan.tp * shards });
    let traffic = ring.all_reduce(Bytes(parameters(case) * case.recipe.reduce / shards as f64));
    hidden_behind(case, traffic, stage_backward(case))
}

/// Traffic minus the part that overlaps compute, which is neither more than the stated part nor more than
/// the compute there is.
fn hidden_behind(case: &GpuCase<'_>, traffic: Seconds, compute: Seconds) -> Seconds {
    traffic - (traffic * case.recipe.overlap).min(compute)
}

fn whole(case: &GpuCase<'_>) -> Ring {
    Ring::new(case.machine, Group { size: case.plan.dp, stride: case.plan.tp })
}

/// Parameters of the heavier end stage on one rank.
fn parameters(case: &GpuCase<'_>) -> f64 {
    let (layers, single) = (case.stage_layers(), case.plan.pp == 1);
    let first = stage_parameters(case.work, layers, true, single);
    first.max(stage_parameters(case.work, layers, single, true))
}

fn stage_forward(case: &GpuCase<'_>) -> Seconds {
    compute::layer_forward(case) * case.stage_layers()
}

fn stage_backward(case: &GpuCase<'_>) -> Seconds {
    let repeated = if case.plan.recompute == Recompute::Full { 2.0 / 3.0 } else { 0.5 };
    let layer =
        compute::layer_backward(case) + compute::layer_recompute(case) + tensor::layer(case) * repeated;
    layer * case.stage_layers()
}
