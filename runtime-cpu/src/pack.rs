//! Assembles the packed weights of a program: one mapping with huge pages, every parameter of every layer inside.
//!
//! A matrix lies in panels of 32 of its rows, each transposed, so that a product with few rows streams through memory
//! once and in order, and a product with many rows reads its panels without packing them again.

use crate::program::{CpuProgram, Form, Parameter, ParameterId, Segment, WeightType};
use crate::simd::{COLUMNS, Panel};
use crate::weights::{WeightError, Weights};
use memmap2::MmapMut;
use rayon::prelude::*;
use std::ops::Range;

/// Parameters start at multiples of this many bytes.
const ALIGN: u64 = 4096;

/// All weights of a program.
pub struct Packed {
    memory: MmapMut,
    /// For every parameter, the place of each layer's copy; one place where it does not belong to a layer.
    places: Vec<Vec<Range<usize>>>,
}

/// A packed matrix or table.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    words: &'a [u32],
    dtype: WeightType,
    columns: usize,
    panels: bool,
}

impl Packed {
    /// Reads every tensor that the program names and packs it.
    ///
    /// # Errors
    /// The first weight that is missing, has another shape or type, or does not fit into memory.
    pub fn load(program: &CpuProgram, weights: &dyn Weights) -> Result<Packed, WeightError> {
        let (places, bytes) = lay_out(program);
        let memory = allocate(&program.model.name, bytes)?;
        // Without huge pages about a fifth of the read bandwidth is lost to address translation; where the system
        // refuses, reading is only slower.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        let mut packed = Packed { memory, places };
        let mut jobs = Vec::new();
        let mut rest: &mut [u8] = &mut packed.memory;
        let mut at = 0;
        for (parameter, places) in program.parameters.iter().zip(&packed.places) {
            for (layer, place) in places.iter().enumerate() {
                let (_, from_here) = std::mem::take(&mut rest).split_at_mut(place.start - at);
                let (target, after) = from_here.split_at_mut(place.len());
                (rest, at) = (after, place.end);
                jobs.push((parameter, layer, target));
            }
        }
        jobs.into_par_iter()
            .try_for_each(|(parameter, layer, target)| fill(parameter, layer, weights, target))?;
        Ok(packed)
    }

    fn bytes(&self, id: ParameterId, layer: usize) -> &[u8] {
        let places = &self.places[id];
        &self.memory[places[if places.len() == 1 { 0 } else { layer }].clone()]
    }

    /// A vector.
    pub fn vector(&self, id: ParameterId, layer: usize) -> &[f32] {
        bytemuck::cast_slice(self.bytes(id, layer))
    }

    /// A matrix or a table.
    pub fn matrix(&self, form: &Form, id: ParameterId, layer: usize) -> Matrix<'_> {
        let (dtype, columns, panels) = match form {
            Form::Matrix { dtype, columns, .. } => (*dtype, *columns, true),
            Form::Table { dtype, columns, .. } => (*dtype, *columns, false),
            Form::Vector { length, .. } => (WeightType::F32, *length, false),
        };
        let words = bytemuck::cast_slice(self.bytes(id, layer));
        Matrix { words, dtype, columns: columns as usize, panels }
    }

    /// Bytes in memory.
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// Whether there are no weights at all.
    pub fn is_empty(&self) -> bool {
        self.memory.is_empty()
    }

    /// Everything, for measuring how fast it can be read.
    pub fn raw(&self) -> &[u8] {
        &self.memory
    }
}

fn lay_out(program: &CpuProgram) -> (Vec<Vec<Range<usize>>>, u64) {
    let mut end = 0u64;
    let mut place = |bytes: u64| {
        let start = end;
        end = start.saturating_add(bytes).saturating_add(ALIGN - 1) / ALIGN * ALIGN;
        start as usize..start.saturating_add(bytes) as usize
    };
    let places = program.parameters.iter().map(|p| {
        let copies = if p.per_layer { program.model.layers } else { 1 };
        // Vectors are padded to whole chunks of 16, as row functions read them; words are whole in tables.
        let bytes = match p.form {
            Form::Vector { length, .. } => length.next_multiple_of(16).saturating_mul(4),
            _ => p.form.bytes().next_multiple_of(4),
        };
        (0..copies).map(|_| place(bytes)).collect()
    });
    (places.collect(), end)
}

