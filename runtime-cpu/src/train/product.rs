//! Products of a training step: any two strided operands through the panel kernels, since weights change every step and
//! gradients need them transposed.
//!
//! ```text
//! forward   y  [rows, N] = x wᵀ           a = x                b = w by columns of wᵀ
//! input     dx [rows, K] = dy w           a = dy               b = w
//! weight    dw [N, K]   += dyᵀ x          a = dy transposed    b = x
//! ```
//! The right operand is packed into panels of 32 columns once, shared by all threads; each thread packs its rows of the
//! left operand. Packing costs one read and one write for every 24 or more multiply-adds.

use crate::program::WeightType;
use crate::simd::{COLUMNS, Isa, TILE_ROWS, Tile, panel_product};
use rayon::prelude::*;

/// Inner indices of one pass over the panels: as in [`crate::matmul`].
const DEPTH: usize = 512;
/// Rows that one thread takes at once, 10 tiles.
const BLOCK_ROWS: usize = 10 * TILE_ROWS;
/// Multiply-adds below which threads would take longer to wake up than to compute.
const SHARE_FROM: usize = 1 << 17;

/// A matrix somewhere in memory: element `(outer, inner)` lies at `outer * outer_step + inner * inner_step`.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    /// The first element is element (0, 0).
    pub data: &'a [f32],
    /// Rows of a left operand, columns of a right one.
    pub outer: usize,
    /// Elements from one row (or column) to the next.
    pub outer_step: usize,
    /// Elements from one summand to the next.
    pub inner_step: usize,
}

impl<'a> Operand<'a> {
    /// Rows `pitch` apart; sums run along the rows.
    pub fn rows(data: &'a [f32], rows: usize, pitch: usize) -> Operand<'a> {
        Operand { data, outer: rows, outer_step: pitch, inner_step: 1 }
    }

    /// The transpose of rows `pitch` apart: `columns` columns; sums run down the rows.
    pub fn columns(data: &'a [f32], columns: usize, pitch: usize) -> Operand<'a> {
        Operand { data, outer: columns, outer_step: 1, inner_step: pitch }
    }

    fn at(&self, outer: usize, inner: usize) -> f32 {
        self.data[outer * self.outer_step + inner * self.inner_step]
    }
}

/// Where a product goes: `out[row * pitch + column]`.
pub struct Target<'a> {
    /// The first element of the first row.
    pub data: &'a mut [f32],
    /// Elements from one row to the next; at least the number of columns.
    pub pitch: usize,
    /// Whether the product is added to what is there.
    pub accumulate: bool,
}

/// Memory for packed operands, kept between calls.
#[derive(Default)]
pub struct Packing {
    panels: Vec<f32>,
}

/// `out (+)= a bᵀ` over `inner` summands: `out[r][c] = Σ a(r, i) b(c, i)`.
///
/// # Panics
/// When an operand or the target is shorter than its rows and `inner` say.
pub fn product(isa: Isa, a: Operand, b: Operand, inner: usize, out: Target, packing: &mut Packing) {
    if a.outer == 0 || b.outer == 0 {
        return;
    }
    assert!(out.pitch >= b.outer && out.data.len() >= (a.outer - 1) * out.pitch + b.outer);
    let parallel = a.outer * b.outer * inner >= SHARE_FROM;
    pack_panels(b, inner, &mut packing.panels, parallel);
    let panels = &packing.panels;
    let (columns, accumulate, pitch) = (b.outer, out.accumulate, out.pitch);
    let work = |tiles: &mut Vec<f32>, (block, rows): (usize, &mut [f32])| {
        let first = block * BLOCK_ROWS;
        let count = BLOCK_ROWS.min(a.outer - first);
        let job = Block { isa, a, first, count, inner, panels, columns, pitch, accumulate };
        job.run(rows, tiles);
    };
    let size = BLOCK_ROWS * pitch;
    let used = &mut out.data[..(a.outer - 1) * pitch + columns];
    match parallel {
        true => used.par_chunks_mut(size).enumerate().for_each_init(Vec::new, work),
        false => used.chunks_mut(size).enumerate().for_each(|block| work(&mut Vec::new(), block)),
    }
}

/// `[panel][inner][32]`, the last panel filled up with zeros.
fn pack_panels(b: Operand, inner: usize, into: &mut Vec<f32>, parallel: bool) {
    let panels = b.outer.div_ceil(COLUMNS);
    into.clear();
    into.resize(panels * inner * COLUMNS, 0.0);
    let fill = |(panel, into): (usize, &mut [f32])| {
        let first = panel * COLUMNS;
        let columns = COLUMNS.min(b.outer - first);
        for (i, row) in into.chunks_exact_mut(COLUMNS).enumerate() {
            for (column, x) in row[..columns].iter_mut().enumerate() {
                *x = b.at(first + column, i);
            }
        }
    };
    let size = (inner * COLUMNS).max(1);
    match parallel {
        true => into.par_chunks_mut(size).enumerate().for_each(fill),
        false => into.chunks_mut(size).enumerate().for_each(fill),
    }
}

/// Rows of the product that one thread computes.
struct Block<'a> {
    isa: Isa,
    a: Operand<'a>,
    first: usize,
    count: usize,
    inner: usize,
    panels: &'a [f32],
    columns: usize,
    pitch: usize,
    accumulate: bool,
}

