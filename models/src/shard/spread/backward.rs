//! Ops of a backward pass on parts: the derivative of what is split is split the same way, and that of what all ranks read
//! is the sum of what each makes of it.

use super::super::ShardError;
use super::super::layout::{Axis, Layout};
use super::super::part::Part;
use super::{Held, Made, Rank, mismatch};
use crate::graph::{Node, ValueId};
use crate::op::{Backward, Op, Sharded};

impl Rank<'_, '_> {
    pub(super) fn backward(&mut self, node: &Node, op: &Backward) -> Made {
        match *op {
            Backward::CrossEntropy => self.on_wholes(node),
            Backward::CrossEntropyDx => self.loss_dx(node),
            Backward::LinearDx => self.linear_dx(node),
            Backward::LinearDw => self.linear_dw(node),
            Backward::ColumnSum => self.column_sum(node),
            Backward::NormDx { .. } => self.on_rows(node),
            Backward::NormDw { .. } => {
                let layout = if self.context.rows.is_some() { Layout::Partial } else { Layout::Whole };
                match self.on_rows(node)? {
                    Held::Value(value, _) => Ok(Held::Value(value, layout)),
                    held => Ok(held),
                }
            }
            Backward::ActivationDx(_)
            | Backward::RopeDx { .. }
            | Backward::MaskDx { .. }
            | Backward::SoftmaxDx => self.pointwise(node),
            Backward::ValuesDv { .. } => self.values_dv(node),
            Backward::EmbedDw { .. } => self.embed_dw(node),
            Backward::PositionDw { .. } | Backward::LastTokenDx { .. } => self.on_wholes(node),
            Backward::Save { slot } => self.save(node, slot),
            Backward::Saved { slot } => self.saved(node, slot),
            Backward::Gradient { param } => self.gradient(node, param),
        }
    }

    /// The loss is made of whole rows of logits; its derivative goes back in the parts that the logits came in.
    fn loss_dx(&mut self, node: &Node) -> Made {
        let Held::Value(dy, _) = self.on_wholes(node)? else { unreachable!("an op on wholes makes a value") };
        let (Held::Value(part, layout @ Layout::Split(_)), Some(splits)) =
            (self.held(node.inputs[0]), &self.context.splits)
        else {
            return Ok(Held::Value(dy, Layout::Whole));
        };
        let held = self.made.ty(part).last().unwrap_or(0);
        let width = self.whole.ty(node.output).last().unwrap_or(0);
        let first = splits.vocabulary(width, self.context.rank);
        let take = Sharded::Take { first, length: held.min(width - first), held };
        Ok(Held::Value(self.push(&format!("{}.take", node.name), take.into(), &[dy])?, layout))
    }

    /// Columns of the weight split: so is the derivative. Rows split, as `dy` is: the result is a summand.
    fn linear_dx(&mut self, node: &Node) -> Made {
        let ((dy, dy_layout), (w, w_layout)) = (self.all_rows(node.inputs[0])?, self.as_is(node.inputs[1])?);
        let axis = self.param_part(node, 1).map(|part| part.axis);
        let layout = match (dy_layout, w_layout, axis) {
            (Layout::Whole, Layout::Whole, _) => Layout::Whole,
            (Layout::Whole, Layout::Split(by), Some(1)) => Layout::Split(by),
            (Layout::Split(a), Layout::Split(b), Some(0)) if a == b => Layout::Partial,
            _ => return Err(mismatch(node, dy_layout, w_layout)),
        };
        Ok(Held::Value(self.push(&node.name, node.op.clone(), &[dy, w])?, layout))
    }

    fn linear_dw(&mut self, node: &Node) -> Made {
        let ((dy, dy_layout), (x, x_layout)) =
            (self.all_rows(node.inputs[0])?, self.all_rows(node.inputs[1])?);
        let layout = match (dy_layout, x_layout) {
            (Layout::Whole, Layout::Whole) => Layout::Whole,
            (Layout::Split(by), Layout::Whole) | (Layout::Whole, Layout::Split(by)) => Layout::Split(by),
            _ => return Err(mismatch(node, dy_layout, x_layout)),
        };
        Ok(Held::Value(self.push(&node.name, node.op.clone(), &[dy, x])?, layout))
    }

