//! GPT-2 and what grew out of it: Cerebras-GPT, BTLM, Jais, CrystalCoder.
//!
//! They differ in positions, in the MLP and in muP. muP comes under two sets of keys: `mup_embeddings_scale`,
//! `mup_output_alpha`, `mup_width_scale`, `mup_scale_qk_dot_by_d`, and the older `embeddings_scale`,
//! `width_scale` (which is alpha times width), `scale_qk_dot_by_d` of the first Jais. In SwiGLU the second
//! matrix, `c_fc2`, goes through the activation.

use super::config::Config;
use crate::spec::{
    Activation, Attention, AttentionScale, Bias, Block, GateHalf, Head, Mlp, ModelSpec, Multipliers, Mup,
    Norm, NormKind, Pairing, Position, QkvLayout, Rope, RopeScaling, WeightLayout, Weights,
};

/// Width of the proxy models that every published muP model of these families was tuned on.
const BASE_WIDTH: f64 = 256.0;

pub(super) fn gpt2(config: &Config<'_>) -> ModelSpec {
    model(config, "gpt2", 0.02)
}

pub(super) fn btlm(config: &Config<'_>) -> ModelSpec {
    model(config, "gpt2", 0.02)
}

pub(super) fn jais(config: &Config<'_>) -> ModelSpec {
    model(config, "gpt2", 0.02)
}

/// CrystalCoder's config does not carry its initialisation; 0.073 is in its training parameters (phase 1).
pub(super) fn crystalcoder(config: &Config<'_>) -> ModelSpec {
    model(config, "crystalcoder", 0.073)
}

fn model(config: &Config<'_>, names: &str, init_std: f64) -> ModelSpec {
    let vocab = config.need("vocab_size", "vocab");
    let d_model = config.need("n_embd", "d_model");
    let n_heads = config.need("n_head", "n_heads");
    let head_dim = config.head_dim(d_model, n_heads);
    let tied = config.flag("tie_word_embeddings", "head.tied").unwrap_or(true);
    let what = "attention scaled by the layer's number is not supported";
    config.only("scale_attn_by_inverse_layer_idx", false, what);
    let (multipliers, mup) = mup(config, d_model, init_std);
    let pos = position(config, head_dim);
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
        block: Block::default(),
        mlp: mlp(config),
        bias: Bias { qkv: true, attn_out: true, mlp: true, head: false },
        pos,
        attn: Attention { scale: attention_scale(config), window: None },
        head: Head { tied },
        multipliers,
        mup,
        experts: None,
        tokens: config.tokens(vocab),
        weights: Weights {
            names: names.into(),
            layout: WeightLayout::InOut,
            qkv: QkvLayout::Concat,
            ignore: buffers(&pos),
            duplicates: if tied { vec!["lm_head.weight".into()] } else { Vec::new() },
        },
        dtype: config.dtypes(),
    }
}

/// Masks, and ALiBi's slopes, that the published programs store beside the weights.
fn buffers(pos: &Position) -> Vec<String> {
    let mut names = vec!["transformer.h.*.attn.bias".into(), "transformer.h.*.attn.masked_bias".into()];
    if matches!(pos, Position::Alibi { .. }) {
        names.push("transformer.relative_pe.slopes".into());
    }
    names
}

fn mlp(config: &Config<'_>) -> Mlp {
    match config.text("activation_function", "mlp.act") {
        Some("swiglu") => Mlp { act: Activation::Silu, gated: true, gate: GateHalf::Second },
        _ => Mlp {
            act: config.activation("activation_function", "gelu_new"),
            gated: false,
            gate: GateHalf::First,
        },
    }
}

fn position(config: &Config<'_>, head_dim: u64) -> Position {
    let key = "position_embedding_type";
    match config.text(key, "pos.kind").unwrap_or("learned") {
        "learned" => Position::Learned,
        "alibi" => Position::Alibi { scaling: alibi_scaling(config) },
        "rotary" => Position::Rope(Rope {
            theta: 1e4,
            rot_dims: config.count("rotary_dim", "pos.rot_dims").unwrap_or(head_dim),
            pairing: Pairing::Interleaved,
            scaling: RopeScaling::None,
        }),
        other => {
            let message = format!("positions of the kind \"{other}\" are not supported");
            config.unsupported(key, &message, "supported are learned, alibi and rotary");
            Position::None
        }
    }
}

/// The published program divides the slopes by `factor`.
fn alibi_scaling(config: &Config<'_>) -> f64 {
    let s = config.section("alibi_scaling", "pos.scaling");
    if !s.is_present() {
        return 1.0;
    }
    if s.entry("train_seq_len").is_some() {
        let hint = "give a fixed factor instead";
        config.unsupported(
            "alibi_scaling.train_seq_len",
            "scaling by the length of the text is not supported",
            hint,
        );
        return 1.0;
    }
    config.note("alibi_scaling.factor", "pos.scaling");
    s.float("factor").map_or(1.0, |factor| 1.0 / factor)
}

fn attention_scale(config: &Config<'_>) -> AttentionScale {
    let by_d = config
        .flag("mup_scale_qk_dot_by_d", "attn.scale")
        .or_else(|| config.flag("scale_qk_dot_by_d", "attn.scale"))
        .unwrap_or(false);
    match config.flag("scale_attn_weights", "attn.scale").unwrap_or(true) {
        false => AttentionScale::Value(1.0),
        true if by_d => AttentionScale::HeadDimPower(-1.0),
        true => AttentionScale::HeadDimPower(-0.5),
    }
}

/// The proxy's width from a ratio of widths: the whole number that it can be taken for, or what it says.
pub(crate) fn base_width(d_model: u64, ratio: f64) -> f64 {
    let base = d_model as f64 * ratio;
    let whole = base.round();
    if (base - whole).abs() <= 1e-9 * base.abs() { whole } else { base }
}

fn mup(config: &Config<'_>, d_model: u64, default_std: f64) -> (Multipliers, Option<Mup>) {
    let embedding = config
        .float("mup_embeddings_scale", "multipliers.embedding")
        .or_else(|| config.float("embeddings_scale", "multipliers.embedding"));
    let alpha = config.float("mup_output_alpha", "multipliers.logits");
    let width = config.float("mup_width_scale", "multipliers.logits");
    let alpha_width = config.float("width_scale", "multipliers.logits");
    if [embedding, alpha, width, alpha_width].iter().all(Option::is_none) {
        return (Multipliers::default(), None);
    }
    let logits = alpha_width.unwrap_or(alpha.unwrap_or(1.0) * width.unwrap_or(1.0));
    let multipliers = Multipliers { embedding: embedding.unwrap_or(1.0), logits, residual: 1.0 };
    let base_width = width.map_or(BASE_WIDTH, |width| base_width(d_model, width));
    let init_std = config.float("initializer_range", "mup.init_std").unwrap_or(default_std);
    (multipliers, Some(Mup { base_width, base_ffn: None, init_std }))
}
