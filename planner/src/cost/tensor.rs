//! Tensor parallelism: collectives that a layer waits for.

use super::GpuCase;
use crate::plan::Recompute;
use lapidary_hardware::price::collective::{Group, Ring};
use lapidary_hardware::{Bytes, Seconds};

/// Collectives of the slowest stage, of all micro-batches: its layers, and an all-reduce for each end.
pub fn exposed(case: &GpuCase<'_>) -> Seconds {
    let layers = layer(case) * case.stage_layers();
    let ends = all_reduce(case) * if case.plan.pp == 1 { 2.0 } else { 1.0 };
    (layers + ends) * case.micro_batches()
}

/// A layer of one micro-batch: an all-reduce (or the reduce-scatter and all-gather of sequence
/// parallelism, which move the same) behind attention and behind the MLP, forward and backward (arXiv
/// 1909.08053, section 3), and the forward ones again under full recomputation.
pub(super) fn layer(case: &GpuCase<'_>) -> Seconds {
    let passes = if case.plan.recompute == Recompute::Full { 3.0 } else { 2.0 };
    all_reduce(case) * (2.0 * passes)
}

fn all_reduce(case: &GpuCase<'_>) -> Seconds {
    let ring = Ring::new(case.machine, Group { size: case.plan.tp, stride: 1 });
    ring.all_reduce(Bytes(case.work.residual_bytes))
}
