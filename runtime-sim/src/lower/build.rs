//! From statements to instructions: what a class has of its own is lowered for it alone, and a piece once for all classes
//! in which its buffers lie in the same places and its colours have the same slots.

use super::{
    Code, Instr, Linear, LoweredClass, LoweredOp, LoweredSlice, LoweredTask, MAX_DEPTH, Segment, Sink,
    Source, input_colours, output_colours,
};
use crate::fabric::FabricSpec;
use crate::parallel;
use crate::price::{Asked, Price, price};
use crate::program::{
    Affine, Buffer, Class, Colour, Command, Dest, Operand, Piece, Shared, Slice, Stmt, Task, Trigger, Uses,
    VectorOp, WaferProgram, Wire,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Lowers all classes of a program that passed the checker's naming rules; unknown names are skipped.
pub fn lower(program: &WaferProgram, spec: &FabricSpec) -> Vec<LoweredClass> {
    lower_with(program, spec, &Uses::of_pieces(program))
}

/// Does what [`lower`] does where it is known what pieces use.
pub fn lower_with<'p>(
    program: &'p WaferProgram,
    spec: &'p FabricSpec,
    uses: &BTreeMap<usize, Uses>,
) -> Vec<LoweredClass> {
    let sites: Vec<Site> = parallel::map(&program.classes, |class| Site::of(program, class, spec));
    let layouts = Layouts::of(program, uses);
    let drafts = parallel::map(&sites, |site| {
        let tasks = site.class.tasks.iter();
        tasks.map(|task| site.draft(task, uses, &layouts)).collect::<Vec<Vec<Part>>>()
    });
    let mut known: BTreeMap<Key, usize> = BTreeMap::new();
    let mut parts: Vec<(&Site, &Task, Part<'p>)> = Vec::new();
    let mut plans: Vec<Vec<Vec<usize>>> = Vec::new();
    for (site, tasks) in sites.iter().zip(drafts) {
        let mut number = |task: &'p Task, mut part: Part<'p>| {
            let next = parts.len();
            let place = match &mut part {
                Part::Own(_) => next,
                Part::Shared(_, key) => *known.entry(std::mem::take(key)).or_insert(next),
            };
            if place == next {
                parts.push((site, task, part));
            }
            place
        };
        let tasks = site.class.tasks.iter().zip(tasks);
        let plan = tasks.map(|(task, parts)| parts.into_iter().map(|part| number(task, part)).collect());
        plans.push(plan.collect());
    }
    let shared = parallel::map(&parts, |(site, task, part)| match part {
        Part::Own(segment) => (None, fingerprint(&segment.instrs)),
        Part::Shared(piece, _) => {
            let segment = site.piece(task, piece);
            let print = fingerprint(&segment.instrs);
            (Some(segment), print)
        }
    });
    let segments = parts.into_iter().zip(shared).filter_map(|((_, _, part), (shared, print))| match part {
        Part::Own(segment) => Some((segment, print)),
        Part::Shared(..) => shared.map(|segment| (segment, print)),
    });
    let segments = numbered(segments);
    sites.into_iter().zip(plans).map(|(site, plan)| site.lowered(plan, &segments)).collect()
}

/// Numbers segments, each with its fingerprint, and finds those that do the same.
fn numbered(segments: impl Iterator<Item = (Segment, u64)>) -> Vec<Arc<Segment>> {
    let mut alike: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    let mut done: Vec<Arc<Segment>> = Vec::new();
    for (number, (mut segment, print)) in segments.enumerate() {
        let seen = alike.entry(print).or_default();
        let known = seen.iter().copied().find(|other| done[*other].instrs == segment.instrs);
        if known.is_none() {
            seen.push(number);
        }
        (segment.number, segment.like) = (number as u32, known.unwrap_or(number) as u32);
        done.push(Arc::new(segment));
    }
    done
}

/// The same for instructions that are equal.
fn fingerprint(instrs: &[Instr]) -> u64 {
    // The fractional part of the golden ratio: an odd number that spreads what it is multiplied with.
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut print = instrs.len() as u64;
    let mut mix = |n: u64| print = (print.rotate_left(23) ^ n).wrapping_mul(SPREAD);
    let mut op = |op: &LoweredOp| {
        mix(op.kind as u64 | (op.dims.len() as u64) << 8 | u64::from(op.price.step) << 16);
        op.dims.iter().for_each(|length| mix(length.base() as u64));
        op.slices().for_each(|slice| mix(u64::from(slice.buffer_offset) ^ (slice.at.base() as u64) << 32));
    };
    for instr in instrs {
        match instr {
            Instr::Op(one) => op(one),
            Instr::Par(ops) => ops.iter().for_each(&mut op),
            _ => {}
        }
    }
    print
}

/// Where the buffers of pieces lie in the memories of classes, which many classes share.
struct Layouts(BTreeMap<(usize, usize), Vec<u64>>);

impl Layouts {
    /// By piece and memory, each as where it is held.
    fn of(program: &WaferProgram, uses: &BTreeMap<usize, Uses>) -> Self {
        let mut known = BTreeMap::new();
        for class in &program.classes {
            let pieces = class.tasks.iter().flat_map(|task| &task.body).filter_map(|stmt| match stmt {
                Stmt::Piece(piece) => Some(piece.address()),
                _ => None,
            });
            for (piece, uses) in pieces.filter_map(|piece| Some((piece, uses.get(&piece)?))) {
                known.entry((piece, class.buffers.address())).or_insert_with(|| {
                    let place = |name: &&str| match class.buffers.get(*name) {
                        Some(b) => [u64::from(b.offset), u64::from(b.elements), b.dtype as u64],
                        None => [u64::MAX; 3],
                    };
                    uses.buffers.iter().flat_map(place).collect()
                });
            }
        }
        Layouts(known)
    }
}

/// A part of a task: what only this class does, or a piece with what its code depends on.
enum Part<'a> {
    Own(Segment),
    Shared(&'a Piece, Key),
}

/// What the code of a piece depends on: which one it is, and where its buffers and colours are.
type Key = Vec<u64>;

/// A class with what its names mean.
struct Site<'a> {
    program: &'a WaferProgram,
    class: &'a Class,
    spec: &'a FabricSpec,
    inputs: Vec<Colour>,
    outputs: Vec<Colour>,
}

