//! The operations of a backward pass that kernels can hold.
use super::{ActivationFn, Mask, NormKind, Rope};

/// Operands and results as those of the operation of the same name in `lapidary_models::op::Backward`.
#[derive(Debug, Clone, PartialEq)]
pub enum Backward {
    /// logits, labels -> f32 [1]: mean cross entropy.
    CrossEntropy,
    /// logits, labels -> its derivative by the logits.
    CrossEntropyDx,
    /// dy [.., n], w [n, k] -> [.., k].
    LinearDx,
    /// dy [.., n], x [.., k] -> [n, k].
    LinearDw,
    /// dy [.., n] -> [n]: sum over all rows.
    ColumnSum,
    /// x, dy -> f'(x) dy.
    ActivationDx(ActivationFn),
    /// x, weight, dy -> derivative by x.
    NormDx {
        /// Root mean square or mean and variance.
        kind: NormKind,
        /// Added under the root.
        eps: f64,
    },
    /// x, dy [.., n] -> [n]: sum over all rows of the normalised row times dy.
    NormDw {
        /// Root mean square or mean and variance.
        kind: NormKind,
        /// Added under the root.
        eps: f64,
    },
    /// Rotates pairs of each head back.
    RopeDx(Rope),
    /// Zero where attention may not look.
    MaskDx(Mask),
    /// p, dp -> p (dp - sum of p dp); p, dp, that sum [b, h, s] -> the same.
    SoftmaxDx,
    /// x [b, h, s, l] -> f32 [b, h, s]: log2 of the sum of 2^(x log2 e). Kept by `keep_sums`, no operation of `nn`.
    LogSum,
    /// x, its log sum -> softmax of x, as it was before.
    SoftmaxOf,
    /// a, b [b, s, h d] -> f32 [b, h, s]: sum of products over the width of each head.
    RowProducts {
        /// Heads.
        heads: u64,
    },
    /// p, y -> sums over queries, of the heads that share keys.
    ValuesDv {
        /// Query heads.
        heads: u64,
        /// Key-value heads.
        kv_heads: u64,
    },
    /// ids, dy -> rows of dy added to the rows of a table.
    EmbedDw {
        /// The id of the table's first row; not 0 for a part of a table.
        first: u64,
    },
    /// dy -> sum over the batch, at the table's rows of the positions.
    PositionDw {
        /// Position of the first row.
        offset: u64,
    },
    /// dw -> adds to the f32 gradient of a parameter; the result is that gradient.
    Gradient {
        /// Canonical name of the parameter.
        param: String,
    },
}

impl Backward {
    /// The operation's name in the `nn` dialect, without the prefix.
    pub fn word(&self) -> &'static str {
        match self {
            Backward::CrossEntropy => "cross_entropy",
            Backward::CrossEntropyDx => "cross_entropy_dx",
            Backward::LinearDx => "linear_dx",
            Backward::LinearDw => "linear_dw",
            Backward::ColumnSum => "column_sum",
            Backward::ActivationDx(_) => "activation_dx",
            Backward::NormDx { .. } => "norm_dx",
            Backward::NormDw { .. } => "norm_dw",
            Backward::RopeDx(_) => "rope_dx",
            Backward::MaskDx(_) => "mask_dx",
            Backward::SoftmaxDx => "softmax_dx",
            Backward::LogSum => "log_sum",
            Backward::SoftmaxOf => "softmax_of",
            Backward::RowProducts { .. } => "row_products",
            Backward::ValuesDv { .. } => "values_dv",
            Backward::EmbedDw { .. } => "embed_dw",
            Backward::PositionDw { .. } => "position_dw",
            Backward::Gradient { .. } => "gradient",
        }
    }

    /// Numbers of operands.
    pub(crate) fn operands(&self) -> &'static [usize] {
        match self {
            Backward::NormDx { .. } => &[3],
            Backward::SoftmaxDx => &[2, 3],
            Backward::CrossEntropy
            | Backward::CrossEntropyDx
            | Backward::LinearDx
            | Backward::LinearDw
            | Backward::ActivationDx(_)
            | Backward::NormDw { .. }
            | Backward::SoftmaxOf
            | Backward::RowProducts { .. }
            | Backward::ValuesDv { .. }
            | Backward::EmbedDw { .. } => &[2],
            Backward::ColumnSum
            | Backward::LogSum
            | Backward::RopeDx(_)
            | Backward::MaskDx(_)
            | Backward::PositionDw { .. }
            | Backward::Gradient { .. } => &[1],
        }
    }

    /// Whether a result of this shape can come from operands of these.
    pub(crate) fn fits(&self, operands: &[&[u64]], result: &[u64]) -> bool {
        let shape = |i: usize| operands[i];
        let rows = |i: usize| &shape(i)[..shape(i).len().saturating_sub(1)];
        let last = |i: usize| shape(i).last().copied().unwrap_or(1);
        match self {
            Backward::CrossEntropy => result == [1] && rows(0) == shape(1),
            Backward::CrossEntropyDx => result == shape(0) && rows(0) == shape(1),
            Backward::LinearDx => {
                let inner = shape(1).first() == shape(0).last() && shape(1).get(1) == result.last();
                shape(1).len() == 2 && inner && rows(0) == &result[..result.len() - 1]
            }
            Backward::LinearDw => rows(0) == rows(1) && result == [last(0), last(1)],
            Backward::ColumnSum => result == [last(0)],
            Backward::ActivationDx(_) => shape(0) == result && shape(1) == result,
            Backward::SoftmaxDx => {
                let sum = operands.get(2).is_none_or(|sum| *sum == rows(0));
                shape(0) == result && shape(1) == result && sum
            }
            Backward::LogSum => shape(0).len() == 4 && rows(0) == result,
            Backward::SoftmaxOf => shape(0) == result && rows(0) == shape(1),
            Backward::RowProducts { heads } => {
                let of = |x: &[u64]| x.len() == 3 && *heads > 0 && x[2].is_multiple_of(*heads);
                shape(0) == shape(1) && of(shape(0)) && result == [shape(0)[0], *heads, shape(0)[1]]
            }
            Backward::NormDx { .. } => {
                shape(0) == result
                    && shape(2) == result
                    && Some(&shape(1)) == Some(&&result[result.len() - 1..])
            }
            Backward::NormDw { .. } => shape(0) == shape(1) && result == [last(0)],
            Backward::RopeDx(rope) => {
                shape(0) == result && result.len() == 3 && super::super::validate::rotates(rope, last(0))
            }
            Backward::MaskDx(_) => shape(0) == result && result.len() == 4,
            Backward::ValuesDv { .. } => result.len() == 3 && shape(0).len() == 4 && shape(1).len() == 3,
            Backward::EmbedDw { .. } => rows(1) == shape(0) && result.len() == 2 && result[1] == last(1),
            Backward::PositionDw { offset } => {
                let fits = |x: &[u64]| result[0] >= offset + x[1] && result[1] == x[2];
                shape(0).len() == 3 && result.len() == 2 && fits(shape(0))
            }
            Backward::Gradient { .. } => shape(0) == result,
        }
    }
}
