//! What a rank computes and keeps: kernels as the compiler fuses them, flops and bytes by hand.

use crate::support;
use lapidary_models::{Dims, Graph, Mode, ModelSpec};
use lapidary_planner::kernels::{Anchor, Kernel, kernels};
use lapidary_planner::rank::{rank_spec, sequence_flops};
use lapidary_planner::step::work::{Kept, PassWork};
use lapidary_planner::step::{Stack, Work};

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
    // The residual joins the output projection: read once, and once the inner value.
    assert_eq!(list[3].bytes, 2.0 * (tokens * 4096.0 * 3.0 + 4096.0 * 4096.0));
    let fused: f64 = list.iter().map(|kernel| kernel.bytes).sum();
    assert!(fused < 0.5 * graph.layer().work(&graph).bytes() as f64);
}

/// What a rank does for one sequence of 2,048 tokens under this compiler's kernels.
fn work(spec: &ModelSpec, tp: u64) -> Work {
    let stack = Stack::named("lapidary").expect("a built-in stack");
    Work::new(spec, tp, 2048, stack, stack.attention, stack.fused_norm).unwrap()
}

#[test]
fn a_gpt_layer_keeps_32_bytes_a_token_and_feature() {
    let (width, statistics) = (2048.0 * 12288.0, 2048.0 * 96.0 * 4.0);
    let expected = [
        Kept { stream: 8.0 * width, split: 8.0 * width + statistics, inner: 16.0 * width },
        // Without the results of norms (4) and of the activation (8); and the input alone.
        Kept { stream: 4.0 * width, split: 8.0 * width + statistics, inner: 8.0 * width },
        Kept { stream: 2.0 * width, ..Kept::default() },
    ];
    assert_eq!(work(&support::gpt3(), 1).kept, expected);
}

/// Operations of the products of linear layers over one sequence, and of attention's contractions.
fn flops(pass: &PassWork) -> (f64, f64) {
    let linears = pass.linears.iter().map(|linear| linear.product(2048.0).flops()).sum();
    (linears, pass.core.iter().map(|one| one.flops).sum())
}

#[test]
fn a_backward_pass_does_what_its_own_ops_say() {
    let work = work(&support::amber(), 1);
    let products = |matrices: f64| 2.0 * 2048.0 * 4096.0 * matrices;
    let forward = flops(&work.forward);
    assert_eq!(forward, (products(4.0 * 4096.0 + 3.0 * 11008.0), 4.0 * 2048.0 * 2048.0 * 4096.0));
    // Two derivatives of each product; of attention its scores again and four derivatives.
    assert_eq!(flops(&work.backward), (2.0 * forward.0, 2.5 * forward.1));
    // Full recomputation runs everything again that is read: not the last product.
    assert_eq!(flops(&work.full).0, products(4.0 * 4096.0 + 2.0 * 11008.0));
    assert_eq!(flops(&work.selective), (0.0, 0.0));
}

#[test]
fn ranks_together_do_the_work_of_the_whole() {
    let spec = support::amber();
    let whole = work(&spec, 1);
    for tp in [2, 4, 8, 16, 32] {
        let part = work(&spec, tp);
        for of in [|work: &Work| flops(&work.forward), |work: &Work| flops(&work.backward)] {
            assert_eq!((of(&part).0 * tp as f64, of(&part).1 * tp as f64), of(&whole), "tp {tp}");
        }
        assert!(part.kept[0].split * tp as f64 <= whole.kept[0].split);
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
    let count = |spec: &ModelSpec| sequence_flops(spec, 2048).expect("a graph").1;
    assert_eq!(count(&support::amber()), 6_738_415_616);
    assert_eq!(count(&support::crystalcoder()), 6_575_278_720);
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
