//! The inner loops that are written for the machine: AVX-512, AVX2 with FMA, and a portable form, chosen at run time.
//!
//! This is one of the two files with `unsafe`: calling a function that needs an instruction set is sound only after
//! that set was detected ([`Isa::detect`] is the only way to get one), and vector loads and stores go through pointers
//! whose ranges [`panel_product`] asserts first.
#![allow(unsafe_code)]

use crate::program::PANEL;

/// Columns of a panel.
pub const COLUMNS: usize = PANEL as usize;
/// Most rows of a tile: 12 rows of 32 columns are 24 AVX-512 registers, and 8 are left for operands.
pub const TILE_ROWS: usize = 12;

/// An instruction set that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// The best instruction set of this processor.
    pub fn detect() -> Isa {
        #[cfg(target_arch = "x86_64")]
        {
            let fma =
                std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma");
            if fma && std::arch::is_x86_feature_detected!("avx512f") {
                return Isa(Level::Avx512);
            }
            if fma {
                return Isa(Level::Avx2);
            }
        }
        Isa(Level::Portable)
    }

    /// Every instruction set that this processor has, the best last.
    pub fn all() -> Vec<Isa> {
        let mut all = vec![Isa(Level::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            let best = Isa::detect();
            if best != all[0] {
                all.push(Isa(Level::Avx2));
            }
            if best == Isa(Level::Avx512) {
                all.push(best);
            }
        }
        all
    }

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
        }
    }
}

/// 32 rows of a weight matrix, transposed: for each of `k` inner indices, 32 columns of the product.
#[derive(Clone, Copy, Debug)]
pub enum Panel<'a> {
    /// `[k][32]`.
    F32(&'a [f32]),
    /// `[k][16]`: the low half of a word is column `i`, the high half column `16 + i`, so that widening is one
    /// shift or one mask.
    Bf16(&'a [u32]),
}

/// `out[r][..32] (+)= sum over i of x[i][r] panel[i][..32]` for `rows` rows of a packed tile `x` of `[k][rows]`.
///
/// # Panics
/// When a slice is shorter than `k`, `rows` and `pitch` say, or `rows` is not 1 to 12.
pub fn panel_product(isa: Isa, tile: Tile, panel: Panel, out: &mut [f32], pitch: usize, accumulate: bool) {
    let Tile { x, rows, k } = tile;
    assert!((1..=TILE_ROWS).contains(&rows) && x.len() >= k * rows && pitch >= COLUMNS);
    assert!(out.len() >= (rows - 1) * pitch + COLUMNS);
    match panel {
        Panel::F32(w) => assert!(w.len() >= k * COLUMNS),
        Panel::Bf16(w) => assert!(w.len() >= k * COLUMNS / 2),
    }
    match isa.0 {
        Level::Portable => portable(tile, panel, out, pitch, accumulate),
        // SAFETY: an `Isa` of this level exists only where the features were detected, and the lengths were asserted.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { x86::avx2(tile, panel, out, pitch, accumulate) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { x86::avx512(tile, panel, out, pitch, accumulate) },
    }
}

/// Rows of a left operand, packed so that the kernel reads them in order.
#[derive(Clone, Copy, Debug)]
pub struct Tile<'a> {
    /// `[k][rows]`.
    pub x: &'a [f32],
    /// 1 to [`TILE_ROWS`].
    pub rows: usize,
    /// Inner dimension.
    pub k: usize,
}

