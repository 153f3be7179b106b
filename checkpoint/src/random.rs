//! Random weights in a published form: every element a function of seed, parameter and place.
//!
//! So elements can be made in any order, on any number of threads and in pieces of any size, and a file is the same
//! bytes each time. A value is `mean + std * z`, z from a normal distribution cut off at two deviations: a uniform
//! number from a hash of the place, through the inverse of the normal distribution.

use crate::element::Element;
use crate::fault::{Fault, FaultKind, Faults};
use crate::write::Planned;
use half::{bf16, f16};
use lapidary_models::mup::{ParamRule, parameter_table};
use lapidary_models::weights::{self, Source};
use lapidary_models::{DType, ModelSpec};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// The tensors of a random checkpoint.
#[derive(Clone, Debug)]
pub struct Random {
    dtype: DType,
    tensors: Vec<(Planned, Vec<Part>)>,
}

/// A parameter inside a published tensor.
#[derive(Clone, Debug)]
struct Part {
    source: Source,
    key: u64,
    mean: f64,
    std: f64,
}

/// Elements that one task makes.
const PIECE: usize = 1 << 14;

impl Random {
    /// Plans a checkpoint of `spec` with the initial values of its muP table (0.02 without muP, norms 1, biases 0).
    ///
    /// # Errors
    /// When the model has no published form, or `dtype` is none of f32, bf16 and f16.
    pub fn new(spec: &ModelSpec, dtype: DType, seed: u64) -> Result<Random, Faults> {
        let fault = |message: String| Faults::from(Fault::new(FaultKind::Model, &spec.name, message));
        if dtype == DType::I32 {
            return Err(fault("weights are stored as f32, bf16 or f16".into()));
        }
        let sources = weights::sources(spec).map_err(|error| fault(error.to_string()))?;
        let rules = parameter_table(spec);
        let mut tensors: BTreeMap<Place, (Planned, Vec<Part>)> = BTreeMap::new();
        let mut places: BTreeMap<String, Place> = BTreeMap::new();
        for (at, source) in sources.into_iter().enumerate() {
            let place = *places.entry(source.published.clone()).or_insert((block(&source.canonical), at));
            let tensor = tensors.entry(place).or_insert_with(|| (planned(&source, dtype), Vec::new()));
            tensor.1.push(part(&rules, source, seed));
        }
        Ok(Random { dtype, tensors: tensors.into_values().collect() })
    }

    /// The tensors: what stands before the layers, layer by layer, what stands after.
    pub fn planned_tensors(&self) -> Vec<Planned> {
        self.tensors.iter().map(|(planned, _)| planned.clone()).collect()
    }

    /// Fills `bytes` with the elements of a tensor from `start` on, on the threads of rayon's current pool.
    ///
    /// # Panics
    /// When there is no tensor of that number.
    pub fn fill(&self, tensor: usize, start: u64, bytes: &mut [u8]) {
        let parts = &self.tensors[tensor].1;
        let size = self.dtype.bytes() as usize;
        bytes.par_chunks_mut(PIECE * size).enumerate().for_each(|(piece, bytes)| {
            let start = start + (piece * PIECE) as u64;
            for (i, element) in bytes.chunks_exact_mut(size).enumerate() {
                write(self.dtype, value(parts, start + i as u64), element);
            }
        });
    }
}

/// Where a tensor stands in the checkpoint: its block of the model, then the model's order of parameters.
type Place = (u64, usize);

/// 0 before the layers, 1 + the layer, and the end.
fn block(canonical: &str) -> u64 {
    match canonical.strip_prefix("layers.").and_then(|rest| rest.split('.').next()?.parse::<u64>().ok()) {
        Some(layer) => layer.saturating_add(1),
        None if canonical.starts_with("embed") || canonical.starts_with("position") => 0,
        None => u64::MAX,
    }
}

fn planned(source: &Source, dtype: DType) -> Planned {
    let (name, shape) = (source.published.clone(), source.published_shape.clone());
    Planned { name, element: Element::from(dtype), shape }
}

fn part(rules: &[ParamRule], source: Source, seed: u64) -> Part {
    let rule = rules.iter().find(|rule| weights::matches_wildcard(&rule.name, &source.canonical));
    let (mean, std) = rule.map_or((0.0, 0.0), |rule| (rule.init_mean, rule.init_std));
    let key = source.canonical.bytes().fold(mix(seed), |key, byte| mix(key ^ u64::from(byte)));
    Part { source, key, mean, std }
}