impl<'a> Site<'a> {
    fn of(program: &'a WaferProgram, class: &'a Class, spec: &'a FabricSpec) -> Self {
        Site { program, class, spec, inputs: input_colours(class), outputs: output_colours(class) }
    }

    /// Cuts a task where phases and pieces begin, and lowers what is its own.
    fn draft(&self, task: &'a Task, uses: &BTreeMap<usize, Uses>, layouts: &Layouts) -> Vec<Part<'a>> {
        let mut parts = Vec::new();
        let mut cx = Cx::new(self, task);
        for stmt in &task.body {
            if matches!(stmt, Stmt::Phase(_) | Stmt::Piece(_)) {
                parts.extend(cx.finish().map(Part::Own));
            }
            match stmt {
                Stmt::Piece(piece) => {
                    parts.push(Part::Shared(
                        piece,
                        self.key(task, piece, uses.get(&piece.address()), layouts),
                    ));
                }
                other => cx.statement(other, 0),
            }
        }
        cx.code.push(Instr::End);
        parts.extend(cx.finish().map(Part::Own));
        parts
    }

    /// The code of a piece in a task of this class.
    fn piece(&self, task: &Task, piece: &Piece) -> Segment {
        let mut cx = Cx::new(self, task);
        cx.code.reserve_exact(instructions(&piece.body));
        cx.statements(&piece.body, 0);
        let names = cx.buffers.into_iter().map(|(name, _)| name);
        Segment::new(cx.code, names.collect())
    }

    fn key(&self, task: &Task, piece: &Shared<Piece>, uses: Option<&Uses>, layouts: &Layouts) -> Key {
        let mut key = vec![piece.address() as u64];
        let Some(uses) = uses else { return key };
        key.extend(layouts.0.get(&(piece.address(), self.class.buffers.address())).into_iter().flatten());
        let place = |found: Result<usize, usize>| found.map_or(u64::MAX, |at| at as u64);
        key.extend(uses.inputs.iter().map(|colour| place(self.inputs.binary_search(colour))));
        key.extend(uses.outputs.iter().map(|colour| place(self.outputs.binary_search(colour))));
        let task_at = |name: &&str| self.class.tasks.iter().position(|t| t.name == **name).ok_or(0);
        key.extend(uses.tasks.iter().map(|name| place(task_at(name))));
        if uses.trigger {
            key.push(listened(task).1 as u64);
        }
        key
    }

    /// The class with the code of its tasks as these segments.
    fn lowered(self, plan: Vec<Vec<usize>>, segments: &[Arc<Segment>]) -> LoweredClass {
        let task = |(task, parts): (&Task, Vec<usize>)| {
            let mut code = Code::default();
            parts.into_iter().for_each(|number| code.push(Arc::clone(&segments[number])));
            let slot = listened(task).0.and_then(|c| self.inputs.binary_search(&c).ok()).unwrap_or(0);
            LoweredTask { trigger: task.trigger, slot, times: (&task.times).into(), code }
        };
        let tasks = self.class.tasks.iter().zip(plan).map(task).collect();
        let memory = self.class.buffers.values().map(|b| b.offset + b.bytes() as u32).max().unwrap_or(0);
        LoweredClass {
            name: self.class.name.clone(),
            inputs: self.inputs,
            outputs: self.outputs,
            tasks,
            memory,
        }
    }
}

/// The colour that a task listens to, and how its words are encoded.
fn listened(task: &Task) -> (Option<Colour>, Wire) {
    match task.trigger {
        Trigger::Data { colour, wire } => (Some(colour), wire),
        Trigger::Control { colour } => (Some(colour), Wire::F32),
        Trigger::Start | Trigger::Local => (None, Wire::F32),
    }
}

/// A segment under construction.
struct Cx<'a> {
    site: &'a Site<'a>,
    wire: Wire,
    code: Vec<Instr>,
    /// Buffers that are used, by name.
    buffers: Vec<(String, &'a Buffer)>,
}

impl<'a> Cx<'a> {
    fn new(site: &'a Site<'a>, task: &Task) -> Self {
        Cx { site, wire: listened(task).1, code: Vec::new(), buffers: Vec::new() }
    }

