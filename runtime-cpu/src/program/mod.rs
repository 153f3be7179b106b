//! A model as a list of steps for the host: plain data that prints, saves, loads and can be written by hand.
//!
//! A program fixes widths and layers but neither the batch nor the number of tokens: every step is stated per row, and a
//! row is one new token of one sequence. So one program serves prompts of different lengths, cached decoding and scoring.
//!
//! ```text
//! rows       y[r] = f(sources of r)                         pointwise ops, norms, rotations, lookups
//! linear     p[r] = x[r] Wᵀ ;  y[r] = f(p[r], sources of r)   one product for several matrices over one x, and its epilogue
//! attention  o[r] = softmax(mask(scale q[r] Kᵀ)) V          streaming: no row of scores in memory
//! repeat     the layers
//! collective what ranks say to each other, in the program of one rank of a spread model
//! ```
//! A program that passed [`CpuProgram::check`] cannot read what was not written, nor outside of any buffer.

mod check;
mod row;
mod share;
pub mod train;
mod train_check;
mod train_share_check;

pub use check::{Checked, ProgramFault, ProgramFaults};
pub use lapidary_models::shard::StateSharding;
pub use row::{RowFn, RowOp, RowOutput, RowValue, Target};
pub use share::{Collective, Member, Share, TrainShare};
pub use train::TrainProgram;
pub use train_share_check::begins_segment;

use lapidary_models::op::HeadRun;
use lapidary_models::spec::Rope;
use serde::{Deserialize, Serialize};

/// What the first key of a saved program says.
pub const SCHEMA: &str = "lapidary/cpu-program";
/// Version of the saved form.
pub const VERSION: u32 = 2;
/// Columns of a panel: every matrix of a parameter starts at a multiple of this many columns of the product.
pub const PANEL: u64 = 32;

/// Index into [`CpuProgram::buffers`].
pub type BufferId = usize;
/// Index into [`CpuProgram::parameters`].
pub type ParameterId = usize;
/// Index into [`CpuProgram::caches`].
pub type CacheId = usize;
/// Index into [`CpuProgram::rotations`].
pub type RotationId = usize;

/// A compiled model for the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuProgram {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// Always [`VERSION`].
    pub version: u32,
    /// The model.
    pub model: Sizes,
    /// Weights as the steps read them.
    pub parameters: Vec<Parameter>,
    /// Rotary embeddings that row functions apply.
    pub rotations: Vec<Rotation>,
    /// Key and value caches, one per layer each.
    pub caches: Vec<Cache>,
    /// Activations between steps.
    pub buffers: Vec<Buffer>,
    /// The steps in order.
    pub body: Vec<Step>,
    /// Where the logits are in the end; what it hands on, in a program of a stage before the last.
    pub logits: BufferId,
    /// Which part of the model it is; none for the whole of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<Share>,
}

/// The model that a program was made for, as far as every program depends on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    /// Name of the model.
    pub name: String,
    /// How often a repeated body runs, and how many copies of per-layer parameters and caches there are.
    pub layers: u64,
    /// Rows of the embedding table: token ids are below this.
    pub vocab: u64,
    /// Most tokens of a sequence.
    pub max_seq: u64,
}

/// A weight as the steps read it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameter {
    /// Name in reports.
    pub name: String,
    /// Whether there is one for each layer; tensor names then hold `*` for the layer.
    pub per_layer: bool,
    /// How it is assembled.
    pub form: Form,
}

/// Element type of weights and of caches. A product with bf16 on its right rounds its left operand to bf16 too
/// and sums in f32; everything else is f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightType {
    /// IEEE 754 binary32.
    #[default]
    F32,
    /// bfloat16.
    Bf16,
}

impl WeightType {
    /// Size of one element in bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            WeightType::F32 => 4,
            WeightType::Bf16 => 2,
        }
    }

    /// Elements in a word of 32 bits.
    pub const fn per_word(self) -> usize {
        match self {
            WeightType::F32 => 1,
            WeightType::Bf16 => 2,
        }
    }

    /// Words that hold `length` elements.
    pub const fn words(self, length: usize) -> usize {
        length.div_ceil(self.per_word())
    }
}

/// How a parameter is assembled from canonical tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "form", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Form {
    /// Matrices `[rows, columns]` over one left operand; the columns of the product come in panels of [`PANEL`], and
    /// each matrix begins a new one.
    Matrix {
        /// Element type.
        dtype: WeightType,
        /// Inner dimension.
        columns: u64,
        /// The matrices, in the order of the product's columns.
        segments: Vec<Segment>,
    },
    /// A table whose rows are looked up.
    Table {
        /// Element type.
        dtype: WeightType,
        /// Row length.
        columns: u64,
        /// The table.
        segment: Segment,
    },
    /// A bias or a norm's weight, always f32.
    Vector {
        /// Canonical tensor name.
        tensor: String,
        /// Elements.
        length: u64,
        /// Multiplied in at load time.
        scale: f64,
    },
}

