//! What a kernel has to compute, as plain data: a fused region with its inputs, its operations in order, and its outputs.
//!
//! The region is in single-assignment form: value `i` is input `i` for `i < inputs.len()`, and the result of operation
//! `i - inputs.len()` after that. Operations are those of the `nn` dialect with the same operands and attributes.
use lapidary_runtime_gpu::program::Dtype;

mod backward;

pub use backward::Backward;

/// Index of a value in a region: inputs first, then results in order.
pub type ValueId = usize;

/// A fused region that becomes one kernel (or one library call, or two kernels for split attention).
#[derive(Debug, Clone, PartialEq)]
pub struct KernelSpec {
    /// Name of the kernel: a C identifier, unique in its module.
    pub name: String,
    /// What the kernel is built around.
    pub anchor: Anchor,
    /// Activations, parameters and token ids that the region reads.
    pub inputs: Vec<Input>,
    /// Operations, each after those it reads.
    pub ops: Vec<OpSpec>,
    /// Values that leave the region, in order.
    pub outputs: Vec<ValueId>,
    /// Why these operations are one kernel, from the fusion pass.
    pub reason: String,
}

/// What a kernel is built around.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Anchor {
    /// Statistics over the last dimension: norms, softmax.
    Row,
    /// Every element for itself.
    Elementwise,
    /// Rows picked by token ids.
    Gather,
    /// One or several matrix products that read the same left side.
    Matmul,
    /// Scores, mask, softmax and values in one pass.
    Attention,
}

impl Anchor {
    /// The word used in programs and reports.
    pub fn word(self) -> &'static str {
        match self {
            Anchor::Row => "row",
            Anchor::Elementwise => "elementwise",
            Anchor::Gather => "gather",
            Anchor::Matmul => "matmul",
            Anchor::Attention => "attention",
        }
    }
}

/// Element type and shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorType {
    /// Element type in memory; arithmetic is always in f32.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
}

/// A value that the region reads.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// Type in memory. For parameters: the canonical type before packing.
    pub ty: TensorType,
    /// Where it comes from.
    pub source: Source,
}

/// Where an input comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// Computed by an earlier kernel, or given by the caller (token ids).
    Activation,
    /// A weight under its canonical name (`*` for the layer), with the factor folded in at load time.
    Param {
        /// Canonical name.
        name: String,
        /// Load-time factor.
        scale: f64,
    },
}

/// One operation of a region.
#[derive(Debug, Clone, PartialEq)]
pub struct OpSpec {
    /// What is done.
    pub op: KernelOp,
    /// Values read.
    pub operands: Vec<ValueId>,
    /// Type of the result.
    pub ty: TensorType,
}

/// The `nn` operations that kernels can hold.
#[derive(Debug, Clone, PartialEq)]
pub enum KernelOp {
    /// ids, table -> rows of the table.
    Embed,
    /// ids, table -> rows of a part of the whole table; zero for an id outside of it.
    EmbedPart {
        /// The id of the part's first row.
        first: u64,
    },
    /// x, table -> x plus the table's row of each position.
    Position {
        /// Position of the first row (the cached length).
        offset: u64,
    },
    /// x [.., k], w [n, k] -> [.., n].
    Linear,
    /// x [.., n], b [n] -> sum.
    Bias,
    /// a, b -> a + b.
    Add,
    /// a, b -> a * b.
    Mul,
    /// x -> x * by.
    Scale {
        /// The factor.
        by: f64,
    },
    /// x -> f(x).
    Activation(ActivationFn),
    /// x, weight, bias? -> normalised rows.
    Norm {
        /// Root mean square or mean and variance.
        kind: NormKind,
        /// Added under the root.
        eps: f64,
    },
    /// Rotates pairs of each head by position.
    Rope(Rope),
    /// Writes rows into the named cache and yields the whole cache.
    KvAppend {
        /// `k` or `v`.
        cache: String,
        /// Rows already there.
        cached: u64,
    },
    /// q, k -> scaled products.
    Scores {
        /// Query heads.
        heads: u64,
        /// Key heads.
        kv_heads: u64,
    },
    /// Adds minus infinity where attention may not look, and ALiBi's slopes.
    Mask(Mask),
    /// Softmax over the last dimension.
    Softmax,
    /// p, v -> weighted sums.
    Values {
        /// Query heads.
        heads: u64,
        /// Value heads.
        kv_heads: u64,
    },
    /// x [b, s, d] -> [b, 1, d].
    LastToken,
    /// An operation that only a backward pass has.
    Backward(Backward),
}

