//! The product that every processor can compute.

use super::{COLUMNS, Tile, of_pair};
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
