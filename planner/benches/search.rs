//! How many plans a second are looked at in the space that Calculon searches: GPT-3 of 175 B parameters on 1,024
//! A100 80GB, one thread. `cargo bench -p lapidary-planner --bench search`

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lapidary_hardware::builtin::machine;
use lapidary_planner::{Physical, PlanRequest, plan};
use std::hint::black_box;

fn search(c: &mut Criterion) {
    let model = lapidary_models::builtin("gpt3-175b").expect("a built-in model");
    let dgx = machine("dgx-a100").expect("a built-in machine");
    let prices = Physical::of("megatron-2022").expect("a built-in stack");
    let request =
        PlanRequest { devices: Some(1024), global_batch: Some(1024), ..PlanRequest::new(&model, &dgx) };
    let looked_at = plan(&request, &prices).expect("a plan").counts.evaluated;
    let mut group = c.benchmark_group("gpt3-175b on 1024");
    group.throughput(Throughput::Elements(looked_at)).sample_size(20);
    group.bench_function("plans", |b| b.iter(|| plan(black_box(&request), &prices)));
    group.finish();
}

criterion_group!(benches, search);
criterion_main!(benches);
