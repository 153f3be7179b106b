//! Products with matrices as they lie in memory: `x [rows, k]` times the rows of a matrix `[width, k]`.
//!
//! ```text
//! few rows    threads share the matrix: every weight is read from memory once, by one thread
//! many rows   threads share the rows: each runs through the matrix with rows that stay in its own cache
//! ```

use crate::program::WeightType;
use crate::simd::{COLUMNS, Dots, Isa, dot_products, pack};
use crate::store::Matrix;
use rayon::prelude::*;

/// Up to here threads share the matrix.
pub const FEW_ROWS: usize = 96;

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

/// Words of a cache line, at which rows of words begin.
const LINE: usize = 16;

/// Memory that a product needs besides its operands; kept between calls.
#[derive(Default)]
pub struct Scratch {
    words: Vec<u32>,
    panels: Vec<f32>,
}

/// Rows as words of the matrix's type, `pitch` words apart.
struct Words<'a> {
    words: &'a [u32],
    pitch: usize,
    rows: usize,
}

impl Words<'_> {
    fn new<'a>(dtype: WeightType, x: RowsOf, k: usize, into: &'a mut Vec<u32>) -> Words<'a> {
        let pitch = dtype.words(k).next_multiple_of(LINE).max(LINE);
        into.resize((x.rows * pitch + LINE).max(into.len()), 0);
        let start = into.as_ptr().align_offset(4 * LINE).min(LINE);
        let words = &mut into[start..][..x.rows * pitch];
        for (row, into) in words.chunks_mut(pitch).enumerate() {
            pack(dtype, &x.data[row * x.pitch..][..k], into.iter_mut());
        }
        Words { words, pitch, rows: x.rows }
    }

    /// Times one panel of a matrix. Columns behind the panel's rows become zero.
    fn times(&self, isa: Isa, w: Matrix, panel: usize, out: &mut [f32], pitch: usize) {
        let rows = w.panel(panel);
        let (dtype, steps) = (w.dtype(), w.steps());
        let dots = Dots { dtype, x: self.words, x_pitch: self.pitch, rows: self.rows, w: rows, steps };
        let columns = dots.columns();
        if columns < COLUMNS {
            out.chunks_mut(pitch).take(self.rows).for_each(|row| row[columns..COLUMNS].fill(0.0));
        }
        dot_products(isa, dots, out, pitch);
    }
}

/// `out [rows, width] = x wᵀ` with the matrix shared by `jobs` threads of the current pool.
pub fn product_sharing_panels(
    isa: Isa,
    jobs: usize,
    x: RowsOf,
    w: Matrix,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let (width, rows) = (w.width(), x.rows);
    let Scratch { words, panels } = scratch;
    let x = Words::new(w.dtype(), x, w.columns(), words);
    let direct = rows == 1;
    if !direct {
        panels.resize((rows * width).max(panels.len()), 0.0);
    }
    let by_panel = if direct { &mut out[..width] } else { &mut panels[..rows * width] };
    let share = (width / COLUMNS).div_ceil(jobs.max(1)).max(1);
    let work = |(part, out): (usize, &mut [f32])| {
        for (at, out) in out.chunks_mut(rows * COLUMNS).enumerate() {
            x.times(isa, w, part * share + at, out, COLUMNS);
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
    let width = w.width();
    let x = Words::new(w.dtype(), x, w.columns(), &mut scratch.words);
    for panel in 0..width / COLUMNS {
        x.times(isa, w, panel, &mut out[panel * COLUMNS..], width);
    }
}
