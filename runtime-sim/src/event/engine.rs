//! A run from its beginning to its end.

use super::deadlock::{self, Standstill};
#[cfg(feature = "compiled")]
use super::emit::Shape;
use super::jit::Compiled;
use super::outcome;
use super::plan::Plan;
use super::rounds;
use super::strip::Strip;
use crate::check::Checked;
use crate::fabric::FabricSpec;
#[cfg(feature = "compiled")]
use crate::lower::Segment;
use crate::lower::{LoweredClass, lower};
use crate::network::Network;
use crate::program::{Coord, WaferProgram};
use crate::report::Report;
use crate::trace::Trace;
use std::collections::BTreeMap;
use std::num::NonZero;
#[cfg(feature = "compiled")]
use std::sync::Arc;
use std::thread;

/// What a run leaves behind.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Times.
    pub report: Report,
    /// All tensors of the program after the run.
    pub tensors: BTreeMap<String, Vec<f32>>,
    /// What happened when, if that was wanted.
    pub trace: Option<Trace>,
}

/// How to run; nothing here changes a cycle or a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Most threads to use.
    pub threads: usize,
    /// Whether the report says what the critical path consists of; takes longer.
    pub critical_path: bool,
    /// Whether what happened when is kept.
    pub trace: bool,
    /// Whether ops are compiled to machine code where that is known to be possible; otherwise they are interpreted.
    pub compiled: bool,
    /// 0 to work row by row; any other number shuffles the order of what can go on.
    pub shuffle: u64,
}

impl Default for Options {
    /// All cores, compiled, row by row, no critical path, no trace.
    fn default() -> Self {
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        Options { threads, critical_path: false, trace: false, compiled: true, shuffle: 0 }
    }
}

/// Why a run could not be completed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SimError {
    /// Nothing can go on, but not all is done.
    #[error("deadlock after {cycles} cycles, {stuck} participants are stuck{}: {}",
        if *.circular { " in a circle" } else { "" }, .chain.join("; "))]
    Deadlock {
        /// Time of the last thing that happened.
        cycles: u64,
        /// PEs, switches and lanes that are not done.
        stuck: usize,
        /// Each waits for the next.
        chain: Vec<String>,
        /// Whether the last waits for one of the others.
        circular: bool,
    },
    /// An access beyond a buffer.
    #[error("PE {at}, class `{class}`: `{op}` reaches element {index} of a buffer of {elements}")]
    Bounds {
        /// The PE.
        at: Coord,
        /// Its class.
        class: String,
        /// The op.
        op: &'static str,
        /// The element reached.
        index: i64,
        /// Size of the buffer.
        elements: u32,
    },
    /// A tensor that is missing or of the wrong size.
    #[error("tensor `{name}` has {found} elements, the program declares {expected}: pass it with that size")]
    Tensor {
        /// Its name.
        name: String,
        /// Elements declared.
        expected: u64,
        /// Elements given.
        found: u64,
    },
}

/// Fewest PEs worth a second thread.
const FEW: usize = 4096;

/// Runs a checked program on the fabric it was checked for.
///
/// `tensors` gives values to declared tensors; those not given are zero. Fails on a deadlock, with an explanation, and
/// on accesses that the checker could not decide.
pub fn simulate(
    program: &Checked<WaferProgram>,
    tensors: BTreeMap<String, Vec<f32>>,
) -> Result<Run, SimError> {
    let mut options = Options::default();
    let pes: u64 = program.get().classes.iter().map(|class| class.count()).sum();
    if pes < FEW as u64 {
        options.threads = 1;
    }
    simulate_with(program, tensors, &options)
}

/// As [`simulate`], with options.
pub fn simulate_with(
    program: &Checked<WaferProgram>,
    tensors: BTreeMap<String, Vec<f32>>,
    options: &Options,
) -> Result<Run, SimError> {
    let (program, spec) = (program.get(), program.fabric());
    let tensors = declared(program, tensors)?;
    let Ok(net) = Network::build(program, spec) else {
        return Ok(Run { report: Report::default(), tensors: BTreeMap::new(), trace: None });
    };
    let net = net.thinned();
    let mut classes = lower(program, spec);
    let compiled = options.compiled.then(|| compile(&mut classes)).flatten();
    let alone = options.critical_path || options.trace;
    let plan = Plan::of(&net, if alone { 1 } else { options.threads });
    let setup = Setup {
        program,
        spec,
        net: &net,
        classes: &classes,
        plan: &plan,
        tensors: &tensors,
        options,
        compiled,
    };
    let mut strips = rounds::run(&setup);
    refuse(&setup, &mut strips)?;
    Ok(outcome::collect(&setup, strips))
}

