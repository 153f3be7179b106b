//! Ops of a backward pass, of the loss, and of what layers keep.

use super::draft::Draft;
use super::forward::{Scores, activation, norm_kind};
use super::{Kept, TrainError};
use crate::wafer::placed::{
    AttentionDx, ColumnSum, Gradient, Layout, Linear, Loss, LossDx, NormDw, NormDx, OpKind, Outer, Path,
    Segment, Source, Step, TableDw,
};
use lapidary_models::op::Backward;
use lapidary_models::{Node, ValueId};

impl Draft<'_> {
    /// Places a node that only training has.
    pub fn backward(&mut self, node: &Node, op: &Backward) -> Result<(), TrainError> {
        let n = self.at;
        match op {
            Backward::LinearDx if self.joins_residual(n) => self.onto_residual(n),
            Backward::LinearDx => self.linear_dx(node),
            Backward::LinearDw => self.linear_dw(node),
            Backward::ColumnSum => {
                let (result, nodes) = self.gradient(node)?;
                let input = self.over_columns(node.inputs[0])?;
                self.push(&node.name, OpKind::ColumnSum(ColumnSum { input, result }), &nodes);
                Ok(())
            }
            Backward::ActivationDx(function) => {
                let dy = self.name(node.inputs[1])?;
                let slope = Step::Slope(activation(*function));
                self.map(node.inputs[0], vec![slope, Step::Mul(dy)], &[n])
            }
            Backward::NormDx { kind, eps } => {
                let weight = self.parameter(node.inputs[1])?;
                let (input, gradient) = (self.name(node.inputs[0])?, self.name(node.inputs[2])?);
                let output = self.over(node.output, &[&gradient, &input]);
                let (kind, eps) = (norm_kind(*kind), *eps);
                let norm = NormDx { input, gradient, output, kind, eps, weight };
                self.push(&node.name, OpKind::NormDx(norm), &[n]);
                Ok(())
            }
            Backward::NormDw { kind, eps } => {
                let (result, nodes) = self.gradient(node)?;
                let (input, gradient) = (self.name(node.inputs[0])?, self.name(node.inputs[1])?);
                let (kind, eps) = (norm_kind(*kind), *eps);
                self.push(&node.name, OpKind::NormDw(NormDw { input, gradient, kind, eps, result }), &nodes);
                Ok(())
            }
            Backward::RopeDx { .. } => self.rope(node, node.inputs[0], true),
            Backward::CrossEntropy => {
                let (logits, tensor) = (self.name(node.inputs[0])?, self.unique("loss.sum"));
                self.push(&node.name, OpKind::Loss(Loss { logits, tensor }), &[n]);
                Ok(())
            }
            Backward::CrossEntropyDx => {
                let logits = self.name(node.inputs[0])?;
                let output = self.over(node.output, &[&logits]);
                self.push(&node.name, OpKind::LossDx(LossDx { logits, output }), &[n]);
                Ok(())
            }
            Backward::EmbedDw { .. } => self.table_dw(node, node.inputs[1], None),
            Backward::PositionDw { offset, .. } => self.table_dw(node, node.inputs[0], Some(*offset)),
            Backward::Save { slot } => self.save(node, *slot),
            Backward::Saved { slot } => self.saved(node, *slot),
            Backward::Gradient { .. } => self.fault("adds a gradient that no placed op makes"),
            Backward::MaskDx { .. } | Backward::SoftmaxDx | Backward::ValuesDv { .. } => self
                .fault("reads a matrix of scores, which no wafer keeps: let the softmax be computed again"),
            Backward::LastTokenDx { .. } => {
                self.fault("training reads every position; the last one alone has no place on a wafer")
            }
        }
    }

    /// Where the gradient that a node makes goes, and the nodes that are placed with it.
    fn gradient(&mut self, node: &Node) -> Result<(Gradient, Vec<usize>), TrainError> {
        let (parameter, adds) = self.gradient_of(node.output)?;
        self.done.insert(adds);
        let tensor = self.unique(&format!("gradient.{}", parameter.name));
        Ok((Gradient { tensor, parameter }, vec![self.at, adds]))
    }

    fn linear_dx(&mut self, node: &Node) -> Result<(), TrainError> {
        let n = self.at;
        let input = self.over_columns(node.inputs[0])?;
        let (weight, layout) = (self.parameter(node.inputs[1])?, self.layout_of(n));
        let value = self.define(node.output, &format!("{}.out", node.name), layout);
        let segment = Segment { value, weight, transposed: true, bias: None };
        let linear = Linear { input, outputs: vec![segment], accumulate: false };
        self.push(&node.name, OpKind::Linear(linear), &[n]);
        Ok(())
    }

    /// The narrower of the two values travels; one that lies over the columns of heads stays.
    fn linear_dw(&mut self, node: &Node) -> Result<(), TrainError> {
        let (result, nodes) = self.gradient(node)?;
        let (dy, x) = (self.over_columns(node.inputs[0])?, self.over_columns(node.inputs[1])?);
        let width = |name: &str| match self.layout(name) {
            Layout::Columns { features } => Some(features),
            _ => None,
        };
        let travels_dy = match (width(&dy), width(&x)) {
            (Some(dy), Some(x)) => dy < x,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (None, None) => return self.fault("multiplies two values that lie over the columns of heads"),
        };
        let (travelling, resident) = if travels_dy { (dy, x) } else { (x, dy) };
        let outer = Outer { travelling, resident, travels_dy, result };
        self.push(&node.name, OpKind::Outer(outer), &nodes);
        Ok(())
    }

    fn table_dw(&mut self, node: &Node, dy: ValueId, offset: Option<u64>) -> Result<(), TrainError> {
        let (table, adds) = self.gradient_of(node.output)?;
        self.done.insert(adds);
        let tensor = self.unique(&format!("gradient.{}", node.name));
        let source = match offset {
            Some(offset) => Source::Positions { table, offset },
            None => Source::Lookup { table },
        };
        let value = self.name(dy)?;
        let nodes = [self.at, adds];
        self.push(&node.name, OpKind::TableDw(TableDw { value, tensor, source }), &nodes);
        Ok(())
    }

    /// A kept value stays in memory, or leaves for the weight server.
    fn save(&mut self, node: &Node, slot: usize) -> Result<(), TrainError> {
        if self.host.function.ty(node.inputs[0]).shape.len() != 3 {
            return self.fault("keeps a matrix of scores: let the softmax be computed again");
        }
        let name = self.name(node.inputs[0])?;
        self.call(node.output, &name);
        let layout = self.layout(&name);
        self.slots.insert(slot, layout);
        self.touched.insert(slot);
        let path = self.way(layout)?;
        self.store(name, &format!("kept.{slot}"), path);
        Ok(())
    }

    fn saved(&mut self, node: &Node, slot: usize) -> Result<(), TrainError> {
        let Some(layout) = self.slots.get(&slot).copied() else {
            return self.fault("reads what no layer has kept");
        };
        self.touched.insert(slot);
        let path = self.way(layout)?;
        self.load(node.output, &node.name, &format!("kept.{slot}"), layout, path);
        Ok(())
    }

    fn way(&self, layout: Layout) -> Result<Path, TrainError> {
        match (self.kept, layout) {
            (Kept::Resident, _) => Ok(Path::Resident),
            (Kept::Streamed, Layout::Columns { .. }) => Ok(Path::Stream),
            (Kept::Streamed, _) => self
                .fault("keeps a value that lies over the columns of heads: it has no way out of the wafer"),
        }
    }

    /// Attention's derivatives, once everything that they read is there; `false` before.
    pub fn core(&mut self, number: usize) -> Result<bool, TrainError> {
        let core = self.cores[number].clone();
        if !core.operands.iter().all(|value| self.is_known(*value)) {
            return Ok(false);
        }
        let [q, k, v, dy] = core.operands;
        let softmax = core.before.first().and_then(|_| self.shares_of(&core));
        let Some(Scores { scale, slopes, window, .. }) = softmax else {
            return self.fault("computes shares again by something that is no softmax of masked scores");
        };
        self.done.extend(&core.nodes);
        let (query, key, value, gradient) = (self.name(q)?, self.name(k)?, self.name(v)?, self.name(dy)?);
        let query = self.own(&query);
        let [dq, dk, dv] = core.results.map(|n| self.node(n));
        let define = |draft: &mut Self, node: &Node, queries| {
            draft.define(node.output, &format!("{}.out", node.name), Layout::HeadTokens { queries })
        };
        let query_dx = define(self, dq, true);
        let (key_dx, value_dx) = (define(self, dk, false), define(self, dv, false));
        let attention =
            AttentionDx { query, key, value, gradient, query_dx, key_dx, value_dx, scale, slopes, window };
        let nodes: Vec<usize> = core.nodes.iter().copied().collect();
        self.push(&dq.name, OpKind::AttentionDx(attention), &nodes);
        Ok(true)
    }

    /// The scores of the softmax within a core.
    fn shares_of(&self, core: &crate::attention_backward::Core) -> Option<Scores> {
        core.nodes.iter().find_map(|n| {
            let node = self.node(*n);
            (node.op == lapidary_models::Op::Softmax).then(|| self.scores(node.output)).flatten()
        })
    }
}
