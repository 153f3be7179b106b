//! The fold on plain functions: what goes where, and where the rules end.

use super::*;
use lapidary_models::{Dims, Graph, Mode, ModelSpec, builtin};

fn graph(spec: &ModelSpec) -> Graph {
    Graph::build(spec, Mode::Forward, Dims { batch: 1, seq: 4, cached: 0 }).unwrap()
}

/// The functions of a graph with their parameters, as a view of the module has them.
fn folded(graph: &Graph) -> Result<(Fold, Vec<String>), Vec<Stuck>> {
    let params: Vec<ParamView> =
        graph.params.iter().map(|param| ParamView { name: param.name.clone(), scale: 1.0 }).collect();
    let program = Program { functions: graph.functions.iter().map(|f| (f, params.as_slice())).collect() };
    let fold = fold(&program)?;
    let changed = fold.params.iter().map(|((at, operand), by)| {
        let name = program.param(*at, *operand).map_or("?", |param| &param.name);
        format!("{name} x {by}")
    });
    Ok((fold.clone(), changed.collect()))
}

fn simple(name: &str, embedding: f64, logits: f64) -> ModelSpec {
    let mut spec = builtin(name).unwrap();
    (spec.multipliers.embedding, spec.multipliers.logits) = (embedding, logits);
    spec
}

#[test]
fn a_tied_head_sends_the_factors_into_norms_and_branches() {
    let (fold, changed) = folded(&graph(&simple("crystalcoder", 4.0, 0.5))).unwrap();
    assert!(fold.tied && fold.kept.is_empty());
    assert_eq!(
        changed,
        [
            "layers.*.attn.q.weight x 0.0078125",
            "layers.*.attn.q.bias x 0.0078125",
            "layers.*.attn.out.weight x 0.25",
            "layers.*.attn.out.bias x 0.25",
            "layers.*.mlp.down.weight x 0.25",
            "layers.*.mlp.down.bias x 0.25",
            "final_norm.weight x 0.5",
            "final_norm.bias x 0.5",
        ]
    );
    assert_eq!(fold.norms.len(), 3);
    assert!(fold.norms.values().all(|eps| *eps == 1e-5 / 16.0));
}

#[test]
fn a_head_of_its_own_takes_the_factor_and_leaves_norms_alone() {
    let mut spec = simple("cerebras-gpt-111m", 4.0, 0.5);
    spec.mup = builtin("crystalcoder").unwrap().mup;
    spec.head.tied = false;
    let (fold, changed) = folded(&graph(&spec)).unwrap();
    assert!(!fold.tied && fold.norms.is_empty());
    let outside: Vec<&String> = changed.iter().filter(|name| !name.starts_with("layers")).collect();
    assert_eq!(outside, ["embed.weight x 4", "position.weight x 4", "head.weight x 0.5"]);
}

#[test]
fn a_tied_head_without_a_norm_keeps_both_ends() {
    let mut spec = simple("crystalcoder", 4.0, 0.5);
    spec.norm.final_norm = false;
    let (fold, changed) = folded(&graph(&spec)).unwrap();
    assert_eq!(fold.kept.len(), 2);
    assert!(changed.iter().all(|name| name.starts_with("layers.*.attn.q.")), "{changed:?}");
}

#[test]
fn models_without_mup_are_left_alone() {
    let (fold, changed) = folded(&graph(&builtin("amber").unwrap())).unwrap();
    assert_eq!((fold, changed), (Fold::default(), Vec::new()));
}

#[test]
fn values_that_others_need_are_not_scaled() {
    let mut graph = graph(&builtin("crystalcoder").unwrap());
    let layer = &mut graph.functions[0];
    let rotated = layer.nodes.iter().find(|node| node.name == "attn.q.rope").unwrap().output;
    layer.results.push(rotated);
    let stuck = folded(&graph).unwrap_err();
    let whys: Vec<&str> = stuck.iter().map(|s| s.why.as_str()).collect();
    assert!(whys.contains(&"attn.q.rope is needed by others without the factor 0.0078125"), "{whys:?}");
    assert!(whys.contains(&"@layer does not return the residual stream that it gets"), "{whys:?}");
}

#[test]
fn the_fold_agrees_with_the_one_on_specifications() {
    for name in ["crystalcoder", "jais-13b", "btlm-3b-8k"] {
        let spec = builtin(name).unwrap();
        let theirs = lapidary_models::mup::inference_fold(&spec).unwrap();
        let graph = graph(&spec);
        let params: Vec<ParamView> =
            graph.params.iter().map(|param| ParamView { name: param.name.clone(), scale: 1.0 }).collect();
        let program = Program { functions: graph.functions.iter().map(|f| (f, params.as_slice())).collect() };
        let ours = fold(&program).unwrap();
        for ((at, operand), by) in &ours.params {
            let name = &program.param(*at, *operand).unwrap().name;
            assert!((theirs.scales[name] - by).abs() < 1e-15, "{name}");
        }
        assert_eq!(ours.params.len(), theirs.scales.len(), "{name}");
        let eps = ours.norms.values().next().map_or(1.0, |eps| eps / spec.norm.eps);
        assert!((theirs.eps - eps).abs() < 1e-12, "{name}");
    }
}
