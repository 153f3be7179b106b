//! Whole stored models as wafer programs, word by word on simulated PEs, against what a public implementation computed.

mod decode;

use lapidary_hardware::builtin::machine;
use lapidary_ir::{IrContext, Module, import};
use lapidary_models::{DType, Dims, Graph, Mode};
use lapidary_passes::pipeline::pipeline_text;
use lapidary_passes::wafer::{
    EmitError, EmitOptions, HostData, Pipeline, Scope, Shown, WaferArtifact, emit, emit_pipeline,
};
use lapidary_passes::{Fusion, Goal, Mup, Watch, run};
use lapidary_runtime_sim::program::WaferProgram;
use lapidary_runtime_sim::{FabricSpec, analytic, check, event, flow};
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
    let passes = lapidary_passes::Pipeline::parse(&passes).unwrap();
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
    let params = floats(stored);
    let ids: Vec<i32> = stored.ids.iter().flatten().map(|id| *id as i32).collect();
    let values = |data: &HostData| data.values(|name| params.get(name).map(Vec::as_slice), &ids);
    let tensors =
        generated.host.iter().filter_map(|(name, data)| Some((name.clone(), values(data)?))).collect();
    let run = event::simulate(&checked, tensors).unwrap_or_else(|fault| panic!("{fault}"));
    distance(&run.tensors["output"], &stored.expected["logits"].data)
}

/// The parameters as 32-bit numbers.
fn floats(stored: &Stored) -> BTreeMap<String, Vec<f32>> {
    let params = stored.params::<f64>(&stored.spec);
    let floats = |data: &[f64]| data.iter().map(|v| *v as f32).collect();
    params.iter().map(|(name, tensor)| (name.clone(), floats(&tensor.data))).collect()
}

