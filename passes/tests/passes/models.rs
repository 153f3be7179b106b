//! Whole models at full size through the pipelines: every module verified, nothing lost, nothing random.

use lapidary_ir::{IrContext, Module, import::import};
use lapidary_models::{Dims, Graph, Mode, builtin, builtin_names};
use lapidary_passes::pipeline::{Fusion, Goal, Mup, pipeline};
use lapidary_passes::report::PipelineReport;
use lapidary_passes::{Watch, run};
use std::collections::BTreeMap;

const BATCH: Dims = Dims { batch: 8, seq: 2048, cached: 0 };
const TOKEN: Dims = Dims { batch: 1, seq: 1, cached: 100 };

fn graph(name: &str, mode: Mode, dims: Dims) -> Graph {
    Graph::build(&builtin(name).unwrap(), mode, dims).unwrap()
}

/// The module after the passes for a GPU, and what they report.
fn compiled<'c>(cx: &'c IrContext, graph: &Graph, mup: Mup, fusion: &Fusion) -> (Module<'c>, PipelineReport) {
    let mut module = import(cx, graph).unwrap();
    let passes = pipeline(Goal::Gpu, mup, fusion).unwrap();
    let report = run(&mut module, &passes, Watch { snapshots: true, ..Watch::default() });
    let report = report.unwrap_or_else(|error| panic!("{}: {error}", graph.name));
    module.verify().unwrap();
    (module, report)
}

/// How often each kind of `nn` op stands in a module, in kernels or out of them.
fn kinds(module: &Module<'_>) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for op in module.op().walk() {
        if op.name().starts_with("nn.") && !["nn.fused", "nn.yield"].contains(&op.name()) {
            *kinds.entry(op.name().to_string()).or_insert(0) += 1;
        }
    }
    kinds
}

#[test]
fn every_builtin_model_compiles_in_every_mode() {
    for name in builtin_names() {
        for (mode, dims) in [(Mode::Forward, Dims { seq: 512, ..BATCH }), (Mode::Decode, TOKEN)] {
            let cx = IrContext::new();
            let (module, report) = compiled(&cx, &graph(name, mode, dims), Mup::Fold, &Fusion::On);
            let fused = report.fusion.unwrap();
            assert!(fused.bytes_after <= fused.bytes_before, "{name}");
            assert!(fused.regions.iter().all(|r| r.bytes_after <= r.bytes_before), "{name}");
            for op in module.op().walk().into_iter().filter(|op| op.is("nn.scale")) {
                assert!(!op.text("role").unwrap_or_default().starts_with("mup."), "{name}: {op}");
            }
        }
    }
}

#[test]
fn fusion_loses_no_op() {
    for name in ["amber", "crystalcoder", "pythia-6.9b", "gpt-j-6b", "btlm-3b-8k", "cerebras-gpt-111m"] {
        let graph = graph(name, Mode::Decode, TOKEN);
        let cx = IrContext::new();
        let (apart, _) = compiled(&cx, &graph, Mup::Keep, &Fusion::Off);
        let (fused, _) = compiled(&cx, &graph, Mup::Keep, &Fusion::On);
        assert_eq!(kinds(&apart), kinds(&fused), "{name}");
    }
}

#[test]
fn amber_moves_a_seventh_of_the_bytes_when_fused() {
    let cx = IrContext::new();
    let (module, report) = compiled(&cx, &graph("amber", Mode::Forward, BATCH), Mup::Fold, &Fusion::On);
    let fused = report.fusion.unwrap();
    let names: Vec<&str> = fused.regions.iter().map(|r| r.name.as_str()).collect();
    let layer = ["attn_norm", "attn.q_k_v", "attention", "attn.out", "mlp_norm", "mlp.gate_up", "mlp.down"];
    assert_eq!(names, [&layer[..], &["embed", "final_norm", "head"]].concat());
    // Batch 8 x 2048, bf16: each layer wrote and read four tensors of scores of 2.1 GB each.
    assert_eq!((fused.bytes_before, fused.bytes_after), (781_586_079_744, 115_329_277_952));
    assert!(module.to_string().lines().count() < 200);
}

