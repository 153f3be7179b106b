//! The numbers of a vector op: operands into vectors, the function over them, results back to memory or into words.

use super::ops::{CHUNK, OpFault, OpState};
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

/// Computes all elements of an op on memory, in chunks.
pub fn compute_all(
    op: &LoweredOp,
    state: &OpState,
    elements: u64,
    memory: &mut [u8],
    values: &mut Values,
    a: &Addresses,
) {
    let mut first = 0;
    while first < elements {
        let last = (first + CHUNK).min(elements);
        compute(op, state, first, last, memory, values, a);
        first = last;
    }
}

/// Computes elements `first..last`; arriving ones are in `values`, results for a stream are left in `values.out`.
pub fn compute(
    op: &LoweredOp,
    state: &OpState,
    first: u64,
    last: u64,
    memory: &mut [u8],
    values: &mut Values,
    a: &Addresses,
) {
    let (first, count) = (first as usize, (last - first) as usize);
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
    let Values { operands: [x, y, z], out } = values;
    apply_all(op.kind, op.src.len(), count, [x, y, z], out);
    if let (Sink::Mem(s), Some(address)) = (&op.dst, &a.dst) {
        put_back(s, address, first, out, memory);
    }
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
