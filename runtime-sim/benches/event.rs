//! Level event: word-hops per second on one and two threads, and what compiled ops are worth.
//! `cargo bench -p lapidary-runtime-sim`

#[allow(dead_code, reason = "each target uses some of the programs")]
#[path = "../tests/programs/mod.rs"]
mod programs;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lapidary_runtime_sim::event::{Options, simulate_with};
use lapidary_runtime_sim::program::WaferProgram;
use lapidary_runtime_sim::text::parse;
use lapidary_runtime_sim::{Checked, FabricSpec, check};
use programs::{Linear, all_reduce, linear};
use std::collections::BTreeMap;
use std::hint::black_box;

fn checked(text: &str) -> Checked<WaferProgram> {
    let program = parse(text, "bench").unwrap_or_else(|e| panic!("{e}"));
    check(&program, &FabricSpec::wse2()).unwrap_or_else(|e| panic!("{e:?}"))
}

fn event(c: &mut Criterion) {
    let sizes = Linear { columns: 32, rows: 8, features: 4, tokens: 64, outputs: 4 };
    let cases = [
        ("reduce-broadcast 32x32, 64 words", checked(&all_reduce(32, 32, 64))),
        ("reduce-broadcast 128x128, 64 words", checked(&all_reduce(128, 128, 64))),
        ("linear 32x8", checked(&linear(sizes, "f32"))),
    ];
    let mut group = c.benchmark_group("event");
    group.sample_size(10);
    for (name, program) in &cases {
        let plain = Options { threads: 1, ..Options::default() };
        let run = |options: &Options| simulate_with(program, BTreeMap::new(), options);
        let Ok(once) = run(&plain) else { panic!("{name} runs") };
        group.throughput(Throughput::Elements(once.report.word_hops));
        group.bench_function(format!("{name}, 1 thread"), |b| b.iter(|| black_box(run(&plain))));
        let two = Options { threads: 2, ..plain.clone() };
        group.bench_function(format!("{name}, 2 threads"), |b| b.iter(|| black_box(run(&two))));
        let slow = Options { compiled: false, ..plain.clone() };
        group.bench_function(format!("{name}, interpreted"), |b| b.iter(|| black_box(run(&slow))));
    }
    group.finish();
}

criterion_group!(benches, event);
criterion_main!(benches);
