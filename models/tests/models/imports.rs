//! config.json: each family's meaning, the report, and what is refused.

use lapidary_models::spec::{
    Activation, AttentionScale, GateHalf, Multipliers, NormKind, Pairing, Position, Residual, RopeScaling,
};
use lapidary_models::{DType, FaultKind, Import, ImportStatus, ModelSpec, builtin, import_config};

const AMBER: &str = include_str!("../data/amber-tiny.json");
const CRYSTAL: &str = include_str!("../data/crystal-tiny.json");
const LLAMA32: &str = include_str!("../data/llama32-tiny.json");
const PYTHIA: &str = include_str!("../data/pythia-tiny.json");
const JAIS: &str = include_str!("../data/jais-13b.json");
const BTLM: &str = include_str!("../data/btlm-3b-8k.json");
const GPTJ: &str = include_str!("../data/gpt-j-6b.json");

fn import(text: &str) -> Import {
    import_config(text, "config.json").unwrap_or_else(|faults| panic!("{faults}"))
}

fn refused(text: &str) -> (FaultKind, String) {
    let faults = import_config(text, "config.json").unwrap_err();
    assert_eq!(faults.faults.len(), 1, "{faults}");
    (faults.faults[0].kind, faults.to_string())
}

#[test]
fn amber_is_a_llama() {
    let Import { spec, report } = import(AMBER);
    assert_eq!((spec.vocab, spec.d_model, spec.d_ff, spec.n_layers), (256, 64, 172, 3));
    assert_eq!((spec.norm.kind, spec.norm.eps), (NormKind::Rms, 1e-6));
    assert!(matches!(spec.pos, Position::Rope(rope) if rope.rot_dims == 16 && rope.pairing == Pairing::Half));
    assert_eq!(spec.dtype.compute, DType::F32);
    assert!(!spec.head.tied);
    assert_eq!(report.unknown().count(), 0, "{report}");
}

#[test]
fn grouped_heads_explicit_width_and_llama3_scaling() {
    let spec = import(LLAMA32).spec;
    assert_eq!((spec.n_heads, spec.n_kv_heads, spec.head_dim), (4, 1, 24));
    assert!(spec.head.tied);
    let scaling = RopeScaling::Llama3 { factor: 32.0, low_freq: 1.0, high_freq: 4.0, original_max: 64 };
    assert!(matches!(spec.pos, Position::Rope(rope) if rope.scaling == scaling && rope.theta == 5e5));
}

#[test]
fn scaling_is_found_under_every_key_it_was_published_with() {
    let old = LLAMA32.replace("\"rope_type\"", "\"type\"");
    let newer = LLAMA32
        .replace("\"rope_scaling\": {", "\"rope_parameters\": { \"rope_theta\": 5e5,")
        .replace("\"rope_theta\": 500000.0,\n", "");
    assert_eq!(import(&old).spec, import(LLAMA32).spec);
    let newer = import(&newer);
    assert_eq!(newer.spec, import(LLAMA32).spec);
    let factor = newer.report.entries.iter().find(|entry| entry.key == "rope_parameters.factor").unwrap();
    assert_eq!(factor.status, ImportStatus::Mapped { to: "pos.scaling.factor".into() });
}

#[test]
fn pythia_rotates_a_quarter_in_a_parallel_block() {
    let spec = import(PYTHIA).spec;
    assert_eq!(spec.block.residual, Residual::Parallel);
    assert!(!spec.block.shared_norm && spec.bias.qkv && spec.bias.mlp && !spec.bias.head);
    assert_eq!(spec.mlp.act, Activation::Gelu);
    assert!(matches!(spec.pos, Position::Rope(rope) if rope.rot_dims == 4 && rope.pairing == Pairing::Half));
}

/// A ratio of widths need not divide the width: what it says is kept, and written out again.
#[test]
fn a_base_width_need_not_be_whole() {
    let base = |ratio: &str| {
        let text = CRYSTAL
            .replace("\"n_embd\": 64", "\"n_embd\": 66")
            .replace("\"mup_width_scale\": 0.25", &format!("\"mup_width_scale\": {ratio}"));
        import(&text).spec.mup.map(|mup| mup.base_width)
    };
    assert_eq!(base("0.125"), Some(8.25));
    assert_eq!(base("0.3333333333333333"), Some(22.0));
}

#[test]
fn crystalcoder_gates_with_the_second_half_and_divides_by_d() {
    let Import { spec, report } = import(CRYSTAL);
    assert_eq!((spec.mlp.gated, spec.mlp.gate), (true, GateHalf::Second));
    assert_eq!(spec.attn.scale, AttentionScale::HeadDimPower(-1.0));
    let interleaved =
        |rope: lapidary_models::spec::Rope| rope.rot_dims == 8 && rope.pairing == Pairing::Interleaved;
    assert!(matches!(spec.pos, Position::Rope(rope) if interleaved(rope)));
    assert_eq!((spec.multipliers.embedding, spec.multipliers.logits), (14.6, 2.22 * 0.25));
    assert_eq!(spec.mup.map(|mup| (mup.base_width, mup.init_std)), Some((16.0, 0.073)));
    assert!(spec.head.tied);
    assert_eq!(report.unknown().count(), 0, "{report}");
    // meta.json of the stored tensors counts the same parameters.
    assert_eq!(spec.parameters(), 168_380);
}

