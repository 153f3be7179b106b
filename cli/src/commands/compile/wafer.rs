//! The wafer side of a compilation: placement, programs and their texts.

use super::report::Report;
use super::{Emitted, Job};
use crate::artifact::Artifact;
use crate::failure::{Exit, Failure};
use crate::progress::Progress;
use crate::wafer_artifact::{Stage, WaferArtifact};
use lapidary_hardware::Wafer;
use lapidary_ir::Module;
use lapidary_passes::wafer::{self, EmitError, EmitOptions, StepChoice, StepError, WaferError};
use lapidary_runtime_sim::{FabricSpec, prove};
use std::panic::resume_unwind;

/// Emits the programs and their texts into the artifact.
pub fn emit(
    job: &Job<'_>,
    module: &Module<'_>,
    artifact: &mut Artifact,
    report: &mut Report,
    progress: &mut Progress,
) -> Result<Emitted, Failure> {
    let options = EmitOptions::default();
    let machine =
        job.machine.as_ref().ok_or_else(|| Failure::new(Exit::InvalidInput, "no wafer is named"))?;
    let placed = progress.stage("placing on the wafer", || match &job.step {
        Some(step) => wafer::emit_training(module, machine, step.kept),
        None => wafer::emit(module, machine, &options),
    });
    let placed = match placed {
        Ok(placed) => placed,
        Err(error) => return over(job, machine.wafer(), error),
    };
    report.placement = Some(account(&placed, machine.wafer(), job.step.as_ref()));
    let programs = WaferArtifact {
        model: job.spec.name.clone(),
        tokens: Some(job.graph.dims.tokens()),
        fabric: machine.wafer().map(FabricSpec::from).unwrap_or_default(),
        stages: placed.stages.into_iter().map(stage).collect(),
    };
    progress.stage("checking the programs", || checked(&programs))?;
    programs.add_to(artifact)?;
    Ok(Emitted { over: None })
}

/// How the training step of the job fits a wafer, or why it does not; none where nothing is trained on wafers.
pub fn step(job: &Job<'_>) -> Result<Option<Result<StepChoice, Failure>>, Failure> {
    let Some(machine) = job.machine.as_ref().filter(|machine| job.args.train && machine.wafer().is_some())
    else {
        return Ok(None);
    };
    match wafer::choose_step(&job.spec, job.graph.dims, machine) {
        Ok(step) => Ok(Some(Ok(step))),
        Err(StepError::Graph(error)) => Err(Failure::new(Exit::InvalidInput, error.to_string())),
        Err(StepError::Emit(error)) => over(job, machine.wafer(), error).map(|emitted| emitted.over.map(Err)),
    }
}

fn stage(stage: wafer::Stage) -> Stage {
    Stage { name: stage.name, times: stage.times, program: stage.generated.program }
}

/// A program that fails its own check is a fault of the compiler. The stages are checked side by side.
fn checked(programs: &WaferArtifact) -> Result<(), Failure> {
    let proofs = std::thread::scope(|scope| {
        let prove = |stage| scope.spawn(move || proved(stage, &programs.fabric));
        let proofs: Vec<_> = programs.stages.iter().map(prove).collect();
        proofs.into_iter().map(|proof| proof.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    Vec::into_iter(proofs).collect()
}

fn proved(stage: &Stage, fabric: &FabricSpec) -> Result<(), Failure> {
    prove(&stage.program, fabric).map_err(|errors| {
        let told: Vec<String> = errors.iter().take(4).map(ToString::to_string).collect();
        let name = &stage.name;
        Failure::new(Exit::Internal, format!("stage {name} does not pass its check: {}", told.join("; ")))
    })
}

/// What does not fit is told in the report; everything else ends the compilation.
fn over(job: &Job<'_>, wafer: Option<&Wafer>, error: EmitError) -> Result<Emitted, Failure> {
    let reason = error.to_string();
    match error {
        EmitError::Module(error) => Err(Failure::diagnosed(false, "wafer", &error.diagnostics(), &reason)),
        EmitError::Training(_) => Err(Failure::new(Exit::Unsupported, reason)),
        EmitError::Placement { error, .. } if matches!(*error, WaferError::Unsupported { .. }) => {
            Err(Failure::new(Exit::Unsupported, reason))
        }
        EmitError::Placement { error, .. } => {
            let failure = Failure::new(Exit::DoesNotFit, reason);
            let over = match wafer.and_then(|wafer| fitting_batch(job, wafer, &error)) {
                Some(batch) => failure.help(format!("it fits with a batch of {batch} at a time")),
                None => failure,
            };
            Ok(Emitted { over: Some(over) })
        }
        EmitError::Machine { .. } => Err(Failure::new(Exit::InvalidInput, reason)),
    }
}

/// The largest batch whose sequences get enough rows for their tokens to fit.
fn fitting_batch(job: &Job<'_>, wafer: &Wafer, error: &WaferError) -> Option<u64> {
    match error {
        WaferError::Memory { fitting: tokens @ 1.., .. } => {
            let rows = job.graph.dims.seq.div_ceil(u64::from(*tokens));
            Some(wafer.fabric.usable.height / rows).filter(|batch| *batch > 0)
        }
        _ => None,
    }
}

/// The placement of every stage with its cycles in closed form, and the same in words.
fn account(
    placed: &wafer::WaferArtifact,
    wafer: Option<&Wafer>,
    step: Option<&StepChoice>,
) -> serde_json::Value {
    let cycles = |stage: &wafer::Stage| {
        let ops = wafer.and_then(|wafer| wafer::cycles(&stage.placed, wafer)).unwrap_or_default();
        (ops.iter().map(|op| op.cycles).sum::<u64>(), ops)
    };
    let stages = placed.stages.iter().map(|stage| {
        let (all, ops) = cycles(stage);
        let placement = &stage.generated.report;
        serde_json::json!({
            "stage": stage.name, "times": stage.times, "placement": placement,
            "analytic_cycles": all, "analytic_ops": ops,
        })
    });
    let summary = placed.stages.iter().flat_map(|stage| {
        let (all, _) = cycles(stage);
        let head = format!("stage {}, run {} times, {all} cycles in closed form:", stage.name, stage.times);
        let body = stage.generated.report.to_string();
        std::iter::once(head).chain(body.lines().map(str::to_string)).collect::<Vec<_>>()
    });
    let mut told = Vec::new();
    if let Some(step) = step {
        told.push(format!("training step: {}", wafer::way(step.again, step.kept)));
        told.extend(step.refused.iter().map(|reason| format!("  does not fit: {reason}")));
    }
    told.extend(summary);
    let mut account = serde_json::json!({"stages": stages.collect::<Vec<_>>(), "summary": told});
    if let Some(step) = step {
        let (recompute, kept, refused) = (step.again.name(), step.kept, &step.refused);
        account["training"] =
            serde_json::json!({"recompute": recompute, "kept": kept, "does_not_fit": refused});
    }
    account
}