/// Largest difference, relative to the largest stored value.
fn distance(found: &[f32], expected: &[f64]) -> f64 {
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

/// Cycles of a program at levels event, flow and analytic.
fn levels(program: &WaferProgram) -> [u64; 3] {
    let checked = check(program, &FabricSpec::wse2()).unwrap_or_else(|faults| panic!("{}", faults[0]));
    let event = event::simulate(&checked, BTreeMap::new()).unwrap_or_else(|fault| panic!("{fault}")).report;
    [event.cycles, flow::time(&checked).unwrap().cycles, analytic::time(&checked).unwrap().cycles]
}

/// Event is the judge: flow is within 5 % of it, analytic within 15 %.
fn agree(name: &str, [event, flow, analytic]: [u64; 3]) {
    let off = |other: u64| 100.0 * (other as f64 / event as f64 - 1.0);
    println!(
        "{name}: event {event}, flow {flow} ({:+.1} %), analytic {analytic} ({:+.1} %)",
        off(flow),
        off(analytic)
    );
    assert!(off(flow).abs() < 5.0, "{name}: flow {flow}, event {event}");
    assert!(off(analytic).abs() < 15.0, "{name}: analytic {analytic}, event {event}");
}

/// Collectives and programs written by hand are held in `runtime-sim/tests/levels.rs`.
#[test]
fn stages_of_models_take_the_same_time_at_three_levels() {
    for (name, grid) in [
        ("crystal-tiny", (16, 16)),
        ("crystal-tiny", (7, 24)),
        ("amber-tiny", (8, 8)),
        ("amber-tiny", (20, 9)),
    ] {
        let artifact = compile(&Stored::open(name), grid, Mup::Fold, Scope::Stages);
        let stages: Vec<_> = artifact.stages.iter().map(|stage| (stage.name.as_str(), stage.times)).collect();
        assert_eq!(stages, [("layer", 3), ("after", 1)]);
        for stage in &artifact.stages {
            agree(&format!("{name} on {grid:?}, {}", stage.name), levels(&stage.generated.program));
        }
    }
}

/// Every layer with rows and weights of its own, one sequence behind the other.
fn pipelined(stored: &Stored, grid: (u32, u32), mup: Mup, sequences: u32) -> Pipeline {
    shown(stored, grid, mup, sequences, Shown::default())
}

/// The same with copies.
fn shown(stored: &Stored, grid: (u32, u32), mup: Mup, sequences: u32, shown: Shown) -> Pipeline {
    let length = stored.ids[0].len() as u64;
    let emit = |module: &Module<'_>| emit_pipeline(module, &machine("cs2").unwrap(), sequences, shown);
    compile_with(stored, grid, mup, length, emit).unwrap_or_else(|fault| panic!("{fault}"))
}

/// What is made of the placed forward pass of one sequence.
fn compile_with<T>(
    stored: &Stored,
    (width, height): (u32, u32),
    mup: Mup,
    seq: u64,
    emit: impl FnOnce(&Module<'_>) -> Result<T, EmitError>,
) -> Result<T, EmitError> {
    let mut spec = stored.spec.clone();
    (spec.dtype.params, spec.dtype.compute) = (DType::F32, DType::F32);
    let graph = Graph::build(&spec, Mode::Forward, Dims { batch: 1, seq, cached: 0 }).unwrap();
    let cx = IrContext::new();
    let mut module = import(&cx, &graph).unwrap();
    let passes = pipeline_text(Goal::Wafer, mup, &Fusion::On);
    let passes = format!("{passes},lower-to-wafer{{width={width} height={height}}}");
    run(&mut module, &lapidary_passes::Pipeline::parse(&passes).unwrap(), Watch::default())
        .unwrap_or_else(|fault| panic!("{fault}"));
    emit(&module)
}

#[test]
fn layers_in_a_pipeline_give_the_stored_logits() {
    for (name, grid, mup) in [
        ("crystal-tiny", (16, 16), Mup::Keep),
        ("amber-tiny", (9, 12), Mup::Fold),
        ("llama3-tiny", (12, 12), Mup::Fold),
    ] {
        let stored = Stored::open(name);
        let sequences = stored.ids.len() as u32;
        let plain = ran(&stored, &pipelined(&stored, grid, mup, sequences));
        let error = distance(&plain.1, &stored.expected["logits"].data);
        assert!(error < 2e-5, "{name}: {error}");
        let pipeline = shown(&stored, grid, mup, sequences, Shown { stream: true, cache: true });
        let (tensors, logits) = ran(&stored, &pipeline);
        assert_eq!(logits, plain.1, "{name}: copies change nothing");
        assert_eq!(pipeline.copies.stream.len(), stored.spec.n_layers as usize + 1);
        assert_eq!(pipeline.copies.cache.len(), stored.spec.n_layers as usize);
        if mup == Mup::Keep {
            for (number, copy) in pipeline.copies.stream.iter().enumerate() {
                let error = distance(&tensors[copy], &stored.expected[&format!("hidden.{number}")].data);
                assert!(error < 2e-5, "{name}, hidden.{number}: {error}");
            }
        }
    }
}

/// All tensors after a run, and the logits among them.
fn ran(stored: &Stored, pipeline: &Pipeline) -> (BTreeMap<String, Vec<f32>>, Vec<f32>) {
    let checked = check(&pipeline.program, &FabricSpec::wse2()).unwrap_or_else(|f| panic!("{}", f[0]));
    let params = floats(stored);
    let ids: Vec<i32> = stored.ids.iter().flatten().map(|id| *id as i32).collect();
    let values = |data: &HostData| data.values(|name| params.get(name).map(Vec::as_slice), &ids);
    let host = pipeline.host.iter();
    let tensors = host.filter_map(|(name, data)| Some((name.clone(), values(data)?))).collect();
    let mut run = event::simulate(&checked, tensors).unwrap_or_else(|fault| panic!("{fault}"));
    let logits = run.tensors.remove(&pipeline.output).unwrap();
    (run.tensors, logits)
}

/// A second sequence comes as long behind the first as the slowest region takes, not as all of them do.
#[test]
fn regions_of_a_pipeline_work_at_the_same_time() {
    let stored = Stored::open("crystal-tiny");
    let cycles =
        [1, 2, 3].map(|sequences| levels(&pipelined(&stored, (16, 16), Mup::Fold, sequences).program));
    for (sequences, cycles) in (1..).zip(cycles) {
        agree(&format!("pipeline of {sequences} sequences"), cycles);
    }
    let [first, second, third] = cycles.map(|levels| levels[0]);
    assert!(second - first < first / 2, "{first} {second}");
    assert!(third - second <= second - first + first / 50, "{first} {second} {third}");
}
