//! What the backward pass of a forward kernel costs, and what it needs kept: the rule until graphs are
//! differentiated.
//!
//! A matmul has two of its size behind it (gradients of input and weight). Attention recomputes its scores
//! and has five contractions for two (FlashAttention-2, arXiv 2307.08691, section 2.3: 2.5 times). Row kernels read
//! input and gradient and write one, beside the residual's gradient: twice the traffic. This file is
//! the only place that knows these factors.

use crate::kernels::{Anchor, Kernel, border};
use lapidary_models::op::Op;
use lapidary_models::{Function, Graph, Node, ValueId};
use std::collections::BTreeSet;

/// Contraction work of attention's backward pass over its forward pass.
pub const ATTENTION_BACKWARD: f64 = 2.5;
/// Traffic of a backward kernel over its forward kernel, for attention, rows and gathers.
pub const TRAFFIC_BACKWARD: f64 = 2.0;

/// One launch: what it computes and moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Launch {
    /// What it is built around.
    pub anchor: Anchor,
    /// Operations of its contractions.
    pub flops: f64,
    /// Bytes it moves.
    pub bytes: f64,
}

/// The launch of a forward kernel.
pub fn forward(kernel: &Kernel) -> Launch {
    Launch { anchor: kernel.anchor, flops: kernel.flops, bytes: kernel.bytes }
}

/// The launches of its backward pass.
pub fn backward(kernel: &Kernel) -> Vec<Launch> {
    let own = forward(kernel);
    let mut launches = match kernel.anchor {
        Anchor::Matmul => vec![own, own],
        Anchor::Attention => {
            vec![Launch { flops: own.flops * ATTENTION_BACKWARD, bytes: own.bytes * TRAFFIC_BACKWARD, ..own }]
        }
        Anchor::Row | Anchor::Pointwise => vec![Launch { bytes: own.bytes * TRAFFIC_BACKWARD, ..own }],
    };
    if kernel.epilogue_gradient_bytes > 0.0 {
        let bytes = kernel.epilogue_gradient_bytes;
        launches.push(Launch { anchor: Anchor::Pointwise, flops: 0.0, bytes });
    }
    launches
}

/// Cross entropy over the logits, forward and backward in one: reads them twice (maximum and sum, then
/// gradient) and writes the gradient once.
pub fn loss(logits_bytes: f64) -> Launch {
    Launch { anchor: Anchor::Row, flops: 0.0, bytes: 3.0 * logits_bytes }
}

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
