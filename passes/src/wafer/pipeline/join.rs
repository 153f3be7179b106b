//! Programs of regions as one program: each moved down to its rows, its names and colours its own, weights from feeder
//! rows and activations from the region above instead of the host.

use super::feeder::{Feeders, Ways, are_weights};
use super::{HostData, Region, WaferError, WaferSpec};
use crate::wafer::Generated;
use crate::wafer::code::rewritten;
use crate::wafer::common::write_out;
use lapidary_runtime_sim::program::{
    Affine, Class, Colour, Dest, Direction, HostStream, Lifetime, Operand, Stmt, TensorMap, Var, VectorOp,
    WaferProgram,
};
use std::collections::{BTreeMap, BTreeSet};

/// The regions joined so far.
pub struct Joined {
    program: WaferProgram,
    host: BTreeMap<String, HostData>,
    /// What leaves the last region.
    leaving: Vec<HostStream>,
    output: String,
    last: String,
    rows: u32,
    micro_batches: u32,
}

impl Joined {
    /// Nothing yet, in a grid with rows for these regions.
    pub fn new(regions: &[Region]) -> Self {
        let rows = regions.iter().map(|region| region.feeder_rows + region.placed.tokens.rows).sum();
        let width = regions.first().map_or(0, |region| region.placed.width);
        Joined {
            program: WaferProgram::new(width, rows),
            host: BTreeMap::new(),
            leaving: Vec::new(),
            output: String::new(),
            last: regions.last().map(|region| region.name.clone()).unwrap_or_default(),
            rows: 0,
            micro_batches: regions.first().map_or(1, |region| region.placed.micro_batches),
        }
    }

    /// Rows of the regions so far.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// The program, how the host makes its tensors, and the tensor of the result.
    pub fn finish(mut self) -> (WaferProgram, BTreeMap<String, HostData>, String) {
        self.program.host.extend(self.leaving);
        (self.program, self.host, self.output)
    }

    /// Appends a region below the others.
    pub fn add(&mut self, region: &Region, generated: Generated, spec: &WaferSpec) -> Result<(), WaferError> {
        let Generated { program: mut part, host, .. } = generated;
        // Each region gives names and colours of its own to what its classes share.
        write_out(&mut part.classes, &|_| true);
        let (placed, first) = (&region.placed, self.rows == 0);
        let entering: BTreeSet<Colour> =
            streams(&part, |s| !are_weights(placed, s) && s.direction == Direction::In);
        if let Some(last) = self.leaving.first().map(|stream| stream.colour) {
            // The colour that leaves the region above is the one that enters here.
            let own = entering.first().copied().unwrap_or(last);
            recolour(&mut part, &|colour| match colour {
                c if c == own => last,
                c if c == last => own,
                c => c,
            });
        }
        let passing =
            if first { entering } else { self.leaving.iter().map(|stream| stream.colour).collect() };
        let feeders = Feeders::of(placed, &part.host, spec);
        let ways = self.ways(region, &part, passing)?;
        self.program.classes.extend(feeders.classes(&region.name, &ways));
        let name = |own: &str| format!("{}.{own}", region.name);
        self.program.phases.extend(part.phases.iter().map(|phase| name(phase)));
        let down = i64::from(self.rows + region.feeder_rows);
        self.program.classes.extend(part.classes.into_iter().map(|class| moved(class, &name, down)));
        let named = |stream: HostStream| HostStream {
            name: name(&stream.name),
            tensor: name(&stream.tensor),
            ..stream
        };
        let (inputs, outputs): (Vec<_>, Vec<_>) = part
            .host
            .into_iter()
            .filter(|s| !are_weights(placed, s))
            .partition(|s| s.direction == Direction::In);
        let is_last = region.name == self.last;
        let kept = |tensor: &str| {
            let of = |streams: &[HostStream]| streams.iter().any(|stream| stream.tensor == tensor);
            (first || !of(&inputs)) && (is_last || !of(&outputs))
        };
        for (tensor, data) in host.into_iter().filter(|(tensor, _)| kept(tensor)) {
            self.program.tensor(name(&tensor), data.elements());
            self.host.insert(name(&tensor), data);
        }
        if first {
            self.program.host.extend(inputs.into_iter().map(named));
        }
        self.output = outputs.first().map(|stream| name(&stream.tensor)).unwrap_or_default();
        self.leaving = outputs.into_iter().map(named).collect();
        self.rows += region.feeder_rows + placed.tokens.rows;
        Ok(())
    }

