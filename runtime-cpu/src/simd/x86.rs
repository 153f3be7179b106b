//! The kernels in vector instructions of x86-64.
//!
//! This is one of the two files of the room with `unsafe`: calling a function that needs an instruction set is sound only
//! after that set was detected, and a [`Level`] of this file exists only where [`levels`] found it; vector loads and
//! stores go through pointers whose ranges [`super::panel_product`] asserted first.
#![allow(unsafe_code)]

use super::{COLUMNS, Dots, Level, Tile};
use crate::program::WeightType;
use std::arch::x86_64::*;

/// The levels that this processor has, the best last.
pub(super) fn levels() -> Vec<Level> {
    let mut levels = Vec::new();
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        levels.push(Level::Avx2);
        if is_x86_feature_detected!("avx512f") {
            levels.push(Level::Avx512);
            if is_x86_feature_detected!("avx512bf16") {
                levels.push(Level::Avx512Bf16);
            }
        }
    }
    levels
}

/// As [`super::panel_product`], which asserted the lengths.
pub(super) fn product(level: Level, tile: Tile, out: &mut [f32], pitch: usize, accumulate: bool) {
    let out = Out { first: out.as_mut_ptr(), pitch, accumulate };
    // SAFETY: the level was detected, and the lengths were asserted.
    unsafe {
        match (level, tile.dtype) {
            (Level::Avx2 | Level::Portable, _) => avx2(tile, out),
            (_, WeightType::F32) => avx512_f32(tile, out),
            (Level::Avx512, WeightType::Bf16) => avx512_widened(tile, out),
            (Level::Avx512Bf16, WeightType::Bf16) => avx512_pairs(tile, out),
        }
    }
}

/// As [`super::dot_products`], which asserted the lengths.
pub(super) fn dots(level: Level, dots: Dots, out: &mut [f32], pitch: usize) {
    let out = out.as_mut_ptr();
    // SAFETY: the level was detected, and the lengths were asserted.
    unsafe {
        match (level, dots.dtype) {
            (Level::Avx2 | Level::Portable, WeightType::F32) => avx2_f32_dots(dots, out, pitch),
            (Level::Avx2 | Level::Portable, WeightType::Bf16) => avx2_bf16_dots(dots, out, pitch),
            (_, WeightType::F32) => avx512_f32_dots(dots, out, pitch),
            (Level::Avx512, WeightType::Bf16) => avx512_widened_dots(dots, out, pitch),
            (Level::Avx512Bf16, WeightType::Bf16) => avx512_pairs_dots(dots, out, pitch),
        }
    }
}

/// As [`super::softmax_step`].
pub(super) fn softmax_step(level: Level, row: &mut [f32], max: &mut f32, sum: &mut f32) -> f32 {
    #[target_feature(enable = "avx2,fma")]
    fn avx2(row: &mut [f32], max: &mut f32, sum: &mut f32) -> f32 {
        super::softmax::body(row, max, sum)
    }
    #[target_feature(enable = "avx512f")]
    fn avx512(row: &mut [f32], max: &mut f32, sum: &mut f32) -> f32 {
        super::softmax::body(row, max, sum)
    }
    // SAFETY: the level was detected.
    unsafe {
        match level {
            Level::Portable | Level::Avx2 => avx2(row, max, sum),
            Level::Avx512 | Level::Avx512Bf16 => avx512(row, max, sum),
        }
    }
}

/// Where a product goes.
#[derive(Clone, Copy)]
struct Out {
    first: *mut f32,
    pitch: usize,
    accumulate: bool,
}

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

