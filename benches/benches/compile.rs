//! How long the compiler takes: Amber and CrystalCoder from specification to program, without NVRTC; and the
//! planner over Amber's cluster.

use criterion::{Criterion, criterion_group, criterion_main};
use lapidary_hardware::HardwareSpec;
use lapidary_hardware::builtin::machine;
use lapidary_ir::IrContext;
use lapidary_models::{Dims, Graph, Mode, builtin};
use lapidary_passes::cuda::Options;
use lapidary_passes::lower_to_cuda::emit_gpu;
use lapidary_passes::pipeline::{pipeline, pipeline_text};
use lapidary_passes::run::Watch;
use lapidary_passes::wafer::{self, EmitOptions};
use lapidary_passes::{Fusion, Goal, Mup, Pipeline, run};
use lapidary_planner::{Physical, PlanRequest, plan};
use std::hint::black_box;

/// A prefill of 8 x 2048 tokens.
fn graph(model: &str) -> Graph {
    let spec = builtin(model).expect("a built-in model");
    Graph::build(&spec, Mode::Prefill, Dims { batch: 8, seq: 2048, cached: 0 }).expect("it builds")
}

/// Everything between the graph and the texts of the kernels.
fn to_gpu(graph: &Graph) -> usize {
    let cx = IrContext::new();
    let mut module = lapidary_ir::import::import(&cx, graph).expect("it imports");
    let passes = pipeline(Goal::Gpu, Mup::Fold, &Fusion::On).expect("a pipeline");
    run(&mut module, &passes, Watch::default()).expect("the passes run");
    emit_gpu(&module, "sm_80", &Options::default()).expect("it lowers").sources.len()
}

/// Everything between the graph and the programs of the wafer, before their check.
fn to_wafer(graph: &Graph, cg1: &HardwareSpec) -> usize {
    let cx = IrContext::new();
    let mut module = lapidary_ir::import::import(&cx, graph).expect("it imports");
    let passes = pipeline_text(Goal::Wafer, Mup::Fold, &Fusion::On) + ",lower-to-wafer";
    run(&mut module, &Pipeline::parse(&passes).expect("a pipeline"), Watch::default())
        .expect("the passes run");
    wafer::emit(&module, cg1, &EmitOptions::default()).expect("it places").stages.len()
}

fn place(c: &mut Criterion) {
    let spec = builtin("amber").expect("a built-in model");
    let dims = Dims { batch: 66, seq: 2048, cached: 0 };
    let graph = Graph::build(&spec, Mode::Forward, dims).expect("it builds");
    let cg1 = machine("cg1").expect("a built-in machine");
    let mut group = c.benchmark_group("compile-cg1-sim-without-check");
    group.sample_size(10).bench_function("amber", |b| b.iter(|| to_wafer(black_box(&graph), &cg1)));
    group.finish();
}

fn compile(c: &mut Criterion) {
    let mut group = c.benchmark_group("compile-a100-without-nvrtc");
    for model in ["amber", "crystalcoder"] {
        let graph = graph(model);
        group.bench_function(model, |b| b.iter(|| to_gpu(black_box(&graph))));
    }
    group.finish();
}

fn planner(c: &mut Criterion) {
    let (model, machine) = (builtin("amber").expect("amber"), machine("amber-cluster").expect("its cluster"));
    let request = PlanRequest { global_batch: Some(2240), ..PlanRequest::new(&model, &machine) };
    let prices = Physical::default();
    c.bench_function("plan-amber-cluster", |b| b.iter(|| plan(black_box(&request), &prices)));
}

criterion_group!(benches, compile, place, planner);
criterion_main!(benches);
