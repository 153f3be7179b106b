//! `lapidary simulate`: a wafer program through the simulator, and where the cycles go.

pub mod page;

use super::{jobs, print_json};
use crate::args::{Global, Level, Simulate};
use crate::failure::{Exit, Failure, Fault};
use crate::training_step::StepTime;
use crate::wafer_artifact::{Stage, WaferArtifact};
use crate::{interrupt, output, show};
use lapidary_runtime_sim::flow::FOLLOWED;
use lapidary_runtime_sim::page::Stage as Shown;
use lapidary_runtime_sim::program::{Stmt, WaferProgram};
use lapidary_runtime_sim::report::HotLink;
use lapidary_runtime_sim::trace::{self, Trace};
use lapidary_runtime_sim::{Checked, Report, analytic, check_shared, event, flow};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// The document of `simulate --json`: the figures of the longest stage, and of the whole model.
#[derive(Serialize)]
struct Simulated<'r> {
    schema: &'static str,
    version: u32,
    model: &'r str,
    /// Ctrl-C came before every stage was simulated: the figures are those of the stages that are there.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    interrupted: bool,
    /// Tokens a second through every stage.
    tokens_per_s: Option<f64>,
    /// Cycles of one pass over the model: every stage as often as it runs.
    model_cycles: u64,
    /// A whole training step, where the artifact is of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<StepTime>,
    #[serde(flatten)]
    longest: &'r Report,
    stages: Vec<StageTime>,
    wall_s: f64,
}

/// One stage in the document.
#[derive(Serialize)]
struct StageTime {
    stage: String,
    times: u64,
    report: Report,
}

/// Runs the verb. Ctrl-C prints the stages that are done and is exit 130.
pub fn run(args: &Simulate, global: &Global) -> Result<(), Failure> {
    let artifact = Arc::new(WaferArtifact::read(&args.artifact)?);
    let name = args.artifact.display().to_string();
    if artifact.stages.is_empty() {
        return Err(Failure::new(Exit::InvalidInput, format!("{name}: holds no program")));
    }
    let start = Instant::now();
    let (shared, level) = (Arc::clone(&artifact), args.level);
    let (threads, traced) = (jobs(global), args.trace.is_some() || args.report.is_some());
    let order = longest_first(&artifact.stages);
    let turns = order.clone();
    let done = interrupt::watched(artifact.stages.len(), threads, move |turn| {
        let looked = Look { level, threads, traced, name: &name };
        simulate(&shared.stages[turns[turn]], &shared, &looked)
    })?;
    let wall_s = start.elapsed().as_secs_f64();
    let mut results: Vec<(usize, Option<Result<Timed, Failure>>)> =
        order.into_iter().zip(done.results).collect();
    results.sort_by_key(|(index, _)| *index);
    let timed: Vec<Option<Timed>> =
        results.into_iter().map(|(_, timed)| timed.transpose()).collect::<Result<_, _>>()?;
    if let Some(path) = &args.trace {
        write_trace(path, &artifact, &timed)?;
    }
    let reports: Vec<Option<Report>> = timed.into_iter().map(|timed| timed.map(|t| t.report)).collect();
    let stages: Vec<(&Stage, &Report)> = finished(&artifact, &reports);
    if let Some(path) = &args.report {
        write_page(path, args, &artifact, &stages)?;
    }
    if let Some((_, longest)) = stages.iter().max_by_key(|(stage, report)| stage.times * report.cycles) {
        show_all(args, &artifact, &stages, longest, wall_s)?;
    }
    match done.interrupted {
        false => Ok(()),
        true => {
            let (done, all) = (stages.len(), artifact.stages.len());
            Err(Failure::new(Exit::Interrupted, format!("interrupted with {done} of {all} stages simulated")))
        }
    }
}

/// The stages with most code first, so that no long one is left for the end.
fn longest_first(stages: &[Stage]) -> Vec<usize> {
    let statements = |stage: &Stage| {
        let tasks = stage.program.classes.iter().flat_map(|class| &class.tasks);
        let length = |stmt: &Stmt| if let Stmt::Piece(piece) = stmt { piece.body.len() } else { 1 };
        tasks.flat_map(|task| &task.body).map(length).sum::<usize>()
    };
    let mut order: Vec<usize> = (0..stages.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(statements(&stages[*index])));
    order
}

fn finished<'r>(artifact: &'r WaferArtifact, reports: &'r [Option<Report>]) -> Vec<(&'r Stage, &'r Report)> {
    artifact
        .stages
        .iter()
        .zip(reports)
        .filter_map(|(stage, report)| Some((stage, report.as_ref()?)))
        .collect()
}

