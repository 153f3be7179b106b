//! LLaMA and what has its form: Amber, K2, Llama 2 and 3, Mistral.

use super::config::Config;
use crate::fault::FaultKind;
use crate::read::Section;
use crate::spec::{
    Attention, Bias, Block, GateHalf, Head, Mlp, ModelSpec, Multipliers, Norm, NormKind, Pairing, Position,
    Rope, RopeScaling, Weights,
};

pub(super) fn llama(config: &Config<'_>) -> ModelSpec {
    model(config, None)
}

/// Mistral's class has its own defaults: 8 key and value heads and a window of 4096 where the file is silent.
pub(super) fn mistral(config: &Config<'_>) -> ModelSpec {
    let mut spec = model(config, Some(8));
    let silent = !config.has("sliding_window");
    let window = if silent { Some(4096) } else { config.count("sliding_window", "attn.window") };
    spec.attn.window = window.filter(|window| *window < spec.max_seq);
    if window.is_some() && spec.attn.window.is_none() && !silent {
        config.ignore("sliding_window", "reaches past the longest sequence");
    }
    spec
}

fn model(config: &Config<'_>, default_kv_heads: Option<u64>) -> ModelSpec {
    let vocab = config.need("vocab_size", "vocab");
    let d_model = config.need("hidden_size", "d_model");
    let n_heads = config.need("num_attention_heads", "n_heads");
    let head_dim = config.head_dim(d_model, n_heads);
    let n_kv_heads = config.count("num_key_value_heads", "n_kv_heads").or(default_kv_heads);
    let attention_bias = config.flag("attention_bias", "bias.qkv").unwrap_or(false);
    ModelSpec {
        name: config.name(),
        vocab,
        vocab_padded_to: None,
        d_model,
        n_layers: config.need("num_hidden_layers", "n_layers"),
        n_heads,
        n_kv_heads: n_kv_heads.unwrap_or(n_heads),
        head_dim,
        d_ff: config.need("intermediate_size", "d_ff"),
        max_seq: config.need("max_position_embeddings", "max_seq"),
        norm: Norm {
            kind: NormKind::Rms,
            eps: config.float("rms_norm_eps", "norm.eps").unwrap_or(1e-6),
            bias: false,
            final_norm: true,
        },
        block: Block::default(),
        mlp: Mlp { act: config.activation("hidden_act", "silu"), gated: true, gate: GateHalf::First },
        bias: Bias {
            qkv: attention_bias,
            attn_out: attention_bias,
            mlp: config.flag("mlp_bias", "bias.mlp").unwrap_or(false),
            head: false,
        },
        pos: Position::Rope(rope(config, head_dim, 1.0)),
        attn: Attention::default(),
        head: Head { tied: config.flag("tie_word_embeddings", "head.tied").unwrap_or(false) },
        multipliers: Multipliers::default(),
        mup: None,
        experts: None,
        tokens: config.tokens(vocab),
        weights: Weights {
            names: "llama".into(),
            ignore: vec!["*rotary_emb.inv_freq".into()],
            duplicates: tied_duplicate(config, "lm_head.weight"),
            ..Weights::default()
        },
        dtype: config.dtypes(),
    }
}

fn tied_duplicate(config: &Config<'_>, name: &str) -> Vec<String> {
    let tied = config.flag("tie_word_embeddings", "head.tied") == Some(true);
    if tied { vec![name.to_string()] } else { Vec::new() }
}

/// Half-split RoPE: base, rotated share and scaling under the old keys and the newer `rope_parameters`.
pub(super) fn rope(config: &Config<'_>, head_dim: u64, default_share: f64) -> Rope {
    let newer = config.section("rope_parameters", "pos");
    let theta = |key: &'static str| {
        let value = newer.float(key)?;
        config.note(&newer.path(key), "pos.theta");
        Some(value)
    };
    let base = theta("rope_theta")
        .or_else(|| config.float("rope_theta", "pos.theta"))
        .or_else(|| config.float("rotary_emb_base", "pos.theta"))
        .unwrap_or(1e4);
    let partial = newer.float("partial_rotary_factor");
    if partial.is_some() {
        config.note(&newer.path("partial_rotary_factor"), "pos.rot_dims");
    }
    let share = partial
        .or_else(|| config.float("partial_rotary_factor", "pos.rot_dims"))
        .or_else(|| config.float("rotary_pct", "pos.rot_dims"))
        .unwrap_or(default_share);
    let older = config.section("rope_scaling", "pos.scaling");
    let scaling = match older.is_present() {
        true => rope_scaling(config, &older, Silence::IsAFault),
        false => rope_scaling(config, &newer, Silence::MeansNone),
    };
    Rope { theta: base, rot_dims: rotated(config, head_dim, share), pairing: Pairing::Half, scaling }
}

/// Published code truncates the product.
fn rotated(config: &Config<'_>, head_dim: u64, share: f64) -> u64 {
    if share > 0.0 && share <= 1.0 {
        return (head_dim as f64 * share) as u64;
    }
    let message = format!("expected a share above 0 and at most 1, found {share}");
    let key = if config.has("rotary_pct") { "rotary_pct" } else { "partial_rotary_factor" };
    config.fault(key, FaultKind::OutOfRange, message, None);
    head_dim
}

/// What an object without a type says.
#[derive(PartialEq)]
enum Silence {
    /// `rope_parameters` also holds the base, and `rope_scaling` may be absent.
    MeansNone,
    IsAFault,
}

fn rope_scaling(config: &Config<'_>, s: &Section<'_>, silence: Silence) -> RopeScaling {
    let note = |key: &'static str, to| config.note(&s.path(key), to);
    let key = if s.entry("rope_type").is_some() { "rope_type" } else { "type" };
    let kind = match s.text(key) {
        None if silence == Silence::MeansNone => return RopeScaling::None,
        kind => s.required("rope_type", kind, "default"),
    };
    note(key, "pos.scaling.kind");
    let number = |key: &'static str, to| {
        note(key, to);
        s.required(key, s.float(key), if to == "pos.scaling.high_freq" { 2.0 } else { 1.0 })
    };
    match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: number("factor", "pos.scaling.factor") },
        "llama3" => {
            let original = "original_max_position_embeddings";
            note(original, "pos.scaling.original_max");
            RopeScaling::Llama3 {
                factor: number("factor", "pos.scaling.factor"),
                low_freq: number("low_freq_factor", "pos.scaling.low_freq"),
                high_freq: number("high_freq_factor", "pos.scaling.high_freq"),
                original_max: s.required(original, s.count(original), 1),
            }
        }
        other => {
            let message = format!("RoPE scaling \"{other}\" is not supported");
            config.unsupported(&s.path(key), &message, "supported are default, linear and llama3");
            RopeScaling::None
        }
    }
}
