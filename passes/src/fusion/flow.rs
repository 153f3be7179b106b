//! Who makes and who uses each value of a function.

use crate::attention_backward::{Core, cores};
use crate::fusion::traffic::Set;
use lapidary_models::{Function, Node, Op, TensorType, ValueId};
use std::collections::BTreeMap;

/// A function with its uses.
pub struct Flow<'f> {
    /// The function.
    pub function: &'f Function,
    /// Backward passes of attention that are kernels of their own.
    pub cores: Vec<Core>,
    makers: BTreeMap<ValueId, usize>,
    users: BTreeMap<ValueId, Vec<usize>>,
    before: Vec<Vec<usize>>,
}

impl<'f> Flow<'f> {
    /// Finds the maker and the users of every value.
    pub fn new(function: &'f Function) -> Flow<'f> {
        let mut makers = BTreeMap::new();
        let mut users: BTreeMap<ValueId, Vec<usize>> = BTreeMap::new();
        for (index, node) in function.nodes.iter().enumerate() {
            makers.insert(node.output, index);
            for input in &node.inputs {
                let known = users.entry(*input).or_default();
                if known.last() != Some(&index) {
                    known.push(index);
                }
            }
        }
        let mut flow = Flow { function, cores: cores(function), makers, users, before: Vec::new() };
        flow.before = (0..function.nodes.len()).map(|n| flow.must_precede(n)).collect();
        flow
    }

    fn must_precede(&self, index: usize) -> Vec<usize> {
        let made = self.node(index).inputs.iter().filter_map(|value| self.maker(*value));
        let writes = matches!(self.op(index), Op::KvAppend { .. });
        let caches = (0..index).filter(|earlier| writes && same_cache(self.op(*earlier), self.op(index)));
        made.chain(caches).collect()
    }

    /// A node by index.
    pub fn node(&self, index: usize) -> &'f Node {
        &self.function.nodes[index]
    }

    /// The op of a node.
    pub fn op(&self, index: usize) -> &'f Op {
        &self.node(index).op
    }

    /// The type of a node's result.
    pub fn result(&self, index: usize) -> &'f TensorType {
        self.function.ty(self.node(index).output)
    }

    /// The node that makes a value; none for arguments.
    pub fn maker(&self, value: ValueId) -> Option<usize> {
        self.makers.get(&value).copied()
    }

    /// Nodes that read a value.
    pub fn users(&self, value: ValueId) -> &[usize] {
        self.users.get(&value).map_or(&[], Vec::as_slice)
    }

    /// Whether one of the nodes makes the value.
    pub fn made_in(&self, value: ValueId, nodes: &Set) -> bool {
        self.maker(value).is_some_and(|maker| nodes.contains(&maker))
    }

    /// Whether a value is needed by anyone but the nodes. A value nobody uses does not escape.
    pub fn escapes(&self, value: ValueId, nodes: &Set) -> bool {
        self.function.results.contains(&value) || self.users(value).iter().any(|user| !nodes.contains(user))
    }

    /// Nodes that must run before a node: those that make its operands, and earlier writes of the same cache.
    pub fn before(&self, index: usize) -> impl Iterator<Item = usize> + '_ {
        self.before[index].iter().copied()
    }
}

fn same_cache(a: &Op, b: &Op) -> bool {
    matches!((a, b), (Op::KvAppend { cache: a, .. }, Op::KvAppend { cache: b, .. }) if a == b)
}
