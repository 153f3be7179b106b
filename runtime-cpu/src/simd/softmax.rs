//! Softmax over keys that pass by in blocks, compiled once for every width of vectors.

use super::{Isa, Level};

/// One step of a streaming softmax over a row of scores: `row` becomes `exp(row - max)`.
///
/// `max` and `sum` describe the keys seen before and are brought up to date; the result is the factor by which what was
/// summed before has to be multiplied.
pub fn softmax_step(isa: Isa, row: &mut [f32], max: &mut f32, sum: &mut f32) -> f32 {
    match isa.0 {
        Level::Portable => body(row, max, sum),
        #[cfg(target_arch = "x86_64")]
        level => super::x86::softmax_step(level, row, max, sum),
    }
}

/// Lanes of the sums and maxima, so that they vectorise.
const LANES: usize = 16;

#[inline(always)]
pub(super) fn body(row: &mut [f32], max: &mut f32, sum: &mut f32) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(m, x)| *m = if *x > *m { *x } else { *m });
    }
    let new_max = lanes.iter().chain(rest).fold(*max, |m, x| if *x > m { *x } else { m });
    if new_max == f32::NEG_INFINITY {
        row.fill(0.0);
        return 1.0;
    }
    let mut sums = [0.0; LANES];
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for (s, x) in sums.iter_mut().zip(chunk) {
            *x = exp(*x - new_max);
            *s += *x;
        }
    }
    for (s, x) in sums.iter_mut().zip(rest) {
        *x = exp(*x - new_max);
        *s += *x;
    }
    let factor = exp(*max - new_max);
    *sum = *sum * factor + sums.iter().sum::<f32>();
    *max = new_max;
    factor
}

/// `e^x` with a relative error below 2e-7; 0 below -87, infinity is not reached above 88.
///
/// The range is reduced to ±ln 2 / 2 in two steps, with the polynomial of the Cephes library's `expf` on the rest.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// 1.5 · 2^23: adding it rounds to an integer that stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4_f32;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    let exponent = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32).wrapping_add(127);
    let power = f32::from_bits((exponent as u32) << 23);
    if x < -87.0 { 0.0 } else { p * power }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let next = |state: &mut u64| {
            *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (*state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next(&mut state)).collect()
    }

    #[test]
    fn exp_is_accurate() {
        for i in -8600..8700 {
            let x = i as f32 * 0.01;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 2e-7, "exp({x})");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn streaming_softmax_is_softmax() {
        let scores: Vec<f32> = numbers(75, 9).iter().map(|x| x * 20.0).collect();
        let top = scores.iter().copied().fold(f32::MIN, f32::max);
        let total: f32 = scores.iter().map(|x| (x - top).exp()).sum();
        for isa in Isa::all() {
            let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0);
            let (mut seen, mut weighted) = (0.0, 0.0);
            for block in scores.chunks(32) {
                let mut row = block.to_vec();
                let factor = softmax_step(isa, &mut row, &mut max, &mut sum);
                weighted = weighted * factor + row.iter().sum::<f32>();
                seen += block.len() as f32;
            }
            assert_eq!((max, seen), (top, 75.0));
            assert!((sum / total - 1.0).abs() < 1e-5 && (weighted - sum).abs() < 1e-4);
        }
    }
}
