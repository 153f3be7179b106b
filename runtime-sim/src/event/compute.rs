//! The numbers of a vector op: operands into vectors, the function over them, results back to memory or into words.

use super::jit::Compiled;
#[cfg(feature = "compiled")]
use super::jit::Place;
use super::ops::{CHUNK, OpFault, OpState};
use super::ports::Cx;
use super::values::{Address, apply, load, store};
use crate::lower::{Env, LoweredOp, LoweredSlice, Sink, Source};
use crate::program::OpKind;
use lapidary_models::dtype::DType;

/// Numbers of some elements of an op.
#[derive(Debug, Default)]
pub struct Values {
    /// Operands; those that come as words are put there before the op is computed.
    pub operands: [Vec<f32>; 3],
    /// Results.
    pub out: Vec<f32>,
}

/// Addresses of the memory operands.
pub struct Addresses {
    src: [Option<Address>; 3],
    dst: Option<Address>,
}

impl Addresses {
    /// Resolves the slices of `op` at `env`.
    pub fn new(op: &LoweredOp, env: &Env) -> Result<Self, OpFault> {
        let fault = |elements: u32| move |index: i64| OpFault { op: op.kind.name(), index, elements };
        let mut out = Addresses { src: [None; 3], dst: None };
        for (k, source) in op.src.iter().enumerate().take(3) {
            if let Source::Mem(s) = source {
                out.src[k] = Some(Address::new(s, op, env).map_err(fault(s.elements))?);
            }
        }
        if let Sink::Mem(s) = &op.dst {
            out.dst = Some(Address::new(s, op, env).map_err(fault(s.elements))?);
        }
        Ok(out)
    }
}

/// What ops compute with.
pub struct Numbers<'n> {
    memory: &'n mut [u8],
    values: &'n mut Values,
    #[cfg_attr(not(feature = "compiled"), expect(dead_code, reason = "there is nothing to call"))]
    compiled: Option<&'n Compiled>,
}

impl<'n> Numbers<'n> {
    /// Those of a PE.
    pub fn of(cx: &'n mut Cx) -> Self {
        Numbers { memory: cx.memory, values: &mut cx.scratch.values, compiled: cx.compiled }
    }
}

/// Computes all elements of an op on memory.
pub fn compute_all(op: &LoweredOp, state: &OpState, elements: u64, a: &Addresses, numbers: &mut Numbers) {
    if run_compiled(op, state, 0, elements as usize, a, numbers) {
        return;
    }
    let mut first = 0;
    while first < elements {
        let last = (first + CHUNK).min(elements);
        compute(op, state, first, last, a, numbers);
        first = last;
    }
}

/// Computes elements `first..last`; arriving ones are in `values`, results for a stream are left in `values.out`.
pub fn compute(op: &LoweredOp, state: &OpState, first: u64, last: u64, a: &Addresses, numbers: &mut Numbers) {
    let (first, count) = (first as usize, (last - first) as usize);
    if run_compiled(op, state, first, count, a, numbers) {
        return;
    }
    let Numbers { memory, values, .. } = numbers;
    values.out.clear();
    if op.sequential {
        return one_by_one(op, state, first, count, memory, values, a);
    }
    for (k, source) in op.src.iter().enumerate() {
        let operand = &mut values.operands[k];
        match (source, &a.src[k]) {
            (Source::In { .. }, _) => {}
            (Source::Mem(s), Some(a)) => fetch(s, a, first, count, memory, operand),
            _ => {
                operand.clear();
                operand.resize(count, state.scalars[k]);
            }
        }
    }
    let Values { operands: [x, y, z], out } = &mut **values;
    apply_all(op.kind, op.src.len(), count, [x, y, z], out);
    if let (Sink::Mem(s), Some(address)) = (&op.dst, &a.dst) {
        put_back(s, address, first, out, memory);
    }
}

/// Nothing is compiled.
#[cfg(not(feature = "compiled"))]
fn run_compiled(_: &LoweredOp, _: &OpState, _: usize, _: usize, _: &Addresses, _: &mut Numbers) -> bool {
    false
}

