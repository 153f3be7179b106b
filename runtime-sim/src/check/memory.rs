//! Memory: buffers fit, do not overlap while alive, are used only while alive, and are not overrun.

use super::area::Area;
use super::bounds::{self, Mapping};
use super::fault::{CheckError, Fault};
use crate::fabric::FabricSpec;
use crate::lower::{Code, Instr, LoweredClass, LoweredOp, Segment, segments};
use crate::parallel;
use crate::program::{Buffer, Class, Region, Var, WaferProgram};
use std::collections::BTreeMap;
use std::sync::Arc;

/// All faults of memory. Names have been checked.
pub fn check(program: &WaferProgram, spec: &FabricSpec, lowered: &[LoweredClass]) -> Vec<CheckError> {
    let segments = segments(lowered);
    let lives = parallel::map(&segments, |segment| Lives::of(segment));
    let inside = inside(program, lowered, &segments);
    let memories = Memories::of(program, spec);
    let windows = Windows::of(&memories, lowered, &lives, program);
    let classes: Vec<(&Class, &LoweredClass)> = program.classes.iter().zip(lowered).collect();
    let known = Known { memories, windows, lives, inside };
    let faults = parallel::map(&classes, |(class, lowered)| of_class(program, (class, lowered), &known));
    let mut errors: Vec<CheckError> = faults.into_iter().flatten().collect();
    for host in &program.host {
        let lanes = match host.edge.lane() {
            Var::X => Region::rect(host.first, 0, host.lanes, 1).every(host.step, 1),
            _ => Region::rect(0, host.first, 1, host.lanes).every(1, host.step),
        };
        let map = (host.tensor.as_str(), host.dims.as_slice(), &host.index);
        let mapping = Mapping { map, user: format!("host stream `{}`", host.name), buffer: None };
        bounds::tensor(program, &mapping, &mut Area::new(&[lanes]), &mut errors);
    }
    errors
}

/// What is known of memories and segments, whatever the class.
struct Known<'a> {
    memories: Memories<'a>,
    windows: Windows,
    /// By number of a segment.
    lives: Vec<Lives<'a>>,
    inside: Vec<bool>,
}

fn of_class(
    program: &WaferProgram,
    (class, lowered): (&Class, &LoweredClass),
    known: &Known,
) -> Vec<CheckError> {
    let (number, memory) = known.memories.of_class(class);
    let mut errors = memory.errors.clone();
    let mut area = Area::new(&class.regions);
    for task in &lowered.tasks {
        alive(program, (number, memory), &task.code, known, &mut errors);
    }
    tensors(program, class, &mut area, &mut errors);
    for segment in lowered.tasks.iter().flat_map(|task| task.code.segments()) {
        if !known.inside[segment.number as usize] {
            bounds::slices(segment, &mut area, &mut errors);
        }
    }
    let placed = |error: CheckError| CheckError { at: error.at.or_else(|| area.first()), ..error };
    errors.into_iter().map(|error| placed(error).class(&class.name)).collect()
}

/// The memories of all classes; many classes have the same.
struct Memories<'a> {
    /// By where the buffers of a class are held: the number of its memory.
    numbers: BTreeMap<usize, u32>,
    all: Vec<Memory<'a>>,
}

/// Buffers with what is wrong with them, wherever they are.
struct Memory<'a> {
    spans: BTreeMap<&'a str, Span>,
    errors: Vec<CheckError>,
}

impl<'a> Memories<'a> {
    fn of(program: &'a WaferProgram, spec: &FabricSpec) -> Self {
        let (mut numbers, mut first) = (BTreeMap::new(), Vec::new());
        for class in &program.classes {
            numbers.entry(class.buffers.address()).or_insert_with(|| {
                first.push(class);
                first.len() as u32 - 1
            });
        }
        let phases: BTreeMap<&str, usize> = program.phases.iter().map(String::as_str).zip(0..).collect();
        Memories { numbers, all: parallel::map(&first, |class| Memory::of(class, spec, &phases)) }
    }

    fn of_class(&self, class: &Class) -> (u32, &Memory<'a>) {
        let number = self.numbers[&class.buffers.address()];
        (number, &self.all[number as usize])
    }
}

impl<'a> Memory<'a> {
    fn of(class: &'a Class, spec: &FabricSpec, phases: &BTreeMap<&str, usize>) -> Self {
        let mut errors = Vec::new();
        fits(class, spec, &mut errors);
        let mut span = |(name, buffer): (&'a String, &'a Buffer)| {
            let first = u64::from(buffer.offset);
            let alive = life(phases, buffer, &mut errors, name);
            (name.as_str(), Span { bytes: (first, first + buffer.bytes()), alive })
        };
        let spans = class.buffers.iter().map(&mut span).collect();
        overlaps(&spans, &mut errors);
        Memory { spans, errors }
    }
}

