//! `lapidary plan`: the ranked table, what was rejected and why, and the document.

use super::{print_json, serve};
use crate::args::{self, Global, Objective, Plan};
use crate::failure::{Exit, Failure};
use crate::progress::Progress;
use crate::{input, interrupt, output, show};
use indexmap::IndexMap;
use lapidary_models::ModelSpec;
use lapidary_planner::launch::{Launcher, Script, launch};
use lapidary_planner::sensitivity::{MOVED, sensitivity};
use lapidary_planner::step::Stack;
use lapidary_planner::{
    Candidate, Degrees, Physical, Pins, PlanDocument, PlanError, PlanRequest, explain, plan_until, report,
    timeline,
};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Reasons for rejection that the table shows; the document keeps them all.
const SHOWN_REASONS: usize = 8;

/// Runs the verb. No feasible plan is exit 4; the document is printed and written all the same.
pub fn run(args: &Plan, global: &Global) -> Result<(), Failure> {
    let model = input::model(&args.model)?.spec;
    let machine = input::machine(&args.machine)?;
    if args.serve {
        return serve::run(args, &model, &machine, &software(&args.software)?);
    }
    let request = PlanRequest {
        devices: args.devices,
        global_batch: args.global_batch,
        seq_len: args.seq_len,
        pins: Pins::parse(&args.pin.join(",")).map_err(refused)?,
        top: Some(args.top),
        objective: match args.objective {
            Objective::StepTime => lapidary_planner::Objective::StepTime,
            Objective::Memory => lapidary_planner::Objective::Memory,
        },
        ..PlanRequest::new(&model, &machine)
    };
    let mut progress = Progress::new(global, 1);
    let prices = Physical { offload: args.cpu_offload, ..software(&args.software)? };
    let prices = prices.with_straggler(1.0 + args.straggler / 100.0);
    let (interrupted, started) = (interrupt::flag()?, Instant::now());
    let late = || args.budget.is_some_and(|seconds| started.elapsed().as_secs_f64() > seconds);
    let stop = || interrupted.load(Ordering::Relaxed) || late();
    let document =
        progress.stage("ranking plans", || plan_until(&request, &prices, &stop)).map_err(refused)?;
    progress.finish();
    // What cannot be started is refused before anything is written.
    let scripts = scripts(args, &model, &document)?;
    if let Some(path) = &args.output {
        output::file(path, &(json(&document)? + "\n"))?;
    }
    write_pictures(args, &request, &prices, &document)?;
    write_scripts(args, &scripts)?;
    match args.json {
        true => print_json(&document)?,
        false => print(&document, args.explain),
    }
    if args.explain && !args.json && machine.gpu().is_some() {
        print_sensitivity(&request, &prices, &document)?;
    }
    if interrupted.load(Ordering::Relaxed) && !document.complete {
        return Err(Failure::new(Exit::Interrupted, "interrupted: this is the best plan so far"));
    }
    infeasible(&document)
}

/// The page and the trace, where they are asked for.
fn write_pictures(
    args: &Plan,
    request: &PlanRequest<'_>,
    prices: &Physical,
    document: &PlanDocument,
) -> Result<(), Failure> {
    if args.report.is_none() && args.trace.is_none() {
        return Ok(());
    }
    let line = match document.chosen().map(|chosen| chosen.degrees) {
        Some(Degrees::Gpu(plan)) => timeline(request, prices, &plan).map_err(refused)?,
        _ => None,
    };
    if let Some(path) = &args.report {
        let page = report::page(document, line.as_ref());
        let page = page.map_err(|error| Failure::new(Exit::Internal, format!("report: {error}")))?;
        output::file(path, &page)?;
    }
    match (&args.trace, line) {
        (Some(path), Some(line)) => output::file(path, &(line.to_chrome().to_string() + "\n")),
        (Some(_), None) => {
            tracing::warn!("no trace is written: no plan for GPUs is chosen");
            Ok(())
        }
        (None, _) => Ok(()),
    }
}

/// The scripts that start the chosen plan, where they are asked for.
fn scripts(args: &Plan, model: &ModelSpec, document: &PlanDocument) -> Result<Vec<Script>, Failure> {
    if document.chosen.is_none() && !args.emit.is_empty() {
        tracing::warn!("no script is written: no plan is chosen");
        return Ok(Vec::new());
    }
    let script = |wanted: &args::Launcher| {
        let launcher = match wanted {
            args::Launcher::Torchrun => Launcher::Torchrun,
            args::Launcher::Slurm => Launcher::Slurm,
            args::Launcher::Megatron => Launcher::Megatron,
        };
        launch(document, model, launcher).map_err(|error| Failure::new(Exit::Unsupported, error.to_string()))
    };
    args.emit.iter().map(script).collect()
}

