//! What a placed op may be, and what it reads and writes.

use super::{
    Attention, AttentionDx, CachedAttention, ColumnSum, Gather, Gradient, Linear, Loss, LossDx, Map, Norm,
    NormDw, NormDx, Outer, Path, Rope, Source, Step, TableDw, Turn,
};
use serde::{Deserialize, Serialize};

/// One placed op. Its name is the phase of the program in which it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlacedOp {
    /// Name, unique in the program.
    pub name: String,
    /// What it does.
    pub kind: OpKind,
}

/// What a placed op does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpKind {
    /// A value whose columns come from a host tensor `[tokens, features]`.
    Input {
        /// The value written; [`super::Layout::Columns`].
        value: String,
        /// Name of the tensor.
        tensor: String,
        /// What is in the tensor.
        source: Source,
        /// How it gets there.
        path: Path,
    },
    /// A value that goes to a host tensor `[tokens, features]`.
    Output {
        /// The value read; [`super::Layout::Columns`].
        value: String,
        /// Name of the tensor.
        tensor: String,
        /// How it gets there.
        path: Path,
    },
    /// A copy of a value that is read after the run, one for every micro-batch: how a pipeline shows what passes.
    Keep {
        /// The value read, of any layout.
        value: String,
        /// Name of the tensor `[tokens, features]`, micro-batch by micro-batch.
        tensor: String,
    },
    /// `y = x . w^T (+ bias)`, weights streamed from the host.
    Linear(Linear),
    /// A product of one token with weights that stay: features over columns to features over rows, or back.
    Gemv(Linear),
    /// Rotary position embedding of one token, in place.
    Turn(Turn),
    /// Attention of one token to a cache that stays.
    CachedAttention(CachedAttention),
    /// Normalisation over the features of each token.
    Norm(Norm),
    /// Rotary position embedding, in place, of a [`super::Layout::HeadTokens`] value.
    Rope(Rope),
    /// Causal softmax attention within each sequence.
    Attention(Attention),
    /// A chain of elementwise steps between values of one layout.
    Map(Map),
    /// Derivative of a linear layer by its weight, streamed out.
    Outer(Outer),
    /// Sum over all tokens for each feature, streamed out: the derivative by a bias.
    ColumnSum(ColumnSum),
    /// Derivative of a norm by its input.
    NormDx(NormDx),
    /// Derivative of a norm by its weight, streamed out.
    NormDw(NormDw),
    /// From tokens over the columns of heads to features over them.
    Gather(Gather),
    /// Derivatives of causal softmax attention, the softmax computed again.
    AttentionDx(AttentionDx),
    /// Cross entropy.
    Loss(Loss),
    /// Derivative of the cross entropy by the logits.
    LossDx(LossDx),
    /// Gradients of rows of a table, streamed out token by token.
    TableDw(TableDw),
}

impl OpKind {
    /// Values read (also where they are written too).
    pub fn reads(&self) -> Vec<&str> {
        match self {
            OpKind::Input { .. } => vec![],
            OpKind::Output { value, .. } | OpKind::Keep { value, .. } => vec![value],
            OpKind::Linear(linear) | OpKind::Gemv(linear) => {
                let old = linear.outputs.iter().filter(|_| linear.accumulate).map(|s| s.value.as_str());
                std::iter::once(linear.input.as_str()).chain(old).collect()
            }
            OpKind::Norm(norm) => vec![&norm.input],
            OpKind::Rope(rope) => vec![&rope.value],
            OpKind::Turn(turn) => vec![&turn.value],
            OpKind::CachedAttention(a) => vec![&a.query, &a.key, &a.value],
            OpKind::Attention(a) => vec![&a.query, &a.key, &a.value],
            OpKind::Map(map) => std::iter::once(map.input.as_str())
                .chain(map.steps.iter().filter_map(Step::operand))
                .collect(),
            OpKind::Outer(outer) => vec![&outer.travelling, &outer.resident],
            OpKind::ColumnSum(sum) => vec![&sum.input],
            OpKind::NormDx(norm) => vec![&norm.input, &norm.gradient],
            OpKind::NormDw(norm) => vec![&norm.input, &norm.gradient],
            OpKind::Gather(gather) => vec![&gather.input],
            OpKind::AttentionDx(a) => vec![&a.query, &a.key, &a.value, &a.gradient],
            OpKind::Loss(loss) => vec![&loss.logits],
            OpKind::LossDx(loss) => vec![&loss.logits],
            OpKind::TableDw(table) => vec![&table.value],
        }
    }

    /// Values written.
    pub fn writes(&self) -> Vec<&str> {
        match self {
            OpKind::Input { value, .. } => vec![value],
            OpKind::Output { .. } | OpKind::Keep { .. } => vec![],
            OpKind::Linear(linear) | OpKind::Gemv(linear) => {
                linear.outputs.iter().map(|s| s.value.as_str()).collect()
            }
            OpKind::Norm(norm) => vec![&norm.output],
            OpKind::Rope(rope) => vec![&rope.value],
            OpKind::Turn(turn) => vec![&turn.value],
            OpKind::CachedAttention(a) => vec![&a.query, &a.output],
            OpKind::Attention(a) => vec![&a.query, &a.output],
            OpKind::Map(map) => vec![&map.output],
            OpKind::NormDx(norm) => vec![&norm.output],
            OpKind::Gather(gather) => vec![&gather.output],
            OpKind::AttentionDx(a) => vec![&a.query, &a.query_dx, &a.key_dx, &a.value_dx],
            OpKind::LossDx(loss) => vec![&loss.output],
            OpKind::Outer(_)
            | OpKind::ColumnSum(_)
            | OpKind::NormDw(_)
            | OpKind::Loss(_)
            | OpKind::TableDw(_) => vec![],
        }
    }

    /// The word for reports.
    pub fn name(&self) -> &'static str {
        match self {
            OpKind::Input { .. } => "input",
            OpKind::Output { .. } => "output",
            OpKind::Keep { .. } => "keep",
            OpKind::Linear(_) => "linear",
            OpKind::Gemv(_) => "gemv",
            OpKind::Turn(_) => "turn",
            OpKind::CachedAttention(_) => "cached_attention",
            OpKind::Norm(_) => "norm",
            OpKind::Rope(_) => "rope",
            OpKind::Attention(_) => "attention",
            OpKind::Map(_) => "map",
            OpKind::Outer(_) => "linear_dw",
            OpKind::ColumnSum(_) => "column_sum",
            OpKind::NormDx(_) => "norm_dx",
            OpKind::NormDw(_) => "norm_dw",
            OpKind::Gather(_) => "gather",
            OpKind::AttentionDx(_) => "attention_dx",
            OpKind::Loss(_) => "loss",
            OpKind::LossDx(_) => "loss_dx",
            OpKind::TableDw(_) => "table_dw",
        }
    }

    /// The gradient that leaves, if one does.
    pub fn gradient(&self) -> Option<&Gradient> {
        match self {
            OpKind::Outer(outer) => Some(&outer.result),
            OpKind::ColumnSum(sum) => Some(&sum.result),
            OpKind::NormDw(norm) => Some(&norm.result),
            _ => None,
        }
    }

    /// Whether words pass from row to row over all rows: in at the north edge or out at the south edge.
    pub fn passes_rows(&self) -> bool {
        match self {
            OpKind::Input { path, .. } | OpKind::Output { path, .. } => *path == Path::Stream,
            OpKind::Outer(_)
            | OpKind::ColumnSum(_)
            | OpKind::NormDw(_)
            | OpKind::Loss(_)
            | OpKind::TableDw(_) => true,
            _ => false,
        }
    }
}