/// The published files say what the built-in ones say, but for the name, the element type, and what only the
/// tokenizer's files know.
#[test]
fn published_configs_agree_with_the_built_in_models() {
    for (text, name) in [
        (include_str!("../data/amber.json"), "amber"),
        (include_str!("../data/crystalcoder.json"), "crystalcoder"),
        (include_str!("../data/llama-3-8b.json"), "llama-3-8b"),
        (include_str!("../data/mistral-7b.json"), "mistral-7b"),
        (include_str!("../data/pythia-6.9b.json"), "pythia-6.9b"),
        (JAIS, "jais-13b"),
        (BTLM, "btlm-3b-8k"),
        (GPTJ, "gpt-j-6b"),
    ] {
        let import = import(text);
        assert_eq!(import.report.unknown().count(), 0, "{}", import.report);
        let (found, wanted) = (import.spec, builtin(name).unwrap());
        assert_eq!((found.tokens.bos, found.tokens.eos), (wanted.tokens.bos, wanted.tokens.eos), "{name}");
        assert_eq!(found.vocab_rows(), wanted.vocab_rows());
        // 0.111 and 0.11100000000000002 are the same published factor.
        assert!((found.multipliers.logits / wanted.multipliers.logits - 1.0).abs() < 1e-12);
        let same = ModelSpec {
            name: wanted.name.clone(),
            dtype: wanted.dtype,
            tokens: wanted.tokens.clone(),
            vocab: wanted.vocab,
            vocab_padded_to: wanted.vocab_padded_to,
            multipliers: Multipliers { logits: wanted.multipliers.logits, ..found.multipliers },
            ..found
        };
        assert_eq!(same, wanted);
    }
}

#[test]
fn the_report_tells_the_fate_of_every_key() {
    let report = import(LLAMA32).report.to_string();
    let lines: Vec<&str> = report.lines().map(str::trim_end).collect();
    assert_eq!(
        lines,
        [
            "config.json of the llama family",
            "  architectures                    ignored: the model type decides",
            "  model_type                       -> weights.names",
            "  vocab_size                       -> vocab",
            "  hidden_size                      -> d_model",
            "  intermediate_size                -> d_ff",
            "  num_hidden_layers                -> n_layers",
            "  num_attention_heads              -> n_heads",
            "  num_key_value_heads              -> n_kv_heads",
            "  hidden_act                       -> mlp.act",
            "  max_position_embeddings          -> max_seq",
            "  rms_norm_eps                     -> norm.eps",
            "  rope_theta                       -> pos.theta",
            "  rope_scaling.rope_type           -> pos.scaling.kind",
            "  rope_scaling.factor              -> pos.scaling.factor",
            "  rope_scaling.low_freq_factor     -> pos.scaling.low_freq",
            "  rope_scaling.high_freq_factor    -> pos.scaling.high_freq",
            "  rope_scaling.original_max_position_embeddings -> pos.scaling.original_max",
            "  tie_word_embeddings              -> head.tied",
            "  attention_bias                   -> bias.qkv",
            "  mlp_bias                         -> bias.mlp",
            "  bos_token_id                     -> tokens.bos",
            "  eos_token_id                     -> tokens.eos",
            "  torch_dtype                      -> dtype.compute",
            "  head_dim                         -> head_dim",
        ]
    );
}

#[test]
fn cerebras_gpt_with_mup_keys_keeps_learned_positions() {
    let spec = import(include_str!("../data/cerebras-gpt-590m-mup.json")).spec;
    assert_eq!(spec.pos, Position::Learned);
    assert_eq!((spec.multipliers.embedding, spec.mup.map(|mup| mup.base_width)), (10.0, Some(256.0)));
    assert_eq!((spec.mlp.act, spec.mlp.gated), (Activation::Gelu, false));
    assert_eq!(spec.parameters(), builtin("cerebras-gpt-590m").unwrap().parameters());
}

#[test]
fn plain_gpt2_has_its_published_size() {
    let text = r#"{"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12,
        "n_positions": 1024, "n_ctx": 1024, "eos_token_id": 50256}"#;
    let spec = import(text).spec;
    assert_eq!(spec.parameters(), 124_439_808);
    assert_eq!((spec.mlp.act, spec.d_ff, spec.head.tied), (Activation::GeluTanh, 3072, true));
    assert!(spec.mup.is_none());
}

