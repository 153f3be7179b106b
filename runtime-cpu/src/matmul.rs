//! Products with packed matrices: `x [rows, k]` times a matrix in panels.
//!
//! ```text
//! few rows    threads share the panels: every weight is read from memory once, by one thread
//! many rows   threads share the rows: each runs through all panels with rows that stay in its own cache
//! ```

use crate::pack::Matrix;
use crate::simd::{COLUMNS, Isa, TILE_ROWS, Tile, panel_product};
use rayon::prelude::*;

/// Up to here threads share the panels: 8 tiles of rows against one panel in the second-level cache.
pub const FEW_ROWS: usize = 8 * TILE_ROWS;

/// Inner indices that one pass over the panels covers: 32 columns of 512 f32 are 64 KiB, which a second-level
/// cache keeps while all rows of a block go over them.
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

/// Packs inner indices `from..to` of all rows into tiles of `[to - from][tile rows]`.
fn pack_tiles(x: RowsOf, from: usize, to: usize, into: &mut Vec<f32>) {
    into.clear();
    for first in (0..x.rows).step_by(TILE_ROWS) {
        let rows = TILE_ROWS.min(x.rows - first);
        let start = into.len();
        into.resize(start + rows * (to - from), 0.0);
        for row in 0..rows {
            let source = &x.data[(first + row) * x.pitch..][from..to];
            into[start + row..].iter_mut().step_by(rows).zip(source).for_each(|(o, x)| *o = *x);
        }
    }
}

/// The tiles that [`pack_tiles`] made: first row and contents.
fn tiles(packed: &[f32], rows: usize, k: usize) -> impl Iterator<Item = (usize, Tile<'_>)> {
    (0..rows).step_by(TILE_ROWS).map(move |first| {
        let count = TILE_ROWS.min(rows - first);
        (first, Tile { x: &packed[first * k..][..count * k], rows: count, k })
    })
}

/// Memory that a product needs besides its operands; kept between calls.
#[derive(Default)]
pub struct Scratch {
    tiles: Vec<f32>,
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
    let (k, width, rows) = (w.columns(), w.width(), x.rows);
    let Scratch { tiles: packed, panels } = scratch;
    pack_tiles(x, 0, k, packed);
    let direct = rows == 1;
    if !direct {
        panels.resize((rows * width).max(panels.len()), 0.0);
    }
    let by_panel = if direct { &mut out[..width] } else { &mut panels[..rows * width] };
    let share = (width / COLUMNS).div_ceil(jobs.max(1)).max(1);
    let work = |(part, out): (usize, &mut [f32])| {
        for (at, out) in out.chunks_mut(rows * COLUMNS).enumerate() {
            for (first, tile) in tiles(packed, rows, k) {
                panel_product(
                    isa,
                    tile,
                    w.panel(part * share + at, 0, k),
                    &mut out[first * COLUMNS..],
                    COLUMNS,
                    false,
                );
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
    let (k, width) = (w.columns(), w.width());
    for from in (0..k).step_by(DEPTH) {
        let to = k.min(from + DEPTH);
        pack_tiles(x, from, to, &mut scratch.tiles);
        for panel in 0..width / COLUMNS {
            let weights = w.panel(panel, from, to);
            for (first, tile) in tiles(&scratch.tiles, x.rows, to - from) {
                let out = &mut out[first * width + panel * COLUMNS..];
                panel_product(isa, tile, weights, out, width, from > 0);
            }
        }
    }
}
