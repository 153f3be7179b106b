//! The closed set of operations, each with its shape rule.
//!
//! Shapes are written B batch, S query length, L key length, D width, H heads, K key-value heads, d head
//! width, N and K the output and input widths of a linear. Heads stay flattened: queries are `[B, S, H·d]`.
//!
//! The ops of the backward pass are named after the forward op and what they are the derivative by: `linear_dx`,
//! `linear_dw`. Where the derivative of an op is another forward op (the products of attention are each other's, a
//! product's is a product), there is no second name for it. They are one variant here, a set of their own in
//! `op/backward.rs` with its own rules: who does not train has one arm for them all. So are the ops of a model that is
//! spread over ranks, in `op/sharded.rs`.

use crate::dtype::DType;
use crate::graph::TensorType;
use crate::spec::{Activation, NormKind, Pairing, RopeScaling};
use serde::{Deserialize, Serialize};

mod backward;
mod sharded;

pub use backward::Backward;
pub use sharded::Sharded;

/// Why a scale stands where it stands: passes treat the roles differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleRole {
    /// muP's factor on the embedding.
    MupEmbedding,
    /// muP's factor on the logits.
    MupOutput,
    /// muP's `1/d` on the scores.
    MupAttention,
    /// The usual factor on the scores.
    Attention,
    /// A constant factor on the embedding, without muP.
    Embedding,
    /// A constant factor on the logits, without muP.
    Output,
    /// A constant factor on a half-block before it joins the residual stream.
    Residual,
}

impl ScaleRole {
    /// The name as the IR writes it.
    pub const fn name(self) -> &'static str {
        match self {
            ScaleRole::MupEmbedding => "mup.embedding",
            ScaleRole::MupOutput => "mup.output",
            ScaleRole::MupAttention => "mup.attention",
            ScaleRole::Attention => "attention",
            ScaleRole::Embedding => "embedding",
            ScaleRole::Output => "output",
            ScaleRole::Residual => "residual",
        }
    }
}

/// Which half of the key-value cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Rotated keys.
    Key,
    /// Values.
    Value,
}

impl Cache {
    /// The name as the IR writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Cache::Key => "k",
            Cache::Value => "v",
        }
    }
}

/// Which of a model's heads those are that a rank has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadRun {
    /// The first of them; past the last head where the rank only pads.
    pub first: u64,
    /// Heads of the model.
    pub of: u64,
}

/// One operation. Operand shapes stand in the comment, then the result's.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// The parameter with this index of [`crate::Graph::params`]; by layer inside the layer function.
    Param {
        /// Index into the graph's parameters.
        param: usize,
    },
    /// `ids i32[B, S], table [V, D] -> [B, S, D]`: row lookup.
    Embed,
    /// `x [B, S, D], table [max_seq, D] -> [B, S, D]`: `x + table[offset + s]`.
    Position {
        /// Position of the first token: the cached length.
        offset: u64,
    },
    /// `x [.., K], w [N, K] -> [.., N]`: `x wᵀ`.
    Linear,
    /// `x [.., N], b [N] -> [.., N]`: `x + b`.
    Bias,
    /// `a, b -> ` same shape: `a + b`.
    Add,
    /// `a, b -> ` same shape: `a b`.
    Mul,
    /// `x -> ` same shape: `by x`.
    Scale {
        /// The factor.
        by: f64,
        /// Why it is there.
        role: ScaleRole,
    },
    /// `x -> ` same shape, pointwise.
    Activation(Activation),
    /// `x [.., D], weight [D], bias [D]? -> [.., D]`.
    Norm {
        /// RMSNorm or LayerNorm.
        kind: NormKind,
        /// Added to the mean square or the variance.
        eps: f64,
    },
    /// `x [B, S, heads·d] -> ` same: rotates the first `rot_dims` of every head by its position.
    Rope {
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
        /// Position of the first token: the cached length.
        offset: u64,
    },
    /// `x [B, S, K·d] -> [B, L, K·d]`: writes rows `cached..` of this layer's cache and returns it whole.
    KvAppend {
        /// Keys or values.
        cache: Cache,
        /// Rows that are there already.
        cached: u64,
    },
    /// `q [B, S, H·d], k [B, L, K·d] -> [B, H, S, L]`: dot products, a group of H/K heads sharing keys.
    Scores {
        /// Query heads.
        heads: u64,
        /// Key heads.
        kv_heads: u64,
    },
    /// `s [B, H, S, L] -> ` same: minus infinity where a key may not be seen, ALiBi's slopes elsewhere.
    Mask {
        /// Whether keys after the query are hidden.
        causal: bool,
        /// Keys with `query - key >= window` are hidden; 0 for none.
        window: u64,
        /// ALiBi's factor on the distances; absent without ALiBi.
        alibi: Option<f64>,
        /// Which heads of the model they are, for ALiBi's slopes; all of them where nothing is said.
        heads: Option<HeadRun>,
        /// Position of the first query: the cached length.
        offset: u64,
    },
    /// `[.., L] -> ` same, over the last axis.
    Softmax,
    /// `p [B, H, S, L], v [B, L, K·d] -> [B, S, H·d]`.
    Values {
        /// Query heads.
        heads: u64,
        /// Value heads.
        kv_heads: u64,
    },
    /// `x [B, S, D] -> [B, 1, D]`: the last position.
    LastToken,
    /// `x -> x`: calls function `function` once for each of the layers `first .. first + times`.
    Repeat {
        /// Index into the graph's functions.
        function: usize,
        /// Index of the first layer.
        first: u64,
        /// How many layers.
        times: u64,
        /// Whether the last layer comes first, as in a backward pass.
        reverse: bool,
    },
    /// An op that only training has.
    Backward(Backward),
    /// An op that only one rank's part of a model has.
    Sharded(Sharded),
}

