//! Memory: buffers fit, do not overlap while alive, are used only while alive, and are not overrun.

use super::fault::{CheckError, Fault};
use crate::fabric::FabricSpec;
use crate::lower::MAX_DEPTH;
use crate::program::{
    Affine, Buffer, Class, Coord, Dest, Operand, Region, Slice, Stmt, TensorMap, Var, VectorOp, WaferProgram,
};
use std::collections::{BTreeMap, BTreeSet};

/// All faults of memory. Names have been checked.
pub fn check(program: &WaferProgram, spec: &FabricSpec) -> Vec<CheckError> {
    let mut errors = Vec::new();
    for class in &program.classes {
        let first = errors.len();
        fits(class, spec, &mut errors);
        overlaps(program, class, &mut errors);
        for task in &class.tasks {
            alive(program, class, &task.body, &mut program.phases.first().cloned(), &mut errors);
        }
        tensors(program, class, &mut errors);
        bounds(class, &mut errors);
        for error in &mut errors[first..] {
            error.class = Some(class.name.clone());
            error.at = error.at.or_else(|| class.regions.first().map(|r| Coord { x: r.x, y: r.y }));
        }
    }
    for host in &program.host {
        let lanes = match host.edge.lane() {
            Var::X => Region::rect(host.first, 0, host.lanes, 1).every(host.step, 1),
            _ => Region::rect(0, host.first, 1, host.lanes).every(1, host.step),
        };
        let map =
            TensorMap { tensor: host.tensor.clone(), dims: host.dims.clone(), index: host.index.clone() };
        tensor(program, &map, &[lanes], &format!("host stream `{}`", host.name), None, &mut errors);
    }
    errors
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

/// The phases of a lifetime, as positions in the list of phases.
fn span(program: &WaferProgram, buffer: &Buffer, errors: &mut Vec<CheckError>, name: &str) -> (usize, usize) {
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

fn overlaps(program: &WaferProgram, class: &Class, errors: &mut Vec<CheckError>) {
    let mut faults = Vec::new();
    let range = |b: &Buffer| (u64::from(b.offset), u64::from(b.offset) + b.bytes());
    let spans = class.buffers.iter().map(|(n, b)| (n, range(b), span(program, b, &mut faults, n)));
    let mut spans: Vec<_> = spans.collect();
    spans.sort_by_key(|s| s.1);
    for (i, (first, a, alive_a)) in spans.iter().enumerate() {
        for (second, b, alive_b) in spans[i + 1..].iter().take_while(|s| s.1.0 < a.1) {
            if b.1 > b.0 && alive_a.0 <= alive_b.1 && alive_b.0 <= alive_a.1 {
                let (first, second) = (first.to_string(), second.to_string());
                let fault = Fault::Overlap { first, second, from: b.0, to: a.1.min(b.1) };
                faults.push(CheckError::new(fault));
            }
        }
    }
    errors.append(&mut faults);
}

/// Follows the phases of a task and reports uses of buffers that are not alive.
fn alive(
    program: &WaferProgram,
    class: &Class,
    body: &[Stmt],
    phase: &mut Option<String>,
    errors: &mut Vec<CheckError>,
) {
    for stmt in body {
        match stmt {
            Stmt::Phase(name) => *phase = Some(name.clone()),
            Stmt::Loop { body, .. } => alive(program, class, body, phase, errors),
            Stmt::Op(op) => used(program, class, op, phase, errors),
            Stmt::Par(ops) => ops.iter().for_each(|op| used(program, class, op, phase, errors)),
            Stmt::Control { .. } | Stmt::Activate(_) => {}
        }
    }
}

fn used(
    program: &WaferProgram,
    class: &Class,
    op: &VectorOp,
    phase: &Option<String>,
    errors: &mut Vec<CheckError>,
) {
    let Some(phase) = phase else { return };
    let Some(now) = program.phases.iter().position(|p| p == phase) else { return };
    for slice in slices(op) {
        let Some(buffer) = class.buffers.get(&slice.buffer) else { continue };
        let (first, last) = span(program, buffer, &mut Vec::new(), &slice.buffer);
        if now < first || now > last {
            let fault = Fault::Dead { buffer: slice.buffer.clone(), phase: phase.clone() };
            errors.push(CheckError::new(fault));
        }
    }
}

/// All slices of an op.
fn slices(op: &VectorOp) -> impl Iterator<Item = &Slice> {
    let dst = match &op.dst {
        Dest::Mem(slice) => Some(slice),
        Dest::Out { .. } | Dest::OutThen { .. } => None,
    };
    let src = op.src.iter().filter_map(|s| match s {
        Operand::Mem(slice) => Some(slice),
        _ => None,
    });
    dst.into_iter().chain(src)
}

fn tensors(program: &WaferProgram, class: &Class, errors: &mut Vec<CheckError>) {
    for (name, buffer) in &class.buffers {
        for (verb, map) in [("load", &buffer.load), ("store", &buffer.store)] {
            if let Some(map) = map {
                let user = format!("the {verb} of buffer `{name}`");
                tensor(program, map, &class.regions, &user, Some(buffer.elements), errors);
            }
        }
    }
}

/// One place for each way in which the expressions can differ over the regions: as a sum of a part of the column and a
/// part of the row, an expression has the same value wherever both parts are the same.
fn places(regions: &[Region], expressions: &[&Affine]) -> Vec<Coord> {
    let (mut columns, mut rows) = (Kinds::new(expressions, true), Kinds::new(expressions, false));
    if columns.terms.is_empty() && rows.terms.is_empty() {
        return regions.first().map(|r| Coord { x: r.x, y: r.y }).into_iter().collect();
    }
    let mut places = BTreeMap::new();
    for r in regions {
        let xs = columns.among(r.x, r.columns, r.step_x);
        let ys = rows.among(r.y, r.rows, r.step_y);
        for &(kind_y, y) in &ys {
            for &(kind_x, x) in &xs {
                places.entry((kind_y, kind_x)).or_insert(Coord { x, y });
            }
        }
    }
    places.into_values().collect()
}

/// Columns or rows by what they contribute to some expressions.
struct Kinds<'a> {
    /// The terms of each expression that depend on the column (or row).
    terms: Vec<Vec<(&'a Var, i64)>>,
    of_x: bool,
    /// Kind and first member by contribution.
    kinds: BTreeMap<Vec<i64>, (u32, u32)>,
    /// Kind and first member by column or row.
    known: BTreeMap<u32, (u32, u32)>,
}

impl<'a> Kinds<'a> {
    fn new(expressions: &[&'a Affine], of_x: bool) -> Self {
        let mine = |v: &Var| match v {
            Var::X | Var::XOver(_) => of_x,
            Var::Y | Var::YOver(_) => !of_x,
            _ => false,
        };
        let part = |a: &&'a Affine| -> Vec<(&'a Var, i64)> {
            let a: &'a Affine = a;
            a.terms.iter().filter(|(v, _)| mine(v)).map(|(v, c)| (v, *c)).collect()
        };
        let terms = expressions.iter().map(part).filter(|t| !t.is_empty()).collect();
        Kinds { terms, of_x, kinds: BTreeMap::new(), known: BTreeMap::new() }
    }

    /// The kinds among some columns (or rows), each with its first member.
    fn among(&mut self, first: u32, count: u32, step: u32) -> BTreeSet<(u32, u32)> {
        let count = if self.terms.is_empty() { count.min(1) } else { count };
        (0..count).map(|i| self.of(first + i * step)).collect()
    }

    /// The kind of a column (or row) and the first one of that kind.
    fn of(&mut self, at: u32) -> (u32, u32) {
        if self.terms.is_empty() {
            return *self.kinds.entry(Vec::new()).or_insert((0, at));
        }
        if let Some(kind) = self.known.get(&at) {
            return *kind;
        }
        let (x, y) = if self.of_x { (at, 0) } else { (0, at) };
        let value = |terms: &Vec<(&Var, i64)>| -> i64 {
            terms.iter().map(|(v, c)| v.at_place(x, y).unwrap_or(0).saturating_mul(*c)).sum()
        };
        let next = self.kinds.len() as u32;
        let kind = *self.kinds.entry(self.terms.iter().map(value).collect()).or_insert((next, at));
        self.known.insert(at, kind);
        kind
    }
}

/// Checks that a map stays inside its tensor and its buffer, at every place.
fn tensor(
    program: &WaferProgram,
    map: &TensorMap,
    regions: &[Region],
    user: &str,
    buffer: Option<u32>,
    errors: &mut Vec<CheckError>,
) {
    let Some(decl) = program.tensors.get(&map.tensor) else { return };
    let expressions: Vec<&Affine> = map.dims.iter().chain([&map.index]).collect();
    for at in places(regions, &expressions) {
        let here = |a: &Affine| a.eval(|v| v.at_place(at.x, at.y).unwrap_or(0));
        let lengths: Vec<i64> = map.dims.iter().map(here).collect();
        if lengths.iter().any(|&l| l <= 0) {
            continue;
        }
        let reach = |k: usize| {
            let c = map.index.terms.get(&Var::Dim(k as u8)).copied().unwrap_or(0);
            c.saturating_mul(lengths[k] - 1)
        };
        let base = here(&map.index);
        let low = (0..lengths.len()).map(|k| reach(k).min(0)).fold(base, i64::saturating_add);
        let high = (0..lengths.len()).map(|k| reach(k).max(0)).fold(base, i64::saturating_add);
        let bad = if low < 0 { Some(low) } else { (high >= decl.elements as i64).then_some(high) };
        if let Some(index) = bad {
            let (tensor, elements) = (map.tensor.clone(), decl.elements);
            let fault = Fault::TensorBounds { user: user.into(), tensor, index, elements };
            return errors.push(CheckError::new(fault).at(at));
        }
        let mapped = lengths.iter().fold(1i64, |p, l| p.saturating_mul(*l));
        if buffer.is_some_and(|b| mapped > i64::from(b)) {
            let expected = format!("at most the {} elements of the buffer", buffer.unwrap_or(0));
            let what = format!("the number of elements of {user}");
            return errors.push(CheckError::new(Fault::Range { what, value: mapped, expected }).at(at));
        }
    }
}

/// Checks every slice whose range is decidable: all enclosing loop counts must be independent of other counters. The
/// rest is caught when it happens.
fn bounds(class: &Class, errors: &mut Vec<CheckError>) {
    for task in &class.tasks {
        walk(class, &task.body, &mut Vec::new(), errors);
    }
}

fn walk<'a>(class: &Class, body: &'a [Stmt], loops: &mut Vec<&'a Affine>, errors: &mut Vec<CheckError>) {
    for stmt in body {
        match stmt {
            Stmt::Loop { count, body } if loops.len() < MAX_DEPTH => {
                loops.push(count);
                walk(class, body, loops, errors);
                loops.pop();
            }
            Stmt::Op(op) => reach(class, op, loops, errors),
            Stmt::Par(ops) => ops.iter().for_each(|op| reach(class, op, loops, errors)),
            _ => {}
        }
    }
}

fn reach(class: &Class, op: &VectorOp, loops: &[&Affine], errors: &mut Vec<CheckError>) {
    let timed = |a: &&Affine| a.terms.keys().any(|v| matches!(v, Var::Loop(_) | Var::Turn));
    if loops.iter().any(timed) || op.dims.iter().any(|d| timed(&d)) {
        return;
    }
    for slice in slices(op) {
        let Some(buffer) = class.buffers.get(&slice.buffer) else { continue };
        if slice.at.uses(Var::Turn) {
            continue;
        }
        let expressions: Vec<&Affine> = loops.iter().copied().chain(&op.dims).chain([&slice.at]).collect();
        for at in places(&class.regions, &expressions) {
            if let Some(index) = overrun(op, slice, loops, at, buffer.elements) {
                let (op, buffer_name, elements) = (op.kind.name(), slice.buffer.clone(), buffer.elements);
                let fault = Fault::Bounds { op, buffer: buffer_name, index, elements };
                errors.push(CheckError::new(fault).at(at));
                break;
            }
        }
    }
}

/// The first element outside `0..elements` that the slice reaches at a place, over all iterations.
fn overrun(op: &VectorOp, slice: &Slice, loops: &[&Affine], at: Coord, elements: u32) -> Option<i64> {
    let here = |a: &Affine| a.eval(|v| v.at_place(at.x, at.y).unwrap_or(0));
    let lengths: Vec<i64> = op.dims.iter().map(here).collect();
    let counts: Vec<i64> = loops.iter().map(|c| here(c)).collect();
    if lengths.iter().chain(&counts).any(|&n| n <= 0) {
        return None;
    }
    let (mut low, mut high) = (here(&slice.at), here(&slice.at));
    let mut extend = |stride: i64, n: i64| {
        let reach = stride.saturating_mul(n - 1);
        low = low.saturating_add(reach.min(0));
        high = high.saturating_add(reach.max(0));
    };
    for (depth, &n) in counts.iter().enumerate() {
        extend(slice.at.terms.get(&Var::Loop(depth as u8)).copied().unwrap_or(0), n);
    }
    let mut contiguous = 1i64;
    for (k, &n) in lengths.iter().enumerate().rev() {
        extend(slice.strides.get(k).copied().unwrap_or(contiguous), n);
        contiguous = contiguous.saturating_mul(n);
    }
    if low < 0 { Some(low) } else { (high >= i64::from(elements)).then_some(high) }
}
