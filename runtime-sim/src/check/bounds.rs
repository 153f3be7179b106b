//! Accesses: every slice stays in its buffer, every map in its tensor.
//!
//! Bounds over all PEs that run some code decide most cases at once; only where they are too wide is a case decided place
//! by place, once for each way in which its expressions can differ: for all classes at once if these ways are few and no
//! place shows a fault, or else class by class.

use super::area::Area;
use super::fault::{CheckError, Fault};
use super::tally::place;
use crate::lower::{Instr, Linear, LoweredOp, LoweredSlice, Segment};
use crate::program::{Affine, Coord, TensorMap, Var, WaferProgram};

/// Checks every slice whose range is decidable: all enclosing loop counts must be independent of other counters. The
/// rest is caught when it happens.
pub fn slices(segment: &Segment, area: &mut Area, errors: &mut Vec<CheckError>) {
    let mut loops = Loops::default();
    for instr in &segment.instrs {
        match instr {
            Instr::Loop { count, .. } => loops.enter(count, area),
            Instr::Next { .. } => loops.leave(),
            Instr::Op(op) => reach(segment, op, &loops, area, errors),
            Instr::Par(ops) => ops.iter().for_each(|op| reach(segment, op, &loops, area, errors)),
            _ => {}
        }
    }
}

/// Whether no slice can leave its buffer anywhere in an area, as far as few ways in which its expressions differ say so.
pub fn inside(segment: &Segment, area: &mut Area) -> bool {
    let mut loops = Loops::default();
    segment.instrs.iter().all(|instr| {
        match instr {
            Instr::Loop { count, .. } => loops.enter(count, area),
            Instr::Next { .. } => loops.leave(),
            Instr::Op(op) => return stays(op, &loops, area),
            Instr::Par(ops) => return ops.iter().all(|op| stays(op, &loops, area)),
            _ => {}
        }
        true
    })
}

/// More ways in which expressions differ are not looked at.
const FEW: usize = 4096;

fn stays<'o>(op: &'o LoweredOp, loops: &Loops<'o>, area: &mut Area) -> bool {
    wide(op, loops, area).into_iter().all(|slice| {
        let places = area.places(&expressions(op, slice, loops), FEW);
        places.is_some_and(|places| places.iter().all(|at| overrun(op, slice, &loops.counts, *at).is_none()))
    })
}

/// What decides which elements an op reaches.
fn expressions<'o>(op: &'o LoweredOp, slice: &'o LoweredSlice, loops: &Loops<'o>) -> Vec<&'o Linear> {
    loops.counts.iter().copied().chain(&op.dims).chain([&slice.at]).collect()
}

/// The loops around an op, outermost first.
#[derive(Default)]
struct Loops<'a> {
    counts: Vec<&'a Linear>,
    /// The largest value of each count.
    most: Vec<i64>,
    /// How many counts depend on counters.
    timed: usize,
}

impl<'a> Loops<'a> {
    fn enter(&mut self, count: &'a Linear, area: &mut Area) {
        self.counts.push(count);
        self.most.push(area.bounds(count).1);
        self.timed += usize::from(count.is_timed());
    }

    fn leave(&mut self) {
        self.most.pop();
        self.timed -= usize::from(self.counts.pop().is_some_and(Linear::is_timed));
    }
}

/// The slices of an op whose bounds are wider than their buffers, where that is decidable.
fn wide<'o>(op: &'o LoweredOp, loops: &Loops, area: &mut Area) -> Vec<&'o LoweredSlice> {
    if loops.timed > 0 || op.dims.iter().any(Linear::is_timed) {
        return Vec::new();
    }
    let mut most = [1; 4];
    op.dims.iter().zip(&mut most).for_each(|(l, most)| *most = area.bounds(l).1);
    let beyond = |slice: &&LoweredSlice| {
        let span = span(slice, area.bounds(&slice.at), &loops.most, &most[..op.dims.len()]);
        span.is_some_and(|s| s.0 < 0 || s.1 >= i64::from(slice.elements))
    };
    op.slices().filter(|slice| !slice.at.uses_turn()).filter(beyond).collect()
}

fn reach<'o>(
    segment: &Segment,
    op: &'o LoweredOp,
    loops: &Loops<'o>,
    area: &mut Area,
    errors: &mut Vec<CheckError>,
) {
    for slice in wide(op, loops, area) {
        let over = |at: &Coord| Some((*at, overrun(op, slice, &loops.counts, *at)?));
        let places = area.places(&expressions(op, slice, loops), usize::MAX).unwrap_or_default();
        if let Some((at, index)) = places.iter().find_map(over) {
            let name = segment.buffers.get(usize::from(slice.buffer)).cloned().unwrap_or_default();
            let (op, elements) = (op.kind.name(), slice.elements);
            errors.push(CheckError::new(Fault::Bounds { op, buffer: name, index, elements }).at(at));
        }
    }
}

