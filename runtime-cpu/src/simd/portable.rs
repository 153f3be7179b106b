//! The products that every processor can compute.

use super::{COLUMNS, Dots, Tile, of_pair};
use crate::program::WeightType;

/// As [`super::panel_product`].
pub(super) fn product(tile: Tile, out: &mut [f32], pitch: usize, accumulate: bool) {
    for row in 0..tile.rows {
        let out = &mut out[row * pitch..][..COLUMNS];
        if !accumulate {
            out.fill(0.0);
        }
        let x = tile.x[row..].iter().step_by(tile.rows);
        let steps = x.zip(tile.w.chunks_exact(COLUMNS)).take(tile.steps);
        match tile.dtype {
            WeightType::F32 => steps.for_each(|(x, w)| {
                let x = f32::from_bits(*x);
                out.iter_mut().zip(w).for_each(|(o, w)| *o += x * f32::from_bits(*w));
            }),
            WeightType::Bf16 => steps.for_each(|(x, w)| {
                let [first, second] = of_pair(*x);
                for (o, w) in out.iter_mut().zip(w) {
                    let [a, b] = of_pair(*w);
                    *o += second * b;
                    *o += first * a;
                }
            }),
        }
    }
}

/// Lanes of a sum along a row.
const LANES: usize = 16;

/// As [`super::dot_products`].
pub(super) fn dots(dots: Dots, out: &mut [f32], pitch: usize) {
    let rows = dots.x.chunks(dots.x_pitch).take(dots.rows);
    for (x, out) in rows.zip(out.chunks_mut(pitch)) {
        for (w, out) in dots.w.chunks_exact(dots.steps).zip(out) {
            *out = dot(dots.dtype, x, w);
        }
    }
}

fn dot(dtype: WeightType, x: &[u32], w: &[u32]) -> f32 {
    let mut sums = [0.0; LANES];
    for (x, w) in x.chunks(LANES).zip(w.chunks(LANES)) {
        for ((sum, x), w) in sums.iter_mut().zip(x).zip(w) {
            match dtype {
                WeightType::F32 => *sum += f32::from_bits(*x) * f32::from_bits(*w),
                WeightType::Bf16 => {
                    let ([first, second], [a, b]) = (of_pair(*x), of_pair(*w));
                    *sum += second * b;
                    *sum += first * a;
                }
            }
        }
    }
    sums.iter().sum()
}
