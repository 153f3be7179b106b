//! A training step as a list of steps for the host: plain data, like [`super::CpuProgram`].
//!
//! Every row is one token of the batch. Weights are f32 and canonical (`[out, in]`), since they change after every step;
//! each has a gradient of its shape, into which steps add.
//!
//! ```text
//! rows              y[r] = f(sources of r)                      pointwise ops, norms, rotations, lookups, and their derivatives
//! linear            p[r] = x[r] Wᵀ or dy[r] W ;  y[r] = f(p[r], ..)
//! weight-gradient   dW += dyᵀ x                                 nothing between product and gradient
//! column-gradient   db += Σ rows f(sources of r)                biases, weights of norms
//! table-gradient    dT[id] += dy[r]
//! attention(-backward)                                          no matrix of scores in memory
//! loss              mean cross entropy and its derivative
//! repeat            layers, forwards or backwards
//! meet              what the ranks of a spread model say to each other
//! gather, release   weights that a rank holds in part until they are used
//! ```
//! The program of one rank of a spread model is cut into segments, each of which begins with what another stage sends; its
//! share says in which order they run for the micro-batches of a step.

use crate::program::{BufferId, Mask, ParameterId, Rotation, RowFn, RowOp, Sizes, Target, TrainShare};
use serde::{Deserialize, Serialize};

/// What the first key of a saved program says.
pub const SCHEMA: &str = "lapidary/cpu-train-program";
/// Version of the saved form.
pub const VERSION: u32 = 3;

/// A compiled training step for the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainProgram {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// Always [`VERSION`].
    pub version: u32,
    /// The model.
    pub model: Sizes,
    /// Which part of the model it is; none for the whole of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<TrainShare>,
    /// Weights.
    pub parameters: Vec<TrainParameter>,
    /// Rotary embeddings that row functions apply.
    pub rotations: Vec<TrainRotation>,
    /// Activations and their derivatives.
    pub buffers: Vec<TrainBuffer>,
    /// The steps in order.
    pub body: Vec<TrainStep>,
}

/// A weight and its gradient.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainParameter {
    /// Canonical name; `*` stands for the layer.
    pub name: String,
    /// Whether there is one for each layer.
    pub per_layer: bool,
    /// `[out, in]`, `[rows, width]` or `[width]`.
    pub shape: Vec<u64>,
}

/// A rotary embedding, or its inverse.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainRotation {
    /// Which heads and how fast.
    pub rotation: Rotation,
    /// Whether it turns back.
    pub back: bool,
}

/// A value of every token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainBuffer {
    /// Its name in the graph.
    pub name: String,
    /// Values of a token; heads, where `scores`.
    pub width: u64,
    /// Whether it holds one value for each head, query and key.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub scores: bool,
    /// Whether it has the rank's run of the rows, not all of them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub run: bool,
    /// The layers that each keep a copy of their own for the backward pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
}

/// A run of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// The first layer.
    pub first: u64,
    /// How many layers.
    pub times: u64,
}

/// Which way a product goes through a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// `x wᵀ`.
    Forward,
    /// `dy w`.
    Backward,
}

/// One product of a linear step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Product {
    /// Left operand.
    pub x: BufferId,
    /// Right operand.
    pub weight: ParameterId,
    /// Which way.
    pub side: Side,
    /// First column of its result in the rows that the step's function reads; a multiple of 32.
    pub column: u64,
}

/// What picks the row of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lookup {
    /// The token's id.
    Token,
    /// Its position.
    Position,
}

/// Heads and form of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heads {
    /// Query heads.
    pub heads: u64,
    /// Key-value heads.
    pub kv_heads: u64,
}

/// The lane on which the first stage and the last tell each other gradients of weights that both have; those of steps are
/// below.
pub const TIED_LANE: u64 = 32_767;

