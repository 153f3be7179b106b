//! The derivative of every op: given the derivative `dy` by its result, those by its operands.
//!
//! | op | derivatives |
//! |---|---|
//! | `y = x wᵀ` | `dx = dy w`, `dw = dyᵀ x` |
//! | `y = x + b` | `dx = dy`, `db = Σ rows dy` |
//! | `y = a + b`, `y = a b`, `y = c x` | `dy` and `dy`; `dy b` and `dy a`; `c dy` |
//! | norm | `norm_dx` from x, weight and dy; `dw = Σ rows x̂ dy`, `db = Σ rows dy` |
//! | rotation | the rotation back |
//! | `s = q kᵀ` by head | `dq = ds k` (as `values`), `dk = dsᵀ q` summed over a group (`values_dv`) |
//! | softmax | `ds = p (dp - Σ p dp)` |
//! | `o = p v` by head | `dp = do vᵀ` (as `scores`), `dv = pᵀ do` summed over a group (`values_dv`) |
//! | table lookup | each row of dy added to the row of its id |

use super::tape::Tape;
use crate::graph::{GraphError, Node, ValueId};
use crate::op::{Backward, Op};

/// Adds the derivatives by the operands of `node` to the tape.
pub(super) fn apply(tape: &mut Tape, node: &Node, dy: ValueId) -> Result<(), GraphError> {
    match node.op {
        Op::Param { .. } => Ok(()),
        Op::Embed => embed(tape, node, dy),
        Op::Position { offset } => position(tape, node, dy, offset),
        Op::Linear => linear(tape, node, dy),
        Op::Bias => {
            add(tape, node, 0, dy)?;
            column_sum(tape, node, 1, dy)
        }
        Op::Add => {
            add(tape, node, 0, dy)?;
            add(tape, node, 1, dy)
        }
        Op::Mul => product(tape, node, dy),
        Op::Scale { by, role } => pass(tape, node, dy, Op::Scale { by, role }),
        Op::Activation(function) => {
            let x = tape.operand(node, 0);
            derive(tape, node, 0, "dx", Backward::ActivationDx(function), &[x, dy])
        }
        Op::Norm { .. } => norm(tape, node, dy),
        Op::Rope { head_dim, rot_dims, pairing, theta, scaling, offset } => {
            pass(tape, node, dy, Backward::RopeDx { head_dim, rot_dims, pairing, theta, scaling, offset })
        }
        Op::Scores { heads, kv_heads } => scores(tape, node, dy, heads, kv_heads),
        Op::Mask { causal, window, offset, .. } => {
            pass(tape, node, dy, Backward::MaskDx { causal, window, offset })
        }
        Op::Softmax => {
            let p = tape.fetch(node.output);
            derive(tape, node, 0, "dx", Backward::SoftmaxDx, &[p, dy])
        }
        Op::Values { heads, kv_heads } => values(tape, node, dy, heads, kv_heads),
        Op::LastToken => {
            let seq = tape.ty(node.inputs[0]).shape[1];
            pass(tape, node, dy, Backward::LastTokenDx { seq })
        }
        Op::KvAppend { .. } => none(node, "a cache is for inference: differentiate a forward graph"),
        Op::Repeat { .. } => none(node, "a repeat stands in main only"),
        Op::Sharded(_) => {
            none(node, "a rank's part is not differentiated: differentiate the whole model first")
        }
        Op::Backward(_) => none(node, "the graph is differentiated already"),
    }
}

fn none(node: &Node, why: &'static str) -> Result<(), GraphError> {
    Err(GraphError::NoDerivative { node: node.name.clone(), op: node.op.name(), why })
}

/// Adds a finished derivative by operand `i`.
fn add(tape: &mut Tape, node: &Node, i: usize, derivative: ValueId) -> Result<(), GraphError> {
    if tape.wants(node, i) { tape.add(node.inputs[i], derivative) } else { Ok(()) }
}

