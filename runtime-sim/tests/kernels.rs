//! Kernels of transformer layers are programs: their numbers are right at level event, and level flow takes the same
//! time.

#[allow(dead_code, reason = "each test binary uses some of the programs")]
mod programs;

use lapidary_runtime_sim::event::{Run, simulate};
use lapidary_runtime_sim::program::WaferProgram;
use lapidary_runtime_sim::text::parse;
use lapidary_runtime_sim::{FabricSpec, check, collectives, flow};
use programs::{Linear, linear, rms_norm};
use std::collections::BTreeMap;

/// Small values that differ, the same for the same seed.
fn values(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| (((i + seed) * 7919) % 31) as f32 / 16.0 - 0.9).collect()
}

fn run(text: &str) -> (Run, flow_report::Report, WaferProgram) {
    let program = parse(text, "kernel").unwrap_or_else(|e| panic!("{e}\n{text}"));
    let checked = check(&program, &FabricSpec::wse2()).unwrap_or_else(|e| panic!("{e:#?}\n{text}"));
    let tensors = program.tensors.iter().enumerate();
    let tensors: BTreeMap<String, Vec<f32>> =
        tensors.map(|(i, (name, t))| (name.clone(), values(t.elements as usize, i))).collect();
    let event = simulate(&checked, tensors).unwrap_or_else(|e| panic!("{e}"));
    let flow = flow::time(&checked).unwrap_or_else(|e| panic!("{e}"));
    (event, flow, program)
}

use lapidary_runtime_sim::report as flow_report;

fn within(flow: u64, event: u64, percent: f64, what: &str) {
    let off = 100.0 * (flow as f64 - event as f64).abs() / event as f64;
    assert!(off <= percent || flow.abs_diff(event) <= 2, "{what}: flow {flow}, event {event}: {off:.2} %");
}

fn sizes() -> Vec<Linear> {
    let s = |columns, rows, features, tokens, outputs| Linear { columns, rows, features, tokens, outputs };
    vec![
        s(2, 1, 2, 3, 1),
        s(4, 2, 3, 8, 2),
        s(5, 3, 4, 4, 3),
        s(8, 4, 2, 16, 2),
        s(16, 2, 6, 5, 1),
        s(64, 1, 2, 8, 2),
    ]
}

#[test]
fn weight_streaming_linear_has_the_right_numbers_and_flow_the_same_time() {
    for s in sizes() {
        for (dtype, tolerance) in [("f32", 1e-5), ("f16", 4e-3)] {
            let (event, flow, _) = run(&linear(s, dtype));
            let (x, w, y) = (&event.tensors["x"], &event.tensors["w"], &event.tensors["y"]);
            let (ins, outs) = ((s.columns * s.features) as usize, (s.columns * s.outputs) as usize);
            for t in 0..(s.rows * s.tokens) as usize {
                for o in 0..outs {
                    let dot: f32 = (0..ins).map(|k| x[t * ins + k] * w[o * ins + k]).sum();
                    assert!(
                        (y[t * outs + o] - dot).abs() <= tolerance * ins as f32,
                        "{s:?} {dtype}: y[{t}, {o}]"
                    );
                }
            }
            within(flow.cycles, event.report.cycles, 5.0, &format!("{s:?} {dtype}"));
            let work = u64::from(s.features * s.tokens) * outs as u64 / if dtype == "f32" { 1 } else { 2 };
            assert!(event.report.cycles >= work, "faster than its multiplications");
        }
    }
}

#[test]
fn rms_norm_has_the_right_numbers_and_flow_the_same_time() {
    for (columns, features, tokens) in [(2, 3, 4), (6, 5, 8), (16, 2, 3)] {
        let (event, flow, _) = run(&rms_norm(columns, features, tokens));
        let all = (columns * features) as usize;
        let (x, g, y) = (&event.tensors["x"], &event.tensors["g"], &event.tensors["y"]);
        for t in 0..tokens as usize {
            let row = &x[t * all..(t + 1) * all];
            let mean = row.iter().map(|v| v * v).sum::<f32>() / all as f32;
            for k in 0..all {
                let expected = row[k] / (mean + 1e-5).sqrt() * g[k];
                assert!((y[t * all + k] - expected).abs() < 1e-4, "y[{t}, {k}]");
            }
        }
        within(flow.cycles, event.report.cycles, 5.0, &format!("norm {columns} x {features} x {tokens}"));
        let names: Vec<&str> = event.report.phases.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["sum", "scale"]);
    }
}

