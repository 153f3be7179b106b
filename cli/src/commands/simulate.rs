//! `lapidary simulate`: a wafer program through the simulator, and where the cycles go.

use super::print_json;
use crate::args::{Level, Simulate};
use crate::failure::{Exit, Failure, Fault};
use crate::show;
use crate::wafer_artifact::WaferArtifact;
use lapidary_runtime_sim::program::WaferProgram;
use lapidary_runtime_sim::report::HotLink;
use lapidary_runtime_sim::{Checked, Report, check, event, flow};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Instant;

/// The document of `simulate --json`.
#[derive(Serialize)]
struct Simulated<'r> {
    schema: &'static str,
    version: u32,
    model: &'r str,
    layers: u64,
    /// Tokens a second through all layers; embedding and head are not part of the program.
    tokens_per_s: Option<f64>,
    #[serde(flatten)]
    report: &'r Report,
    wall_s: f64,
}

/// Runs the verb.
pub fn run(args: &Simulate) -> Result<(), Failure> {
    let artifact = WaferArtifact::read(&args.artifact)?;
    let name = args.artifact.display().to_string();
    let checked = check(&artifact.program, &artifact.fabric).map_err(|errors| Failure {
        exit: Exit::InvalidInput,
        faults: errors.iter().map(|error| Fault::new(format!("{name}: {error}"))).collect(),
    })?;
    let start = Instant::now();
    let report = time(&checked, args.level, &name)?;
    let wall_s = start.elapsed().as_secs_f64();
    let tokens_per_s =
        artifact.tokens.map(|tokens| tokens as f64 / (report.seconds * artifact.layers as f64));
    if args.json {
        let (model, layers) = (artifact.model.as_str(), artifact.layers);
        let schema = "lapidary/simulation";
        return print_json(&Simulated {
            schema,
            version: 1,
            model,
            layers,
            tokens_per_s,
            report: &report,
            wall_s,
        });
    }
    print(&artifact, &report, tokens_per_s, wall_s);
    Ok(())
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

fn print(artifact: &WaferArtifact, report: &Report, tokens_per_s: Option<f64>, wall_s: f64) {
    println!(
        "{} on {}: {} PEs, level {}, simulated in {}",
        artifact.model,
        artifact.fabric.name,
        show::count(report.pes),
        report.level,
        show::seconds(wall_s),
    );
    let cycles = show::count(report.cycles);
    println!("{cycles} cycles = {} at {:.2} GHz", show::seconds(report.seconds), report.clock_hz / 1e9);
    if let (Some(rate), Some(tokens)) = (tokens_per_s, artifact.tokens) {
        println!(
            "{} layers over {} tokens: {} tokens/s (embedding and head are not in the program)",
            artifact.layers,
            show::count(tokens),
            show::count(rate.round() as u64)
        );
    }
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
    let rows = report
        .assumptions
        .iter()
        .map(|a| vec![a.name.clone(), format!("{} {}", a.value, a.unit), a.source.clone()]);
    println!("{}", show::table(&["assumption", "value", "source"], &[], rows));
}
