//! What lies in the memory of one wafer.

use super::WaferCase;
use crate::memory::Memory;
use crate::plan::{Recompute, WaferMode};
use indexmap::IndexMap;
use lapidary_hardware::Bytes;

/// Code and stack of one processing element: assumed, until the placer counts it.
pub const CODE_BYTES: f64 = 2048.0;

/// Parameters of training state that the weight server holds: weight, gradient and both moments in 32 bits.
pub const SERVER_BYTES: f64 = 16.0;

/// Memory of one wafer by class. Streamed weights need no place of their own; attention and loss are
/// computed without score or logits tensors.
pub fn memory(case: &WaferCase<'_>) -> Memory {
    let resident = case.plan.mode == WaferMode::LayerPipelined;
    let state = |bytes: f64| if resident { Bytes(case.work.parameters * bytes) } else { Bytes::ZERO };
    Memory(IndexMap::from([
        ("weights", state(case.recipe.weights)),
        ("gradients", state(case.recipe.gradients)),
        ("optimizer", state(case.recipe.optimizer)),
        ("activations", Bytes(activations(case))),
        ("working_set", Bytes(working_set(case))),
        ("code", Bytes(CODE_BYTES * case.wafer.fabric.usable.pes() as f64)),
    ]))
}

/// What all layers keep. A pipeline has as many micro-batches in flight as it has layers, or all there are.
fn activations(case: &WaferCase<'_>) -> f64 {
    let layers = case.model.n_layers as f64;
    let kept = &case.work.kept;
    let copies = match case.plan.mode {
        WaferMode::WeightStreaming => layers,
        WaferMode::LayerPipelined => {
            // Stage i of L holds min(m, L - i) micro-batches; this is their sum.
            let flight = (case.plan.accumulation as f64).min(layers);
            flight * (layers - flight) + flight * (flight + 1.0) / 2.0
        }
    };
    match case.plan.recompute {
        Recompute::None => copies * (kept.wide + kept.split),
        Recompute::Selective => copies * lean(case),
        Recompute::Full => {
            let every = case.plan.checkpoint_every as f64;
            ((copies / every).ceil() + every - 1.0) * kept.input
        }
    }
}

/// What is there of the layer at work: what it needs kept and the gradients of its widest value. Norms and
/// pointwise ops are local to a processing element and recomputed in place.
fn working_set(case: &WaferCase<'_>) -> f64 {
    let layer = if case.plan.recompute == Recompute::Full { lean(case) } else { 0.0 };
    let one = layer + 2.0 * case.work.kept.largest;
    if case.plan.mode == WaferMode::LayerPipelined { one * case.model.n_layers as f64 } else { one }
}

fn lean(case: &WaferCase<'_>) -> f64 {
    let kept = &case.work.kept;
    kept.wide - kept.wide_cheap + kept.split - kept.split_cheap
}
