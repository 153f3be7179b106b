//! Groups the ops of a function into the kernels that a compiler would run, so that prices are of kernels.
//!
//! Matmuls that read the same value become one; pointwise ops join the matmul that feeds them (its
//! epilogue); attention from scores to values is one kernel without a score tensor in memory; norms and
//! gathers stand alone. Traffic is what crosses a kernel's border.
//!
//! Backward functions follow the same rules: a weight gradient is one kernel with the sum it is added to, a norm's
//! derivatives are one kernel with the residual's sum, and attention's backward core is one kernel that computes its
//! scores again.

use lapidary_models::op::{Backward, Op};
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

/// One kernel.
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
        Op::Param { .. }
        | Op::Repeat { .. }
        | Op::Backward(Backward::Save { .. })
        | Op::Backward(Backward::Saved { .. }) => None,
        Op::Linear => {
            Some(shared_input(function, node, groups).map_or(Home::Opens(Anchor::Matmul), Home::Joins))
        }
        Op::Backward(Backward::LinearDx) | Op::Backward(Backward::LinearDw) => {
            Some(Home::Opens(Anchor::Matmul))
        }
        Op::Scores { .. }
        | Op::Values { .. }
        | Op::Backward(Backward::ValuesDv { .. })
        | Op::Backward(Backward::SoftmaxDx) => {
            Some(core(groups).map_or(Home::Opens(Anchor::Attention), Home::Joins))
        }
        Op::Norm { .. } | Op::Backward(Backward::NormDx { .. }) | Op::Backward(Backward::CrossEntropy) => {
            Some(Home::Opens(Anchor::Row))
        }
        Op::Backward(Backward::NormDw { .. }) => {
            Some(derived_norm(function, node, groups).map_or(Home::Opens(Anchor::Row), Home::Joins))
        }
        Op::Embed
        | Op::KvAppend { .. }
        | Op::LastToken
        | Op::Backward(Backward::ColumnSum)
        | Op::Backward(Backward::EmbedDw { .. })
        | Op::Backward(Backward::PositionDw { .. }) => Some(Home::Opens(Anchor::Pointwise)),
        Op::Backward(Backward::Gradient { .. }) => {
            Some(owner[node.inputs[0].0].map_or(Home::Opens(Anchor::Pointwise), Home::Joins))
        }
        _ => {
            let feeding = node.inputs.iter().filter_map(|input| owner[input.0]).max();
            let joined = feeding.filter(|at| takes_pointwise(function, &groups[*at]));
            Some(joined.map_or(Home::Opens(Anchor::Pointwise), Home::Joins))
        }
    }
}

/// The kernel of attention's core, forward or backward: a function has one.
fn core(groups: &[Group]) -> Option<usize> {
    groups.iter().position(|group| group.anchor == Anchor::Attention)
}

/// The derivative by the input of the same norm.
fn derived_norm(function: &Function, node: &Node, groups: &[Group]) -> Option<usize> {
    let same = |index: &usize| {
        let other = &function.nodes[*index];
        matches!(other.op, Op::Backward(Backward::NormDx { .. })) && other.inputs[0] == node.inputs[0]
    };
    groups.iter().position(|group| group.nodes.iter().any(same))
}

/// Whether pointwise ops join a kernel: rows do not take any, but for a norm's derivative, which takes the residual's,
/// and the loss, which takes its own.
fn takes_pointwise(function: &Function, group: &Group) -> bool {
    let first = &function.nodes[group.nodes[0]].op;
    group.anchor != Anchor::Row
        || matches!(first, Op::Backward(Backward::NormDx { .. }) | Op::Backward(Backward::CrossEntropy))
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
        nodes: group.nodes.clone(),
    }
}

fn contraction_flops(graph: &Graph, function: &Function, node: &Node) -> f64 {
    let flops = function.node_work(node, graph).matmul_flops as f64;
    match node.op {
        Op::Scores { .. } | Op::Values { .. } | Op::Backward(Backward::ValuesDv { .. }) => {
            flops * visible_share(function, graph)
        }
        _ => flops,
    }
}

/// Share of the score matrix that causal attention within its window computes.
pub(crate) fn visible_share(function: &Function, graph: &Graph) -> f64 {
    let mask = function.nodes.iter().find_map(|node| match node.op {
        Op::Mask { causal, window, .. } | Op::Backward(Backward::MaskDx { causal, window, .. }) => {
            Some((causal, window))
        }
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
    let values: f64 = entering.iter().chain(&leaving).map(|value| function.ty(*value).bytes() as f64).sum();
    values + sums(function, nodes)
}

/// Sums that gradients are added to, in 32 bits: read and written; the gradient itself does not leave. A table's rows
/// are added to where a token reads them.
fn sums(function: &Function, nodes: &[usize]) -> f64 {
    let all = || nodes.iter().map(|index| &function.nodes[*index]);
    let scattered = all().find(|node| matches!(node.op, Op::Backward(Backward::EmbedDw { .. })));
    let gradients = all().filter(|node| matches!(node.op, Op::Backward(Backward::Gradient { .. })));
    let added =
        |node: &Node| function.ty(scattered.map_or(node.output, |scatter| scatter.inputs[1])).elements();
    gradients.map(|node| 8.0 * added(node) as f64).sum()
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
