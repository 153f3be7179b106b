//! Models for the planner's tests, written out so that the tests need no data files.

use lapidary_models::ModelSpec;

/// LLM360's Amber: the shape of LLaMA 7B.
pub fn amber() -> ModelSpec {
    spec(
        r#"{"name": "amber", "vocab": 32000, "d_model": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 32,
            "head_dim": 128, "d_ff": 11008, "max_seq": 2048, "norm": {"kind": "rms", "eps": 1e-6},
            "mlp": {"act": "silu", "gated": true},
            "pos": {"kind": "rope", "theta": 10000.0, "rot_dims": 128, "pairing": "half"}}"#,
    )
}

/// LLM360's CrystalCoder: 10922 MLP features, biases, a tied head.
pub fn crystalcoder() -> ModelSpec {
    spec(
        r#"{"name": "crystalcoder", "vocab": 32032, "d_model": 4096, "n_layers": 32, "n_heads": 32,
            "n_kv_heads": 32, "head_dim": 128, "d_ff": 10922, "max_seq": 2048,
            "norm": {"kind": "layer", "eps": 1e-5, "bias": true}, "mlp": {"act": "silu", "gated": true},
            "bias": {"qkv": true, "attn_out": true, "mlp": true, "head": false},
            "pos": {"kind": "rope", "theta": 10000.0, "rot_dims": 32, "pairing": "interleaved"},
            "head": {"tied": true}}"#,
    )
}

/// GPT-3 of 175 B parameters; `heads` heads.
pub fn gpt3(heads: u64) -> ModelSpec {
    let head_dim = 12288 / heads;
    spec(&format!(
        r#"{{"name": "gpt3-175b", "vocab": 51200, "d_model": 12288, "n_layers": 96, "n_heads": {heads},
            "n_kv_heads": {heads}, "head_dim": {head_dim}, "d_ff": 49152, "max_seq": 2048,
            "norm": {{"kind": "layer", "eps": 1e-5, "bias": true}}, "mlp": {{"act": "gelu"}},
            "bias": {{"qkv": true, "attn_out": true, "mlp": true, "head": false}},
            "pos": {{"kind": "learned"}}, "head": {{"tied": true}}}}"#
    ))
}

fn spec(json: &str) -> ModelSpec {
    serde_json::from_str(json).expect("a test model is well formed")
}
