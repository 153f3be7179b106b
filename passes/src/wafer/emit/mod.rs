//! A `wafer` module as programs: placed ops to plain data, and from there to [`super::generate`].
//!
//! A module with a repeated layer becomes up to three stages, each a program of its own with the residual stream resident
//! at its borders: what comes before the layers, one layer (to be run as often as the repeat says), and what comes after.
//! [`Scope::Whole`] unrolls the layers into one program instead, for models small enough to be simulated whole.

mod draft;
mod reader;

use super::{Generated, Placed, TrainError, WaferError, WaferSpec};
use crate::pass::PassError;
use crate::wafer::decode::{Decode, decode};
use crate::wafer::pipeline::{Layers, Pipeline, Shown, pipeline};
use crate::wafer::placed::OpKind;
use draft::{Draft, Frame};
use lapidary_hardware::HardwareSpec;
use lapidary_ir::Module;
use reader::Reader;
use thiserror::Error;

/// How much of the module one program covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// A stage per program; a repeated layer is one stage.
    #[default]
    Stages,
    /// As [`Scope::Stages`], with those that only bring rows in or out: run one after the other, each on the result of
    /// the one before, they compute the model.
    Steps,
    /// The whole model in one program.
    Whole,
}

/// What to emit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EmitOptions {
    /// How much one program covers.
    pub scope: Scope,
}

/// The programs of a module.
#[derive(Clone, Debug, PartialEq)]
pub struct WaferArtifact {
    /// In the order of execution.
    pub stages: Vec<Stage>,
}

/// One program.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// `before`, `layer`, `after` or `model`; of a training step also `layer_backward` and `end`.
    pub name: String,
    /// How often it runs.
    pub times: u64,
    /// What was placed.
    pub placed: Placed,
    /// Nodes of the graph that each op stands for.
    pub nodes: Vec<Vec<String>>,
    /// The program, its host tensors and its report.
    pub generated: Generated,
    /// The program as `.wafer` text.
    pub text: String,
}

impl WaferArtifact {
    /// The stage with the most arithmetic: the layer, unless there is none.
    pub fn main(&self) -> Option<&Stage> {
        let macs = |stage: &&Stage| -> u128 {
            let all = stage.generated.report.phases.iter().map(|phase| u128::from(phase.macs)).sum::<u128>();
            all * u128::from(stage.times)
        };
        self.stages.iter().rev().max_by_key(macs)
    }
}

/// Why there is no program.
#[derive(Debug, Error)]
pub enum EmitError {
    /// The module is not of the form that is needed; each diagnostic says where and why.
    #[error(transparent)]
    Module(#[from] PassError),
    /// A node of a training step has no place.
    #[error(transparent)]
    Training(TrainError),
    /// The placement does not fit the machine.
    #[error("stage {stage}: {error}")]
    Placement {
        /// The stage.
        stage: String,
        /// What is wrong.
        error: Box<WaferError>,
    },
    /// The machine is no wafer.
    #[error("{machine} has no wafer to place anything on")]
    Machine {
        /// Its name.
        machine: String,
    },
}

/// Emits the programs of a module that `lower-to-wafer` has placed, and writes into each placed op how much memory its
/// phase needs and which colours it uses.
///
/// # Errors
/// [`EmitError::Module`] at ops that have no kernel on the wafer; [`EmitError::Placement`] where memory or colours run out.
pub fn emit(
    module: &Module<'_>,
    machine: &HardwareSpec,
    options: &EmitOptions,
) -> Result<WaferArtifact, EmitError> {
    let wafer = machine.wafer().ok_or_else(|| EmitError::Machine { machine: machine.name.clone() })?;
    let spec = WaferSpec::of(wafer, wafer.clock());
    let drafts = read(module, options.scope)?;
    let stages = drafts.into_iter().map(|draft| draft.finish(&spec)).collect::<Result<_, _>>()?;
    Ok(WaferArtifact { stages })
}

/// Emits one program for a module with one sequence, in which every layer has rows and weights of its own and
/// `micro_batches` sequences pass one after the other; copies of what is `shown` are read after the run.
///
/// # Errors
/// As [`emit`]; [`EmitError::Placement`] where the layers have no room beside each other.
pub fn emit_pipeline(
    module: &Module<'_>,
    machine: &HardwareSpec,
    micro_batches: u32,
    shown: Shown,
) -> Result<Pipeline, EmitError> {
    let wafer = machine.wafer().ok_or_else(|| EmitError::Machine { machine: machine.name.clone() })?;
    pipeline(layers(module)?, micro_batches, shown, wafer)
        .map_err(|error| EmitError::Placement { stage: "pipeline".into(), error: Box::new(error) })
}

/// Emits the programs that make one token after another, for a module with the forward pass of one sequence: every PE keeps
/// its part of all parameters, and of the keys and values of `capacity` tokens.
///
/// # Errors
/// As [`emit`]; [`EmitError::Placement`] where parameters and cache do not fit.
pub fn emit_decode(module: &Module<'_>, machine: &HardwareSpec, capacity: u32) -> Result<Decode, EmitError> {
    let wafer = machine.wafer().ok_or_else(|| EmitError::Machine { machine: machine.name.clone() })?;
    decode(layers(module)?, capacity, &WaferSpec::of(wafer, wafer.clock()))
        .map_err(|error| EmitError::Placement { stage: "decode".into(), error: Box::new(error) })
}

fn layers(module: &Module<'_>) -> Result<Vec<Layers>, PassError> {
    let stages = read(module, Scope::Steps)?.into_iter().map(|draft| {
        let (name, times) = (draft.name.clone(), draft.times);
        Layers { name, times, placed: draft.placed().0 }
    });
    Ok(stages.collect())
}

/// The placed computations of a module, by stage.
fn read<'c>(module: &Module<'c>, scope: Scope) -> Result<Vec<Draft<'c>>, PassError> {
    let program = module.op().walk().into_iter().find(|op| op.is("wafer.program"));
    let program = program
        .ok_or_else(|| PassError::at(module.op(), "there is no wafer.program: run `lower-to-wafer`"))?;
    let body = program.region_block(0).map_or_else(Vec::new, |block| block.ops());
    let frame = Frame::of(program)?;
    let mut reader = Reader { frame, draft: Draft::new(frame, "before", 1), done: vec![], layer: None };
    for op in body {
        match op.name() {
            "wafer.repeat" if scope == Scope::Whole => reader.unroll(op)?,
            "wafer.repeat" => reader.stage(op)?,
            "wafer.return" => reader.outputs(op, &op.operands())?,
            _ => reader.op(op)?,
        }
    }
    if scope == Scope::Whole {
        reader.draft.name = "model".into();
    }
    reader.done.push(reader.draft);
    if scope != Scope::Steps {
        // A stage without an op that computes only renames the stream that enters the next.
        reader.done.retain(|draft| {
            draft.ops.iter().any(|(op, _)| !matches!(op.kind, OpKind::Input { .. } | OpKind::Output { .. }))
        });
    }
    Ok(reader.done)
}
