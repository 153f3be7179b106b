//! How an op walks over its result: what decides whether two ops can share a kernel.

use lapidary_models::Op;

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
    /// No kernel of its own: parameters, calls and values that are kept.
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
        | Op::Mask { .. }
        | Op::ActivationDx(_)
        | Op::RopeDx { .. }
        | Op::MaskDx { .. } => Class::Elementwise,
        Op::Norm { .. } | Op::Softmax | Op::NormDx { .. } | Op::SoftmaxDx | Op::CrossEntropyDx => Class::Row,
        Op::Linear | Op::LinearDx | Op::Scores { .. } | Op::Values { .. } => Class::Contraction,
        Op::LinearDw
        | Op::ValuesDv { .. }
        | Op::ColumnSum
        | Op::NormDw { .. }
        | Op::CrossEntropy
        | Op::EmbedDw { .. }
        | Op::PositionDw { .. }
        | Op::LastTokenDx { .. }
        | Op::Gradient { .. } => Class::Alone,
        Op::Embed | Op::LastToken => Class::Gather,
        Op::KvAppend { .. } => Class::Store,
        Op::Param { .. } | Op::Repeat { .. } | Op::Save { .. } | Op::Saved { .. } => Class::Outside,
    }
}

/// Whether an operand is a vector or a table that all rows share, which a kernel must find complete in memory.
pub const fn is_table(op: &Op, operand: usize) -> bool {
    match op {
        Op::Embed => true,
        Op::Linear | Op::LinearDx | Op::Bias | Op::Position { .. } | Op::NormDx { .. } => operand == 1,
        Op::Norm { .. } => operand >= 1,
        Op::Scores { .. } | Op::Values { .. } => operand == 1,
        _ => false,
    }
}
