//! What a layer keeps for its backward pass: the slots of its differentiated graph, and what a framework keeps beside
//! them.

use super::job::AttentionKernel;
use super::reading::{Reading, of_mlp};
use super::work::Kept;
use lapidary_models::Function;
use lapidary_models::Node;
use lapidary_models::autodiff::Training;
use lapidary_models::graph::Slot;
use lapidary_models::op::Op;

impl Reading<'_> {
    /// What a layer keeps by policy: the slots of the differentiated graphs, and what frameworks keep beside them.
    pub fn kept(&self, whole: &Training, core: &Training, full: &Training) -> [Kept; 3] {
        let memory = &self.stack.memory;
        let layer = whole.graph.layer();
        let elements = |wanted: fn(&Node) -> bool| -> f64 {
            let wanted = layer.nodes.iter().filter(|node| wanted(node));
            wanted.map(|node| layer.ty(node.output).elements() as f64).sum()
        };
        let (stream, scores) = (elements(|node| node.op == Op::Add), elements(|node| node.op == Op::Softmax));
        let norms = elements(|node| matches!(node.op, Op::Norm { .. }));
        let unfused = if self.fused_norm { 0.0 } else { memory.unfused_norm };
        // Masks of dropout take a byte each. Where it drops nothing it returns its input (torch,
        // aten/src/ATen/native/Dropout.cpp), and nothing is kept.
        let beside = Kept { stream: memory.dropout * stream + unfused * norms, ..Kept::default() };
        let own = match self.attention {
            AttentionKernel::Unfused => (3.0 + memory.scores) * scores,
            _ => memory.scores * scores,
        };
        // Maximum and sum of each row of scores; FlashAttention 1 works on packed copies of queries and output.
        let length = layer
            .nodes
            .iter()
            .find(|node| node.op == Op::Softmax)
            .map_or(1, |node| layer.ty(node.output).shape[3]);
        let attended = elements(|node| matches!(node.op, Op::Values { .. }));
        let packed = if self.attention == AttentionKernel::Flash1 { 4.0 * attended } else { 0.0 };
        let statistics = Kept { split: 4.0 * scores / length as f64 + packed, ..Kept::default() };
        let of =
            |training: &Training, wanted: &dyn Fn(&Slot) -> bool| slots(layer, &training.graph.slots, wanted);
        let cheap = |slot: &Slot| {
            let made = layer.nodes.iter().find(|node| node.name == slot.name);
            made.is_some_and(|node| matches!(node.op, Op::Norm { .. } | Op::Activation(_) | Op::Mul))
        };
        let full = of(full, &|_| true);
        match self.attention.flash() {
            true => [
                of(core, &|_| true) + beside + statistics,
                of(core, &|slot| !cheap(slot))
                    + Kept { stream: memory.dropout * stream, ..Kept::default() }
                    + statistics,
                full,
            ],
            false => [
                of(whole, &|_| true) + beside + Kept { split: own, ..Kept::default() },
                of(core, &|_| true) + beside,
                full,
            ],
        }
    }
}

/// Bytes of slots, by whether sequence parallelism or tensor parallelism splits them, and whether experts do.
fn slots(layer: &Function, slots: &[Slot], wanted: &dyn Fn(&Slot) -> bool) -> Kept {
    let mut kept = Kept::default();
    for slot in slots.iter().filter(|slot| wanted(slot)) {
        let bytes = slot.ty.bytes() as f64;
        let made = layer.nodes.iter().find(|node| node.name == slot.name);
        match made.map(|node| &node.op) {
            None | Some(Op::Add | Op::Norm { .. }) => kept.stream += bytes,
            Some(_) if made.is_some_and(of_mlp) => kept.inner += bytes,
            Some(_) => kept.split += bytes,
        }
    }
    kept
}
