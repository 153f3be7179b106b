//! Row functions of a training program: products side by side with what follows them, pointwise ops, norms, rotations
//! and lookups, and the derivatives of all of these.

use super::scope::Scope;
use super::{Emitter, Lowered, unsupported};
use lapidary_models::op::{Backward, Sharded};
use lapidary_models::spec::Rope;
use lapidary_models::{Node, Op, ValueId};
use lapidary_runtime_cpu::program::train::{Product, Side, TrainRotation, TrainStep};
use lapidary_runtime_cpu::program::{PANEL, Rotation, RotationId, RowFn, RowOp, Target};
use std::collections::{BTreeMap, BTreeSet};

/// What a row function has read or computed.
#[derive(Default)]
struct RowsDraft {
    function: RowFn,
    known: BTreeMap<ValueId, usize>,
    /// Nodes in it.
    nodes: BTreeSet<usize>,
}

impl Emitter<'_> {
    /// Products side by side, and a function of their rows.
    pub(super) fn rows(
        &mut self,
        scope: &mut Scope,
        products: &[usize],
        behind: &[usize],
    ) -> Lowered<TrainStep> {
        let mut draft =
            RowsDraft { nodes: products.iter().chain(behind).copied().collect(), ..RowsDraft::default() };
        let mut list = Vec::new();
        let mut column = 0;
        for n in products {
            let node = scope.uses.node(*n);
            let side = if node.op == Op::Linear { Side::Forward } else { Side::Backward };
            let (x, weight) = (scope.buffer_of(node, node.inputs[0])?, self.parameter(scope, node, 1)?);
            list.push(Product { x, weight, side, column });
            let width = scope.width(node.output);
            let value = draft.function.push(width, RowOp::Product { column });
            draft.known.insert(node.output, value);
            column = (column + width).next_multiple_of(PANEL);
        }
        for n in behind {
            self.row_op(scope, scope.uses.node(*n), &mut draft)?;
        }
        for n in products.iter().chain(behind) {
            let node = scope.uses.node(*n);
            if scope.uses.escapes(node.output, &draft.nodes) {
                let value = draft.known[&node.output];
                draft.function.send(value, Target::Buffer(self.result(scope, node)));
            }
        }
        let last = behind.last().or(products.last()).map(|n| scope.uses.node(*n).name.clone());
        let (name, function) = (last.unwrap_or_default(), draft.function);
        Ok(match list.is_empty() {
            true => TrainStep::Rows { name, function },
            false => TrainStep::Linear { name, products: list, function },
        })
    }

    fn operand(&mut self, scope: &Scope, node: &Node, at: usize, draft: &mut RowsDraft) -> Lowered<usize> {
        let id = node.inputs[at];
        if let Some(value) = draft.known.get(&id) {
            return Ok(*value);
        }
        let op = match self.parameter(scope, node, at) {
            Ok(parameter) => RowOp::Vector { parameter },
            Err(_) => RowOp::Buffer { buffer: scope.buffer_of(node, id)? },
        };
        let value = draft.function.push(scope.width(id), op);
        draft.known.insert(id, value);
        Ok(value)
    }

    fn row_op(&mut self, scope: &Scope, node: &Node, draft: &mut RowsDraft) -> Lowered<()> {
        let width = scope.width(node.output);
        let operand = |emitter: &mut Self, draft: &mut RowsDraft, at| emitter.operand(scope, node, at, draft);
        let op = match node.op {
            Op::Embed => RowOp::Embedding { parameter: self.parameter(scope, node, 1)?, part: None },
            Op::Sharded(Sharded::EmbedPart { first }) => {
                RowOp::Embedding { parameter: self.parameter(scope, node, 1)?, part: Some(first) }
            }
            Op::Position { .. } => {
                let (a, parameter) = (operand(self, draft, 0)?, self.parameter(scope, node, 1)?);
                let b = draft.function.push(width, RowOp::Position { parameter });
                RowOp::Add { a, b }
            }
            Op::Bias | Op::Add => RowOp::Add { a: operand(self, draft, 0)?, b: operand(self, draft, 1)? },
            Op::Mul => RowOp::Mul { a: operand(self, draft, 0)?, b: operand(self, draft, 1)? },
            Op::Scale { by, .. } => RowOp::Scale { x: operand(self, draft, 0)?, by },
            Op::Activation(function) => RowOp::Activation { x: operand(self, draft, 0)?, function },
            Op::Backward(Backward::ActivationDx(function)) => {
                let (x, b) = (operand(self, draft, 0)?, operand(self, draft, 1)?);
                let a = draft.function.push(width, RowOp::Slope { x, function });
                RowOp::Mul { a, b }
            }
            Op::Norm { kind, eps } => {
                let (x, weight) = (operand(self, draft, 0)?, operand(self, draft, 1)?);
                let bias = if node.inputs.len() > 2 { Some(operand(self, draft, 2)?) } else { None };
                RowOp::Norm { x, weight, bias, kind, eps }
            }
            Op::Backward(Backward::NormDx { kind, eps }) => {
                let x = operand(self, draft, 0)?;
                let (a, b) = (operand(self, draft, 1)?, operand(self, draft, 2)?);
                let g = draft.function.push(width, RowOp::Mul { a, b });
                RowOp::NormDx { x, g, kind, eps }
            }
            Op::Rope { head_dim, rot_dims, pairing, theta, scaling, .. } => {
                let rotation = Rotation { head_dim, rope: Rope { theta, rot_dims, pairing, scaling } };
                RowOp::Rotate { x: operand(self, draft, 0)?, rotation: self.rotation(rotation, false) }
            }
            Op::Backward(Backward::RopeDx { head_dim, rot_dims, pairing, theta, scaling, .. }) => {
                let rotation = Rotation { head_dim, rope: Rope { theta, rot_dims, pairing, scaling } };
                RowOp::Rotate { x: operand(self, draft, 0)?, rotation: self.rotation(rotation, true) }
            }
            _ => return unsupported(node, format!("{} is no function of a row", node.op.name())),
        };
        let value = draft.function.push(width, op);
        draft.known.insert(node.output, value);
        Ok(())
    }

    fn rotation(&mut self, rotation: Rotation, back: bool) -> RotationId {
        let wanted = TrainRotation { rotation, back };
        self.rotations.iter().position(|known| *known == wanted).unwrap_or_else(|| {
            self.rotations.push(wanted);
            self.rotations.len() - 1
        })
    }
}