/// What ranks of a spread model say to each other in a training step, and what they take of values that they have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "meeting", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Meeting {
    /// The sum over the tensor-parallel group.
    AllReduce,
    /// The columns of the tensor-parallel group side by side, cut off at the width of the result.
    AllGather,
    /// The rank's run of rows of the sum over the tensor-parallel group.
    ReduceScatter,
    /// The rows of the tensor-parallel group after one another.
    GatherRows,
    /// The rank's run of rows; nobody is met.
    TakeRows,
    /// Columns, zeros behind them; nobody is met.
    Take {
        /// The first.
        first: u64,
        /// How many.
        length: u64,
    },
    /// Hands rows to a stage and does not wait; the result is what is handed on.
    Send {
        /// Index of the stage.
        stage: u64,
        /// Messages of a lane arrive in their order.
        lane: u64,
    },
    /// Rows that a stage handed on.
    Receive {
        /// Index of the stage.
        stage: u64,
        /// The lane of its send.
        lane: u64,
    },
}

/// Ops over scores in memory.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum KeyOp {
    /// Times a constant.
    Scale {
        /// The factor.
        by: f64,
    },
    /// Minus infinity where a query may not look, ALiBi elsewhere.
    Mask(Mask),
    /// Zero where a query may not look.
    MaskDx(Mask),
    /// Softmax over the keys.
    Softmax,
    /// `p (dp - Σ p dp)`, dp being `other`.
    SoftmaxDx {
        /// Derivatives by the softmax's result.
        other: BufferId,
    },
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case", deny_unknown_fields)]
pub enum TrainStep {
    /// A function of each row.
    Rows {
        /// Name in reports.
        name: String,
        /// What is computed.
        function: RowFn,
    },
    /// Products and a function of each of their rows.
    Linear {
        /// Name in reports.
        name: String,
        /// What is multiplied.
        products: Vec<Product>,
        /// What becomes of the products.
        function: RowFn,
    },
    /// `dW += dyᵀ x`.
    WeightGradient {
        /// Name in reports.
        name: String,
        /// Derivative by the linear's result.
        dy: BufferId,
        /// The linear's operand.
        x: BufferId,
        /// The weight.
        parameter: ParameterId,
    },
    /// Adds the sum of all rows of the function's first output to a vector's gradient.
    ColumnGradient {
        /// Name in reports.
        name: String,
        /// What is summed; its output names no buffer that is written.
        function: RowFn,
        /// The vector.
        parameter: ParameterId,
    },
    /// Adds every row to a row of a table's gradient.
    TableGradient {
        /// Name in reports.
        name: String,
        /// Rows.
        dy: BufferId,
        /// The table.
        parameter: ParameterId,
        /// Which row.
        by: Lookup,
        /// The row of the whole table that is the first here; what belongs outside of the rows here is left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        part: Option<u64>,
    },
    /// `softmax(mask(scale q kᵀ)) v` for every head.
    Attention {
        /// Name in reports.
        name: String,
        /// Queries, keys, values.
        operands: [BufferId; 3],
        /// Result.
        out: BufferId,
        /// Heads.
        heads: Heads,
        /// Factor on the scores, before the mask.
        scale: f64,
        /// Which keys count.
        mask: Mask,
    },
    /// Its derivatives.
    AttentionBackward {
        /// Name in reports.
        name: String,
        /// Queries, keys, values, derivative by the result.
        operands: [BufferId; 4],
        /// Derivatives by queries, keys, values.
        out: [BufferId; 3],
        /// Heads.
        heads: Heads,
        /// Factor on the scores, before the mask.
        scale: f64,
        /// Which keys count.
        mask: Mask,
    },
    /// `q kᵀ` for every head, kept in memory.
    Scores {
        /// Name in reports.
        name: String,
        /// Queries and keys.
        operands: [BufferId; 2],
        /// Scores.
        out: BufferId,
        /// Heads.
        heads: Heads,
    },
    /// An op over scores.
    Keys {
        /// Name in reports.
        name: String,
        /// Scores.
        x: BufferId,
        /// Result.
        out: BufferId,
        /// Heads.
        heads: u64,
        /// What is done.
        op: KeyOp,
    },
    /// `p v` for every head.
    Values {
        /// Name in reports.
        name: String,
        /// Weights and values.
        operands: [BufferId; 2],
        /// Result.
        out: BufferId,
        /// Heads.
        heads: Heads,
    },
    /// `pᵀ y` for every key-value head.
    ValuesBackward {
        /// Name in reports.
        name: String,
        /// Weights and rows of query heads.
        operands: [BufferId; 2],
        /// Result.
        out: BufferId,
        /// Heads.
        heads: Heads,
    },
    /// Mean cross entropy of the logits and its derivative.
    Loss {
        /// Name in reports.
        name: String,
        /// Logits.
        logits: BufferId,
        /// Derivative by the logits.
        gradient: BufferId,
    },
    /// What ranks say to each other.
    Meet {
        /// Name in reports.
        name: String,
        /// What is said.
        op: Meeting,
        /// What is told; none for a receive.
        x: Option<BufferId>,
        /// What is heard; `x` itself for a send.
        out: BufferId,
    },
    /// Gathers weights of which each rank of the data-parallel group holds a run, and makes room for gradients.
    Gather {
        /// Name in reports.
        name: String,
        /// Weights that the next steps read.
        parameters: Vec<ParameterId>,
        /// Those whose gradients they make.
        gradients: Vec<ParameterId>,
    },
    /// Gives their memory back; gradients are summed over the data-parallel group and scattered first.
    Release {
        /// Name in reports.
        name: String,
        /// Weights.
        parameters: Vec<ParameterId>,
        /// Those that have gradients by now.
        gradients: Vec<ParameterId>,
    },
    /// Runs its body once for each layer; each time `yielded` becomes `carried`.
    Repeat {
        /// Name in reports.
        name: String,
        /// The layers.
        layers: Kept,
        /// Whether the last layer comes first.
        reverse: bool,
        /// Holds the body's argument, and in the end the result.
        carried: BufferId,
        /// Holds the body's result.
        yielded: BufferId,
        /// The body.
        body: Vec<TrainStep>,
    },
}

