//! GPT-J: parallel residual behind one norm, interleaved partial RoPE, biases on the MLP and the head only.

use super::config::Config;
use crate::spec::{
    Attention, Bias, Block, GateHalf, Head, Mlp, ModelSpec, Multipliers, Norm, NormKind, Pairing, Position,
    Residual, Rope, RopeScaling, Weights,
};

pub(super) fn gptj(config: &Config<'_>) -> ModelSpec {
    let vocab = config.need("vocab_size", "vocab");
    let d_model = config.need("n_embd", "d_model");
    let n_heads = config.need("n_head", "n_heads");
    let head_dim = config.head_dim(d_model, n_heads);
    let tied = config.flag("tie_word_embeddings", "head.tied").unwrap_or(false);
    config.only("rotary", true, "GPT-J without rotary positions is not supported");
    config.ignore("scale_attn_weights", "the published program scales always");
    ModelSpec {
        name: config.name(),
        vocab,
        vocab_padded_to: None,
        d_model,
        n_layers: config.need("n_layer", "n_layers"),
        n_heads,
        n_kv_heads: n_heads,
        head_dim,
        d_ff: config.count("n_inner", "d_ff").unwrap_or(d_model.saturating_mul(4)),
        max_seq: config.need("n_positions", "max_seq"),
        norm: Norm {
            kind: NormKind::Layer,
            eps: config.float("layer_norm_epsilon", "norm.eps").unwrap_or(1e-5),
            bias: true,
            final_norm: true,
        },
        block: Block { residual: Residual::Parallel, shared_norm: true },
        mlp: Mlp {
            act: config.activation("activation_function", "gelu_new"),
            gated: false,
            gate: GateHalf::First,
        },
        bias: Bias { qkv: false, attn_out: false, mlp: true, head: !tied },
        pos: Position::Rope(Rope {
            theta: 1e4,
            rot_dims: rotary_dim(config, head_dim),
            pairing: Pairing::Interleaved,
            scaling: RopeScaling::None,
        }),
        attn: Attention::default(),
        head: Head { tied },
        multipliers: Multipliers::default(),
        mup: None,
        experts: None,
        tokens: config.tokens(vocab),
        weights: Weights {
            names: "gptj".into(),
            ignore: vec![
                "transformer.h.*.attn.bias".into(),
                "transformer.h.*.attn.masked_bias".into(),
                "transformer.h.*.attn.embed_positions".into(),
            ],
            duplicates: if tied { vec!["lm_head.weight".into()] } else { Vec::new() },
            ..Weights::default()
        },
        dtype: config.dtypes(),
    }
}

/// 64 where the file is silent; null means the whole head.
fn rotary_dim(config: &Config<'_>, head_dim: u64) -> u64 {
    let default = if config.has("rotary_dim") { head_dim } else { 64 };
    config.count("rotary_dim", "pos.rot_dims").unwrap_or(default)
}
