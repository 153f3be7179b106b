//! The ops of a backward pass and of what leads to one, each with its shape rule.

use super::{Op, expect, head_width, last_axis, one_type, rank, rope, same};
use crate::dtype::DType;
use crate::graph::TensorType;
use crate::spec::{Activation, NormKind, Pairing, RopeScaling};
use std::ops::RangeInclusive;

/// One operation that no inference graph holds. Operand shapes stand in the comment, then the result's.
#[derive(Clone, Debug, PartialEq)]
pub enum Backward {
    /// `logits [B, S, V], labels i32[B, S] -> f32 [1]`: mean cross entropy over the positions whose label is not
    /// negative.
    CrossEntropy,
    /// `logits [B, S, V], labels i32[B, S] -> [B, S, V]`: derivative of the mean by the logits; zero where the
    /// label is negative.
    CrossEntropyDx,
    /// `dy [.., N], w [N, K] -> [.., K]`: `dy w`.
    LinearDx,
    /// `dy [.., N], x [.., K] -> [N, K]`: `dyᵀ x`, summed over all rows.
    LinearDw,
    /// `dy [.., N] -> [N]`: sum over all rows; the derivative by a bias.
    ColumnSum,
    /// `x, dy -> ` same shape: `f'(x) dy`.
    ActivationDx(Activation),
    /// `x [.., D], weight [D], dy [.., D] -> [.., D]`.
    NormDx {
        /// RMSNorm or LayerNorm.
        kind: NormKind,
        /// Added to the mean square or the variance.
        eps: f64,
    },
    /// `x [.., D], dy [.., D] -> [D]`: sum over all rows of the normalised row times `dy`.
    NormDw {
        /// RMSNorm or LayerNorm.
        kind: NormKind,
        /// Added to the mean square or the variance.
        eps: f64,
    },
    /// `dy [B, S, heads·d] -> ` same: rotates back.
    RopeDx {
        /// Width of a head.
        head_dim: u64,
        /// Leading dimensions that rotate.
        rot_dims: u64,
        /// Which dimensions form a pair.
        pairing: Pairing,
        /// Base of the frequencies.
        theta: f64,
        /// Change of the frequencies.
        scaling: RopeScaling,
        /// Position of the first token.
        offset: u64,
    },
    /// `ds [B, H, S, L] -> ` same: zero where a key may not be seen.
    MaskDx {
        /// Whether keys after the query are hidden.
        causal: bool,
        /// Keys with `query - key >= window` are hidden; 0 for none.
        window: u64,
        /// Position of the first query.
        offset: u64,
    },
    /// `p [.., L], dp [.., L] -> ` same: `p (dp - Σ p dp)`, p being the softmax's result.
    SoftmaxDx,
    /// `p [B, H, S, L], y [B, S, H·d] -> [B, L, K·d]`: `pᵀ y`, summed over the heads that share a key-value head. The
    /// derivative of values by v, and of scores by k.
    ValuesDv {
        /// Query heads.
        heads: u64,
        /// Key-value heads.
        kv_heads: u64,
    },
    /// `ids i32[B, S], dy [B, S, D] -> [rows, D]`: adds each row of `dy` to the row of its id.
    EmbedDw {
        /// Rows of the table.
        rows: u64,
    },
    /// `dy [B, S, D] -> [rows, D]`: sum over the batch, at row `offset + s`.
    PositionDw {
        /// Position of the first token.
        offset: u64,
        /// Rows of the table.
        rows: u64,
    },
    /// `dy [B, 1, D] -> [B, seq, D]`: zero but for the last position.
    LastTokenDx {
        /// Positions of the result.
        seq: u64,
    },
    /// `x -> x`: keeps this layer's value in a slot of [`crate::Graph::slots`] for the backward pass.
    Save {
        /// Index into the graph's slots.
        slot: usize,
    },
    /// The value that this layer's forward pass kept in a slot. Its type is declared by the slot.
    Saved {
        /// Index into the graph's slots.
        slot: usize,
    },
    /// `dw -> dw`: adds to the gradient of a parameter, which is kept in f32.
    Gradient {
        /// Index into the graph's parameters.
        param: usize,
    },
}

impl From<Backward> for Op {
    fn from(op: Backward) -> Op {
        Op::Backward(op)
    }
}