impl Op {
    /// The name as the IR writes it, without the dialect.
    pub const fn name(&self) -> &'static str {
        match self {
            Op::Param { .. } => "param",
            Op::Embed => "embed",
            Op::Position { .. } => "position",
            Op::Linear => "linear",
            Op::Bias => "bias",
            Op::Add => "add",
            Op::Mul => "mul",
            Op::Scale { .. } => "scale",
            Op::Activation(_) => "activation",
            Op::Norm { .. } => "norm",
            Op::Rope { .. } => "rope",
            Op::KvAppend { .. } => "kv_append",
            Op::Scores { .. } => "scores",
            Op::Mask { .. } => "mask",
            Op::Softmax => "softmax",
            Op::Values { .. } => "values",
            Op::LastToken => "last_token",
            Op::Repeat { .. } => "repeat",
            Op::Backward(op) => op.name(),
            Op::Sharded(op) => op.name(),
        }
    }

    /// Whether it belongs to a backward pass or to what leads to one: no inference graph holds it.
    pub const fn is_training(&self) -> bool {
        matches!(self, Op::Backward(_))
    }

    /// The result type that follows from the operands. A parameter and a slot have none here: theirs is declared.
    ///
    /// # Errors
    /// A sentence that names the relation which does not hold.
    pub fn result(&self, operands: &[&TensorType]) -> Result<TensorType, String> {
        let arity = self.arity(operands.len())?;
        debug_assert_eq!(arity, operands.len());
        match self {
            Op::Param { .. } => Err("a parameter's type is declared, not inferred".into()),
            Op::Embed => embed(operands[0], operands[1]),
            Op::Position { offset } => position(operands[0], operands[1], *offset),
            Op::Linear => linear(operands[0], operands[1]),
            Op::Bias => last_axis(operands[0], operands[1], "bias"),
            Op::Norm { .. } => {
                operands[1..].iter().try_fold(operands[0].clone(), |x, w| last_axis(&x, w, "weight"))
            }
            Op::Add | Op::Mul => same(operands[0], operands[1]),
            Op::Mask { .. } => rank(operands[0], 4, "scores").map(|()| operands[0].clone()),
            Op::Scale { .. } | Op::Activation(_) | Op::Softmax | Op::Repeat { .. } => Ok(operands[0].clone()),
            Op::Rope { head_dim, rot_dims, .. } => rope(operands[0], *head_dim, *rot_dims),
            Op::KvAppend { cached, .. } => grown(operands[0], *cached),
            Op::Scores { heads, kv_heads } => scores(operands[0], operands[1], *heads, *kv_heads),
            Op::Values { heads, kv_heads } => values(operands[0], operands[1], *heads, *kv_heads),
            Op::LastToken => last_token(operands[0]),
            Op::Backward(op) => op.result(operands),
            Op::Sharded(op) => op.result(operands),
        }
    }

    fn arity(&self, found: usize) -> Result<usize, String> {
        let wanted = match self {
            Op::Backward(op) => op.arity(),
            Op::Sharded(op) => op.arity(),
            Op::Param { .. } => 0..=0,
            Op::Norm { .. } => 2..=3,
            Op::Embed
            | Op::Position { .. }
            | Op::Linear
            | Op::Bias
            | Op::Add
            | Op::Mul
            | Op::Scores { .. }
            | Op::Values { .. } => 2..=2,
            _ => 1..=1,
        };
        match wanted.contains(&found) {
            true => Ok(found),
            false => Err(format!("{} takes {wanted:?} operands, found {found}", self.name())),
        }
    }
}

fn expect(holds: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(message()) }
}

