//! Graphs: shapes, work against numbers derived by hand, and bound dimensions.

use lapidary_models::op::Op;
use lapidary_models::{Dims, Function, Graph, GraphError, Mode, ModelSpec, builtin, parse_model};

fn graph(name: &str, mode: Mode, batch: u64, seq: u64, cached: u64) -> Graph {
    Graph::build(&builtin(name).unwrap(), mode, Dims { batch, seq, cached }).unwrap()
}

fn shape<'g>(function: &'g Function, node: &str) -> &'g [u64] {
    let node = function.nodes.iter().find(|n| n.name == node).unwrap_or_else(|| panic!("no node {node}"));
    &function.ty(node.output).shape
}

fn names(function: &Function) -> Vec<&str> {
    let ops = function.nodes.iter().filter(|node| !matches!(node.op, Op::Param { .. }));
    ops.map(|node| node.name.as_str()).collect()
}

/// Amber at 8 x 2048. Matmul parameters per token: 32 layers x (4 x 4096² + 3 x 4096 x 11008) + 32000 x 4096 =
/// 6,607,077,376, two operations each. Scores and values: 2 x 2 x 32 heads x 2048² x 128 per sequence and layer.
#[test]
fn the_work_of_an_amber_forward_is_the_derived_one() {
    let graph = graph("amber", Mode::Forward, 8, 2048, 0);
    let tokens = 8 * 2048;
    let linears = 2 * 6_607_077_376 * tokens;
    let attention = 32 * 8 * 4 * 32 * 2048 * 2048 * 128;
    assert_eq!(graph.work().matmul_flops, linears + attention);
    // Softmax alone reads and writes every score: 2 bytes x 32 layers x 8 x 32 x 2048².
    let scores = 2 * 32 * 8 * 32 * 2048 * 2048u64;
    assert!(graph.work().bytes_read > 4 * scores && graph.work().bytes_written > 4 * scores);
}

#[test]
fn heads_stay_flat_and_keys_are_shared() {
    let graph = graph("llama-3-8b", Mode::Forward, 2, 16, 0);
    let layer = graph.layer();
    assert_eq!(shape(layer, "attn.q"), [2, 16, 4096]);
    assert_eq!(shape(layer, "attn.k"), [2, 16, 1024]);
    assert_eq!(shape(layer, "attn.scores"), [2, 32, 16, 16]);
    assert_eq!(shape(layer, "attn.values"), [2, 16, 4096]);
    assert_eq!(shape(graph.main(), "head"), [2, 16, 128_256]);
}

#[test]
fn decode_reads_the_cache_and_returns_the_last_logits() {
    let graph = graph("mistral-7b", Mode::Decode, 3, 1, 4095);
    let layer = graph.layer();
    assert_eq!(shape(layer, "attn.k.cache"), [3, 4096, 1024]);
    assert_eq!(shape(layer, "attn.scores"), [3, 32, 1, 4096]);
    let mask = layer.nodes.iter().find(|node| node.name == "attn.mask").unwrap();
    assert_eq!(mask.op, Op::Mask { causal: true, window: 4096, alibi: None, heads: None, offset: 4095 });
    let rope = layer.nodes.iter().find(|node| node.name == "attn.q.rope").unwrap();
    assert!(matches!(rope.op, Op::Rope { offset: 4095, .. }));
    assert_eq!(shape(graph.main(), "head"), [3, 1, 32_000]);
}

#[test]
fn prefill_fills_the_cache_and_keeps_one_position() {
    let graph = graph("amber", Mode::Prefill, 2, 100, 0);
    assert_eq!(shape(graph.layer(), "attn.v.cache"), [2, 100, 4096]);
    assert_eq!(shape(graph.main(), "last_token"), [2, 1, 4096]);
    assert_eq!(names(graph.main()), ["embed", "layers", "last_token", "final_norm", "head"]);
}

#[test]
fn a_parallel_block_with_a_shared_norm_norms_once() {
    let gptj = graph("gpt-j-6b", Mode::Forward, 1, 8, 0);
    let norms =
        |graph: &Graph| graph.layer().nodes.iter().filter(|n| matches!(n.op, Op::Norm { .. })).count();
    assert_eq!(norms(&gptj), 1);
    assert_eq!(norms(&graph("pythia-6.9b", Mode::Forward, 1, 8, 0)), 2);
    let adds: Vec<&str> = names(gptj.layer()).into_iter().filter(|name| name.ends_with("residual")).collect();
    assert_eq!(adds, ["attn.residual", "mlp.residual"]);
}

#[test]
fn multipliers_stand_where_mup_puts_them() {
    let crystal = graph("crystalcoder", Mode::Forward, 1, 8, 0);
    assert_eq!(
        names(crystal.main()),
        ["embed", "embed.multiplier", "layers", "final_norm", "head", "head.multiplier"]
    );
    let scale = crystal.layer().nodes.iter().find(|node| node.name == "attn.scale").unwrap();
    assert!(
        matches!(scale.op, Op::Scale { by, role } if by == 1.0 / 128.0 && role.name() == "mup.attention")
    );
    // Learned positions are scaled too: the multiplier stands after the table.
    let text = lapidary_models::to_toml(&ModelSpec {
        pos: lapidary_models::spec::Position::Learned,
        ..builtin("crystalcoder").unwrap()
    });
    let learned = parse_model(&text, "m").unwrap();
    let learned = Graph::build(&learned, Mode::Forward, Dims { batch: 1, seq: 8, cached: 0 }).unwrap();
    assert_eq!(names(learned.main())[..3], ["embed", "position", "embed.multiplier"]);
}

#[test]
fn a_tied_head_has_no_parameter_of_its_own() {
    let crystal = graph("crystalcoder", Mode::Forward, 1, 8, 0);
    assert!(crystal.params.iter().all(|param| !param.name.starts_with("head")));
    let amber = graph("amber", Mode::Forward, 1, 8, 0);
    assert!(amber.params.iter().any(|param| param.name == "head.weight"));
}

#[test]
fn a_graph_has_the_size_of_one_layer() {
    for name in ["amber", "gpt3-175b"] {
        let graph = graph(name, Mode::Forward, 1, 8, 0);
        let nodes: usize = graph.functions.iter().map(|function| function.nodes.len()).sum();
        assert!(nodes < 60, "{name}: {nodes} nodes");
    }
}

#[test]
fn dimensions_out_of_range_are_refused_by_name() {
    let spec = builtin("amber").unwrap();
    let build = |mode, batch, seq, cached| Graph::build(&spec, mode, Dims { batch, seq, cached });
    let dim = |result| match result {
        Err(GraphError::Dimension { dim, .. }) => dim,
        other => panic!("expected a fault of a dimension, found {other:?}"),
    };
    assert_eq!(dim(build(Mode::Forward, 0, 8, 0)), "batch");
    assert_eq!(dim(build(Mode::Forward, 1, 0, 0)), "seq");
    assert_eq!(dim(build(Mode::Forward, 1, 2049, 0)), "seq");
    assert_eq!(dim(build(Mode::Forward, 1, 8, 8)), "cached");
    assert_eq!(dim(build(Mode::Decode, 1, 1, u64::MAX)), "seq");
    assert!(matches!(build(Mode::Forward, u64::MAX, 8, 0), Err(GraphError::TooLarge { .. })));
}