    /// A bias that one rank adds for all has its gradient there; the others hold zeros and keep them.
    fn column_sum(&mut self, node: &Node) -> Made {
        let added = self.added(node).and_then(|param| {
            let (_, layout) = self.context.param(param);
            let name = &self.context.graph.params[param].name;
            (layout == Layout::Partial).then(|| self.context.parts.get(name).copied()).flatten()
        });
        if let Some(Part { start: first, length, held, .. }) = added {
            let dy = self.needs_whole(node.inputs[0])?;
            let take = Sharded::Take { first, length, held };
            let own = self.push(&format!("{}.take", node.name), take.into(), &[dy])?;
            let sum = self.push(&node.name, node.op.clone(), &[own])?;
            return Ok(Held::Value(sum, Layout::Partial));
        }
        let (dy, layout) = self.as_is(node.inputs[0])?;
        let layout = if layout == Layout::Rows { Layout::Partial } else { layout };
        Ok(Held::Value(self.push(&node.name, node.op.clone(), &[dy])?, layout))
    }

    /// A parameter to whose gradient a node's result is added.
    fn added(&self, node: &Node) -> Option<usize> {
        self.whole.nodes.iter().find_map(|user| match user.op {
            Op::Backward(Backward::Gradient { param }) if user.inputs[0] == node.output => Some(param),
            _ => None,
        })
    }

    fn values_dv(&mut self, node: &Node) -> Made {
        let ((p, left), (y, right)) = (self.as_is(node.inputs[0])?, self.all_rows(node.inputs[1])?);
        let (layout, op) = match (left, right, &self.context.splits) {
            (Layout::Whole, Layout::Whole, _) => (Layout::Whole, node.op.clone()),
            (Layout::Split(Axis::Heads), Layout::Split(Axis::Heads), Some(splits)) => {
                let (heads, kv_heads) = splits.heads();
                (Layout::Split(Axis::KvHeads), Backward::ValuesDv { heads, kv_heads }.into())
            }
            _ => return Err(mismatch(node, left, right)),
        };
        Ok(Held::Value(self.push(&node.name, op, &[p, y])?, layout))
    }

    /// Every rank adds to its own rows of the table.
    fn embed_dw(&mut self, node: &Node) -> Made {
        let inputs = [self.needs_whole(node.inputs[0])?, self.needs_whole(node.inputs[1])?];
        let (layout, part) = match self.added(node) {
            Some(param) => {
                let (_, layout) = self.context.param(param);
                (layout, self.context.parts.get(&self.context.graph.params[param].name).copied())
            }
            None => (Layout::Whole, None),
        };
        let op = match part {
            Some(Part { start, held, .. }) => Sharded::EmbedPartDw { first: start, rows: held }.into(),
            None => node.op.clone(),
        };
        Ok(Held::Value(self.push(&node.name, op, &inputs)?, layout))
    }

    /// Kept as it is held; a summand is summed first.
    fn save(&mut self, node: &Node, slot: usize) -> Made {
        let (x, layout) = self.as_is(node.inputs[0])?;
        self.context.kept[slot] = Some(layout);
        self.context.slots[slot].ty = self.made.ty(x).clone();
        Ok(Held::Value(self.push(&node.name, node.op.clone(), &[x])?, layout))
    }

    fn saved(&mut self, node: &Node, slot: usize) -> Made {
        let Some(layout) = self.context.kept[slot] else {
            let what = "a value is read back before it is kept".into();
            return Err(ShardError::Unsupported { node: node.name.clone(), what });
        };
        let ty = self.context.slots[slot].ty.clone();
        Ok(Held::Value(self.declared(&node.name, node.op.clone(), &[], ty), layout))
    }

    fn gradient(&mut self, node: &Node, param: usize) -> Made {
        let Held::Value(dw, layout) = self.held(node.inputs[0]) else {
            let what = "a gradient that is a sum of values in several layouts".into();
            return Err(ShardError::Unsupported { node: node.name.clone(), what });
        };
        let (own, wanted) = self.context.param(param);
        let name = self.context.graph.params[param].name.clone();
        match (layout, wanted) {
            (Layout::Partial, Layout::Whole) => drop(self.context.summed.insert(name)),
            (layout, wanted) if layout == wanted => {}
            _ => return Err(mismatch(node, layout, wanted)),
        }
        let value: ValueId = self.push(&node.name, Backward::Gradient { param: own }.into(), &[dw])?;
        Ok(Held::Value(value, layout))
    }
}
