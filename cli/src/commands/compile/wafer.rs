//! The wafer side of a compilation: placement, programs and their texts.

use super::report::Report;
use super::{Emitted, Job};
use crate::args::RecomputeSwitch;
use crate::artifact::Artifact;
use crate::failure::{Exit, Failure};
use crate::progress::Progress;
use crate::training_step::TrainingStep;
use crate::wafer_artifact::{Stage, WaferArtifact};
use lapidary_hardware::{HardwareSpec, Wafer};
use lapidary_ir::Module;
use lapidary_models::Mode;
use lapidary_models::autodiff::Recompute;
use lapidary_passes::wafer::{
    self, EmitError, EmitOptions, Kept, Placed, PlacementReport, RegionReport, Shown, StepChoice, StepError,
    StepWay, WaferError, Workload,
};
use lapidary_planner::Degrees;
use lapidary_planner::wafer::training::TrainingAnswer;
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
    if job.modes.resident() {
        let programs = progress.stage("placing on the wafer", || resident(job, module, machine, report));
        return match programs {
            Ok(programs) => written(&programs, artifact, progress),
            Err(error) => over(job, machine.wafer(), error),
        };
    }
    let placed = progress.stage("placing on the wafer", || match &job.step {
        Some(step) => wafer::emit_training(module, machine, (step.kept, step.rows)),
        None => wafer::emit(module, machine, &options),
    });
    let placed = match placed {
        Ok(placed) => placed,
        Err(error) => return over(job, machine.wafer(), error),
    };
    let stages = placed.stages.iter().map(|stage| Told {
        name: &stage.name,
        times: stage.times,
        placed: &stage.placed,
        report: &stage.generated.report,
    });
    report.placement = Some(account(stages.collect(), machine.wafer(), job.step.as_ref()));
    let mut programs = programs(job, machine, placed.stages.into_iter().map(stage).collect());
    programs.step = report.training.as_ref().and_then(|answer| training_step(answer, job.graph.dims.batch));
    written(&programs, artifact, progress)
}

/// Proves programs and puts them into the artifact.
fn written(
    programs: &WaferArtifact,
    artifact: &mut Artifact,
    progress: &mut Progress,
) -> Result<Emitted, Failure> {
    progress.stage("checking the programs", || checked(programs))?;
    programs.add_to(artifact)?;
    Ok(Emitted { over: None })
}

fn programs(job: &Job<'_>, machine: &HardwareSpec, stages: Vec<Stage>) -> WaferArtifact {
    WaferArtifact {
        model: job.spec.name.clone(),
        tokens: Some(job.graph.dims.tokens()),
        step: None,
        fabric: machine.wafer().map(FabricSpec::from).unwrap_or_default(),
        stages,
    }
}

/// The step of a plan in micro-batches of the `batch` sequences that the programs are for.
fn training_step(answer: &TrainingAnswer, batch: u64) -> Option<TrainingStep> {
    let Degrees::Wafer(plan) = answer.plan.degrees else { return None };
    let of_a_system = plan.micro_batch * plan.accumulation;
    Some(TrainingStep { systems: plan.systems, accumulation: of_a_system.div_ceil(batch.max(1)) })
}

/// The programs where weights stay: a pipeline of all layers, or those of one token.
fn resident(
    job: &Job<'_>,
    module: &Module<'_>,
    machine: &HardwareSpec,
    report: &mut Report,
) -> Result<WaferArtifact, EmitError> {
    let count = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    if job.modes.graph == Some(Mode::Decode) {
        let capacity = count(job.graph.dims.keys());
        let decode = wafer::emit_decode(module, machine, capacity)?;
        let told = decode.stages.iter().map(|stage| Told {
            name: &stage.name,
            times: stage.times,
            placed: &stage.placed,
            report: &stage.generated.report,
        });
        report.placement = Some(account(told.collect(), machine.wafer(), None));
        let stages = decode.stages.into_iter().map(|stage| Stage {
            name: stage.name,
            times: stage.times,
            program: stage.generated.program.into(),
        });
        return Ok(programs(job, machine, stages.collect()));
    }
    let pipeline = wafer::emit_pipeline(module, machine, count(job.args.batch), Shown::default())?;
    report.placement = Some(regions(&pipeline.regions));
    let stage = Stage { name: "pipeline".into(), times: 1, program: pipeline.program.into() };
    Ok(programs(job, machine, vec![stage]))
}

/// The rows of a pipeline and what each region takes for a sequence, and the same in words.
fn regions(regions: &[RegionReport]) -> serde_json::Value {
    let slowest = regions.iter().map(|region| region.cycles).max().unwrap_or(0);
    let head = format!("a sequence follows the one before after {slowest} cycles in closed form");
    let told = regions.iter().map(|region| {
        let RegionReport { name, first_row, feeder_rows, rows, cycles } = region;
        format!("  {name:<10} from row {first_row:>4}: {feeder_rows:>4} rows with weights, {rows:>4} that compute, {cycles} cycles")
    });
    let summary: Vec<String> = std::iter::once(head).chain(told).collect();
    serde_json::json!({"mode": "layer-pipelined", "regions": regions, "slowest_cycles": slowest, "summary": summary})
}

/// Rows of PEs that are used: all, unless sequences are so few that fewer rows take less time.
pub fn rows(job: &Job<'_>, wafer: &Wafer) -> u64 {
    let usable = wafer.fabric.usable;
    let small = |n: u64| u32::try_from(n).ok();
    let dims = job.graph.dims;
    let sizes = [usable.width, usable.height, dims.batch, dims.seq].map(small);
    match sizes {
        [Some(width), Some(height), Some(sequences), Some(length)] if !job.modes.resident() => {
            let work = Workload { width, height, sequences, length, dtype: job.spec.dtype.compute };
            wafer::rows_in_use(&job.spec, work, wafer).into()
        }
        _ => usable.height,
    }
}

