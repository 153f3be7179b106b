//! What a rank computes and keeps: kernels as the compiler fuses them, flops and bytes by hand.

use crate::support;
use lapidary_models::{Dims, Graph, Mode, ModelSpec};
use lapidary_planner::Recompute;
use lapidary_planner::kernels::{Anchor, Kernel, kernels};
use lapidary_planner::rank::{Launch, RankWork, RankWorks, rank_spec};

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

#[test]
fn a_gpt_layer_keeps_32_bytes_a_token_and_feature() {
    let work = RankWork::new(&support::gpt3(), 1, 2, 2048).unwrap();
    let tokens = DIMS.tokens() as f64;
    let (width, statistics) = (tokens * 12288.0, tokens * 96.0 * 4.0);
    let whole = work.kept(Recompute::None);
    assert_eq!((whole.stream, whole.split), (8.0 * width, 24.0 * width + statistics));
    // Without the results of norms (4) and of the activation (8); and the input alone.
    let lean = work.kept(Recompute::Selective);
    assert_eq!((lean.stream, lean.split), (4.0 * width, 16.0 * width + statistics));
    let input = work.kept(Recompute::Full);
    assert_eq!((input.stream, input.split), (2.0 * width, 0.0));
}

fn flops(launches: &[Launch]) -> f64 {
    launches.iter().map(|launch| launch.flops).sum()
}

#[test]
fn a_backward_pass_is_priced_by_its_own_ops() {
    let work = RankWork::new(&support::amber(), 1, 2, 2048).unwrap();
    let of = |launches: &[Launch], anchor: Anchor| -> Vec<Launch> {
        launches.iter().filter(|launch| launch.anchor == anchor).copied().collect()
    };
    let tokens = 2.0 * 2048.0;
    let products = 2.0 * tokens * 4096.0 * (4.0 * 4096.0 + 3.0 * 11008.0);
    let (forward, backward) = (&work.layer_forward, &work.layer_backward);
    // Two products behind each: q, k, v, out, gate, up and down, by input and by weight.
    assert_eq!(flops(&of(forward, Anchor::Matmul)), products);
    assert_eq!(of(backward, Anchor::Matmul).len(), 14);
    assert_eq!(flops(&of(backward, Anchor::Matmul)), 2.0 * products);
    // Attention: scores again, and four derivatives, for scores and values.
    let (attention, again) = (of(forward, Anchor::Attention), of(backward, Anchor::Attention));
    assert_eq!((attention.len(), again.len()), (1, 1));
    assert_eq!(again[0].flops, 2.5 * attention[0].flops);
    // It reads q, k, v and the result's gradient, and writes three gradients.
    assert_eq!(again[0].bytes, 2.0 * 7.0 * tokens * 4096.0);
    // A weight's gradient is added where it is made: read and written in 32 bits.
    let down = backward.iter().find(|launch| launch.flops == 2.0 * tokens * 4096.0 * 11008.0).unwrap();
    let read = 2.0 * tokens * (4096.0 + 11008.0);
    assert!(backward.iter().any(|launch| launch.bytes == read + 8.0 * 4096.0 * 11008.0), "{down:?}");
    // Full recomputation runs everything again that is read: not the last product.
    let again = 2.0 * tokens * 4096.0 * (4.0 * 4096.0 + 2.0 * 11008.0);
    assert_eq!(flops(&of(&work.layer_full, Anchor::Matmul)), again);
    assert_eq!(flops(&work.layer_selective), 0.0);
}

#[test]
fn ranks_together_do_the_work_of_the_whole() {
    let spec = support::amber();
    let whole = RankWork::new(&spec, 1, 2, 2048).unwrap();
    for tp in [2, 4, 8, 16, 32] {
        let part = RankWork::new(&spec, tp, 2, 2048).unwrap();
        for of in
            [|work: &RankWork| flops(&work.layer_forward), |work: &RankWork| flops(&work.layer_backward)]
        {
            assert_eq!(of(&part) * tp as f64, of(&whole), "tp {tp}");
        }
        assert!(part.layer_parameters * tp as f64 >= whole.layer_parameters);
        assert!(part.kept(Recompute::None).split * tp as f64 <= whole.kept(Recompute::None).split);
    }
}

#[test]
fn two_graphs_tell_every_micro_batch() {
    let spec = support::crystalcoder();
    let works = RankWorks::new(&spec, 1, 1024).unwrap();
    for micro_batch in [1, 2, 3, 8, 13] {
        let (grown, built) = (works.at(micro_batch), RankWork::new(&spec, 1, micro_batch, 1024).unwrap());
        let near = |a: f64, b: f64| assert!((a - b).abs() <= 1e-9 * b.abs(), "{micro_batch}: {a} {b}");
        for (a, b) in grown.layer_backward.iter().zip(&built.layer_backward) {
            near(a.flops, b.flops);
            near(a.bytes, b.bytes);
        }
        near(grown.kept(Recompute::None).split, built.kept(Recompute::None).split);
        near(grown.logits, built.logits);
        near(grown.residual_bytes, built.residual_bytes);
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
