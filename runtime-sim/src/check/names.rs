//! Everything that can be seen without following a word: names, ranges, shapes of statements.

use super::fault::{CheckError, Fault};
use super::pieces::Pieces;
use crate::fabric::FabricSpec;
use crate::lower::{MAX_DEPTH, input_colours, output_colours};
use crate::parallel;
use crate::program::{
    Affine, Class, Colour, Coord, Dest, HostStream, Operand, Port, Region, Route, Slice, Stmt, Task,
    TensorMap, Trigger, Uses, Var, VectorOp, WaferProgram, Wire,
};
use lapidary_models::dtype::DType;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

/// Largest grid side and tensor that a program may name; keeps later sums in range.
const HUGE: i64 = 1 << 40;

/// All faults of this kind; `uses` says what pieces use.
pub fn check(program: &WaferProgram, spec: &FabricSpec, uses: &BTreeMap<usize, Uses>) -> Vec<CheckError> {
    let mut errors = Vec::new();
    grid(program, spec, &mut errors);
    duplicates("phase", program.phases.iter(), &mut errors);
    duplicates("class", program.classes.iter().map(|c| &c.name), &mut errors);
    duplicates("host stream", program.host.iter().map(|h| &h.name), &mut errors);
    for (name, tensor) in &program.tensors {
        range(&format_args!("the size of tensor `{name}`"), tensor.elements as i64, 0, HUGE, &mut errors);
    }
    colours(program, spec, &mut errors);
    let pieces = Pieces::of(program, uses, &mut errors);
    let of_class = |class| of_class(program, class, spec, &pieces);
    errors.extend(parallel::map(&program.classes, of_class).into_iter().flatten());
    program.host.iter().for_each(|h| host(program, h, &mut errors));
    errors
}

fn of_class(program: &WaferProgram, class: &Class, spec: &FabricSpec, pieces: &Pieces) -> Vec<CheckError> {
    let mut errors = Vec::new();
    let (inputs, outputs) = (input_colours(class), output_colours(class));
    Names { program, class, inputs, outputs, pieces, errors: &mut errors }.class(spec);
    let first = class.regions.iter().flat_map(Region::pes).next();
    let told = |error: CheckError| CheckError { at: error.at.or(first), ..error.class(&class.name) };
    errors.into_iter().map(told).collect()
}

fn grid(program: &WaferProgram, spec: &FabricSpec, errors: &mut Vec<CheckError>) {
    let (width, height) = (program.width, program.height);
    let (max_width, max_height) = (spec.max_width, spec.max_height);
    if !spec.holds(width, height) {
        errors.push(CheckError::new(Fault::Grid { width, height, max_width, max_height }));
    }
    if program.classes.len() >= usize::from(u16::MAX) {
        let value = program.classes.len() as i64;
        range(&"the number of classes", value, 0, i64::from(u16::MAX) - 1, errors);
    }
}

fn duplicates<'a>(what: &'static str, names: impl Iterator<Item = &'a String>, errors: &mut Vec<CheckError>) {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            errors.push(CheckError::new(Fault::Duplicate { what, name: name.clone() }));
        }
    }
}

fn range(what: &dyn Display, value: i64, least: i64, most: i64, errors: &mut Vec<CheckError>) {
    if value < least || value > most {
        let expected = if most == HUGE { format!("{least} or more") } else { format!("{least}..={most}") };
        errors.push(CheckError::new(Fault::Range { what: what.to_string(), value, expected }));
    }
}

fn colours(program: &WaferProgram, spec: &FabricSpec, errors: &mut Vec<CheckError>) {
    let routed = program.classes.iter().flat_map(|c| c.routes.keys().copied());
    let used: BTreeSet<Colour> = routed.chain(program.host.iter().map(|h| h.colour)).collect();
    if used.len() > usize::from(spec.colours) {
        let error = CheckError::new(Fault::Colours { used: used.len(), limit: spec.colours });
        let beyond = used.iter().nth(usize::from(spec.colours)).copied();
        let user = beyond.and_then(|c| program.classes.iter().find(|class| class.routes.contains_key(&c)));
        let error = beyond.map_or(error.clone(), |colour| error.colour(colour));
        let first = user.and_then(|class| class.regions.iter().flat_map(Region::pes).next());
        errors.push(user.map_or(error.clone(), |class| CheckError { at: first, ..error.class(&class.name) }));
    } else if let Some(last) = used.last() {
        let most = i64::from(spec.colours) - 1;
        range(&"the number of a colour", i64::from(last.0), 0, most, errors);
    }
}

