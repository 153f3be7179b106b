//! Memory: buffers fit, do not overlap while alive, are used only while alive, and are not overrun.

use super::area::Area;
use super::bounds::{self, Mapping};
use super::fault::{CheckError, Fault};
use crate::fabric::FabricSpec;
use crate::lower::{Code, Instr, LoweredClass, LoweredOp, Segment, segments};
use crate::parallel;
use crate::program::{Buffer, Class, Region, Var, WaferProgram};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// All faults of memory. Names have been checked.
pub fn check(program: &WaferProgram, spec: &FabricSpec, lowered: &[LoweredClass]) -> Vec<CheckError> {
    let classes: Vec<(&Class, &LoweredClass)> = program.classes.iter().zip(lowered).collect();
    let segments = segments(lowered);
    let lives = parallel::map(&segments, |segment| Lives::of(segment));
    let hulls = hulls(program, lowered, segments.len());
    let pairs: Vec<(&Arc<Segment>, Hull)> = segments.into_iter().zip(hulls).collect();
    let inside = parallel::map(&pairs, |(segment, hull)| bounds::inside(segment, &mut hull.area()));
    let faults = parallel::map(&classes, |(class, lowered)| {
        of_class(program, (class, lowered), spec, &lives, &inside)
    });
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

/// `lives` and `inside` are those of all segments, by number.
fn of_class(
    program: &WaferProgram,
    (class, lowered): (&Class, &LoweredClass),
    spec: &FabricSpec,
    lives: &[Lives],
    inside: &[bool],
) -> Vec<CheckError> {
    let mut errors = Vec::new();
    let mut area = Area::new(&class.regions);
    fits(class, spec, &mut errors);
    let spans = spans(program, class, &mut errors);
    overlaps(&spans, &mut errors);
    let by_name: BTreeMap<&str, &Span> = spans.iter().map(|span| (span.name, span)).collect();
    lowered.tasks.iter().for_each(|task| alive(program, &by_name, &task.code, lives, &mut errors));
    tensors(program, class, &mut area, &mut errors);
    for segment in lowered.tasks.iter().flat_map(|task| task.code.segments()) {
        if !inside[segment.number as usize] {
            bounds::slices(segment, &mut area, &mut errors);
        }
    }
    let placed = |error: CheckError| CheckError { at: error.at.or_else(|| area.first()), ..error };
    errors.into_iter().map(|error| placed(error).class(&class.name)).collect()
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

/// A buffer with its bytes and the phases of its life, as positions in the list of phases.
struct Span<'a> {
    name: &'a str,
    bytes: (u64, u64),
    alive: (usize, usize),
}

/// The spans of all buffers of a class, in order of name.
fn spans<'a>(program: &WaferProgram, class: &'a Class, errors: &mut Vec<CheckError>) -> Vec<Span<'a>> {
    let mut span = |(name, buffer): (&'a String, &'a Buffer)| {
        let first = u64::from(buffer.offset);
        Span { name, bytes: (first, first + buffer.bytes()), alive: life(program, buffer, errors, name) }
    };
    class.buffers.iter().map(&mut span).collect()
}

fn life(program: &WaferProgram, buffer: &Buffer, errors: &mut Vec<CheckError>, name: &str) -> (usize, usize) {
    let Some(alive) = &buffer.alive else { return (0, usize::MAX) };
    let mut at = |phase: &String| {
        let found = program.phases.iter().position(|p| p == phase);
        if found.is_none() {
            let user = format!("the lifetime of buffer `{name}`");
            errors.push(CheckError::new(Fault::Unknown { what: "phase", name: phase.clone(), user }));
        }
        found.unwrap_or(0)
    };
    (at(&alive.first), at(&alive.last))
}

fn overlaps(spans: &[Span], errors: &mut Vec<CheckError>) {
    let mut spans: Vec<&Span> = spans.iter().collect();
    spans.sort_by_key(|s| s.bytes);
    for (i, a) in spans.iter().enumerate() {
        for b in spans[i + 1..].iter().take_while(|s| s.bytes.0 < a.bytes.1) {
            if b.bytes.1 > b.bytes.0 && a.alive.0 <= b.alive.1 && b.alive.0 <= a.alive.1 {
                let (first, second) = (a.name.to_string(), b.name.to_string());
                let (from, to) = (b.bytes.0, a.bytes.1.min(b.bytes.1));
                errors.push(CheckError::new(Fault::Overlap { first, second, from, to }));
            }
        }
    }
}

/// Which buffers a segment uses in which phase; none is the one it begins in.
struct Lives<'a> {
    uses: BTreeSet<(Option<usize>, &'a str)>,
    /// The phase it ends in.
    last: Option<usize>,
}

impl<'a> Lives<'a> {
    fn of(segment: &'a Segment) -> Self {
        let mut lives = Lives { uses: BTreeSet::new(), last: None };
        for instr in &segment.instrs {
            match instr {
                Instr::Phase(phase) => lives.last = Some(*phase),
                Instr::Op(op) => lives.note(segment, op),
                Instr::Par(ops) => ops.iter().for_each(|op| lives.note(segment, op)),
                _ => {}
            }
        }
        lives
    }

    fn note(&mut self, segment: &'a Segment, op: &LoweredOp) {
        let names = op.slices().filter_map(|slice| segment.buffers.get(usize::from(slice.buffer)));
        self.uses.extend(names.map(|name| (self.last, name.as_str())));
    }
}

/// Follows the phases of a task and reports uses of buffers that are not alive.
fn alive(
    program: &WaferProgram,
    spans: &BTreeMap<&str, &Span>,
    code: &Code,
    lives: &[Lives],
    errors: &mut Vec<CheckError>,
) {
    let mut now = 0;
    for lives in code.segments().map(|segment| &lives[segment.number as usize]) {
        for (phase, buffer) in &lives.uses {
            let at = phase.unwrap_or(now);
            let (Some(span), Some(phase)) = (spans.get(buffer), program.phases.get(at)) else { continue };
            if at < span.alive.0 || at > span.alive.1 {
                let fault = Fault::Dead { buffer: buffer.to_string(), phase: phase.clone() };
                errors.push(CheckError::new(fault));
            }
        }
        now = lives.last.unwrap_or(now);
    }
}

/// The columns and rows of all PEs that run a segment.
#[derive(Clone, Default)]
struct Hull {
    columns: Marks,
    rows: Marks,
}

impl Hull {
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
            let hull = &mut hulls[segment.number as usize];
            hull.columns.join(&own.columns);
            hull.rows.join(&own.rows);
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
