//! What each family's `config.json` says of a model.

use super::Object;
use crate::dtype::DType;
use crate::import::base_width;
use crate::spec::{Activation, AttentionScale, ModelSpec, Position, Residual, Rope, RopeScaling};
use serde_json::{Value, json};

/// LLaMA, and Mistral where a window is set.
pub(super) fn llama(spec: &ModelSpec) -> Object {
    let (class, family) = match spec.attn.window {
        Some(_) => ("MistralForCausalLM", "mistral"),
        None => ("LlamaForCausalLM", "llama"),
    };
    let mut config = object(json!({
        "architectures": [class],
        "model_type": family,
        "vocab_size": spec.vocab_rows(),
        "hidden_size": spec.d_model,
        "intermediate_size": spec.d_ff,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.n_heads,
        "num_key_value_heads": spec.n_kv_heads,
        "head_dim": spec.head_dim,
        "hidden_act": activation(spec.mlp.act),
        "max_position_embeddings": spec.max_seq,
        "rms_norm_eps": spec.norm.eps,
        "attention_bias": spec.bias.qkv,
        "mlp_bias": spec.bias.mlp,
        "tie_word_embeddings": spec.head.tied,
    }));
    if family == "mistral" {
        config.insert("sliding_window".into(), json!(spec.attn.window));
    }
    rope(&mut config, spec, "partial_rotary_factor");
    ending(config, spec)
}

pub(super) fn gpt_neox(spec: &ModelSpec) -> Object {
    let mut config = object(json!({
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": spec.vocab_rows(),
        "hidden_size": spec.d_model,
        "intermediate_size": spec.d_ff,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.n_heads,
        "hidden_act": activation(spec.mlp.act),
        "max_position_embeddings": spec.max_seq,
        "layer_norm_eps": spec.norm.eps,
        "use_parallel_residual": spec.block.residual == Residual::Parallel,
        "attention_bias": spec.bias.qkv,
        "tie_word_embeddings": spec.head.tied,
    }));
    rope(&mut config, spec, "rotary_pct");
    ending(config, spec)
}

pub(super) fn gptj(spec: &ModelSpec) -> Object {
    let mut config = object(json!({
        "architectures": ["GPTJForCausalLM"],
        "model_type": "gptj",
        "vocab_size": spec.vocab_rows(),
        "n_embd": spec.d_model,
        "n_inner": spec.d_ff,
        "n_layer": spec.n_layers,
        "n_head": spec.n_heads,
        "n_positions": spec.max_seq,
        "activation_function": activation(spec.mlp.act),
        "layer_norm_epsilon": spec.norm.eps,
        "tie_word_embeddings": spec.head.tied,
    }));
    if let Position::Rope(rope) = spec.pos {
        config.insert("rotary_dim".into(), json!(rope.rot_dims));
    }
    ending(config, spec)
}

/// GPT-2, Cerebras-GPT, BTLM, Jais and CrystalCoder: told apart by their positions.
pub(super) fn gpt2(spec: &ModelSpec) -> Object {
    let (class, family) = match spec.pos {
        Position::Rope(_) => ("CrystalCoderLMHeadModel", "crystalcoder"),
        Position::Alibi { scaling: 1.0 } => ("JAISLMHeadModel", "jais"),
        Position::Alibi { .. } => ("BTLMLMHeadModel", "btlm"),
        Position::Learned | Position::None => ("GPT2LMHeadModel", "gpt2"),
    };
    let by_d = spec.attn.scale == AttentionScale::HeadDimPower(-1.0);
    let mut config = object(json!({
        "architectures": [class],
        "model_type": family,
        "vocab_size": spec.vocab_rows(),
        "n_embd": spec.d_model,
        "n_inner": spec.d_ff,
        "n_layer": spec.n_layers,
        "n_head": spec.n_heads,
        "n_positions": spec.max_seq,
        "activation_function": if spec.mlp.gated { "swiglu" } else { activation(spec.mlp.act) },
        "layer_norm_epsilon": spec.norm.eps,
        "scale_attn_weights": spec.attn.scale != AttentionScale::Value(1.0),
        "tie_word_embeddings": spec.head.tied,
    }));
    match spec.pos {
        Position::Rope(rope) => config.extend(object(json!({
            "position_embedding_type": "rotary", "rotary_dim": rope.rot_dims,
        }))),
        Position::Alibi { scaling } => {
            config.insert("position_embedding_type".into(), json!("alibi"));
            if scaling != 1.0 {
                let factor = written(1.0 / scaling, |factor| 1.0 / factor == scaling);
                let factor = factor.unwrap_or(1.0 / scaling);
                config.insert("alibi_scaling".into(), json!({"mode": "linear", "factor": factor}));
            }
        }
        Position::Learned | Position::None => {}
    }
    mup(&mut config, spec, by_d);
    ending(config, spec)
}

