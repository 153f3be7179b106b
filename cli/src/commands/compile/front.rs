//! The part of a compilation that every target shares: import, passes, dumps.

use super::ranks::Spread;
use super::{Emitted, Job};
use crate::args::{Compile, Target};
use crate::artifact::Artifact;
use crate::failure::{Exit, Failure};
use crate::input;
use crate::progress::Progress;
use crate::ranks;
use lapidary_hardware::Device;
use lapidary_ir::{Diagnostic, IrContext, Module};
use lapidary_models::shard::StateSharding;
use lapidary_models::{ModelSpec, shard};
use lapidary_passes::report::PipelineReport;
use lapidary_passes::run::{RunError, Watch};
use lapidary_passes::{Fusion, Pipeline, pipeline};
use lapidary_planner::{Degrees, PlanDocument, Sharding};
use std::path::Path;
use std::time::Instant;

/// How far a compilation came.
pub struct Outcome {
    /// What the passes did, with the module after each.
    pub passes: PipelineReport,
    /// What the target made of it; none when the user stopped before.
    pub emitted: Option<Emitted>,
}

/// Imports the graph, runs the passes, and hands the module to the target unless told to stop before.
pub fn run(
    job: &Job<'_>,
    progress: &mut Progress,
    emit: impl FnOnce(&Module<'_>, &PipelineReport, &mut Progress) -> Result<Emitted, Failure>,
) -> Result<Outcome, Failure> {
    let pipeline = passes(job)?;
    let cx = IrContext::new();
    let mut module = progress
        .stage("importing the graph", || lapidary_ir::import::import(&cx, job.imported()))
        .map_err(|error| Failure::diagnosed(true, "import", error.diagnostics(), &error.to_string()))?;
    let start = Instant::now();
    let clock = || start.elapsed();
    let watch = Watch { clock: Some(&clock), snapshots: true };
    let ran = progress.stage("running the passes", || lapidary_passes::run(&mut module, &pipeline, watch));
    let report = match ran {
        Err(RunError::Pass { fits_with: Some(change), diagnostics, .. }) => {
            let emitted = Some(too_large(&diagnostics, &change));
            return Ok(Outcome { passes: PipelineReport::default(), emitted });
        }
        ran => ran.map_err(refused)?,
    };
    print_after(job, &report)?;
    if job.args.stop_after.is_some() {
        return Ok(Outcome { passes: report, emitted: None });
    }
    let emitted = emit(&module, &report, progress)?;
    Ok(Outcome { passes: report, emitted: Some(emitted) })
}

/// The target's own pipeline or the user's, cut where the user wants to stop.
fn passes(job: &Job<'_>) -> Result<Pipeline, Failure> {
    let usage = |error: lapidary_passes::PipelineError| Failure::new(Exit::Usage, error.to_string());
    let whole = match &job.args.passes {
        Some(text) => Pipeline::parse(text).map_err(usage)?,
        None => Pipeline::parse(&target_passes(job)).map_err(usage)?,
    };
    let whole = match &job.tunings {
        Some(tunings) => whole.measured(&tunings.fastest()),
        None => whole,
    };
    match job.args.stop_after.as_deref() {
        None => Ok(whole),
        Some("import") => Pipeline::parse("").map_err(usage),
        Some(stage) => whole.until(stage).map_err(usage),
    }
}

/// The target's own passes, with the machine's figures as options.
fn target_passes(job: &Job<'_>) -> String {
    if super::trains(job.args) {
        return pipeline::training_text(job.goal, super::policy(job.args), &Fusion::On);
    }
    let passes = pipeline::pipeline_text(job.goal, job.mup, &Fusion::On);
    match job.machine.as_ref().map(|machine| &machine.device) {
        None => passes,
        // A training step is placed from its functions, after the passes.
        Some(Device::Wafer(_)) if job.step.is_some() => pipeline::WAFER_TRAINING.to_string(),
        Some(Device::Wafer(wafer)) => {
            let (width, height) = (wafer.fabric.usable.width, super::wafer::rows(job, wafer));
            format!("{passes},lower-to-wafer{{width={width} height={height}}}")
        }
        Some(Device::Gpu(gpu)) => {
            format!(
                "{passes},lower-to-cuda{{arch={} processors={}}}",
                gpu.architecture, gpu.multiprocessor.count
            )
        }
    }
}

/// Prints the last module to stdout for `--stop-after`.
pub fn print_stopped(passes: &PipelineReport) -> Result<(), Failure> {
    if let Some(last) = passes.snapshots.last() {
        print!("{}", last.text);
    }
    Ok(())
}

fn print_after(job: &Job<'_>, report: &PipelineReport) -> Result<(), Failure> {
    let Some(name) = &job.args.print_ir_after else { return Ok(()) };
    let mut found = report.snapshots.iter().filter(|snapshot| &snapshot.after == name).peekable();
    if found.peek().is_none() {
        let known: Vec<&str> = report.snapshots.iter().map(|snapshot| snapshot.after.as_str()).collect();
        return Err(Failure::new(Exit::Usage, format!("--print-ir-after {name}: no such pass ran"))
            .help(format!("there are {}", known.join(", "))));
    }
    for snapshot in found {
        eprintln!("// after {}\n{}", snapshot.after, snapshot.text);
    }
    Ok(())
}

/// Puts the module after every stage into the artifact, and into `--dump-ir`'s folder.
pub fn dump(job: &Job<'_>, passes: &PipelineReport, artifact: &mut Artifact) -> Result<(), Failure> {
    let mut folder = Artifact::default();
    for (index, snapshot) in passes.snapshots.iter().enumerate() {
        let name = format!("{index:02}-{}.mlir", snapshot.after);
        if job.emit.wants("ir") {
            artifact.add(format!("ir/{name}"), snapshot.text.clone());
        }
        folder.add(name, snapshot.text.clone());
    }
    match &job.args.dump_ir {
        Some(place) => folder.write_into(place),
        None => Ok(()),
    }
}

/// A pass found the module too large for the machine.
fn too_large(diagnostics: &[Diagnostic], change: &str) -> Emitted {
    let told: Vec<String> = diagnostics.iter().map(|diagnostic| diagnostic.message.clone()).collect();
    Emitted {
        over: Some(Failure::new(Exit::DoesNotFit, told.join("; ")).help(format!("it fits with {change}"))),
    }
}

fn refused(error: RunError) -> Failure {
    let internal = matches!(error, RunError::Pass { internal: true, .. });
    Failure::diagnosed(internal, "passes", &error.diagnostics(), &error.to_string())
}

/// What a plan, by its name or as a document, spreads over GPUs; none where it leaves the module whole.
///
/// # Errors
/// Exit 3 for what is no plan, 4 for one of another model, 5 for what cannot be compiled.
pub fn spread(args: &Compile, plan: &Path, spec: &ModelSpec) -> Result<Option<Spread>, Failure> {
    let shown = plan.display();
    let refused = |exit, what: String| Failure::new(exit, format!("--plan {shown}: {what}"));
    let spread = match plan.to_str().map(ranks::degrees) {
        Some(Ok(ranks::Degrees { tensor, pipeline, data })) => Spread {
            degrees: shard::Degrees { tensor, pipeline },
            replicas: data,
            way: shard::Way::default(),
            micros: pipeline,
            sharding: StateSharding::None,
        },
        _ => match document(args, plan, spec)? {
            Some(spread) => spread,
            None => return Ok(None),
        },
    };
    let sharding = args.sharding.map_or(spread.sharding, StateSharding::from);
    let spread = Spread { micros: args.micro_batches.unwrap_or(spread.micros), sharding, ..spread };
    let Spread { degrees: shard::Degrees { tensor, pipeline }, replicas, .. } = spread;
    if tensor * pipeline == 1 && (replicas == 1 || !args.train) {
        return Ok(None);
    }
    if args.target != Target::A100 {
        return Err(refused(Exit::Unsupported, "programs of ranks are compiled for GPUs".into())
            .help("--target a100; on the host `lapidary run --plan` compiles each rank's program itself"));
    }
    let Some(unused) = unused(args) else {
        ranks::fits(ranks::Degrees { tensor, pipeline, data: replicas }, spec)?;
        return Ok(Some(spread));
    };
    Err(refused(Exit::Unsupported, format!("{unused} is not for the programs of ranks"))
        .help("leave one of the two away"))
}

/// What is asked for that programs of ranks do not have.
fn unused(args: &Compile) -> Option<&'static str> {
    let asked = [
        (args.passes.is_some(), "--passes"),
        (args.stop_after.is_some(), "--stop-after"),
        (args.print_ir_after.is_some(), "--print-ir-after"),
    ];
    asked.into_iter().find(|(asked, _)| *asked).map(|(_, word)| word)
}

