//! Laws over random valid specifications.

use lapidary_models::spec::{QkvLayout, WeightLayout, Weights};
use lapidary_models::testing::specs;
use lapidary_models::{Dims, Graph, Mode, ModelSpec, import_config, parse_model, to_toml, validate, weights};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Parameters counted from the specification alone, without a graph.
fn counted(spec: &ModelSpec) -> u64 {
    let (d, f, q, kv) = (spec.d_model, spec.d_ff, spec.q_width(), spec.kv_width());
    let when = |flag: bool, n: u64| if flag { n } else { 0 };
    let norm = d + when(spec.norm.bias, d);
    let attention = d * (q + 2 * kv) + q * d + when(spec.bias.qkv, q + 2 * kv) + when(spec.bias.attn_out, d);
    let inner = if spec.mlp.gated { 2 } else { 1 };
    let mlp = (inner + 1) * d * f + when(spec.bias.mlp, inner * f + d);
    let norms = if spec.block.shared_norm { norm } else { 2 * norm };
    let learned = spec.pos == lapidary_models::spec::Position::Learned;
    let head = when(!spec.head.tied, spec.vocab_rows() * d + when(spec.bias.head, spec.vocab_rows()));
    spec.n_layers * (attention + mlp + norms)
        + spec.vocab_rows() * d
        + when(learned, spec.max_seq * d)
        + when(spec.norm.final_norm, norm)
        + head
}

const CONFIGS: [&str; 4] = [
    include_str!("../data/crystal-tiny.json"),
    include_str!("../data/llama32-tiny.json"),
    include_str!("../data/pythia-tiny.json"),
    include_str!("../data/jais-13b.json"),
];

/// Small, at the limits, or anything.
fn any_size() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 1u64..200, 1 => (0u32..28).prop_map(|bits| 1 << bits), 1 => any::<u64>(), 1 => Just(0)]
}

/// A naming scheme, an order of axes and a form of the query, key and value projections.
fn forms() -> impl Strategy<Value = (&'static str, WeightLayout, QkvLayout)> {
    let names = proptest::sample::select(weights::scheme_names());
    let layouts = proptest::sample::select(vec![WeightLayout::OutIn, WeightLayout::InOut]);
    (names, layouts, proptest::sample::select(vec![QkvLayout::Split, QkvLayout::Concat, QkvLayout::PerHead]))
}