/// By memory and segment, ascending: the first and the last phase in which the segment may begin, if in any.
struct Windows(Vec<((u32, u32), (usize, usize))>);

impl Windows {
    fn of(memories: &Memories, lowered: &[LoweredClass], lives: &[Lives], program: &WaferProgram) -> Self {
        let mut pairs: Vec<(u32, u32)> = Vec::new();
        for (class, lowered) in program.classes.iter().zip(lowered) {
            let memory = memories.of_class(class).0;
            let segments = lowered.tasks.iter().flat_map(|task| task.code.segments());
            pairs.extend(segments.map(|segment| (memory, segment.number)));
        }
        pairs.sort_unstable();
        pairs.dedup();
        let window = |(memory, segment): (u32, u32)| {
            let spans = &memories.all[memory as usize].spans;
            lives[segment as usize].uses.iter().fold(
                (0, usize::MAX),
                |(first, last), (phase, buffer)| match (spans.get(buffer), phase) {
                    (None, _) => (first, last),
                    (Some(span), None) => (first.max(span.alive.0), last.min(span.alive.1)),
                    (Some(span), Some(at)) if (span.alive.0..=span.alive.1).contains(at) => (first, last),
                    (Some(_), Some(_)) => (usize::MAX, 0),
                },
            )
        };
        Windows(pairs.into_iter().map(|pair| (pair, window(pair))).collect())
    }

    /// Whether all buffers that a segment uses are alive if it begins in a phase.
    fn hold(&self, memory: u32, segment: u32, phase: usize) -> bool {
        let known = self.0.binary_search_by_key(&(memory, segment), |(pair, _)| *pair);
        known.is_ok_and(|at| (self.0[at].1.0..=self.0[at].1.1).contains(&phase))
    }
}

fn fits(class: &Class, spec: &FabricSpec, errors: &mut Vec<CheckError>) {
    for (name, buffer) in &class.buffers {
        let end = u64::from(buffer.offset) + buffer.bytes();
        if end > u64::from(spec.sram_bytes) {
            let fault = Fault::Memory { buffer: name.clone(), end, limit: spec.sram_bytes };
            errors.push(CheckError::new(fault));
        }
        let size = buffer.dtype.bytes() as u32;
        if buffer.offset % size != 0 {
            let what = format!("the offset of buffer `{name}`");
            let expected = format!("a multiple of {size}");
            errors.push(CheckError::new(Fault::Range { what, value: i64::from(buffer.offset), expected }));
        }
    }
}

/// The bytes of a buffer, and the phases of its life as positions in the list of phases.
struct Span {
    bytes: (u64, u64),
    alive: (usize, usize),
}

fn life(
    phases: &BTreeMap<&str, usize>,
    buffer: &Buffer,
    errors: &mut Vec<CheckError>,
    name: &str,
) -> (usize, usize) {
    let Some(alive) = &buffer.alive else { return (0, usize::MAX) };
    let mut at = |phase: &String| {
        let found = phases.get(phase.as_str()).copied();
        if found.is_none() {
            let user = format!("the lifetime of buffer `{name}`");
            errors.push(CheckError::new(Fault::Unknown { what: "phase", name: phase.clone(), user }));
        }
        found.unwrap_or(0)
    };
    (at(&alive.first), at(&alive.last))
}

fn overlaps(spans: &BTreeMap<&str, Span>, errors: &mut Vec<CheckError>) {
    let mut spans: Vec<(&str, &Span)> = spans.iter().map(|(name, span)| (*name, span)).collect();
    spans.sort_by_key(|(_, span)| span.bytes);
    for (i, (first, a)) in spans.iter().enumerate() {
        for (second, b) in spans[i + 1..].iter().take_while(|(_, b)| b.bytes.0 < a.bytes.1) {
            if b.bytes.1 > b.bytes.0 && a.alive.0 <= b.alive.1 && b.alive.0 <= a.alive.1 {
                let (first, second) = (first.to_string(), second.to_string());
                let (from, to) = (b.bytes.0, a.bytes.1.min(b.bytes.1));
                errors.push(CheckError::new(Fault::Overlap { first, second, from, to }));
            }
        }
    }
}

/// Which buffers a segment uses in which phase; none is the one it begins in.
struct Lives<'a> {
    /// By phase and name.
    uses: Vec<(Option<usize>, &'a str)>,
    /// The phase it ends in.
    last: Option<usize>,
}

impl<'a> Lives<'a> {
    fn of(segment: &'a Segment) -> Self {
        let mut lives = Lives { uses: Vec::new(), last: None };
        // By buffer: the phase in which it was last seen.
        let mut seen: Vec<Option<Option<usize>>> = vec![None; segment.buffers.len()];
        for instr in &segment.instrs {
            match instr {
                Instr::Phase(phase) => lives.last = Some(*phase),
                Instr::Op(op) => lives.note(segment, op, &mut seen),
                Instr::Par(ops) => ops.iter().for_each(|op| lives.note(segment, op, &mut seen)),
                _ => {}
            }
        }
        lives.uses.sort_unstable();
        lives.uses.dedup();
        lives
    }

