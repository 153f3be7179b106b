//! What a vector operation costs: the one place with price rules, used by every level of the simulator.
//!
//! An op runs at the rate of its slowest part: the SIMD width for its dtypes, the banks of its operands, the words
//! that pass the ramp.

use crate::fabric::FabricSpec;
use crate::lower::{LoweredOp, Sink, Source};
use crate::program::OpKind;
use lapidary_models::dtype::DType;

/// The price of one op, without waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    /// Cycles before the first element.
    pub issue: u64,
    /// Elements moved together: the lanes of the widest wire, 1 for ops on memory only.
    pub step: u32,
    /// Cycles per step of a streaming op.
    pub step_cycles: u64,
    /// Cycles per element of an op on memory, as a fraction.
    pub num: u64,
    /// Denominator of `num`.
    pub den: u64,
}

impl Price {
    /// Cycles of an op on memory with `elements` elements, without issue.
    pub fn memory_cycles(&self, elements: u64) -> u64 {
        (elements * self.num).div_ceil(self.den)
    }
}

/// Prices `op`, which runs beside `words_in` input and `words_out` output streams (its own included) of the same
/// parallel group: the ramp moves one word per link slot and direction, whoever wants it.
pub fn price(op: &LoweredOp, words_in: u32, words_out: u32, spec: &FabricSpec) -> Price {
    let (num, den) = element_cycles(op, spec);
    let step = op.step();
    let compute = (u64::from(step) * num).div_ceil(den);
    let link = u64::from(spec.link_words_per_cycle.max(1));
    let ramp = u64::from(words_in.max(words_out)).div_ceil(link);
    let issue = if op.streams() { spec.stream_issue } else { spec.op_issue };
    Price { issue: u64::from(issue), step, step_cycles: compute.max(ramp).max(1), num, den }
}

/// Cycles per element as a fraction: SIMD width or function cost, times the bank conflict factor.
fn element_cycles(op: &LoweredOp, spec: &FabricSpec) -> (u64, u64) {
    let conflict = if bank_conflict(op, spec) { u64::from(spec.bank_conflict_factor.max(1)) } else { 1 };
    let (num, den) = match spec.function_cycles.of(op.kind) {
        Some(cycles) => (u64::from(cycles), 1),
        None => (1, u64::from(simd(op, spec).max(1))),
    };
    (num * conflict, den)
}

/// SIMD width for the dtypes of the operands: f32 anywhere but in the accumulator or destination halves it.
fn simd(op: &LoweredOp, spec: &FabricSpec) -> u32 {
    let accumulator = (op.kind == OpKind::Fmac).then_some(2);
    let wide = |d: DType| d == DType::F32;
    let sources = op.src.iter().enumerate();
    let wide_source = sources.clone().any(|(i, s)| Some(i) != accumulator && s.dtype().is_some_and(wide));
    let wide_rest = wide(op.dst.dtype()) || op.src.iter().any(|s| s.dtype().is_some_and(wide));
    match (wide_source, wide_rest) {
        (true, _) => spec.simd_single,
        (false, true) => spec.simd_mixed,
        (false, false) => spec.simd_half,
    }
}

/// Whether two different memory sources start in banks that cannot be read in the same cycle.
fn bank_conflict(op: &LoweredOp, spec: &FabricSpec) -> bool {
    let slices: Vec<_> = op.src.iter().filter_map(Source::slice).collect();
    let bank = |offset: u32| spec.bank(offset) % (spec.banks / 2).max(1);
    slices.iter().enumerate().any(|(i, a)| {
        let rest = &slices[i + 1..];
        rest.iter().any(|b| a != b && bank(a.buffer_offset) == bank(b.buffer_offset))
    })
}

/// Words per step that `op` takes from and gives to the ramp.
pub fn ramp_words(op: &LoweredOp) -> (u32, u32) {
    let step = op.step();
    let words = |lanes: u32| step / lanes.max(1);
    let incoming = op.src.iter().filter_map(Source::stream).map(|(_, wire)| words(wire.lanes())).sum();
    let outgoing = match &op.dst {
        Sink::Out { wire, .. } => words(wire.lanes()),
        Sink::Mem(_) => 0,
    };
    (incoming, outgoing)
}