/// Prints what was simulated; figures of the whole model only if all of it was.
fn show_all(
    args: &Simulate,
    artifact: &WaferArtifact,
    stages: &[(&Stage, &Report)],
    longest: &Report,
    wall_s: f64,
) -> Result<(), Failure> {
    let model_cycles: u64 = stages.iter().map(|(stage, report)| stage.times * report.cycles).sum();
    let seconds = model_cycles as f64 / longest.clock_hz;
    let whole = stages.len() == artifact.stages.len();
    let tokens = artifact.tokens.filter(|_| whole);
    let tokens_per_s = tokens.map(|tokens| tokens as f64 / seconds);
    let programs: Vec<(u64, &Report)> = stages.iter().map(|(stage, report)| (stage.times, *report)).collect();
    let step = artifact.step.zip(tokens).map(|(step, tokens)| step.time(&programs, tokens, &artifact.fabric));
    if args.json {
        let each =
            |(stage, report): &(&'_ Stage, &'_ Report)| (stage.name.clone(), stage.times, (*report).clone());
        let stages = stages.iter().map(each).map(|(stage, times, report)| StageTime { stage, times, report });
        return print_json(&Simulated {
            schema: page::SCHEMA,
            version: 1,
            model: &artifact.model,
            interrupted: !whole,
            tokens_per_s,
            model_cycles,
            step,
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
    if let (Some(rate), Some(tokens)) = (tokens_per_s, tokens) {
        println!(
            "{} cycles = {} for one pass over {} tokens: {} tokens/s",
            show::count(model_cycles),
            show::seconds(seconds),
            show::count(tokens),
            show::count(rate.round() as u64)
        );
    }
    if let Some(step) = &step {
        step.print(&artifact.fabric);
    }
    stages.iter().for_each(|(stage, report)| print(stage, report));
    print_assumptions(longest);
    Ok(())
}

/// How to look at a program.
struct Look<'n> {
    level: Level,
    threads: usize,
    traced: bool,
    name: &'n str,
}

/// What was seen.
struct Timed {
    report: Report,
    trace: Option<Trace>,
}

fn simulate(stage: &Stage, artifact: &WaferArtifact, look: &Look) -> Result<Timed, Failure> {
    let checked = check_shared(&stage.program, &artifact.fabric).map_err(|errors| Failure {
        exit: Exit::InvalidInput,
        faults: errors
            .iter()
            .map(|error| Fault::new(format!("{}: {}: {error}", look.name, stage.name)))
            .collect(),
    })?;
    time(&checked, look)
}

fn time(checked: &Checked<WaferProgram>, look: &Look) -> Result<Timed, Failure> {
    let refused = |what: String| Failure::new(Exit::InvalidInput, format!("{}: {what}", look.name));
    match look.level {
        Level::Event => {
            let pes: u64 = checked.get().classes.iter().map(|class| class.count()).sum();
            let options = event::Options {
                threads: look.threads,
                // One thread follows it, several times as long.
                critical_path: look.traced || pes <= FOLLOWED,
                trace: look.traced,
                ..event::Options::default()
            };
            let run = event::simulate_with(checked, BTreeMap::new(), &options);
            let run = run.map_err(|error| refused(error.to_string()))?;
            Ok(Timed { report: run.report, trace: run.trace })
        }
        Level::Analytic => {
            let (report, trace) =
                analytic::time_traced(checked).map_err(|error| refused(error.to_string()))?;
            Ok(Timed { report, trace: look.traced.then_some(trace) })
        }
        Level::Flow => {
            if !look.traced {
                let report = flow::time(checked).map_err(|error| refused(error.to_string()))?;
                return Ok(Timed { report, trace: None });
            }
            let (report, trace) = flow::time_traced(checked).map_err(|error| refused(error.to_string()))?;
            Ok(Timed { report, trace: Some(trace) })
        }
    }
}

/// Writes the page of the stages that were simulated.
fn write_page(
    path: &Path,
    args: &Simulate,
    artifact: &WaferArtifact,
    stages: &[(&Stage, &Report)],
) -> Result<(), Failure> {
    let shown = stages.iter().map(|(stage, report)| Shown { name: &stage.name, times: stage.times, report });
    let shown: Vec<Shown<'_>> = shown.collect();
    output::file(path, &page::of_stages(&artifact.model, &shown, &page::placement(&args.artifact)))
}

/// A trace in the JSON format of Chrome's trace viewer.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TraceFile {
    display_time_unit: &'static str,
    trace_events: Vec<trace::Event>,
}

/// Writes what happened when in the stages that were simulated.
fn write_trace(path: &Path, artifact: &WaferArtifact, timed: &[Option<Timed>]) -> Result<(), Failure> {
    let stages = (0..).zip(&artifact.stages).zip(timed);
    let events =
        stages.filter_map(|((n, stage), timed)| Some(timed.as_ref()?.trace.as_ref()?.events(n, &stage.name)));
    let file = TraceFile { display_time_unit: "ns", trace_events: events.flatten().collect() };
    let text = serde_json::to_string(&file)
        .map_err(|error| Failure::new(Exit::Internal, format!("no JSON form of the trace: {error}")))?;
    output::file(path, &text)
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
    print_cycles("cause, in the PE that ends last", &report.terms, report.cycles);
    if !report.critical_path.is_empty() {
        print_cycles("cause, on the critical path", &report.critical_path, report.cycles);
    } else if report.level != "analytic" {
        let most = show::count(FOLLOWED);
        println!("the critical path of more than {most} PEs is followed with --trace or --report");
    }
    report.limits.iter().for_each(|limit| println!("left out at level {}: {limit}", report.level));
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

fn print_cycles(title: &str, by_cause: &BTreeMap<String, u64>, all: u64) {
    let mut terms: Vec<(&String, &u64)> = by_cause.iter().filter(|(_, cycles)| **cycles > 0).collect();
    terms.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let rows = terms.iter().map(|(name, cycles)| {
        let share = 100.0 * **cycles as f64 / all.max(1) as f64;
        vec![name.to_string(), show::count(**cycles), format!("{share:.1} %")]
    });
    println!("\n{}", show::table(&[title, "cycles", "share"], &[1, 2], rows));
}

fn print_assumptions(report: &Report) {
    let rows = report.assumptions.iter();
    let rows = rows.map(|a| vec![a.name.clone(), format!("{} {}", a.value, a.unit), a.source.clone()]);
    println!("{}", show::table(&["assumption", "value", "source"], &[], rows));
}
