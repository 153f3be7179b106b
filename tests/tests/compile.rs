//! The whole way down, on random models: whatever passes the check compiles for both machines or is refused in
//! words, and never panics.

use lapidary_hardware::builtin::machine;
use lapidary_ir::import::import;
use lapidary_ir::{IrContext, Module};
use lapidary_models::mup::inference_fold;
use lapidary_models::testing::specs;
use lapidary_models::{Dims, Graph, Mode, ModelSpec, builtin, parse_model, to_toml};
use lapidary_passes::cuda::Options;
use lapidary_passes::lower_to_cuda::emit_gpu;
use lapidary_passes::pipeline::pipeline;
use lapidary_passes::report::PipelineReport;
use lapidary_passes::{Fusion, Goal, Mup, Watch, run};
use proptest::prelude::*;

/// Runs a goal's own pipeline on the imported graph.
fn lowered<'c>(cx: &'c IrContext, graph: &Graph, goal: Goal, mup: Mup) -> (Module<'c>, PipelineReport) {
    let mut module = import(cx, graph).expect("a checked graph imports");
    let passes = pipeline(goal, mup, &Fusion::On).expect("the goal's pipeline");
    let report = run(&mut module, &passes, Watch::default()).expect("the passes take every checked model");
    (module, report)
}

fn graph(spec: &ModelSpec, mode: Mode, batch: u64) -> Graph {
    let keys = spec.max_seq.min(24);
    let dims = match mode {
        Mode::Decode => Dims { batch, seq: 1, cached: keys - 1 },
        _ => Dims { batch, seq: keys, cached: 0 },
    };
    Graph::build(spec, mode, dims).expect("a checked model builds")
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Forward), Just(Mode::Prefill), Just(Mode::Decode)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_checked_model_becomes_a_gpu_program(spec in specs(), mode in mode(), batch in 1u64..4) {
        let spec = parse_model(&to_toml(&spec), "random.toml").expect("the check passes");
        let graph = graph(&spec, mode, batch);
        for mup in [Mup::Fold, Mup::Keep] {
            let cx = IrContext::new();
            let (module, report) = lowered(&cx, &graph, Goal::Gpu, mup);
            let fusion = report.fusion.expect("the GPU pipeline fuses");
            prop_assert!(fusion.bytes_after <= fusion.bytes_before);
            let lowered = emit_gpu(&module, "sm_80", &Options::default()).map_err(|e| TestCaseError::fail(e.to_string()))?;
            let program = lowered.program.check().map_err(|faults| TestCaseError::fail(format!("{faults:?}")))?;
            prop_assert!(!program.get().steps.is_empty());
        }
    }
}

/// The fold in the IR and the fold derived on the specification are two writings of one fact.
#[test]
fn the_pass_folds_what_the_derivation_says() {
    let spec = builtin("crystalcoder").expect("built in");
    let fold = inference_fold(&spec).expect("muP folds");
    let cx = IrContext::new();
    let (_, report) = lowered(&cx, &graph(&spec, Mode::Prefill, 1), Goal::Gpu, Mup::Fold);
    let done = report.fold.expect("the pass reports");
    for (name, factor) in &done.params {
        let derived = fold.scales.get(name).copied().unwrap_or(1.0);
        assert!((factor / derived - 1.0).abs() < 1e-12, "{name}: the pass has {factor}, the derivation {derived}");
    }
    assert_eq!(done.params.len(), fold.scales.len(), "both scale the same parameters");
    for (name, _, eps) in &done.norms {
        assert!((eps / (spec.norm.eps / 14.6f64.powi(2)) - 1.0).abs() < 1e-12, "{name}: {eps}");
    }
    assert!(machine("a100-80gb").is_ok());
}