#[test]
fn crystalcoder_folds_as_derived() {
    let cx = IrContext::new();
    let (_, report) = compiled(&cx, &graph("crystalcoder", Mode::Forward, BATCH), Mup::Fold, &Fusion::On);
    let fold = report.fold.unwrap();
    let factor = |name: &str| fold.params.iter().find(|(param, _)| param == name).map(|(_, factor)| *factor);
    assert!(fold.tied);
    for half in ["weight", "bias"] {
        assert_eq!(factor(&format!("layers.*.attn.q.{half}")), Some(1.0 / 128.0));
        assert_eq!(factor(&format!("layers.*.attn.out.{half}")), Some(1.0 / 14.6));
        assert_eq!(factor(&format!("layers.*.mlp.down.{half}")), Some(1.0 / 14.6));
        assert!((factor(&format!("final_norm.{half}")).unwrap() - 2.22 * 0.0625).abs() < 1e-15);
    }
    assert_eq!(fold.params.len(), 8);
    assert_eq!(fold.norms.len(), 3);
    assert!(fold.norms.iter().all(|(_, before, after)| (after - before / (14.6 * 14.6)).abs() < 1e-20));
    assert_eq!(fold.removed.len(), 3);
}

#[test]
fn the_unfolded_logit_factor_sits_in_the_last_norm() {
    let cx = IrContext::new();
    let (_, report) = compiled(&cx, &graph("crystalcoder", Mode::Forward, BATCH), Mup::Keep, &Fusion::On);
    let fused = report.fusion.unwrap();
    let last = fused.regions.iter().find(|r| r.name == "final_norm").unwrap();
    assert_eq!(last.ops, ["final_norm", "head.multiplier"]);
    let embed = fused.regions.iter().find(|r| r.name == "embed").unwrap();
    assert_eq!(embed.ops, ["embed", "embed.multiplier"]);
}

#[test]
fn the_same_input_gives_the_same_text_and_a_second_run_changes_nothing() {
    let graph = graph("crystalcoder", Mode::Prefill, Dims { batch: 1, seq: 128, cached: 0 });
    let texts: Vec<String> =
        (0..2).map(|_| compiled(&IrContext::new(), &graph, Mup::Fold, &Fusion::On).0.to_string()).collect();
    assert_eq!(texts[0], texts[1]);
    let again = lapidary_passes::opt::run(&texts[0], "again.mlir", "canonicalize,cse,fuse").unwrap();
    assert_eq!(again, texts[0]);
}

#[test]
fn passes_say_truly_whether_they_changed_anything() {
    let cx = IrContext::new();
    for name in ["amber", "crystalcoder"] {
        let (_, report) = compiled(&cx, &graph(name, Mode::Forward, BATCH), Mup::Fold, &Fusion::On);
        for (pass, texts) in report.passes.iter().zip(report.snapshots.windows(2)) {
            assert_eq!(pass.changed, texts[0].text != texts[1].text, "{name}: {}", pass.name);
        }
    }
}

#[test]
fn snapshots_parse_and_lead_to_the_same_end() {
    let cx = IrContext::new();
    let graph = graph("cerebras-gpt-111m", Mode::Forward, Dims { batch: 1, seq: 64, cached: 0 });
    let (module, report) = compiled(&cx, &graph, Mup::Fold, &Fusion::On);
    let passes: Vec<&str> = report.passes.iter().map(|pass| pass.name.as_str()).collect();
    assert_eq!(report.snapshots.len(), passes.len() + 1);
    for (done, snapshot) in report.snapshots.iter().enumerate() {
        let rest = passes[done..].join(",");
        let end = lapidary_passes::opt::run(&snapshot.text, "snapshot.mlir", &rest).unwrap();
        let reason = |text: &str| {
            text.lines().filter(|line| !line.contains("reason =")).map(String::from).collect::<Vec<_>>()
        };
        assert_eq!(reason(&end), reason(&module.to_string()), "from {}", snapshot.after);
    }
}