fn rank(t: &TensorType, wanted: usize, what: &str) -> Result<(), String> {
    expect(t.shape.len() == wanted, || format!("{what} has rank {}, expected {wanted}", t.shape.len()))
}

fn one_type(x: &TensorType, w: &TensorType, what: &str) -> Result<(), String> {
    expect(x.dtype == w.dtype, || format!("x is {} but {what} is {}", x.dtype, w.dtype))
}

fn embed(ids: &TensorType, table: &TensorType) -> Result<TensorType, String> {
    rank(ids, 2, "ids")?;
    expect(ids.dtype == DType::I32, || format!("ids are {}, expected i32", ids.dtype))?;
    rank(table, 2, "table")?;
    Ok(TensorType::new(table.dtype, [ids.shape[0], ids.shape[1], table.shape[1]]))
}

fn position(x: &TensorType, table: &TensorType, offset: u64) -> Result<TensorType, String> {
    rank(x, 3, "x")?;
    rank(table, 2, "table")?;
    expect(x.shape[2] == table.shape[1], || {
        format!("x D = {} but table D = {}", x.shape[2], table.shape[1])
    })?;
    let end = offset.saturating_add(x.shape[1]);
    expect(end <= table.shape[0], || {
        format!("positions reach {end} but the table has {} rows", table.shape[0])
    })?;
    Ok(x.clone())
}

fn linear(x: &TensorType, w: &TensorType) -> Result<TensorType, String> {
    rank(w, 2, "weight")?;
    one_type(x, w, "weight")?;
    let k = x.last()?;
    expect(k == w.shape[1], || format!("contraction mismatch: x K = {k} but weight K = {}", w.shape[1]))?;
    let mut shape = x.shape.clone();
    *shape.last_mut().expect("rank checked by last()") = w.shape[0];
    Ok(TensorType { dtype: x.dtype, shape })
}

fn last_axis(x: &TensorType, w: &TensorType, what: &str) -> Result<TensorType, String> {
    rank(w, 1, what)?;
    one_type(x, w, what)?;
    let n = x.last()?;
    expect(n == w.shape[0], || format!("x N = {n} but {what} N = {}", w.shape[0]))?;
    Ok(x.clone())
}

fn same(a: &TensorType, b: &TensorType) -> Result<TensorType, String> {
    expect(a == b, || format!("operands differ: {a} and {b}"))?;
    Ok(a.clone())
}

fn rope(x: &TensorType, head_dim: u64, rot_dims: u64) -> Result<TensorType, String> {
    rank(x, 3, "x")?;
    expect(head_dim > 0 && x.shape[2].is_multiple_of(head_dim), || {
        format!("width {} is not a multiple of head_dim {head_dim}", x.shape[2])
    })?;
    expect(rot_dims.is_multiple_of(2) && rot_dims <= head_dim, || {
        format!("rot_dims {rot_dims} must be even and at most head_dim {head_dim}")
    })?;
    Ok(x.clone())
}

fn grown(x: &TensorType, cached: u64) -> Result<TensorType, String> {
    rank(x, 3, "x")?;
    Ok(TensorType::new(x.dtype, [x.shape[0], cached.saturating_add(x.shape[1]), x.shape[2]]))
}

fn head_width(width: u64, heads: u64, what: &str) -> Result<u64, String> {
    expect(heads > 0 && width.is_multiple_of(heads), || {
        format!("{what} width {width} does not divide into {heads} heads")
    })?;
    Ok(width / heads)
}

fn scores(q: &TensorType, k: &TensorType, heads: u64, kv_heads: u64) -> Result<TensorType, String> {
    rank(q, 3, "q")?;
    rank(k, 3, "k")?;
    expect(q.shape[0] == k.shape[0], || format!("q B = {} but k B = {}", q.shape[0], k.shape[0]))?;
    let (dq, dk) = (head_width(q.shape[2], heads, "q")?, head_width(k.shape[2], kv_heads, "k")?);
    expect(dq == dk, || format!("q head width {dq} but k head width {dk}"))?;
    expect(heads.is_multiple_of(kv_heads), || {
        format!("{heads} heads do not share {kv_heads} key heads evenly")
    })?;
    Ok(TensorType::new(q.dtype, [q.shape[0], heads, q.shape[1], k.shape[1]]))
}

fn values(p: &TensorType, v: &TensorType, heads: u64, kv_heads: u64) -> Result<TensorType, String> {
    rank(p, 4, "p")?;
    rank(v, 3, "v")?;
    expect(p.shape[1] == heads, || format!("p has {} heads, expected {heads}", p.shape[1]))?;
    expect(p.shape[0] == v.shape[0], || format!("p B = {} but v B = {}", p.shape[0], v.shape[0]))?;
    expect(p.shape[3] == v.shape[1], || format!("p L = {} but v L = {}", p.shape[3], v.shape[1]))?;
    let d = head_width(v.shape[2], kv_heads, "v")?;
    Ok(TensorType::new(v.dtype, [p.shape[0], p.shape[2], heads.saturating_mul(d)]))
}