impl Backward {
    /// The name as the IR writes it, without the dialect.
    pub const fn name(&self) -> &'static str {
        match self {
            Backward::CrossEntropy => "cross_entropy",
            Backward::CrossEntropyDx => "cross_entropy_dx",
            Backward::LinearDx => "linear_dx",
            Backward::LinearDw => "linear_dw",
            Backward::ColumnSum => "column_sum",
            Backward::ActivationDx(_) => "activation_dx",
            Backward::NormDx { .. } => "norm_dx",
            Backward::NormDw { .. } => "norm_dw",
            Backward::RopeDx { .. } => "rope_dx",
            Backward::MaskDx { .. } => "mask_dx",
            Backward::SoftmaxDx => "softmax_dx",
            Backward::ValuesDv { .. } => "values_dv",
            Backward::EmbedDw { .. } => "embed_dw",
            Backward::PositionDw { .. } => "position_dw",
            Backward::LastTokenDx { .. } => "last_token_dx",
            Backward::Save { .. } => "save",
            Backward::Saved { .. } => "saved",
            Backward::Gradient { .. } => "gradient",
        }
    }

    pub(super) fn result(&self, operands: &[&TensorType]) -> Result<TensorType, String> {
        match self {
            Backward::Saved { .. } => Err("a slot's type is declared, not inferred".into()),
            Backward::Save { .. } | Backward::Gradient { .. } => Ok(operands[0].clone()),
            Backward::CrossEntropy => loss(operands[0], operands[1]),
            Backward::CrossEntropyDx => loss(operands[0], operands[1]).map(|_| operands[0].clone()),
            Backward::LinearDx => linear_dx(operands[0], operands[1]),
            Backward::LinearDw => linear_dw(operands[0], operands[1]),
            Backward::ColumnSum => row(operands[0]),
            Backward::ActivationDx(_) => same(operands[0], operands[1]),
            Backward::SoftmaxDx => same(operands[0], operands[1]),
            Backward::NormDx { .. } => {
                last_axis(operands[0], operands[1], "weight").and_then(|x| same(&x, operands[2]))
            }
            Backward::NormDw { .. } => same(operands[0], operands[1]).and_then(|x| row(&x)),
            Backward::RopeDx { head_dim, rot_dims, .. } => rope(operands[0], *head_dim, *rot_dims),
            Backward::MaskDx { .. } => rank(operands[0], 4, "scores").map(|()| operands[0].clone()),
            Backward::ValuesDv { heads, kv_heads } => values_dv(operands[0], operands[1], *heads, *kv_heads),
            Backward::EmbedDw { rows } => embed_dw(operands[0], operands[1], *rows),
            Backward::PositionDw { offset, rows } => position_dw(operands[0], *offset, *rows),
            Backward::LastTokenDx { seq } => last_token_dx(operands[0], *seq),
        }
    }

    pub(super) const fn arity(&self) -> RangeInclusive<usize> {
        match self {
            Backward::Saved { .. } => 0..=0,
            Backward::ColumnSum
            | Backward::RopeDx { .. }
            | Backward::MaskDx { .. }
            | Backward::PositionDw { .. }
            | Backward::LastTokenDx { .. }
            | Backward::Save { .. }
            | Backward::Gradient { .. } => 1..=1,
            Backward::CrossEntropy
            | Backward::CrossEntropyDx
            | Backward::LinearDx
            | Backward::LinearDw
            | Backward::ActivationDx(_)
            | Backward::NormDw { .. }
            | Backward::SoftmaxDx
            | Backward::ValuesDv { .. }
            | Backward::EmbedDw { .. } => 2..=2,
            Backward::NormDx { .. } => 3..=3,
        }
    }
}

fn loss(logits: &TensorType, labels: &TensorType) -> Result<TensorType, String> {
    rank(logits, 3, "logits")?;
    rank(labels, 2, "labels")?;
    expect(labels.dtype == DType::I32, || format!("labels are {}, expected i32", labels.dtype))?;
    expect(logits.shape[..2] == labels.shape[..], || {
        format!("logits of {:?} positions but labels of {:?}", &logits.shape[..2], labels.shape)
    })?;
    Ok(TensorType::new(DType::F32, [1]))
}

