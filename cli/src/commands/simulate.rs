//! `lapidary simulate`: a wafer program through the simulator, and where the cycles go.

use super::print_json;
use crate::args::{Level, Simulate};
use crate::failure::{Exit, Failure, Fault};
use crate::show;
use crate::wafer_artifact::{Stage, WaferArtifact};
use lapidary_runtime_sim::program::WaferProgram;
use lapidary_runtime_sim::report::HotLink;
use lapidary_runtime_sim::{Checked, Report, check, event, flow};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Instant;

/// The document of `simulate --json`: the figures of the longest stage, and of the whole model.
#[derive(Serialize)]
struct Simulated<'r> {
    schema: &'static str,
    version: u32,
    model: &'r str,
    /// Tokens a second through every stage.
    tokens_per_s: Option<f64>,
    /// Cycles of one pass over the model: every stage as often as it runs.
    model_cycles: u64,
    #[serde(flatten)]
    longest: &'r Report,
    stages: Vec<StageTime<'r>>,
    wall_s: f64,
}

/// One stage in the document.
#[derive(Serialize)]
struct StageTime<'r> {
    stage: &'r str,
    times: u64,
    report: &'r Report,
}

/// Runs the verb.
pub fn run(args: &Simulate) -> Result<(), Failure> {
    let artifact = WaferArtifact::read(&args.artifact)?;
    let name = args.artifact.display().to_string();
    let start = Instant::now();
    let reports = artifact
        .stages
        .iter()
        .map(|stage| simulate(stage, &artifact, args.level, &name))
        .collect::<Result<Vec<Report>, _>>()?;
    let wall_s = start.elapsed().as_secs_f64();
    let stages = artifact.stages.iter().zip(&reports);
    let model_cycles: u64 = stages.clone().map(|(stage, report)| stage.times * report.cycles).sum();
    let Some((_, longest)) = stages.clone().max_by_key(|(stage, report)| stage.times * report.cycles) else {
        return Err(Failure::new(Exit::InvalidInput, format!("{name}: holds no program")));
    };
    let seconds = model_cycles as f64 / longest.clock_hz;
    let tokens_per_s = artifact.tokens.map(|tokens| tokens as f64 / seconds);
    if args.json {
        let stages =
            stages.map(|(stage, report)| StageTime { stage: &stage.name, times: stage.times, report });
        return print_json(&Simulated {
            schema: "lapidary/simulation",
            version: 1,
            model: &artifact.model,
            tokens_per_s,
            model_cycles,
            longest,
            stages: stages.collect(),
            wall_s,
        });
    }
    println!(
        "{} on {}, level {}, simulated in {}",
        artifact.model,
        artifact.fabric.name,
        longest.level,
        show::seconds(wall_s)
    );
    if let (Some(rate), Some(tokens)) = (tokens_per_s, artifact.tokens) {
        println!(
            "{} cycles = {} for one pass over {} tokens: {} tokens/s",
            show::count(model_cycles),
            show::seconds(seconds),
            show::count(tokens),
            show::count(rate.round() as u64)
        );
    }
    stages.for_each(|(stage, report)| print(stage, report));
    print_assumptions(longest);
    Ok(())
}

fn simulate(stage: &Stage, artifact: &WaferArtifact, level: Level, name: &str) -> Result<Report, Failure> {
    let checked = check(&stage.program, &artifact.fabric).map_err(|errors| Failure {
        exit: Exit::InvalidInput,
        faults: errors.iter().map(|error| Fault::new(format!("{name}: {}: {error}", stage.name))).collect(),
    })?;
    time(&checked, level, name)
}

fn time(checked: &Checked<WaferProgram>, level: Level, name: &str) -> Result<Report, Failure> {
    let refused = |what: String| Failure::new(Exit::InvalidInput, format!("{name}: {what}"));
    match level {
        Level::Event => {
            let run =
                event::simulate(checked, BTreeMap::new()).map_err(|error| refused(error.to_string()))?;
            Ok(run.report)
        }
        Level::Flow => flow::time(checked).map_err(|error| refused(error.to_string())),
    }
}

fn print(stage: &Stage, report: &Report) {
    println!(
        "\nstage {}, run {} times: {} cycles = {} at {:.2} GHz on {} PEs",
        stage.name,
        stage.times,
        show::count(report.cycles),
        show::seconds(report.seconds),
        report.clock_hz / 1e9,
        show::count(report.pes),
    );
    let sram = show::bytes(report.sram_peak_bytes);
    println!("PEs busy {:.1} %; fullest PE {sram} (class {})", report.pe_busy_pct, report.sram_peak_class);
    if let Some(HotLink { at, port, words, load_pct }) = &report.hottest_link {
        let words = show::count(*words);
        println!(
            "hottest link: out of ({}, {}) {port:?}, {words} words, {load_pct:.1} % of cycles",
            at.x, at.y
        );
    }
    print_phases(report);
    print_terms(report);
}

fn print_phases(report: &Report) {
    let rows = report.phases.iter().map(|phase| {
        let cycles = phase.end.saturating_sub(phase.start);
        let share = 100.0 * cycles as f64 / report.cycles.max(1) as f64;
        vec![phase.name.clone(), show::count(phase.start), show::count(phase.end), format!("{share:.1} %")]
    });
    if report.phases.len() > 1 {
        println!(
            "\n{}",
            show::table(&["phase", "first PE in", "last PE out", "of all cycles"], &[1, 2, 3], rows)
        );
    }
}

fn print_terms(report: &Report) {
    let mut terms: Vec<(&String, &u64)> = report.terms.iter().filter(|(_, cycles)| **cycles > 0).collect();
    terms.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let rows = terms.iter().map(|(name, cycles)| {
        let share = 100.0 * **cycles as f64 / report.cycles.max(1) as f64;
        vec![name.to_string(), show::count(**cycles), format!("{share:.1} %")]
    });
    println!("\n{}", show::table(&["cause, in the PE that ends last", "cycles", "share"], &[1, 2], rows));
}

fn print_assumptions(report: &Report) {
    let rows = report.assumptions.iter();
    let rows = rows.map(|a| vec![a.name.clone(), format!("{} {}", a.value, a.unit), a.source.clone()]);
    println!("{}", show::table(&["assumption", "value", "source"], &[], rows));
}