/// The first element outside its buffer that the slice reaches at a place, over all iterations.
fn overrun(op: &LoweredOp, slice: &LoweredSlice, loops: &[&Linear], at: Coord) -> Option<i64> {
    let env = place(at);
    let counts: Vec<i64> = loops.iter().map(|l| l.at(&env)).collect();
    let lengths: Vec<i64> = op.dims.iter().map(|l| l.at(&env)).collect();
    let first = slice.at.at(&env);
    let (low, high) = span(slice, (first, first), &counts, &lengths)?;
    if low < 0 { Some(low) } else { (high >= i64::from(slice.elements)).then_some(high) }
}

/// Least and greatest element reached from the elements `first` on; none if a count or length leaves nothing to do.
fn span(slice: &LoweredSlice, first: (i64, i64), counts: &[i64], lengths: &[i64]) -> Option<(i64, i64)> {
    if lengths.iter().chain(counts).any(|&n| n <= 0) {
        return None;
    }
    let (mut low, mut high) = first;
    let mut extend = |stride: i64, n: i64| {
        let reach = stride.saturating_mul(n - 1);
        low = low.saturating_add(reach.min(0));
        high = high.saturating_add(reach.max(0));
    };
    counts.iter().enumerate().for_each(|(depth, &n)| extend(slice.at.per_loop(depth), n));
    let mut contiguous = 1i64;
    for (k, &n) in lengths.iter().enumerate().rev() {
        extend(slice.strides.get(k).copied().unwrap_or(contiguous), n);
        contiguous = contiguous.saturating_mul(n);
    }
    Some((low, high))
}

/// A map between a tensor and a buffer or the lanes of a host stream.
pub struct Mapping<'a> {
    /// The lengths and the index.
    pub map: (&'a str, &'a [Affine], &'a Affine),
    /// Who uses it, for messages.
    pub user: String,
    /// Elements of the buffer, if there is one.
    pub buffer: Option<u32>,
}

impl<'a> Mapping<'a> {
    /// The map of a buffer.
    pub fn of_buffer(map: &'a TensorMap, user: String, elements: u32) -> Self {
        Mapping { map: (&map.tensor, &map.dims, &map.index), user, buffer: Some(elements) }
    }
}

/// Checks that a map stays inside its tensor and its buffer, at every place.
pub fn tensor(program: &WaferProgram, mapping: &Mapping, area: &mut Area, errors: &mut Vec<CheckError>) {
    let (name, dims, index) = mapping.map;
    let Some(decl) = program.tensors.get(name) else { return };
    let dims: Vec<Linear> = dims.iter().map(Linear::from).collect();
    let index_at = Linear::from(index);
    let steps: Vec<i64> =
        (0..dims.len() as u8).map(|k| index.terms.get(&Var::Dim(k)).copied().unwrap_or(0)).collect();
    let most: Vec<i64> = dims.iter().map(|d| area.bounds(d).1).collect();
    let first = area.bounds(&index_at);
    let fault = |first, lengths: &[i64]| outside(mapping, decl.elements, first, &steps, lengths);
    if fault(first, &most).is_none() {
        return;
    }
    let expressions: Vec<&Linear> = dims.iter().chain([&index_at]).collect();
    for at in area.places(&expressions, usize::MAX).unwrap_or_default() {
        let env = place(at);
        let lengths: Vec<i64> = dims.iter().map(|d| d.at(&env)).collect();
        let first = index_at.at(&env);
        if let Some(fault) = fault((first, first), &lengths) {
            return errors.push(CheckError::new(fault).at(at));
        }
    }
}

/// What is wrong with a map that begins at the elements `first` and goes on by `steps` for `lengths`.
fn outside(
    mapping: &Mapping,
    elements: u64,
    first: (i64, i64),
    steps: &[i64],
    lengths: &[i64],
) -> Option<Fault> {
    if lengths.iter().any(|&l| l <= 0) {
        return None;
    }
    let reach = || steps.iter().zip(lengths).map(|(c, l)| c.saturating_mul(l - 1));
    let low = reach().map(|r| r.min(0)).fold(first.0, i64::saturating_add);
    let high = reach().map(|r| r.max(0)).fold(first.1, i64::saturating_add);
    let user = || mapping.user.clone();
    if low < 0 || high >= elements as i64 {
        let index = if low < 0 { low } else { high };
        return Some(Fault::TensorBounds { user: user(), tensor: mapping.map.0.into(), index, elements });
    }
    let mapped = lengths.iter().fold(1i64, |p, l| p.saturating_mul(*l));
    let limit = mapping.buffer.filter(|b| mapped > i64::from(*b))?;
    let expected = format!("at most the {limit} elements of the buffer");
    Some(Fault::Range { what: format!("the number of elements of {}", user()), value: mapped, expected })
}