/// How the training step of the job fits a wafer, or why it does not; none where nothing is trained on wafers. What is
/// computed again is what `--recompute` says, or else what the plan does.
pub fn step(
    job: &Job<'_>,
    planned: Option<&TrainingAnswer>,
) -> Result<Option<Result<StepChoice, Failure>>, Failure> {
    let Some(machine) = job.machine.as_ref().filter(|machine| job.args.train && machine.wafer().is_some())
    else {
        return Ok(None);
    };
    let wanted = wanted(job.args.recompute, planned)?;
    match wafer::choose_step(&job.spec, job.graph.dims, machine, &wanted) {
        Ok(step) => Ok(Some(Ok(step))),
        Err(StepError::Graph(error)) => Err(Failure::new(Exit::InvalidInput, error.to_string())),
        Err(StepError::Emit(error)) => over(job, machine.wafer(), error).map(|emitted| emitted.over.map(Err)),
    }
}

/// The ways to keep what a backward pass reads that are tried one after the other, each with its reason.
fn wanted(asked: Option<RecomputeSwitch>, planned: Option<&TrainingAnswer>) -> Result<Vec<StepWay>, Failure> {
    let way = |again, kept, why: &str| StepWay { again, kept, why: why.into() };
    let [selective, full] = [Recompute::Selective, Recompute::Full];
    match asked {
        Some(RecomputeSwitch::None) => {
            let what = "--recompute none: no PE of a wafer holds scores, so the inside of attention is computed again";
            Err(Failure::new(Exit::Unsupported, what).help("selective keeps everything else"))
        }
        Some(RecomputeSwitch::Selective) => Ok(vec![way(selective, Kept::Resident, "--recompute selective")]),
        Some(RecomputeSwitch::Full) => Ok(vec![
            way(full, Kept::Resident, "--recompute full"),
            way(full, Kept::Streamed, "--recompute full"),
        ]),
        None => Ok(after_plan(planned)),
    }
}

/// The way of the plan first, and then those that keep less on the wafer. A plan prices sums of all PEs; a program needs
/// room in each of them.
fn after_plan(planned: Option<&TrainingAnswer>) -> Vec<StepWay> {
    let ways = [
        (Recompute::Selective, Kept::Resident),
        (Recompute::Full, Kept::Resident),
        (Recompute::Full, Kept::Streamed),
    ];
    let plan = planned.and_then(|answer| match answer.plan.degrees {
        Degrees::Wafer(plan) => Some(plan),
        Degrees::Gpu(_) => None,
    });
    let first = plan.map_or(0, |plan| match (plan.recompute, plan.outside) {
        (lapidary_planner::Recompute::Full, true) => 2,
        (lapidary_planner::Recompute::Full, false) => 1,
        _ => 0,
    });
    let name = planned.map_or("", |answer| answer.plan.name.as_str());
    let why = |n: usize| match n == first {
        true => format!("as the plan {name} says"),
        false => format!("the way of the plan {name} does not fit every PE"),
    };
    let later = ways.into_iter().enumerate().skip(first);
    later.map(|(n, (again, kept))| StepWay { again, kept, why: why(n) }).collect()
}

fn stage(stage: wafer::Stage) -> Stage {
    Stage { name: stage.name, times: stage.times, program: stage.generated.program.into() }
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

/// A stage for the report.
struct Told<'a> {
    name: &'a str,
    times: u64,
    placed: &'a Placed,
    report: &'a PlacementReport,
}

/// The placement of every stage with its cycles in closed form, and the same in words.
fn account(stages: Vec<Told<'_>>, wafer: Option<&Wafer>, step: Option<&StepChoice>) -> serde_json::Value {
    let cycles = |stage: &Told<'_>| {
        let ops = wafer.and_then(|wafer| wafer::cycles(stage.placed, wafer)).unwrap_or_default();
        (ops.iter().map(|op| op.cycles).sum::<u64>(), ops)
    };
    let list = stages.iter().map(|stage| {
        let (all, ops) = cycles(stage);
        serde_json::json!({
            "stage": stage.name, "times": stage.times, "placement": stage.report,
            "analytic_cycles": all, "analytic_ops": ops,
        })
    });
    let summary = stages.iter().flat_map(|stage| {
        let (all, _) = cycles(stage);
        let head = format!("stage {}, run {} times, {all} cycles in closed form:", stage.name, stage.times);
        let body = stage.report.to_string();
        std::iter::once(head).chain(body.lines().map(str::to_string)).collect::<Vec<_>>()
    });
    let mut told = Vec::new();
    if let Some(step) = step {
        told.push(format!("training step: {}: {}", wafer::way(step.again, step.kept), step.why));
        told.extend(step.refused.iter().map(|reason| format!("  does not fit: {reason}")));
    }
    let placed: Vec<(u64, &Placed)> = stages.iter().map(|stage| (stage.times, stage.placed)).collect();
    let rows = wafer.and_then(|wafer| wafer::rows_report(&placed, wafer));
    told.extend(rows.map(|rows| rows.to_string()));
    told.extend(summary);
    let mut account = serde_json::json!({"stages": list.collect::<Vec<_>>(), "rows": rows, "summary": told});
    if let Some(step) = step {
        let (recompute, kept, refused) = (step.again.name(), step.kept, &step.refused);
        account["training"] = serde_json::json!({"recompute": recompute, "kept": kept, "why": step.why, "does_not_fit": refused});
    }
    account
}
