//! One program, three levels: event judges, flow is within 5 %, analytic within 15 % where words do not wait for links.

#[allow(dead_code, reason = "each test binary uses some of the programs")]
mod programs;

use lapidary_runtime_sim::collectives::Collective;
use lapidary_runtime_sim::program::WaferProgram;
use lapidary_runtime_sim::text::parse;
use lapidary_runtime_sim::{FabricSpec, Report, analytic, check, event, flow};
use programs::{Linear, all_reduce, linear, rms_norm};
use std::collections::BTreeMap;

/// Two streams on one link, as fast as the link each.
const SHARED: &str = "wafer 4 x 1
class a at (0, 0) { buffer v: f32[200] @0 route 0: ramp -> east task t start { mov out(0) <- v len 200 } }
class b at (1, 0) { buffer v: f32[200] @0 route 0: west -> east route 1: ramp -> east
  task t start { mov out(1) <- v len 200 } }
class c at (2, 0) { buffer v: f32[200] @0 route 0: west -> ramp route 1: west -> east
  task t start { mov v <- in(0) len 200 } }
class d at (3, 0) { buffer v: f32[200] @0 route 1: west -> ramp task t start { mov v <- in(1) len 200 } }";

/// A sender with two readers, of which one is busy first: the other gets its words when that one takes them.
const FULL: &str = "wafer 4 x 1
class a at (0, 0) { buffer v: f32[100] @0 route 0: ramp -> east
  task t start { mov out(0) <- v len 100 mul v <- v, 2.0 len 100 } }
class b at (1, 0) { buffer v: f32[100] @0 route 0: west -> ramp, east route 1: ramp -> east
  task t start { loop 9 { mul v <- v, 2.0 len 100 } mov v <- in(0) len 100 mov out(1) <- v len 100 } }
class c at (2, 0) { buffer v: f32[100] @0 route 0: west -> ramp route 1: west -> east
  task t start { mov v <- in(0) len 100 } }
class d at (3, 0) { buffer v: f32[100] @0 route 1: west -> ramp
  task t start { loop 3 { mul v <- v, 2.0 len 100 } mov v <- in(1) len 100 } }";

/// Words of three colours over the links to the west, from places farther and farther away.
const MEETING: &str = "wafer 5 x 1
class root at (0, 0) { buffer v: f32[192] @0 route 0: east -> ramp route 1: east -> ramp route 2: east -> ramp
  task t start { par { mov v[0] <- in(0) len 64 mov v[64] <- in(1) len 64 mov v[128] <- in(2) len 64 } } }
class near at (1, 0) { buffer v: f32[64] @0 route 0: ramp -> west route 1: east -> west route 2: east -> west
  task t start { mul v <- v, 2.0 len 64 mov out(0) <- v len 64 } }
class next at (2, 0) { buffer v: f32[64] @0 route 1: ramp -> west route 2: east -> west
  task t start { mov out(1) <- v len 64 } }
class pass at (3, 0) { route 2: east -> west }
class far at (4, 0) { buffer v: f32[64] @0 route 2: ramp -> west task t start { mov out(2) <- v len 64 } }";

/// Cycles that levels may differ by whatever the length.
const FEW: u64 = 2;

fn levels(name: &str, program: &WaferProgram, analytic_limit: f64, wrong: &mut Vec<String>) {
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
    assert!(flow.limits.is_empty(), "{name}: flow leaves out {:?}", flow.limits);
    assert!(!analytic.limits.is_empty(), "{name}: closed forms know no queues and say so");
    let far = |other: u64, limit: f64| off(other).abs() > limit && other.abs_diff(event.cycles) > FEW;
    if far(flow.cycles, 5.0) || far(analytic.cycles, analytic_limit) {
        wrong.push(line);
    }
    assert_eq!((flow.words, analytic.words), (event.words, event.words), "{name}");
    assert_eq!((flow.word_hops, analytic.word_hops), (event.word_hops, event.word_hops), "{name}");
}

