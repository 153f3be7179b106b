//! Functions of four lanes that Cranelift has no instruction for.
//!
//! Exponentials are range-reduced polynomials as in [`crate::simd::exp`]; the error function is formula 7.1.26 of
//! Abramowitz and Stegun, whose absolute error stays below 1.5e-7.

use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::types::{F32X4, I32, I32X4};
use cranelift_codegen::ir::{Endianness, InstBuilder, MemFlagsData, Value};
use cranelift_frontend::FunctionBuilder;
use lapidary_models::spec::Activation;

/// Emits arithmetic on four lanes.
pub struct Lanes<'b, 'f>(pub &'b mut FunctionBuilder<'f>);

impl Lanes<'_, '_> {
    /// The same number in every lane.
    pub fn splat(&mut self, x: f32) -> Value {
        let one = self.0.ins().f32const(x);
        self.0.ins().splat(F32X4, one)
    }

    /// The same scalar in every lane.
    pub fn spread(&mut self, x: Value) -> Value {
        self.0.ins().splat(F32X4, x)
    }

    /// `a + b`.
    pub fn add(&mut self, a: Value, b: Value) -> Value {
        self.0.ins().fadd(a, b)
    }

    /// `a b`.
    pub fn mul(&mut self, a: Value, b: Value) -> Value {
        self.0.ins().fmul(a, b)
    }

    /// `by x`.
    pub fn scale(&mut self, x: Value, by: f32) -> Value {
        let by = self.splat(by);
        self.mul(x, by)
    }

    /// `a x + b`.
    fn horner(&mut self, a: Value, x: Value, b: f32) -> Value {
        let product = self.mul(a, x);
        let b = self.splat(b);
        self.add(product, b)
    }

    /// The polynomial with these coefficients, the highest power first.
    fn polynomial(&mut self, x: Value, coefficients: &[f32]) -> Value {
        let first = self.splat(coefficients[0]);
        coefficients[1..].iter().fold(first, |sum, c| self.horner(sum, x, *c))
    }

    /// Lanes of `a` where the bits of `mask` are set, else of `b`.
    fn select(&mut self, mask: Value, a: Value, b: Value) -> Value {
        let mask = self.bits(F32X4, mask);
        self.0.ins().bitselect(mask, a, b)
    }

    /// The same bits as another type of four lanes.
    pub fn bits(&mut self, ty: cranelift_codegen::ir::Type, x: Value) -> Value {
        let flags = MemFlagsData::new().with_endianness(Endianness::Little);
        self.0.ins().bitcast(ty, flags, x)
    }

    /// `max(x, 0)`; not-a-number becomes 0.
    fn positive(&mut self, x: Value) -> Value {
        let zero = self.splat(0.0);
        let mask = self.0.ins().fcmp(FloatCC::GreaterThan, x, zero);
        self.select(mask, x, zero)
    }

    fn clamp(&mut self, x: Value, low: f32, high: f32) -> Value {
        let (low, high) = (self.splat(low), self.splat(high));
        let below = self.0.ins().fcmp(FloatCC::LessThan, x, low);
        let x = self.select(below, low, x);
        let above = self.0.ins().fcmp(FloatCC::GreaterThan, x, high);
        self.select(above, high, x)
    }

    /// `e^x`, held between `e^-87` and `e^88`.
    pub fn exp(&mut self, x: Value) -> Value {
        const ROUND: f32 = 12_582_912.0;
        let x = self.clamp(x, -87.0, 88.0);
        let log2 = self.splat(std::f32::consts::LOG2_E);
        let shifted = self.horner(x, log2, ROUND);
        let n = self.splat(-ROUND);
        let n = self.add(shifted, n);
        let high = self.scale(n, -0.693_359_4);
        let low = self.scale(n, 2.121_944_4e-4);
        let r = self.add(x, high);
        let r = self.add(r, low);
        let p = self.polynomial(
            r,
            &[1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5, 1.0, 1.0],
        );
        let integer = self.bits(I32X4, shifted);
        let bias = self.0.ins().iconst(I32, i64::from(127_i32.wrapping_sub(ROUND.to_bits() as i32)));
        let bias = self.0.ins().splat(I32X4, bias);
        let exponent = self.0.ins().iadd(integer, bias);
        let places = self.0.ins().iconst(I32, 23);
        let power = self.0.ins().ishl(exponent, places);
        let power = self.bits(F32X4, power);
        self.mul(p, power)
    }

    /// `1 / x`.
    fn reciprocal(&mut self, x: Value) -> Value {
        let one = self.splat(1.0);
        self.0.ins().fdiv(one, x)
    }

    /// `1 / (1 + e^-x)`.
    fn sigmoid(&mut self, x: Value) -> Value {
        let negative = self.0.ins().fneg(x);
        let e = self.exp(negative);
        let one = self.splat(1.0);
        let sum = self.add(e, one);
        self.reciprocal(sum)
    }

