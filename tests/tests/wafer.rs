//! Whole stored models as wafer programs, word by word on simulated PEs, against what a public implementation computed.

use lapidary_hardware::builtin::machine;
use lapidary_ir::{IrContext, import};
use lapidary_models::{DType, Dims, Graph, Mode};
use lapidary_passes::pipeline::pipeline_text;
use lapidary_passes::wafer::{EmitOptions, Scope, WaferArtifact, emit};
use lapidary_passes::{Fusion, Goal, Mup, Pipeline, Watch, run};
use lapidary_runtime_sim::{FabricSpec, check, event, flow};
use lapidary_tests::checkpoint::Stored;
use std::collections::BTreeMap;

/// The model as a wafer program on a grid, with all its layers or one stage at a time.
fn compile(stored: &Stored, grid: (u32, u32), mup: Mup, scope: Scope) -> WaferArtifact {
    let mut spec = stored.spec.clone();
    (spec.dtype.params, spec.dtype.compute) = (DType::F32, DType::F32);
    let dims = Dims { batch: stored.ids.len() as u64, seq: stored.ids[0].len() as u64, cached: 0 };
    let graph = Graph::build(&spec, Mode::Forward, dims).unwrap();
    let cx = IrContext::new();
    let mut module = import(&cx, &graph).unwrap();
    let (width, height) = grid;
    let passes = pipeline_text(Goal::Wafer, mup, &Fusion::On);
    let passes = format!("{passes},lower-to-wafer{{width={width} height={height}}}");
    let passes = Pipeline::parse(&passes).unwrap();
    run(&mut module, &passes, Watch::default()).unwrap_or_else(|fault| panic!("{fault}"));
    let artifact = emit(&module, &machine("cs2").unwrap(), &EmitOptions { scope });
    module.verify().unwrap();
    artifact.unwrap_or_else(|fault| panic!("{fault}"))
}

/// Largest error of the logits, relative to their largest value.
fn error(stored: &Stored, grid: (u32, u32), mup: Mup) -> f64 {
    let artifact = compile(stored, grid, mup, Scope::Whole);
    let [stage] = &artifact.stages[..] else { panic!("one program") };
    let generated = &stage.generated;
    let checked =
        check(&generated.program, &FabricSpec::wse2()).unwrap_or_else(|faults| panic!("{}", faults[0]));
    let params = stored.params::<f64>(&stored.spec);
    let params: BTreeMap<&String, Vec<f32>> =
        params.iter().map(|(name, tensor)| (name, tensor.data.iter().map(|v| *v as f32).collect())).collect();
    let ids: Vec<i32> = stored.ids.iter().flatten().map(|id| *id as i32).collect();
    let values = |data: &lapidary_passes::wafer::HostData| {
        data.values(|name| params.get(&name.to_owned()).map(Vec::as_slice), &ids)
    };
    let tensors =
        generated.host.iter().filter_map(|(name, data)| Some((name.clone(), values(data)?))).collect();
    let run = event::simulate(&checked, tensors).unwrap_or_else(|fault| panic!("{fault}"));
    let (found, expected) = (&run.tensors["output"], &stored.expected["logits"].data);
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0f64, |most, v| most.max(v.abs()));
    found.iter().zip(expected).fold(0f64, |most, (a, b)| most.max((f64::from(*a) - b).abs())) / largest
}

#[test]
fn stored_models_come_out_right_on_simulated_wafers() {
    for (name, grid) in [("crystal-tiny", (16, 16)), ("amber-tiny", (16, 16)), ("pythia-tiny", (12, 20))] {
        let error = error(&Stored::open(name), grid, Mup::Fold);
        assert!(error < 2e-5, "{name}: {error}");
    }
}

#[test]
fn shared_keys_and_kept_multipliers_come_out_right() {
    let error_of = |name, grid, mup| error(&Stored::open(name), grid, mup);
    assert!(error_of("llama3-tiny", (9, 7), Mup::Fold) < 2e-5);
    assert!(error_of("crystal-tiny", (8, 8), Mup::Keep) < 2e-5);
}

#[test]
fn a_layer_takes_the_same_time_at_both_levels() {
    let artifact = compile(&Stored::open("crystal-tiny"), (16, 16), Mup::Fold, Scope::Stages);
    let stages: Vec<_> = artifact.stages.iter().map(|stage| (stage.name.as_str(), stage.times)).collect();
    assert_eq!(stages, [("layer", 3), ("after", 1)]);
    let program = &artifact.main().unwrap().generated.program;
    let checked = check(program, &FabricSpec::wse2()).unwrap_or_else(|faults| panic!("{}", faults[0]));
    let (flow, event) =
        (flow::time(&checked).unwrap(), event::simulate(&checked, BTreeMap::new()).unwrap().report);
    let apart = flow.cycles.abs_diff(event.cycles) as f64 / event.cycles as f64;
    assert!(apart < 0.05, "flow {} and event {}", flow.cycles, event.cycles);
}
