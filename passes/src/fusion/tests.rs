//! The kernels of whole models, and what is refused.

use super::*;
use lapidary_models::{Dims, Graph, Mode, builtin};

const BATCH: Dims = Dims { batch: 8, seq: 2048, cached: 0 };
const TOKEN: Dims = Dims { batch: 1, seq: 1, cached: 100 };

fn graph(name: &str, mode: Mode, dims: Dims) -> Graph {
    Graph::build(&builtin(name).unwrap(), mode, dims).unwrap()
}

fn show(function: &Function, plan: &FusionPlan) -> Vec<String> {
    let names =
        |r: &Region| r.nodes.iter().map(|n| function.nodes[*n].name.clone()).collect::<Vec<_>>().join(" ");
    plan.regions.iter().map(|r| format!("{} {}: {}", r.anchor.name(), r.name, names(r))).collect()
}

fn refusal<'p>(plan: &'p FusionPlan, from: &str, to: &str) -> &'p str {
    let has = |side: &[String], name: &str| side.iter().any(|op| op == name);
    let found = plan.refusals.iter().find(|r| has(&r.sides[0], from) && has(&r.sides[1], to));
    found.map_or("not refused", |r| &r.reason)
}

#[test]
fn a_layer_of_amber_is_seven_kernels() {
    let graph = graph("amber", Mode::Forward, BATCH);
    let plan = plan(graph.layer(), &Rules::all());
    assert_eq!(
        show(graph.layer(), &plan),
        [
            "row attn_norm: attn_norm",
            "matmul attn.q_k_v: attn.q attn.k attn.v attn.q.rope attn.k.rope",
            "attention attention: attn.scores attn.scale attn.mask attn.softmax attn.values",
            "matmul attn.out: attn.out attn.residual",
            "row mlp_norm: mlp_norm",
            "matmul mlp.gate_up: mlp.gate mlp.up mlp.act mlp.glu",
            "matmul mlp.down: mlp.down mlp.residual",
        ]
    );
    assert!(plan.regions.iter().all(|r| r.bytes_after <= r.bytes_before));
}

#[test]
fn a_layer_of_crystalcoder_takes_its_biases_along() {
    let graph = graph("crystalcoder", Mode::Forward, BATCH);
    let plan = plan(graph.layer(), &Rules::all());
    let shown = show(graph.layer(), &plan);
    assert_eq!(shown.len(), 7);
    assert_eq!(
        shown[1],
        "matmul attn.q_k_v: attn.q attn.q.bias attn.k attn.k.bias attn.v attn.v.bias attn.q.rope attn.k.rope"
    );
    assert_eq!(shown[3], "matmul attn.out: attn.out attn.out.bias attn.residual");
    assert_eq!(shown[5], "matmul mlp.gate_up: mlp.gate mlp.gate.bias mlp.up mlp.up.bias mlp.act mlp.glu");
}

#[test]
fn decode_stores_the_cache_where_it_is_computed() {
    let graph = graph("llama-3-8b", Mode::Decode, TOKEN);
    let plan = plan(graph.layer(), &Rules::all());
    assert_eq!(
        show(graph.layer(), &plan)[1],
        "matmul attn.q_k_v: attn.q attn.k attn.v attn.q.rope attn.k.rope attn.k.cache attn.v.cache"
    );
}

#[test]
fn parallel_residuals_put_one_add_into_each_projection() {
    let graph = graph("pythia-6.9b", Mode::Forward, BATCH);
    let plan = plan(graph.layer(), &Rules::all());
    let shown = show(graph.layer(), &plan);
    assert!(shown.contains(&"matmul attn.out: attn.out attn.out.bias attn.residual".into()), "{shown:#?}");
    assert!(shown.contains(&"matmul mlp.down: mlp.down mlp.down.bias mlp.residual".into()), "{shown:#?}");
    assert!(shown.contains(&"row attn_norm-mlp_norm: attn_norm mlp_norm".into()), "{shown:#?}");
}

#[test]
fn a_shared_norm_feeds_attention_and_mlp_in_one_product() {
    let graph = graph("gpt-j-6b", Mode::Forward, BATCH);
    let plan = plan(graph.layer(), &Rules::all());
    let shown = show(graph.layer(), &plan);
    assert!(shown.iter().any(|r| r.starts_with("matmul attn.q_k_v-mlp.up:")), "{shown:#?}");
}

