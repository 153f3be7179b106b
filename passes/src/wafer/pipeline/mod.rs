//! Layer-pipelined programs: every layer has rows of its own, its weights are loaded once, sequences stream through.
//!
//! ```text
//! host ---tokens---> | feeder rows of layer 0 |  hold its weights, send them down for every sequence
//!                    | rows of layer 0        |  the kernels of weight streaming
//!                    | feeder rows of layer 1 |  let the activations of layer 0 pass
//!                    | rows of layer 1        |
//!                    | ...                    | ---logits---> host
//! ```
//! A region is a layer's feeder rows and, below them, the rows that compute. These run the same kernels as weight
//! streaming does, so the numbers are the same ones: what comes from the host there comes from the feeder rows here, word
//! for word. Activations leave a region and enter the next on one colour, row by row. While a region has one sequence,
//! the one above has the next.

mod feeder;
mod join;
mod rows;
mod shown;

pub use shown::{Copies, Shown};

use super::error::WaferError;
use super::placed::{Linear, Norm, OpKind, Parameter, Path, Placed, PlacedOp, Source, Tokens};
use super::{HostData, WaferSpec, generate};
use join::Joined;
use lapidary_hardware::Wafer;
use lapidary_runtime_sim::program::WaferProgram;
use serde::Serialize;
use std::collections::BTreeMap;

/// Layers that compute the same, with weights of their own.
#[derive(Clone, Debug)]
pub struct Layers {
    /// `before`, `layer` or `after`.
    pub name: String,
    /// How many.
    pub times: u64,
    /// What one computes.
    pub placed: Placed,
}

/// A program of a whole model.
#[derive(Clone, Debug, PartialEq)]
pub struct Pipeline {
    /// The program.
    pub program: WaferProgram,
    /// How the host makes each tensor of the program.
    pub host: BTreeMap<String, HostData>,
    /// The tensor with the result of the last region, `[micro-batch, token, feature]`.
    pub output: String,
    /// The tensors with what else is shown.
    pub copies: Copies,
    /// From north to south.
    pub regions: Vec<RegionReport>,
}

/// Rows of one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RegionReport {
    /// Its name.
    pub name: String,
    /// First of its rows.
    pub first_row: u32,
    /// Rows that hold its weights.
    pub feeder_rows: u32,
    /// Rows that compute.
    pub rows: u32,
    /// Cycles of one sequence, in closed form.
    pub cycles: u64,
}

/// One region before it is generated.
#[derive(Clone, Debug)]
struct Region {
    name: String,
    placed: Placed,
    /// Regions of one kind get rows together.
    kind: usize,
    is_layer: bool,
    feeder_rows: u32,
}

/// Places the layers of a model one below the other and joins their programs; `shown` is copied besides.
///
/// # Errors
/// [`WaferError::Size`] where there are not enough rows for all layers; faults of placing each.
pub fn pipeline(
    stages: Vec<Layers>,
    micro_batches: u32,
    shown: Shown,
    wafer: &Wafer,
) -> Result<Pipeline, WaferError> {
    let spec = WaferSpec::of(wafer, wafer.clock());
    let height = stages.iter().map(|stage| stage.placed.height).max().unwrap_or(0);
    let mut regions = expand(stages, micro_batches)?;
    let copies = shown::show(&mut regions, shown);
    rows::share(&mut regions, wafer, &spec, height)?;
    let mut joined = Joined::new(&regions);
    let mut reports = Vec::new();
    for region in &regions {
        let first_row = joined.rows();
        let generated = generate(&region.placed, &spec)?;
        joined.add(region, generated, &spec)?;
        let cycles = rows::cycles(&region.placed, wafer);
        let (name, feeder_rows, rows) = (region.name.clone(), region.feeder_rows, region.placed.tokens.rows);
        reports.push(RegionReport { name, first_row, feeder_rows, rows, cycles });
    }
    let (program, host, output) = joined.finish();
    Ok(Pipeline { program, host, output, copies, regions: reports })
}

/// A region for every layer; a stage that only lets the host look up rows is none, its rows enter the first region.
fn expand(stages: Vec<Layers>, micro_batches: u32) -> Result<Vec<Region>, WaferError> {
    let mut regions: Vec<Region> = Vec::new();
    let mut entering: Option<Source> = None;
    for (kind, stage) in stages.into_iter().enumerate() {
        let moves = |op: &PlacedOp| matches!(op.kind, OpKind::Input { .. } | OpKind::Output { .. });
        if stage.placed.ops.iter().all(moves) {
            entering = stage.placed.ops.iter().find_map(|op| match &op.kind {
                OpKind::Input { source, .. } => Some(source.clone()),
                _ => None,
            });
            continue;
        }
        for number in 0..stage.times {
            let many = stage.times > 1 || stage.name == "layer";
            let name = if many { format!("{}{number}", stage.name) } else { stage.name.clone() };
            let mut placed = streaming(stage.placed.clone(), entering.take(), micro_batches);
            placed.ops.iter_mut().for_each(|op| numbered(&mut op.kind, number));
            regions.push(Region { name, placed, kind, is_layer: many, feeder_rows: 0 });
        }
    }
    match regions.is_empty() {
        true => Err(WaferError::Size {
            what: "number of layers".into(),
            found: 0,
            hint: "a pipeline needs one".into(),
        }),
        false => Ok(regions),
    }
}

/// One sequence at a time; inputs and outputs stream. `source` takes the place of what a caller would bring.
fn streaming(placed: Placed, source: Option<Source>, micro_batches: u32) -> Placed {
    let ops = placed.ops.into_iter().map(|PlacedOp { name, kind }| {
        let kind = match kind {
            OpKind::Input { value, tensor, source: Source::Caller, .. } => {
                let source = source.clone().unwrap_or(Source::Caller);
                OpKind::Input { value, tensor, source, path: Path::Stream }
            }
            OpKind::Input { value, tensor, source, .. } => {
                OpKind::Input { value, tensor, source, path: Path::Stream }
            }
            OpKind::Output { value, tensor, .. } => OpKind::Output { value, tensor, path: Path::Stream },
            other => other,
        };
        PlacedOp { name, kind }
    });
    let tokens = Tokens { sequences: 1, rows: 1, ..placed.tokens };
    Placed { height: 1, tokens, micro_batches, ops: ops.collect(), ..placed }
}

/// Names the parameters of the running layer.
fn numbered(kind: &mut OpKind, layer: u64) {
    let name = |parameter: &mut Parameter| {
        parameter.name = parameter.name.replacen('*', &layer.to_string(), 1);
    };
    match kind {
        OpKind::Linear(Linear { outputs, .. }) => outputs.iter_mut().for_each(|segment| {
            name(&mut segment.weight);
            segment.bias.iter_mut().for_each(name);
        }),
        OpKind::Norm(Norm { weight, bias, .. }) => {
            name(weight);
            bias.iter_mut().for_each(name);
        }
        _ => {}
    }
}
