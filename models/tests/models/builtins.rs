//! Every built-in model loads, builds in every mode, and has the published number of parameters.

use lapidary_models::{
    Dims, Graph, Mode, builtin, builtin_names, builtin_text, parse_model, to_toml, validate,
};

const MODES: [(Mode, Dims); 4] = [
    (Mode::Forward, Dims { batch: 2, seq: 128, cached: 0 }),
    (Mode::Prefill, Dims { batch: 2, seq: 128, cached: 0 }),
    (Mode::Decode, Dims { batch: 2, seq: 1, cached: 1000 }),
    (Mode::Decode, Dims { batch: 1, seq: 4, cached: 0 }),
];

#[test]
fn every_builtin_loads_builds_and_writes_back() {
    assert_eq!(builtin_names().count(), 25);
    for name in builtin_names() {
        let spec = builtin(name).unwrap();
        assert_eq!(spec.name, name);
        assert_eq!(validate(&spec), []);
        assert_eq!(parse_model(&to_toml(&spec), name).unwrap(), spec);
        for (mode, dims) in MODES {
            let graph = Graph::build(&spec, mode, dims).unwrap();
            let logits = graph.main().ty(graph.main().results[0]);
            let seq = if mode == Mode::Forward { dims.seq } else { 1 };
            assert_eq!(logits.shape, [dims.batch, seq, spec.vocab_rows()], "{name} {}", mode.name());
        }
        let header = builtin_text(name).unwrap().lines().next().unwrap();
        assert!(header.starts_with("# "), "{name} names its sources");
    }
}

/// Published counts: LLM360 paper and checkpoint index (Amber, CrystalCoder), safetensors metadata on the model
/// pages (Llama 2 and 3, Mistral, Pythia), the sum over the published tensors (GPT-J).
#[test]
fn parameter_counts_are_the_published_ones() {
    for (name, parameters) in [
        ("amber", 6_738_415_616),
        ("crystalcoder", 6_575_278_720),
        ("llama-2-7b", 6_738_415_616),
        ("llama-3-8b", 8_030_261_248),
        ("mistral-7b", 7_241_732_096),
        ("pythia-6.9b", 6_857_302_016),
        ("gpt-j-6b", 6_050_882_784),
    ] {
        assert_eq!(builtin(name).unwrap().parameters(), parameters, "{name}");
    }
}

/// Rounded sizes as their papers print them, in millions.
#[test]
fn parameter_counts_round_to_the_names() {
    for (name, millions, tolerance) in [
        ("k2-65b", 65_000.0, 0.01),
        ("jais-13b", 13_000.0, 0.02),
        ("btlm-3b-8k", 2_600.0, 0.02),
        ("cerebras-gpt-111m", 111.0, 0.005),
        ("cerebras-gpt-256m", 256.0, 0.005),
        ("cerebras-gpt-590m", 590.0, 0.005),
        ("cerebras-gpt-1.3b", 1_316.0, 0.005),
        ("cerebras-gpt-2.7b", 2_652.0, 0.005),
        ("cerebras-gpt-6.7b", 6_658.0, 0.005),
        ("cerebras-gpt-13b", 12_853.0, 0.005),
        ("gpt3-125m", 125.0, 0.01),
        ("gpt3-350m", 356.0, 0.01),
        ("gpt3-760m", 760.0, 0.01),
        ("gpt3-2.7b", 2_650.0, 0.01),
        ("gpt3-6.7b", 6_660.0, 0.01),
        ("gpt3-13b", 12_950.0, 0.01),
        ("gpt3-175b", 174_600.0, 0.005),
    ] {
        let found = builtin(name).unwrap().parameters() as f64 / 1e6;
        assert!((found / millions - 1.0).abs() < tolerance, "{name}: {found} million");
    }
}

#[test]
fn a_misspelt_name_is_answered_with_the_right_one() {
    let message = builtin("cristalcoder").unwrap_err().to_string();
    assert_eq!(
        message,
        "no built-in model is called \"cristalcoder\" (hint: did you mean \"crystalcoder\"?)"
    );
}