impl Block<'_> {
    fn run(&self, out: &mut [f32], tiles: &mut Vec<f32>) {
        if self.inner == 0 && !self.accumulate {
            out.iter_mut().for_each(|x| *x = 0.0);
        }
        for from in (0..self.inner).step_by(DEPTH) {
            let depth = DEPTH.min(self.inner - from);
            self.pack_tiles(from, depth, tiles);
            for panel in 0..self.columns.div_ceil(COLUMNS) {
                let start = (panel * self.inner + from) * COLUMNS;
                let w = bytemuck::cast_slice(&self.panels[start..][..depth * COLUMNS]);
                for row in (0..self.count).step_by(TILE_ROWS) {
                    let rows = TILE_ROWS.min(self.count - row);
                    let x = bytemuck::cast_slice(&tiles[row * depth..][..rows * depth]);
                    let tile = Tile { dtype: WeightType::F32, x, w, rows, steps: depth };
                    self.tile(tile, panel, row, out, self.accumulate || from > 0);
                }
            }
        }
    }

    /// Tiles of `[depth][rows]`.
    fn pack_tiles(&self, from: usize, depth: usize, into: &mut Vec<f32>) {
        into.clear();
        into.resize(self.count * depth, 0.0);
        for first in (0..self.count).step_by(TILE_ROWS) {
            let rows = TILE_ROWS.min(self.count - first);
            let tile = &mut into[first * depth..][..rows * depth];
            for (i, row) in tile.chunks_exact_mut(rows).enumerate() {
                for (r, x) in row.iter_mut().enumerate() {
                    *x = self.a.at(self.first + first + r, from + i);
                }
            }
        }
    }

    /// A tile times a panel; the last panel may be wider than what is left of a row.
    fn tile(&self, tile: Tile, at: usize, row: usize, out: &mut [f32], accumulate: bool) {
        let column = at * COLUMNS;
        let width = COLUMNS.min(self.columns - column);
        let out = &mut out[row * self.pitch + column..];
        if width == COLUMNS {
            return panel_product(self.isa, tile, out, self.pitch, accumulate);
        }
        let mut whole = [0.0; TILE_ROWS * COLUMNS];
        panel_product(self.isa, tile, &mut whole, COLUMNS, false);
        for (values, out) in whole.chunks(COLUMNS).zip(out.chunks_mut(self.pitch)).take(tile.rows) {
            for (x, y) in out[..width].iter_mut().zip(values) {
                *x = if accumulate { *x + y } else { *y };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    /// All three forms, sizes around the borders of tiles, panels and passes.
    #[test]
    fn products_are_sums_of_products() {
        for (m, n, k) in [(1, 1, 1), (13, 33, 5), (12, 32, 512), (121, 70, 513), (5, 31, 40), (130, 64, 3)] {
            let (x, w) = (numbers(m * k, 1), numbers(n * k, 2));
            let transposed: Vec<f32> = (0..k * m).map(|i| x[i % m * k + i / m]).collect();
            let forms = [Operand::rows(&x, m, k), Operand::columns(&transposed, m, m)];
            for (a, accumulate) in forms.into_iter().zip([false, true]) {
                let pitch = n + 3;
                let mut out = numbers(m * pitch, 3);
                let before = out.clone();
                let b = Operand::rows(&w, n, k);
                let target = Target { data: &mut out, pitch, accumulate };
                product(Isa::detect(), a, b, k, target, &mut Packing::default());
                for (i, found) in out.iter().enumerate() {
                    let (row, column) = (i / pitch, i % pitch);
                    let sum = |c: usize| (0..k).map(|i| x[row * k + i] * w[c * k + i]).sum::<f32>();
                    let wanted = match column < n {
                        true => sum(column) + if accumulate { before[i] } else { 0.0 },
                        false => before[i],
                    };
                    assert!((found - wanted).abs() < 1e-3, "{m} x {n} x {k} at {row}, {column}");
                }
            }
        }
    }
}