fn linear_dx(dy: &TensorType, w: &TensorType) -> Result<TensorType, String> {
    rank(w, 2, "weight")?;
    one_type(dy, w, "weight")?;
    let n = dy.last()?;
    expect(n == w.shape[0], || format!("contraction mismatch: dy N = {n} but weight N = {}", w.shape[0]))?;
    let mut shape = dy.shape.clone();
    *shape.last_mut().expect("rank checked by last()") = w.shape[1];
    Ok(TensorType { dtype: dy.dtype, shape })
}

fn linear_dw(dy: &TensorType, x: &TensorType) -> Result<TensorType, String> {
    one_type(dy, x, "x")?;
    let (n, k) = (dy.last()?, x.last()?);
    let rows = |t: &TensorType| t.shape[..t.shape.len() - 1].to_vec();
    expect(rows(dy) == rows(x), || format!("dy has rows {:?} but x {:?}", rows(dy), rows(x)))?;
    Ok(TensorType::new(dy.dtype, [n, k]))
}

/// One row of a tensor.
fn row(x: &TensorType) -> Result<TensorType, String> {
    Ok(TensorType::new(x.dtype, [x.last()?]))
}

fn values_dv(p: &TensorType, y: &TensorType, heads: u64, kv_heads: u64) -> Result<TensorType, String> {
    rank(p, 4, "p")?;
    rank(y, 3, "y")?;
    expect(p.shape[1] == heads, || format!("p has {} heads, expected {heads}", p.shape[1]))?;
    expect(p.shape[0] == y.shape[0], || format!("p B = {} but y B = {}", p.shape[0], y.shape[0]))?;
    expect(p.shape[2] == y.shape[1], || format!("p S = {} but y S = {}", p.shape[2], y.shape[1]))?;
    let d = head_width(y.shape[2], heads, "y")?;
    expect(kv_heads > 0 && heads.is_multiple_of(kv_heads), || {
        format!("{heads} heads do not share {kv_heads} key heads evenly")
    })?;
    Ok(TensorType::new(y.dtype, [p.shape[0], p.shape[3], kv_heads.saturating_mul(d)]))
}

fn embed_dw(ids: &TensorType, dy: &TensorType, rows: u64) -> Result<TensorType, String> {
    rank(ids, 2, "ids")?;
    rank(dy, 3, "dy")?;
    expect(ids.dtype == DType::I32, || format!("ids are {}, expected i32", ids.dtype))?;
    expect(ids.shape[..] == dy.shape[..2], || {
        format!("ids of {:?} positions but dy of {:?}", ids.shape, &dy.shape[..2])
    })?;
    Ok(TensorType::new(dy.dtype, [rows, dy.shape[2]]))
}

fn position_dw(dy: &TensorType, offset: u64, rows: u64) -> Result<TensorType, String> {
    rank(dy, 3, "dy")?;
    let end = offset.saturating_add(dy.shape[1]);
    expect(end <= rows, || format!("positions reach {end} but the table has {rows} rows"))?;
    Ok(TensorType::new(dy.dtype, [rows, dy.shape[2]]))
}

fn last_token_dx(dy: &TensorType, seq: u64) -> Result<TensorType, String> {
    rank(dy, 3, "dy")?;
    expect(dy.shape[1] == 1, || format!("dy has {} positions, expected 1", dy.shape[1]))?;
    Ok(TensorType::new(dy.dtype, [dy.shape[0], seq, dy.shape[2]]))
}

#[cfg(test)]
mod tests {
    use crate::dtype::DType;
    use crate::graph::TensorType;
    use crate::op::{Backward, Op};

    fn t(shape: &[u64]) -> TensorType {
        TensorType::new(DType::F32, shape)
    }

    fn ids(shape: &[u64]) -> TensorType {
        TensorType::new(DType::I32, shape)
    }

    fn refusal(op: &Op, operands: &[TensorType]) -> String {
        op.result(&operands.iter().collect::<Vec<_>>()).unwrap_err()
    }

