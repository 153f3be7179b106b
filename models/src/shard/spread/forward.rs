//! Ops of a forward pass on parts.

use super::super::layout::{Axis, Layout};
use super::super::part::Part;
use super::{Held, Made, Rank, mismatch, part_of_rows};
use crate::graph::{Node, ValueId};
use crate::op::{Op, Sharded};

impl Rank<'_, '_> {
    pub(super) fn param(&mut self, node: &Node, param: usize) -> Held {
        let (param, layout) = self.context.param(param);
        let ty = self.context.params[param].ty.clone();
        Held::Value(self.declared(&node.name, Op::Param { param }, &[], ty), layout)
    }

    pub(super) fn receive(&mut self, node: &Node) -> Held {
        let ty = self.whole.ty(node.output).clone();
        let (ty, layout) = match self.context.rows {
            Some(rows) => (part_of_rows(&ty, rows), Layout::Rows),
            None => (ty, Layout::Whole),
        };
        Held::Value(self.declared(&node.name, node.op.clone(), &[], ty), layout)
    }

    /// A lookup in the rank's rows of the table gives a summand.
    pub(super) fn embed(&mut self, node: &Node) -> Made {
        let (ids, (table, layout)) = (self.needs_whole(node.inputs[0])?, self.as_is(node.inputs[1])?);
        let first = match (layout, self.param_part(node, 1)) {
            (Layout::Split(Axis::Vocab), Some(part)) => part.start,
            _ => return Ok(Held::Value(self.push(&node.name, Op::Embed, &[ids, table])?, Layout::Whole)),
        };
        let found = self.push(&node.name, Sharded::EmbedPart { first }.into(), &[ids, table])?;
        Ok(Held::Value(found, Layout::Partial))
    }

    /// The part of the parameter that an operand of a node is.
    pub(super) fn param_part(&self, node: &Node, operand: usize) -> Option<Part> {
        let maker = self.whole.nodes.iter().find(|maker| maker.output == node.inputs[operand])?;
        let Op::Param { param } = maker.op else { return None };
        self.context.parts.get(&self.context.graph.params[param].name).copied()
    }

    /// Rows of the weight split: the result is split. Columns split, as the operand is: the result is a summand.
    pub(super) fn linear(&mut self, node: &Node) -> Made {
        let ((x, x_layout), (w, w_layout)) = (self.all_rows(node.inputs[0])?, self.as_is(node.inputs[1])?);
        let axis = self.param_part(node, 1).map(|part| part.axis);
        let layout = match (x_layout, w_layout, axis) {
            (Layout::Whole, Layout::Whole, _) => Layout::Whole,
            (Layout::Whole, Layout::Split(by), Some(0)) => Layout::Split(by),
            (Layout::Split(a), Layout::Split(b), Some(1)) if a == b => Layout::Partial,
            _ => return Err(mismatch(node, x_layout, w_layout)),
        };
        Ok(Held::Value(self.push(&node.name, Op::Linear, &[x, w])?, layout))
    }

    /// A sum of summands is a summand; a value that is none joins when the sum over ranks is formed.
    pub(super) fn add(&mut self, node: &Node) -> Made {
        let name = node.name.clone();
        match [self.held(node.inputs[0]), self.held(node.inputs[1])] {
            [Held::Value(a, Layout::Partial), Held::Value(b, Layout::Partial)] => {
                Ok(Held::Value(self.push(&name, Op::Add, &[a, b])?, Layout::Partial))
            }
            [
                Held::Value(base, at @ (Layout::Whole | Layout::Rows)),
                Held::Value(partial, Layout::Partial),
            ]
            | [
                Held::Value(partial, Layout::Partial),
                Held::Value(base, at @ (Layout::Whole | Layout::Rows)),
            ] => Ok(Held::Sum { base: (base, at), partial, name }),
            [Held::Sum { base, partial, name: first }, Held::Value(more, Layout::Partial)]
            | [Held::Value(more, Layout::Partial), Held::Sum { base, partial, name: first }] => {
                let partial = self.push(&first, Op::Add, &[partial, more])?;
                Ok(Held::Sum { base, partial, name })
            }
            _ => self.pointwise(node),
        }
    }

