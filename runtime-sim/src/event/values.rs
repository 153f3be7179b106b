//! Numbers: elements of a PE's memory, elements in words, and the functions of vector ops.

use crate::lower::{Env, LoweredOp, LoweredSlice};
use crate::program::{OpKind, Wire};
use half::{bf16, f16};
use lapidary_models::dtype::DType;

/// Where the elements of a slice are, for one execution of an op.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    base: i64,
    step: i64,
    dims: usize,
    lengths: [i64; 4],
    strides: [i64; 4],
}

impl Address {
    /// Resolves `slice` at `env` for an op of the given lengths; fails with the first element out of bounds.
    pub fn new(slice: &LoweredSlice, op: &LoweredOp, env: &Env) -> Result<Address, i64> {
        let mut lengths = [1i64; 4];
        for (length, dim) in lengths.iter_mut().zip(&op.dims) {
            *length = dim.at(env).max(0);
        }
        let dims = op.dims.len().min(4);
        let mut strides = [0i64; 4];
        if slice.strides.is_empty() {
            let mut stride = 1;
            for k in (0..dims).rev() {
                strides[k] = stride;
                stride *= lengths[k];
            }
        } else {
            for (to, from) in strides.iter_mut().zip(&slice.strides) {
                *to = *from;
            }
        }
        let base = slice.at.at(env);
        let linear = dims == 1 || slice.strides.is_empty();
        let address =
            Address { base, step: strides[dims - 1], dims: if linear { 1 } else { dims }, lengths, strides };
        address.bounds(dims, slice.elements)?;
        Ok(address)
    }

    fn bounds(&self, dims: usize, elements: u32) -> Result<(), i64> {
        if self.lengths[..dims].contains(&0) {
            return Ok(());
        }
        let reach = (0..dims).map(|k| self.strides[k].saturating_mul(self.lengths[k] - 1));
        let (low, high) = reach.fold((self.base, self.base), |(l, h), r| (l + r.min(0), h + r.max(0)));
        if low < 0 {
            return Err(low);
        }
        if high >= i64::from(elements) { Err(high) } else { Ok(()) }
    }

    /// Elements from `e` on that lie at one distance from each other.
    #[cfg(feature = "compiled")]
    pub fn row_left(&self, e: usize) -> usize {
        match self.dims {
            1 => usize::MAX,
            dims => {
                let row = self.lengths[dims - 1].max(1) as usize;
                row - e % row
            }
        }
    }

    /// That distance.
    #[cfg(feature = "compiled")]
    pub fn step(&self) -> i64 {
        self.step
    }

    /// Whether elements lie one behind the other.
    pub fn is_dense(&self) -> bool {
        self.dims == 1 && self.step == 1
    }

    /// Index of element `e`.
    #[inline]
    pub fn at(&self, e: usize) -> usize {
        if self.dims == 1 {
            return (self.base + self.step * e as i64) as usize;
        }
        let (mut rest, mut index) = (e as i64, self.base);
        for k in (0..self.dims).rev() {
            index += self.strides[k] * (rest % self.lengths[k]);
            rest /= self.lengths[k];
        }
        index as usize
    }
}

/// Reads one element.
#[inline]
pub fn load(memory: &[u8], offset: u32, dtype: DType, index: usize) -> f32 {
    let at = offset as usize;
    match dtype {
        DType::F16 => f16::from_le_bytes(bytes2(memory, at + 2 * index)).to_f32(),
        DType::Bf16 => bf16::from_le_bytes(bytes2(memory, at + 2 * index)).to_f32(),
        DType::F32 | DType::I32 => f32::from_le_bytes(bytes4(memory, at + 4 * index)),
    }
}

/// Writes one element, rounded to nearest even.
#[inline]
pub fn store(memory: &mut [u8], offset: u32, dtype: DType, index: usize, value: f32) {
    let at = offset as usize;
    match dtype {
        DType::F16 => put(memory, at + 2 * index, &f16::from_f32(value).to_le_bytes()),
        DType::Bf16 => put(memory, at + 2 * index, &bf16::from_f32(value).to_le_bytes()),
        DType::F32 | DType::I32 => put(memory, at + 4 * index, &value.to_le_bytes()),
    }
}