/// Zeroed memory that is touched only where it is used.
///
/// # Errors
/// [`WeightError::Memory`] in the name of `what`.
pub(crate) fn allocate(what: &str, bytes: u64) -> Result<MmapMut, WeightError> {
    let fail = |why: String| WeightError::Memory { name: what.into(), bytes, why };
    let size = usize::try_from(bytes.max(1)).map_err(|e| fail(e.to_string()))?;
    MmapMut::map_anon(size).map_err(|e| fail(e.to_string()))
}

fn fill(
    parameter: &Parameter,
    layer: usize,
    weights: &dyn Weights,
    target: &mut [u8],
) -> Result<(), WeightError> {
    let named = |tensor: &str| tensor.replace('*', &layer.to_string());
    match &parameter.form {
        Form::Vector { tensor, length, scale } => {
            let name = named(tensor);
            let view = weights.tensor(&name)?;
            view.expect(&name, &[*length])?;
            let out: &mut [f32] = bytemuck::cast_slice_mut(target);
            view.read(0, &mut out[..*length as usize]);
            out.iter_mut().for_each(|x| *x = (f64::from(*x) * scale) as f32);
            Ok(())
        }
        Form::Table { dtype, columns, segment } => {
            fill_table(*dtype, *columns, segment, &named(&segment.tensor), weights, target)
        }
        Form::Matrix { dtype, columns, segments } => {
            let starts = parameter.form.starts();
            let mut rest = target;
            for (segment, bounds) in segments.iter().zip(starts.windows(2)) {
                let bytes = (bounds[1] - bounds[0]) * columns * dtype.bytes();
                let (mine, after) = rest.split_at_mut(bytes as usize);
                rest = after;
                fill_panels(*dtype, *columns, segment, &named(&segment.tensor), weights, mine)?;
            }
            Ok(())
        }
    }
}

fn scaled(row: &mut [f32], scale: f64) {
    if scale != 1.0 {
        row.iter_mut().for_each(|x| *x = (f64::from(*x) * scale) as f32);
    }
}

fn fill_table(
    dtype: WeightType,
    columns: u64,
    segment: &Segment,
    name: &str,
    weights: &dyn Weights,
    target: &mut [u8],
) -> Result<(), WeightError> {
    let view = weights.tensor(name)?;
    view.expect(name, &[segment.rows, columns])?;
    let k = columns as usize;
    target.par_chunks_mut(k * dtype.bytes() as usize).take(segment.rows as usize).enumerate().for_each_init(
        || vec![0.0; k],
        |row, (at, out)| {
            view.read(at * k, row);
            scaled(row, segment.scale);
            match dtype {
                WeightType::F32 => out.copy_from_slice(bytemuck::cast_slice(row)),
                WeightType::Bf16 => {
                    for (o, x) in out.as_chunks_mut::<2>().0.iter_mut().zip(row) {
                        *o = half::bf16::from_f32(*x).to_le_bytes();
                    }
                }
            }
        },
    );
    Ok(())
}

fn fill_panels(
    dtype: WeightType,
    columns: u64,
    segment: &Segment,
    name: &str,
    weights: &dyn Weights,
    target: &mut [u8],
) -> Result<(), WeightError> {
    let view = weights.tensor(name)?;
    view.expect(name, &[segment.rows, columns])?;
    let (k, rows) = (columns as usize, segment.rows as usize);
    target.par_chunks_mut(k * COLUMNS * dtype.bytes() as usize).enumerate().for_each_init(
        || vec![0.0; k * COLUMNS],
        |block, (panel, out)| {
            let first = panel * COLUMNS;
            let used = COLUMNS.min(rows - first);
            block[used * k..].fill(0.0);
            view.read(first * k, &mut block[..used * k]);
            scaled(block, segment.scale);
            transpose(dtype, k, block, bytemuck::cast_slice_mut(out));
        },
    );
    Ok(())
}