/// Writes scripts beside the document, or here.
fn write_scripts(args: &Plan, scripts: &[Script]) -> Result<(), Failure> {
    let beside = args.output.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
    scripts.iter().try_for_each(|script| output::script(&beside.join(script.file), &script.text))
}

fn software(name: &str) -> Result<Physical, Failure> {
    Physical::of(name).ok_or_else(|| {
        let names: Vec<&str> = Stack::builtin().iter().map(|stack| stack.name.as_str()).collect();
        Failure::new(Exit::Usage, format!("no software stack is called `{name}`"))
            .help(format!("there are: {}", names.join(", ")))
    })
}

/// Numbers that are listed: the heaviest.
const SHOWN_NUMBERS: usize = 12;

/// What the chosen plan and pure FSDP owe to each number.
fn print_sensitivity(
    request: &PlanRequest<'_>,
    prices: &Physical,
    document: &PlanDocument,
) -> Result<(), Failure> {
    let fsdp = document.find("pure-fsdp").filter(|fsdp| document.chosen.as_ref() != Some(&fsdp.name));
    for candidate in document.chosen().into_iter().chain(fsdp) {
        let Degrees::Gpu(plan) = &candidate.degrees else { continue };
        let list = sensitivity(request, prices, plan).map_err(refused)?;
        println!("\n{}: change of the step when one number moves by {:.0} %", candidate.name, MOVED * 100.0);
        let percent = |value: f64| format!("{value:+.2} %");
        let rows = list.iter().take(SHOWN_NUMBERS);
        let rows = rows.map(|one| vec![one.name.clone(), percent(one.smaller_pct), percent(one.larger_pct)]);
        println!("{}", show::table(&["number", "smaller", "larger"], &[1, 2], rows));
    }
    Ok(())
}

/// A question that no plan answers: what is wrong with it, with the exit code of the contract.
pub(super) fn refused(error: PlanError) -> Failure {
    let exit = match error {
        PlanError::Arithmetic { .. } | PlanError::Experts { .. } => Exit::Unsupported,
        PlanError::Pin { .. } => Exit::Usage,
        PlanError::Empty { .. } => Exit::DoesNotFit,
        _ => Exit::InvalidInput,
    };
    let failure = Failure::new(exit, error.to_string());
    match error {
        PlanError::Empty { nearest: Some(nearest), .. } => failure.help(format!("this would fit: {nearest}")),
        _ => failure,
    }
}

fn json(document: &PlanDocument) -> Result<String, Failure> {
    document.to_json().map_err(|error| Failure::new(Exit::Internal, format!("plan: {error}")))
}

fn infeasible(document: &PlanDocument) -> Result<(), Failure> {
    let Some(nearest) = &document.nearest else { return Ok(()) };
    let inputs = &document.inputs;
    let what = format!("no plan for {} fits {} x {}", inputs.model, inputs.devices, inputs.device);
    let why = &nearest.rejected_by;
    let failure = Failure::new(
        Exit::DoesNotFit,
        match &nearest.name {
            Some(name) => format!("{what}; nearest is {name}: {why}"),
            None => format!("{what}: {why}"),
        },
    );
    Err(match nearest.would_fit.is_empty() {
        true => failure,
        false => failure.help(format!("this would fit: {}", nearest.would_fit.join("; or "))),
    })
}

fn print(document: &PlanDocument, explained: bool) {
    let inputs = &document.inputs;
    println!(
        "{} ({} parameters) on {}: {} x {}, {} a node; step of {} x {} tokens; prices by the cost model `{}`\n",
        inputs.model,
        show::count(inputs.parameters),
        inputs.machine,
        inputs.devices,
        inputs.device,
        inputs.devices_per_node,
        inputs.global_batch,
        inputs.seq_len,
        document.cost_model,
    );
    let header = ["rank", "plan", "", "memory", "step", "", "tokens/s", "MFU", "busy", "bound by"];
    let shown = document.candidates.iter().filter(|c| c.rejected_by.is_none());
    let rows = shown.scan(0, |rank, candidate| {
        let pinned = inputs.pins.allow(&candidate.degrees);
        *rank += usize::from(pinned);
        Some(row(document, pinned.then_some(*rank), candidate))
    });
    println!("{}", show::table(&header, &[0, 3, 4, 5, 6, 7, 8], rows));
    print_error_bar(document);
    print_rejected(document);
    if let Some(loss) = document.pin_loss_pct {
        println!("the pins {} cost {loss:.1} % of step time", inputs.pins);
    }
    for warning in &document.warnings {
        println!("warning: {warning}");
    }
    if explained {
        print_explained(document);
    }
}

