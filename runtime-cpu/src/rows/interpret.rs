//! Row functions by the letter: the portable way to run them, and what compiled code is compared with.

use crate::program::{RowFn, RowOp};
use crate::rows::{Sink, Source, Turn, rotations};
use lapidary_models::spec::{Activation, NormKind};

/// Runs a function over rows whose lengths were checked.
pub fn run(f: &RowFn, turns: &[Turn], rows: usize, sources: &[Source], sinks: &mut [Sink]) {
    let tables = rotations(f);
    let inputs = f.values.iter().filter(|v| v.op.is_source()).count();
    let mut values: Vec<Vec<f32>> = Vec::with_capacity(f.values.len());
    for row in 0..rows {
        values.clear();
        let mut next = sources.iter().map(|s| &s.data[row * s.pitch..]);
        for value in &f.values {
            let width = value.width as usize;
            let computed = match value.op {
                RowOp::Rotate { x, rotation } => {
                    let at = inputs + tables.iter().position(|r| *r == rotation).unwrap_or(0);
                    rotate(&values[x], turns[rotation], &sources[at].data[row * sources[at].pitch..])
                }
                op if op.is_source() => next.next().map_or_else(Vec::new, |s| s[..width].to_vec()),
                op => apply(op, &values),
            };
            values.push(computed);
        }
        for (output, sink) in f.outputs.iter().zip(sinks.iter_mut()) {
            let value = &values[output.value];
            sink.data[row * sink.pitch..][..value.len()].copy_from_slice(value);
        }
    }
}

fn apply(op: RowOp, values: &[Vec<f32>]) -> Vec<f32> {
    let zip = |a: usize, b: usize, f: fn(f32, f32) -> f32| {
        values[a].iter().zip(&values[b]).map(|(a, b)| f(*a, *b)).collect()
    };
    match op {
        RowOp::Add { a, b } => zip(a, b, |a, b| a + b),
        RowOp::Mul { a, b } => zip(a, b, |a, b| a * b),
        RowOp::Scale { x, by } => values[x].iter().map(|x| x * by as f32).collect(),
        RowOp::Activation { x, function } => values[x].iter().map(|x| activation(function, *x)).collect(),
        RowOp::Slope { x, function } => values[x].iter().map(|x| slope(function, *x)).collect(),
        RowOp::NormDx { x, g, kind, eps } => norm_dx(&values[x], &values[g], kind, eps),
        RowOp::Norm { x, weight, bias, kind, eps } => {
            let normed = normalised(&values[x], kind, eps);
            let scaled = normed.iter().zip(&values[weight]).map(|(x, w)| x * w);
            match bias {
                Some(bias) => scaled.zip(&values[bias]).map(|(x, b)| x + b).collect(),
                None => scaled.collect(),
            }
        }
        _ => Vec::new(),
    }
}

fn normalised(x: &[f32], kind: NormKind, eps: f64) -> Vec<f32> {
    let (mean, factor) = statistics(x, kind, eps);
    x.iter().map(|x| ((f64::from(*x) - mean) * factor) as f32).collect()
}

/// Derivative of a norm by its operand, in f64, rounded once.
fn norm_dx(x: &[f32], g: &[f32], kind: NormKind, eps: f64) -> Vec<f32> {
    let n = x.len() as f64;
    let (mean, factor) = statistics(x, kind, eps);
    let hat = |x: f32| (f64::from(x) - mean) * factor;
    let along = x.iter().zip(g).map(|(x, g)| hat(*x) * f64::from(*g)).sum::<f64>() / n;
    let center = match kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => g.iter().map(|g| f64::from(*g)).sum::<f64>() / n,
    };
    x.iter().zip(g).map(|(x, g)| (factor * (f64::from(*g) - center - hat(*x) * along)) as f32).collect()
}

/// What a norm subtracts and what it multiplies with.
fn statistics(x: &[f32], kind: NormKind, eps: f64) -> (f64, f64) {
    let n = x.len() as f64;
    let mean = match kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => x.iter().map(|x| f64::from(*x)).sum::<f64>() / n,
    };
    let square = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
    (mean, 1.0 / (square + eps).sqrt())
}

/// A pointwise function in f64, rounded once.
pub fn activation(function: Activation, x: f32) -> f32 {
    let x = f64::from(x);
    let y = match function {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Relu => x.max(0.0),
        Activation::Relu2 => x.max(0.0).powi(2),
    };
    y as f32
}

/// The derivative of a pointwise function in f64, rounded once.
pub fn slope(function: Activation, x: f32) -> f32 {
    let x = f64::from(x);
    let y = match function {
        Activation::Silu => {
            let gate = 1.0 / (1.0 + (-x).exp());
            gate * (1.0 + x * (1.0 - gate))
        }
        Activation::Gelu => {
            let density = (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
            0.5 * (1.0 + erf(x / std::f64::consts::SQRT_2)) + x * density
        }
        Activation::GeluTanh => {
            let root = (2.0 / std::f64::consts::PI).sqrt();
            let t = (root * (x + 0.044715 * x.powi(3))).tanh();
            0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * root * (1.0 + 3.0 * 0.044715 * x * x)
        }
        Activation::Relu => f64::from(x > 0.0),
        Activation::Relu2 => 2.0 * x.max(0.0),
    };
    y as f32
}

/// The error function by its Taylor series where that converges fast, and by the continued fraction of its complement
/// elsewhere (Abramowitz and Stegun, 7.1.5 and 7.1.14).
pub fn erf(x: f64) -> f64 {
    let z = x.abs();
    let value = if z < 2.5 {
        let mut term = z;
        let mut sum = z;
        for n in 1..60 {
            term *= -z * z / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else {
        let fraction = (1..60).rev().fold(z, |f, n| z + f64::from(n) / 2.0 / f);
        1.0 - (-z * z).exp() / (fraction * std::f64::consts::PI.sqrt())
    };
    value.copysign(x)
}

fn rotate(x: &[f32], turn: Turn, table: &[f32]) -> Vec<f32> {
    let (cos, sin) = (&table[..turn.rot_dims], &table[turn.rot_dims..2 * turn.rot_dims]);
    let mut out = x.to_vec();
    for (head, out) in x.chunks(turn.head_dim).zip(out.chunks_mut(turn.head_dim)) {
        for at in 0..turn.rot_dims {
            out[at] = head[at] * cos[at] + head[turn.partner(at)] * sin[at];
        }
    }
    out
}
