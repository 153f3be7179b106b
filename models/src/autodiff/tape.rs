//! The state of a backward walk: which forward value has which derivative, and where forward values come from.

use super::draft::Draft;
use crate::dtype::DType;
use crate::graph::{Function, GraphError, Node, Param, TensorType, ValueId};
use crate::op::{Backward, Op};
use std::collections::BTreeMap;

/// Walks a forward function backwards and writes derivatives into a draft.
pub(super) struct Tape<'f> {
    forward: &'f Function,
    params: &'f [Param],
    /// Where derivatives are written.
    pub draft: Draft,
    /// Node that makes a forward value; arguments have none.
    producers: Vec<Option<usize>>,
    /// Whether a forward value depends on anything whose derivative is asked for.
    wanted: Vec<bool>,
    derivatives: BTreeMap<ValueId, ValueId>,
    source: Source,
}

/// Where a forward value is found while walking backwards.
enum Source {
    /// In the same function.
    Here,
    /// In a slot, by forward value; filled as they are asked for.
    Slots { first: usize, kept: Vec<ValueId>, fetched: BTreeMap<ValueId, ValueId> },
}

impl<'f> Tape<'f> {
    /// Derivatives go behind the forward nodes of the same function: `draft` continues `forward`.
    pub fn here(forward: &'f Function, params: &'f [Param], draft: Draft) -> Tape<'f> {
        Tape::new(forward, params, draft, Source::Here)
    }

    /// Derivatives go into a function of their own, which reads forward values from slots `first ..`.
    pub fn apart(forward: &'f Function, params: &'f [Param], draft: Draft, first: usize) -> Tape<'f> {
        let source = Source::Slots { first, kept: Vec::new(), fetched: BTreeMap::new() };
        Tape::new(forward, params, draft, source)
    }

    fn new(forward: &'f Function, params: &'f [Param], draft: Draft, source: Source) -> Tape<'f> {
        let mut producers = vec![None; forward.values.len()];
        let mut wanted = vec![false; forward.values.len()];
        for argument in &forward.arguments {
            wanted[argument.0] = forward.ty(*argument).dtype != DType::I32;
        }
        for (index, node) in forward.nodes.iter().enumerate() {
            producers[node.output.0] = Some(index);
            let learned = matches!(node.op, Op::Param { .. });
            wanted[node.output.0] = learned || node.inputs.iter().any(|input| wanted[input.0]);
        }
        Tape { forward, params, draft, producers, wanted, derivatives: BTreeMap::new(), source }
    }

    /// Whether the derivative by operand `i` of a node is asked for.
    pub fn wants(&self, node: &Node, i: usize) -> bool {
        self.wanted[node.inputs[i].0]
    }

    /// Type of a forward value.
    pub fn ty(&self, value: ValueId) -> &TensorType {
        self.forward.ty(value)
    }

    /// Operand `i` of a forward node, as the draft may read it.
    pub fn operand(&mut self, node: &Node, i: usize) -> ValueId {
        self.fetch(node.inputs[i])
    }

    /// A forward value, as the draft may read it.
    pub fn fetch(&mut self, value: ValueId) -> ValueId {
        if let Some(Op::Param { param }) = self.producer(value).map(|node| &node.op) {
            return self.draft.param(self.params, *param);
        }
        let Source::Slots { first, kept, fetched } = &mut self.source else { return value };
        if let Some(id) = fetched.get(&value) {
            return *id;
        }
        let slot = *first + kept.len();
        kept.push(value);
        let name = format!("{}.saved", value_name(self.forward, &self.producers, value));
        let id = self.draft.declared(
            &name,
            Op::Backward(Backward::Saved { slot }),
            &[],
            self.forward.ty(value).clone(),
        );
        fetched.insert(value, id);
        id
    }

    fn producer(&self, value: ValueId) -> Option<&'f Node> {
        self.producers[value.0].map(|index| &self.forward.nodes[index])
    }

    /// The sum of what has been added for a forward value.
    pub fn derivative(&self, value: ValueId) -> Option<ValueId> {
        self.derivatives.get(&value).copied()
    }

    /// Adds a derivative by a forward value. One by a parameter goes to its gradient at once.
    pub fn add(&mut self, value: ValueId, derivative: ValueId) -> Result<(), GraphError> {
        if let Some(Op::Param { param }) = self.producer(value).map(|node| &node.op) {
            let name = format!("{}.gradient", self.params[*param].name.trim_start_matches("layers.*."));
            return self
                .draft
                .node(&name, Op::Backward(Backward::Gradient { param: *param }), &[derivative])
                .map(drop);
        }
        let sum = match self.derivative(value) {
            None => derivative,
            Some(before) => {
                let name = format!("{}.sum", value_name(self.forward, &self.producers, value));
                self.draft.node(&name, Op::Add, &[before, derivative])?
            }
        };
        self.derivatives.insert(value, sum);
        Ok(())
    }

    /// The finished draft and the forward values that its slots hold, in their order.
    pub fn finish(self, results: Vec<ValueId>) -> (Function, Vec<ValueId>) {
        let kept = match self.source {
            Source::Here => Vec::new(),
            Source::Slots { kept, .. } => kept,
        };
        (self.draft.finish(results), kept)
    }
}

/// Name of a forward value: that of its node, `input` for an argument.
fn value_name<'f>(forward: &'f Function, producers: &[Option<usize>], value: ValueId) -> &'f str {
    producers[value.0].map_or("input", |index| forward.nodes[index].name.as_str())
}