/// Computes elements with compiled code, if there is some for the op: row by row where addresses make steps.
#[cfg(feature = "compiled")]
fn run_compiled(
    op: &LoweredOp,
    state: &OpState,
    first: usize,
    count: usize,
    a: &Addresses,
    numbers: &mut Numbers,
) -> bool {
    let Some((code, shape)) = numbers.compiled.and_then(|compiled| compiled.get(op.compiled)) else {
        return false;
    };
    let Values { operands, out } = &mut *numbers.values;
    out.clear();
    if a.dst.is_none() {
        out.resize(count, 0.0);
    }
    let mut done = 0;
    while done < count {
        let memory = |address: &Option<Address>| address.as_ref().map(|a| a.row_left(first + done));
        let rows = a.src.iter().chain([&a.dst]).filter_map(memory);
        let length = rows.fold(count - done, usize::min);
        let place = |s: &LoweredSlice, address: &Address| {
            let size = s.dtype.bytes() as usize;
            let at = s.buffer_offset as usize + size * address.at(first + done);
            Place::Memory { at, step: address.step() * size as i64 }
        };
        let mut places = [Place::Nowhere; 4];
        places[0] = match (&op.dst, &a.dst) {
            (Sink::Mem(s), Some(address)) => place(s, address),
            _ => Place::Words(done),
        };
        for (k, source) in op.src.iter().enumerate() {
            places[k + 1] = match (source, &a.src[k]) {
                (Source::Mem(s), Some(address)) => place(s, address),
                (Source::In { .. }, _) => Place::Words(done),
                _ => Place::Nowhere,
            };
        }
        code.run(shape, length, places, numbers.memory, operands, out, state.scalars);
        done += length;
    }
    true
}

/// The function over vectors; frequent ones have loops of their own.
fn apply_all(kind: OpKind, arity: usize, count: usize, [x, y, z]: [&[f32]; 3], out: &mut Vec<f32>) {
    let pairs = || x[..count].iter().zip(&y[..count.min(y.len())]);
    match (kind, arity) {
        (OpKind::Mov, 1) => out.extend_from_slice(&x[..count]),
        (OpKind::Add, 2) => out.extend(pairs().map(|(x, y)| x + y)),
        (OpKind::Mul, 2) => out.extend(pairs().map(|(x, y)| x * y)),
        (OpKind::Fmac, 3) => out.extend(pairs().zip(&z[..count]).map(|((x, y), z)| x * y + z)),
        (_, 1) => out.extend(x[..count].iter().map(|&x| apply(kind, x, 0.0, 0.0))),
        (_, 2) => out.extend(pairs().map(|(&x, &y)| apply(kind, x, y, 0.0))),
        _ => out.extend(pairs().zip(&z[..count]).map(|((&x, &y), &z)| apply(kind, x, y, z))),
    }
}

/// Bytes `from..` of `memory` for `count` elements, if the elements of `a` lie one behind the other in it.
fn dense(a: &Address, s: &LoweredSlice, first: usize, count: usize) -> Option<std::ops::Range<usize>> {
    let size = s.dtype.bytes() as usize;
    let from = s.buffer_offset as usize + size * a.at(first);
    (a.is_dense() && size > 0).then(|| from..from + size * count)
}

/// Reads elements of a slice.
fn fetch(s: &LoweredSlice, a: &Address, first: usize, count: usize, memory: &[u8], values: &mut Vec<f32>) {
    values.clear();
    match dense(a, s, first, count).and_then(|range| memory.get(range)) {
        Some(bytes) if s.dtype == DType::F32 => {
            values.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)));
        }
        _ => values.extend((first..first + count).map(|e| load(memory, s.buffer_offset, s.dtype, a.at(e)))),
    }
}

/// Writes elements of a slice.
fn put_back(s: &LoweredSlice, a: &Address, first: usize, values: &[f32], memory: &mut [u8]) {
    let range = dense(a, s, first, values.len()).filter(|_| s.dtype == DType::F32);
    if let Some(bytes) = range.and_then(|range| memory.get_mut(range)) {
        bytes.as_chunks_mut().0.iter_mut().zip(values).for_each(|(b, v)| *b = v.to_le_bytes());
        return;
    }
    for (e, value) in values.iter().enumerate() {
        store(memory, s.buffer_offset, s.dtype, a.at(first + e), *value);
    }
}

/// Computes elements strictly one after the other, each seeing the stores before it.
fn one_by_one(
    op: &LoweredOp,
    state: &OpState,
    first: usize,
    count: usize,
    memory: &mut [u8],
    values: &Values,
    a: &Addresses,
) {
    let (Sink::Mem(to), Some(place)) = (&op.dst, &a.dst) else { return };
    for e in 0..count {
        let mut v = [0.0; 3];
        for (k, source) in op.src.iter().enumerate() {
            v[k] = match (source, &a.src[k]) {
                (Source::Mem(s), Some(at)) => load(memory, s.buffer_offset, s.dtype, at.at(first + e)),
                (Source::In { .. }, _) => values.operands[k].get(e).copied().unwrap_or(0.0),
                _ => state.scalars[k],
            };
        }
        let value = apply(op.kind, v[0], v[1], v[2]);
        store(memory, to.buffer_offset, to.dtype, place.at(first + e), value);
    }
}
