//! Which values may share one place: a kernel writes over an input that nobody needs any more.
//!
//! That keeps the hidden state in one buffer from layer to layer and residual sums out of the arena. It is safe where the
//! kernel reads the input only element by element, at the place it writes.
use super::{Assembler, Node};
use crate::cuda::spec::{Anchor, Backward, KernelOp, KernelSpec, Source, ValueId};

/// What a repeat's body receives and hands on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Carried {
    /// The value's name at the start of a round.
    pub param: usize,
    /// The value at the end of a round.
    pub yielded: usize,
}

impl Assembler<'_> {
    /// Gives each result of node `at` the place of a dead input where that is safe; a round's last value tries the
    /// place of the first one before others.
    pub(super) fn settle(&mut self, nodes: &[Node], at: usize, carried: Option<Carried>) {
        let Node::Kernel { spec, args, results } = &nodes[at] else { return };
        for (j, &result) in results.iter().enumerate() {
            let appends =
                spec.op(spec.outputs[j]).is_some_and(|op| matches!(op.op, KernelOp::KvAppend { .. }));
            if appends || self.caches.contains_key(&result) || self.home[result] != result {
                continue;
            }
            let first = carried.filter(|carried| carried.yielded == result).map(|carried| carried.param);
            let wanted = first.into_iter().chain(args.iter().copied()).map(|value| self.home[value]);
            let taken = wanted
                .collect::<Vec<_>>()
                .into_iter()
                .find(|&home| self.may_take(nodes, at, home, result, carried));
            if let Some(home) = taken {
                self.home[result] = home;
            }
        }
    }

    /// Whether `result`, made by node `at`, may be written to `home`.
    pub(super) fn may_take(
        &self,
        nodes: &[Node],
        at: usize,
        home: usize,
        result: usize,
        carried: Option<Carried>,
    ) -> bool {
        let results = nodes[at].results();
        let module = self.module;
        if module.values[home].ty != module.values[result].ty || module.inputs.contains(&home) {
            return false;
        }
        let lodgers: Vec<usize> = (0..module.values.len())
            .filter(|&v| self.home[v] == home && !self.caches.contains_key(&v) && v != result)
            .collect();
        let round_starts_here = carried.is_some_and(|carried| self.home[carried.param] == home);
        let made_here = |value: usize| nodes[..at].iter().any(|node| makes(node, value));
        let ours = round_starts_here || lodgers.iter().any(|&value| made_here(value));
        let free = |value: usize| {
            let left = module.outputs.contains(&value) || results.contains(&value);
            let handed_on = carried.is_some_and(|carried| carried.yielded == value);
            let read_later = nodes[at + 1..].iter().any(|node| reads(node, value));
            !left && !handed_on && !read_later && read_in_place(&nodes[at], value)
        };
        // Outside of this body the place has the names of what enters and leaves the repeat; those do not count here, but what
        // this node itself leaves there does.
        let local = |value: &usize| {
            made_here(*value)
                || results.contains(value)
                || carried.is_none_or(|carried| carried.param == *value || !round_starts_here)
        };
        ours && lodgers.iter().filter(|value| local(value)).all(|&value| free(value))
    }
}

/// Whether a node reads a value.
pub(super) fn reads(node: &Node, value: usize) -> bool {
    match node {
        Node::Kernel { args, .. } => args.contains(&value),
        Node::Talk { arg, .. } => *arg == Some(value),
        Node::Repeat { input, body, .. } => *input == value || body.iter().any(|node| reads(node, value)),
    }
}

fn makes(node: &Node, value: usize) -> bool {
    node.results().contains(&value)
}

impl Node {
    /// The values that it makes.
    pub(super) fn results(&self) -> &[usize] {
        match self {
            Node::Kernel { results, .. } => results,
            Node::Talk { result, .. } | Node::Repeat { result, .. } => std::slice::from_ref(result),
        }
    }
}

/// Sums over ranks may be formed where the summand is.
fn read_in_place(node: &Node, value: usize) -> bool {
    let Node::Kernel { spec, args, .. } = node else { return matches!(node, Node::Talk { .. }) };
    let inputs = (0..spec.inputs.len()).filter(|&i| spec.inputs[i].source == Source::Activation);
    inputs.zip(args).filter(|(_, arg)| **arg == value).all(|(input, _)| only_in_place(spec, input))
}

/// Whether a region reads an input only where it writes: through element-wise operations of the same rows.
fn only_in_place(spec: &KernelSpec, input: ValueId) -> bool {
    // Outside of products, a half-split rotation computes its operand a second time at other columns.
    let looks_aside = spec.anchor != Anchor::Matmul
        && spec
            .ops
            .iter()
            .any(|op| matches!(op.op, KernelOp::Rope(_) | KernelOp::Backward(Backward::RopeDx(_))));
    !looks_aside
        && spec.users(input).iter().all(|&user| {
            spec.op(user).is_some_and(|op| {
                matches!(
                    op.op,
                    KernelOp::Add
                        | KernelOp::Mul
                        | KernelOp::Scale { .. }
                        | KernelOp::Activation(_)
                        | KernelOp::Bias
                        | KernelOp::Position { .. }
                        | KernelOp::Norm { .. }
                        | KernelOp::Backward(Backward::ActivationDx(_))
                )
            })
        })
}
