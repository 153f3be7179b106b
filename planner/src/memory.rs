//! Memory of the fullest GPU by class.

use crate::plan::{GpuPlan, Recompute, Sharding};
use crate::rank::RankWork;
use crate::recipe::Recipe;
use indexmap::IndexMap;
use lapidary_hardware::Bytes;

/// Bytes by class, in the order of the table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory(pub IndexMap<&'static str, Bytes>);

impl Memory {
    /// All classes together.
    pub fn total(&self) -> Bytes {
        self.0.values().copied().sum()
    }

    /// The class that takes the most; the first of equals.
    pub fn largest(&self) -> (&'static str, Bytes) {
        let start = ("nothing", Bytes::ZERO);
        self.0.iter().fold(start, |best, (name, bytes)| if *bytes > best.1 { (*name, *bytes) } else { best })
    }
}

/// Where a stage stands in the pipeline.
#[derive(Clone, Copy)]
struct Stage {
    first: bool,
    last: bool,
    in_flight: f64,
}

/// Memory of the fullest stage.
pub fn memory(work: &RankWork, plan: &GpuPlan, layers: u64, shard_ranks: u64, recipe: &Recipe) -> Memory {
    let in_flight = |stage: u64| plan.accumulation.min(plan.pp - stage) as f64;
    let stage =
        |index: u64| Stage { first: index == 0, last: index + 1 == plan.pp, in_flight: in_flight(index) };
    let first = of_stage(work, plan, layers, shard_ranks, recipe, stage(0));
    let last = of_stage(work, plan, layers, shard_ranks, recipe, stage(plan.pp - 1));
    if last.total() > first.total() { last } else { first }
}

fn of_stage(
    work: &RankWork,
    plan: &GpuPlan,
    layers: u64,
    shard_ranks: u64,
    recipe: &Recipe,
    stage: Stage,
) -> Memory {
    let layers = (layers / plan.pp) as f64;
    let parameters = stage_parameters(work, layers, stage.first, stage.last);
    let shards = shard_ranks as f64;
    let state_shards = if plan.sharding.gathers() { shards } else { 1.0 };
    let optimizer_shards = if plan.sharding == Sharding::Optimizer { plan.dp as f64 } else { state_shards };
    let logits = if stage.last { work.logits * recipe.logits } else { 0.0 };
    Memory(IndexMap::from([
        ("weights", Bytes(parameters * recipe.weights / state_shards)),
        ("gradients", Bytes(parameters * recipe.gradients / state_shards)),
        ("optimizer", Bytes(parameters * recipe.optimizer / optimizer_shards)),
        ("gathered", Bytes(gathered(work, plan, recipe, stage))),
        (
            "activations",
            Bytes(activations(work, plan.recompute, layers) * stage.in_flight + one_layer(work, plan)),
        ),
        ("logits", Bytes(logits)),
        ("workspace", Bytes(recipe.context + 2.0 * work.largest)),
    ]))
}

/// Parameters of a stage on one rank. A tied table stands once where both its uses are on the stage.
pub fn stage_parameters(work: &RankWork, layers: f64, first: bool, last: bool) -> f64 {
    let ends = match (first, last) {
        (true, true) if work.tied => work.embedding_parameters.max(work.head_parameters),
        (true, true) => work.embedding_parameters + work.head_parameters,
        (true, false) => work.embedding_parameters,
        (false, true) => work.head_parameters,
        (false, false) => 0.0,
    };
    layers * work.layer_parameters + ends
}

/// Gathered weights: the layers in use and, from the root unit, the ends; and one layer's gradient.
fn gathered(work: &RankWork, plan: &GpuPlan, recipe: &Recipe, stage: Stage) -> f64 {
    if !plan.sharding.gathers() {
        return 0.0;
    }
    let ends = stage_parameters(work, 0.0, stage.first, stage.last);
    let layers = recipe.gathered_layers * work.layer_parameters;
    (layers + ends) * recipe.gather + work.layer_parameters * recipe.reduce_sharded
}

/// What the layers of a stage keep for one micro-batch.
fn activations(work: &RankWork, recompute: Recompute, layers: f64) -> f64 {
    layers * layer_bytes(work, recompute)
}

fn layer_bytes(work: &RankWork, recompute: Recompute) -> f64 {
    let kept = work.kept(recompute);
    kept.stream / work.tp as f64 + kept.split
}

/// While a layer is recomputed, everything it keeps is there once.
fn one_layer(work: &RankWork, plan: &GpuPlan) -> f64 {
    match plan.recompute {
        Recompute::None => 0.0,
        Recompute::Selective => layer_bytes(work, Recompute::None) - layer_bytes(work, Recompute::Selective),
        Recompute::Full => layer_bytes(work, Recompute::None),
    }
}
