//! From a training module to programs, and what decides how a step fits into the memory of the PEs.

use super::{Kept, TrainStage, place_training};
use crate::cpu::{HostFunction, TrainModule};
use crate::lower_to_cpu::training_functions;
use crate::pass::{PassError, diagnostic};
use crate::wafer::emit::{EmitError, Stage, WaferArtifact};
use crate::wafer::spread::fewer_rows;
use crate::wafer::{Placed, WaferError, WaferSpec, generate, memory_peak};
use lapidary_hardware::{HardwareSpec, Wafer};
use lapidary_ir::Module;
use lapidary_models::autodiff::{Policy, Recompute, training};
use lapidary_models::graph::Slot;
use lapidary_models::{Dims, Graph, GraphError, ModelSpec};
use lapidary_runtime_sim::text;
use thiserror::Error;

/// How a step fits.
#[derive(Clone, Debug, PartialEq)]
pub struct StepChoice {
    /// The training graph.
    pub graph: Graph,
    /// What is computed again.
    pub again: Recompute,
    /// Where layers keep the rest.
    pub kept: Kept,
    /// Rows of PEs that are used.
    pub rows: u32,
    /// Why.
    pub why: String,
    /// The ways tried before that do not fit, each with its reason.
    pub refused: Vec<String>,
}

/// A way to keep what a backward pass reads.
#[derive(Clone, Debug, PartialEq)]
pub struct StepWay {
    /// What is computed again.
    pub again: Recompute,
    /// Where layers keep the rest.
    pub kept: Kept,
    /// Why this way.
    pub why: String,
}

/// Why no step is placed.
#[derive(Debug, Error)]
pub enum StepError {
    /// The model has no training graph of these dimensions.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// It has no place on the wafer.
    #[error(transparent)]
    Emit(#[from] EmitError),
}

/// Places a step in the first of these ways that fits. Scores are computed again in all of them, since no PE holds them.
///
/// # Errors
/// [`EmitError::Placement`] where nothing fits, with the number of tokens that would; [`EmitError::Module`] at ops that
/// have no place.
pub fn choose_step(
    spec: &ModelSpec,
    dims: Dims,
    machine: &HardwareSpec,
    ways: &[StepWay],
) -> Result<StepChoice, StepError> {
    let mut refused = Vec::new();
    let mut last = None;
    for StepWay { again, kept, why } in ways {
        let (again, kept) = (*again, *kept);
        let found = training(spec, dims, &Policy::Uniform(again))?;
        let module = TrainModule::unfused(spec, &found);
        match fits(&module.functions, &module.slots, machine, kept) {
            Ok(rows) => {
                let why = why.clone();
                return Ok(StepChoice { graph: found.graph, again, kept, rows, why, refused });
            }
            Err(EmitError::Placement { stage, error }) if matches!(*error, WaferError::Memory { .. }) => {
                refused.push(format!("{}: stage {stage}: {error}", way(again, kept)));
                last = Some(EmitError::Placement { stage, error });
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(last.unwrap_or(EmitError::Machine { machine: machine.name.clone() }).into())
}

/// A way to fit, in words.
pub fn way(again: Recompute, kept: Kept) -> String {
    let what = match again {
        Recompute::Full => "layers computed again from their inputs",
        Recompute::Selective => "all kept but the inside of attention",
        Recompute::None => "all kept",
    };
    match kept {
        Kept::Resident => format!("{what}, kept in the memory of the PEs"),
        Kept::Streamed => format!("{what}, which leave for the weight server and come back"),
    }
}

/// The rows with which a step takes the fewest cycles in closed form and fits.
fn fits(
    functions: &[HostFunction],
    slots: &[Slot],
    machine: &HardwareSpec,
    kept: Kept,
) -> Result<u32, EmitError> {
    let wafer = wafer(machine)?;
    let all = wafer.fabric.usable.height as u32;
    let fits = |rows: u32| {
        let stages = stages(functions, slots, wafer, (kept, rows))?;
        let fit = |(stage, spec): &(TrainStage, WaferSpec)| {
            memory_peak(&stage.placed, spec).map(|_| ()).map_err(|error| over(stage, error))
        };
        stages.iter().try_for_each(fit).map(|()| stages)
    };
    let stages = fits(all)?;
    let placed: Vec<(u64, &Placed)> = stages.iter().map(|(stage, _)| (stage.times, &stage.placed)).collect();
    let fewer = fewer_rows(&placed, wafer).into_iter().map(|tokens| tokens.blocks().lines());
    Ok(fewer.into_iter().find(|rows| fits(*rows).is_ok()).unwrap_or(all))
}

fn over(stage: &TrainStage, error: WaferError) -> EmitError {
    EmitError::Placement { stage: stage.name.clone(), error: Box::new(error) }
}

fn wafer(machine: &HardwareSpec) -> Result<&Wafer, EmitError> {
    machine.wafer().ok_or_else(|| EmitError::Machine { machine: machine.name.clone() })
}

/// The placed programs on so many rows, each with the memory that it has.
fn stages(
    functions: &[HostFunction],
    slots: &[Slot],
    wafer: &Wafer,
    (kept, rows): (Kept, u32),
) -> Result<Vec<(TrainStage, WaferSpec)>, EmitError> {
    let spec = WaferSpec::of(wafer, wafer.clock());
    let grid = (wafer.fabric.usable.width as u32, rows);
    let placed = place_training(functions, slots, grid, kept).map_err(EmitError::Training)?;
    let with = |stage: TrainStage| {
        let spec = WaferSpec { kept_bytes: stage.kept_bytes, ..spec.clone() };
        (stage, spec)
    };
    Ok(placed.into_iter().map(with).collect())
}

/// Emits the programs of a training module on so many rows: forward, backward and both ends.
///
/// # Errors
/// [`EmitError::Module`] for a module that is none of a training step, [`EmitError::Training`] at ops that have no place,
/// [`EmitError::Placement`] where memory or colours run out.
pub fn emit_training(
    module: &Module<'_>,
    machine: &HardwareSpec,
    (kept, rows): (Kept, u32),
) -> Result<WaferArtifact, EmitError> {
    let (functions, slots) = training_functions(module.op())?;
    let labels = functions.last().map(|main| main.function.arguments.len());
    if labels != Some(2) {
        let fault = diagnostic(module.op(), "this is no training step: main does not take ids and labels");
        return Err(PassError::Refused(vec![fault]).into());
    }
    let make = |(stage, spec): (TrainStage, WaferSpec)| -> Result<Stage, EmitError> {
        let generated = generate(&stage.placed, &spec).map_err(|error| over(&stage, error))?;
        let text = text::print(&generated.program);
        let TrainStage { name, times, placed, nodes, .. } = stage;
        Ok(Stage { name, times, placed, nodes, generated, text })
    };
    let stages = stages(&functions, &slots, wafer(machine)?, (kept, rows))?.into_iter().map(make);
    Ok(WaferArtifact { stages: stages.collect::<Result<_, _>>()? })
}
