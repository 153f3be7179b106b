//! What every op of a training step costs, op by op: the list that prices are put on.
//!
//! Ops are counted unfused, as [`crate::work`] counts them. Whoever prices kernels groups the functions of
//! [`super::Training::graph`] first; [`Phase::of`] says of each node why it is there.

use super::recompute::AGAIN;
use super::{Policy, RecomputeReport, training};
use crate::graph::{Dims, Function, Graph, GraphError, Node, Param, Slot};
use crate::op::{Backward, Op};
use crate::spec::ModelSpec;
use crate::work::Work;
use serde::Serialize;

/// Why an op runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The forward pass.
    Forward,
    /// Forward work that runs again in the backward pass.
    Recompute,
    /// The loss and its derivative by the logits.
    Loss,
    /// The backward pass.
    Backward,
}

impl Phase {
    /// The phase of a node of a training graph.
    ///
    /// A backward function repeats forward nodes under their own names; in main everything before the loss is forward.
    pub fn of(graph: &Graph, function: &Function, node: &Node) -> Phase {
        let place = |wanted: &Node| function.nodes.iter().position(|node| node.name == wanted.name);
        if function.per_layer {
            return match graph.functions.iter().position(|f| f.name == function.name) {
                Some(index) if index % 2 == 0 => Phase::Forward,
                _ if repeats(graph, node) => Phase::Recompute,
                _ => Phase::Backward,
            };
        }
        let loss =
            function.nodes.iter().position(|node| matches!(node.op, Op::Backward(Backward::CrossEntropy)));
        match node.op {
            Op::Backward(Backward::CrossEntropy | Backward::CrossEntropyDx) => Phase::Loss,
            _ if place(node) < loss => Phase::Forward,
            _ => Phase::Backward,
        }
    }
}

/// Whether a node of a backward function is a forward node that runs again.
fn repeats(graph: &Graph, node: &Node) -> bool {
    let name = node.name.strip_suffix(AGAIN).unwrap_or(&node.name);
    graph.layer().nodes.iter().any(|forward| forward.name == name)
}

/// One op of a training step.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingOp {
    /// Name of the function it stands in: `layer`, `layer_backward`, `main`.
    pub function: String,
    /// Name of the node, such as `attn.q.dw`.
    pub node: String,
    /// What it does.
    pub op: Op,
    /// Why it runs.
    pub phase: Phase,
    /// How often in a step: once for each layer of its segment, or once.
    pub times: u64,
    /// Work of one run.
    pub work: Work,
}

/// A training step, op by op, and what it holds.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingWork {
    /// Every op that does anything, in the order of the functions.
    pub ops: Vec<TrainingOp>,
    /// What the layers keep from forward to backward; `ty` is one layer's.
    pub slots: Vec<Slot>,
    /// What recomputation saves and costs.
    pub recompute: RecomputeReport,
    /// Learned tensors, each with a gradient of its shape.
    pub params: Vec<Param>,
    /// Layers of the model.
    pub n_layers: u64,
}

impl TrainingWork {
    /// Work of one phase of the whole step.
    pub fn of(&self, phase: Phase) -> Work {
        self.ops.iter().filter(|op| op.phase == phase).map(|op| op.work * op.times).sum()
    }

    /// Work of the whole step, without the optimizer.
    pub fn total(&self) -> Work {
        self.ops.iter().map(|op| op.work * op.times).sum()
    }

    /// Bytes that one layer keeps; of several segments the most.
    pub fn layer_saved_bytes(&self) -> u64 {
        self.recompute.segments.iter().map(|segment| segment.saved_bytes).max().unwrap_or(0)
    }
}

/// What a training step of `spec` costs under a recomputation policy.
///
/// # Errors
/// As [`super::training`].
pub fn training_work(spec: &ModelSpec, dims: Dims, policy: &Policy) -> Result<TrainingWork, GraphError> {
    let training = training(spec, dims, policy)?;
    Ok(graph_work(&training.graph, training.recompute))
}

/// The same for a graph that is there already.
pub fn graph_work(graph: &Graph, recompute: RecomputeReport) -> TrainingWork {
    let ops = graph.functions.iter().flat_map(|function| function_ops(graph, function)).collect();
    let (slots, params) = (graph.slots.clone(), graph.params.clone());
    TrainingWork { ops, slots, recompute, params, n_layers: graph.n_layers }
}

fn function_ops(graph: &Graph, function: &Function) -> Vec<TrainingOp> {
    let times = times(graph, function);
    let works = |op: &Op| {
        !matches!(
            op,
            Op::Param { .. }
                | Op::Repeat { .. }
                | Op::Backward(Backward::Save { .. } | Backward::Saved { .. })
        )
    };
    let nodes = function.nodes.iter().filter(|node| works(&node.op));
    nodes
        .map(|node| TrainingOp {
            function: function.name.clone(),
            node: node.name.clone(),
            op: node.op.clone(),
            phase: Phase::of(graph, function, node),
            times,
            work: function.node_work(node, graph),
        })
        .collect()
}

/// How often a function runs in a step.
fn times(graph: &Graph, function: &Function) -> u64 {
    let calls = graph.main().nodes.iter().filter_map(|node| match node.op {
        Op::Repeat { function: called, times, .. } if graph.functions[called].name == function.name => {
            Some(times)
        }
        _ => None,
    });
    if function.per_layer { calls.sum() } else { 1 }
}