impl TrainStep {
    /// Name in reports.
    pub fn name(&self) -> &str {
        match self {
            TrainStep::Rows { name, .. }
            | TrainStep::Linear { name, .. }
            | TrainStep::WeightGradient { name, .. }
            | TrainStep::ColumnGradient { name, .. }
            | TrainStep::TableGradient { name, .. }
            | TrainStep::Attention { name, .. }
            | TrainStep::AttentionBackward { name, .. }
            | TrainStep::Scores { name, .. }
            | TrainStep::Keys { name, .. }
            | TrainStep::Values { name, .. }
            | TrainStep::ValuesBackward { name, .. }
            | TrainStep::Loss { name, .. }
            | TrainStep::Meet { name, .. }
            | TrainStep::Gather { name, .. }
            | TrainStep::Release { name, .. }
            | TrainStep::Repeat { name, .. } => name,
        }
    }
}

impl TrainStep {
    /// Tells every buffer that the step or its body reads or writes.
    pub fn buffers(&self, tell: &mut dyn FnMut(BufferId)) {
        let mut of = |ids: &[BufferId]| ids.iter().for_each(|id| tell(*id));
        match self {
            TrainStep::Rows { function, .. } => function_buffers(function, tell),
            TrainStep::Linear { products, function, .. } => {
                products.iter().for_each(|product| tell(product.x));
                function_buffers(function, tell);
            }
            // Its output names no buffer.
            TrainStep::ColumnGradient { function, .. } => function_sources(function, tell),
            TrainStep::WeightGradient { dy, x, .. } => of(&[*dy, *x]),
            TrainStep::TableGradient { dy, .. } => of(&[*dy]),
            TrainStep::Attention { operands, out, .. } => {
                of(operands);
                of(&[*out]);
            }
            TrainStep::AttentionBackward { operands, out, .. } => {
                of(operands);
                of(out);
            }
            TrainStep::Scores { operands, out, .. }
            | TrainStep::Values { operands, out, .. }
            | TrainStep::ValuesBackward { operands, out, .. } => {
                of(operands);
                of(&[*out]);
            }
            TrainStep::Keys { x, out, op, .. } => {
                of(&[*x, *out]);
                if let KeyOp::SoftmaxDx { other } = op {
                    of(&[*other]);
                }
            }
            TrainStep::Loss { logits, gradient, .. } => of(&[*logits, *gradient]),
            TrainStep::Meet { x, out, .. } => {
                of(x.as_slice());
                of(&[*out]);
            }
            TrainStep::Gather { .. } | TrainStep::Release { .. } => {}
            TrainStep::Repeat { carried, yielded, body, .. } => {
                of(&[*carried, *yielded]);
                body.iter().for_each(|step| step.buffers(tell));
            }
        }
    }

