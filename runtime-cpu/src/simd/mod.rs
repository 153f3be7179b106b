//! The inner loops that are written for the machine: a portable form, AVX2 with FMA, AVX-512, and AVX-512 with its
//! products of bf16 pairs, chosen at run time.
//!
//! Operands come in *words* of 32 bits: one f32, or two bf16 of neighbouring inner indices, the first in the low half.
//! So one layout serves both element types, and the bf16 instruction finds its pairs where it wants them. Products of
//! bf16 are exact in f32 and are summed in f32, in every form.

mod portable;
mod softmax;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use softmax::{exp, softmax_step};

use crate::program::{PANEL, WeightType};

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
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
}

impl Isa {
    /// The best instruction set of this processor.
    pub fn detect() -> Isa {
        let all = Isa::all();
        all[all.len() - 1]
    }

    /// Every instruction set that this processor has, the best last.
    pub fn all() -> Vec<Isa> {
        let mut all = vec![Isa(Level::Portable)];
        #[cfg(target_arch = "x86_64")]
        all.extend(x86::levels().into_iter().map(Isa));
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
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => "avx512_bf16",
        }
    }
}

/// Rows of a left operand and 32 rows of a right one, both packed so that the kernel reads them in order.
#[derive(Clone, Copy, Debug)]
pub struct Tile<'a> {
    /// What a word of the operands holds.
    pub dtype: WeightType,
    /// `[steps][rows]` words of the left operand.
    pub x: &'a [u32],
    /// `[steps][32]` words of the right operand, a panel.
    pub w: &'a [u32],
    /// 1 to [`TILE_ROWS`].
    pub rows: usize,
    /// Words along the inner dimension.
    pub steps: usize,
}

/// `out[r][..32] (+)= sum over i of x[i][r] w[i][..32]` for the rows of a tile.
///
/// # Panics
/// When a slice is shorter than the numbers of steps and rows and `pitch` say, or there are not 1 to 12 rows.
pub fn panel_product(isa: Isa, tile: Tile, out: &mut [f32], pitch: usize, accumulate: bool) {
    let Tile { x, w, rows, steps, .. } = tile;
    assert!((1..=TILE_ROWS).contains(&rows) && x.len() >= steps * rows && w.len() >= steps * COLUMNS);
    assert!(pitch >= COLUMNS && out.len() >= (rows - 1) * pitch + COLUMNS);
    match isa.0 {
        Level::Portable => portable::product(tile, out, pitch, accumulate),
        #[cfg(target_arch = "x86_64")]
        level => x86::product(level, tile, out, pitch, accumulate),
    }
}

/// Rows of a left operand and rows of a matrix, both with the inner dimension along them.
#[derive(Clone, Copy, Debug)]
pub struct Dots<'a> {
    /// What a word of the operands holds.
    pub dtype: WeightType,
    /// The left operand's rows, `x_pitch` words apart.
    pub x: &'a [u32],
    /// Words from one row of `x` to the next.
    pub x_pitch: usize,
    /// Rows of `x`, at least one.
    pub rows: usize,
    /// `[columns][steps]` words: the matrix as it lies in memory.
    pub w: &'a [u32],
    /// Words along the inner dimension, at least one.
    pub steps: usize,
}

impl Dots<'_> {
    /// Columns of the result.
    pub fn columns(&self) -> usize {
        self.w.len() / self.steps
    }
}

/// `out[r][c] = sum over i of x[r][i] w[c][i]`, rows of `out` `pitch` apart.
///
/// Every sum runs in the same order, whatever else is computed with it: a vector's lanes each sum every so many words,
/// and the lanes are added at the end.
///
/// # Panics
/// When a slice is shorter than the numbers of rows, columns and steps say, or there are no rows or steps.
pub fn dot_products(isa: Isa, dots: Dots, out: &mut [f32], pitch: usize) {
    let Dots { x, x_pitch, rows, steps, .. } = dots;
    let columns = dots.columns();
    assert!(rows > 0 && steps > 0 && x_pitch >= steps && x.len() >= (rows - 1) * x_pitch + steps);
    assert!(pitch >= columns && out.len() >= (rows - 1) * pitch + columns);
    match isa.0 {
        Level::Portable => portable::dots(dots, out, pitch),
        #[cfg(target_arch = "x86_64")]
        level => x86::dots(level, dots, out, pitch),
    }
}

/// A value rounded to bf16, to even, in the low half of a word. NaN stays NaN.
pub fn to_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1))) >> 16;
    if x.is_nan() { bits >> 16 | 0x40 } else { rounded }
}

/// The two values of a word.
pub fn of_pair(word: u32) -> [f32; 2] {
    [f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)]
}