/// The element at a place of a published tensor.
fn value(parts: &[Part], at: u64) -> f64 {
    let place =
        |part: &Part| part.source.canonical_index(at).map(|index| (part.key, index, part.mean, part.std));
    match parts.iter().find_map(place) {
        Some((_, _, mean, 0.0)) => mean,
        Some((key, index, mean, std)) => mean + std * truncated_normal(key.wrapping_add(index)),
        None => 0.0,
    }
}

fn write(dtype: DType, value: f64, element: &mut [u8]) {
    match dtype {
        DType::Bf16 => element.copy_from_slice(&bf16::from_f64(value).to_le_bytes()),
        DType::F16 => element.copy_from_slice(&f16::from_f64(value).to_le_bytes()),
        DType::F32 | DType::I32 => element.copy_from_slice(&(value as f32).to_le_bytes()),
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014), applied to the next state.
fn mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Φ(-2): the share of a normal distribution below minus two deviations.
const TAIL: f64 = 0.022_750_131_948_179_21;

/// A normal number cut off at two deviations, for a place.
fn truncated_normal(place: u64) -> f64 {
    let uniform = ((mix(place) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    inverse_normal(TAIL + uniform * (1.0 - 2.0 * TAIL))
}

/// The inverse of the standard normal distribution, for `TAIL <= p <= 1 - TAIL`: Wichura's algorithm AS 241
/// (Applied Statistics 37, 1988), PPND16, whose relative error is about 1e-16.
fn inverse_normal(p: f64) -> f64 {
    let q = p - 0.5;
    if q.abs() <= 0.425 {
        return q * rational(0.180_625 - q * q, &CENTRE);
    }
    let r = libm::sqrt(-libm::log(if q < 0.0 { p } else { 1.0 - p }));
    rational(r - 1.6, &FLANK).copysign(q)
}

/// Coefficients of numerator and denominator, the constant first.
type Rational = [[f64; 8]; 2];

fn rational(x: f64, coefficients: &Rational) -> f64 {
    let [above, below] = coefficients.map(|c| c.iter().rev().fold(0.0, |sum, c| sum * x + c));
    above / below
}

const CENTRE: Rational = [
    [
        3.387_132_872_796_366_5,
        1.331_416_678_917_843_8e2,
        1.971_590_950_306_551_3e3,
        1.373_169_376_550_946e4,
        4.592_195_393_154_987e4,
        6.726_577_092_700_87e4,
        3.343_057_558_358_813e4,
        2.509_080_928_730_122_7e3,
    ],
    [
        1.0,
        4.231_333_070_160_091e1,
        6.871_870_074_920_579e2,
        5.394_196_021_424_751e3,
        2.121_379_430_158_659_7e4,
        3.930_789_580_009_271e4,
        2.872_908_573_572_194_3e4,
        5.226_495_278_852_545e3,
    ],
];

const FLANK: Rational = [
    [
        1.423_437_110_749_683_5,
        4.630_337_846_156_546,
        5.769_497_221_460_691,
        3.647_848_324_763_204_5,
        1.270_458_252_452_368_4,
        2.417_807_251_774_506e-1,
        2.272_384_498_926_918_4e-2,
        7.745_450_142_783_414e-4,
    ],
    [
        1.0,
        2.053_191_626_637_759,
        1.676_384_830_183_803_8,
        6.897_673_349_851e-1,
        1.481_039_764_274_800_8e-1,
        1.519_866_656_361_645_7e-2,
        5.475_938_084_995_345e-4,
        1.050_750_071_644_416_9e-9,
    ],
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Quantiles of tables: Φ(1) = 0.841344746068543, Φ(1.96) = 0.975002104851780.
    #[test]
    fn the_inverse_agrees_with_tables() {
        for (p, z) in [(0.5, 0.0), (0.841_344_746_068_543, 1.0), (0.975_002_104_851_78, 1.96), (TAIL, -2.0)] {
            assert!((inverse_normal(p) - z).abs() < 1e-12, "{p}: {}", inverse_normal(p));
        }
    }

    /// A normal distribution cut at 2 has the deviation 0.8796 (1 - 4 φ(2) / (1 - 2 Φ(-2)) under the root).
    #[test]
    fn the_numbers_have_the_moments_of_a_cut_normal() {
        let n = 200_000;
        let numbers: Vec<f64> = (0..n).map(|i| truncated_normal(mix(7).wrapping_add(i))).collect();
        let mean = numbers.iter().sum::<f64>() / n as f64;
        let square = numbers.iter().map(|z| z * z).sum::<f64>() / n as f64;
        assert!(numbers.iter().all(|z| z.abs() <= 2.0));
        assert!(mean.abs() < 0.01, "{mean}");
        assert!((square.sqrt() - 0.8796).abs() < 0.005, "{}", square.sqrt());
    }
}