impl KernelOp {
    /// The operation's name in the `nn` dialect, without the prefix.
    pub fn word(&self) -> &'static str {
        match self {
            KernelOp::Embed => "embed",
            KernelOp::EmbedPart { .. } => "embed_part",
            KernelOp::Position { .. } => "position",
            KernelOp::Linear => "linear",
            KernelOp::Bias => "bias",
            KernelOp::Add => "add",
            KernelOp::Mul => "mul",
            KernelOp::Scale { .. } => "scale",
            KernelOp::Activation(_) => "activation",
            KernelOp::Norm { .. } => "norm",
            KernelOp::Rope(_) => "rope",
            KernelOp::KvAppend { .. } => "kv_append",
            KernelOp::Scores { .. } => "scores",
            KernelOp::Mask(_) => "mask",
            KernelOp::Softmax => "softmax",
            KernelOp::Values { .. } => "values",
            KernelOp::LastToken => "last_token",
            KernelOp::Backward(op) => op.word(),
        }
    }

    /// The first position this operation works at, where it depends on positions.
    pub fn position(&self) -> Option<u64> {
        match self {
            KernelOp::Position { offset } => Some(*offset),
            KernelOp::Rope(rope) => Some(rope.offset),
            KernelOp::KvAppend { cached, .. } => Some(*cached),
            KernelOp::Mask(mask) | KernelOp::Backward(Backward::MaskDx(mask)) => Some(mask.offset),
            KernelOp::Backward(Backward::RopeDx(rope)) => Some(rope.offset),
            _ => None,
        }
    }
}

/// Point-wise functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationFn {
    /// x * sigmoid(x).
    Silu,
    /// x * Phi(x), exact.
    Gelu,
    /// The tanh approximation of gelu.
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// max(x, 0) squared.
    Relu2,
}

/// Statistics of a norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// x / sqrt(mean(x^2) + eps).
    Rms,
    /// (x - mean) / sqrt(var + eps).
    Layer,
}

/// Rotary embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Width of a head.
    pub head_dim: u64,
    /// Rotated columns of a head, from its start.
    pub rot_dims: u64,
    /// Which columns form a pair.
    pub pairing: Pairing,
    /// Base of the frequencies.
    pub theta: f64,
    /// Position of the first row.
    pub offset: u64,
    /// Change of the frequencies for long contexts.
    pub scaling: RopeScaling,
}

/// Which columns a rotation mixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// i and i + rot_dims / 2.
    Half,
    /// 2 i and 2 i + 1.
    Interleaved,
}

