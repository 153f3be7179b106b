//! What lies in the memory of one wafer: the bytes of its fullest processing element, times the elements there are.

use super::WaferCase;
use super::ops::{Kernel, StepOps, WaferOp};
use crate::memory::Memory;
use crate::plan::{Recompute, WaferMode};
use indexmap::IndexMap;
use lapidary_hardware::Bytes;
use lapidary_hardware::price::wafer::Area;
use lapidary_models::autodiff::work::Phase;

/// Code and stack of one processing element: assumed, as the placer does.
pub const CODE_BYTES: f64 = 4096.0;

/// Parameters of training state that the weight server holds: weight, gradient and both moments in 32 bits.
pub const SERVER_BYTES: f64 = 16.0;

/// Bytes of an activation.
const VALUE_BYTES: f64 = 2.0;

/// Bytes of a sum.
const SUM_BYTES: f64 = 4.0;

/// Rows of a wafer that hold the state of a layer-pipelined model and send its weights down their columns, as the placer
/// lays them (`passes/src/wafer/pipeline/feeder.rs`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Feeders {
    /// Of one layer.
    pub layer: u64,
    /// Of the head and what stands before it.
    pub ends: u64,
}

impl Feeders {
    /// Those of a plan; none where weights are streamed.
    pub fn of(case: &WaferCase<'_>) -> Feeders {
        if case.plan.mode == WaferMode::WeightStreaming {
            return Feeders::default();
        }
        let room = (case.wafer.sram().0 / case.wafer.fabric.usable.pes() as f64 - CODE_BYTES).max(1.0);
        let parameter = case.recipe.weights + case.recipe.gradients + case.recipe.optimizer;
        let rows = |ops: &[WaferOp]| {
            let column: u64 =
                ops.iter().map(|op| column_parameters(op, case.wafer.fabric.usable.width)).sum();
            (column as f64 * parameter / room).ceil() as u64
        };
        Feeders { layer: rows(&case.ops().layer), ends: rows(&case.ops().ends) }
    }

    /// All of them.
    pub fn rows(&self, layers: u64) -> u64 {
        self.layer.saturating_mul(layers).saturating_add(self.ends)
    }
}

/// Parameters of an op in the fullest of `columns` columns, counted where it runs forward.
fn column_parameters(op: &WaferOp, columns: u64) -> u64 {
    let share = |features: u64| features.div_ceil(columns.max(1));
    match op.kernel {
        _ if op.phase != Phase::Forward => 0,
        Kernel::Linear { inputs, outputs } => share(inputs).saturating_mul(outputs),
        Kernel::Norm { features, backward: false, .. } => share(features),
        _ => 0,
    }
}

/// Memory of one wafer by class. Streamed weights need no place of their own; attention and loss are
/// computed without score tensors.
pub fn memory(case: &WaferCase<'_>) -> Memory {
    let resident = case.plan.mode == WaferMode::LayerPipelined;
    let usable = &case.wafer.fabric.usable;
    let all = usable.pes() as f64;
    let pes = (case.area().rows * usable.width) as f64;
    let state = |bytes: f64| if resident { Bytes(case.work.parameters * bytes) } else { Bytes::ZERO };
    let mut classes = IndexMap::from([
        ("weights", state(case.recipe.weights)),
        ("gradients", state(case.recipe.gradients)),
        ("optimizer", state(case.recipe.optimizer)),
        ("activations", Bytes(kept(case) * pes)),
        ("working_set", Bytes(working_set(case) * pes)),
        ("code", Bytes(CODE_BYTES * all)),
    ]);
    if resident {
        // Rows that hold weights hold nothing else: what the state leaves free there is lost.
        let rows = Feeders::of(case).rows(case.model.n_layers).min(usable.height);
        let held = (rows * usable.width) as f64 * (case.wafer.sram().0 / all - CODE_BYTES);
        let state: f64 = ["weights", "gradients", "optimizer"].iter().map(|name| classes[*name].0).sum();
        classes.insert("feeder_rest", Bytes((held - state).max(0.0)));
    }
    Memory(classes)
}

/// Bytes that values of these features take in the fullest processing element.
fn bytes(area: &Area, features: impl IntoIterator<Item = u64>) -> f64 {
    features.into_iter().map(|features| area.elements(features) * VALUE_BYTES).sum()
}

/// What all layers keep. A pipeline has as many micro-batches in flight as it has layers, or all there are.
fn kept(case: &WaferCase<'_>) -> f64 {
    let layers = case.model.n_layers as f64;
    let one = bytes(&case.area(), case.ops().kept.iter().copied());
    let copies = match case.plan.mode {
        WaferMode::WeightStreaming => layers,
        WaferMode::LayerPipelined => {
            // Stage i of L holds min(m, L - i) micro-batches; this is their sum.
            let flight = (case.plan.accumulation as f64).min(layers);
            flight * (layers - flight) + flight * (flight + 1.0) / 2.0
        }
    };
    match (case.plan.recompute, case.plan.outside) {
        // The one that leaves and the one that has come back.
        (Recompute::Full, true) => 2.0 * one,
        (Recompute::Full, false) => {
            let every = case.plan.checkpoint_every as f64;
            let inputs = if case.plan.mode == WaferMode::WeightStreaming { layers } else { copies };
            ((inputs / every).ceil() + every - 1.0) * one
        }
        _ => copies * one,
    }
}

/// What is there of the layer at work: the values alive at its fullest op, the sums of a linear, and what attention
/// needs; or the logits with their gradient. A pipeline has every layer at work at once, on its share of the wafer.
fn working_set(case: &WaferCase<'_>) -> f64 {
    let (area, heads, ops) = (case.area(), case.heads(), case.ops());
    let sums = area.tokens as f64 * SUM_BYTES;
    let backward = fullest(&area, ops) + sums;
    let attention = heads.scratch_bytes(true) + bytes(&area, [case.model.d_model; 6]);
    let loss = bytes(&area, [ops.vocabulary, case.model.d_model, case.model.d_model]) + sums;
    backward.max(attention).max(loss)
}

fn fullest(area: &Area, ops: &StepOps) -> f64 {
    ops.alive.iter().map(|alive| bytes(area, alive.iter().copied())).fold(0.0, f64::max)
}
