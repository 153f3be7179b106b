//! Ops of a backward pass and of the loss.

use super::{NormKind, Parameter, Source};
use serde::{Deserialize, Serialize};

/// A gradient that leaves for the host, in f32.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gradient {
    /// Name of the tensor, laid out as the parameter is.
    pub tensor: String,
    /// What it is the gradient of. A factor that the host folded in is one of the gradient too.
    pub parameter: Parameter,
}

/// `dw[n][k] = sum over tokens of dy[t][n] x[t][k]`: one of the two stays where it is, the other travels round the row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outer {
    /// The value whose columns travel, [`super::Layout::Columns`].
    pub travelling: String,
    /// The value that stays: [`super::Layout::Columns`] or [`super::Layout::HeadColumns`].
    pub resident: String,
    /// Whether it is the gradient of the output that travels, and the input that stays; otherwise the other way round.
    pub travels_dy: bool,
    /// The gradient `[out, in]`.
    pub result: Gradient,
}

/// Sum of a value over all tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ColumnSum {
    /// The value read: [`super::Layout::Columns`] or [`super::Layout::HeadColumns`].
    pub input: String,
    /// The gradient `[features]`.
    pub result: Gradient,
}

/// Derivative of a norm by its input.
///
/// With h the normalised token, r one over its deviation and g = weight x gradient:
/// `r (g - mean(g) - h mean(g h))`, for the root mean square without `mean(g)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NormDx {
    /// What the norm read, [`super::Layout::Columns`].
    pub input: String,
    /// Gradient of what it wrote, of the same layout.
    pub gradient: String,
    /// The value written, of the same layout; may be `gradient`.
    pub output: String,
    /// Which norm.
    pub kind: NormKind,
    /// Added to the mean square.
    pub eps: f64,
    /// Weight `[features]`.
    pub weight: Parameter,
}

/// Derivative of a norm by its weight: the sum over all tokens of the normalised input times the gradient.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NormDw {
    /// What the norm read, [`super::Layout::Columns`].
    pub input: String,
    /// Gradient of what it wrote, of the same layout.
    pub gradient: String,
    /// Which norm.
    pub kind: NormKind,
    /// Added to the mean square.
    pub eps: f64,
    /// The gradient `[features]`.
    pub result: Gradient,
}

/// Moves a value of [`super::Layout::HeadTokens`] to [`super::Layout::HeadColumns`] of the same heads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gather {
    /// The value read.
    pub input: String,
    /// The value written.
    pub output: String,
}

/// Derivatives of causal attention by queries, keys and values; all values are [`super::Layout::HeadTokens`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttentionDx {
    /// Queries; scaled in place.
    pub query: String,
    /// Keys.
    pub key: String,
    /// Values.
    pub value: String,
    /// Gradient of the result, laid out as the queries are.
    pub gradient: String,
    /// Gradient of the queries.
    pub query_dx: String,
    /// Gradient of the keys.
    pub key_dx: String,
    /// Gradient of the values.
    pub value_dx: String,
    /// Factor of the scores.
    pub scale: f64,
    /// ALiBi: one slope per query head, times the distance; empty without.
    pub slopes: Vec<f64>,
    /// How many keys a query sees, itself included; all earlier ones if absent.
    pub window: Option<u32>,
}

/// Cross entropy of logits against labels, summed with the weight of each token: one number leaves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loss {
    /// The value read, [`super::Layout::Columns`].
    pub logits: String,
    /// Name of the tensor of one element.
    pub tensor: String,
}

/// `(softmax(logits) - 1 at the label) x the weight of the token`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossDx {
    /// The value read, [`super::Layout::Columns`].
    pub logits: String,
    /// The value written, of the same layout; may be `logits`.
    pub output: String,
}

/// Gradients of the rows of a table that tokens looked up: they leave token by token, and the host adds each to its row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableDw {
    /// Gradient of the rows, [`super::Layout::Columns`].
    pub value: String,
    /// Name of the tensor `[tokens, features]`.
    pub tensor: String,
    /// Which rows of which table.
    pub source: Source,
}