/// Computes and adds the derivative by operand `i`.
fn derive(
    tape: &mut Tape,
    node: &Node,
    i: usize,
    suffix: &str,
    op: impl Into<Op>,
    inputs: &[ValueId],
) -> Result<(), GraphError> {
    let derivative = tape.draft.node(&format!("{}.{suffix}", node.name), op.into(), inputs)?;
    tape.add(node.inputs[i], derivative)
}

/// A derivative that needs nothing but `dy`.
fn pass(tape: &mut Tape, node: &Node, dy: ValueId, op: impl Into<Op>) -> Result<(), GraphError> {
    derive(tape, node, 0, "dx", op, &[dy])
}

fn column_sum(tape: &mut Tape, node: &Node, i: usize, dy: ValueId) -> Result<(), GraphError> {
    derive(tape, node, i, "db", Backward::ColumnSum, &[dy])
}

fn embed(tape: &mut Tape, node: &Node, dy: ValueId) -> Result<(), GraphError> {
    let rows = tape.ty(node.inputs[1]).shape[0];
    let ids = tape.operand(node, 0);
    derive(tape, node, 1, "dw", Backward::EmbedDw { rows }, &[ids, dy])
}

fn position(tape: &mut Tape, node: &Node, dy: ValueId, offset: u64) -> Result<(), GraphError> {
    let rows = tape.ty(node.inputs[1]).shape[0];
    add(tape, node, 0, dy)?;
    derive(tape, node, 1, "dw", Backward::PositionDw { offset, rows }, &[dy])
}

fn linear(tape: &mut Tape, node: &Node, dy: ValueId) -> Result<(), GraphError> {
    if tape.wants(node, 0) {
        let w = tape.operand(node, 1);
        derive(tape, node, 0, "dx", Backward::LinearDx, &[dy, w])?;
    }
    let x = tape.operand(node, 0);
    derive(tape, node, 1, "dw", Backward::LinearDw, &[dy, x])
}

fn product(tape: &mut Tape, node: &Node, dy: ValueId) -> Result<(), GraphError> {
    for (i, other, suffix) in [(0, 1, "da"), (1, 0, "db")] {
        if tape.wants(node, i) {
            let factor = tape.operand(node, other);
            derive(tape, node, i, suffix, Op::Mul, &[dy, factor])?;
        }
    }
    Ok(())
}

fn norm(tape: &mut Tape, node: &Node, dy: ValueId) -> Result<(), GraphError> {
    let Op::Norm { kind, eps } = node.op else { return Ok(()) };
    let x = tape.operand(node, 0);
    if tape.wants(node, 0) {
        let weight = tape.operand(node, 1);
        derive(tape, node, 0, "dx", Backward::NormDx { kind, eps }, &[x, weight, dy])?;
    }
    derive(tape, node, 1, "dw", Backward::NormDw { kind, eps }, &[x, dy])?;
    if node.inputs.len() == 3 { column_sum(tape, node, 2, dy) } else { Ok(()) }
}

fn scores(tape: &mut Tape, node: &Node, ds: ValueId, heads: u64, kv_heads: u64) -> Result<(), GraphError> {
    let (q, k) = (tape.operand(node, 0), tape.operand(node, 1));
    derive(tape, node, 0, "dq", Op::Values { heads, kv_heads }, &[ds, k])?;
    derive(tape, node, 1, "dk", Backward::ValuesDv { heads, kv_heads }, &[ds, q])
}

fn values(tape: &mut Tape, node: &Node, dy: ValueId, heads: u64, kv_heads: u64) -> Result<(), GraphError> {
    let (p, v) = (tape.operand(node, 0), tape.operand(node, 1));
    derive(tape, node, 0, "dp", Op::Scores { heads, kv_heads }, &[dy, v])?;
    derive(tape, node, 1, "dv", Backward::ValuesDv { heads, kv_heads }, &[p, dy])
}
