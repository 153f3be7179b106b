//! The description of a transformer: everything that tells one family from another.
//!
//! The fields mirror the keys of `model.toml`; a spec that came through `check` satisfies every rule named
//! at its fields. Lengths are counts of elements.

use crate::dtype::DType;
pub use crate::experts::Experts;
use crate::graph::{Dims, Graph, Mode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A decoder-only transformer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Name of the model, for reports.
    pub name: String,
    /// Number of token ids.
    pub vocab: u64,
    /// Rows of the embedding table where it is padded; at least `vocab`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocab_padded_to: Option<u64>,
    /// Width of the residual stream.
    pub d_model: u64,
    /// Number of identical blocks.
    pub n_layers: u64,
    /// Query heads.
    pub n_heads: u64,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: u64,
    /// Width of one head; `d_model / n_heads` unless the family says otherwise.
    pub head_dim: u64,
    /// Inner width of the MLP.
    pub d_ff: u64,
    /// Longest sequence the model was built for.
    pub max_seq: u64,
    /// The norms of the blocks and of the end.
    pub norm: Norm,
    /// How a block joins its two halves.
    #[serde(default)]
    pub block: Block,
    /// The feed-forward half of a block.
    pub mlp: Mlp,
    /// Which linears carry a bias.
    #[serde(default)]
    pub bias: Bias,
    /// How positions enter.
    pub pos: Position,
    /// Attention beyond the head counts.
    #[serde(default)]
    pub attn: Attention,
    /// The output projection.
    #[serde(default)]
    pub head: Head,
    /// Constant factors on the forward path.
    #[serde(default)]
    pub multipliers: Multipliers,
    /// Maximal-update parametrisation, where the model was trained with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mup: Option<Mup>,
    /// Experts in the place of the MLP, where the model has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<Experts>,
    /// Special token ids.
    #[serde(default)]
    pub tokens: Tokens,
    /// How published checkpoints name and lay out the weights.
    #[serde(default)]
    pub weights: Weights,
    /// Element types.
    #[serde(default)]
    pub dtype: DTypes,
}

/// Kind of normalisation over the last axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// `x / sqrt(mean(x²) + eps) * weight`.
    Rms,
    /// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`.
    Layer,
}

/// The norms of a model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Norm {
    /// RMSNorm or LayerNorm.
    pub kind: NormKind,
    /// Added to the mean square or the variance; above zero.
    pub eps: f64,
    /// Whether LayerNorm has a bias; false for RMSNorm.
    #[serde(default)]
    pub bias: bool,
    /// Whether a norm stands before the head.
    #[serde(default = "yes", rename = "final")]
    pub final_norm: bool,
}

/// How the two halves of a block meet the residual stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Residual {
    /// `x += attn(norm1(x)); x += mlp(norm2(x))`.
    #[default]
    Sequential,
    /// `x += attn(norm1(x)) + mlp(norm2(x))`.
    Parallel,
}

/// Shape of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// Sequential or parallel residual.
    #[serde(default)]
    pub residual: Residual,
    /// Whether attention and MLP read the same norm (GPT-J); only with a parallel residual.
    #[serde(default)]
    pub shared_norm: bool,
}

/// Pointwise non-linearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * Φ(x)`, with the error function.
    Gelu,
    /// `0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)²`.
    Relu2,
}

impl Activation {
    /// The name as the IR and the data files write it.
    pub const fn name(self) -> &'static str {
        match self {
            Activation::Silu => "silu",
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_tanh",
            Activation::Relu => "relu",
            Activation::Relu2 => "relu2",
        }
    }
}

/// Which published matrix of a gated MLP goes through the activation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GateHalf {
    /// The first (LLaMA's `gate_proj`).
    #[default]
    First,
    /// The second (CrystalCoder's `c_fc2`).
    Second,
}

/// The feed-forward half of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mlp {
    /// The non-linearity.
    pub act: Activation,
    /// Whether `down(act(gate(x)) * up(x))` replaces `down(act(up(x)))`.
    #[serde(default)]
    pub gated: bool,
    /// Which half of the published pair is the gate.
    #[serde(default)]
    pub gate: GateHalf,
}

