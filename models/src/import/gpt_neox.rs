//! GPT-NeoX and Pythia: parallel residual, partial half-split RoPE, queries, keys and values fused per head.

use super::config::Config;
use super::llama::rope;
use crate::spec::{
    Attention, Bias, Block, GateHalf, Head, Mlp, ModelSpec, Multipliers, Norm, NormKind, Position, QkvLayout,
    Residual, Weights,
};

pub(super) fn gpt_neox(config: &Config<'_>) -> ModelSpec {
    let vocab = config.need("vocab_size", "vocab");
    let d_model = config.need("hidden_size", "d_model");
    let n_heads = config.need("num_attention_heads", "n_heads");
    let head_dim = config.head_dim(d_model, n_heads);
    let parallel = config.flag("use_parallel_residual", "block.residual").unwrap_or(true);
    let attention_bias = config.flag("attention_bias", "bias.qkv").unwrap_or(true);
    let tied = config.flag("tie_word_embeddings", "head.tied").unwrap_or(false);
    ModelSpec {
        name: config.name(),
        vocab,
        vocab_padded_to: None,
        d_model,
        n_layers: config.need("num_hidden_layers", "n_layers"),
        n_heads,
        n_kv_heads: n_heads,
        head_dim,
        d_ff: config.need("intermediate_size", "d_ff"),
        max_seq: config.need("max_position_embeddings", "max_seq"),
        norm: Norm {
            kind: NormKind::Layer,
            eps: config.float("layer_norm_eps", "norm.eps").unwrap_or(1e-5),
            bias: true,
            final_norm: true,
        },
        block: Block {
            residual: if parallel { Residual::Parallel } else { Residual::Sequential },
            shared_norm: false,
        },
        mlp: Mlp { act: config.activation("hidden_act", "gelu"), gated: false, gate: GateHalf::First },
        bias: Bias { qkv: attention_bias, attn_out: attention_bias, mlp: true, head: false },
        pos: Position::Rope(rope(config, head_dim, 0.25)),
        attn: Attention::default(),
        head: Head { tied },
        multipliers: Multipliers::default(),
        mup: None,
        experts: None,
        tokens: config.tokens(vocab),
        weights: Weights {
            names: "gpt_neox".into(),
            qkv: QkvLayout::PerHead,
            ignore: vec![
                "gpt_neox.layers.*.attention.rotary_emb.inv_freq".into(),
                "gpt_neox.layers.*.attention.bias".into(),
                "gpt_neox.layers.*.attention.masked_bias".into(),
            ],
            duplicates: if tied { vec!["embed_out.weight".into()] } else { Vec::new() },
            ..Weights::default()
        },
        dtype: config.dtypes(),
    }
}