#[test]
fn flow_times_collectives_like_event() {
    let spec = FabricSpec::wse2();
    let programs = [
        collectives::chain_reduce(12, 40),
        collectives::broadcast(12, 40),
        collectives::reduce_broadcast(9, 17),
        collectives::tree_reduce(16, 20),
        collectives::two_phase_reduce(&[4, 4, 4, 4], 30),
        collectives::xy_reduce(5, 8),
        collectives::all_reduce_2d(6, 5, 12),
    ];
    for (index, program) in programs.iter().enumerate() {
        let checked = check(program, &spec).unwrap_or_else(|e| panic!("{e:?}"));
        let event = simulate(&checked, BTreeMap::new()).unwrap_or_else(|e| panic!("{e}")).report;
        let flow = flow::time(&checked).unwrap_or_else(|e| panic!("{e}"));
        within(flow.cycles, event.cycles, 5.0, &format!("collective {index}"));
        assert_eq!((flow.words, flow.word_hops, flow.pes), (event.words, event.word_hops, event.pes));
        assert!(
            (flow.pe_busy_pct - event.pe_busy_pct).abs() < 1.0,
            "{} {}",
            flow.pe_busy_pct,
            event.pe_busy_pct
        );
    }
}

#[test]
fn data_tasks_pay_their_activation_and_flow_agrees() {
    let text = "wafer 2 x 1 tensor v[6] tensor s[8]
class a at (0, 0) { buffer v: f32[6] @0 load v dims 6 at d0 route 0: ramp -> east task t start { mov out(0) <- v len 6 } }
class b at (1, 0) { buffer s: f32[8] @0 store s dims 8 at d0 route 0: west -> ramp
  task axpy data(0) times 6 { add s <- s, trigger len 8 } }";
    let (event, flow, _) = run(text);
    let sum: f32 = event.tensors["v"].iter().sum();
    assert!(event.tensors["s"].iter().all(|s| (s - sum).abs() < 1e-5));
    let spec = FabricSpec::wse2();
    let each = u64::from(spec.task_activation + spec.op_issue) + 8;
    assert_eq!(event.report.cycles, 6 + 6 * each, "first word after 6 cycles, then 6 tasks");
    assert_eq!(event.report.terms["task_activation"], 6 * u64::from(spec.task_activation));
    within(flow.cycles, event.report.cycles, 1.0, "data task");
}

#[test]
fn a_deadlock_is_explained() {
    let text = "wafer 2 x 1
class a at (0, 0) { buffer v: f32[8] @0 route 0: ramp -> east route 1: east -> ramp
  task t start { mov v <- in(1) len 8 mov out(0) <- v len 8 } }
class b at (1, 0) { buffer v: f32[8] @0 route 0: west -> ramp route 1: ramp -> west
  task t start { mov v <- in(0) len 8 mov out(1) <- v len 8 } }";
    let program = parse(text, "ring").unwrap();
    let errors = check(&program, &FabricSpec::wse2()).unwrap_err();
    let message = errors[0].to_string();
    assert!(
        message
            .contains("cyclic wait: PE (0, 0) waits for words on colour 1 from PE (1, 0); PE (1, 0) waits"),
        "{message}"
    );
}

#[test]
fn a_deadlock_by_full_queues_is_found_by_the_simulator() {
    let both = |own: u8, other: u8, out: &str, back: &str| {
        format!(
            "buffer v: f32[64] @0 route {own}: ramp -> {out} route {other}: {back} -> ramp
  task t start {{ mov out({own}) <- v len 64 mov v <- in({other}) len 64 }}"
        )
    };
    let text = format!(
        "wafer 2 x 1\nclass a at (0, 0) {{ {} }}\nclass b at (1, 0) {{ {} }}",
        both(0, 1, "east", "east"),
        both(1, 0, "west", "west")
    );
    let program = parse(&text, "exchange").unwrap();
    let checked = check(&program, &FabricSpec::wse2()).unwrap();
    let error = simulate(&checked, BTreeMap::new()).unwrap_err().to_string();
    assert!(
        error.contains("in a circle") && error.contains("PE (0, 0) of class `a` waits for room for word"),
        "{error}"
    );
    let flow = lapidary_runtime_sim::flow::time(&checked).unwrap_err().to_string();
    assert!(
        flow.starts_with("deadlock, 2 PEs are stuck: PE (0, 0) of class `a` waits for room for word"),
        "{flow}"
    );
    let beside = text.replace("mov out", "par { mov out").replace("len 64 }", "len 64 } }");
    let checked = check(&parse(&beside, "beside").unwrap(), &FabricSpec::wse2()).unwrap();
    let cycles = simulate(&checked, BTreeMap::new()).unwrap().report.cycles;
    assert_eq!(cycles, 64 + 6, "side by side, both directions run at full rate");
}