fn portable(tile: Tile, panel: Panel, out: &mut [f32], pitch: usize, accumulate: bool) {
    for row in 0..tile.rows {
        let out = &mut out[row * pitch..][..COLUMNS];
        if !accumulate {
            out.fill(0.0);
        }
        for i in 0..tile.k {
            let x = tile.x[i * tile.rows + row];
            match panel {
                Panel::F32(w) => out.iter_mut().zip(&w[i * COLUMNS..]).for_each(|(o, w)| *o += x * w),
                Panel::Bf16(w) => {
                    let (low, high) = out.split_at_mut(COLUMNS / 2);
                    for ((lo, hi), w) in low.iter_mut().zip(high).zip(&w[i * COLUMNS / 2..]) {
                        *lo += x * f32::from_bits(w << 16);
                        *hi += x * f32::from_bits(w & 0xffff_0000);
                    }
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{COLUMNS, Panel, Tile};
    use std::arch::x86_64::*;

    /// From this many rows on weights are prefetched by software. Measured on one core of a Zen 4 with bf16 panels from
    /// memory: one row streams at 30 GB/s without and at 20 to 27 GB/s with any distance from 0.5 to 8 KiB; eight rows
    /// gain, from 87 to 103 GFLOP/s.
    const PREFETCH_ROWS: usize = 3;
    /// How far ahead of the loads that is, in bytes.
    const AHEAD: usize = 2048;

    /// The kernel of a tile's number of rows.
    macro_rules! by_rows {
        ($rows:expr, $kernel:ident $arguments:tt, [$($n:literal)*]) => {
            match $rows {
                $($n => unsafe { $kernel::<$n> $arguments },)*
                _ => {}
            }
        };
    }

    #[target_feature(enable = "avx512f")]
    pub unsafe fn avx512(tile: Tile, panel: Panel, out: &mut [f32], pitch: usize, accumulate: bool) {
        let (x, k, o) = (tile.x.as_ptr(), tile.k, out.as_mut_ptr());
        match panel {
            Panel::F32(w) => {
                by_rows!(tile.rows, avx512_f32(x, w.as_ptr(), k, o, pitch, accumulate), [1 2 3 4 5 6 7 8 9 10 11 12])
            }
            Panel::Bf16(w) => {
                by_rows!(tile.rows, avx512_bf16(x, w.as_ptr(), k, o, pitch, accumulate), [1 2 3 4 5 6 7 8 9 10 11 12])
            }
        }
    }

    macro_rules! avx512_kernel {
        ($name:ident, $element:ty, $per_row:expr, $w:ident => $widen:block) => {
            #[target_feature(enable = "avx512f")]
            unsafe fn $name<const M: usize>(
                x: *const f32,
                w: *const $element,
                k: usize,
                out: *mut f32,
                pitch: usize,
                accumulate: bool,
            ) {
                unsafe {
                    let mut sum = [[_mm512_setzero_ps(); 2]; M];
                    if accumulate {
                        for m in 0..M {
                            sum[m][0] = _mm512_loadu_ps(out.add(m * pitch));
                            sum[m][1] = _mm512_loadu_ps(out.add(m * pitch + 16));
                        }
                    }
                    for i in 0..k {
                        let $w = w.add(i * $per_row);
                        if M >= PREFETCH_ROWS {
                            let ahead = ($w as *const i8).wrapping_add(AHEAD);
                            _mm_prefetch::<_MM_HINT_T0>(ahead);
                            if $per_row * size_of::<$element>() > 64 {
                                _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64));
                            }
                        }
                        let (w0, w1) = $widen;
                        for m in 0..M {
                            let x = _mm512_set1_ps(*x.add(i * M + m));
                            sum[m][0] = _mm512_fmadd_ps(x, w0, sum[m][0]);
                            sum[m][1] = _mm512_fmadd_ps(x, w1, sum[m][1]);
                        }
                    }
                    for m in 0..M {
                        _mm512_storeu_ps(out.add(m * pitch), sum[m][0]);
                        _mm512_storeu_ps(out.add(m * pitch + 16), sum[m][1]);
                    }
                }
            }
        };
    }

    avx512_kernel!(avx512_f32, f32, COLUMNS, w => { (_mm512_loadu_ps(w), _mm512_loadu_ps(w.add(16))) });
    avx512_kernel!(avx512_bf16, u32, COLUMNS / 2, w => {
        let pair = _mm512_loadu_si512(w.cast());
        let high = _mm512_and_si512(pair, _mm512_set1_epi32(0xffff_0000_u32 as i32));
        (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pair)), _mm512_castsi512_ps(high))
    });

    /// Six rows of half a panel are 12 of the 16 registers.
    const AVX2_ROWS: usize = 6;

    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn avx2(tile: Tile, panel: Panel, out: &mut [f32], pitch: usize, accumulate: bool) {
        for first in (0..tile.rows).step_by(AVX2_ROWS) {
            let rows = AVX2_ROWS.min(tile.rows - first);
            for half in [0, 8] {
                let x = (tile.x.as_ptr().wrapping_add(first), tile.rows);
                let o = (out.as_mut_ptr().wrapping_add(first * pitch + half), pitch, accumulate);
                match panel {
                    Panel::F32(w) => {
                        by_rows!(rows, avx2_f32(x, w.as_ptr().add(half), tile.k, o), [1 2 3 4 5 6])
                    }
                    Panel::Bf16(w) => {
                        by_rows!(rows, avx2_bf16(x, w.as_ptr().add(half), tile.k, o), [1 2 3 4 5 6])
                    }
                }
            }
        }
    }

    /// Columns `half..half + 8` and `half + 16..half + 24` of a panel.
    macro_rules! avx2_kernel {
        ($name:ident, $element:ty, $per_row:expr, $w:ident => $widen:block) => {
            #[target_feature(enable = "avx2,fma")]
            unsafe fn $name<const M: usize>(
                (x, x_pitch): (*const f32, usize),
                w: *const $element,
                k: usize,
                (out, pitch, accumulate): (*mut f32, usize, bool),
            ) {
                unsafe {
                    let mut sum = [[_mm256_setzero_ps(); 2]; M];
                    if accumulate {
                        for m in 0..M {
                            sum[m][0] = _mm256_loadu_ps(out.add(m * pitch));
                            sum[m][1] = _mm256_loadu_ps(out.add(m * pitch + 16));
                        }
                    }
                    for i in 0..k {
                        let $w = w.add(i * $per_row);
                        let (w0, w1) = $widen;
                        for m in 0..M {
                            let x = _mm256_set1_ps(*x.add(i * x_pitch + m));
                            sum[m][0] = _mm256_fmadd_ps(x, w0, sum[m][0]);
                            sum[m][1] = _mm256_fmadd_ps(x, w1, sum[m][1]);
                        }
                    }
                    for m in 0..M {
                        _mm256_storeu_ps(out.add(m * pitch), sum[m][0]);
                        _mm256_storeu_ps(out.add(m * pitch + 16), sum[m][1]);
                    }
                }
            }
        };
    }

    avx2_kernel!(avx2_f32, f32, COLUMNS, w => { (_mm256_loadu_ps(w), _mm256_loadu_ps(w.add(16))) });
    avx2_kernel!(avx2_bf16, u32, COLUMNS / 2, w => {
        let pair = _mm256_loadu_si256(w.cast());
        let high = _mm256_and_si256(pair, _mm256_set1_epi32(0xffff_0000_u32 as i32));
        (_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pair)), _mm256_castsi256_ps(high))
    });
}