fn formed(spec: ModelSpec, (names, layout, qkv): (&str, WeightLayout, QkvLayout)) -> ModelSpec {
    let per_head = qkv == QkvLayout::PerHead;
    let n_kv_heads = if per_head { spec.n_heads } else { spec.n_kv_heads };
    ModelSpec {
        n_kv_heads,
        weights: Weights { names: names.into(), layout, qkv, ..Weights::default() },
        ..spec
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_back_equal(spec in specs()) {
        prop_assert_eq!(validate(&spec), []);
        prop_assert_eq!(parse_model(&to_toml(&spec), "m.toml").unwrap(), spec);
    }

    #[test]
    fn serde_reads_what_it_writes(spec in specs()) {
        let json = serde_json::to_string(&spec).unwrap();
        prop_assert_eq!(serde_json::from_str::<ModelSpec>(&json).unwrap(), spec);
    }

    #[test]
    fn every_mode_builds_and_counts_the_same_parameters(spec in specs(), batch in 1u64..4, seq in 1u64..6) {
        for (mode, cached) in [(Mode::Forward, 0), (Mode::Prefill, 0), (Mode::Decode, 5)] {
            let graph = Graph::build(&spec, mode, Dims { batch, seq, cached }).unwrap();
            prop_assert_eq!(graph.parameters(), counted(&spec));
        }
    }

    #[test]
    fn more_tokens_are_never_less_work(spec in specs(), batch in 1u64..4, seq in 1u64..6) {
        let work = |batch, seq| Graph::build(&spec, Mode::Forward, Dims { batch, seq, cached: 0 }).unwrap().work();
        let (small, more, longer) = (work(batch, seq), work(batch + 1, seq), work(batch, seq + 1));
        prop_assert!(small.flops() < more.flops() && small.flops() < longer.flops());
        prop_assert!(small.bytes() < more.bytes() && small.bytes() < longer.bytes());
        prop_assert_eq!(small.matmul_flops % batch, 0);
        prop_assert_eq!(more.matmul_flops, small.matmul_flops / batch * (batch + 1));
    }

    #[test]
    fn every_parameter_has_one_source(spec in specs()) {
        let sources = weights::sources(&spec).unwrap();
        let elements: u64 = sources.iter().map(|source| source.shape.iter().product::<u64>()).sum();
        prop_assert_eq!(elements, spec.parameters());
    }

    /// Values placed into published tensors come back, and together they fill every published element once.
    #[test]
    fn published_forms_hold_every_value_once(spec in specs(), form in forms()) {
        let spec = formed(spec, form);
        let Ok(sources) = weights::sources(&spec) else { return Ok(()) };
        let mut published: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        let mut next = 1;
        for source in &sources {
            let size: u64 = source.published_shape.iter().product();
            let tensor = published.entry(&source.published).or_insert_with(|| vec![0; size as usize]);
            let values: Vec<u64> = (0..source.shape.iter().product::<u64>()).map(|i| next + i).collect();
            next += values.len() as u64;
            source.place(&values, tensor).unwrap();
            prop_assert_eq!(source.extract(tensor).unwrap(), values);
        }
        let mut all: Vec<u64> = published.into_values().flatten().collect();
        all.sort_unstable();
        prop_assert!(all.iter().copied().eq(1..next));
    }

    /// Any numbers at all are judged without overflow, and what is judged sound builds.
    #[test]
    fn no_sizes_make_the_rules_or_the_graph_panic(spec in specs(), sizes in proptest::array::uniform9(any_size())) {
        let [vocab, d_model, n_layers, n_heads, n_kv_heads, head_dim, d_ff, max_seq, batch] = sizes;
        let spec = ModelSpec { vocab, d_model, n_layers, n_heads, n_kv_heads, head_dim, d_ff, max_seq, ..spec };
        let sound = validate(&spec).is_empty();
        let built = Graph::build(&spec, Mode::Decode, Dims { batch, seq: 1, cached: max_seq.saturating_sub(1) });
        if let Ok(graph) = &built {
            let _ = (graph.work(), graph.parameters());
        }
        prop_assert!(!sound || batch > 4 || batch == 0 || built.is_ok(), "{:?}", built.err());
        let _ = to_toml(&spec);
    }

    /// A published config with a piece replaced is read or refused, and never panics.
    #[test]
    fn no_damaged_config_makes_the_importer_panic(which in 0usize..4, at in 0usize..1200, len in 0usize..30, with in "[ -~]{0,12}") {
        let mut text = CONFIGS[which].to_string();
        let at = at.min(text.len());
        text.replace_range(at..(at + len).min(text.len()), &with);
        if let Ok(import) = import_config(&text, "config.json") {
            prop_assert_eq!(validate(&import.spec), []);
        }
    }

    #[test]
    fn no_text_makes_the_readers_panic(text in "[ -~\n]{0,200}") {
        let _ = parse_model(&text, "m.toml");
        let _ = import_config(&text, "config.json");
    }

    /// A valid text with a piece replaced by another piece is read or refused, and never panics.
    #[test]
    fn no_damaged_model_makes_the_reader_panic(spec in specs(), at in 0usize..900, len in 0usize..40, with in "[ -~]{0,12}") {
        let mut text = to_toml(&spec);
        let at = at.min(text.len());
        text.replace_range(at..(at + len).min(text.len()), &with);
        if let Ok(spec) = parse_model(&text, "m.toml") {
            prop_assert_eq!(validate(&spec), []);
            let built = Graph::build(&spec, Mode::Forward, Dims { batch: 1, seq: 1, cached: 0 });
            prop_assert!(built.is_ok(), "{:?}", built);
        }
    }
}
