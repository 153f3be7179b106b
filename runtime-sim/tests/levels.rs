//! One program, three levels: event judges, flow is within 5 %, analytic within 15 %.

#[allow(dead_code, reason = "each test binary uses some of the programs")]
mod programs;

use lapidary_runtime_sim::collectives::Collective;
use lapidary_runtime_sim::program::WaferProgram;
use lapidary_runtime_sim::text::parse;
use lapidary_runtime_sim::{FabricSpec, analytic, check, event, flow};
use programs::{Linear, all_reduce, linear, rms_norm};
use std::collections::BTreeMap;

/// Cycles that levels may differ by whatever the length.
const FEW: u64 = 2;

fn levels(name: &str, program: &WaferProgram, wrong: &mut Vec<String>) {
    let checked = check(program, &FabricSpec::wse2()).unwrap_or_else(|e| panic!("{name}: {e:?}"));
    let event = event::simulate(&checked, BTreeMap::new()).unwrap_or_else(|e| panic!("{name}: {e}")).report;
    let flow = flow::time(&checked).unwrap_or_else(|e| panic!("{name}: {e}"));
    let analytic = analytic::time(&checked).unwrap_or_else(|e| panic!("{name}: {e}"));
    let off = |other: u64| (other as f64 / event.cycles as f64 - 1.0) * 100.0;
    let line = format!(
        "{name}: event {}, flow {} ({:+.1} %), analytic {} ({:+.1} %)",
        event.cycles,
        flow.cycles,
        off(flow.cycles),
        analytic.cycles,
        off(analytic.cycles)
    );
    println!("{line}");
    let far = |other: u64, limit: f64| off(other).abs() > limit && other.abs_diff(event.cycles) > FEW;
    if far(flow.cycles, 5.0) || far(analytic.cycles, 15.0) {
        wrong.push(line);
    }
    assert_eq!((flow.words, analytic.words), (event.words, event.words), "{name}");
    assert_eq!((flow.word_hops, analytic.word_hops), (event.word_hops, event.word_hops), "{name}");
}

#[test]
fn three_levels_agree_on_everything_small() {
    let mut wrong = Vec::new();
    for name in Collective::names().filter(|name| *name != "star") {
        for (pes, words) in [(4, 1), (4, 64), (8, 16), (16, 5), (16, 256), (64, 32)] {
            if let Some(program) = Collective::named(name).and_then(|c| c.program(pes, words)) {
                levels(&format!("{name} of {words} words on {pes}"), &program, &mut wrong);
            }
        }
    }
    let mut texts = vec![
        ("chain.wafer".to_string(), include_str!("data/chain.wafer").to_string()),
        ("tasks.wafer".into(), include_str!("data/tasks.wafer").into()),
    ];
    let s = |columns, rows, features, tokens, outputs| Linear { columns, rows, features, tokens, outputs };
    for sizes in
        [s(4, 2, 3, 8, 2), s(8, 4, 2, 16, 2), s(16, 2, 6, 5, 1), s(64, 1, 2, 8, 2), s(12, 3, 8, 32, 4)]
    {
        for dtype in ["f32", "f16"] {
            texts.push((format!("linear {sizes:?} {dtype}"), linear(sizes, dtype)));
        }
    }
    texts.extend(
        [(2, 3, 4), (6, 5, 8), (16, 2, 3), (30, 4, 40)]
            .map(|(c, f, t)| (format!("norm {c} {f} {t}"), rms_norm(c, f, t))),
    );
    texts.extend(
        [(20, 13, 6), (9, 30, 64)].map(|(w, h, n)| (format!("all-reduce {w} {h} {n}"), all_reduce(w, h, n))),
    );
    for (name, text) in texts {
        levels(&name, &parse(&text, &name).unwrap(), &mut wrong);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
