//! What training on wafers takes, beside the compiled program: the plan, its rate and days, and what binds.

use super::Job;
use crate::args::RecomputeSwitch;
use crate::commands::plan::refused;
use crate::failure::{Exit, Failure};
use crate::show;
use lapidary_planner::wafer::release::{OWN, RELEASES};
use lapidary_planner::wafer::training::{Question, TrainingAnswer, answer, heaviest};
use lapidary_planner::{Candidate, Degrees, Pins, Release};

/// Terms that are listed.
const SHOWN_TERMS: usize = 9;

/// Plans the training of the job's model on its machine. `None` where the job does not train on wafers.
pub fn plan(job: &Job<'_>) -> Result<Option<TrainingAnswer>, Failure> {
    let Some(machine) = job.machine.as_ref().filter(|machine| job.args.train && machine.wafer().is_some())
    else {
        return Ok(None);
    };
    let question = Question {
        model: &job.spec,
        machine,
        seq_len: job.graph.dims.seq,
        systems: job.args.systems,
        global_batch: job.args.global_batch,
        release: job.args.release.as_deref().map(release).transpose()?,
        tokens: tokens(&job.args.tokens)?,
        pins: Pins::parse(&pins(job).join(",")).map_err(refused)?,
    };
    match answer(&question).map_err(refused)? {
        Ok(found) => Ok(Some(found)),
        Err(document) => {
            let nearest = document.nearest.as_ref();
            let why = nearest.map_or(String::new(), |nearest| nearest.rejected_by.clone());
            let failure = Failure::new(Exit::DoesNotFit, format!("no plan trains {}: {why}", job.spec.name));
            Err(match nearest.filter(|nearest| !nearest.would_fit.is_empty()) {
                Some(nearest) => failure.help(format!("this would fit: {}", nearest.would_fit.join("; or "))),
                None => failure,
            })
        }
    }
}

/// What is decided already: by `--pin`, and by the flags that decide the program too.
fn pins(job: &Job<'_>) -> Vec<String> {
    let mode = job.modes.wafer.map(|mode| format!("mode={}", mode.name()));
    let recompute = job.args.recompute.map(|switch| match switch {
        // A plan never keeps the inside of attention.
        RecomputeSwitch::None | RecomputeSwitch::Selective => "recompute=none".to_string(),
        RecomputeSwitch::Full => "recompute=full".to_string(),
    });
    job.args.pin.iter().cloned().chain(mode).chain(recompute).collect()
}

/// A release by its name.
fn release(name: &str) -> Result<Release, Failure> {
    Release::named(name).ok_or_else(|| {
        let known =
            [OWN].iter().chain(RELEASES.iter()).map(|release| release.name).collect::<Vec<_>>().join(", ");
        Failure::new(Exit::Usage, format!("--release {name}: no such software release"))
            .help(format!("there are {known}"))
    })
}

fn tokens(given: &[f64]) -> Result<Vec<f64>, Failure> {
    match given.iter().find(|tokens| !(tokens.is_finite() && **tokens > 0.0)) {
        Some(wrong) => {
            Err(Failure::new(Exit::Usage, format!("--tokens {wrong}: a phase has more than none")))
        }
        None => Ok(given.to_vec()),
    }
}

/// Prints the answer.
pub fn print(answer: &TrainingAnswer) {
    let Degrees::Wafer(degrees) = answer.plan.degrees else { return };
    let plan = &answer.plan;
    println!(
        "\ntraining on {} systems, {} x {} tokens a step: micro-batch {} x {} accumulated, {}, {} of columns, plan {}",
        degrees.systems,
        answer.global_batch,
        answer.seq_len,
        degrees.micro_batch,
        degrees.accumulation,
        degrees.mode.name(),
        if degrees.replicas == 1 { "one group".to_string() } else { format!("{} groups", degrees.replicas) },
        plan.name,
    );
    println!("{}", rate(plan));
    println!(
        "software release: {} ({}; {})",
        answer.release.name, answer.release.value, answer.release.source
    );
    println!("recomputation: {}", answer.recompute_reason);
    if let Some(run) = &answer.run {
        println!("not asked for, so as in the published run: {run}");
    }
    if !answer.phases.is_empty() {
        let rows = answer.phases.iter().enumerate().map(|(index, phase)| {
            vec![
                (index + 1).to_string(),
                format!("{:.1} B", phase.tokens / 1e9),
                format!("{:.2}", phase.days),
            ]
        });
        println!("\n{}", show::table(&["phase", "tokens", "days"], &[1, 2], rows));
        println!("all phases: {:.2} days", answer.phases.iter().map(|phase| phase.days).sum::<f64>());
    }
    print_terms(plan);
    print_changes(answer);
    print_others(answer);
}

fn rate(plan: &Candidate) -> String {
    let percent = |share: Option<f64>| share.map_or(String::new(), |share| format!("{:.1} %", share * 100.0));
    format!(
        "{} tokens/s, {} a step; the wafers compute {} of it, MFU {}; bound by {}; {} of {} on a wafer",
        plan.tokens_per_s.map(|rate| show::count(rate.round() as u64)).unwrap_or_default(),
        plan.step_time_s.map(show::seconds).unwrap_or_default(),
        percent(plan.busy_share),
        percent(plan.mfu),
        plan.bound_by.as_deref().unwrap_or_default(),
        show::bytes(plan.memory_total_bytes),
        show::bytes(plan.memory_capacity_bytes),
    )
}

fn print_terms(plan: &Candidate) {
    let step = plan.step_time_s.unwrap_or(f64::NAN);
    let rows = heaviest(plan).into_iter().take(SHOWN_TERMS);
    let rows = rows.map(|(name, seconds)| {
        vec![name.to_string(), show::seconds(seconds), format!("{:.1} %", seconds / step * 100.0)]
    });
    println!("\n{}", show::table(&["part of a step", "time", "share"], &[1, 2], rows));
}

fn print_changes(answer: &TrainingAnswer) {
    let rows = answer.changes.iter();
    let rows = rows.map(|change| vec![change.what.clone(), format!("{:+.1} %", change.step_pct)]);
    println!("{}", show::table(&["this alone", "would change the step by"], &[1], rows));
}

fn print_others(answer: &TrainingAnswer) {
    let rows = answer.others.iter().map(|other| {
        vec![
            other.name.clone(),
            other.tokens_per_s.map(|rate| show::count(rate.round() as u64)).unwrap_or_default(),
            show::bytes(other.memory_total_bytes),
            other.bound_by.clone().unwrap_or_default(),
        ]
    });
    println!("{}", show::table(&["next best plans", "tokens/s", "memory", "bound by"], &[1, 2], rows));
}