/// What a plan's document spreads; none for a plan for wafers.
fn document(args: &Compile, path: &Path, spec: &ModelSpec) -> Result<Option<Spread>, Failure> {
    let text = input::read(path)?;
    let refused = |exit, what: String| Failure::new(exit, format!("{}: {what}", path.display()));
    let plan =
        PlanDocument::from_json(&text).map_err(|error| refused(Exit::InvalidInput, error.to_string()))?;
    let chosen = plan.chosen().ok_or_else(|| refused(Exit::InvalidInput, "no candidate is chosen".into()))?;
    let Degrees::Gpu(degrees) = chosen.degrees else { return Ok(None) };
    if plan.inputs.model != spec.name {
        let what = format!("a plan for {}, not for {}", plan.inputs.model, spec.name);
        return Err(refused(Exit::DoesNotFit, what).help("make one with `lapidary plan`"));
    }
    if degrees.cp > 1 || degrees.ep > 1 {
        let what = format!("{}: sequences and experts are not spread by programs", chosen.name);
        return Err(
            refused(Exit::Unsupported, what).help("`lapidary plan --pin cp=1,ep=1` leaves them whole")
        );
    }
    let even = shard::stage_layers(spec.n_layers, degrees.pp, 0);
    if degrees.pp > 1 && degrees.first_layers != even.end - even.start {
        let what = format!(
            "{}: stages of {} layers at first; programs have even ones",
            chosen.name, degrees.first_layers
        );
        return Err(refused(Exit::Unsupported, what));
    }
    let sharding = match degrees.sharding {
        Sharding::None => StateSharding::None,
        Sharding::Optimizer => StateSharding::Optimizer,
        Sharding::Full => StateSharding::Full,
        _ if !args.train || degrees.dp == 1 => StateSharding::None,
        Sharding::Hybrid | Sharding::OptimizerInNode => {
            let what = format!("{}: the replicas of a node do not share state among themselves", chosen.name);
            return Err(refused(Exit::Unsupported, what)
                .help("`lapidary plan --pin sharding=full` or `sharding=optimizer` plans for all replicas"));
        }
    };
    Ok(Some(Spread {
        degrees: shard::Degrees { tensor: degrees.tp, pipeline: degrees.pp },
        replicas: degrees.dp,
        way: shard::Way { chunks: degrees.chunks, sequence: degrees.sequence_parallel },
        micros: degrees.accumulation,
        sharding,
    }))
}
