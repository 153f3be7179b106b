//! Classes in the form that the simulator executes: names resolved to numbers, loops flattened to jumps.

mod build;
mod code;

pub use build::{lower, lower_with};
pub use code::{Code, Segment, segments};

use crate::price::Price;
use crate::program::{Affine, Class, Colour, Command, OpKind, Port, Serial, Trigger, Var, Wire};
use lapidary_models::dtype::DType;
use std::collections::BTreeMap;

/// Deepest nesting of loops.
pub const MAX_DEPTH: usize = 6;

/// What an affine expression of code may depend on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Env {
    /// Column of the PE.
    pub x: i64,
    /// Row of the PE.
    pub y: i64,
    /// Earlier activations of the running task.
    pub turn: i64,
    /// Loop counters by depth.
    pub loops: [i64; MAX_DEPTH],
}

/// An [`Affine`] of code: without the dimensions of tensors.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Linear {
    base: i64,
    terms: Box<[(Var, i64)]>,
}

impl Linear {
    /// The value at `env`.
    pub fn at(&self, env: &Env) -> i64 {
        self.terms.iter().fold(self.base, |sum, (var, c)| sum + c * env.value(*var))
    }

    /// The value if it is the same everywhere and always.
    pub fn as_constant(&self) -> Option<i64> {
        self.terms.is_empty().then_some(self.base)
    }

    /// The constant term.
    pub fn base(&self) -> i64 {
        self.base
    }

    /// What the column (or the row) contributes to the value.
    pub fn part(&self, of_x: bool, at: i64) -> i64 {
        let env = Env { x: at, y: at, ..Env::default() };
        self.terms_of(of_x).map(|(var, c)| c * env.value(*var)).sum()
    }

    /// Whether the column (or the row) contributes the same to both, wherever that is.
    pub fn same_part(&self, other: &Linear, of_x: bool) -> bool {
        self.terms_of(of_x).eq(other.terms_of(of_x))
    }

    fn terms_of(&self, of_x: bool) -> impl Iterator<Item = &(Var, i64)> {
        self.terms.iter().filter(move |(var, _)| match var {
            Var::X | Var::XOver(_) => of_x,
            Var::Y | Var::YOver(_) => !of_x,
            _ => false,
        })
    }

    /// Its terms, as numbers; without the constant and what the place contributes if only those of time are wanted.
    pub fn encode(&self, of_time: bool, out: &mut Vec<i64>) {
        let of_place = |var: &Var| matches!(var, Var::X | Var::XOver(_) | Var::Y | Var::YOver(_));
        let terms = || self.terms.iter().filter(|(var, _)| !of_time || !of_place(var));
        out.push(terms().count() as i64);
        out.push(if of_time { 0 } else { self.base });
        for (var, coefficient) in terms() {
            let (kind, number) = match *var {
                Var::X => (0, 0),
                Var::Y => (1, 0),
                Var::XOver(n) => (2, i64::from(n)),
                Var::YOver(n) => (3, i64::from(n)),
                Var::Turn => (4, 0),
                Var::Loop(depth) => (5, i64::from(depth)),
                Var::Dim(k) => (6, i64::from(k)),
            };
            out.extend([kind, number, *coefficient]);
        }
    }

    /// What the value gains with each step of the counter of the loop at `depth`.
    pub fn per_loop(&self, depth: usize) -> i64 {
        let own = |var: Var| matches!(var, Var::Loop(d) if usize::from(d) == depth);
        self.terms.iter().find(|(var, _)| own(*var)).map_or(0, |(_, c)| *c)
    }

    /// Whether the value depends on the counter of the loop at `depth`.
    pub fn uses_loop(&self, depth: usize) -> bool {
        self.per_loop(depth) != 0
    }

    /// The coefficients of what differs between two values, beside their constants.
    pub fn minus(&self, other: &Linear) -> Vec<i64> {
        let mut terms: BTreeMap<Var, i64> = self.terms.iter().copied().collect();
        other.terms.iter().for_each(|(var, c)| *terms.entry(*var).or_default() -= c);
        terms.into_values().collect()
    }

    /// Whether the value depends on more than the place.
    pub fn is_timed(&self) -> bool {
        self.terms.iter().any(|(var, _)| matches!(var, Var::Turn | Var::Loop(_)))
    }

    /// Whether the value depends on earlier runs of the task.
    pub fn uses_turn(&self) -> bool {
        self.terms.iter().any(|(var, _)| *var == Var::Turn)
    }

    /// Whether the value depends on the PE's column, row.
    pub fn uses_place(&self) -> (bool, bool) {
        (self.terms_of(true).next().is_some(), self.terms_of(false).next().is_some())
    }
}

