//! What a rank computes and keeps: kernels as the compiler fuses them, flops and bytes by hand.

use crate::support;
use lapidary_models::{Dims, Graph, Mode, ModelSpec};
use lapidary_planner::backward::kept;
use lapidary_planner::kernels::{Anchor, Kernel, kernels};
use lapidary_planner::rank::{RankWork, rank_spec};

const DIMS: Dims = Dims { batch: 2, seq: 2048, cached: 0 };

fn layer(spec: &ModelSpec) -> (Graph, Vec<Kernel>) {
    let graph = Graph::build(spec, Mode::Forward, DIMS).unwrap();
    let list = kernels(&graph, graph.layer());
    (graph, list)
}

#[test]
fn a_layer_of_amber_is_seven_kernels() {
    let (graph, list) = layer(&support::amber());
    let names: Vec<_> = list.iter().map(|kernel| (kernel.name.as_str(), kernel.anchor)).collect();
    assert_eq!(
        names,
        [
            ("attn_norm", Anchor::Row),
            ("attn.q", Anchor::Matmul),
            ("attn.scores", Anchor::Attention),
            ("attn.out", Anchor::Matmul),
            ("mlp_norm", Anchor::Row),
            ("mlp.gate", Anchor::Matmul),
            ("mlp.down", Anchor::Matmul),
        ]
    );
    let tokens = 2.0 * 2048.0;
    let qkv = &list[1];
    assert_eq!(qkv.flops, 2.0 * tokens * 4096.0 * 3.0 * 4096.0);
    assert_eq!(qkv.bytes, 2.0 * (tokens * 4096.0 * 4.0 + 3.0 * 4096.0 * 4096.0));
    // Causal attention computes (S + 1) / 2S of the scores, and no score leaves the kernel.
    let attention = &list[2];
    assert_eq!(attention.flops, 4.0 * tokens * 2048.0 * 4096.0 * 2049.0 / 4096.0);
    assert_eq!(attention.bytes, 2.0 * tokens * 4096.0 * 4.0);
    // Gate and up in one matmul with SwiGLU behind: only the product leaves.
    assert_eq!(list[5].bytes, 2.0 * (tokens * (4096.0 + 11008.0) + 2.0 * 4096.0 * 11008.0));
    assert_eq!(list[5].epilogue_gradient_bytes, 2.0 * 5.0 * tokens * 11008.0);
    // The residual joins the output projection: read once, and once the inner value.
    assert_eq!(list[3].bytes, 2.0 * (tokens * 4096.0 * 3.0 + 4096.0 * 4096.0));
    let fused: f64 = list.iter().map(|kernel| kernel.bytes).sum();
    assert!(fused < 0.5 * graph.layer().work(&graph).bytes() as f64);
}

#[test]
fn a_gpt_layer_keeps_32_bytes_a_token_and_feature() {
    let spec = support::gpt3();
    let (graph, list) = layer(&spec);
    let kept = kept(&graph, graph.layer(), &list);
    let tokens = DIMS.tokens() as f64;
    let statistics = tokens * 96.0 * 4.0;
    assert_eq!(kept.wide + kept.split, 32.0 * tokens * 12288.0 + statistics);
    assert_eq!(kept.wide, 8.0 * tokens * 12288.0);
    assert_eq!(kept.wide_cheap, 4.0 * tokens * 12288.0);
    assert_eq!(kept.split_cheap, 8.0 * tokens * 12288.0);
    assert_eq!(kept.input, 2.0 * tokens * 12288.0);
}

#[test]
fn ranks_together_do_the_work_of_the_whole() {
    let spec = support::amber();
    let whole = RankWork::new(&spec, 1, 2, 2048).unwrap();
    let flops = |work: &RankWork| work.layer_forward.iter().map(|launch| launch.flops).sum::<f64>();
    for tp in [2, 4, 8, 16, 32] {
        let part = RankWork::new(&spec, tp, 2, 2048).unwrap();
        assert_eq!(flops(&part) * tp as f64, flops(&whole), "tp {tp}");
        assert!(part.layer_parameters * tp as f64 >= whole.layer_parameters);
        assert!(part.kept.split * tp as f64 <= whole.kept.split);
    }
}

#[test]
fn what_does_not_divide_is_said() {
    let mut spec = support::amber();
    (spec.n_heads, spec.n_kv_heads) = (40, 40);
    assert_eq!(rank_spec(&spec, 16).unwrap_err(), "40 heads do not divide by tp 16");
    assert_eq!(
        rank_spec(&support::crystalcoder(), 4).unwrap_err(),
        "10922 MLP features do not divide by tp 4"
    );
    let mut grouped = support::amber();
    grouped.n_kv_heads = 8;
    assert_eq!(rank_spec(&grouped, 16).unwrap().n_kv_heads, 1);
    assert_eq!(rank_spec(&grouped, 4).unwrap().n_kv_heads, 2);
}

#[test]
fn parameters_are_the_published_ones() {
    let count = |spec: &ModelSpec| {
        let work = RankWork::new(spec, 1, 1, 2048).unwrap();
        let ends = work.embedding_parameters + work.head_parameters;
        let table = if work.tied { spec.vocab as f64 * spec.d_model as f64 } else { 0.0 };
        work.layer_parameters * spec.n_layers as f64 + ends - table
    };
    assert_eq!(count(&support::amber()), 6_738_415_616.0);
    assert_eq!(count(&support::crystalcoder()), 6_575_278_720.0);
}

#[test]
fn a_window_hides_keys() {
    let mut spec = support::amber();
    let whole = layer(&spec).1[2].flops;
    spec.attn.window = Some(512);
    let visible: u64 = (1..=2048u64).map(|position| position.min(512)).sum();
    let expected = whole * visible as f64 / (2048.0 * 2049.0 / 2.0);
    assert!((layer(&spec).1[2].flops / expected - 1.0).abs() < 1e-12);
}