fn mup(config: &mut Object, spec: &ModelSpec, by_d: bool) {
    let Some(mup) = spec.mup else { return };
    config.extend(object(json!({
        "mup_scale_qk_dot_by_d": by_d,
        "mup_embeddings_scale": spec.multipliers.embedding,
        "initializer_range": mup.init_std,
    })));
    let exact = mup.base_width / spec.d_model as f64;
    let width = written(exact, |width| base_width(spec.d_model, width) == mup.base_width).unwrap_or(exact);
    let logits = spec.multipliers.logits;
    config.extend(match written(logits / width, |alpha| alpha * width == logits) {
        Some(alpha) => object(json!({"mup_output_alpha": alpha, "mup_width_scale": width})),
        // The older key is the product itself, and means the base width of every published model.
        None => object(json!({"width_scale": logits})),
    });
}

/// A number of which `reads` holds: `exact`, a rounding step beside it where that is needed, or a short one where
/// that does.
fn written(exact: f64, reads: impl Fn(f64) -> bool) -> Option<f64> {
    let short = (exact * 1e6).round() / 1e6;
    let near = [short, exact, exact.next_up(), exact.next_down()];
    near.into_iter().find(|candidate| reads(*candidate))
}

fn rope(config: &mut Object, spec: &ModelSpec, share_key: &str) {
    let Position::Rope(rope) = spec.pos else { return };
    config.insert("rope_theta".into(), json!(rope.theta));
    if rope.rot_dims != spec.head_dim || share_key == "rotary_pct" {
        config.insert(share_key.into(), json!(share(&rope, spec.head_dim)));
    }
    match rope.scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => {
            config.insert("rope_scaling".into(), json!({"rope_type": "linear", "factor": factor}));
        }
        RopeScaling::Llama3 { factor, low_freq, high_freq, original_max } => {
            let scaling = json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq,
                "high_freq_factor": high_freq, "original_max_position_embeddings": original_max,
            });
            config.insert("rope_scaling".into(), scaling);
        }
    }
}

/// The rotated share of a head, such that the reader's truncation gives the dimensions back.
fn share(rope: &Rope, head_dim: u64) -> f64 {
    let share = rope.rot_dims as f64 / head_dim as f64;
    match (head_dim as f64 * share) as u64 == rope.rot_dims {
        true => share,
        false => share.next_up(),
    }
}

/// Special tokens and the element type, which every family writes alike.
fn ending(mut config: Object, spec: &ModelSpec) -> Object {
    let tokens = &spec.tokens;
    let ids = [
        ("bos_token_id", tokens.bos),
        ("eos_token_id", tokens.eos),
        ("pad_token_id", tokens.pad),
        ("unk_token_id", tokens.unk),
    ];
    let ids = ids.into_iter().filter_map(|(key, id)| Some((key.to_string(), json!(id?))));
    config.extend(ids);
    config.insert("torch_dtype".into(), json!(dtype(spec.dtype.compute)));
    config
}

fn activation(activation: Activation) -> &'static str {
    match activation {
        Activation::Silu => "silu",
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_new",
        Activation::Relu => "relu",
        Activation::Relu2 => "relu2",
    }
}

/// The names of PyTorch; weights are never whole numbers.
fn dtype(dtype: DType) -> &'static str {
    match dtype {
        DType::Bf16 => "bfloat16",
        DType::F16 => "float16",
        DType::F32 | DType::I32 => "float32",
    }
}

fn object(value: Value) -> Object {
    match value {
        Value::Object(object) => object,
        _ => Object::new(),
    }
}
