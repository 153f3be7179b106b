//! Pipeline parallelism with one forward and one backward in turn (1F1B).

use super::{GpuCase, compute, tensor};
use lapidary_hardware::price::collective::point_to_point;
use lapidary_hardware::{Bytes, Seconds};

/// Idle time of the slowest stage: the other stages' work on one micro-batch, which fills and drains the
/// pipeline (arXiv 2104.04473, section 2.2.1, with stages of unequal length).
pub fn bubble(case: &GpuCase<'_>) -> Seconds {
    if case.plan.pp == 1 {
        return Seconds::ZERO;
    }
    let layer = compute::layer_forward(case)
        + compute::layer_backward(case)
        + compute::layer_recompute(case)
        + tensor::layer(case);
    let shorter_end = compute::head(case).min(compute::embedding(case));
    layer * (case.stage_layers() * (case.plan.pp - 1) as f64) + shorter_end
}

/// Messages between stages: one each way for every micro-batch and for every step of filling, none hidden.
/// A rank sends its part of the residual stream.
pub fn exposed(case: &GpuCase<'_>) -> Seconds {
    if case.plan.pp == 1 {
        return Seconds::ZERO;
    }
    let across = case.plan.tp * case.plan.dp >= case.machine.node.devices;
    let bytes = Bytes(case.work.residual_bytes / case.plan.tp as f64);
    let messages = 2.0 * (case.micro_batches() + (case.plan.pp - 1) as f64);
    point_to_point(case.machine, bytes, across) * messages
}