/// Biases of the linears, one by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Bias {
    /// On the query, key and value projections.
    pub qkv: bool,
    /// On the attention output projection.
    pub attn_out: bool,
    /// On every MLP projection.
    pub mlp: bool,
    /// On the output head.
    pub head: bool,
}

/// How positions enter the model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Position {
    /// Not at all.
    None,
    /// A learned table of `max_seq` rows, added to the embedding.
    Learned,
    /// Rotation of query and key pairs.
    Rope(Rope),
    /// A linear bias on the scores, by head.
    Alibi {
        /// Factor on the distances: the inverse of BTLM's `alibi_scaling.factor`; 1 for none.
        #[serde(default = "one")]
        scaling: f64,
    },
}

/// Which two dimensions rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pairing {
    /// `(i, i + rot_dims/2)`: LLaMA, GPT-NeoX.
    Half,
    /// `(2i, 2i + 1)`: GPT-J, CrystalCoder.
    Interleaved,
}

/// Rotary position embedding. Inverse frequencies `theta^(-2i/rot_dims)` are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Leading dimensions of each head that rotate; even, at most `head_dim`.
    pub rot_dims: u64,
    /// Which dimensions form a pair.
    pub pairing: Pairing,
    /// Change of the frequencies for longer contexts.
    #[serde(default)]
    pub scaling: RopeScaling,
}

