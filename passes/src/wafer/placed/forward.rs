//! Ops of a forward pass.

use serde::{Deserialize, Serialize};

/// How a host tensor and a value on the wafer are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Path {
    /// It is there before the program starts, or read after it ends: not timed.
    Resident,
    /// Timed words through the north edge (inputs) or the south edge (outputs), passed on from row to row.
    Stream,
    /// Of one token that all PEs of a line have: timed words from the north edge to all PEs of each column (inputs), or from
    /// the last column through the east edge (outputs).
    Shared,
}

/// What the host puts into the tensor of an input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Activations that the caller has.
    Caller,
    /// The row of a parameter for each token id.
    Lookup {
        /// Parameter `[ids, features]`.
        table: Parameter,
    },
    /// The row of a parameter for each position.
    Positions {
        /// Parameter `[positions, features]`.
        table: Parameter,
        /// Position of the first token of a sequence.
        offset: u64,
    },
}

/// A parameter of the model as an op uses it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parameter {
    /// Its name; `layers.*.attn.q.weight` stands for that of the running layer.
    pub name: String,
    /// Factor that the host folds in (muP's, say).
    pub scale: f64,
}

impl Parameter {
    /// A parameter as it is.
    pub fn plain(name: impl Into<String>) -> Self {
        Parameter { name: name.into(), scale: 1.0 }
    }
}

/// A linear layer with streamed weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Linear {
    /// The value read: [`super::Layout::Columns`] or [`super::Layout::HeadColumns`].
    pub input: String,
    /// The outputs computed side by side (q, k, v or gate, up), all of [`super::Layout::Columns`] or all of
    /// [`super::Layout::HeadTokens`].
    pub outputs: Vec<Segment>,
    /// Whether the result is added to the output's old value (a residual): the old value is then the start of the
    /// accumulator. Only for a single [`super::Layout::Columns`] output.
    pub accumulate: bool,
}

/// One output of a linear layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// The value written.
    pub value: String,
    /// Weight `[out, in]`.
    pub weight: Parameter,
    /// Whether the parameter is `[in, out]`: the derivative of a linear layer by its input reads its weight so.
    pub transposed: bool,
    /// Bias `[out]`.
    pub bias: Option<Parameter>,
}

/// Kind of a [`Norm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// Root mean square.
    Rms,
    /// Mean and variance.
    Layer,
}

/// A normalisation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Norm {
    /// The value read, [`super::Layout::Columns`].
    pub input: String,
    /// The value written, of the same layout.
    pub output: String,
    /// Which.
    pub kind: NormKind,
    /// Added to the mean square.
    pub eps: f64,
    /// Weight `[features]`.
    pub weight: Parameter,
    /// Bias `[features]`.
    pub bias: Option<Parameter>,
}

/// Which features of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pairing {
    /// `i` and `i + rotated / 2`.
    Half,
    /// `2 i` and `2 i + 1`.
    Interleaved,
}

/// A rotary embedding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    /// The value turned, in place.
    pub value: String,
    /// How many features at the front of each head turn; even.
    pub rotated: u32,
    /// Which features turn together.
    pub pairing: Pairing,
    /// Angle per position of each pair, in radians; `rotated / 2` of them.
    pub frequencies: Vec<f64>,
    /// Position of the first token.
    pub offset: i64,
    /// Turns back: the derivative.
    pub back: bool,
}

/// Causal attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attention {
    /// Queries, [`super::Layout::HeadTokens`] with `queries`; scaled in place.
    pub query: String,
    /// Keys, [`super::Layout::HeadTokens`].
    pub key: String,
    /// Values, [`super::Layout::HeadTokens`].
    pub value: String,
    /// The result, [`super::Layout::HeadColumns`].
    pub output: String,
    /// Factor of the scores.
    pub scale: f64,
    /// ALiBi: one slope per query head, times the distance; empty without.
    pub slopes: Vec<f64>,
    /// How many keys a query sees, itself included; all earlier ones if absent.
    pub window: Option<u32>,
}

/// A chain of elementwise steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Map {
    /// What the chain starts from.
    pub input: String,
    /// Where the result goes; may be the input or an operand of a step.
    pub output: String,
    /// Applied one after the other.
    pub steps: Vec<Step>,
}

/// One step of a [`Map`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Times a number.
    Scale(f64),
    /// An activation function.
    Activation(Activation),
    /// The derivative of an activation function at what the chain holds.
    Slope(Activation),
    /// Plus a value of the same layout.
    Add(String),
    /// Times a value of the same layout.
    Mul(String),
}

/// Activation functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x / (1 + e^-x)`.
    Silu,
    /// `x (1 + erf(x / sqrt 2)) / 2`.
    Gelu,
    /// The approximation of gelu by tanh.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)^2`.
    Relu2,
}

impl Step {
    /// The value a step reads, if any.
    pub fn operand(&self) -> Option<&str> {
        match self {
            Step::Add(value) | Step::Mul(value) => Some(value),
            Step::Scale(_) | Step::Activation(_) | Step::Slope(_) => None,
        }
    }
}