#[test]
fn mistral_has_a_window_unless_the_file_says_null() {
    let text = AMBER
        .replace("\"llama\"", "\"mistral\"")
        .replace("\"max_position_embeddings\": 128", "\"max_position_embeddings\": 8192");
    assert_eq!(import(&text).spec.attn.window, Some(4096));
    let null = text.replace("\"vocab_size\"", "\"sliding_window\": null, \"vocab_size\"");
    assert_eq!(import(&null).spec.attn.window, None);
    let eight = text.replace("\"vocab_size\"", "\"sliding_window\": 8, \"vocab_size\"");
    assert_eq!(import(&eight).spec.attn.window, Some(8));
}

#[test]
fn alibi_is_stretched_by_its_factor() {
    let text =
        BTLM.replace("\"alibi_scaling\": null", "\"alibi_scaling\": {\"type\": \"linear\", \"factor\": 4.0}");
    assert_eq!(import(&text).spec.pos, Position::Alibi { scaling: 0.25 });
}

#[test]
fn what_cannot_be_expressed_is_refused_with_its_place() {
    let yarn = LLAMA32.replace("\"rope_type\": \"llama3\"", "\"rope_type\": \"yarn\"");
    let (kind, message) = refused(&yarn);
    assert_eq!(kind, FaultKind::Unsupported);
    assert!(
        message.starts_with("config.json:17:16: rope_scaling.rope_type: RoPE scaling \"yarn\""),
        "{message}"
    );

    let (kind, message) = refused("{\"model_type\": \"bert\"}");
    assert_eq!(kind, FaultKind::Unsupported);
    assert!(
        message.contains("known are btlm, crystalcoder, gpt2, gpt_neox, gptj, jais, llama, mistral"),
        "{message}"
    );

    let (kind, message) = refused(&LLAMA32.replace("  \"rope_type\": \"llama3\",\n", ""));
    assert_eq!(kind, FaultKind::MissingKey);
    assert!(message.contains("rope_scaling.rope_type: this key is missing"), "{message}");

    let by_layer = BTLM.replace("inverse_layer_idx\": false", "inverse_layer_idx\": true");
    assert_eq!(refused(&by_layer).0, FaultKind::Unsupported);
    let quantised = AMBER.replace("\"vocab_size\"", "\"quantization_config\": {\"bits\": 4}, \"vocab_size\"");
    assert_eq!(refused(&quantised).0, FaultKind::Unsupported);
    let dynamic = BTLM.replace("\"alibi_scaling\": null", "\"alibi_scaling\": {\"train_seq_len\": 2048}");
    assert_eq!(refused(&dynamic).0, FaultKind::Unsupported);
}

#[test]
fn rules_are_shown_at_the_published_keys() {
    let (kind, message) = refused(
        &AMBER
            .replace("\"num_attention_heads\": 4", "\"num_attention_heads\": 5")
            .replace("\"num_key_value_heads\": 4,", ""),
    );
    assert_eq!(kind, FaultKind::Rule);
    assert!(
        message.starts_with("config.json:10:25: num_attention_heads: a width of 64 does not divide"),
        "{message}"
    );
    let (kind, message) = refused(&AMBER.replace("\"hidden_size\": 64", "\"hidden_size\": 1000000000000"));
    assert_eq!(kind, FaultKind::OutOfRange);
    assert!(message.contains("hidden_size: expected 1 to 1048576"), "{message}");
}

#[test]
fn missing_and_mistyped_keys_come_together() {
    let faults = import_config("{\"model_type\": \"llama\", \"vocab_size\": \"many\"}", "c").unwrap_err();
    let keys: Vec<&str> = faults.faults.iter().map(|fault| fault.key.as_str()).collect();
    assert!(
        keys.contains(&"vocab_size") && keys.contains(&"hidden_size") && keys.contains(&"num_hidden_layers")
    );
    assert!(import_config("", "c").is_err() && import_config("[]", "c").is_err());
    assert_eq!(
        refused("{}").1,
        "config.json:1:1: model_type: this key is missing (hint: add `model_type = ...`)"
    );
}

#[test]
fn an_empty_model_type_is_told_too() {
    let faults = import_config("{\"model_type\": \"\"}", "c").unwrap_err();
    assert!(faults.to_string().contains("no reader for the model type \"\""), "{faults}");
    let faults = import_config("{\"model_type\": 3}", "c").unwrap_err();
    assert_eq!(faults.faults.len(), 1, "{faults}");
}

#[test]
fn an_unknown_key_is_reported_not_refused() {
    let import = import(&AMBER.replace("\"vocab_size\"", "\"brand_new\": 1, \"vocab_size\""));
    let unknown: Vec<&str> = import.report.unknown().map(|entry| entry.key.as_str()).collect();
    assert_eq!(unknown, ["brand_new"]);
}