    /// What there is so far; none if that is nothing.
    fn finish(&mut self) -> Option<Segment> {
        let (code, buffers) = (std::mem::take(&mut self.code), std::mem::take(&mut self.buffers));
        let names = buffers.into_iter().map(|(name, _)| name);
        (!code.is_empty()).then(|| Segment::new(code, names.collect()))
    }

    fn statements(&mut self, body: &[Stmt], depth: usize) {
        for stmt in body {
            self.statement(stmt, depth);
        }
    }

    fn statement(&mut self, stmt: &Stmt, depth: usize) {
        match stmt {
            Stmt::Op(op) => {
                if let Some(mut op) = self.op(op) {
                    op.price = price(&op, Asked::by(std::slice::from_ref(&op)), self.site.spec);
                    self.code.push(Instr::Op(op));
                }
            }
            Stmt::Par(ops) => {
                let ops = self.group(ops);
                self.code.push(Instr::Par(ops));
            }
            Stmt::Loop { count, body } => self.repeat(count, body, depth),
            Stmt::Control { colour, command } => {
                let slot = self.site.outputs.binary_search(colour).unwrap_or(0);
                self.code.push(Instr::Control { slot, command: *command });
            }
            Stmt::Activate(name) => {
                if let Some(task) = self.site.class.tasks.iter().position(|t| &t.name == name) {
                    self.code.push(Instr::Activate(task));
                }
            }
            Stmt::Serial { what, times } => {
                let cycles = u64::from(self.site.spec.serial_cycles(*what));
                self.code.push(Instr::Serial { cycles, times: times.into(), what: *what });
            }
            Stmt::Phase(name) => {
                if let Some(phase) = self.site.program.phases.iter().position(|p| p == name) {
                    self.code.push(Instr::Phase(phase));
                }
            }
            Stmt::Piece(piece) => self.statements(&piece.body, depth),
        }
    }

