//! Runs a pipeline: each pass in MLIR's pass manager, the module verified and its ops checked after every one.

use crate::legal;
use crate::pass::{Changed, Notes, PassCx, PassError, placeless};
use crate::pipeline::{Pipeline, PipelineError, Step};
use crate::report::{PassReport, PipelineReport, Snapshot};
use lapidary_ir::{Diagnostic, IrError, Module, PassFailure, Pipeline as IrPipeline};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// How a pipeline is watched.
#[derive(Clone, Copy, Default)]
pub struct Watch<'w> {
    /// Time since any fixed moment; without a clock, times are zero.
    pub clock: Option<&'w dyn Fn() -> Duration>,
    /// Whether the module's text is kept before the first and after every pass.
    pub snapshots: bool,
}

/// Why a pipeline stopped.
#[derive(Debug, Error)]
pub enum RunError {
    /// The pipeline itself.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// A pass refused, or left something behind that does not verify or is not legal.
    #[error("{pass}: {}", .diagnostics.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Pass {
        /// Name of the pass.
        pass: String,
        /// What is wrong, and where.
        diagnostics: Vec<Diagnostic>,
        /// Whether the compiler is to blame: a panic, or a module that a pass broke.
        internal: bool,
        /// The smallest change that fits, if the module is too large for the machine.
        fits_with: Option<String>,
    },
}

impl RunError {
    /// What is wrong, and where.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        match self {
            RunError::Pipeline(error) => vec![placeless(error.to_string())],
            RunError::Pass { diagnostics, .. } => diagnostics.clone(),
        }
    }
}

/// Runs every pass of a pipeline on a module.
///
/// # Errors
/// [`RunError::Pass`] for the first pass that fails; the module may be half changed then.
pub fn run(
    module: &mut Module<'_>,
    pipeline: &Pipeline,
    watch: Watch<'_>,
) -> Result<PipelineReport, RunError> {
    let mut report = PipelineReport::default();
    if watch.snapshots {
        report.snapshots.push(Snapshot { after: "import".into(), text: module.to_string() });
    }
    for step in &pipeline.steps {
        let name = step.row.name.to_string();
        // MLIR's passes do not say whether they did anything.
        let before = step.pass.is_none().then(|| module.to_string());
        let started = watch.clock.map(|clock| clock());
        let notes = run_step(module, step)?;
        let time =
            watch.clock.zip(started).map_or(Duration::ZERO, |(clock, start)| clock().saturating_sub(start));
        let changed =
            before.map_or(notes.changed == Some(Changed::Yes), |before| before != module.to_string());
        if watch.snapshots {
            report.snapshots.push(Snapshot { after: name.clone(), text: module.to_string() });
        }
        report.passes.push(PassReport { name, changed, time, notes: notes.lines });
        report.fusion = notes.fusion.or(report.fusion);
        report.fold = notes.fold.or(report.fold);
        report.gpu = notes.gpu.or(report.gpu);
        report.recompute = notes.recompute.or(report.recompute);
        report.shard = notes.shard.or(report.shard);
    }
    Ok(report)
}

fn run_step(module: &mut Module<'_>, step: &Step) -> Result<Notes, RunError> {
    let cx = Arc::new(PassCx::default());
    let mut alone = IrPipeline::new();
    match &step.pass {
        None => alone.add_builtin(&step.text),
        Some(pass) => {
            let (pass, cx) = (Arc::clone(pass), Arc::clone(&cx));
            alone.add(step.row.name, move |op| {
                let changed = pass.run(op, &cx)?;
                cx.with(|notes| notes.changed = Some(changed));
                Ok(())
            })
        }
    };
    alone.run(module, &mut |_| {}).map_err(|error| failed(step, error))?;
    let illegal = legal::check(step.row.name, module.op());
    match illegal.is_empty() {
        true => Ok(cx.take()),
        false => Err(RunError::Pass {
            pass: step.row.name.into(),
            diagnostics: illegal,
            internal: true,
            fits_with: None,
        }),
    }
}

fn failed(step: &Step, error: IrError) -> RunError {
    let refusal = match &error {
        IrError::Pass { failure: PassFailure::Refused(why), .. } => why.downcast_ref::<PassError>(),
        _ => None,
    };
    let fits_with = match refusal {
        Some(PassError::TooLarge { change, .. }) => Some(change.clone()),
        _ => None,
    };
    let (diagnostics, internal) = match refusal {
        Some(refusal @ (PassError::Refused(_) | PassError::TooLarge { .. })) => {
            (refusal.diagnostics(), false)
        }
        Some(refusal) => (refusal.diagnostics(), true),
        None if error.diagnostics().is_empty() => (vec![placeless(error.to_string())], true),
        None => (error.diagnostics().to_vec(), true),
    };
    RunError::Pass { pass: step.row.name.into(), diagnostics, internal, fits_with }
}