/// One step of a streaming softmax over a row of scores: `row` becomes `exp(row - max)`.
///
/// `max` and `sum` describe the keys seen before and are brought up to date; the result is the factor by which what was
/// summed before has to be multiplied.
pub fn softmax_step(isa: Isa, row: &mut [f32], max: &mut f32, sum: &mut f32) -> f32 {
    match isa.0 {
        Level::Portable => softmax_step_body(row, max, sum),
        // SAFETY: an `Isa` of this level exists only where the features were detected.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { softmax_step_avx2(row, max, sum) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { softmax_step_avx512(row, max, sum) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn softmax_step_avx2(row: &mut [f32], max: &mut f32, sum: &mut f32) -> f32 {
    softmax_step_body(row, max, sum)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn softmax_step_avx512(row: &mut [f32], max: &mut f32, sum: &mut f32) -> f32 {
    softmax_step_body(row, max, sum)
}

/// Lanes of the sums and maxima, so that they vectorise.
const LANES: usize = 16;

#[inline(always)]
fn softmax_step_body(row: &mut [f32], max: &mut f32, sum: &mut f32) -> f32 {
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
    fn every_instruction_set_computes_the_same_product() {
        let k = 37;
        let w = numbers(k * COLUMNS, 1);
        let words: Vec<u32> =
            w.as_chunks::<2>().0.iter().map(|[a, b]| a.to_bits() >> 16 | b.to_bits() & 0xffff_0000).collect();
        for rows in 1..=TILE_ROWS {
            let x = numbers(k * rows, rows as u64);
            for panel in [Panel::F32(&w), Panel::Bf16(&words)] {
                let mut expected = numbers(rows * 40, 3);
                portable(Tile { x: &x, rows, k }, panel, &mut expected, 40, true);
                for isa in Isa::all() {
                    let mut found = numbers(rows * 40, 3);
                    panel_product(isa, Tile { x: &x, rows, k }, panel, &mut found, 40, true);
                    let worst = expected.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(worst < 1e-5, "{} with {rows} rows: {worst}", isa.name());
                }
            }
        }
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