fn last_token(x: &TensorType) -> Result<TensorType, String> {
    rank(x, 3, "x")?;
    Ok(TensorType::new(x.dtype, [x.shape[0], 1, x.shape[2]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(shape: &[u64]) -> TensorType {
        TensorType::new(DType::F32, shape)
    }

    fn refusal(op: &Op, operands: &[TensorType]) -> String {
        op.result(&operands.iter().collect::<Vec<_>>()).unwrap_err()
    }

    const ROPE: Op = Op::Rope {
        head_dim: 8,
        rot_dims: 4,
        pairing: Pairing::Half,
        theta: 1e4,
        scaling: RopeScaling::None,
        offset: 0,
    };

    #[test]
    fn every_shape_rule_names_the_relation_that_fails() {
        let scores = Op::Scores { heads: 4, kv_heads: 2 };
        let values = Op::Values { heads: 4, kv_heads: 2 };
        let cases: [(&Op, &[TensorType], &str); 15] = [
            (&Op::Linear, &[t(&[2, 3, 8]), t(&[5, 7])], "contraction mismatch: x K = 8 but weight K = 7"),
            (&Op::Linear, &[t(&[8])], "linear takes 2..=2 operands, found 1"),
            (&Op::Linear, &[t(&[]), t(&[5, 7])], "a scalar has no last axis"),
            (&Op::Bias, &[t(&[2, 8]), t(&[7])], "x N = 8 but bias N = 7"),
            (&Op::Add, &[t(&[2, 8]), t(&[2, 7])], "operands differ: tensor<2x8xf32> and tensor<2x7xf32>"),
            (&Op::Embed, &[t(&[2, 3]), t(&[9, 8])], "ids are f32, expected i32"),
            (
                &Op::Position { offset: 2 },
                &[t(&[1, 3, 8]), t(&[4, 8])],
                "positions reach 5 but the table has 4 rows",
            ),
            (&ROPE, &[t(&[1, 3, 12])], "width 12 is not a multiple of head_dim 8"),
            (&scores, &[t(&[1, 3, 32]), t(&[1, 5, 8])], "q head width 8 but k head width 4"),
            (&scores, &[t(&[1, 3, 32]), t(&[2, 5, 16])], "q B = 1 but k B = 2"),
            (
                &Op::Scores { heads: 4, kv_heads: 3 },
                &[t(&[1, 3, 32]), t(&[1, 5, 24])],
                "4 heads do not share 3 key heads evenly",
            ),
            (&values, &[t(&[1, 4, 3, 5]), t(&[1, 6, 16])], "p L = 5 but v L = 6"),
            (
                &Op::Mask { causal: true, window: 0, alibi: None, heads: None, offset: 0 },
                &[t(&[3, 5])],
                "scores has rank 2, expected 4",
            ),
            (&Op::LastToken, &[t(&[3, 5])], "x has rank 2, expected 3"),
            (
                &Op::Norm { kind: NormKind::Rms, eps: 1e-5 },
                &[t(&[3, 5]), t(&[6])],
                "x N = 5 but weight N = 6",
            ),
        ];
        for (op, operands, wanted) in cases {
            assert_eq!(refusal(op, operands), wanted, "{}", op.name());
        }
        let half = TensorType::new(DType::Bf16, [5, 8]);
        assert_eq!(refusal(&Op::Linear, &[t(&[2, 8]), half]), "x is f32 but weight is bf16");
    }

    #[test]
    fn shapes_follow_from_the_operands() {
        let result =
            |op: Op, operands: &[TensorType]| op.result(&operands.iter().collect::<Vec<_>>()).unwrap().shape;
        assert_eq!(result(Op::Linear, &[t(&[2, 3, 8]), t(&[5, 8])]), [2, 3, 5]);
        assert_eq!(
            result(Op::Scores { heads: 4, kv_heads: 2 }, &[t(&[1, 3, 32]), t(&[1, 5, 16])]),
            [1, 4, 3, 5]
        );
        assert_eq!(
            result(Op::Values { heads: 4, kv_heads: 2 }, &[t(&[1, 4, 3, 5]), t(&[1, 5, 16])]),
            [1, 3, 32]
        );
        assert_eq!(result(Op::KvAppend { cache: Cache::Key, cached: 7 }, &[t(&[2, 1, 16])]), [2, 8, 16]);
        assert_eq!(result(Op::LastToken, &[t(&[2, 9, 16])]), [2, 1, 16]);
        assert_eq!(result(ROPE, &[t(&[2, 3, 16])]), [2, 3, 16]);
    }
}
