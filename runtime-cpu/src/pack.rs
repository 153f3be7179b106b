//! Assembles the packed weights of a program: one mapping with huge pages, every parameter of every layer inside.
//!
//! A matrix lies in panels of 32 of its rows, each transposed, so that a product with few rows streams through memory
//! once and in order, and a product with many rows reads its panels without packing them again.

use crate::program::{CpuProgram, Form, Parameter, ParameterId, Segment, WeightType};
use crate::simd::{COLUMNS, of_pair, pack};
use crate::weights::{TensorView, WeightError, Weights};
use lapidary_models::DType;
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
                let words = (bounds[1] - bounds[0]) as usize * dtype.words(*columns as usize);
                let (mine, after) = rest.split_at_mut(4 * words);
                rest = after;
                fill_panels(*dtype, *columns, segment, &named(&segment.tensor), weights, mine)?;
            }
            Ok(())
        }
    }
}

/// Rows of a tensor as words of a packed type.
struct RowWords<'v> {
    view: &'v TensorView<'v>,
    dtype: WeightType,
    columns: usize,
    scale: f64,
}

impl RowWords<'_> {
    /// Words of a row.
    fn words(&self) -> usize {
        self.dtype.words(self.columns)
    }

    /// Writes one row. Stored elements that are packed as they are come as whole words; others pass through f32, where
    /// the scale is multiplied in.
    fn write(&self, row: usize, values: &mut Vec<f32>, into: &mut [u32]) {
        if let Some(bytes) = self.verbatim(row) {
            return into.iter_mut().zip(bytes).for_each(|(word, b)| *word = u32::from_le_bytes(*b));
        }
        values.resize(self.columns, 0.0);
        self.view.read(row * self.columns, values);
        if self.scale != 1.0 {
            values.iter_mut().for_each(|x| *x = (f64::from(*x) * self.scale) as f32);
        }
        pack(self.dtype, values, into.iter_mut());
    }

    /// The bytes of a row whose elements need no change and fill their words.
    fn verbatim(&self, row: usize) -> Option<&[[u8; 4]]> {
        let stored = match self.dtype {
            WeightType::F32 => DType::F32,
            WeightType::Bf16 => DType::Bf16,
        };
        let size = self.columns * stored.bytes() as usize;
        let as_it_is = self.view.dtype == stored && self.scale == 1.0 && size.is_multiple_of(4);
        as_it_is.then(|| self.view.bytes[row * size..][..size].as_chunks().0)
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
    let rows = RowWords { view: &view, dtype, columns: columns as usize, scale: segment.scale };
    let target: &mut [u32] = bytemuck::cast_slice_mut(target);
    target
        .par_chunks_mut(rows.words())
        .enumerate()
        .for_each_init(Vec::new, |values, (row, out)| rows.write(row, values, out));
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
    let rows = RowWords { view: &view, dtype, columns: columns as usize, scale: segment.scale };
    let (steps, count) = (rows.words(), segment.rows as usize);
    let target: &mut [u32] = bytemuck::cast_slice_mut(target);
    target.par_chunks_mut(steps * COLUMNS).enumerate().for_each_init(
        || (Vec::new(), vec![0; steps * COLUMNS]),
        |(values, block), (panel, out)| {
            let first = panel * COLUMNS;
            let used = COLUMNS.min(count - first);
            block[used * steps..].fill(0);
            for (row, words) in block.chunks_mut(steps).take(used).enumerate() {
                rows.write(first + row, values, words);
            }
            transpose(steps, block, out);
        },
    );
    Ok(())
}

/// Words that are transposed together: one cache line of every row, whatever the distance of the rows.
const LINE: usize = 16;

/// `[32][steps]` to `[steps][32]`.
fn transpose(steps: usize, block: &[u32], out: &mut [u32]) {
    let mut tile = [[0; COLUMNS]; LINE];
    for (at, out) in out.chunks_mut(LINE * COLUMNS).enumerate() {
        let from = at * LINE;
        let to = steps.min(from + LINE);
        for column in 0..COLUMNS {
            let line = &block[column * steps + from..column * steps + to];
            tile.iter_mut().zip(line).for_each(|(row, x)| row[column] = *x);
        }
        out.as_chunks_mut().0.iter_mut().zip(&tile).for_each(|(out, row)| *out = *row);
    }
}

impl<'a> Matrix<'a> {
    /// Element type.
    pub fn dtype(&self) -> WeightType {
        self.dtype
    }

    /// Inner dimension.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Words along the inner dimension.
    pub fn steps(&self) -> usize {
        self.dtype.words(self.columns)
    }

    /// Width of the product.
    pub fn width(&self) -> usize {
        self.words.len() / self.steps()
    }

    /// Words `from..to` of one panel, `[to - from][32]`.
    pub fn panel(&self, panel: usize, from: usize, to: usize) -> &'a [u32] {
        &self.words[panel * self.steps() * COLUMNS..][from * COLUMNS..to * COLUMNS]
    }

    /// One row of the matrix as it was before packing.
    pub fn row(&self, row: usize, into: &mut [f32]) {
        let into = &mut into[..self.columns];
        let steps = self.steps();
        match self.panels {
            false => unpack(self.dtype, self.words[row * steps..][..steps].iter(), into),
            true => {
                let words = self.panel(row / COLUMNS, 0, steps)[row % COLUMNS..].iter().step_by(COLUMNS);
                unpack(self.dtype, words, into);
            }
        }
    }
}

/// Values of words.
fn unpack<'w>(dtype: WeightType, words: impl Iterator<Item = &'w u32>, into: &mut [f32]) {
    match dtype {
        WeightType::F32 => into.iter_mut().zip(words).for_each(|(x, word)| *x = f32::from_bits(*word)),
        WeightType::Bf16 => {
            let pairs = into.chunks_mut(2).zip(words);
            pairs.for_each(|(pair, word)| pair.copy_from_slice(&of_pair(*word)[..pair.len()]));
        }
    }
}