    fn erf(&mut self, x: Value) -> Value {
        let z = self.0.ins().fabs(x);
        let p = self.splat(0.327_591_1);
        let t = self.horner(z, p, 1.0);
        let t = self.reciprocal(t);
        let sum =
            self.polynomial(t, &[1.061_405_4, -1.453_152_1, 1.421_413_8, -0.284_496_72, 0.254_829_6, 0.0]);
        let square = self.mul(z, z);
        let square = self.0.ins().fneg(square);
        let e = self.exp(square);
        let tail = self.mul(sum, e);
        let one = self.splat(1.0);
        let value = self.0.ins().fsub(one, tail);
        let minus = self.0.ins().fneg(value);
        let zero = self.splat(0.0);
        let negative = self.0.ins().fcmp(FloatCC::LessThan, x, zero);
        self.select(negative, minus, value)
    }

    /// A pointwise function.
    pub fn activation(&mut self, function: Activation, x: Value) -> Value {
        match function {
            Activation::Silu => {
                let gate = self.sigmoid(x);
                self.mul(x, gate)
            }
            Activation::Gelu => {
                let z = self.scale(x, std::f32::consts::FRAC_1_SQRT_2);
                let erf = self.erf(z);
                let half = self.scale(x, 0.5);
                let part = self.mul(half, erf);
                self.add(half, part)
            }
            Activation::GeluTanh => {
                // 0.5 (1 + tanh(u)) is the sigmoid of 2 u.
                let square = self.mul(x, x);
                let factor = self.splat(0.044_715);
                let inner = self.horner(square, factor, 1.0);
                let inner = self.mul(inner, x);
                let inner = self.scale(inner, 2.0 * (2.0 / std::f64::consts::PI).sqrt() as f32);
                let gate = self.sigmoid(inner);
                self.mul(x, gate)
            }
            Activation::Relu => self.positive(x),
            Activation::Relu2 => {
                let x = self.positive(x);
                self.mul(x, x)
            }
        }
    }

    /// The derivative of a pointwise function.
    pub fn slope(&mut self, function: Activation, x: Value) -> Value {
        match function {
            Activation::Silu => {
                let gate = self.sigmoid(x);
                self.gate_slope(x, gate, None)
            }
            Activation::Gelu => {
                let z = self.scale(x, std::f32::consts::FRAC_1_SQRT_2);
                let erf = self.erf(z);
                let half = self.splat(0.5);
                let below = self.horner(erf, half, 0.5);
                let square = self.mul(z, z);
                let square = self.0.ins().fneg(square);
                let e = self.exp(square);
                // 1 / sqrt(2 π)
                let density = self.scale(e, 0.398_942_3);
                let part = self.mul(x, density);
                self.add(below, part)
            }
            Activation::GeluTanh => {
                // x times the sigmoid of u = 2 sqrt(2/π) (x + 0.044715 x³), whose derivative is 2 sqrt(2/π) (1 + 3 · 0.044715 x²).
                let root = 2.0 * (2.0 / std::f64::consts::PI).sqrt() as f32;
                let square = self.mul(x, x);
                let factor = self.splat(0.044_715);
                let inner = self.horner(square, factor, 1.0);
                let inner = self.mul(inner, x);
                let inner = self.scale(inner, root);
                let gate = self.sigmoid(inner);
                let factor = self.splat(3.0 * 0.044_715);
                let slope = self.horner(square, factor, 1.0);
                let slope = self.scale(slope, root);
                self.gate_slope(x, gate, Some(slope))
            }
            Activation::Relu => {
                let (zero, one) = (self.splat(0.0), self.splat(1.0));
                let mask = self.0.ins().fcmp(FloatCC::GreaterThan, x, zero);
                self.select(mask, one, zero)
            }
            Activation::Relu2 => {
                let x = self.positive(x);
                self.scale(x, 2.0)
            }
        }
    }

    /// Derivative of `x s(u)`, s the sigmoid with value `gate`: `gate (1 + x (1 - gate) u')`.
    fn gate_slope(&mut self, x: Value, gate: Value, inner: Option<Value>) -> Value {
        let one = self.splat(1.0);
        let rest = self.0.ins().fsub(one, gate);
        let rest = self.mul(x, rest);
        let rest = inner.map_or(rest, |inner| self.mul(rest, inner));
        let sum = self.add(one, rest);
        self.mul(gate, sum)
    }

    /// The sum of four lanes, a scalar.
    pub fn total(&mut self, x: Value) -> Value {
        let lanes: Vec<Value> = (0..4u8).map(|lane| self.0.ins().extractlane(x, lane)).collect();
        let (a, b) = (self.add(lanes[0], lanes[1]), self.add(lanes[2], lanes[3]));
        self.add(a, b)
    }

    /// A scalar constant.
    pub fn scalar(&mut self, x: f32) -> Value {
        self.0.ins().f32const(x)
    }
}
