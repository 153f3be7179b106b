//! Arithmetic and memory-bound kernels of the slowest stage.

use super::GpuCase;
use crate::kernels::Anchor;
use crate::rank::Launch;
use lapidary_hardware::price::kernel::{Roof, kernel};
use lapidary_hardware::{Bytes, Flops, FlopsPerSecond, Gpu, Precision, Seconds};

/// Matrix products, forward and backward, of all micro-batches.
pub fn matmul(case: &GpuCase<'_>) -> Seconds {
    step(case, |anchor| anchor == Anchor::Matmul)
}

/// Attention kernels, forward and backward, of all micro-batches.
pub fn attention(case: &GpuCase<'_>) -> Seconds {
    step(case, |anchor| anchor == Anchor::Attention)
}

/// Norms, pointwise kernels, embedding and loss, forward and backward, of all micro-batches.
pub fn memory_bound(case: &GpuCase<'_>) -> Seconds {
    step(case, |anchor| matches!(anchor, Anchor::Row | Anchor::Pointwise))
}

/// What the backward pass computes again.
pub fn recompute(case: &GpuCase<'_>) -> Seconds {
    layer_recompute(case) * (case.stage_layers() * case.micro_batches())
}

/// What one layer computes again for one micro-batch.
pub(super) fn layer_recompute(case: &GpuCase<'_>) -> Seconds {
    all(case, case.work.again(case.plan.recompute))
}

/// One layer forward for one micro-batch.
pub(super) fn layer_forward(case: &GpuCase<'_>) -> Seconds {
    all(case, &case.work.layer_forward)
}

/// One layer backward for one micro-batch, without recomputation.
pub(super) fn layer_backward(case: &GpuCase<'_>) -> Seconds {
    all(case, &case.work.layer_backward)
}

/// Embedding of one micro-batch, forward and backward.
pub(super) fn embedding(case: &GpuCase<'_>) -> Seconds {
    all(case, &case.work.embedding)
}

/// Final norm, head and loss of one micro-batch, forward and backward.
pub(super) fn head(case: &GpuCase<'_>) -> Seconds {
    all(case, &case.work.head)
}

fn all(case: &GpuCase<'_>, launches: &[Launch]) -> Seconds {
    sum(case, launches, |_| true)
}

/// The slowest stage carries the longer of the ends, or both where there is one stage.
fn step(case: &GpuCase<'_>, wanted: fn(Anchor) -> bool) -> Seconds {
    let layer = sum(case, &case.work.layer_forward, wanted) + sum(case, &case.work.layer_backward, wanted);
    let (head, embedding) = (sum(case, &case.work.head, wanted), sum(case, &case.work.embedding, wanted));
    let ends = match case.plan.pp {
        1 => head + embedding,
        _ if self::head(case) >= self::embedding(case) => head,
        _ => embedding,
    };
    (layer * case.stage_layers() + ends) * case.micro_batches()
}

fn sum(case: &GpuCase<'_>, launches: &[Launch], wanted: fn(Anchor) -> bool) -> Seconds {
    let Some(gpu) = case.machine.gpu() else { return Seconds::ZERO };
    let precision = Precision::of(case.model.dtype.compute);
    launches.iter().filter(|launch| wanted(launch.anchor)).map(|launch| time(gpu, precision, launch)).sum()
}

/// One launch at its roof: sustained rates where the machine states them, else peaks.
fn time(gpu: &Gpu, precision: Precision, launch: &Launch) -> Seconds {
    let matmul = gpu.matmul_rate(precision).unwrap_or(FlopsPerSecond(f64::INFINITY));
    let arithmetic = match launch.anchor {
        Anchor::Attention => gpu.sustained.attention.unwrap_or(matmul).min(matmul),
        _ => matmul,
    };
    let roof = Roof { arithmetic, memory: gpu.stream_rate(), launch: gpu.launch_latency };
    kernel(Flops(launch.flops), Bytes(launch.bytes), roof).0
}