    /// Tells every weight that the step or its body reads, and every one whose gradient it adds to.
    pub fn parameters(&self, reads: &mut dyn FnMut(ParameterId), adds: &mut dyn FnMut(ParameterId)) {
        match self {
            TrainStep::Rows { function, .. } => function_parameters(function, reads),
            TrainStep::Linear { products, function, .. } => {
                products.iter().for_each(|product| reads(product.weight));
                function_parameters(function, reads);
            }
            TrainStep::ColumnGradient { function, parameter, .. } => {
                function_parameters(function, reads);
                adds(*parameter);
            }
            TrainStep::WeightGradient { parameter, .. } | TrainStep::TableGradient { parameter, .. } => {
                adds(*parameter);
            }
            TrainStep::Repeat { body, .. } => body.iter().for_each(|step| step.parameters(reads, adds)),
            _ => {}
        }
    }
}

fn function_sources(function: &RowFn, tell: &mut dyn FnMut(BufferId)) {
    for value in &function.values {
        if let RowOp::Buffer { buffer } = value.op {
            tell(buffer);
        }
    }
}

fn function_buffers(function: &RowFn, tell: &mut dyn FnMut(BufferId)) {
    function_sources(function, tell);
    for output in &function.outputs {
        if let Target::Buffer(id) = output.to {
            tell(id);
        }
    }
}

fn function_parameters(function: &RowFn, reads: &mut dyn FnMut(ParameterId)) {
    for value in &function.values {
        match value.op {
            RowOp::Vector { parameter }
            | RowOp::Embedding { parameter, .. }
            | RowOp::Position { parameter } => reads(parameter),
            _ => {}
        }
    }
}

impl TrainProgram {
    /// The steps of a segment of the body; all of them where it has none.
    pub fn segment(&self, segment: usize) -> std::ops::Range<usize> {
        let Some(share) = &self.share else { return 0..self.body.len() };
        let start = share.segments.get(segment).copied().unwrap_or(self.body.len());
        start..share.segments.get(segment + 1).copied().unwrap_or(self.body.len())
    }

    /// The program as JSON text.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// Reads a saved program; it still has to be checked.
    ///
    /// # Errors
    /// The place and what was expected there.
    pub fn from_json(text: &str) -> Result<TrainProgram, crate::program::ProgramFaults> {
        serde_json::from_str(text)
            .map_err(|e| crate::program::ProgramFaults::one("program.json", e.to_string()))
    }

    /// Bytes that layers keep for each token from forward to backward, scores left out.
    pub fn kept_bytes_per_token(&self) -> u64 {
        let kept = |buffer: &TrainBuffer| match (buffer.kept, buffer.scores) {
            (Some(kept), false) => buffer.width.saturating_mul(4).saturating_mul(kept.times),
            _ => 0,
        };
        self.buffers.iter().map(kept).fold(0, u64::saturating_add)
    }
}
