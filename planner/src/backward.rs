//! What a wafer's backward pass costs beside its forward pass: the rule of the wafer's first-order account.
//!
//! Attention recomputes its scores and has five contractions for two (FlashAttention-2, arXiv 2307.08691, section
//! 2.3: 2.5 times). Row kernels read input and gradient and write one, beside the residual's gradient: twice the
//! traffic. GPU plans are priced from the differentiated graph instead ([`crate::rank`], [`crate::step::work`]).

use crate::kernels::{Anchor, Kernel, border};
use lapidary_models::op::Op;
use lapidary_models::{Function, Graph, Node, ValueId};
use std::collections::BTreeSet;

/// Contraction work of attention's backward pass over its forward pass.
pub const ATTENTION_BACKWARD: f64 = 2.5;
/// Traffic of a backward kernel over its forward kernel, for attention, rows and gathers.
pub const TRAFFIC_BACKWARD: f64 = 2.0;

/// What one layer keeps for its backward pass, by whether it is cheap to compute again.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Kept {
    /// Bytes of the residual stream and other full-width values that must be kept.
    pub wide: f64,
    /// Bytes of full-width values that a norm can compute again.
    pub wide_cheap: f64,
    /// Bytes of values that tensor parallelism has split already.
    pub split: f64,
    /// Of those, bytes that a pointwise kernel can compute again.
    pub split_cheap: f64,
    /// Bytes of the layer's input.
    pub input: f64,
    /// Bytes of the largest single value.
    pub largest: f64,
}

/// The values that the backward pass of a layer reads: inputs of matmuls, norms and non-linear pointwise
/// ops, and queries, keys, values, output and row statistics of attention. This is the account of Korthikanti et
/// al. (arXiv 2205.05198, section 4.1) read off the graph instead of a formula for GPT, without dropout and
/// without a score tensor: 32 bytes a token and feature for GPT instead of 34 + 5as/h.
pub fn kept(graph: &Graph, function: &Function, kernels: &[Kernel]) -> Kept {
    let mut values: BTreeSet<ValueId> = BTreeSet::new();
    let mut statistics = 0.0;
    for kernel in kernels {
        let nodes = || kernel.nodes.iter().map(|index| &function.nodes[*index]);
        match kernel.anchor {
            Anchor::Attention => {
                let (entering, leaving) = border(function, &kernel.nodes);
                values.extend(entering.into_iter().chain(leaving));
                statistics += nodes().map(|node| row_statistics(graph, node)).sum::<f64>();
            }
            _ => values.extend(nodes().filter(|node| reads_input(&node.op)).map(|node| node.inputs[0])),
        }
        let curved: Vec<usize> = kernel
            .nodes
            .iter()
            .copied()
            .filter(|index| matches!(function.nodes[*index].op, Op::Activation(_) | Op::Mul))
            .collect();
        values.extend(border(function, &curved).0);
    }
    let mut kept = sort_kept(function, &values);
    kept.split += statistics;
    kept
}

/// Maximum and sum of each row of the scores are kept as one 32-bit number.
fn row_statistics(graph: &Graph, node: &Node) -> f64 {
    match node.op {
        Op::Scores { heads, .. } => graph.dims.tokens() as f64 * heads as f64 * 4.0,
        _ => 0.0,
    }
}

fn reads_input(op: &Op) -> bool {
    matches!(op, Op::Linear | Op::Norm { .. })
}

fn sort_kept(function: &Function, values: &BTreeSet<ValueId>) -> Kept {
    let mut kept = Kept::default();
    for value in values {
        let bytes = function.ty(*value).bytes() as f64;
        let producer = function.nodes.iter().find(|node| node.output == *value).map(|node| &node.op);
        match producer {
            None | Some(Op::Add) => kept.wide += bytes,
            Some(Op::Norm { .. }) => {
                kept.wide += bytes;
                kept.wide_cheap += bytes;
            }
            Some(Op::Activation(_) | Op::Mul) => {
                kept.split += bytes;
                kept.split_cheap += bytes;
            }
            Some(_) => kept.split += bytes,
        }
        kept.largest = kept.largest.max(bytes);
    }
    kept.input = function.arguments.iter().map(|value| function.ty(*value).bytes() as f64).sum();
    kept
}
