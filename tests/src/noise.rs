//! How far rounding may carry a model from its reference: measured on the reference itself, by Monte Carlo arithmetic.
//!
//! The reference runs several times in numbers that are off by chance wherever a machine rounds: every result by up to
//! [`RESULT`], and with bf16 every operand of a product by stochastic rounding, which is off at least as far as rounding
//! to nearest. What a model amplifies, such as squares without a norm behind them, it amplifies here just so. The
//! largest distance of these runs from the exact one is the noise; a run that is further away than [`FACTOR`] times
//! that computes something else.
//!
//! D. S. Parker, Monte Carlo Arithmetic, UCLA CSD-970002 (1997).

use crate::oracle::{Operand, Oracle, Params, Real, Tensor};
use lapidary_models::{Dims, Graph, Mode, ModelSpec};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// Largest relative error of a result: 4 units of rounding of f32, which is what the approximations of exponentials
/// and roots in row functions keep.
pub const RESULT: f64 = 4.0 / (1u64 << 24) as f64;

/// Runs that the noise is taken from.
const SAMPLES: u64 = 8;

/// A run may be this much further away than all of the samples.
///
/// An error is the sum of many small ones, so about normal, and the samples' are at least [`WIDER`] times as wide as
/// that of a right run. Where all logits are off by one common number (one token, one feature: the worst case), a right
/// run is further away than `f` times each of `n` samples with the probability `E[erf(|z| / (f WIDER sqrt 2))^n]` of a
/// standard normal `z`: 1.2e-5 for 8 samples and 4 times (`the_factor_follows`), once in 1400 runs of 60 models that all
/// have such logits. Where two logits move each on its own it is 2.8e-8.
pub const FACTOR: f64 = 4.0;

/// How much wider the samples spread than rounding to nearest: a number that lies `t` of the way between two neighbours is
/// off by `t (1 - t)` in the mean square by stochastic rounding, 1/6 over all `t`, and to nearest by 1/12. Results of ops
/// are off by up to 4 units where f32 is off by half of one, which is wider still.
pub const WIDER: f64 = std::f64::consts::SQRT_2;

/// Where numbers are rounded besides the results of all ops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operands {
    /// Nowhere: f32 throughout.
    F32,
    /// Operands of products are bf16.
    Bf16,
}

/// The logits of several prompts without rounding, and how far rounding carries them.
pub struct Expected {
    /// Logits of every token of every prompt, of the vocabulary's width.
    pub rows: Vec<Vec<f64>>,
    /// The largest distance of a sample, relative to the largest logit of its row.
    pub noise: f64,
}

impl Expected {
    /// Runs the reference on every prompt, exactly and with noise. Weights are taken as they are.
    pub fn new(
        spec: &ModelSpec,
        params: &Params<f64>,
        prompts: &[Vec<u32>],
        operands: Operands,
        seed: u64,
    ) -> Self {
        let rows = logits(spec, params, prompts);
        let params = noisy(params);
        let sample = |sample: u64| {
            let state = seed.wrapping_mul(SAMPLES).wrapping_add(sample);
            CHANCE.set(Chance { state, rounding: Rounding::ByChance(operands) });
            apart(&logits(spec, &params, prompts), &rows)
        };
        let noise = (0..SAMPLES).map(sample).fold(RESULT, f64::max);
        Expected { rows, noise }
    }

    /// The largest distance that rounding explains.
    pub fn bound(&self) -> f64 {
        FACTOR * self.noise
    }
}

/// The largest difference of rows, relative to the largest value of the row in `exact`; infinite where one is no number.
pub fn apart(found: &[Vec<f64>], exact: &[Vec<f64>]) -> f64 {
    assert_eq!(found.len(), exact.len());
    let of = |found: &[f64], exact: &[f64]| {
        let scale = exact.iter().map(|x| x.abs()).fold(f64::MIN_POSITIVE, f64::max);
        let off = |(a, b): (&f64, &f64)| (a - b).abs() / scale;
        found
            .iter()
            .zip(exact)
            .map(off)
            .fold(0.0, |max, d| if d.is_nan() { f64::INFINITY } else { d.max(max) })
    };
    found.iter().zip(exact).map(|(a, b)| of(a, b)).fold(0.0, f64::max)
}

fn logits<T: Real>(spec: &ModelSpec, params: &Params<T>, prompts: &[Vec<u32>]) -> Vec<Vec<f64>> {
    let run = |prompt: &Vec<u32>| {
        let dims = Dims { batch: 1, seq: prompt.len() as u64, cached: 0 };
        let graph = Graph::build(spec, Mode::Forward, dims).expect("a graph");
        let logits =
            Oracle { graph: &graph, params }.run(std::slice::from_ref(prompt), &mut BTreeMap::new()).logits;
        let row = |row: &[T]| row[..spec.vocab as usize].iter().map(|x| x.to_f64()).collect();
        logits.rows().map(row).collect::<Vec<Vec<f64>>>()
    };
    prompts.iter().flat_map(run).collect()
}

/// Every value of one prompt by name, as the graph computes it: exactly, and with the operands of products rounded to the
/// nearest bf16 where a program without fused attention does it: rows of linear steps, and what the cache holds.
pub fn stages(spec: &ModelSpec, params: &Params<f64>, prompt: &[u32]) -> [BTreeMap<String, Vec<f64>>; 2] {
    CHANCE.set(Chance { state: 0, rounding: Rounding::Nearest });
    [traced(spec, params, prompt), traced(spec, &noisy(params), prompt)]
}

