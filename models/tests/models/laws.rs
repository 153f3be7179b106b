//! Laws over random valid specifications.

use lapidary_models::testing::specs;
use lapidary_models::{Dims, Graph, Mode, ModelSpec, import_config, parse_model, to_toml, validate, weights};
use proptest::prelude::*;

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