    fn note(&mut self, segment: &'a Segment, op: &LoweredOp, seen: &mut [Option<Option<usize>>]) {
        for slice in op.slices() {
            let buffer = usize::from(slice.buffer);
            if let Some(name) = segment.buffers.get(buffer)
                && seen[buffer].replace(self.last) != Some(self.last)
            {
                self.uses.push((self.last, name));
            }
        }
    }
}

/// Follows the phases of a task and reports uses of buffers that are not alive.
fn alive(
    program: &WaferProgram,
    (number, memory): (u32, &Memory),
    code: &Code,
    known: &Known,
    errors: &mut Vec<CheckError>,
) {
    let mut now = 0;
    for segment in code.segments() {
        let lives = &known.lives[segment.number as usize];
        if !known.windows.hold(number, segment.number, now) {
            for (phase, buffer) in &lives.uses {
                let at = phase.unwrap_or(now);
                let (Some(span), Some(phase)) = (memory.spans.get(buffer), program.phases.get(at)) else {
                    continue;
                };
                if at < span.alive.0 || at > span.alive.1 {
                    let fault = Fault::Dead { buffer: buffer.to_string(), phase: phase.clone() };
                    errors.push(CheckError::new(fault));
                }
            }
        }
        now = lives.last.unwrap_or(now);
    }
}

/// By number: whether no slice of a segment can leave its buffer where it runs.
fn inside(program: &WaferProgram, lowered: &[LoweredClass], segments: &[&Arc<Segment>]) -> Vec<bool> {
    let hulls = hulls(program, lowered, segments.len());
    // What holds wherever segments run that do the same holds for each of them.
    let mut alike: BTreeMap<u32, (&Segment, Hull)> = BTreeMap::new();
    for (segment, hull) in segments.iter().zip(&hulls) {
        alike.entry(segment.like).or_insert_with(|| (segment, Hull::default())).1.join(hull);
    }
    let firsts: Vec<(u32, (&Segment, Hull))> = alike.into_iter().collect();
    let hold = parallel::map(&firsts, |(_, (segment, hull))| bounds::inside(segment, &mut hull.area()));
    let known: BTreeMap<u32, bool> = firsts.iter().map(|(like, _)| *like).zip(hold).collect();
    let pairs: Vec<(&Segment, Hull)> = segments.iter().map(|segment| &***segment).zip(hulls).collect();
    parallel::map(&pairs, |(segment, hull)| known[&segment.like] || bounds::inside(segment, &mut hull.area()))
}

/// The columns and rows of all PEs that run a segment.
#[derive(Clone, Default)]
struct Hull {
    columns: Marks,
    rows: Marks,
}

impl Hull {
    fn join(&mut self, other: &Hull) {
        self.columns.join(&other.columns);
        self.rows.join(&other.rows);
    }

    fn area(&self) -> Area<'static> {
        Area::over(self.columns.members(), self.rows.members())
    }
}

/// A set of small numbers.
#[derive(Clone, Default)]
struct Marks(Vec<u64>);

impl Marks {
    fn mark(&mut self, n: u32) {
        let word = n as usize / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (n % 64);
    }

    fn join(&mut self, other: &Marks) {
        self.0.resize(self.0.len().max(other.0.len()), 0);
        self.0.iter_mut().zip(&other.0).for_each(|(word, more)| *word |= more);
    }

    fn members(&self) -> Vec<u32> {
        let of_word = |(word, bits): (u32, &u64)| {
            let bits = *bits;
            (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| 64 * word + bit)
        };
        (0..).zip(&self.0).flat_map(of_word).collect()
    }
}

/// By number: where the PEs are that run a segment.
fn hulls(program: &WaferProgram, lowered: &[LoweredClass], segments: usize) -> Vec<Hull> {
    let mut hulls = vec![Hull::default(); segments];
    for (class, lowered) in program.classes.iter().zip(lowered) {
        let mut own = Hull::default();
        for r in &class.regions {
            (0..r.columns).for_each(|i| own.columns.mark(r.x + i * r.step_x));
            (0..r.rows).for_each(|j| own.rows.mark(r.y + j * r.step_y));
        }
        for segment in lowered.tasks.iter().flat_map(|task| task.code.segments()) {
            hulls[segment.number as usize].join(&own);
        }
    }
    hulls
}

fn tensors(program: &WaferProgram, class: &Class, area: &mut Area, errors: &mut Vec<CheckError>) {
    for (name, buffer) in &class.buffers {
        for (verb, map) in [("load", &buffer.load), ("store", &buffer.store)] {
            if let Some(map) = map {
                let user = format!("the {verb} of buffer `{name}`");
                bounds::tensor(program, &Mapping::of_buffer(map, user, buffer.elements), area, errors);
            }
        }
    }
}
