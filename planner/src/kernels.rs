//! Groups the ops of a function into the kernels that a compiler would run, so that prices are of kernels.
//!
//! Matmuls that read the same value become one; pointwise ops join the matmul that feeds them (its
//! epilogue); attention from scores to values is one kernel without a score tensor in memory; norms and
//! gathers stand alone. Traffic is what crosses a kernel's border.

use lapidary_models::op::Op;
use lapidary_models::{Function, Graph, Node, ValueId};
use std::collections::BTreeSet;

/// What a kernel is built around.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Anchor {
    /// A matrix product.
    Matmul,
    /// Attention from scores to values.
    Attention,
    /// A row-wise reduction.
    Row,
    /// Pointwise work or a gather.
    Pointwise,
}

/// One kernel of the forward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// Name of its first node.
    pub name: String,
    /// What it is built around.
    pub anchor: Anchor,
    /// Operations of its contractions; hidden keys of causal attention are not counted.
    pub flops: f64,
    /// Bytes that cross its border.
    pub bytes: f64,
    /// Bytes that a separate kernel for its pointwise gradients would move; 0 without such ops.
    pub epilogue_gradient_bytes: f64,
    /// Its nodes, as indices into the function.
    pub nodes: Vec<usize>,
}

/// The kernels of a function, in execution order. A repeat is nobody's kernel.
pub fn kernels(graph: &Graph, function: &Function) -> Vec<Kernel> {
    let groups = group(function);
    groups.iter().map(|group| kernel(graph, function, group)).collect()
}

struct Group {
    anchor: Anchor,
    nodes: Vec<usize>,
}

fn group(function: &Function) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut owner: Vec<Option<usize>> = vec![None; function.values.len()];
    for (index, node) in function.nodes.iter().enumerate() {
        let Some(home) = home(function, node, &groups, &owner) else { continue };
        let at = match home {
            Home::Joins(at) => at,
            Home::Opens(anchor) => {
                groups.push(Group { anchor, nodes: Vec::new() });
                groups.len() - 1
            }
        };
        groups[at].nodes.push(index);
        owner[node.output.0] = Some(at);
    }
    groups
}

enum Home {
    Joins(usize),
    Opens(Anchor),
}

/// Where a node goes; `None` for parameters and repeats, which are no work of their own.
fn home(function: &Function, node: &Node, groups: &[Group], owner: &[Option<usize>]) -> Option<Home> {
    match &node.op {
        Op::Param { .. } | Op::Repeat { .. } => None,
        Op::Linear => {
            Some(shared_input(function, node, groups).map_or(Home::Opens(Anchor::Matmul), Home::Joins))
        }
        Op::Scores { .. } => Some(Home::Opens(Anchor::Attention)),
        Op::Norm { .. } => Some(Home::Opens(Anchor::Row)),
        Op::Embed | Op::KvAppend { .. } | Op::LastToken => Some(Home::Opens(Anchor::Pointwise)),
        _ => {
            let feeding = node.inputs.iter().filter_map(|input| owner[input.0]).max();
            let joined = feeding.filter(|at| groups[*at].anchor != Anchor::Row);
            Some(joined.map_or(Home::Opens(Anchor::Pointwise), Home::Joins))
        }
    }
}

/// The matmul kernel of the same half-block that reads the same value.
fn shared_input(function: &Function, node: &Node, groups: &[Group]) -> Option<usize> {
    let half = |name: &str| name.split('.').next().unwrap_or(name).to_string();
    groups.iter().position(|group| {
        group.nodes.iter().any(|index| {
            let other = &function.nodes[*index];
            other.op == Op::Linear
                && other.inputs[0] == node.inputs[0]
                && half(&other.name) == half(&node.name)
        })
    })
}

