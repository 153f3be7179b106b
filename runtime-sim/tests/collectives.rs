//! The simulator against the published cost model of collectives (arXiv 2404.15888; `tests/data/collectives.csv`).

use lapidary_runtime_sim::event::{Run, simulate};
use lapidary_runtime_sim::program::WaferProgram;
use lapidary_runtime_sim::{FabricSpec, check, collectives};
use std::collections::BTreeMap;

fn run(program: &WaferProgram) -> Run {
    let spec = FabricSpec { max_width: 2048, ..FabricSpec::wse2() };
    let checked = check(program, &spec).unwrap_or_else(|e| panic!("{e:?}"));
    let elements = program.tensors["v"].elements;
    let v = (0..elements).map(|i| (i % 13) as f32).collect();
    simulate(&checked, BTreeMap::from([("v".to_string(), v)])).unwrap_or_else(|e| panic!("{e}"))
}

/// The sum over PEs, exact because all values are small integers.
fn sums(run: &Run, words: usize) -> Vec<f32> {
    run.tensors["v"]
        .chunks(words)
        .fold(vec![0.0; words], |sum, v| sum.iter().zip(v).map(|(a, b)| a + b).collect())
}

#[test]
fn cycles_land_on_the_published_model() {
    let mut worst = Vec::new();
    for line in include_str!("data/collectives.csv").lines().skip(1) {
        let field: Vec<&str> = line.split(',').collect();
        let (pes, words): (u32, u32) = (field[0].parse().unwrap(), field[1].parse().unwrap());
        let published: f64 = field[3].parse().unwrap();
        if u64::from(pes) * u64::from(words) > 300_000 || (field[2] == "star" && pes * words > 20_000) {
            continue; // right as well, but slow in a debug build
        }
        let collective = collectives::Collective::named(field[2]).expect("a known name");
        let program = collective.program(pes, words).expect("a power of two");
        let run = run(&program);
        let sum = sums(&run, words as usize);
        let out = &run.tensors["out"];
        match field[2] {
            "broadcast_1d" | "bcast_2d_PxP" => {
                assert!(out.chunks(words as usize).all(|o| o == &run.tensors["v"][..words as usize]))
            }
            _ => assert!(out.chunks(words as usize).all(|o| o == sum), "{line}"),
        }
        let off = run.report.cycles as f64 - published;
        if off.abs() > 2.0 && off.abs() / published > 0.02 {
            worst.push(format!("{line}: {} cycles", run.report.cycles));
        }
    }
    assert!(worst.is_empty(), "{worst:#?}");
}