impl Env {
    fn value(&self, var: Var) -> i64 {
        match var {
            Var::X => self.x,
            Var::Y => self.y,
            Var::XOver(n) => self.x.div_euclid(i64::from(n).max(1)),
            Var::YOver(n) => self.y.div_euclid(i64::from(n).max(1)),
            Var::Turn => self.turn,
            Var::Loop(depth) => self.loops.get(usize::from(depth)).copied().unwrap_or(0),
            Var::Dim(_) => 0,
        }
    }
}

impl From<&Affine> for Linear {
    fn from(a: &Affine) -> Self {
        let known = |var: &Var| match var {
            Var::Loop(depth) => usize::from(*depth) < MAX_DEPTH,
            Var::Dim(_) => false,
            _ => true,
        };
        let terms = a.terms.iter().map(|(var, c)| (*var, *c)).filter(|(var, _)| known(var));
        Linear { base: a.base, terms: terms.collect() }
    }
}

/// A slice with its buffer resolved.
#[derive(Clone, Debug, Eq)]
pub struct LoweredSlice {
    /// The buffer, by index of [`Segment::buffers`].
    pub buffer: u16,
    /// First byte of the buffer.
    pub buffer_offset: u32,
    /// Elements of the buffer.
    pub elements: u32,
    /// Element type.
    pub dtype: DType,
    /// First element.
    pub at: Linear,
    /// Strides per dimension; empty means contiguous.
    pub strides: Vec<i64>,
}

impl PartialEq for LoweredSlice {
    /// Whether they are the same memory, whatever the buffer is called.
    fn eq(&self, other: &Self) -> bool {
        let place = |s: &Self| (s.buffer_offset, s.elements, s.dtype);
        place(self) == place(other) && self.at == other.at && self.strides == other.strides
    }
}

/// A resolved source operand.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// Elements of memory.
    Mem(LoweredSlice),
    /// A stream, by index of the class's inputs.
    In { slot: usize, wire: Wire },
    /// One word, by index of the class's inputs.
    Scalar { slot: usize, wire: Wire },
    /// The word that triggered the task.
    Trigger { wire: Wire },
    /// A number.
    Const(f32),
}

impl Source {
    /// Element type, if it has one of its own.
    pub fn dtype(&self) -> Option<DType> {
        match self {
            Source::Mem(s) => Some(s.dtype),
            Source::In { wire, .. } | Source::Scalar { wire, .. } | Source::Trigger { wire } => {
                Some(wire.dtype())
            }
            Source::Const(_) => None,
        }
    }

    /// The slice, if it is one.
    pub fn slice(&self) -> Option<&LoweredSlice> {
        match self {
            Source::Mem(s) => Some(s),
            _ => None,
        }
    }

    /// Slot and wire, if it is a stream.
    pub fn stream(&self) -> Option<(usize, Wire)> {
        match self {
            Source::In { slot, wire } => Some((*slot, *wire)),
            _ => None,
        }
    }
}

/// A resolved destination.
#[derive(Clone, Debug, PartialEq)]
pub enum Sink {
    /// Elements of memory.
    Mem(LoweredSlice),
    /// Words sent, by index of the class's outputs.
    Out { slot: usize, wire: Wire, then: Option<Command> },
}

impl Sink {
    /// Element type.
    pub fn dtype(&self) -> DType {
        match self {
            Sink::Mem(s) => s.dtype,
            Sink::Out { wire, .. } => wire.dtype(),
        }
    }
}

/// A resolved vector operation with its price.
#[derive(Clone, Debug, PartialEq)]
pub struct LoweredOp {
    /// Function per element.
    pub kind: OpKind,
    /// Where results go.
    pub dst: Sink,
    /// Operands.
    pub src: Vec<Source>,
    /// Lengths.
    pub dims: Vec<Linear>,
    /// Whether elements must be computed strictly one after the other.
    pub sequential: bool,
    /// What it costs.
    pub price: Price,
    /// Number of its compiled function, from 1; 0 if it is interpreted.
    pub compiled: u16,
}

impl LoweredOp {
    /// Elements moved together: the lanes of the widest wire.
    pub fn step(&self) -> u32 {
        let sources = self.src.iter().filter_map(Source::stream).map(|(_, wire)| wire.lanes());
        let out = match &self.dst {
            Sink::Out { wire, .. } => wire.lanes(),
            Sink::Mem(_) => 1,
        };
        sources.chain([out]).max().unwrap_or(1)
    }

    /// Whether it reads or writes a stream of words element by element.
    pub fn streams(&self) -> bool {
        matches!(self.dst, Sink::Out { .. }) || self.src.iter().any(|s| s.stream().is_some())
    }

    /// All slices of memory, the destination first.
    pub fn slices(&self) -> impl Iterator<Item = &LoweredSlice> {
        let dst = match &self.dst {
            Sink::Mem(slice) => Some(slice),
            Sink::Out { .. } => None,
        };
        dst.into_iter().chain(self.src.iter().filter_map(Source::slice))
    }

