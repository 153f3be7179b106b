//! What a wafer is to compute and where: values with layouts, and the ops between them, as plain data.
//!
//! Every value is a matrix of tokens by features. Tokens always lie over the rows of PEs; what differs is how the
//! tokens of one row and their features lie over the columns (see [`Layout`]).

use super::error::WaferError;
use super::tile::{Blocks, Tiles};
use lapidary_models::dtype::DType;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A computation placed on a rectangle of PEs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Placed {
    /// Columns of PEs.
    pub width: u32,
    /// Rows of PEs.
    pub height: u32,
    /// How tokens lie over the rows.
    pub tokens: Tokens,
    /// How attention heads lie over the columns, where there are any.
    pub heads: Option<Heads>,
    /// Element type of all values, and of weights on the fabric.
    pub dtype: DType,
    /// Layout by value name.
    pub values: BTreeMap<String, Layout>,
    /// In the order of execution.
    pub ops: Vec<PlacedOp>,
}

/// `sequences` x `length` tokens; every sequence has `rows` rows of PEs for itself, one sequence below the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// How many sequences are on the wafer at once.
    pub sequences: u32,
    /// Tokens of a sequence.
    pub length: u32,
    /// Rows of PEs that share a sequence.
    pub rows: u32,
}

impl Tokens {
    /// Tokens of a sequence over its rows.
    pub fn tiles(self) -> Tiles {
        Tiles::new(self.length, self.rows)
    }

    /// Rows of PEs over sequences.
    pub fn blocks(self) -> Blocks {
        Blocks { count: self.sequences, size: self.rows.max(1) }
    }

    /// Tokens of one micro-batch.
    pub fn total(self) -> u64 {
        u64::from(self.sequences) * u64::from(self.length)
    }
}

/// Attention heads over blocks of neighbouring columns. A block holds whole key/value heads with their query heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heads {
    /// How many blocks of columns.
    pub blocks: u32,
    /// Columns of a block.
    pub columns: u32,
    /// Key/value heads of a block.
    pub kv: u32,
    /// Query heads that share a key/value head.
    pub ways: u32,
    /// Features of a head.
    pub dim: u32,
}

impl Heads {
    /// Columns over blocks.
    pub fn column_blocks(self) -> Blocks {
        Blocks { count: self.blocks, size: self.columns.max(1) }
    }

    /// Query features of a block.
    pub fn query_features(self) -> u32 {
        self.kv * self.ways * self.dim
    }

    /// Key (or value) features of a block.
    pub fn key_features(self) -> u32 {
        self.kv * self.dim
    }
}

/// How a value lies over the columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// Features over all columns; a PE holds `[its features][the tokens of its row]`.
    Columns {
        /// Features of the value.
        features: u32,
    },
    /// Features of a head block over the columns of that block; a PE holds `[its features][the tokens of its row]`.
    HeadColumns,
    /// Tokens of a row over the columns of each head block; a PE holds `[head][its tokens][features of a head]` of its
    /// block, so that everything within a head is local. `queries`: all query heads, otherwise key/value heads.
    HeadTokens {
        /// Query heads, not key/value heads.
        queries: bool,
    },
}

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
        /// The value written; [`Layout::Columns`].
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
        /// The value read; [`Layout::Columns`].
        value: String,
        /// Name of the tensor.
        tensor: String,
        /// How it gets there.
        path: Path,
    },
    /// `y = x . w^T (+ bias)`, weights streamed from the host.
    Linear(Linear),
    /// Normalisation over the features of each token.
    Norm(Norm),
    /// Rotary position embedding, in place, of a [`Layout::HeadTokens`] value.
    Rope(Rope),
    /// Causal softmax attention within each sequence.
    Attention(Attention),
    /// A chain of elementwise steps between values of one layout.
    Map(Map),
}

