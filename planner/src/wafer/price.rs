//! Time of a step on wafers, as named terms.
//!
//! Weight streaming: each layer's weights enter for every pass over a micro-batch while it computes; what
//! takes longer is waited for. Layer-pipelined: every layer owns a rectangle in proportion to its work, so one
//! micro-batch takes each stage as long as the whole wafer would take for all of it.

use super::{Part, WaferCase};
use crate::backward::{ATTENTION_BACKWARD, TRAFFIC_BACKWARD};
use crate::cost::{Bound, Cost};
use crate::plan::{Recompute, WaferMode};
use indexmap::IndexMap;
use lapidary_hardware::price::wafer::{ingress, streamed_linear};
use lapidary_hardware::{Bytes, Flops, FlopsPerSecond, Precision, Seconds};

/// Products in 16 bits, sums in 32.
const MATMUL: Precision = Precision::Mixed;
/// Row and pointwise work.
const VECTOR: Precision = Precision::Fp32;

/// Time of a step.
pub fn step(case: &WaferCase<'_>) -> Cost {
    let micro_batches = case.plan.accumulation as f64;
    let layers = case.model.n_layers as f64;
    let total = |price: fn(&WaferCase<'_>, &Part) -> Seconds| {
        (price(case, &case.work.layer) * layers + price(case, &case.work.ends)) * micro_batches
    };
    let mut terms: IndexMap<&'static str, (Bound, Seconds)> = IndexMap::from([
        ("linear", (Bound::Compute, total(linear) * 3.0)),
        ("attention", (Bound::Compute, total(attention) * (1.0 + ATTENTION_BACKWARD))),
        ("vector", (Bound::Compute, total(vector) * (1.0 + TRAFFIC_BACKWARD))),
        ("recompute", (Bound::Compute, recompute(case) * (layers * micro_batches))),
    ]);
    match case.plan.mode {
        WaferMode::WeightStreaming => {
            let waits = ingress_wait(case, &case.work.layer, reruns(case)) * layers
                + ingress_wait(case, &case.work.ends, 0.0);
            terms.insert("ingress_wait", (Bound::Ingress, waits * micro_batches));
            terms.insert("first_weights", (Bound::Ingress, enters(case, &case.work.layer)));
        }
        WaferMode::LayerPipelined => {
            let busy: Seconds = terms.values().map(|(_, seconds)| *seconds).sum();
            let one = busy / micro_batches;
            terms.insert("pipeline_fill", (Bound::Pipeline, one * (layers - 1.0)));
            terms.insert("gradient_exchange", (Bound::Ingress, exchange(case)));
        }
    }
    Cost { terms }
}

/// Share of the step in which the wafer computes.
pub fn busy_share(cost: &Cost) -> f64 {
    let busy = cost.terms.values().filter(|(bound, _)| *bound == Bound::Compute).map(|(_, s)| *s);
    busy.sum::<Seconds>() / cost.time()
}

fn linear(case: &WaferCase<'_>, part: &Part) -> Seconds {
    let cycles = part.linears.iter().filter_map(|linear| streamed_linear(case.wafer, *linear, MATMUL));
    cycles.sum::<lapidary_hardware::Cycles>().at(case.wafer.clock())
}

fn attention(case: &WaferCase<'_>, part: &Part) -> Seconds {
    Flops(part.attention_flops) / peak(case, MATMUL)
}

/// Elements at the rate of one multiply-add each.
fn vector(case: &WaferCase<'_>, part: &Part) -> Seconds {
    Flops(2.0 * part.vector_elements) / peak(case, VECTOR)
}

fn peak(case: &WaferCase<'_>, precision: Precision) -> FlopsPerSecond {
    case.wafer.peak(precision).unwrap_or(FlopsPerSecond(f64::INFINITY))
}

fn forward(case: &WaferCase<'_>, part: &Part) -> Seconds {
    linear(case, part) + attention(case, part) + vector(case, part)
}

/// Forward passes of a layer behind its first one: one from its input, and one from the kept input of its
/// segment for all but the first layer of each.
fn reruns(case: &WaferCase<'_>) -> f64 {
    match case.plan.recompute {
        Recompute::Full => 2.0 - 1.0 / case.plan.checkpoint_every as f64,
        Recompute::None | Recompute::Selective => 0.0,
    }
}

fn recompute(case: &WaferCase<'_>) -> Seconds {
    match case.plan.recompute {
        Recompute::None => Seconds::ZERO,
        Recompute::Selective => vector(case, &case.work.layer),
        Recompute::Full => forward(case, &case.work.layer) * reruns(case),
    }
}

/// Time for the weights of a part to enter, or its gradients to leave; links are full duplex.
fn enters(case: &WaferCase<'_>, part: &Part) -> Seconds {
    let per_parameter =
        case.machine.weight_server.as_ref().map_or(4.0, |server| server.bytes_per_parameter.0);
    match &case.wafer.ingress {
        Some(links) => ingress(links, Bytes(part.parameters * per_parameter)),
        None => Seconds::ZERO,
    }
}

/// What forward, repeated forward and backward pass wait for weights or gradients.
fn ingress_wait(case: &WaferCase<'_>, part: &Part, reruns: f64) -> Seconds {
    let enters = enters(case, part);
    let wait = |compute: Seconds| (enters - compute).max(Seconds::ZERO);
    let backward = linear(case, part) * 2.0
        + attention(case, part) * ATTENTION_BACKWARD
        + vector(case, part) * TRAFFIC_BACKWARD;
    wait(forward(case, part)) * (1.0 + reruns) + wait(backward)
}

/// Gradients leave and updated weights enter once a step; one system keeps both.
fn exchange(case: &WaferCase<'_>) -> Seconds {
    if case.plan.systems == 1 {
        return Seconds::ZERO;
    }
    (enters(case, &case.work.layer) * case.model.n_layers as f64 + enters(case, &case.work.ends)) * 2.0
}
