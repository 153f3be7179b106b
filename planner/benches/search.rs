//! How many plans a second are looked at, one thread: in the space that Calculon searches, GPT-3 of 175 B parameters on
//! 1,024 A100 80GB, and over Amber's cluster. `cargo bench -p lapidary-planner --bench search`

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lapidary_hardware::builtin::machine;
use lapidary_planner::{CostModel, Physical, PlanRequest, Roofline, plan};
use std::hint::black_box;

fn ranking(c: &mut Criterion, name: &str, request: &PlanRequest<'_>, prices: &dyn CostModel) {
    let looked_at = plan(request, prices).expect("a plan").counts.evaluated;
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements(looked_at)).sample_size(20);
    group.bench_function(prices.name(), |b| b.iter(|| plan(black_box(request), prices)));
    group.finish();
}

fn search(c: &mut Criterion) {
    let gpt = lapidary_models::builtin("gpt3-175b").expect("a built-in model");
    let dgx = machine("dgx-a100").expect("a built-in machine");
    let prices = Physical::of("megatron-2022").expect("a built-in stack");
    let request =
        PlanRequest { devices: Some(1024), global_batch: Some(1024), ..PlanRequest::new(&gpt, &dgx) };
    ranking(c, "gpt3-175b on 1024", &request, &prices);
    let amber = lapidary_models::builtin("amber").expect("a built-in model");
    let cluster = machine("amber-cluster").expect("a built-in machine");
    let request = PlanRequest { global_batch: Some(2240), ..PlanRequest::new(&amber, &cluster) };
    ranking(c, "amber on 224", &request, &prices);
    ranking(c, "amber on 224", &request, &Roofline::default());
}

criterion_group!(benches, search);
criterion_main!(benches);
