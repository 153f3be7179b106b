//! Memory traffic of a set of ops that run as one kernel.
//!
//! Every value from outside is read once, every value that somebody outside needs is written once, and what
//! stays inside costs nothing. Tiles that a contraction reads again are not counted, neither before nor after
//! fusion. For a single op this is [`Op::work`]'s count.

use crate::fusion::flow::Flow;
use lapidary_models::op::Sharded;
use lapidary_models::{Function, Node, Op, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// Nodes of a function, by index.
pub type Set = BTreeSet<usize>;

/// Bytes that a kernel of these nodes moves.
pub fn traffic(flow: &Flow, nodes: &Set) -> u64 {
    let read: u64 = reads(flow, nodes).values().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
    let written = writes(flow, nodes).values().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
    read.saturating_add(written)
}

/// Values that the nodes read from outside, with the bytes read.
pub fn reads(flow: &Flow, nodes: &Set) -> BTreeMap<ValueId, u64> {
    let mut found = BTreeMap::new();
    for node in nodes.iter().map(|n| flow.node(*n)) {
        for (operand, value) in node.inputs.iter().enumerate() {
            if !flow.made_in(*value, nodes) {
                let bytes = read_bytes(flow.function, node, operand);
                let most = found.entry(*value).or_insert(bytes);
                *most = bytes.max(*most);
            }
        }
    }
    found
}

/// Values that the nodes write to memory, with the bytes written.
pub fn writes(flow: &Flow, nodes: &Set) -> BTreeMap<ValueId, u64> {
    let written = |n: &usize| {
        let node = flow.node(*n);
        match node.op {
            Op::KvAppend { .. } => Some((node.output, flow.function.ty(node.inputs[0]).bytes())),
            _ if flow.escapes(node.output, nodes) => {
                Some((node.output, flow.function.ty(node.output).bytes()))
            }
            _ => None,
        }
    };
    nodes.iter().filter_map(written).collect()
}

fn read_bytes(function: &Function, node: &Node, operand: usize) -> u64 {
    let result = function.ty(node.output);
    match (&node.op, operand) {
        (Op::Embed | Op::Sharded(Sharded::EmbedPart { .. }), 1) | (Op::LastToken, _) => result.bytes(),
        (Op::Position { .. }, 1) => {
            result.shape[1].saturating_mul(result.shape[2]).saturating_mul(result.dtype.bytes())
        }
        _ => function.ty(node.inputs[operand]).bytes(),
    }
}