/// Variables that an expression may use.
#[derive(Clone, Copy)]
struct Scope {
    loops: usize,
    turn: bool,
    dims: usize,
}

fn affine(what: &dyn Display, a: &Affine, scope: Scope, errors: &mut Vec<CheckError>) {
    for (var, c) in &a.terms {
        let known = match var {
            Var::X | Var::Y => true,
            Var::XOver(n) | Var::YOver(n) => *n > 0,
            Var::Loop(d) => usize::from(*d) < scope.loops,
            Var::Turn => scope.turn,
            Var::Dim(k) => usize::from(*k) < scope.dims,
        };
        if !known {
            errors.push(CheckError::new(Fault::Variable { what: what.to_string(), var: var.to_string() }));
        }
        range(&format_args!("a coefficient of {what}"), *c, -HUGE, HUGE, errors);
    }
    range(&format_args!("the constant of {what}"), a.base, -HUGE, HUGE, errors);
}

fn dims(what: &dyn Display, list: &[Affine], scope: Scope, errors: &mut Vec<CheckError>) {
    range(&format_args!("the number of lengths of {what}"), list.len() as i64, 1, 4, errors);
    list.iter().for_each(|d| affine(&format_args!("a length of {what}"), d, scope, errors));
}

fn tensor(
    program: &WaferProgram,
    map: (&str, &[Affine], &Affine),
    user: &dyn Display,
    errors: &mut Vec<CheckError>,
) {
    let (name, lengths, index) = map;
    if !program.tensors.contains_key(name) {
        let fault = Fault::Unknown { what: "tensor", name: name.into(), user: user.to_string() };
        errors.push(CheckError::new(fault));
    }
    let place = Scope { loops: 0, turn: false, dims: 0 };
    dims(user, lengths, place, errors);
    affine(&format_args!("the index of {user}"), index, Scope { dims: lengths.len(), ..place }, errors);
}

fn host(program: &WaferProgram, h: &HostStream, errors: &mut Vec<CheckError>) {
    let user = format_args!("host stream `{}`", h.name);
    tensor(program, (&h.tensor, &h.dims, &h.index), &user, errors);
    if h.edge == Port::Ramp {
        let what = format!("{user} enters at a ramp: name an edge");
        errors.push(CheckError::new(Fault::Malformed { what }));
    }
    let limit = i64::from(if h.edge.lane() == Var::X { program.width } else { program.height });
    let last = i64::from(h.first) + (i64::from(h.lanes) - 1) * i64::from(h.step);
    range(&format_args!("the number of lanes of {user}"), i64::from(h.lanes), 1, limit, errors);
    range(&format_args!("the lane step of {user}"), i64::from(h.step), 1, HUGE, errors);
    range(&format_args!("the interval of {user}"), i64::from(h.interval), 1, HUGE, errors);
    range(&format_args!("the last lane of {user}"), last, 0, limit - 1, errors);
}

/// A class whose names are looked up.
pub(super) struct Names<'a> {
    pub program: &'a WaferProgram,
    pub class: &'a Class,
    pub inputs: Vec<Colour>,
    pub outputs: Vec<Colour>,
    /// Pieces without a fault of their own.
    pub pieces: &'a Pieces<'a>,
    pub errors: &'a mut Vec<CheckError>,
}

