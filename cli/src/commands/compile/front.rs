//! The part of a compilation that every target shares: import, passes, dumps.

use super::{Emitted, Job};
use crate::args::RecomputeSwitch;
use crate::artifact::Artifact;
use crate::failure::{Exit, Failure};
use crate::input;
use crate::progress::Progress;
use lapidary_hardware::Device;
use lapidary_ir::{Diagnostic, IrContext, Module};
use lapidary_passes::report::PipelineReport;
use lapidary_passes::run::{RunError, Watch};
use lapidary_passes::{Fusion, Pipeline, pipeline};
use lapidary_planner::{Degrees, PlanDocument};
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
    match job.args.stop_after.as_deref() {
        None => Ok(whole),
        Some("import") => Pipeline::parse("").map_err(usage),
        Some(stage) => whole.until(stage).map_err(usage),
    }
}

/// The target's own passes, with the machine's figures as options.
fn target_passes(job: &Job<'_>) -> String {
    if super::trains(job.args) {
        return pipeline::training_text(
            job.goal,
            job.args.recompute.unwrap_or(RecomputeSwitch::Selective).into(),
            &Fusion::On,
        );
    }
    let passes = pipeline::pipeline_text(job.goal, job.mup, &Fusion::On);
    match job.machine.as_ref().map(|machine| &machine.device) {
        None => passes,
        // A training step is placed from its functions, after the passes.
        Some(Device::Wafer(_)) if job.step.is_some() => pipeline::WAFER_TRAINING.to_string(),
        Some(Device::Wafer(wafer)) => {
            let usable = wafer.fabric.usable;
            format!("{passes},lower-to-wafer{{width={} height={}}}", usable.width, usable.height)
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

/// A plan can be compiled for when it leaves the module whole: partitioning is a later stage of the project.
pub fn check_plan(path: &Path) -> Result<(), Failure> {
    let text = input::read(path)?;
    let refused = |exit, what: String| Failure::new(exit, format!("{}: {what}", path.display()));
    let plan =
        PlanDocument::from_json(&text).map_err(|error| refused(Exit::InvalidInput, error.to_string()))?;
    let chosen = plan.chosen().ok_or_else(|| refused(Exit::InvalidInput, "no candidate is chosen".into()))?;
    match chosen.degrees {
        Degrees::Gpu(degrees) if degrees.tp > 1 || degrees.pp > 1 => {
            Err(refused(Exit::Unsupported, format!("{}: modules are not partitioned yet", chosen.name))
                .help("compile for a plan with tp1 and pp1, or without --plan"))
        }
        _ => Ok(()),
    }
}
