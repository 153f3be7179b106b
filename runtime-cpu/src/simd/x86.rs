//! The kernels in vector instructions of x86-64.
//!
//! This is one of the two files of the room with `unsafe`: calling a function that needs an instruction set is sound only
//! after that set was detected, and a [`Level`] of this file exists only where [`levels`] found it; vector loads and
//! stores go through pointers whose ranges [`super::panel_product`] asserted first.
#![allow(unsafe_code)]

use super::{COLUMNS, Level, Tile};
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