#[inline]
fn bytes4(memory: &[u8], at: usize) -> [u8; 4] {
    memory.get(at..at + 4).and_then(|b| b.try_into().ok()).unwrap_or_default()
}

#[inline]
fn bytes2(memory: &[u8], at: usize) -> [u8; 2] {
    memory.get(at..at + 2).and_then(|b| b.try_into().ok()).unwrap_or_default()
}

#[inline]
fn put(memory: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = memory.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// Packs up to two elements into a word.
#[inline]
pub fn encode(wire: Wire, first: f32, second: f32) -> u32 {
    let half = |v: f32| u32::from(f16::from_f32(v).to_bits());
    let brain = |v: f32| u32::from(bf16::from_f32(v).to_bits());
    match wire {
        Wire::F32 => first.to_bits(),
        Wire::F16 => half(first),
        Wire::Bf16 => brain(first),
        Wire::F16x2 => half(first) | (half(second) << 16),
        Wire::Bf16x2 => brain(first) | (brain(second) << 16),
    }
}

/// Element `lane` of a word.
#[inline]
pub fn decode(wire: Wire, word: u32, lane: u32) -> f32 {
    let bits = (word >> (16 * lane)) as u16;
    match wire {
        Wire::F32 => f32::from_bits(word),
        Wire::F16 | Wire::F16x2 => f16::from_bits(bits).to_f32(),
        Wire::Bf16 | Wire::Bf16x2 => bf16::from_bits(bits).to_f32(),
    }
}

/// The value of one element.
#[inline]
pub fn apply(kind: OpKind, a: f32, b: f32, c: f32) -> f32 {
    match kind {
        OpKind::Mov => a,
        OpKind::Neg => -a,
        OpKind::Abs => a.abs(),
        OpKind::Exp => a.exp(),
        OpKind::Log => a.ln(),
        OpKind::Recip => 1.0 / a,
        OpKind::Sqrt => a.sqrt(),
        OpKind::Rsqrt => 1.0 / a.sqrt(),
        OpKind::Tanh => a.tanh(),
        OpKind::Erf => erf(a),
        OpKind::Add => a + b,
        OpKind::Sub => a - b,
        OpKind::Mul => a * b,
        OpKind::Max => a.max(b),
        OpKind::Min => a.min(b),
        OpKind::Fmac => a * b + c,
    }
}

/// The error function, by its Maclaurin series near zero and a continued fraction of the complement elsewhere.
fn erf(x: f32) -> f32 {
    let z = f64::from(x);
    let square = z * z;
    if z.abs() < 2.0 {
        let (mut term, mut sum) = (z, z);
        for n in 1..40 {
            term *= -square / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return (sum * std::f64::consts::FRAC_2_SQRT_PI) as f32;
    }
    if z.is_nan() || z.abs() > 6.0 {
        return if z.is_nan() { f32::NAN } else { z.signum() as f32 };
    }
    let fraction = (1..60).rev().fold(z.abs(), |f, n| z.abs() + f64::from(n) / 2.0 / f);
    let complement = (-square).exp() / (fraction * std::f64::consts::PI.sqrt());
    (z.signum() * (1.0 - complement)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_matches_tabulated_values() {
        for (x, y) in
            [(0.0, 0.0), (0.5, 0.520_499_9), (1.0, 0.842_700_8), (2.0, 0.995_322_3), (-3.0, -0.999_977_9)]
        {
            assert!((erf(x) - y).abs() < 1e-6, "erf({x}) = {}", erf(x));
        }
        assert_eq!(erf(f32::INFINITY), 1.0);
    }

    #[test]
    fn words_carry_what_their_wire_says() {
        for wire in [Wire::F16x2, Wire::Bf16x2] {
            let word = encode(wire, 1.5, -2.0);
            assert_eq!((decode(wire, word, 0), decode(wire, word, 1)), (1.5, -2.0));
        }
        assert_eq!(decode(Wire::F32, encode(Wire::F32, 0.1, 0.0), 0), 0.1);
    }
}
