//! The whole way down, on random models: whatever passes the check compiles for both machines or is refused in
//! words, and never panics.

use lapidary_hardware::builtin::machine;
use lapidary_ir::import::import;
use lapidary_ir::{IrContext, Module};
use lapidary_models::autodiff::{Policy, Recompute, differentiate, training};
use lapidary_models::mup::inference_fold;
use lapidary_models::testing::specs;
use lapidary_models::{Dims, Graph, Mode, ModelSpec, builtin, parse_model, to_toml};
use lapidary_passes::cuda::Options;
use lapidary_passes::lower_to_cuda::emit_gpu;
use lapidary_passes::pipeline::{pipeline, pipeline_text, training_text};
use lapidary_passes::report::PipelineReport;
use lapidary_passes::wafer::{self, EmitOptions};
use lapidary_passes::{Fusion, Goal, Mup, Pipeline, RunError, Watch, run};
use lapidary_runtime_gpu::program::BufferKind;
use lapidary_runtime_sim::{FabricSpec, check};
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
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_checked_model_becomes_a_gpu_program(spec in specs(), mode in mode(), batch in 1u64..4) {
        let spec = parse_model(&to_toml(&spec), "random.toml").expect("the check passes");
        let graph = graph(&spec, mode, batch);
        for mup in [Mup::Fold, Mup::Keep] {
            let cx = IrContext::new();
            let (module, report) = lowered(&cx, &graph, Goal::Gpu, mup);
            let fusion = report.fusion.expect("the GPU pipeline fuses");
            prop_assert!(fusion.bytes_after <= fusion.bytes_before);
            let lowered = match emit_gpu(&module, "sm_80", &Options::default()) {
                Ok(lowered) => lowered,
                // The one thing that has no kernel: pairs cannot be neighbours in heads of odd width.
                Err(error) if spec.head_dim % 2 == 1 => {
                    prop_assert!(error.to_string().contains("odd number of columns"), "{}", error);
                    continue;
                }
                Err(error) => return Err(TestCaseError::fail(error.to_string())),
            };
            let program = lowered.program.check().map_err(|faults| TestCaseError::fail(format!("{faults:?}")))?;
            prop_assert!(!program.get().steps.is_empty());
        }
    }

    #[test]
    fn every_checked_model_becomes_wafer_programs_or_is_refused_in_words(spec in specs(), batch in 1u64..3) {
        let spec = parse_model(&to_toml(&spec), "random.toml").expect("the check passes");
        let cg1 = machine("cg1").expect("built in");
        let fabric = FabricSpec::from(cg1.wafer().expect("a wafer"));
        let passes = pipeline_text(Goal::Wafer, Mup::Fold, &Fusion::On) + ",lower-to-wafer{width=12 height=9}";
        let passes = Pipeline::parse(&passes).expect("a pipeline");
        let cx = IrContext::new();
        let mut module = import(&cx, &graph(&spec, Mode::Forward, batch)).expect("it imports");
        let emitted = match run(&mut module, &passes, Watch::default()) {
            Ok(_) => wafer::emit(&module, &cg1, &EmitOptions::default()).map_err(|error| error.to_string()),
            Err(RunError::Pass { internal: true, diagnostics, .. }) => {
                return Err(TestCaseError::fail(format!("{diagnostics:?}")));
            }
            Err(error) => Err(error.to_string()),
        };
        match emitted {
            Err(reason) => prop_assert!(reason.len() > 20, "{}", reason),
            Ok(programs) => for stage in programs.stages {
                let checked = check(&stage.generated.program, &fabric);
                prop_assert!(checked.is_ok(), "{}: {:?}", stage.name, checked.err());
            },
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
        assert!(
            (factor / derived - 1.0).abs() < 1e-12,
            "{name}: the pass has {factor}, the derivation {derived}"
        );
    }
    assert_eq!(done.params.len(), fold.scales.len(), "both scale the same parameters");
    for (name, _, eps) in &done.norms {
        assert!((eps / (spec.norm.eps / 14.6f64.powi(2)) - 1.0).abs() < 1e-12, "{name}: {eps}");
    }
}

/// The wafer does not train yet: it names the first op that it has no place for, at every length of layer.
#[test]
fn a_wafer_says_which_op_of_training_is_in_the_way() {
    let spec = builtin("crystalcoder").expect("built in");
    let dims = Dims { batch: 1, seq: 16, cached: 0 };
    for policy in Recompute::ALL {
        let graph = training(&spec, dims, &Policy::Uniform(policy)).expect("differentiates").graph;
        let cx = IrContext::new();
        let passes =
            pipeline_text(Goal::Wafer, Mup::Keep, &Fusion::On) + ",lower-to-wafer{width=12 height=9}";
        let passes = Pipeline::parse(&passes).expect("a pipeline");
        let mut module = import(&cx, &graph).expect("it imports");
        let error = run(&mut module, &passes, Watch::default()).map(|_| ()).expect_err("no places for it");
        assert!(matches!(error, RunError::Pass { internal: false, .. }), "{error}");
        assert!(error.to_string().contains("has no place on a wafer yet"), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// The pass `recompute` makes of a module what the rewrite of the graph makes of the graph, and a step of every model
    /// becomes a program for the GPU.
    #[test]
    fn every_checked_model_trains_on_a_gpu(spec in specs(), policy in 0usize..3, batch in 1u64..3) {
        let policy = Recompute::ALL[policy];
        let forward = graph(&spec, Mode::Forward, batch);
        let cx = IrContext::new();
        let mut module = import(&cx, &differentiate(&forward).expect("differentiates")).expect("imports");
        let text = training_text(Goal::Gpu, policy, &Fusion::On);
        let report = run(&mut module, &Pipeline::parse(&text).expect("a pipeline"), Watch::default()).expect("runs");
        let whole = training(&spec, forward.dims, &Policy::Uniform(policy)).expect("differentiates");
        let told = report.recompute.expect("a report");
        prop_assert_eq!((told.saved_bytes, told.again), (whole.recompute.saved_bytes, whole.recompute.again));
        match emit_gpu(&module, "sm_80", &Options::default()) {
            Ok(lowered) => {
                let kept = lowered.program.buffers.iter().filter(|buffer| buffer.kind == BufferKind::Kept);
                // Beside what the graph keeps there are the sums of attention, which only GPUs keep.
                let (sums, slots): (Vec<_>, Vec<_>) = kept.partition(|buffer| buffer.name.ends_with("log_sums"));
                prop_assert_eq!(slots.len(), whole.graph.slots.len());
                prop_assert!(sums.is_empty() || policy == Recompute::Selective);
            }
            Err(error) => {
                let odd = spec.head_dim % 2 == 1 && error.to_string().contains("odd number of columns");
                prop_assert!(odd, "{}", error);
            }
        }
    }
}