    #[test]
    fn every_shape_rule_names_the_relation_that_fails() {
        let dv = Op::Backward(Backward::ValuesDv { heads: 4, kv_heads: 2 });
        let cases: [(&Op, &[TensorType], &str); 13] = [
            (
                &Op::Backward(Backward::CrossEntropy),
                &[t(&[2, 3, 8]), t(&[2, 3])],
                "labels are f32, expected i32",
            ),
            (
                &Op::Backward(Backward::CrossEntropyDx),
                &[t(&[2, 3, 8]), ids(&[2, 4])],
                "logits of [2, 3] positions but labels of [2, 4]",
            ),
            (
                &Op::Backward(Backward::LinearDx),
                &[t(&[2, 5]), t(&[7, 3])],
                "contraction mismatch: dy N = 5 but weight N = 7",
            ),
            (
                &Op::Backward(Backward::LinearDw),
                &[t(&[2, 3, 5]), t(&[2, 4, 7])],
                "dy has rows [2, 3] but x [2, 4]",
            ),
            (&Op::Backward(Backward::ColumnSum), &[t(&[])], "a scalar has no last axis"),
            (
                &Op::Backward(Backward::SoftmaxDx),
                &[t(&[2, 3]), t(&[3, 2])],
                "operands differ: tensor<2x3xf32> and tensor<3x2xf32>",
            ),
            (&dv, &[t(&[1, 2, 3, 5]), t(&[1, 3, 16])], "p has 2 heads, expected 4"),
            (&dv, &[t(&[1, 4, 3, 5]), t(&[1, 2, 16])], "p S = 3 but y S = 2"),
            (&dv, &[t(&[1, 4, 3, 5]), t(&[1, 3, 18])], "y width 18 does not divide into 4 heads"),
            (
                &Op::Backward(Backward::EmbedDw { rows: 9 }),
                &[ids(&[2, 3]), t(&[2, 4, 8])],
                "ids of [2, 3] positions but dy of [2, 4]",
            ),
            (
                &Op::Backward(Backward::PositionDw { offset: 1, rows: 3 }),
                &[t(&[2, 3, 8])],
                "positions reach 4 but the table has 3 rows",
            ),
            (
                &Op::Backward(Backward::LastTokenDx { seq: 5 }),
                &[t(&[2, 3, 8])],
                "dy has 3 positions, expected 1",
            ),
            (&Op::Backward(Backward::Saved { slot: 0 }), &[], "a slot's type is declared, not inferred"),
        ];
        for (op, operands, wanted) in cases {
            assert_eq!(refusal(op, operands), wanted);
        }
    }

    /// Every derivative by an operand has that operand's type.
    #[test]
    fn derivatives_have_the_types_of_their_operands() {
        let result =
            |op: Op, operands: &[TensorType]| op.result(&operands.iter().collect::<Vec<_>>()).unwrap();
        let (x, w, y) = (t(&[2, 3, 8]), t(&[5, 8]), t(&[2, 3, 5]));
        assert_eq!(result(Op::Linear, &[x.clone(), w.clone()]), y);
        assert_eq!(result(Op::Backward(Backward::LinearDx), &[y.clone(), w.clone()]), x);
        assert_eq!(result(Op::Backward(Backward::LinearDw), &[y.clone(), x.clone()]), w);
        assert_eq!(result(Op::Backward(Backward::ColumnSum), &[y]), t(&[5]));
        let (heads, kv_heads) = (4, 2);
        let (q, k, p) = (t(&[1, 3, 32]), t(&[1, 5, 16]), t(&[1, 4, 3, 5]));
        assert_eq!(result(Op::Scores { heads, kv_heads }, &[q.clone(), k.clone()]), p);
        assert_eq!(result(Op::Values { heads, kv_heads }, &[p.clone(), k.clone()]), q);
        assert_eq!(result(Op::Backward(Backward::ValuesDv { heads, kv_heads }), &[p, q]), k);
        assert_eq!(
            result(Op::Backward(Backward::EmbedDw { rows: 9 }), &[ids(&[2, 3]), x.clone()]),
            t(&[9, 8])
        );
        assert_eq!(result(Op::Backward(Backward::PositionDw { offset: 0, rows: 4 }), &[x]), t(&[4, 8]));
        assert_eq!(result(Op::Backward(Backward::LastTokenDx { seq: 3 }), &[t(&[2, 1, 8])]), t(&[2, 3, 8]));
        assert_eq!(result(Op::Backward(Backward::CrossEntropy), &[t(&[2, 3, 9]), ids(&[2, 3])]), t(&[1]));
    }
}