/// Phases, links and heat of both levels that keep them are those of the reports, and those are the same.
#[test]
fn traces_and_heat_tell_what_the_reports_say() {
    let text = all_reduce(20, 13, 6);
    for (name, text) in [("all-reduce", text.as_str()), ("full queues", FULL), ("one link", SHARED)] {
        let checked = check(&parse(text, name).unwrap(), &FabricSpec::wse2()).unwrap();
        let options = event::Options { critical_path: true, trace: true, ..event::Options::default() };
        let run = event::simulate_with(&checked, BTreeMap::new(), &options).unwrap();
        let flow = flow::time_traced(&checked).unwrap();
        for (report, trace) in [(&run.report, &run.trace.unwrap()), (&flow.0, &flow.1)] {
            assert_eq!(report.terms.values().sum::<u64>(), report.cycles, "{name} {}", report.level);
            let phases: Vec<_> =
                trace.phases.iter().map(|p| (&p.name, p.start, p.start + p.cycles)).collect();
            let said: Vec<_> = report.phases.iter().map(|p| (&p.name, p.start, p.end)).collect();
            assert_eq!(phases, said, "{name} {}", report.level);
            let named: Vec<&String> = report.classes.iter().map(|class| &class.name).collect();
            assert!(
                trace.tracks.iter().all(|t| named.contains(&&t.class)) && trace.tracks.len() <= named.len()
            );
            let hottest = report.hottest_link.as_ref().unwrap();
            let link = trace.links.first().unwrap();
            assert_eq!(link.words.iter().sum::<u64>(), hottest.words, "{name} {}", report.level);
            let hot = report.heat.link_load_pct.iter().copied().fold(0.0, f64::max);
            assert!((hot - hottest.load_pct).abs() < 1e-6, "{name} {}: {hot}", report.level);
            assert_eq!(report.heat.sram_bytes.iter().max(), Some(&report.sram_peak_bytes));
            assert!(!trace.events(0, name).is_empty());
        }
        let (event, flow) = (&run.report, &flow.0);
        assert_eq!(
            (&event.sram_peak_class, event.sram_peak_bytes),
            (&flow.sram_peak_class, flow.sram_peak_bytes)
        );
        assert_eq!(event.critical_path.values().sum::<u64>(), event.cycles);
        let near = |a: &f64, b: &f64| (a - b).abs() < 1.0;
        let busy = event.heat.busy_pct.iter().zip(&flow.heat.busy_pct);
        assert!(busy.clone().all(|(a, b)| near(a, b)), "{name}: {:?}", busy.collect::<Vec<_>>());
        let load = event.heat.link_load_pct.iter().zip(&flow.heat.link_load_pct);
        assert!(load.clone().all(|(a, b)| near(a, b)), "{name}: {:?}", load.collect::<Vec<_>>());
    }
}

#[test]
fn three_levels_agree_on_everything_small() {
    let mut wrong = Vec::new();
    for name in Collective::names().filter(|name| *name != "star") {
        for (pes, words) in [(4, 1), (4, 64), (8, 16), (16, 5), (16, 256), (64, 32)] {
            if let Some(program) = Collective::named(name).and_then(|c| c.program(pes, words)) {
                levels(&format!("{name} of {words} words on {pes}"), &program, 15.0, &mut wrong);
            }
        }
    }
    for (name, text) in small_programs() {
        levels(&name, &parse(&text, &name).unwrap(), 15.0, &mut wrong);
    }
    for (name, text) in [("one link", SHARED), ("full queues", FULL), ("three meet", MEETING)] {
        levels(name, &parse(text, name).unwrap(), f64::INFINITY, &mut wrong);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Texts of kernels small enough for every level, with their names.
fn small_programs() -> Vec<(String, String)> {
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
    texts
}

/// The chain of causes that ended last is the same at both levels that follow it: shares of all cycles.
#[test]
fn the_critical_path_of_level_flow_is_that_of_level_event() {
    let mut wrong = Vec::new();
    let mut programs: Vec<(String, WaferProgram)> = Vec::new();
    for name in Collective::names().filter(|name| *name != "star") {
        for (pes, words) in [(4, 64), (16, 5), (64, 32)] {
            let program = Collective::named(name).and_then(|c| c.program(pes, words));
            programs.extend(program.map(|program| (format!("{name} of {words} words on {pes}"), program)));
        }
    }
    let texts = [("one link", SHARED), ("full queues", FULL), ("three meet", MEETING)];
    let texts = texts.map(|(name, text)| (name.to_string(), text.to_string()));
    let texts = small_programs().into_iter().chain(texts);
    programs.extend(texts.map(|(name, text)| (name.clone(), parse(&text, &name).unwrap())));
    for (name, program) in programs {
        let checked = check(&program, &FabricSpec::wse2()).unwrap();
        let options = event::Options { critical_path: true, ..event::Options::default() };
        let event = event::simulate_with(&checked, BTreeMap::new(), &options).unwrap().report;
        let flow = flow::time(&checked).unwrap();
        assert_eq!(flow.critical_path.values().sum::<u64>(), flow.cycles, "{name}");
        let shares = |report: &Report| {
            let share = |cycles: &u64| 100.0 * *cycles as f64 / report.cycles as f64;
            report
                .critical_path
                .iter()
                .map(|(cause, cycles)| (cause.clone(), share(cycles)))
                .collect::<BTreeMap<_, _>>()
        };
        let (of_event, of_flow) = (shares(&event), shares(&flow));
        let off = of_event.iter().map(|(cause, share)| (share - of_flow[cause]).abs()).fold(0.0, f64::max);
        println!(
            "{name}: {off:.1} points\n  event {:?}\n  flow  {:?}",
            event.critical_path, flow.critical_path
        );
        // Where words wait for links, the levels give equal wishes their turns in another order.
        if off > if event.critical_path["contention"] > 0 { 10.0 } else { 1.0 } {
            wrong.push((name, off));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}
