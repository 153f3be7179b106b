//! What a vector operation costs: the one place with price rules, used by every level of the simulator.
//!
//! An op runs at the rate of its slowest part: the SIMD width for its dtypes, the banks of its operands, the words
//! that pass the ramp.

use crate::fabric::{FabricSpec, function_cycles};
use crate::lower::{Linear, LoweredOp, LoweredSlice, Sink, Source};
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
    /// Elements that an op on memory takes together: each innermost row is rounded up to it.
    pub group: u64,
}

impl Price {
    /// Cycles of an op on memory with `elements` elements in rows of `row`, without issue.
    pub fn memory_cycles(&self, elements: u64, row: u64) -> u64 {
        let whole = match self.group {
            0 | 1 => elements,
            group => elements / row.max(1) * row.next_multiple_of(group),
        };
        (whole * self.num).div_ceil(self.den)
    }
}

/// What the ops of a parallel group ask for in a step, together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    /// Words from the ramp.
    words_in: u32,
    /// Words to the ramp.
    words_out: u32,
    /// Halves of a cycle of the datapath: a packed word takes one, anything else two.
    halves: u32,
}

impl Asked {
    /// By some ops.
    pub fn by(ops: &[LoweredOp]) -> Asked {
        ops.iter().fold(Asked::default(), |sum, op| {
            let (words_in, words_out) = ramp_words(op);
            let halves = if op.step() > 1 { 1 } else { 2 };
            Asked {
                words_in: sum.words_in + words_in,
                words_out: sum.words_out + words_out,
                halves: sum.halves + halves,
            }
        })
    }

    /// Cycles of a step: on a shared datapath the ops take turns; otherwise the ramp moves one word per link slot and
    /// direction, whoever wants it.
    fn cycles(&self, spec: &FabricSpec) -> u64 {
        let cycles = match spec.moves_per_cycle {
            Some(moves) => self.halves.div_ceil(2 * moves.max(1)),
            None => self.words_in.max(self.words_out).div_ceil(spec.link_words_per_cycle.max(1)),
        };
        u64::from(cycles)
    }
}

/// Prices `op` in a parallel group that asks for `asked` per step.
pub fn price(op: &LoweredOp, asked: Asked, spec: &FabricSpec) -> Price {
    let (num, den, group) = element_cycles(op, spec);
    let step = op.step();
    let compute = (u64::from(step) * num).div_ceil(den);
    let issue = if op.streams() { spec.stream_issue } else { spec.op_issue };
    Price {
        issue: u64::from(issue),
        step,
        step_cycles: compute.max(asked.cycles(spec)).max(1),
        num,
        den,
        group,
    }
}

/// Cycles per element as a fraction, and elements taken together: SIMD width or function cost, and what the banks add.
fn element_cycles(op: &LoweredOp, spec: &FabricSpec) -> (u64, u64, u64) {
    let (hits, of) = conflicts(op, spec);
    let turns = if in_one_bank(op, spec) { 2 } else { 1 };
    let (factor, share) = (turns * of + hits, of);
    if let Some(cycles) = function_cycles(&spec.function_cycles, op.kind) {
        return (u64::from(cycles) * factor, share, 1);
    }
    let (lanes, group) = lanes(op, spec);
    match shares_register(op) && turns == 1 {
        true => (factor * u64::from(spec.shared_register_macs.max(4)), share * lanes * 4, group),
        false => (factor, share * lanes, group),
    }
}

/// Elements per cycle without conflicts, and elements that are taken together.
fn lanes(op: &LoweredOp, spec: &FabricSpec) -> (u64, u64) {
    let simd = u64::from(simd(op, spec).max(1));
    let half = u64::from(spec.simd_half.max(1));
    if is_sum(op) {
        let rate = u64::from(spec.sums_per_cycle).max(simd);
        // A group is as many bytes as one of 16-bit elements.
        return (rate, if spec.whole_groups && rate > 1 { half / 2 } else { 1 });
    }
    if spec.whole_groups && is_paired(op, spec) {
        return (2 * simd, 1);
    }
    let narrow = vectors(op).all(|s| s.dtype.bytes() == 2) && op.dst.dtype().bytes() == 2;
    match spec.whole_groups && narrow && vectors(op).count() > 1 {
        true => (simd.min(READ_BYTES / 2), half),
        false => (simd, 1),
    }
}

/// Whether it reads two vectors of 32 bits by pairs of words: one dimension, and two words apart modulo the ports, so that
/// neither pair meets the other (SDK documentation: `src0 % 8 == (src1 + 4) % 8` in 16-bit addresses).
fn is_paired(op: &LoweredOp, spec: &FabricSpec) -> bool {
    let plain = |s: &LoweredSlice| s.dtype == DType::F32 && (s.strides.is_empty() || s.strides == [1]);
    let sources: Vec<_> = vectors(op).collect();
    let [a, b] = sources[..] else { return false };
    let alike = op.dims.len() == 1 && op.kind != OpKind::Fmac && !op.streams() && plain(a) && plain(b);
    let apart = (i64::from(a.buffer_offset) - i64::from(b.buffer_offset)) + 4 * (a.at.base() - b.at.base());
    let fixed = a.at.minus(&b.at).iter().all(|pace| *pace == 0);
    alike && fixed && apart.rem_euclid(spec.port_period()) == 2 * i64::from(spec.bank_word)
}