/// One canonical tensor `[rows, columns]` of a parameter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Canonical name.
    pub tensor: String,
    /// Rows.
    pub rows: u64,
    /// Multiplied in, in f32, before rounding to the parameter's type.
    pub scale: f64,
}

/// A rotary embedding applied to heads that lie side by side in a row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    /// Width of a head.
    pub head_dim: u64,
    /// Which dimensions rotate together and how fast.
    pub rope: Rope,
}

/// What a cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CacheKind {
    /// Rotated keys.
    Key,
    /// Values.
    Value,
}

/// A key or value cache: for every layer and sequence, `heads` times `head_dim` values per token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// Keys or values.
    pub kind: CacheKind,
    /// Key-value heads.
    pub heads: u64,
    /// Width of a head.
    pub head_dim: u64,
    /// Element type.
    #[serde(default)]
    pub dtype: WeightType,
}

/// Which rows a step or a buffer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rows {
    /// Every new token of every sequence.
    Tokens,
    /// The last new token of every sequence; every token when all logits are asked for.
    Last,
}

/// An activation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Buffer {
    /// The value's name in the graph.
    pub name: String,
    /// Values per row; per row and key where `per_key`.
    pub width: u64,
    /// Its rows.
    pub rows: Rows,
    /// Whether the width counts once for every key a row may see (scores of unfused attention).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub per_key: bool,
    /// Memory it lies in; buffers that are never alive together share one.
    pub slot: usize,
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mask {
    /// Only keys at or before the query.
    pub causal: bool,
    /// Only the last `window` keys, the query's own included; 0 for all.
    pub window: u64,
    /// Adds `slope(head) * this * (key - query)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alibi: Option<f64>,
    /// Which heads of the model they are, for the slopes; all of them where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<HeadRun>,
}

impl Mask {
    /// Hides nothing.
    pub const OPEN: Mask = Mask { causal: false, window: 0, alibi: None, heads: None };

    /// Whether its heads are some of a model's: no more than any attention has.
    pub(crate) fn is_sound(&self) -> bool {
        self.heads.is_none_or(|run| (1..=1 << 20).contains(&run.of))
    }
}

/// Pointwise and row ops over scores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum KeyOp {
    /// Times a constant.
    Scale {
        /// The factor.
        by: f64,
    },
    /// Minus infinity where a query may not look.
    Mask(Mask),
    /// Softmax over the keys.
    Softmax,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Step {
    /// A function of each row.
    Rows {
        /// Name in reports.
        name: String,
        /// The rows it walks over.
        rows: Rows,
        /// What is computed.
        function: RowFn,
    },
    /// A product with a packed matrix and a function of each row of the product.
    Linear {
        /// Name in reports.
        name: String,
        /// The rows it walks over.
        rows: Rows,
        /// Left operand.
        x: BufferId,
        /// Right operand, a [`Form::Matrix`].
        weight: ParameterId,
        /// What becomes of the product.
        function: RowFn,
    },
    /// `softmax(mask(scale q kᵀ)) v` for every head, in one pass over the keys.
    Attention {
        /// Name in reports.
        name: String,
        /// Queries, `heads` heads side by side.
        q: BufferId,
        /// Keys.
        k: CacheId,
        /// Values.
        v: CacheId,
        /// Result, `heads` heads side by side.
        out: BufferId,
        /// Query heads.
        heads: u64,
        /// Factor on the scores, before the mask.
        scale: f64,
        /// Which keys count.
        mask: Mask,
    },
    /// `q kᵀ` for every head, kept in memory.
    Scores {
        /// Name in reports.
        name: String,
        /// Queries.
        q: BufferId,
        /// Keys.
        k: CacheId,
        /// Scores, `heads` values per row and key.
        out: BufferId,
        /// Query heads.
        heads: u64,
    },
    /// Ops over scores.
    Keys {
        /// Name in reports.
        name: String,
        /// Scores.
        x: BufferId,
        /// Result, same form.
        out: BufferId,
        /// Heads.
        heads: u64,
        /// What is done.
        op: KeyOp,
    },
    /// Weighted sums of values.
    Values {
        /// Name in reports.
        name: String,
        /// Weights, `heads` values per row and key.
        p: BufferId,
        /// Values.
        v: CacheId,
        /// Result, `heads` heads side by side.
        out: BufferId,
        /// Query heads.
        heads: u64,
    },
    /// Runs its body once for every layer; afterwards `yielded` becomes `carried`.
    Repeat {
        /// Name in reports.
        name: String,
        /// Holds the body's argument, and in the end the result.
        carried: BufferId,
        /// Holds the body's result.
        yielded: BufferId,
        /// The body.
        body: Vec<Step>,
    },
    /// Meets other ranks.
    Collective {
        /// Name in reports.
        name: String,
        /// The rows it passes on.
        rows: Rows,
        /// What is said.
        op: Collective,
        /// What is told; none in a step that only receives.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        x: Option<BufferId>,
        /// What is heard.
        out: BufferId,
    },
}