    fn repeat(&mut self, count: &Affine, body: &[Stmt], depth: usize) {
        let head = self.code.len();
        let depth = depth.min(MAX_DEPTH - 1);
        self.code.push(Instr::Loop { depth, count: count.into(), length: 0, varies: false });
        self.statements(body, depth + 1);
        let distance = self.code.len() - head;
        let differs = self.code[head + 1..].iter().any(|i| i.length_uses(depth));
        self.code.push(Instr::Next { depth, length: distance });
        if let Instr::Loop { length, varies, .. } = &mut self.code[head] {
            (*length, *varies) = (distance, differs);
        }
    }

    /// Lowers ops that run side by side and prices them together, because they share the ramp.
    fn group(&mut self, ops: &[VectorOp]) -> Vec<LoweredOp> {
        let mut lowered: Vec<LoweredOp> = ops.iter().filter_map(|op| self.op(op)).collect();
        let asked = Asked::by(&lowered);
        for op in &mut lowered {
            op.price = price(op, asked, self.site.spec);
        }
        lowered
    }

    fn op(&mut self, op: &VectorOp) -> Option<LoweredOp> {
        let dst = match &op.dst {
            Dest::Mem(slice) => Sink::Mem(self.slice(slice)?),
            Dest::Out { colour, wire } => self.out(*colour, *wire, None)?,
            Dest::OutThen { colour, wire, then } => self.out(*colour, *wire, Some(*then))?,
        };
        let mut src = Vec::with_capacity(op.src.len());
        for source in &op.src {
            src.push(self.source(source)?);
        }
        let sequential = is_sequential(&dst, &src, op.dims.len());
        let price = Price { issue: 0, step: 1, step_cycles: 1, num: 1, den: 1, group: 1 };
        Some(LoweredOp {
            kind: op.kind,
            dst,
            src,
            dims: op.dims.iter().map(Linear::from).collect(),
            sequential,
            price,
            compiled: 0,
        })
    }

    fn out(&self, colour: Colour, wire: Wire, then: Option<Command>) -> Option<Sink> {
        Some(Sink::Out { slot: self.site.outputs.binary_search(&colour).ok()?, wire, then })
    }

    fn source(&mut self, operand: &Operand) -> Option<Source> {
        let inputs = &self.site.inputs;
        let slot = |colour: &Colour| inputs.binary_search(colour).ok();
        Some(match operand {
            Operand::Mem(slice) => Source::Mem(self.slice(slice)?),
            Operand::In { colour, wire } => Source::In { slot: slot(colour)?, wire: *wire },
            Operand::Scalar { colour, wire } => Source::Scalar { slot: slot(colour)?, wire: *wire },
            Operand::Trigger => Source::Trigger { wire: self.wire },
            Operand::Const(v) => Source::Const(*v),
        })
    }

    fn slice(&mut self, slice: &Slice) -> Option<LoweredSlice> {
        let index = match self.buffers.iter().position(|(name, _)| *name == slice.buffer) {
            Some(known) => known,
            None => {
                let buffer = self.site.class.buffers.get(&slice.buffer)?;
                self.buffers.push((slice.buffer.clone(), buffer));
                self.buffers.len() - 1
            }
        };
        let buffer = self.buffers[index].1;
        Some(LoweredSlice {
            buffer: index as u16,
            buffer_offset: buffer.offset,
            elements: buffer.elements,
            dtype: buffer.dtype,
            at: (&slice.at).into(),
            strides: slice.strides.clone(),
        })
    }
}

/// How many instructions some statements become, at most.
fn instructions(body: &[Stmt]) -> usize {
    let of = |stmt: &Stmt| match stmt {
        Stmt::Loop { body, .. } => 2 + instructions(body),
        Stmt::Piece(piece) => instructions(&piece.body),
        _ => 1,
    };
    body.iter().map(of).sum()
}

/// Whether a store of one element may be read by a later one, so that elements cannot be computed all at once.
fn is_sequential(dst: &Sink, src: &[Source], dims: usize) -> bool {
    let Sink::Mem(dst) = dst else { return false };
    let contiguous = dst.strides.is_empty() || (dims == 1 && dst.strides[0] != 0);
    let same_buffer = |s: &&LoweredSlice| s.buffer_offset == dst.buffer_offset;
    let reads = || src.iter().filter_map(Source::slice).filter(same_buffer);
    let differs = reads().any(|s| s != dst);
    differs || (!contiguous && reads().next().is_some())
}