/// What does not change during a run.
pub struct Setup<'a> {
    /// The program.
    pub program: &'a WaferProgram,
    /// The fabric.
    pub spec: &'a FabricSpec,
    /// Its streams.
    pub net: &'a Network,
    /// Its classes.
    pub classes: &'a [LoweredClass],
    /// Who is where.
    pub plan: &'a Plan,
    /// Tensors before the run.
    pub tensors: &'a [(&'a str, Vec<f32>)],
    /// How to run.
    pub options: &'a Options,
    /// Compiled ops.
    pub compiled: Option<Compiled>,
}

/// Nothing can be compiled.
#[cfg(not(feature = "compiled"))]
fn compile(_: &mut [LoweredClass]) -> Option<Compiled> {
    None
}

/// Compiles each distinct shape of op once, and numbers the ops by it.
#[cfg(feature = "compiled")]
fn compile(classes: &mut [LoweredClass]) -> Option<Compiled> {
    let mut shapes: Vec<Shape> = Vec::new();
    let mut done: BTreeMap<u32, Arc<Segment>> = BTreeMap::new();
    let tasks = classes.iter_mut().flat_map(|class| &mut class.tasks);
    for segment in tasks.flat_map(|task| task.code.segments_mut()) {
        let compiled = done.entry(segment.number).or_insert_with(|| Arc::new(numbered(segment, &mut shapes)));
        *segment = Arc::clone(compiled);
    }
    Compiled::new(shapes)
}

/// A segment with its ops numbered by their shapes.
#[cfg(feature = "compiled")]
fn numbered(segment: &Segment, shapes: &mut Vec<Shape>) -> Segment {
    let mut segment = segment.clone();
    for op in segment.instrs.iter_mut().flat_map(crate::lower::Instr::ops_mut) {
        let Some(shape) = Shape::of(op) else { continue };
        let number = shapes.iter().position(|known| *known == shape).unwrap_or(shapes.len());
        if number == shapes.len() {
            shapes.push(shape);
        }
        op.compiled = number as u16 + 1;
    }
    segment
}

/// All declared tensors, in name order.
fn declared(
    program: &WaferProgram,
    mut given: BTreeMap<String, Vec<f32>>,
) -> Result<Vec<(&str, Vec<f32>)>, SimError> {
    let mut out = Vec::new();
    for (name, decl) in &program.tensors {
        let values = given.remove(name).unwrap_or_else(|| vec![0.0; decl.elements as usize]);
        if values.len() as u64 != decl.elements {
            let (expected, found) = (decl.elements, values.len() as u64);
            return Err(SimError::Tensor { name: name.clone(), expected, found });
        }
        out.push((name.as_str(), values));
    }
    Ok(out)
}

/// The first fault, or the standstill, of strips that cannot go on.
fn refuse(setup: &Setup, strips: &mut [Strip]) -> Result<(), SimError> {
    let faults = strips.iter().flat_map(|strip| &strip.faults);
    if let Some((_, pe, fault)) = faults.min_by_key(|(time, pe, _)| (*time, *pe)) {
        let class = &setup.classes[usize::from(setup.net.class_of[*pe as usize])].name;
        let (op, index, elements) = (fault.op, fault.index, fault.elements);
        let at = setup.net.coord(*pe);
        return Err(SimError::Bounds { at, class: class.clone(), op, index, elements });
    }
    match deadlock::stuck(setup, strips).len() {
        0 => Ok(()),
        stuck => {
            let cycles = outcome::cycles(strips);
            let Standstill { chain, circular } = deadlock::explain(setup, strips);
            Err(SimError::Deadlock { cycles, stuck, chain, circular })
        }
    }
}