impl Step {
    /// Name in reports.
    pub fn name(&self) -> &str {
        match self {
            Step::Rows { name, .. }
            | Step::Linear { name, .. }
            | Step::Attention { name, .. }
            | Step::Scores { name, .. }
            | Step::Keys { name, .. }
            | Step::Values { name, .. }
            | Step::Repeat { name, .. }
            | Step::Collective { name, .. } => name,
        }
    }
}

impl Form {
    /// First product column of each segment of a matrix, and after the last one the width of the product.
    pub fn starts(&self) -> Vec<u64> {
        let rows: Vec<u64> = match self {
            Form::Matrix { segments, .. } => segments.iter().map(|s| s.rows).collect(),
            Form::Table { segment, .. } => vec![segment.rows],
            Form::Vector { .. } => vec![1],
        };
        let mut starts = vec![0u64];
        for rows in rows {
            let last = starts[starts.len() - 1];
            starts.push(last.saturating_add(rows).saturating_add(PANEL - 1) / PANEL * PANEL);
        }
        starts
    }

    /// Bytes of one copy: rows of whole words.
    pub fn bytes(&self) -> u64 {
        let row =
            |dtype: &WeightType, columns: &u64| columns.div_ceil(dtype.per_word() as u64).saturating_mul(4);
        let rows = |segments: &[Segment]| segments.iter().fold(0u64, |sum, s| sum.saturating_add(s.rows));
        match self {
            Form::Matrix { dtype, columns, segments } => rows(segments).saturating_mul(row(dtype, columns)),
            Form::Table { dtype, columns, segment } => segment.rows.saturating_mul(row(dtype, columns)),
            Form::Vector { length, .. } => length.saturating_mul(4),
        }
    }
}

impl CpuProgram {
    /// The program as JSON text.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// Reads a saved program; it still has to be checked.
    ///
    /// # Errors
    /// The place and what was expected there.
    pub fn from_json(text: &str) -> Result<CpuProgram, ProgramFaults> {
        serde_json::from_str(text).map_err(|e| ProgramFaults::one("program.json", e.to_string()))
    }

    /// Bytes of all weights.
    pub fn weight_bytes(&self) -> u64 {
        let copies = |p: &Parameter| if p.per_layer { self.model.layers } else { 1 };
        self.parameters
            .iter()
            .fold(0u64, |sum, p| sum.saturating_add(p.form.bytes().saturating_mul(copies(p))))
    }

    /// Bytes of activations for each new token, scores of unfused attention left out.
    pub fn activation_bytes_per_token(&self) -> u64 {
        let slots = self.buffers.iter().map(|b| b.slot + 1).max().unwrap_or(0);
        let widest = |slot| {
            self.buffers.iter().filter(|b| b.slot == slot && !b.per_key).map(|b| b.width).max().unwrap_or(0)
        };
        (0..slots).map(|slot| widest(slot).saturating_mul(4)).fold(0, u64::saturating_add)
    }

    /// Bytes of cache for each token of each sequence, all layers.
    pub fn cache_bytes_per_token(&self) -> u64 {
        let one = |c: &Cache| c.heads.saturating_mul(c.head_dim).saturating_mul(c.dtype.bytes());
        self.caches.iter().map(one).fold(0, u64::saturating_add).saturating_mul(self.model.layers)
    }
}

impl Step {
    /// The buffers that the step itself writes.
    pub fn writes(&self) -> Vec<BufferId> {
        match self {
            Step::Rows { function, .. } | Step::Linear { function, .. } => function.buffers_written(),
            Step::Attention { out, .. }
            | Step::Scores { out, .. }
            | Step::Keys { out, .. }
            | Step::Values { out, .. }
            | Step::Collective { out, .. } => {
                vec![*out]
            }
            Step::Repeat { .. } => Vec::new(),
        }
    }
}

impl CpuProgram {
    /// Pairs of buffers that repeats exchange.
    pub fn carried(&self) -> Vec<(BufferId, BufferId)> {
        let pair = |step: &Step| match step {
            Step::Repeat { carried, yielded, .. } => Some((*carried, *yielded)),
            _ => None,
        };
        self.body.iter().filter_map(pair).collect()
    }
}
