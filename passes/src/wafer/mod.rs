//! Wafer programs from placed ops.
//!
//! A [`Placed`] computation says which values there are, how each lies over the PEs, and which ops run between them, in
//! order. [`generate`] turns it into a [`WaferProgram`]: PEs are sorted into classes by role, channels get colours, every
//! op becomes statements of each class, buffers get addresses, and the host gets its streams. Nothing here knows about
//! models or about the IR.
//!
//! One layout serves all ops, so nothing moves between them: tokens lie over rows, features over columns. Only inside
//! attention are the tokens of a row spread over the columns of a head, so that a head's features are local; the linear
//! layer before it delivers its outputs that way at no cost, because partial sums pass every column anyway.

mod analytic;
mod channel;
mod check;
mod class;
mod code;
mod common;
mod data;
mod decode;
mod emit;
mod error;
mod host;
mod kernel;
mod lanes;
mod layout;
mod line;
mod lower;
mod pipeline;
mod place;
mod placed;
mod report;
mod roles;
mod site;
mod spec;
mod spread;
mod sram;
mod tile;
mod train;

pub use analytic::{OpCycles, cycles};
pub use channel::{Channel, Colours};
pub use class::memory_peak;
pub use data::{Angles, HostData, Packing, Part, Picked};
pub use decode::{Decode, DecodeStage};
pub use emit::{EmitError, EmitOptions, Scope, Stage, WaferArtifact, emit, emit_decode, emit_pipeline};
pub use error::WaferError;
pub use layout::{HeadShape, fit_tokens, place_heads, place_tokens};
pub use line::Axis;
pub use lower::LowerToWafer;
pub use pipeline::{Copies, Pipeline, RegionReport, Shown};
pub use place::{Workload, place_layer};
pub use placed::{
    Activation, Attention, AttentionDx, CachedAttention, ColumnSum, Gather, Gradient, Heads, Layout, Linear,
    Loss, LossDx, Map, Norm, NormDw, NormDx, NormKind, OpKind, Outer, Pairing, Parameter, Path, Placed,
    PlacedOp, Rope, RowHeads, Segment, Source, Step, TableDw, Tokens, Turn,
};
pub use report::{ClassReport, ColourReport, PhaseReport, PlacementReport, SumReport};
pub use spec::WaferSpec;
pub use spread::{RowsReport, rows_in_use, rows_report};
pub use tile::{Blocks, Tiles};
pub use train::{
    Kept, StepChoice, StepError, StepWay, TrainError, TrainStage, choose_step, emit_training, place_training,
    way,
};

use channel::{Wanted, allocate};
use check::check;
use class::{build_class, join, resident_bytes};
use common::{Common, write_out_single};
use lapidary_runtime_sim::program::{Coord, WaferProgram};
use roles::roles;
use std::collections::BTreeMap;

/// A program with what belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The program.
    pub program: WaferProgram,
    /// How the host makes each tensor of the program.
    pub host: BTreeMap<String, HostData>,
    /// What it uses.
    pub report: PlacementReport,
}

/// Generates the program of a placed computation.
pub fn generate(placed: &Placed, spec: &WaferSpec) -> Result<Generated, WaferError> {
    check(placed)?;
    let spec = &kernel::sums::affordable(placed, spec);
    let roles = roles(placed, spec);
    let samples: Vec<Coord> = roles.iter().map(|role| role.sample).collect();
    let colours = allocate(placed, &samples, &wanted(placed, spec), spec.colours)?;
    let host = host::host(placed, &colours, spec.bytes_per_cycle)?;

    let mut program = WaferProgram::new(placed.width, placed.rows());
    program.phases = placed.ops.iter().map(|op| op.name.clone()).collect();
    for (name, data) in &host.tensors {
        program.tensor(name, data.elements());
    }
    let (mut classes, mut common) = (Vec::new(), Common::of(placed));
    for role in roles {
        let (class, report) = build_class(placed, spec, &colours, role, &mut common)?;
        join(&mut program.classes, &mut classes, class, report);
    }
    write_out_single(&mut program.classes);
    let phases = phase_reports(placed, &host, &colours, &classes);
    program.host = host.streams;
    let report = PlacementReport {
        width: placed.width,
        rows: placed.rows(),
        tokens: placed.tokens.total(),
        tokens_per_row: placed.tokens.tiles().largest(),
        sram_bytes: spec.buffer_bytes(),
        sram_peak_bytes: classes.iter().map(|class| class.sram_peak_bytes).max().unwrap_or(0),
        classes,
        sums: placed.ops.iter().flat_map(|op| SumReport::of(placed, op, spec)).collect(),
        colours: colour_reports(placed, &colours),
        phases,
    };
    Ok(Generated { program, host: host.tensors, report })
}

fn wanted(placed: &Placed, spec: &WaferSpec) -> Vec<Wanted> {
    let of_op = |(phase, op)| {
        kernel::channels(placed, op, spec).into_iter().map(move |channel| Wanted { phase, channel })
    };
    placed.ops.iter().enumerate().flat_map(of_op).collect()
}

fn phase_reports(
    placed: &Placed,
    host: &host::Host,
    colours: &Colours,
    classes: &[ClassReport],
) -> Vec<PhaseReport> {
    let mut reports: Vec<_> = (0..placed.ops.len()).map(|phase| PhaseReport::new(placed, phase)).collect();
    for (phase, stream) in host.phases.iter().zip(&host.streams) {
        reports[*phase].add(stream);
    }
    for (phase, report) in reports.iter_mut().enumerate() {
        report.colours =
            colours.iter().filter(|(of, ..)| *of == phase).map(|(.., colour)| colour.0).collect();
        report.colours.sort_unstable();
        let alive = classes.iter().filter_map(|class| class.alive_by_phase.get(phase));
        report.sram_bytes = alive.copied().max().unwrap_or(0);
    }
    reports
}

fn colour_reports(placed: &Placed, colours: &Colours) -> Vec<ColourReport> {
    let mut uses: BTreeMap<u8, BTreeMap<Channel, Vec<String>>> = BTreeMap::new();
    for (phase, channel, colour) in colours.iter() {
        uses.entry(colour.0).or_default().entry(channel).or_default().push(placed.ops[phase].name.clone());
    }
    let report = |(colour, channels): (u8, BTreeMap<_, _>)| ColourReport {
        colour,
        channels: channels.into_iter().collect(),
    };
    uses.into_iter().map(report).collect()
}

#[cfg(test)]
mod tests;