/// Where the error bar of the chosen plan comes from.
fn print_error_bar(document: &PlanDocument) {
    let Some(bar) = document.chosen().and_then(|chosen| chosen.error_bar.as_ref()) else { return };
    let more = match bar.unmeasured_software {
        true => "; no run was fitted to this software, so the spread of the others' pace is in it",
        false => "",
    };
    let (like, runs, groups) = (bar.like.replace('-', " "), bar.runs, bar.groups);
    println!(
        "±: nine of ten of {runs} published runs ({like}; {groups} groups, counting the same) were nearer{more}\n"
    );
}

/// A candidate's row; a baseline that does not keep to the pins has no rank.
fn row(document: &PlanDocument, rank: Option<usize>, candidate: &Candidate) -> Vec<String> {
    let chosen = document.chosen.as_deref() == Some(candidate.name.as_str());
    let percent = |share: Option<f64>| share.map_or(String::new(), |share| format!("{:.1} %", share * 100.0));
    vec![
        match rank {
            Some(rank) if chosen => format!("▸ {rank}"),
            Some(rank) => rank.to_string(),
            None => "-".to_string(),
        },
        candidate.name.clone(),
        candidate.baseline.clone().unwrap_or_default(),
        memory(candidate),
        candidate.step_time_s.map(show::seconds).unwrap_or_default(),
        candidate.error_bar.as_ref().map(|bar| format!("± {:.0} %", bar.percent)).unwrap_or_default(),
        candidate.tokens_per_s.map(|rate| show::count(rate.round() as u64)).unwrap_or_default(),
        percent(candidate.mfu),
        percent(candidate.busy_share),
        candidate.bound_by.clone().unwrap_or_default(),
    ]
}

fn memory(candidate: &Candidate) -> String {
    let (total, capacity) = (candidate.memory_total_bytes, candidate.memory_capacity_bytes);
    format!("{} of {}", show::bytes(total), show::bytes(capacity))
}

/// One line for each reason: rejected baselines first, then the rest in rank order.
fn print_rejected(document: &PlanDocument) {
    let mut reasons: IndexMap<&str, Vec<&Candidate>> = IndexMap::new();
    let rejected = || document.candidates.iter().filter(|c| c.rejected_by.is_some());
    let baselines_first =
        rejected().filter(|c| c.baseline.is_some()).chain(rejected().filter(|c| c.baseline.is_none()));
    for candidate in baselines_first {
        reasons.entry(candidate.rejected_by.as_deref().unwrap_or_default()).or_default().push(candidate);
    }
    let counts = document.counts;
    let end = match (counts.rejected, reasons.is_empty()) {
        (0, _) => "",
        (_, true) => "; others of their kind fit, with other micro-batches or groups of columns",
        (_, false) => ":",
    };
    println!(
        "{} plans looked at, {} left out by a bound, {} rejected{end}",
        counts.evaluated, counts.left_out, counts.rejected
    );
    for (reason, candidates) in reasons.iter().take(SHOWN_REASONS) {
        let first = candidates[0];
        let baseline = first.baseline.as_ref().map(|name| format!(" [{name}]")).unwrap_or_default();
        let more =
            if candidates.len() > 1 { format!(" and {} alike", candidates.len() - 1) } else { String::new() };
        let change = first.smallest_change.as_ref().map(|change| format!("; fits with {change}"));
        println!("  ✗ {}{baseline}{more}: {reason}{}", first.name, change.unwrap_or_default());
    }
    if reasons.len() > SHOWN_REASONS {
        println!("  … and {} more reasons in the document (--json)", reasons.len() - SHOWN_REASONS);
    }
    if let Some(first) = document.beaten.first() {
        let (name, least) = (&first.name, show::seconds(first.at_least_s));
        println!(
            "  and {} degrees that take longer than these: the fastest, {name}, at least {least}",
            document.beaten.len()
        );
    }
    println!();
}

fn print_explained(document: &PlanDocument) {
    let Some(chosen) = document.chosen() else { return };
    let others = document.candidates.iter().filter(|c| c.name != chosen.name);
    let second = others.clone().find(|c| c.rejected_by.is_none());
    let baselines = others.filter(|c| c.baseline.is_some() && Some(&c.name) != second.map(|s| &s.name));
    for other in second.into_iter().chain(baselines) {
        println!("{}", explain(chosen, other));
    }
    let rows = document.assumptions.iter().map(|assumption| {
        let value = format!("{} {}", assumption.value, assumption.unit);
        vec![assumption.name.to_string(), value, assumption.source.to_string()]
    });
    println!("{}", show::table(&["assumption", "value", "source"], &[], rows));
}
