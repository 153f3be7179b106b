//! Products with packed matrices: `x [rows, k]` times a matrix in panels.
//!
//! ```text
//! few rows    threads share the panels: every weight is read from memory once, by one thread
//! many rows   threads share the rows: each runs through all panels with rows that stay in its own cache
//! ```

use crate::pack::Matrix;
use crate::program::WeightType;
use crate::simd::{COLUMNS, Isa, TILE_ROWS, Tile, pack, panel_product};
use rayon::prelude::*;

/// Up to here threads share the panels: 8 tiles of rows against one panel in the second-level cache.
pub const FEW_ROWS: usize = 8 * TILE_ROWS;

/// Words along the inner dimension that one pass over the panels covers: 32 columns of 512 words are 64 KiB, which a
/// second-level cache keeps while all rows of a block go over them.
const DEPTH: usize = 512;

/// Rows of a left operand with their distance in memory.
#[derive(Clone, Copy)]
pub struct RowsOf<'a> {
    /// The first row begins at 0.
    pub data: &'a [f32],
    /// Elements from one row to the next.
    pub pitch: usize,
    /// Number of rows.
    pub rows: usize,
}

/// Packs words `from..to` of all rows into tiles of `[to - from][tile rows]`.
fn pack_tiles(dtype: WeightType, x: RowsOf, k: usize, from: usize, to: usize, into: &mut Vec<u32>) {
    let elements = from * dtype.per_word()..k.min(to * dtype.per_word());
    into.resize((x.rows * (to - from)).max(into.len()), 0);
    for first in (0..x.rows).step_by(TILE_ROWS) {
        let rows = TILE_ROWS.min(x.rows - first);
        let tile = &mut into[first * (to - from)..][..rows * (to - from)];
        for row in 0..rows {
            let source = &x.data[(first + row) * x.pitch..][elements.clone()];
            pack(dtype, source, tile[row..].iter_mut().step_by(rows));
        }
    }
}

/// The tiles that [`pack_tiles`] made, over one panel: first row and contents.
fn tiles<'a>(
    dtype: WeightType,
    packed: &'a [u32],
    rows: usize,
    w: &'a [u32],
) -> impl Iterator<Item = (usize, Tile<'a>)> {
    let steps = w.len() / COLUMNS;
    (0..rows).step_by(TILE_ROWS).map(move |first| {
        let count = TILE_ROWS.min(rows - first);
        (first, Tile { dtype, x: &packed[first * steps..][..count * steps], w, rows: count, steps })
    })
}

/// Memory that a product needs besides its operands; kept between calls.
#[derive(Default)]
pub struct Scratch {
    tiles: Vec<u32>,
    panels: Vec<f32>,
}

/// `out [rows, width] = x wᵀ` with the panels shared by `jobs` threads of the current pool.
pub fn product_sharing_panels(
    isa: Isa,
    jobs: usize,
    x: RowsOf,
    w: Matrix,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let (dtype, steps, width, rows) = (w.dtype(), w.steps(), w.width(), x.rows);
    let Scratch { tiles: packed, panels } = scratch;
    pack_tiles(dtype, x, w.columns(), 0, steps, packed);
    let direct = rows == 1;
    if !direct {
        panels.resize((rows * width).max(panels.len()), 0.0);
    }
    let by_panel = if direct { &mut out[..width] } else { &mut panels[..rows * width] };
    let share = (width / COLUMNS).div_ceil(jobs.max(1)).max(1);
    let work = |(part, out): (usize, &mut [f32])| {
        for (at, out) in out.chunks_mut(rows * COLUMNS).enumerate() {
            for (first, tile) in tiles(dtype, packed, rows, w.panel(part * share + at, 0, steps)) {
                panel_product(isa, tile, &mut out[first * COLUMNS..], COLUMNS, false);
            }
        }
    };
    match jobs {
        0 | 1 => work((0, by_panel)),
        _ => by_panel.par_chunks_mut(share * rows * COLUMNS).enumerate().for_each(work),
    }
    if !direct {
        interleave(&panels[..rows * width], rows, width, out);
    }
}

/// `[panel][row][32]` to `[row][width]`.
fn interleave(panels: &[f32], rows: usize, width: usize, out: &mut [f32]) {
    for (panel, block) in panels.chunks(rows * COLUMNS).enumerate() {
        for (row, values) in block.chunks(COLUMNS).enumerate() {
            out[row * width + panel * COLUMNS..][..COLUMNS].copy_from_slice(values);
        }
    }
}

/// `out [rows, width] = x wᵀ` on one thread, for a block of rows.
pub fn product_of_block(isa: Isa, x: RowsOf, w: Matrix, scratch: &mut Scratch, out: &mut [f32]) {
    let (dtype, steps, width) = (w.dtype(), w.steps(), w.width());
    for from in (0..steps).step_by(DEPTH) {
        let to = steps.min(from + DEPTH);
        pack_tiles(dtype, x, w.columns(), from, to, &mut scratch.tiles);
        for panel in 0..width / COLUMNS {
            for (first, tile) in tiles(dtype, &scratch.tiles, x.rows, w.panel(panel, from, to)) {
                let out = &mut out[first * width + panel * COLUMNS..];
                panel_product(isa, tile, out, width, from > 0);
            }
        }
    }
}
