//! How an op walks over its result: what decides whether two ops can share a kernel.

use lapidary_models::Op;
use lapidary_models::op::{Backward, Sharded};

/// The loop an op needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Each element, or each rotated pair, depends on the same place of its operands only.
    Elementwise,
    /// Each row depends on the whole row.
    Row,
    /// Sums over an axis that the result does not have.
    Contraction,
    /// Reads rows that are found at run time, or one row of many.
    Gather,
    /// Writes rows into the key-value cache.
    Store,
    /// Sums over all rows, or adds into a buffer: a kernel that nothing joins.
    Alone,
    /// No kernel of its own: parameters, calls, values that are kept and what ranks say to each other.
    Outside,
}

/// The class of an op.
pub const fn class(op: &Op) -> Class {
    match op {
        Op::Position { .. }
        | Op::Bias
        | Op::Add
        | Op::Mul
        | Op::Scale { .. }
        | Op::Activation(_)
        | Op::Rope { .. }
        | Op::Mask { .. } => Class::Elementwise,
        Op::Norm { .. } | Op::Softmax => Class::Row,
        Op::Linear | Op::Scores { .. } | Op::Values { .. } => Class::Contraction,
        Op::Embed | Op::LastToken => Class::Gather,
        Op::KvAppend { .. } => Class::Store,
        Op::Param { .. } | Op::Repeat { .. } => Class::Outside,
        Op::Backward(op) => backward(op),
        Op::Sharded(Sharded::EmbedPart { .. }) => Class::Gather,
        Op::Sharded(Sharded::EmbedPartDw { .. }) => Class::Alone,
        Op::Sharded(_) => Class::Outside,
    }
}

const fn backward(op: &Backward) -> Class {
    match op {
        Backward::ActivationDx(_) | Backward::RopeDx { .. } | Backward::MaskDx { .. } => Class::Elementwise,
        Backward::NormDx { .. } | Backward::SoftmaxDx | Backward::CrossEntropyDx => Class::Row,
        Backward::LinearDx => Class::Contraction,
        Backward::LinearDw
        | Backward::ValuesDv { .. }
        | Backward::ColumnSum
        | Backward::NormDw { .. }
        | Backward::CrossEntropy
        | Backward::EmbedDw { .. }
        | Backward::PositionDw { .. }
        | Backward::LastTokenDx { .. }
        | Backward::Gradient { .. } => Class::Alone,
        Backward::Save { .. } | Backward::Saved { .. } => Class::Outside,
    }
}

/// Whether an operand is a vector or a table that all rows share, which a kernel must find complete in memory.
pub const fn is_table(op: &Op, operand: usize) -> bool {
    match op {
        Op::Embed | Op::Sharded(Sharded::EmbedPart { .. }) => true,
        Op::Linear | Op::Bias | Op::Position { .. } => operand == 1,
        Op::Backward(Backward::LinearDx | Backward::NormDx { .. }) => operand == 1,
        Op::Norm { .. } => operand >= 1,
        Op::Scores { .. } | Op::Values { .. } => operand == 1,
        _ => false,
    }
}