/// How a host tensor and a value on the wafer are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Path {
    /// It is there before the program starts, or read after it ends: not timed.
    Resident,
    /// Timed words through the north edge (inputs) or the south edge (outputs), passed on from row to row.
    Stream,
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
    /// The value read: [`Layout::Columns`] or [`Layout::HeadColumns`].
    pub input: String,
    /// The outputs computed side by side (q, k, v or gate, up), all of [`Layout::Columns`] or all of
    /// [`Layout::HeadTokens`].
    pub outputs: Vec<Segment>,
    /// Whether the result is added to the output's old value (a residual): the old value is then the start of the
    /// accumulator. Only for a single [`Layout::Columns`] output.
    pub accumulate: bool,
}

/// One output of a linear layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// The value written.
    pub value: String,
    /// Weight `[out, in]`.
    pub weight: Parameter,
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
    /// The value read, [`Layout::Columns`].
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
}

/// Causal attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attention {
    /// Queries, [`Layout::HeadTokens`] with `queries`; scaled in place.
    pub query: String,
    /// Keys, [`Layout::HeadTokens`].
    pub key: String,
    /// Values, [`Layout::HeadTokens`].
    pub value: String,
    /// The result, [`Layout::HeadColumns`].
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

impl Placed {
    /// Rows of PEs in use.
    pub fn rows(&self) -> u32 {
        self.tokens.blocks().lines()
    }

    /// Layout of a value, or the fault that there is none.
    pub fn layout(&self, op: &PlacedOp, value: &str) -> Result<Layout, WaferError> {
        self.values
            .get(value)
            .copied()
            .ok_or_else(|| WaferError::UnknownValue { op: op.name.clone(), value: value.into() })
    }

    /// The heads, or the fault that there are none.
    pub fn heads(&self, op: &str) -> Result<Heads, WaferError> {
        self.heads.ok_or_else(|| WaferError::Layout { op: op.into(), detail: "no heads are placed".into() })
    }

    /// Features of a layout over the whole row.
    pub fn features(&self, layout: Layout) -> u32 {
        let per_block = |f: fn(Heads) -> u32| self.heads.map_or(0, |heads| heads.blocks * f(heads));
        match layout {
            Layout::Columns { features } => features,
            Layout::HeadColumns | Layout::HeadTokens { queries: true } => per_block(Heads::query_features),
            Layout::HeadTokens { queries: false } => per_block(Heads::key_features),
        }
    }
}

impl OpKind {
    /// Values read (also where they are written too).
    pub fn reads(&self) -> Vec<&str> {
        match self {
            OpKind::Input { .. } => vec![],
            OpKind::Output { value, .. } => vec![value],
            OpKind::Linear(linear) => {
                let old = linear.outputs.iter().filter(|_| linear.accumulate).map(|s| s.value.as_str());
                std::iter::once(linear.input.as_str()).chain(old).collect()
            }
            OpKind::Norm(norm) => vec![&norm.input],
            OpKind::Rope(rope) => vec![&rope.value],
            OpKind::Attention(a) => vec![&a.query, &a.key, &a.value],
            OpKind::Map(map) => std::iter::once(map.input.as_str())
                .chain(map.steps.iter().filter_map(Step::operand))
                .collect(),
        }
    }

    /// Values written.
    pub fn writes(&self) -> Vec<&str> {
        match self {
            OpKind::Input { value, .. } => vec![value],
            OpKind::Output { .. } => vec![],
            OpKind::Linear(linear) => linear.outputs.iter().map(|s| s.value.as_str()).collect(),
            OpKind::Norm(norm) => vec![&norm.output],
            OpKind::Rope(rope) => vec![&rope.value],
            OpKind::Attention(a) => vec![&a.query, &a.output],
            OpKind::Map(map) => vec![&map.output],
        }
    }

    /// The word for reports.
    pub fn name(&self) -> &'static str {
        match self {
            OpKind::Input { .. } => "input",
            OpKind::Output { .. } => "output",
            OpKind::Linear(_) => "linear",
            OpKind::Norm(_) => "norm",
            OpKind::Rope(_) => "rope",
            OpKind::Attention(_) => "attention",
            OpKind::Map(_) => "map",
        }
    }
}

impl Step {
    /// The value a step reads, if any.
    pub fn operand(&self) -> Option<&str> {
        match self {
            Step::Add(value) | Step::Mul(value) => Some(value),
            Step::Scale(_) | Step::Activation(_) => None,
        }
    }
}
