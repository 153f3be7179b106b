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
mod data;
mod emit;
mod error;
mod host;
mod kernel;
mod lanes;
mod layout;
mod lower;
mod pipeline;
mod place;
mod placed;
mod report;
mod roles;
mod site;
mod spec;
mod sram;
mod tile;
mod train;

pub use analytic::{OpCycles, cycles};
pub use channel::{Channel, Colours};
pub use class::memory_peak;
pub use data::{Angles, HostData, Packing, Part};
pub use emit::{EmitError, EmitOptions, Scope, Stage, WaferArtifact, emit, emit_pipeline};
pub use error::WaferError;
pub use layout::{HeadShape, fit_tokens, place_heads, place_tokens};
pub use lower::LowerToWafer;
pub use pipeline::{Pipeline, RegionReport};
pub use place::{Workload, place_layer};
pub use placed::{
    Activation, Attention, AttentionDx, ColumnSum, Gather, Gradient, Heads, Layout, Linear, Loss, LossDx,
    Map, Norm, NormDw, NormDx, NormKind, OpKind, Outer, Pairing, Parameter, Path, Placed, PlacedOp, Rope,
    Segment, Source, Step, TableDw, Tokens,
};
pub use report::{ClassReport, ColourReport, PhaseReport, PlacementReport};
pub use spec::WaferSpec;
pub use tile::{Blocks, Tiles};
pub use train::{
    Kept, StepChoice, StepError, TrainError, TrainStage, choose_step, emit_training, place_training, way,
};

use channel::{Wanted, allocate};
use check::check;
use class::{build_class, join};
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
    let roles = roles(placed);
    let samples: Vec<Coord> = roles.iter().map(|role| role.sample).collect();
    let colours = allocate(placed, &samples, &wanted(placed), spec.colours)?;
    let host = host::host(placed, &colours, spec.bytes_per_cycle)?;

    let mut program = WaferProgram::new(placed.width, placed.rows());
    program.phases = placed.ops.iter().map(|op| op.name.clone()).collect();
    for (name, data) in &host.tensors {
        program.tensor(name, data.elements());
    }
    let mut classes = Vec::new();
    for role in roles {
        let (class, report) = build_class(placed, spec, &colours, role)?;
        join(&mut program.classes, &mut classes, class, report);
    }
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
        colours: colour_reports(placed, &colours),
        phases,
    };
    Ok(Generated { program, host: host.tensors, report })
}

fn wanted(placed: &Placed) -> Vec<Wanted> {
    let of_op =
        |(phase, op)| kernel::channels(placed, op).into_iter().map(move |channel| Wanted { phase, channel });
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