/// A kernel for any number of rows, and its dispatch: `step` adds one word of a row to its two sums.
macro_rules! avx512_kernel {
    ($name:ident, $kernel:ident, $features:literal, $load:ident, $row:ident, $step:ident) => {
        #[target_feature(enable = $features)]
        unsafe fn $name(tile: Tile, out: Out) {
            let (x, w) = (tile.x.as_ptr(), tile.w.as_ptr());
            by_rows!(tile.rows, $kernel(x, w, tile.steps, out), [1 2 3 4 5 6 7 8 9 10 11 12])
        }

        #[target_feature(enable = $features)]
        unsafe fn $kernel<const M: usize>(x: *const u32, w: *const u32, steps: usize, out: Out) {
            unsafe {
                let mut sum = [[_mm512_setzero_ps(); 2]; M];
                if out.accumulate {
                    for m in 0..M {
                        sum[m][0] = _mm512_loadu_ps(out.first.add(m * out.pitch));
                        sum[m][1] = _mm512_loadu_ps(out.first.add(m * out.pitch + 16));
                    }
                }
                for i in 0..steps {
                    let w = w.add(i * COLUMNS);
                    if M >= PREFETCH_ROWS {
                        let ahead = (w as *const i8).wrapping_add(AHEAD);
                        _mm_prefetch::<_MM_HINT_T0>(ahead);
                        _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64));
                    }
                    let (w0, w1) = ($load(w), $load(w.add(16)));
                    for m in 0..M {
                        let x = $row(*x.add(i * M + m));
                        sum[m][0] = $step(x, w0, sum[m][0]);
                        sum[m][1] = $step(x, w1, sum[m][1]);
                    }
                }
                for m in 0..M {
                    _mm512_storeu_ps(out.first.add(m * out.pitch), sum[m][0]);
                    _mm512_storeu_ps(out.first.add(m * out.pitch + 16), sum[m][1]);
                }
            }
        }
    };
}

