//! Memory: buffers fit, do not overlap while alive, are used only while alive, and are not overrun.

use super::area::Area;
use super::bounds::{self, Mapping};
use super::fault::{CheckError, Fault};
use crate::fabric::FabricSpec;
use crate::lower::{Instr, LoweredClass, LoweredOp};
use crate::parallel;
use crate::program::{Buffer, Class, Region, Var, WaferProgram};

/// All faults of memory. Names have been checked.
pub fn check(program: &WaferProgram, spec: &FabricSpec, lowered: &[LoweredClass]) -> Vec<CheckError> {
    let classes: Vec<(&Class, &LoweredClass)> = program.classes.iter().zip(lowered).collect();
    let faults = parallel::map(&classes, |(class, lowered)| of_class(program, class, lowered, spec));
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

fn of_class(
    program: &WaferProgram,
    class: &Class,
    lowered: &LoweredClass,
    spec: &FabricSpec,
) -> Vec<CheckError> {
    let mut errors = Vec::new();
    let mut area = Area::new(&class.regions);
    fits(class, spec, &mut errors);
    let spans = spans(program, class, &mut errors);
    overlaps(&spans, &mut errors);
    alive(program, &spans, lowered, &mut errors);
    tensors(program, class, &mut area, &mut errors);
    bounds::slices(class, lowered, &mut area, &mut errors);
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

/// Follows the phases of each task and reports uses of buffers that are not alive.
fn alive(program: &WaferProgram, spans: &[Span], lowered: &LoweredClass, errors: &mut Vec<CheckError>) {
    for task in &lowered.tasks {
        let mut now = 0;
        for instr in &task.code {
            match instr {
                Instr::Phase(phase) => now = *phase,
                Instr::Op(op) => used(program, spans, op, now, errors),
                Instr::Par(ops) => ops.iter().for_each(|op| used(program, spans, op, now, errors)),
                _ => {}
            }
        }
    }
}

fn used(program: &WaferProgram, spans: &[Span], op: &LoweredOp, now: usize, errors: &mut Vec<CheckError>) {
    let Some(phase) = program.phases.get(now) else { return };
    for span in op.slices().map(|slice| &spans[usize::from(slice.buffer)]) {
        if now < span.alive.0 || now > span.alive.1 {
            let fault = Fault::Dead { buffer: span.name.to_string(), phase: phase.clone() };
            errors.push(CheckError::new(fault));
        }
    }
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