fn kernel(graph: &Graph, function: &Function, group: &Group) -> Kernel {
    let nodes = || group.nodes.iter().map(|index| &function.nodes[*index]);
    let flops = nodes().map(|node| contraction_flops(graph, function, node)).sum();
    let first = &function.nodes[group.nodes[0]];
    Kernel {
        name: first.name.clone(),
        anchor: group.anchor,
        flops,
        bytes: border_bytes(graph, function, &group.nodes),
        epilogue_gradient_bytes: epilogue_gradient_bytes(function, &group.nodes),
        nodes: group.nodes.clone(),
    }
}

fn contraction_flops(graph: &Graph, function: &Function, node: &Node) -> f64 {
    let flops = function.node_work(node, graph).matmul_flops as f64;
    match node.op {
        Op::Scores { .. } | Op::Values { .. } => flops * visible_share(function, graph),
        _ => flops,
    }
}

/// Share of the score matrix that causal attention within its window computes.
fn visible_share(function: &Function, graph: &Graph) -> f64 {
    let mask = function.nodes.iter().find_map(|node| match node.op {
        Op::Mask { causal, window, .. } => Some((causal, window)),
        _ => None,
    });
    let (seq, cached) = (graph.dims.seq as f64, graph.dims.cached as f64);
    let keys = seq + cached;
    match mask {
        Some((true, 0)) => (cached + (seq + 1.0) / 2.0) / keys,
        Some((true, window)) => {
            let window = (window as f64).min(keys);
            let growing = (window - cached).clamp(0.0, seq);
            let while_growing = growing * cached + growing * (growing + 1.0) / 2.0;
            (while_growing + (seq - growing) * window) / (seq * keys)
        }
        _ => 1.0,
    }
}

/// Values that enter or leave a set of nodes. Gathers read the rows they need, not the table.
fn border_bytes(graph: &Graph, function: &Function, nodes: &[usize]) -> f64 {
    if let Op::Embed = function.nodes[nodes[0]].op {
        let own = function.node_work(&function.nodes[nodes[0]], graph);
        return own.bytes() as f64;
    }
    let (entering, leaving) = border(function, nodes);
    entering.iter().chain(&leaving).map(|value| function.ty(*value).bytes() as f64).sum()
}

/// Values read from outside, and values that are used outside or returned.
pub(crate) fn border(function: &Function, nodes: &[usize]) -> (BTreeSet<ValueId>, BTreeSet<ValueId>) {
    let made: BTreeSet<ValueId> = nodes.iter().map(|index| function.nodes[*index].output).collect();
    let read = nodes.iter().flat_map(|index| function.nodes[*index].inputs.iter().copied());
    let entering = read.filter(|value| !made.contains(value)).collect();
    let outside = function.nodes.iter().enumerate().filter(|(index, _)| !nodes.contains(index));
    let used: BTreeSet<ValueId> = outside
        .flat_map(|(_, node)| node.inputs.iter().copied())
        .chain(function.results.iter().copied())
        .collect();
    let leaving = made.into_iter().filter(|value| used.contains(value)).collect();
    (entering, leaving)
}

/// Traffic of the gradients of pointwise ops inside a kernel: non-linear ones read their inputs and the
/// incoming gradient and write one per input; a rotation reads one and writes one; sums and factors are free.
fn epilogue_gradient_bytes(function: &Function, nodes: &[usize]) -> f64 {
    let curved: Vec<usize> = nodes
        .iter()
        .copied()
        .filter(|index| matches!(function.nodes[*index].op, Op::Activation(_) | Op::Mul))
        .collect();
    let (inputs, outputs) = border(function, &curved);
    let bytes = |values: &BTreeSet<ValueId>| -> f64 {
        values.iter().map(|value| function.ty(*value).bytes() as f64).sum()
    };
    let rotated = nodes.iter().map(|index| &function.nodes[*index]);
    let rotated = rotated.filter(|node| matches!(node.op, Op::Rope { .. }));
    let rotated: f64 = rotated.map(|node| 2.0 * function.ty(node.output).bytes() as f64).sum();
    2.0 * bytes(&inputs) + bytes(&outputs) + rotated
}