    /// The ways of a region's feeder rows: two colours that nothing else uses there, from row to row.
    fn ways(
        &self,
        region: &Region,
        part: &WaferProgram,
        passing: BTreeSet<Colour>,
    ) -> Result<Ways, WaferError> {
        let weights = streams(part, |s| are_weights(&region.placed, s));
        let used: BTreeSet<Colour> = passing.union(&weights).copied().collect();
        if weights.len() > 1 || !passing.is_disjoint(&weights) {
            let (what, hint) =
                ("a pipeline whose weights take several colours".into(), "stream the weights".into());
            return Err(WaferError::Unsupported { what, hint });
        }
        let mut free = (0..).map(Colour).filter(|colour| !used.contains(colour));
        let relays = [free.next(), free.next()].map(|colour| colour.unwrap_or(Colour(0)));
        Ok(Ways {
            rows: region.feeder_rows,
            first_row: self.rows,
            weights: weights.first().copied().unwrap_or(Colour(0)),
            relays,
            passing,
            times: self.micro_batches,
        })
    }
}

/// Colours of some streams of the host.
fn streams(program: &WaferProgram, which: impl Fn(&HostStream) -> bool) -> BTreeSet<Colour> {
    program.host.iter().filter(|stream| which(stream)).map(|stream| stream.colour).collect()
}

/// A class `down` rows farther south, with names of its own.
fn moved(mut class: Class, name: &dyn Fn(&str) -> String, down: i64) -> Class {
    // With one sequence to a region nothing depends on y but by y itself.
    let lower = |affine: &Affine| {
        let by: i64 = affine.terms.get(&Var::Y).copied().unwrap_or(0) * down;
        Affine { base: affine.base - by, terms: affine.terms.clone() }
    };
    class.name = name(&class.name);
    class.regions.iter_mut().for_each(|region| region.y += down as u32);
    for buffer in class.buffers.values_mut() {
        if let Some(Lifetime { first, last }) = &buffer.alive {
            buffer.alive = Some(Lifetime { first: name(first), last: name(last) });
        }
        for map in [&mut buffer.load, &mut buffer.store].into_iter().flatten() {
            let dims = map.dims.iter().map(lower).collect();
            *map = TensorMap { tensor: name(&map.tensor), dims, index: lower(&map.index) };
        }
    }
    for task in &mut class.tasks {
        let body = std::mem::take(&mut task.body);
        task.body = in_phases(rewritten(body, &lower), name);
        task.times = lower(&task.times);
    }
    class
}

fn in_phases(body: Vec<Stmt>, name: &dyn Fn(&str) -> String) -> Vec<Stmt> {
    let one = |stmt| match stmt {
        Stmt::Phase(phase) => Stmt::Phase(name(&phase)),
        Stmt::Loop { count, body } => Stmt::Loop { count, body: in_phases(body, name) },
        other => other,
    };
    body.into_iter().map(one).collect()
}

/// Gives colours other numbers, everywhere.
fn recolour(program: &mut WaferProgram, change: &dyn Fn(Colour) -> Colour) {
    program.host.iter_mut().for_each(|stream| stream.colour = change(stream.colour));
    for class in &mut program.classes {
        let routes = std::mem::take(&mut class.routes);
        class.routes = routes.into_iter().map(|(colour, route)| (change(colour), route)).collect();
        class.tasks.iter_mut().for_each(|task| recolour_body(&mut task.body, change));
    }
}

fn recolour_body(body: &mut [Stmt], change: &dyn Fn(Colour) -> Colour) {
    for stmt in body {
        match stmt {
            Stmt::Op(op) => recolour_op(op, change),
            Stmt::Par(ops) => ops.iter_mut().for_each(|op| recolour_op(op, change)),
            Stmt::Loop { body, .. } => recolour_body(body, change),
            Stmt::Control { colour, .. } => *colour = change(*colour),
            Stmt::Activate(_) | Stmt::Serial { .. } | Stmt::Phase(_) | Stmt::Piece(_) => {}
        }
    }
}

fn recolour_op(op: &mut VectorOp, change: &dyn Fn(Colour) -> Colour) {
    if let Dest::Out { colour, .. } | Dest::OutThen { colour, .. } = &mut op.dst {
        *colour = change(*colour);
    }
    for source in &mut op.src {
        if let Operand::In { colour, .. } | Operand::Scalar { colour, .. } = source {
            *colour = change(*colour);
        }
    }
}