avx512_kernel!(avx512_f32, avx512_f32_rows, "avx512f", load_f32, row_f32, step_f32);
avx512_kernel!(avx512_widened, avx512_widened_rows, "avx512f", load_wide, row_wide, step_wide);
avx512_kernel!(avx512_pairs, avx512_pairs_rows, "avx512f,avx512bf16", load_pairs, row_pairs, step_pairs);

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_f32(w: *const u32) -> __m512 {
    unsafe { _mm512_loadu_ps(w.cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn row_f32(x: u32) -> __m512 {
    _mm512_set1_ps(f32::from_bits(x))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn step_f32(x: __m512, w: __m512, sum: __m512) -> __m512 {
    _mm512_fmadd_ps(x, w, sum)
}

/// First and second values of pairs.
#[inline]
#[target_feature(enable = "avx512f")]
fn widened(pairs: __m512i) -> [__m512; 2] {
    let second = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
    [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(second)]
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_wide(w: *const u32) -> [__m512; 2] {
    widened(unsafe { _mm512_loadu_si512(w.cast()) })
}

#[inline]
#[target_feature(enable = "avx512f")]
fn row_wide(x: u32) -> [__m512; 2] {
    widened(_mm512_set1_epi32(x as i32))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn step_wide(x: [__m512; 2], w: [__m512; 2], sum: __m512) -> __m512 {
    _mm512_fmadd_ps(x[0], w[0], _mm512_fmadd_ps(x[1], w[1], sum))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn load_pairs(w: *const u32) -> __m512bh {
    // SAFETY: both are 64 bytes of any content.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(w.cast())) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn row_pairs(x: u32) -> __m512bh {
    // SAFETY: as above.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(x as i32)) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn step_pairs(x: __m512bh, w: __m512bh, sum: __m512) -> __m512 {
    _mm512_dpbf16_ps(sum, w, x)
}

/// Rows at once with f32: 6 rows of 16 columns are 12 of the 16 registers.
const AVX2_ROWS_F32: usize = 6;
/// Rows at once with pairs, which take 6 registers for operands and one for a mask.
const AVX2_ROWS_BF16: usize = 4;

#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(tile: Tile, out: Out) {
    let most = if tile.dtype == WeightType::F32 { AVX2_ROWS_F32 } else { AVX2_ROWS_BF16 };
    for first in (0..tile.rows).step_by(most) {
        let rows = most.min(tile.rows - first);
        for half in [0, 16] {
            let x = (tile.x.as_ptr().wrapping_add(first), tile.rows);
            let w = tile.w.as_ptr().wrapping_add(half);
            let out = Out { first: out.first.wrapping_add(first * out.pitch + half), ..out };
            match tile.dtype {
                WeightType::F32 => by_rows!(rows, avx2_f32(x, w, tile.steps, out), [1 2 3 4 5 6]),
                WeightType::Bf16 => by_rows!(rows, avx2_bf16(x, w, tile.steps, out), [1 2 3 4]),
            }
        }
    }
}

/// 16 columns of a panel.
macro_rules! avx2_kernel {
    ($kernel:ident, $load:ident, $row:ident, $step:ident) => {
        #[target_feature(enable = "avx2,fma")]
        unsafe fn $kernel<const M: usize>(
            (x, x_pitch): (*const u32, usize),
            w: *const u32,
            steps: usize,
            out: Out,
        ) {
            unsafe {
                let mut sum = [[_mm256_setzero_ps(); 2]; M];
                if out.accumulate {
                    for m in 0..M {
                        sum[m][0] = _mm256_loadu_ps(out.first.add(m * out.pitch));
                        sum[m][1] = _mm256_loadu_ps(out.first.add(m * out.pitch + 8));
                    }
                }
                for i in 0..steps {
                    let w = w.add(i * COLUMNS);
                    let (w0, w1) = ($load(w), $load(w.add(8)));
                    for m in 0..M {
                        let x = $row(*x.add(i * x_pitch + m));
                        sum[m][0] = $step(x, w0, sum[m][0]);
                        sum[m][1] = $step(x, w1, sum[m][1]);
                    }
                }
                for m in 0..M {
                    _mm256_storeu_ps(out.first.add(m * out.pitch), sum[m][0]);
                    _mm256_storeu_ps(out.first.add(m * out.pitch + 8), sum[m][1]);
                }
            }
        }
    };
}

avx2_kernel!(avx2_f32, load8_f32, row8_f32, step8_f32);
avx2_kernel!(avx2_bf16, load8_wide, row8_wide, step8_wide);

#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn load8_f32(w: *const u32) -> __m256 {
    unsafe { _mm256_loadu_ps(w.cast()) }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn row8_f32(x: u32) -> __m256 {
    _mm256_set1_ps(f32::from_bits(x))
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn step8_f32(x: __m256, w: __m256, sum: __m256) -> __m256 {
    _mm256_fmadd_ps(x, w, sum)
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn widened8(pairs: __m256i) -> [__m256; 2] {
    let second = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32));
    [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), _mm256_castsi256_ps(second)]
}

#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn load8_wide(w: *const u32) -> [__m256; 2] {
    widened8(unsafe { _mm256_loadu_si256(w.cast()) })
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn row8_wide(x: u32) -> [__m256; 2] {
    widened8(_mm256_set1_epi32(x as i32))
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn step8_wide(x: [__m256; 2], w: [__m256; 2], sum: __m256) -> __m256 {
    _mm256_fmadd_ps(x[0], w[0], _mm256_fmadd_ps(x[1], w[1], sum))
}

/// Sums along rows: a tile of `M` rows and `R` columns keeps a vector of sums for each of its results.
///
/// Prefetches the matrix into the second-level cache, line by line in memory's order. The loads of a tile walk along `R`
/// rows at once, which no prefetcher of the processor follows, so what is prefetched are the next `R` rows. One row of
/// `x` takes the rows of the matrix in turn, which is memory's order; it prefetches [`AHEAD`] bytes ahead, and a line of
/// every [`PAGE`] two pages ahead, so that small pages are translated before they are reached. Measured on one core of a Zen 4 with
/// bf16 rows of 768, 2048 and 5632 elements, GB/s without and with: one row on huge pages 25, 27, 30 and 26, 31, 28, on
/// small ones 16, 17, 17 and 18, 19, 18; 4 rows of `x` 13 to 16 and 17 to 21, 6 rows 12 and 16 to 20, 8 rows 9.5 and 15.
/// Short rows are over before their successors arrive, so [`BEHIND`] lies between: with it 4 rows of `x` read rows of
/// 768 elements at 20 instead of 17 GB/s, 6 at 24 instead of 17, 8 at 22 instead of 15; longer rows as before.
macro_rules! dots_kernel {
    ($name:ident, $columns:ident, $tile:ident, $features:literal, $lanes:literal, $zero:ident, $load:ident,
     $part:ident, $of:ident, $step:ident, $sums:ident, [$($m:literal: $r:literal)*], $most:literal) => {
        #[target_feature(enable = $features)]
        unsafe fn $name(dots: Dots, out: *mut f32, pitch: usize) {
            let tile = if dots.rows <= TILES[0] { dots.rows.min($most) } else { TILES[1].min($most) };
            for first in (0..dots.rows).step_by(tile) {
                let x = dots.x.as_ptr().wrapping_add(first * dots.x_pitch);
                let out = out.wrapping_add(first * pitch);
                match tile.min(dots.rows - first) {
                    $($m => unsafe { $columns::<$m, $r>(dots, first == 0, x, out, pitch) },)*
                    _ => {}
                }
            }
        }

        #[target_feature(enable = $features)]
        unsafe fn $columns<const M: usize, const R: usize>(
            dots: Dots,
            ahead: bool,
            x: *const u32,
            out: *mut f32,
            pitch: usize,
        ) {
            let (columns, steps) = (dots.columns(), dots.steps);
            let whole = columns / R * R;
            let at = |column: usize| (dots.w.as_ptr().wrapping_add(column * steps), out.wrapping_add(column));
            for column in (0..whole).step_by(R) {
                let (w, out) = at(column);
                unsafe { $tile::<M, R>(x, dots.x_pitch, w, steps, out, pitch, ahead) }
            }
            for column in whole..columns {
                let (w, out) = at(column);
                unsafe { $tile::<M, 1>(x, dots.x_pitch, w, steps, out, pitch, ahead) }
            }
        }

        #[target_feature(enable = $features)]
        unsafe fn $tile<const M: usize, const R: usize>(
            x: *const u32,
            x_pitch: usize,
            w: *const u32,
            steps: usize,
            out: *mut f32,
            pitch: usize,
            ahead: bool,
        ) {
            let mut sum = [[$zero(); R]; M];
            let whole = steps / $lanes * $lanes;
            let next = (w.wrapping_add(R * steps) as *const i8).wrapping_add(BEHIND);
            if M == 1 {
                for r in 0..R {
                    let w = w.wrapping_add(r * steps);
                    for page in (0..4 * steps).step_by(PAGE) {
                        _mm_prefetch::<_MM_HINT_T1>((w as *const i8).wrapping_add(2 * PAGE + page));
                    }
                    let mut add = |i: usize| {
                        let here = w.wrapping_add(i) as *const i8;
                        _mm_prefetch::<_MM_HINT_T1>(here.wrapping_add(AHEAD));
                        let (x, w) = unsafe { ($load(x.add(i).cast()), $load(w.add(i).cast())) };
                        sum[0][r] = $step($of(x), $of(w), sum[0][r]);
                    };
                    let unrolled = whole / (4 * $lanes) * (4 * $lanes);
                    for i in (0..unrolled).step_by(4 * $lanes) {
                        add(i);
                        add(i + $lanes);
                        add(i + 2 * $lanes);
                        add(i + 3 * $lanes);
                    }
                    (unrolled..whole).step_by($lanes).for_each(add);
                }
            } else {
                for i in (0..whole).step_by($lanes) {
                    if ahead {
                        for r in 0..R {
                            _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(4 * (R * i + r * $lanes)));
                        }
                    }
                    let mut words = [$of(unsafe { $load(w.add(i).cast()) }); R];
                    for r in 1..R {
                        words[r] = $of(unsafe { $load(w.add(r * steps + i).cast()) });
                    }
                    for m in 0..M {
                        let x = $of(unsafe { $load(x.add(m * x_pitch + i).cast()) });
                        for r in 0..R {
                            sum[m][r] = $step(x, words[r], sum[m][r]);
                        }
                    }
                }
            }
            if whole < steps {
                for m in 0..M {
                    let x = $of(unsafe { $part(x.add(m * x_pitch + whole), steps - whole) });
                    for r in 0..R {
                        let w = $of(unsafe { $part(w.add(r * steps + whole), steps - whole) });
                        sum[m][r] = $step(x, w, sum[m][r]);
                    }
                }
            }
            for m in 0..M {
                let mut four = [$zero(); 4];
                four[..R].copy_from_slice(&sum[m]);
                let mut sums = [0.0; 4];
                unsafe { _mm_storeu_ps(sums.as_mut_ptr(), $sums(four)) };
                for r in 0..R {
                    unsafe { *out.add(m * pitch + r) = sums[r] };
                }
            }
        }
    };
}

/// Bytes between the rows of a tile and what it prefetches, besides one row of `x`.
const BEHIND: usize = 4096;

/// Bytes of a small page.
const PAGE: usize = 4096;

/// Rows of one tile where they fit into one, and of each tile where they do not.
const TILES: [usize; 2] = [8, 6];

dots_kernel!(
    avx512_f32_dots, avx512_f32_columns, avx512_f32_tile, "avx512f", 16, _mm512_setzero_ps, _mm512_loadu_si512,
    part16, of_f32, step_f32, sums16, [1: 4 2: 4 3: 4 4: 4 5: 4 6: 4 7: 3 8: 3], 8
);
dots_kernel!(
    avx512_widened_dots, avx512_widened_columns, avx512_widened_tile, "avx512f", 16, _mm512_setzero_ps,
    _mm512_loadu_si512, part16, widened, step_wide, sums16, [1: 4 2: 2 3: 2 4: 2 5: 2 6: 2 7: 2 8: 2], 8
);
dots_kernel!(
    avx512_pairs_dots, avx512_pairs_columns, avx512_pairs_tile, "avx512f,avx512bf16", 16, _mm512_setzero_ps,
    _mm512_loadu_si512, part16, of_pairs, step_pairs, sums16, [1: 4 2: 4 3: 4 4: 4 5: 4 6: 4 7: 3 8: 3], 8
);
dots_kernel!(
    avx2_f32_dots, avx2_f32_columns, avx2_f32_tile, "avx2,fma", 8, _mm256_setzero_ps, _mm256_loadu_si256,
    part8, of8_f32, step8_f32, sums8, [1: 4 2: 3 3: 3 4: 3], 4
);
dots_kernel!(
    avx2_bf16_dots, avx2_bf16_columns, avx2_bf16_tile, "avx2,fma", 8, _mm256_setzero_ps, _mm256_loadu_si256,
    part8, widened8, step8_wide, sums8, [1: 4 2: 2 3: 2 4: 2], 4
);

#[inline]
#[target_feature(enable = "avx512f")]
fn of_f32(words: __m512i) -> __m512 {
    _mm512_castsi512_ps(words)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn of_pairs(words: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes of any content.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(words) }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn of8_f32(words: __m256i) -> __m256 {
    _mm256_castsi256_ps(words)
}

/// The first `count` words, zeros behind them.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn part16(from: *const u32, count: usize) -> __m512i {
    unsafe { _mm512_maskz_loadu_epi32((1u16 << count).wrapping_sub(1), from.cast()) }
}

/// The first `count` words, zeros behind them.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn part8(from: *const u32, count: usize) -> __m256i {
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), lanes);
    unsafe { _mm256_maskload_epi32(from.cast(), mask) }
}

/// The sums of four vectors' lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn sums16([a, b, c, d]: [__m512; 4]) -> __m128 {
    let pairs = |a, b| _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    let (ab, cd) = (_mm512_castps_pd(pairs(a, b)), _mm512_castps_pd(pairs(c, d)));
    let low = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
    let fours = _mm512_add_ps(low, _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
    let upper = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(fours)));
    let eights = _mm256_add_ps(_mm512_castps512_ps256(fours), upper);
    _mm_add_ps(_mm256_castps256_ps128(eights), _mm256_extractf128_ps::<1>(eights))
}

/// The sums of four vectors' lanes.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn sums8([a, b, c, d]: [__m256; 4]) -> __m128 {
    let fours = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_add_ps(_mm256_castps256_ps128(fours), _mm256_extractf128_ps::<1>(fours))
}