/// Change of RoPE's frequencies for contexts longer than trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RopeScaling {
    /// Unchanged.
    #[default]
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_max / low_freq` are divided.
        low_freq: f64,
        /// Wavelengths below `original_max / high_freq` are kept.
        high_freq: f64,
        /// Context length of the original training.
        original_max: u64,
    },
}

impl Rope {
    /// Inverse frequency of each of the `rot_dims / 2` pairs, computed in f32 steps as published code does.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        let base = |i: u64| 1.0 / (self.theta as f32).powf((2 * i) as f32 / self.rot_dims as f32);
        (0..self.rot_dims / 2).map(|i| self.scaling.apply(base(i))).collect()
    }
}

impl RopeScaling {
    /// The scaled inverse frequency of one pair.
    pub fn apply(&self, inv_freq: f32) -> f32 {
        match *self {
            RopeScaling::None => inv_freq,
            RopeScaling::Linear { factor } => inv_freq / factor as f32,
            RopeScaling::Llama3 { factor, low_freq, high_freq, original_max } => {
                let (factor, low, high) = (factor as f32, low_freq as f32, high_freq as f32);
                let original = original_max as f32;
                let wavelength = 2.0 * std::f32::consts::PI / inv_freq;
                if wavelength < original / high {
                    inv_freq
                } else if wavelength > original / low {
                    inv_freq / factor
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    (1.0 - smooth) * inv_freq / factor + smooth * inv_freq
                }
            }
        }
    }
}

/// Factor on the attention scores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AttentionScale {
    /// `head_dim` to this power: -0.5 as usual, -1 for muP.
    HeadDimPower(f64),
    /// The factor itself.
    Value(f64),
}

/// Attention beyond the head counts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Attention {
    /// Factor on the scores.
    pub scale: AttentionScale,
    /// How many keys a query sees, itself included (`query - key < window`); all earlier ones when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<u64>,
}

impl Default for Attention {
    fn default() -> Self {
        Attention { scale: AttentionScale::HeadDimPower(-0.5), window: None }
    }
}

/// The output projection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Head {
    /// Whether the head is the transposed embedding table.
    pub tied: bool,
}

/// Constant factors on the forward path; 1 when absent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Multipliers {
    /// On the embedding (after the position table, where one is added).
    pub embedding: f64,
    /// On the logits.
    pub logits: f64,
    /// On each half-block before it joins the residual stream.
    pub residual: f64,
}

impl Default for Multipliers {
    fn default() -> Self {
        Multipliers { embedding: 1.0, logits: 1.0, residual: 1.0 }
    }
}

/// Maximal-update parametrisation: the facts a training run needs beside the multipliers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mup {
    /// Width of the proxy model whose hyper-parameters were tuned; no whole number where a published config gives a ratio
    /// of widths that does not divide.
    pub base_width: f64,
    /// MLP width of the proxy, where it does not scale with `base_width`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_ffn: Option<u64>,
    /// Standard deviation of the embedding's truncated normal initialisation.
    pub init_std: f64,
}

impl Mup {
    /// Width multiplier `d_model / base_width`.
    pub fn width_mult(&self, spec: &ModelSpec) -> f64 {
        spec.d_model as f64 / self.base_width
    }
}

/// Special token ids; absent when the tokenizer has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tokens {
    /// Start of text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bos: Option<u64>,
    /// End of text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eos: Option<u64>,
    /// Padding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pad: Option<u64>,
    /// Unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unk: Option<u64>,
    /// Whether the published tokenizer starts every text with `bos`.
    pub add_bos: bool,
    /// Further named ids, such as fill-in-the-middle markers.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, u64>,
}

/// Order of the two axes of a published weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WeightLayout {
    /// `[out, in]`, as `torch.nn.Linear`.
    #[default]
    OutIn,
    /// `[in, out]`, as GPT-2's Conv1D.
    InOut,
}

/// How query, key and value projections are published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QkvLayout {
    /// Three tensors.
    #[default]
    Split,
    /// One tensor, thirds in the order q, k, v.
    Concat,
    /// One tensor, q, k, v of each head together (GPT-NeoX).
    PerHead,
}

/// How published checkpoints name and lay out the weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Weights {
    /// Naming scheme, one of [`crate::weights::scheme_names`].
    pub names: String,
    /// Order of the axes.
    pub layout: WeightLayout,
    /// Form of the query, key and value projections.
    pub qkv: QkvLayout,
    /// Published tensors to pass over, with `*` as wildcard.
    pub ignore: Vec<String>,
    /// Published tensors that repeat another one (a tied head), with `*` as wildcard.
    pub duplicates: Vec<String>,
}

impl Default for Weights {
    fn default() -> Self {
        Weights {
            names: "canonical".into(),
            layout: WeightLayout::OutIn,
            qkv: QkvLayout::Split,
            ignore: Vec::new(),
            duplicates: Vec::new(),
        }
    }
}

/// Element types of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DTypes {
    /// Master weights in training.
    pub params: DType,
    /// Activations and the weights that matmuls read.
    pub compute: DType,
    /// Gradient reduction.
    pub reduce: DType,
}

impl Default for DTypes {
    fn default() -> Self {
        DTypes { params: DType::F32, compute: DType::Bf16, reduce: DType::Bf16 }
    }
}

impl ModelSpec {
    /// Number of learned values; rows that pad the vocabulary count, every expert counts, a tied head
    /// does not count twice.
    ///
    /// Zero when the specification breaks a shape rule, which one past [`crate::validate`] does not.
    pub fn parameters(&self) -> u64 {
        let dims = Dims { batch: 1, seq: 1, cached: 0 };
        let dense = Graph::build(&self.dense(), Mode::Forward, dims);
        dense.map_or(0, |graph| graph.parameters() + self.expert_parameters())
    }

    /// Width of the concatenated query heads.
    pub fn q_width(&self) -> u64 {
        self.n_heads.saturating_mul(self.head_dim)
    }

    /// Width of the concatenated key (or value) heads.
    pub fn kv_width(&self) -> u64 {
        self.n_kv_heads.saturating_mul(self.head_dim)
    }

    /// Rows of the embedding table.
    pub fn vocab_rows(&self) -> u64 {
        self.vocab_padded_to.unwrap_or(self.vocab)
    }

    /// Factor on the attention scores.
    pub fn attention_scale(&self) -> f64 {
        match self.attn.scale {
            AttentionScale::HeadDimPower(power) => (self.head_dim as f64).powf(power),
            AttentionScale::Value(value) => value,
        }
    }
}

const fn yes() -> bool {
    true
}

const fn one() -> f64 {
    1.0
}