/// Bytes that a source brings per cycle: one 64-bit read (SDK documentation).
const READ_BYTES: u64 = 8;

/// Memory sources that are more than one element.
fn vectors(op: &LoweredOp) -> impl Iterator<Item = &LoweredSlice> {
    let scalar = |s: &LoweredSlice| !s.strides.is_empty() && s.strides.iter().all(|stride| *stride == 0);
    op.src.iter().filter_map(Source::slice).filter(move |s| !scalar(s))
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

/// Whether it adds two vectors of 32 bits in memory.
fn is_sum(op: &LoweredOp) -> bool {
    let vector = |s: &Source| s.slice().is_some_and(|s| s.dtype == DType::F32);
    matches!(op.kind, OpKind::Add | OpKind::Sub) && op.src.iter().all(vector) && !op.streams()
}

/// Whether it is a multiply-accumulate in 32 bits on vectors of one dimension, whose sum and destination are one slice:
/// their descriptor is one register.
fn shares_register(op: &LoweredOp) -> bool {
    let Sink::Mem(dst) = &op.dst else { return false };
    let sum = op.src.get(2).and_then(Source::slice);
    let vectors = op.src.iter().filter_map(Source::slice).all(|s| s.dtype == DType::F32);
    op.kind == OpKind::Fmac && op.dims.len() == 1 && vectors && sum == Some(dst) && dst.strides != [0]
}

/// Whether it reads and writes a vector whose elements all lie in one bank, which does one at a time.
fn in_one_bank(op: &LoweredOp, spec: &FabricSpec) -> bool {
    let Sink::Mem(dst) = &op.dst else { return false };
    let banks = i64::from(spec.banks.max(1)) * i64::from(spec.bank_word.max(1));
    let stride = dst.strides.last().copied().unwrap_or(1) * dst.dtype.bytes() as i64;
    stride != 0 && stride % banks == 0 && op.src.iter().filter_map(Source::slice).any(|s| s == dst)
}

/// The share of elements, as a fraction, at which two different vectors of 32 bits lie behind one port. Sources of 16 bits
/// are read by pairs of words and wait for each other nowhere in the rows of the SDK's simulator; sources of different
/// dtypes move at different paces.
fn conflicts(op: &LoweredOp, spec: &FabricSpec) -> (u64, u64) {
    let slices: Vec<_> = vectors(op).filter(|s| s.dtype == DType::F32).collect();
    let pairs = slices.iter().enumerate().flat_map(|(i, a)| slices[i + 1..].iter().map(move |b| (*a, *b)));
    let shares = pairs.filter(|(a, b)| a != b).map(|(a, b)| share_of_meetings(a, b, op, spec));
    shares.max_by(|a, b| (a.0 * b.1).cmp(&(b.0 * a.1))).unwrap_or((0, 1))
}

/// Of all distances that two slices can have, the share at which they are behind one port.
fn share_of_meetings(a: &LoweredSlice, b: &LoweredSlice, op: &LoweredOp, spec: &FabricSpec) -> (u64, u64) {
    let (size, period) = (a.dtype.bytes() as i64, spec.port_period());
    let apart = i64::from(a.buffer_offset) - i64::from(b.buffer_offset) + size * (a.at.base() - b.at.base());
    let paces = a.at.minus(&b.at).into_iter().chain(strides_apart(a, b, &op.dims));
    let step = paces.fold(period, |step, pace| greatest_common_divisor(step, size * pace));
    let places = period / step;
    let word = i64::from(spec.bank_word.max(1));
    let meets = |n: &i64| (apart + n * step).rem_euclid(period) < word;
    ((0..places).filter(meets).count() as u64, places as u64)
}

/// By how much the distance of two slices changes along each dimension of the op.
fn strides_apart(a: &LoweredSlice, b: &LoweredSlice, dims: &[Linear]) -> Vec<i64> {
    let strides = |s: &LoweredSlice| -> Option<Vec<i64>> {
        if !s.strides.is_empty() {
            return Some(s.strides.clone());
        }
        let mut strides = vec![1; dims.len()];
        for k in (0..dims.len().saturating_sub(1)).rev() {
            strides[k] = strides[k + 1] * dims[k + 1].as_constant()?;
        }
        Some(strides)
    };
    if a.strides.is_empty() && b.strides.is_empty() {
        return Vec::new();
    }
    match (strides(a), strides(b)) {
        (Some(a), Some(b)) => a.iter().zip(&b).map(|(a, b)| a - b).collect(),
        _ => vec![1],
    }
}

fn greatest_common_divisor(a: i64, b: i64) -> i64 {
    if b == 0 { a.abs().max(1) } else { greatest_common_divisor(b, a % b) }
}

/// Words per step that `op` takes from and gives to the ramp.
fn ramp_words(op: &LoweredOp) -> (u32, u32) {
    let step = op.step();
    let words = |lanes: u32| step / lanes.max(1);
    let incoming = op.src.iter().filter_map(Source::stream).map(|(_, wire)| words(wire.lanes())).sum();
    let outgoing = match &op.dst {
        Sink::Out { wire, .. } => words(wire.lanes()),
        Sink::Mem(_) => 0,
    };
    (incoming, outgoing)
}
