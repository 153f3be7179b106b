//! The optimizer: a stream over the state a rank owns.

use super::GpuCase;
use crate::cost::data::shard_ranks;
use crate::memory::stage_parameters;
use crate::plan::Sharding;
use lapidary_hardware::{Bytes, Seconds};

/// AdamW over the parameters of the fullest stage that this rank owns.
pub fn step(case: &GpuCase<'_>) -> Seconds {
    let Some(gpu) = case.machine.gpu() else { return Seconds::ZERO };
    let (layers, single) = (case.stage_layers(), case.plan.pp == 1);
    let first = stage_parameters(case.work, layers, true, single);
    let parameters = first.max(stage_parameters(case.work, layers, single, true));
    let shards = match case.plan.sharding {
        Sharding::Optimizer => case.plan.dp,
        _ => shard_ranks(case.machine, &case.plan),
    };
    Bytes(parameters / shards as f64 * case.recipe.optimizer_traffic) / gpu.stream_rate()
}