/// Inner indices that are transposed together: one cache line of every row, whatever the distance of the rows.
const LINE: usize = 16;

/// Writes 32 rows of `k` as one panel.
fn transpose(dtype: WeightType, k: usize, block: &[f32], out: &mut [u32]) {
    let words = COLUMNS * dtype.bytes() as usize / 4;
    let mut tile = [[0f32; COLUMNS]; LINE];
    for (at, out) in out.chunks_mut(LINE * words).enumerate() {
        let from = at * LINE;
        let to = k.min(from + LINE);
        for column in 0..COLUMNS {
            let line = &block[column * k + from..column * k + to];
            tile.iter_mut().zip(line).for_each(|(row, x)| row[column] = *x);
        }
        for (row, out) in tile.iter().zip(out.chunks_mut(words)) {
            write_row(dtype, row, out);
        }
    }
}

fn write_row(dtype: WeightType, row: &[f32; COLUMNS], out: &mut [u32]) {
    let bf16 = |x: f32| u32::from(half::bf16::from_f32(x).to_bits());
    let (low, high) = row.split_at(COLUMNS / 2);
    match dtype {
        WeightType::F32 => out.iter_mut().zip(row).for_each(|(o, x)| *o = x.to_bits()),
        WeightType::Bf16 => {
            for (o, (a, b)) in out.iter_mut().zip(low.iter().zip(high)) {
                *o = bf16(*a) | bf16(*b) << 16;
            }
        }
    }
}

impl<'a> Matrix<'a> {
    /// Inner dimension.
    pub fn columns(&self) -> usize {
        self.columns
    }

    fn words_per_panel(&self) -> usize {
        self.columns * COLUMNS * self.dtype.bytes() as usize / 4
    }

    /// Width of the product.
    pub fn width(&self) -> usize {
        self.words.len() / self.words_per_panel() * COLUMNS
    }

    /// Inner indices `from..to` of one panel.
    pub fn panel(&self, panel: usize, from: usize, to: usize) -> Panel<'a> {
        let words = &self.words[panel * self.words_per_panel()..][..self.words_per_panel()];
        match self.dtype {
            WeightType::F32 => Panel::F32(bytemuck::cast_slice(&words[from * COLUMNS..to * COLUMNS])),
            WeightType::Bf16 => Panel::Bf16(&words[from * COLUMNS / 2..to * COLUMNS / 2]),
        }
    }

    /// One row of the matrix as it was before packing.
    pub fn row(&self, row: usize, into: &mut [f32]) {
        let into = &mut into[..self.columns];
        match (self.panels, self.dtype) {
            (false, WeightType::F32) => {
                into.copy_from_slice(bytemuck::cast_slice(&self.words[row * self.columns..][..self.columns]));
            }
            (false, WeightType::Bf16) => {
                let halves: &[u16] = bytemuck::cast_slice(self.words);
                let row = &halves[row * self.columns..][..self.columns];
                into.iter_mut().zip(row).for_each(|(x, h)| *x = f32::from_bits(u32::from(*h) << 16));
            }
            (true, _) => match self.panel(row / COLUMNS, 0, self.columns) {
                Panel::F32(w) => {
                    let column = w.iter().skip(row % COLUMNS).step_by(COLUMNS);
                    into.iter_mut().zip(column).for_each(|(x, w)| *x = *w);
                }
                Panel::Bf16(w) => {
                    let (word, high) = (row % COLUMNS % 16, row % COLUMNS >= 16);
                    for (x, pair) in into.iter_mut().zip(w.iter().skip(word).step_by(COLUMNS / 2)) {
                        *x = f32::from_bits(if high { pair & 0xffff_0000 } else { pair << 16 });
                    }
                }
            },
        }
    }
}