/// Writes a row as words; where bf16 pairs do not come out even, the last one is filled up with zero.
pub fn pack<'w>(dtype: WeightType, row: &[f32], into: impl Iterator<Item = &'w mut u32>) {
    match dtype {
        WeightType::F32 => into.zip(row).for_each(|(word, x)| *word = x.to_bits()),
        WeightType::Bf16 => {
            let (pairs, rest) = row.as_chunks::<2>();
            let last = rest.first().map(|x| to_bf16(*x));
            let words = pairs.iter().map(|[a, b]| to_bf16(*a) | to_bf16(*b) << 16).chain(last);
            into.zip(words).for_each(|(word, pair)| *word = pair);
        }
    }
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

    /// Operands as words, and what they hold in f64: `[k][rows]` and `[k][32]`.
    fn operand(dtype: WeightType, k: usize, columns: usize, seed: u64) -> (Vec<u32>, Vec<f64>) {
        let steps = k.div_ceil(dtype.per_word());
        let values = numbers(k * columns, seed);
        let mut words = vec![0; steps * columns];
        let mut held = vec![0.0; k * columns];
        for column in 0..columns {
            let row: Vec<f32> = (0..k).map(|i| values[i * columns + column]).collect();
            pack(dtype, &row, words[column..].iter_mut().step_by(columns));
            for (i, x) in row.iter().enumerate() {
                let rounded = if dtype == WeightType::Bf16 { of_pair(to_bf16(*x))[0] } else { *x };
                held[i * columns + column] = f64::from(rounded);
            }
        }
        (words, held)
    }

    #[test]
    fn every_instruction_set_computes_the_product() {
        let k = 37;
        for dtype in [WeightType::F32, WeightType::Bf16] {
            let (w, columns) = operand(dtype, k, COLUMNS, 1);
            for rows in 1..=TILE_ROWS {
                let (x, values) = operand(dtype, k, rows, rows as u64);
                let before = numbers(rows * 40, 3);
                let wanted = |row: usize, column: usize| {
                    let sum = |i: usize| values[i * rows + row] * columns[i * COLUMNS + column];
                    f64::from(before[row * 40 + column]) + (0..k).map(sum).sum::<f64>()
                };
                for isa in Isa::all() {
                    let mut found = before.clone();
                    let tile = Tile { dtype, x: &x, w: &w, rows, steps: k.div_ceil(dtype.per_word()) };
                    panel_product(isa, tile, &mut found, 40, true);
                    for (at, found) in found.iter().enumerate() {
                        let (row, column) = (at / 40, at % 40);
                        let wanted =
                            if column < COLUMNS { wanted(row, column) } else { f64::from(before[at]) };
                        let off = (f64::from(*found) - wanted).abs();
                        assert!(off < 1e-5, "{} {dtype:?} {rows} rows: {row}, {column}: {off}", isa.name());
                    }
                }
            }
        }
    }

    /// Sizes around the borders of vectors and tiles, and rows that are further apart than they are long.
    #[test]
    fn every_instruction_set_sums_along_rows() {
        for (dtype, k) in
            [(WeightType::F32, 37), (WeightType::F32, 64), (WeightType::Bf16, 75), (WeightType::Bf16, 6)]
        {
            let steps = dtype.words(k);
            for (rows, columns) in
                [(1, 1), (1, 33), (2, 5), (3, 4), (5, 9), (6, 32), (7, 10), (8, 3), (9, 8), (13, 7)]
            {
                let (x, left) = lines(dtype, rows, k, steps + 3, 1 + rows as u64);
                let (w, right) = lines(dtype, columns, k, steps, 77);
                let dots = Dots { dtype, x: &x, x_pitch: steps + 3, rows, w: &w[..columns * steps], steps };
                for isa in Isa::all() {
                    let before = numbers(rows * 40, 3);
                    let mut found = before.clone();
                    dot_products(isa, dots, &mut found, 40);
                    for (at, found) in found.iter().enumerate() {
                        let (row, column) = (at / 40, at % 40);
                        let sum = || (0..k).map(|i| left[row * k + i] * right[column * k + i]).sum::<f64>();
                        let wanted = if column < columns { sum() } else { f64::from(before[at]) };
                        let off = (f64::from(*found) - wanted).abs();
                        assert!(
                            off < 1e-5,
                            "{} {dtype:?} [{rows}, {columns}, {k}]: {row}, {column}: {off}",
                            isa.name()
                        );
                    }
                    for row in 0..rows {
                        let mut alone = vec![0.0; columns];
                        let one = Dots { x: &x[row * (steps + 3)..], rows: 1, ..dots };
                        dot_products(isa, one, &mut alone, columns);
                        assert_eq!(
                            alone,
                            found[row * 40..][..columns],
                            "{} {dtype:?}: row {row} alone",
                            isa.name()
                        );
                    }
                }
            }
        }
    }

    /// Rows as words, `pitch` apart, and what they hold in f64, `[rows][k]`. The words between rows are no numbers.
    fn lines(dtype: WeightType, rows: usize, k: usize, pitch: usize, seed: u64) -> (Vec<u32>, Vec<f64>) {
        let values = numbers(rows * k, seed);
        let mut words = vec![u32::MAX; rows * pitch];
        values
            .chunks(k)
            .zip(words.chunks_mut(pitch))
            .for_each(|(row, into)| pack(dtype, row, into.iter_mut()));
        let held = |x: &f32| if dtype == WeightType::Bf16 { of_pair(to_bf16(*x))[0] } else { *x };
        (words, values.iter().map(|x| f64::from(held(x))).collect())
    }

    #[test]
    fn rounding_is_to_even_and_keeps_what_is_no_number() {
        for x in numbers(5000, 7).into_iter().chain([0.0, -0.0, f32::MAX, f32::INFINITY, 1.0 + 1.0 / 256.0]) {
            assert_eq!(to_bf16(x), u32::from(half::bf16::from_f32(x).to_bits()), "{x}");
        }
        assert!(of_pair(to_bf16(f32::NAN))[0].is_nan());
        assert!(of_pair(to_bf16(f32::from_bits(0x7f80_0001)))[0].is_nan());
    }
}
