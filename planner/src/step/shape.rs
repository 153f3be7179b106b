//! The sizes of a transformer that prices depend on.

use lapidary_models::spec::{NormKind, Position, Residual};
use lapidary_models::{Experts, ModelSpec};

/// Sizes of a decoder, as numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Width of the residual stream.
    pub width: f64,
    /// Layers.
    pub layers: u64,
    /// Query heads.
    pub heads: f64,
    /// Key heads.
    pub key_heads: f64,
    /// Width of a head.
    pub head_dim: f64,
    /// Inner width of the MLP.
    pub inner: f64,
    /// Whether the MLP is gated.
    pub gated: bool,
    /// Whether norms are RMSNorm.
    pub rms: bool,
    /// Whether attention and MLP read the same residual stream.
    pub parallel: bool,
    /// Whether queries and keys are rotated.
    pub rotary: bool,
    /// Whether a table of positions is learned, and its rows.
    pub positions: f64,
    /// Token ids, unpadded.
    pub vocab: f64,
    /// Whether the head is the embedding table.
    pub tied: bool,
    /// Number of bias and norm parameters of a layer.
    pub small: f64,
    /// Experts in the place of the MLP.
    pub experts: Option<Experts>,
}

impl Shape {
    /// The sizes of a model.
    pub fn of(spec: &ModelSpec) -> Shape {
        let width = spec.d_model as f64;
        let (query, key) = ((spec.n_heads * spec.head_dim) as f64, (spec.n_kv_heads * spec.head_dim) as f64);
        let norms = 2.0 * width * if spec.norm.bias { 2.0 } else { 1.0 };
        let inner = spec.d_ff as f64 * if spec.mlp.gated { 2.0 } else { 1.0 };
        let bias = |yes: bool, size: f64| if yes { size } else { 0.0 };
        let biases = bias(spec.bias.qkv, query + 2.0 * key)
            + bias(spec.bias.attn_out, width)
            + bias(spec.bias.mlp, inner + width);
        Shape {
            width,
            layers: spec.n_layers,
            heads: spec.n_heads as f64,
            key_heads: spec.n_kv_heads as f64,
            head_dim: spec.head_dim as f64,
            inner: spec.d_ff as f64,
            gated: spec.mlp.gated,
            rms: spec.norm.kind == NormKind::Rms,
            parallel: spec.block.residual == Residual::Parallel,
            rotary: matches!(spec.pos, Position::Rope(_)),
            positions: if matches!(spec.pos, Position::Learned) { spec.max_seq as f64 } else { 0.0 },
            vocab: spec.vocab_padded_to.unwrap_or(spec.vocab) as f64,
            tied: spec.head.tied,
            small: norms + biases,
            experts: spec.experts,
        }
    }

    /// Width of all queries together.
    pub fn query_width(&self) -> f64 {
        self.heads * self.head_dim
    }

    /// Width of all keys together, and of all values.
    pub fn key_width(&self) -> f64 {
        self.key_heads * self.head_dim
    }

    /// Matrices into the inner width.
    pub fn ups(&self) -> f64 {
        if self.gated { 2.0 } else { 1.0 }
    }

    /// Parameters of the matrices of an MLP.
    fn mlp_matrices(&self) -> f64 {
        self.width * (self.ups() + 1.0) * self.inner
    }

    /// Part of the layers that have experts.
    pub fn expert_layers(&self) -> f64 {
        self.experts.map_or(0.0, |experts| 1.0 / experts.every as f64)
    }

    /// Rows that the MLP of a layer works on for each token, in the mean over the layers.
    pub fn mlp_rows(&self) -> f64 {
        let share = self.expert_layers();
        1.0 - share + share * self.experts.map_or(0.0, |experts| experts.rows())
    }

    /// Parameters of a layer's matrices outside experts, in the mean over the layers.
    pub fn layer_matrices(&self) -> f64 {
        let share = self.expert_layers();
        let router = self.experts.map_or(0.0, |experts| experts.count as f64 * self.width);
        self.width * (2.0 * self.query_width() + 2.0 * self.key_width())
            + (1.0 - share) * self.mlp_matrices()
            + share * router
    }

    /// Parameters of all experts of a layer, in the mean over the layers.
    pub fn expert_matrices(&self) -> f64 {
        self.experts.map_or(0.0, |experts| experts.count as f64 * self.expert_layers() * self.mlp_matrices())
    }

    /// Parameters of a layer.
    pub fn layer_parameters(&self) -> f64 {
        self.layer_matrices() + self.expert_matrices() + self.small
    }

    /// Parameters of a table of token embeddings with `rows` rows.
    pub fn table(&self, rows: f64) -> f64 {
        rows * self.width
    }

    /// All parameters, the vocabulary unpadded.
    pub fn parameters(&self) -> f64 {
        let tables = if self.tied { 1.0 } else { 2.0 };
        self.layers as f64 * self.layer_parameters()
            + self.table(self.vocab) * tables
            + self.positions * self.width
    }
}