#[test]
fn refusals_say_what_does_not_fit() {
    let graph = graph("amber", Mode::Forward, BATCH);
    let plan = plan(graph.layer(), &Rules::all());
    assert_eq!(
        refusal(&plan, "attn.residual", "mlp_norm"),
        "mlp_norm needs the whole row of 4096, the tile holds 128"
    );
    assert_eq!(
        refusal(&plan, "attn_norm", "attn.q"),
        "attn_norm needs the whole row of 4096 and would run again for each of 96 column tiles"
    );
    assert_eq!(
        refusal(&plan, "mlp.glu", "mlp.down"),
        "mlp.down sums over 11008 columns of mlp.gate, a tile holds 128"
    );
    assert_eq!(
        refusal(&plan, "attn.k.rope", "attn.scores"),
        "every block of attn.scores needs all of attn.k.rope"
    );
    assert_eq!(
        refusal(&plan, "attn.values", "attn.out"),
        "attn.out sums over all 4096 columns, a block of attention makes those of one head"
    );
}

#[test]
fn merges_say_what_is_saved() {
    let graph = graph("amber", Mode::Forward, BATCH);
    let plan = plan(graph.layer(), &Rules::all());
    let softmax = plan.merges.iter().find(|m| m.sides[0] == ["attn.softmax"]).unwrap();
    // p is [8, 32, 2048, 2048] in two bytes, written once and read once.
    assert_eq!(softmax.saved_bytes, 2 * 2 * 8 * 32 * 2048 * 2048);
    assert_eq!(softmax.reason, "saves 4.3 GB: attn.softmax is never written");
    assert_eq!(softmax.rule, Rule::Attention);
}

#[test]
fn every_rule_can_be_off() {
    let graph = graph("amber", Mode::Prefill, Dims { batch: 1, seq: 64, cached: 0 });
    for rule in Rule::ALL {
        let plan = plan(graph.layer(), &Rules::all().without([rule]));
        assert!(plan.merges.iter().all(|m| m.rule != rule));
        covers(graph.layer(), &plan);
    }
    assert_eq!(plan(graph.layer(), &Rules::none()).merges, []);
}

/// Every op is in exactly one region, and producers run first.
pub fn covers(function: &Function, plan: &FusionPlan) {
    let mut seen: Vec<usize> = plan.regions.iter().flat_map(|r| r.nodes.clone()).collect();
    seen.sort_unstable();
    let all: Vec<usize> = (0..function.nodes.len())
        .filter(|n| class::class(&function.nodes[*n].op) != class::Class::Outside)
        .collect();
    assert_eq!(seen, all);
    let mut done: BTreeSet<_> = function.arguments.iter().copied().collect();
    for step in &plan.steps {
        let nodes = match step {
            Step::Keep(n) => vec![*n],
            Step::Region(r) => plan.regions[*r].nodes.clone(),
        };
        for n in nodes {
            assert!(function.nodes[n].inputs.iter().all(|v| done.contains(v)), "{}", function.nodes[n].name);
            done.insert(function.nodes[n].output);
        }
    }
}

#[test]
fn all_builtin_models_are_covered_in_all_modes() {
    for name in lapidary_models::builtin_names() {
        for (mode, dims) in [(Mode::Forward, Dims { cached: 0, ..BATCH }), (Mode::Decode, TOKEN)] {
            let dims = Dims { seq: dims.seq.min(512), ..dims };
            let graph = graph(name, mode, dims);
            for function in &graph.functions {
                let plan = plan(function, &Rules::all());
                covers(function, &plan);
                assert!(plan.regions.iter().all(|r| r.bytes_after <= r.bytes_before), "{name}");
                let unfused: u64 = plan.regions.iter().map(|r| r.bytes_before).sum();
                let repeats: u64 = function.work(&graph).bytes().saturating_sub(inner(function, &graph));
                assert_eq!(unfused, repeats, "{name}: traffic before fusion is that of the ops alone");
            }
        }
    }
}

/// Traffic of repeated bodies, which belong to other functions.
fn inner(function: &Function, graph: &Graph) -> u64 {
    let bodies = function.nodes.iter().filter(|n| matches!(n.op, lapidary_models::Op::Repeat { .. }));
    bodies.map(|n| function.node_work(n, graph).bytes()).sum()
}

#[test]
fn streaming_without_a_softmax_is_no_attention() {
    let graph = graph("amber", Mode::Forward, BATCH);
    let flow = Flow::new(graph.layer());
    let index = |name: &str| graph.layer().nodes.iter().position(|n| n.name == name).unwrap();
    let set = |names: &[&str]| names.iter().map(|n| index(n)).collect::<traffic::Set>();
    let judge = |names: &[&str]| legality::kernel(&flow, &set(names));
    assert!(judge(&["attn.scores", "attn.values"]).unwrap_err().contains("no softmax streams between them"));
    assert!(judge(&["attn.scores", "attn.softmax"]).unwrap_err().contains("needs the whole row of 2048"));
    assert!(judge(&["attn.softmax", "attn.values"]).is_ok());
    assert!(
        judge(&["attn.q", "mlp.gate"]).unwrap_err().starts_with("mlp.gate sums over 4096 columns of attn.q")
    );
}
