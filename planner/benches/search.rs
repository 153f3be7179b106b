//! How many plans a second are looked at, one thread: in the space that Calculon searches, GPT-3 of 175 B parameters on
//! 1,024 A100 80GB, and over Amber's cluster. Counted are plans whose time and memory are looked at one by one; those that
//! the search leaves out with the node they are under are printed beside, and so is what was simulated.
//! `cargo bench -p lapidary-planner --bench search`

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lapidary_hardware::builtin::machine;
use lapidary_planner::{Physical, PlanRequest, plan};
use std::hint::black_box;

fn ranking(c: &mut Criterion, name: &str, request: &PlanRequest<'_>, prices: &Physical) {
    let counts = plan(request, prices).expect("a plan").counts;
    println!("{name}: {counts:?}");
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements(counts.evaluated)).sample_size(20);
    let software = prices.stack.name.as_str();
    group.bench_function(software, |b| b.iter(|| plan(black_box(request), prices)));
    group.finish();
}

fn search(c: &mut Criterion) {
    let gpt = lapidary_models::builtin("gpt3-175b").expect("a built-in model");
    let dgx = machine("dgx-a100").expect("a built-in machine");
    let prices = Physical::of("megatron-2022").expect("a built-in stack");
    let request =
        PlanRequest { devices: Some(1024), global_batch: Some(1024), ..PlanRequest::new(&gpt, &dgx) };
    ranking(c, "gpt3-175b on 1024", &request, &prices);
    ranking(c, "gpt3-175b on 1024, best 1000", &PlanRequest { top: Some(1000), ..request }, &prices);
    let amber = lapidary_models::builtin("amber").expect("a built-in model");
    let cluster = machine("amber-cluster").expect("a built-in machine");
    let request = PlanRequest { global_batch: Some(2240), ..PlanRequest::new(&amber, &cluster) };
    ranking(c, "amber on 224", &request, &prices);
    ranking(c, "amber on 224", &request, &Physical::default());
}

criterion_group!(benches, search);
criterion_main!(benches);