    /// What commutes with a sum over ranks, when all operands are summands.
    pub(super) fn linear_map(&mut self, node: &Node) -> Made {
        let summand = |id: &ValueId| match self.held(*id) {
            Held::Value(x, Layout::Partial) => Some(x),
            _ => None,
        };
        match node.inputs.iter().map(summand).collect::<Option<Vec<_>>>() {
            Some(inputs) => {
                Ok(Held::Value(self.push(&node.name, node.op.clone(), &inputs)?, Layout::Partial))
            }
            None => self.pointwise(node),
        }
    }

    /// Operands in the same layout, which is the result's. Where one is the rank's rows, all that have rows are; a vector
    /// goes with any of them.
    pub(super) fn pointwise(&mut self, node: &Node) -> Made {
        let mut operands: Vec<(ValueId, Layout)> =
            node.inputs.iter().map(|id| self.as_is(*id)).collect::<Result<_, _>>()?;
        if operands.iter().any(|(_, layout)| *layout == Layout::Rows) {
            for (id, operand) in node.inputs.iter().zip(&mut operands) {
                *operand = match self.has_rows(*id) {
                    true => (self.needs_rows(*id)?, Layout::Rows),
                    false => (self.needs_whole(*id)?, Layout::Rows),
                };
            }
        }
        let (inputs, layouts): (Vec<ValueId>, Vec<Layout>) = operands.into_iter().unzip();
        if let Some(other) = layouts.iter().find(|layout| **layout != layouts[0]) {
            return Err(mismatch(node, layouts[0], *other));
        }
        Ok(Held::Value(self.push(&node.name, node.op.clone(), &inputs)?, layouts[0]))
    }

    pub(super) fn on_wholes(&mut self, node: &Node) -> Made {
        let inputs: Vec<ValueId> =
            node.inputs.iter().map(|id| self.needs_whole(*id)).collect::<Result<_, _>>()?;
        Ok(Held::Value(self.push(&node.name, node.op.clone(), &inputs)?, Layout::Whole))
    }

    /// Ops that need whole rows, on the rank's rows where rows are split.
    pub(super) fn on_rows(&mut self, node: &Node) -> Made {
        if self.context.rows.is_none() {
            return self.on_wholes(node);
        }
        let mut inputs = Vec::new();
        for id in &node.inputs {
            inputs.push(if self.has_rows(*id) { self.needs_rows(*id)? } else { self.needs_whole(*id)? });
        }
        Ok(Held::Value(self.push(&node.name, node.op.clone(), &inputs)?, Layout::Rows))
    }

    /// Layers and other stages.
    pub(super) fn on_stream(&mut self, node: &Node) -> Made {
        let x = self.stream(node.inputs[0])?;
        let layout = if self.context.rows.is_some() { Layout::Rows } else { Layout::Whole };
        Ok(Held::Value(self.push(&node.name, node.op.clone(), &[x])?, layout))
    }

    /// Products of heads: query heads with the key-value heads that the rank holds next to them.
    pub(super) fn attention(&mut self, node: &Node) -> Made {
        let ((a, left), (b, right)) = (self.all_rows(node.inputs[0])?, self.all_rows(node.inputs[1])?);
        let (layout, op) = match (left, right, &self.context.splits) {
            (Layout::Whole, Layout::Whole, _) => (Layout::Whole, node.op.clone()),
            (Layout::Split(Axis::Heads), Layout::Split(Axis::KvHeads), Some(splits)) => {
                let (heads, kv_heads) = splits.heads();
                let op = match node.op {
                    Op::Scores { .. } => Op::Scores { heads, kv_heads },
                    _ => Op::Values { heads, kv_heads },
                };
                (Layout::Split(Axis::Heads), op)
            }
            _ => return Err(mismatch(node, left, right)),
        };
        Ok(Held::Value(self.push(&node.name, op, &[a, b])?, layout))
    }

    /// ALiBi's slopes are those of the model's heads, of which the rank has a run.
    pub(super) fn slopes(&mut self, node: &Node) -> Made {
        let mut own = node.clone();
        if let (Op::Mask { heads, .. }, Some(splits)) = (&mut own.op, &self.context.splits) {
            *heads = Some(splits.head_run());
        }
        self.pointwise(&own)
    }
}
