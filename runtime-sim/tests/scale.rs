//! A whole wafer, in words and in flows: `cargo test -p lapidary-runtime-sim --test scale -- --nocapture` prints the rates.

#[allow(dead_code, reason = "each test binary uses some of the programs")]
mod programs;

use lapidary_runtime_sim::event::{Options, simulate, simulate_with};
use lapidary_runtime_sim::text::parse;
use lapidary_runtime_sim::{FabricSpec, check, flow};
use programs::{Linear, all_reduce, linear};
use std::collections::BTreeMap;
use std::time::Instant;

#[test]
fn reduce_and_broadcast_over_a_grid_sums_everything() {
    let program = parse(&all_reduce(20, 13, 6), "all").unwrap();
    let checked = check(&program, &FabricSpec::wse2()).unwrap_or_else(|e| panic!("{e:?}"));
    let v: Vec<f32> = (0..20 * 13 * 6).map(|i| (i % 7) as f32).collect();
    let run = simulate(&checked, BTreeMap::from([("v".into(), v.clone())])).unwrap();
    let sum: Vec<f32> = (0..6).map(|k| v.iter().skip(k).step_by(6).sum()).collect();
    assert!(run.tensors["out"].chunks(6).all(|o| o == sum));
    let rows = 6 + 6 * 19;
    let column = 6 + 6 * 12;
    let back = 6 + 19 + 12 + 2 * 2 + 1;
    assert_eq!(run.report.cycles, rows + column + back);
    let flow = flow::time(&checked).unwrap();
    assert!(flow.cycles.abs_diff(run.report.cycles) <= 2, "{}", flow.cycles);
}

#[test]
fn a_whole_wafer_reduces_and_broadcasts() {
    let words = 16;
    let program = parse(&all_reduce(750, 994, words), "wafer").unwrap();
    let start = Instant::now();
    let checked = check(&program, &FabricSpec::wse2()).unwrap_or_else(|e| panic!("{e:?}"));
    println!("check {:?}", start.elapsed());
    let [one, two] = [1, 2].map(|threads| {
        let options = Options { threads, ..Options::default() };
        let tensors = BTreeMap::from([("v".into(), vec![1.0; 745_500 * words as usize])]);
        let start = Instant::now();
        let run = simulate_with(&checked, tensors, &options).unwrap();
        let (wall, hops) = (start.elapsed(), run.report.word_hops);
        println!("{threads} threads: {} cycles, {hops} word-hops, {wall:?}", run.report.cycles);
        println!("{:.2e} word-hops per second", hops as f64 / wall.as_secs_f64());
        run
    });
    assert!(one == two, "threads change a cycle or a number");
    let run = one;
    assert!(run.tensors["out"].iter().all(|v| *v == 745_500.0));
    let words = u64::from(words);
    let (rows, column) = (words + 6 * 749, words + 6 * 993);
    let back = words + 749 + 993 + 2 * 2 + 1;
    assert_eq!(run.report.cycles, rows + column + back);
}

#[test]
fn a_layer_sized_linear_on_a_whole_wafer_is_timed_from_flows() {
    let sizes = Linear { columns: 750, rows: 994, features: 6, tokens: 136, outputs: 30 };
    let program = parse(&linear(sizes, "f16"), "wafer").unwrap();
    let start = Instant::now();
    let checked = check(&program, &FabricSpec::wse2()).unwrap_or_else(|e| panic!("{e:?}"));
    println!("check {:?}", start.elapsed());
    let start = Instant::now();
    let report = flow::time(&checked).unwrap();
    println!("flow {:?}", start.elapsed());
    assert_eq!(report.host_in_words, 750 * 6 * 750 * 30, "every weight enters once");
    let macs_of_a_pe = 6 * 136 * 750 * 30;
    assert!(report.cycles >= macs_of_a_pe / 4, "{} cycles: faster than the datapath", report.cycles);
    assert!(report.cycles <= 2 * macs_of_a_pe, "{} cycles", report.cycles);
    let flops = 2.0 * 750.0 * 994.0 * 6.0 * 136.0 * 750.0 * 30.0;
    println!("{:.3e} FLOP/s", flops / report.seconds);
}