fn traced<T: Real>(spec: &ModelSpec, params: &Params<T>, prompt: &[u32]) -> BTreeMap<String, Vec<f64>> {
    let dims = Dims { batch: 1, seq: prompt.len() as u64, cached: 0 };
    let graph = Graph::build(spec, Mode::Forward, dims).expect("a graph");
    let run = Oracle { graph: &graph, params }.run(&[prompt.to_vec()], &mut BTreeMap::new());
    let values = |t: &Tensor<T>| t.data.iter().map(|x| x.to_f64()).collect();
    let named = run.trace.iter().map(|(name, tensor)| (name.clone(), values(tensor)));
    named.chain([("logits".to_string(), values(&run.logits))]).collect()
}

fn noisy(params: &Params<f64>) -> Params<Noisy> {
    let tensor = |t: &Tensor<f64>| Tensor::new(t.shape.clone(), t.data.iter().map(|x| Noisy(*x)).collect());
    params.iter().map(|(name, t)| (name.clone(), tensor(t))).collect()
}

#[derive(Clone, Copy)]
struct Chance {
    state: u64,
    rounding: Rounding,
}

/// What happens to a [`Noisy`] number.
#[derive(Clone, Copy)]
enum Rounding {
    /// Results are off by chance, and so may be operands.
    ByChance(Operands),
    /// Operands become the nearest bf16 where a program without fused attention rounds them; nothing else is off.
    Nearest,
}

thread_local! {
    static CHANCE: Cell<Chance> = const { Cell::new(Chance { state: 0, rounding: Rounding::Nearest }) };
}

/// The next number in [0, 1), by splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
fn chance() -> f64 {
    let mut chance = CHANCE.get();
    chance.state = chance.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    CHANCE.set(chance);
    let mut z = chance.state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// A number that is off by chance wherever a machine rounds.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
struct Noisy(f64);

/// A result of an op.
fn off(x: f64) -> Noisy {
    match CHANCE.get().rounding {
        Rounding::ByChance(_) => Noisy(x * (1.0 + RESULT * (2.0 * chance() - 1.0))),
        Rounding::Nearest => Noisy(x),
    }
}

/// One of the two neighbours in bf16, the nearer one more likely; what bf16 holds stays.
fn stochastic(x: f64) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let unit = f64::from_bits(x.abs().to_bits() & (0x7ff << 52)) / 128.0;
    let steps = x / unit;
    unit * (steps.floor() + f64::from(u8::from(chance() < steps - steps.floor())))
}

macro_rules! noisy {
    ($($op:ident $method:ident),*) => { $(
        impl $op for Noisy {
            type Output = Noisy;
            fn $method(self, other: Noisy) -> Noisy {
                off(self.0.$method(other.0))
            }
        }
    )* };
}

noisy!(Add add, Sub sub, Mul mul, Div div);

impl Neg for Noisy {
    type Output = Noisy;
    fn neg(self) -> Noisy {
        Noisy(-self.0)
    }
}

impl AddAssign for Noisy {
    fn add_assign(&mut self, other: Noisy) {
        *self = *self + other;
    }
}

impl Real for Noisy {
    fn from_f64(x: f64) -> Noisy {
        Noisy(x)
    }
    fn to_f64(self) -> f64 {
        self.0
    }
    fn exp(self) -> Noisy {
        off(self.0.exp())
    }
    fn ln(self) -> Noisy {
        off(self.0.ln())
    }
    fn sqrt(self) -> Noisy {
        off(self.0.sqrt())
    }
    fn tanh(self) -> Noisy {
        off(self.0.tanh())
    }
    fn erf(self) -> Noisy {
        off(Real::erf(self.0))
    }
    fn sin(self) -> Noisy {
        off(self.0.sin())
    }
    fn cos(self) -> Noisy {
        off(self.0.cos())
    }
    fn operand(self, of: Operand) -> Noisy {
        match (CHANCE.get().rounding, of) {
            (Rounding::ByChance(Operands::F32), _) | (Rounding::Nearest, Operand::Query | Operand::Share) => {
                self
            }
            (Rounding::ByChance(Operands::Bf16), _) => Noisy(stochastic(self.0)),
            (Rounding::Nearest, _) => Noisy(half::bf16::from_f32(self.0 as f32).to_f64()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stochastic_rounding_takes_a_neighbour_and_keeps_what_bf16_holds() {
        for x in [1.0, -3.5, 0.0078125, 1.9921875, -255.0] {
            assert_eq!(stochastic(x), x);
        }
        let (mut low, mut sum) = (0, 0.0);
        for _ in 0..10_000 {
            let y = stochastic(-1.0 - 0.25 / 128.0);
            assert!(y == -1.0 || y == -1.0 - 1.0 / 128.0);
            low += u32::from(y == -1.0);
            sum += y;
        }
        assert!((7_200..7_800).contains(&low), "{low} of 10000 to the nearer one");
        assert!((sum / 10_000.0 + 1.0 + 0.25 / 128.0).abs() < 2e-4);
    }

    /// The probability that [`FACTOR`] speaks of, by the sum over a fine grid.
    #[test]
    fn the_factor_follows() {
        let beyond = |values: i32| {
            let step = 1e-3;
            let of = |z: f64| {
                let density = (-0.5 * z * z).exp() * 2.0 / (2.0 * std::f64::consts::PI).sqrt();
                // The largest of `values` numbers has `values` times the density of one where the others are below it.
                let below = |x: f64| Real::erf(x / std::f64::consts::SQRT_2).powi(values);
                let largest =
                    density * f64::from(values) * Real::erf(z / std::f64::consts::SQRT_2).powi(values - 1);
                largest * below(z / (FACTOR * WIDER)).powi(SAMPLES as i32) * step
            };
            (0..12_000).map(|i| of((f64::from(i) + 0.5) * step)).sum::<f64>()
        };
        let (one, two) = (beyond(1), beyond(2));
        assert!(one < 1.2e-5 && two < 2.8e-8, "{one:e}, {two:e}");
    }
}