/// Change of rotary frequencies for long contexts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Unchanged.
    None,
    /// All frequencies divided by the factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Low frequencies divided, high ones kept, a ramp between them (Llama 3.1).
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq` count as low.
        low_freq: f64,
        /// Wavelengths below `original / high_freq` count as high.
        high_freq: f64,
        /// Context length of the original training.
        original: f64,
    },
}

/// Which scores count.
#[derive(Debug, Clone, PartialEq)]
pub struct Mask {
    /// Only keys at or before the query.
    pub causal: bool,
    /// Only the last `window` keys; 0 for all.
    pub window: u64,
    /// Adds `slope(head) * (key - query)`.
    pub alibi: bool,
    /// Factor of the slopes.
    pub alibi_scaling: f64,
    /// The first of the model's heads that these are, and how many the model has; all of them where nothing is said.
    pub heads: Option<[u64; 2]>,
    /// Position of the first query row.
    pub offset: u64,
}

impl Mask {
    /// ALiBi's slopes of so many heads; zero for those that a rank only pads.
    pub(crate) fn slopes(&self, heads: u64) -> Vec<f64> {
        let [first, of] = self.heads.unwrap_or([0, heads]);
        let all = super::attention::slopes(of);
        let slope = |head: u64| usize::try_from(head).ok().and_then(|at| all.get(at)).copied().unwrap_or(0.0);
        (first..first + heads).map(slope).collect()
    }
}

impl TensorType {
    /// A type.
    pub fn new(dtype: Dtype, shape: &[u64]) -> TensorType {
        TensorType { dtype, shape: shape.to_vec() }
    }

    /// Length of the last dimension; 1 for a scalar.
    pub fn cols(&self) -> u64 {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Product of all dimensions but the last.
    pub fn rows(&self) -> u64 {
        self.shape.iter().rev().skip(1).fold(1, |n, &dim| n.saturating_mul(dim))
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().fold(1, |n, &dim| n.saturating_mul(dim))
    }

    /// Elements between two rows in memory: the last dimension rounded up to 16 bytes (token ids are dense).
    pub fn pitch(&self) -> u64 {
        if self.dtype == Dtype::I32 {
            self.cols()
        } else {
            self.cols().div_ceil(self.dtype.vector()).saturating_mul(self.dtype.vector())
        }
    }

    /// Bytes in memory, row padding included.
    pub fn bytes(&self) -> u64 {
        self.rows().saturating_mul(self.pitch()).saturating_mul(self.dtype.bytes())
    }
}

impl KernelSpec {
    /// The operation that defines a value; none for an input.
    pub fn op(&self, value: ValueId) -> Option<&OpSpec> {
        self.ops.get(value.checked_sub(self.inputs.len())?)
    }

    /// The type of a value.
    pub fn ty(&self, value: ValueId) -> &TensorType {
        match self.op(value) {
            Some(op) => &op.ty,
            None => &self.inputs[value].ty,
        }
    }

    /// Values of all operations, in order.
    pub fn results(&self) -> std::ops::Range<ValueId> {
        self.inputs.len()..self.inputs.len() + self.ops.len()
    }

    /// A kernel that copies a value of type `ty`, element by element.
    pub fn copy(name: String, ty: TensorType, reason: &str) -> KernelSpec {
        KernelSpec {
            name,
            anchor: Anchor::Elementwise,
            inputs: vec![Input { ty: ty.clone(), source: Source::Activation }],
            ops: vec![OpSpec { op: KernelOp::Scale { by: 1.0 }, operands: vec![0], ty }],
            outputs: vec![1],
            reason: reason.into(),
        }
    }

    /// Whether a value is the sum in a gradient's buffer.
    pub fn gradient(&self, value: ValueId) -> Option<&str> {
        match self.op(value).map(|op| &op.op) {
            Some(KernelOp::Backward(Backward::Gradient { param })) => Some(param),
            _ => None,
        }
    }

    /// Values that read `value`.
    pub fn users(&self, value: ValueId) -> Vec<ValueId> {
        self.results().filter(|&id| self.op(id).is_some_and(|op| op.operands.contains(&value))).collect()
    }

    /// Operation names in order.
    pub fn op_words(&self) -> Vec<String> {
        self.ops.iter().map(|op| op.op.word().to_string()).collect()
    }

    /// The cached length, if the region works at positions behind a cache: then the kernel reads it from memory at run time.
    pub fn cached(&self) -> Option<u64> {
        self.ops.iter().filter_map(|op| op.op.position()).find(|&position| position > 0)
    }
}
