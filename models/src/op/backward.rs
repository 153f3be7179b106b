//! Shape rules of the ops of a backward pass.

use super::{expect, head_width, one_type, rank};
use crate::dtype::DType;
use crate::graph::TensorType;

pub(super) fn loss(logits: &TensorType, labels: &TensorType) -> Result<TensorType, String> {
    rank(logits, 3, "logits")?;
    rank(labels, 2, "labels")?;
    expect(labels.dtype == DType::I32, || format!("labels are {}, expected i32", labels.dtype))?;
    expect(logits.shape[..2] == labels.shape[..], || {
        format!("logits of {:?} positions but labels of {:?}", &logits.shape[..2], labels.shape)
    })?;
    Ok(TensorType::new(DType::F32, [1]))
}

pub(super) fn linear_dx(dy: &TensorType, w: &TensorType) -> Result<TensorType, String> {
    rank(w, 2, "weight")?;
    one_type(dy, w, "weight")?;
    let n = dy.last()?;
    expect(n == w.shape[0], || format!("contraction mismatch: dy N = {n} but weight N = {}", w.shape[0]))?;
    let mut shape = dy.shape.clone();
    *shape.last_mut().expect("rank checked by last()") = w.shape[1];
    Ok(TensorType { dtype: dy.dtype, shape })
}

pub(super) fn linear_dw(dy: &TensorType, x: &TensorType) -> Result<TensorType, String> {
    one_type(dy, x, "x")?;
    let (n, k) = (dy.last()?, x.last()?);
    let rows = |t: &TensorType| t.shape[..t.shape.len() - 1].to_vec();
    expect(rows(dy) == rows(x), || format!("dy has rows {:?} but x {:?}", rows(dy), rows(x)))?;
    Ok(TensorType::new(dy.dtype, [n, k]))
}

/// One row of a tensor.
pub(super) fn row(x: &TensorType) -> Result<TensorType, String> {
    Ok(TensorType::new(x.dtype, [x.last()?]))
}

pub(super) fn values_dv(
    p: &TensorType,
    y: &TensorType,
    heads: u64,
    kv_heads: u64,
) -> Result<TensorType, String> {
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

pub(super) fn embed_dw(ids: &TensorType, dy: &TensorType, rows: u64) -> Result<TensorType, String> {
    rank(ids, 2, "ids")?;
    rank(dy, 3, "dy")?;
    expect(ids.dtype == DType::I32, || format!("ids are {}, expected i32", ids.dtype))?;
    expect(ids.shape[..] == dy.shape[..2], || {
        format!("ids of {:?} positions but dy of {:?}", ids.shape, &dy.shape[..2])
    })?;
    Ok(TensorType::new(dy.dtype, [rows, dy.shape[2]]))
}

pub(super) fn position_dw(dy: &TensorType, offset: u64, rows: u64) -> Result<TensorType, String> {
    rank(dy, 3, "dy")?;
    let end = offset.saturating_add(dy.shape[1]);
    expect(end <= rows, || format!("positions reach {end} but the table has {rows} rows"))?;
    Ok(TensorType::new(dy.dtype, [rows, dy.shape[2]]))
}

pub(super) fn last_token_dx(dy: &TensorType, seq: u64) -> Result<TensorType, String> {
    rank(dy, 3, "dy")?;
    expect(dy.shape[1] == 1, || format!("dy has {} positions, expected 1", dy.shape[1]))?;
    Ok(TensorType::new(dy.dtype, [dy.shape[0], seq, dy.shape[2]]))
}

#[cfg(test)]
mod tests {
    use crate::dtype::DType;
    use crate::graph::TensorType;
    use crate::op::Op;

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
        let dv = Op::ValuesDv { heads: 4, kv_heads: 2 };
        let cases: [(&Op, &[TensorType], &str); 13] = [
            (&Op::CrossEntropy, &[t(&[2, 3, 8]), t(&[2, 3])], "labels are f32, expected i32"),
            (
                &Op::CrossEntropyDx,
                &[t(&[2, 3, 8]), ids(&[2, 4])],
                "logits of [2, 3] positions but labels of [2, 4]",
            ),
            (&Op::LinearDx, &[t(&[2, 5]), t(&[7, 3])], "contraction mismatch: dy N = 5 but weight N = 7"),
            (&Op::LinearDw, &[t(&[2, 3, 5]), t(&[2, 4, 7])], "dy has rows [2, 3] but x [2, 4]"),
            (&Op::ColumnSum, &[t(&[])], "a scalar has no last axis"),
            (
                &Op::SoftmaxDx,
                &[t(&[2, 3]), t(&[3, 2])],
                "operands differ: tensor<2x3xf32> and tensor<3x2xf32>",
            ),
            (&dv, &[t(&[1, 2, 3, 5]), t(&[1, 3, 16])], "p has 2 heads, expected 4"),
            (&dv, &[t(&[1, 4, 3, 5]), t(&[1, 2, 16])], "p S = 3 but y S = 2"),
            (&dv, &[t(&[1, 4, 3, 5]), t(&[1, 3, 18])], "y width 18 does not divide into 4 heads"),
            (
                &Op::EmbedDw { rows: 9 },
                &[ids(&[2, 3]), t(&[2, 4, 8])],
                "ids of [2, 3] positions but dy of [2, 4]",
            ),
            (
                &Op::PositionDw { offset: 1, rows: 3 },
                &[t(&[2, 3, 8])],
                "positions reach 4 but the table has 3 rows",
            ),
            (&Op::LastTokenDx { seq: 5 }, &[t(&[2, 3, 8])], "dy has 3 positions, expected 1"),
            (&Op::Saved { slot: 0 }, &[], "a slot's type is declared, not inferred"),
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
        assert_eq!(result(Op::LinearDx, &[y.clone(), w.clone()]), x);
        assert_eq!(result(Op::LinearDw, &[y.clone(), x.clone()]), w);
        assert_eq!(result(Op::ColumnSum, &[y]), t(&[5]));
        let (heads, kv_heads) = (4, 2);
        let (q, k, p) = (t(&[1, 3, 32]), t(&[1, 5, 16]), t(&[1, 4, 3, 5]));
        assert_eq!(result(Op::Scores { heads, kv_heads }, &[q.clone(), k.clone()]), p);
        assert_eq!(result(Op::Values { heads, kv_heads }, &[p.clone(), k.clone()]), q);
        assert_eq!(result(Op::ValuesDv { heads, kv_heads }, &[p, q]), k);
        assert_eq!(result(Op::EmbedDw { rows: 9 }, &[ids(&[2, 3]), x.clone()]), t(&[9, 8]));
        assert_eq!(result(Op::PositionDw { offset: 0, rows: 4 }, &[x]), t(&[4, 8]));
        assert_eq!(result(Op::LastTokenDx { seq: 3 }, &[t(&[2, 1, 8])]), t(&[2, 3, 8]));
        assert_eq!(result(Op::CrossEntropy, &[t(&[2, 3, 9]), ids(&[2, 3])]), t(&[1]));
    }
}