    /// Number of elements at `env`.
    pub fn elements(&self, env: &Env) -> u64 {
        self.dims.iter().map(|d| d.at(env).max(0) as u64).product()
    }

    /// Cycles at `env` if it is an op on memory, without issue.
    pub fn memory_cycles(&self, env: &Env) -> u64 {
        let row = self.dims.last().map_or(1, |d| d.at(env).max(0) as u64);
        self.price.memory_cycles(self.elements(env), row)
    }
}

/// One flattened step of a task.
#[derive(Clone, Debug, PartialEq)]
pub enum Instr {
    /// A vector operation.
    Op(LoweredOp),
    /// Vector operations side by side.
    Par(Vec<LoweredOp>),
    /// Head of a loop; its [`Instr::Next`] comes `length` instructions later. `varies` says that iterations differ in more
    /// than addresses: a count or length inside depends on the counter.
    Loop { depth: usize, count: Linear, length: usize, varies: bool },
    /// End of the loop whose head is `length` instructions before.
    Next { depth: usize, length: usize },
    /// Sends a control word.
    Control { slot: usize, command: Command },
    /// Lets a local task run once more.
    Activate(usize),
    /// Work beside vector operations: cycles of one piece of it, and how many pieces.
    Serial { cycles: u64, times: Linear, what: Serial },
    /// Enters a phase.
    Phase(usize),
    /// End of the task.
    End,
}

impl LoweredClass {
    /// The different counts and lengths that depend on the column (or on the row).
    pub fn lengths_of(&self, of_x: bool) -> Vec<Linear> {
        let mut found: Vec<Linear> = Vec::new();
        self.lengths(&mut |l: &Linear| {
            let (x, y) = l.uses_place();
            if (if of_x { x } else { y }) && !found.contains(l) {
                found.push(l.clone());
            }
        });
        found
    }

    /// Visits every count and length that depends on the place.
    fn lengths(&self, note: &mut dyn FnMut(&Linear)) {
        for task in &self.tasks {
            note(&task.times);
            task.code.segments().flat_map(|segment| segment.placed()).for_each(&mut *note);
        }
    }
}

impl Instr {
    /// Its vector operations.
    #[cfg(feature = "compiled")]
    pub fn ops_mut(&mut self) -> &mut [LoweredOp] {
        match self {
            Instr::Op(op) => std::slice::from_mut(op),
            Instr::Par(ops) => ops,
            _ => &mut [],
        }
    }

    /// Whether a count or length depends on how often the task ran before.
    pub fn length_varies_by_turn(&self) -> bool {
        match self {
            Instr::Op(op) => op.dims.iter().any(Linear::uses_turn),
            Instr::Par(ops) => ops.iter().any(|op| op.dims.iter().any(Linear::uses_turn)),
            Instr::Loop { count, .. } => count.uses_turn(),
            Instr::Serial { times, .. } => times.uses_turn(),
            _ => false,
        }
    }

    /// Whether a count or length depends on the counter of the loop at `depth`.
    fn length_uses(&self, depth: usize) -> bool {
        let op = |op: &LoweredOp| op.dims.iter().any(|d| d.uses_loop(depth));
        match self {
            Instr::Op(o) => op(o),
            Instr::Par(ops) => ops.iter().any(op),
            Instr::Loop { count, .. } => count.uses_loop(depth),
            Instr::Serial { times, .. } => times.uses_loop(depth),
            _ => false,
        }
    }
}

/// A task in executable form.
#[derive(Clone, Debug)]
pub struct LoweredTask {
    /// What starts it.
    pub trigger: Trigger,
    /// Input slot of the trigger's colour.
    pub slot: usize,
    /// How often it runs.
    pub times: Linear,
    /// Flattened body.
    pub code: Code,
}

/// A class in executable form.
#[derive(Clone, Debug)]
pub struct LoweredClass {
    /// Name, for messages.
    pub name: String,
    /// Colours that reach the ramp, ascending: the input slots.
    pub inputs: Vec<Colour>,
    /// Colours that leave through the ramp, ascending: the output slots.
    pub outputs: Vec<Colour>,
    /// Tasks in order.
    pub tasks: Vec<LoweredTask>,
    /// Bytes of memory in use.
    pub memory: u32,
}

/// Colours with a position that satisfies `wanted`, ascending.
fn colours(class: &Class, wanted: impl Fn(&crate::program::Position) -> bool) -> Vec<Colour> {
    class.routes.iter().filter(|(_, r)| r.positions.iter().any(&wanted)).map(|(c, _)| *c).collect()
}

/// Colours that reach the ramp of a class: its input slots.
pub fn input_colours(class: &Class) -> Vec<Colour> {
    colours(class, |p| p.to.contains(&Port::Ramp))
}

/// Colours that a class sends: its output slots.
pub fn output_colours(class: &Class) -> Vec<Colour> {
    colours(class, |p| p.from == Port::Ramp)
}