impl Names<'_> {
    fn class(&mut self, spec: &FabricSpec) {
        for r in &self.class.regions {
            for (what, value) in
                [("columns", r.columns), ("rows", r.rows), ("step_x", r.step_x), ("step_y", r.step_y)]
            {
                range(&format_args!("`{what}` of a region"), i64::from(value), 1, HUGE, self.errors);
            }
            let last =
                |first: u32, n: u32, step: u32| i64::from(first) + (i64::from(n) - 1) * i64::from(step);
            let (x, y) = (last(r.x, r.columns, r.step_x), last(r.y, r.rows, r.step_y));
            let (width, height) = (self.program.width, self.program.height);
            if x >= i64::from(width) || y >= i64::from(height) {
                let clamp = |v: i64| v.clamp(0, i64::from(u32::MAX)) as u32;
                let at = Coord { x: clamp(x), y: clamp(y) };
                self.errors.push(CheckError::new(Fault::Outside { width, height }).at(at));
            }
        }
        duplicates("task", self.class.tasks.iter().map(|t| &t.name), self.errors);
        for (name, buffer) in &self.class.buffers {
            if buffer.dtype == DType::I32 {
                let what = format!("buffer `{name}` has dtype i32: PEs compute in f32, f16 and bf16");
                self.errors.push(CheckError::new(Fault::Malformed { what }));
            }
            for (verb, map) in [("load", &buffer.load), ("store", &buffer.store)] {
                if let Some(TensorMap { tensor: t, dims, index }) = map {
                    tensor(
                        self.program,
                        (t, dims, index),
                        &format_args!("the {verb} of buffer `{name}`"),
                        self.errors,
                    );
                }
            }
        }
        self.class.routes.iter().for_each(|(colour, route)| self.route(*colour, route, spec));
        self.class.tasks.iter().for_each(|task| self.task(task));
    }

    fn route(&mut self, colour: Colour, route: &Route, spec: &FabricSpec) {
        let count = route.positions.len() as i64;
        range(&"the number of switch positions", count, 1, spec.switch_positions as i64, self.errors);
        for (position, p) in route.positions.iter().enumerate() {
            let unique: BTreeSet<Port> = p.to.iter().copied().collect();
            let why = match () {
                () if p.to.is_empty() => "it sends to no port",
                () if unique.len() < p.to.len() => "it sends to a port twice",
                () if unique.contains(&p.from) => "it sends back to where words come from",
                () => continue,
            };
            self.errors.push(CheckError::new(Fault::Position { position, why }).colour(colour));
        }
    }

    fn task(&mut self, task: &Task) {
        let user = format_args!("task `{}`", task.name);
        affine(
            &format_args!("`times` of {user}"),
            &task.times,
            Scope { loops: 0, turn: false, dims: 0 },
            self.errors,
        );
        match task.trigger {
            Trigger::Start if task.times != Affine::constant(1) => {
                let what = format!("{user} starts by itself and runs once: write `times` 1");
                self.errors.push(CheckError::new(Fault::Malformed { what }));
            }
            Trigger::Start | Trigger::Local => {}
            Trigger::Data { colour, wire } => {
                self.input(&user, colour);
                self.scalar(&user, wire);
            }
            Trigger::Control { colour } => self.input(&user, colour),
        }
        self.body(task, &task.body, 0);
    }

    pub fn body(&mut self, task: &Task, body: &[Stmt], depth: usize) {
        let scope = Scope { loops: depth, turn: true, dims: 0 };
        for stmt in body {
            match stmt {
                Stmt::Op(op) => self.op(task, op, scope),
                Stmt::Par(ops) => ops.iter().for_each(|op| self.op(task, op, scope)),
                Stmt::Loop { count, body } => {
                    affine(&"a loop count", count, scope, self.errors);
                    if depth >= MAX_DEPTH {
                        range(&"the depth of loops", depth as i64 + 1, 1, MAX_DEPTH as i64, self.errors);
                    } else {
                        self.body(task, body, depth + 1);
                    }
                }
                Stmt::Control { colour, .. } => self.output(&format_args!("task `{}`", task.name), *colour),
                Stmt::Activate(name) => self.activate(task, name),
                Stmt::Serial { times, .. } => affine(&"a count of work", times, scope, self.errors),
                Stmt::Piece(piece) if depth > 0 => {
                    let what = format!("task `{}` uses piece `{}` inside of a loop", task.name, piece.name);
                    self.errors.push(CheckError::new(Fault::Malformed { what }));
                }
                Stmt::Piece(piece) => {
                    if !self.pieces.are_known(piece, self.class, task, (&self.inputs, &self.outputs)) {
                        self.body(task, &piece.body, 0);
                    }
                }
                Stmt::Phase(name) => {
                    if !self.program.phases.contains(name) {
                        self.unknown("phase", name, &format_args!("task `{}`", task.name));
                    }
                }
            }
        }
    }

    fn activate(&mut self, task: &Task, name: &str) {
        let user = format_args!("task `{}`", task.name);
        match self.class.tasks.iter().find(|t| t.name == name) {
            None => self.unknown("task", name, &user),
            Some(t) if t.trigger != Trigger::Local => {
                let what = format!("{user} activates task `{name}`, whose trigger is not `local`");
                self.errors.push(CheckError::new(Fault::Malformed { what }));
            }
            Some(_) => {}
        }
    }

    fn unknown(&mut self, what: &'static str, name: &str, user: &dyn Display) {
        let fault = Fault::Unknown { what, name: name.into(), user: user.to_string() };
        self.errors.push(CheckError::new(fault));
    }

    fn op(&mut self, task: &Task, op: &VectorOp, scope: Scope) {
        let user = format_args!("`{}` in task `{}`", op.kind.name(), task.name);
        dims(&user, &op.dims, scope, self.errors);
        if op.src.len() != op.kind.arity() {
            let what = format_args!("the number of operands of {user}");
            let arity = op.kind.arity() as i64;
            range(&what, op.src.len() as i64, arity, arity, self.errors);
        }
        match &op.dst {
            Dest::Mem(slice) => self.slice(&user, slice, op.dims.len(), scope),
            Dest::Out { colour, .. } | Dest::OutThen { colour, .. } => self.output(&user, *colour),
        }
        for source in &op.src {
            match source {
                Operand::Mem(slice) => self.slice(&user, slice, op.dims.len(), scope),
                Operand::In { colour, .. } => self.input(&user, *colour),
                Operand::Scalar { colour, wire } => {
                    self.input(&user, *colour);
                    self.scalar(&user, *wire);
                }
                Operand::Trigger if !matches!(task.trigger, Trigger::Data { .. }) => {
                    let what = format!("{user} reads `trigger`, but the task is not triggered by data");
                    self.errors.push(CheckError::new(Fault::Malformed { what }));
                }
                Operand::Trigger | Operand::Const(_) => {}
            }
        }
    }

    fn slice(&mut self, user: &dyn Display, slice: &Slice, lengths: usize, scope: Scope) {
        affine(&format_args!("an address of {user}"), &slice.at, scope, self.errors);
        if !self.class.buffers.contains_key(&slice.buffer) {
            self.unknown("buffer", &slice.buffer, user);
        }
        if !slice.strides.is_empty() && slice.strides.len() != lengths {
            let what = format_args!("the number of strides of `{}` in {user}", slice.buffer);
            range(&what, slice.strides.len() as i64, lengths as i64, lengths as i64, self.errors);
        }
        for stride in &slice.strides {
            range(&format_args!("a stride of {user}"), *stride, -HUGE, HUGE, self.errors);
        }
    }

    fn scalar(&mut self, user: &dyn Display, wire: Wire) {
        if wire.lanes() != 1 {
            let what = format!("{user} takes one element per word, but the wire is {}", wire.name());
            self.errors.push(CheckError::new(Fault::Malformed { what }));
        }
    }

    fn input(&mut self, user: &dyn Display, colour: Colour) {
        if self.inputs.binary_search(&colour).is_err() {
            let fault = Fault::NoRamp { user: user.to_string(), verb: "reads" };
            self.errors.push(CheckError::new(fault).colour(colour));
        }
    }

    fn output(&mut self, user: &dyn Display, colour: Colour) {
        if self.outputs.binary_search(&colour).is_err() {
            let fault = Fault::NoRamp { user: user.to_string(), verb: "sends on" };
            self.errors.push(CheckError::new(fault).colour(colour));
        }
    }
}
