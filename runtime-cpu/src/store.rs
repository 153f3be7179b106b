//! Where the weights of a program lie: in the checkpoint's file wherever it has them as the kernels read them, and in
//! memory of our own where they have to be converted, or are so few that a copy is cheap.
//!
//! Rows of a matrix or table lie as the file has them, `[out, in]`, one after another. A matrix that is stored in the
//! type it is computed in and needs no factor can be read where it is: a load touches no new memory for it, which is
//! most of the time that a load could take. What a copy gains are huge pages, see [`COPY_AT_MOST`].

use crate::program::{CpuProgram, Form, Parameter, ParameterId, Segment, WeightType};
use crate::simd::{COLUMNS, of_pair, pack};
use crate::weights::{Held, TensorView, WeightError, Weights};
use lapidary_models::DType;
use memmap2::MmapMut;
use rayon::prelude::*;
use std::ops::Range;

/// What is copied starts at multiples of this many bytes.
const ALIGN: u64 = 4096;

/// Matrices of a program are copied into huge pages where all those that could be read from files are not more bytes
/// than this.
///
/// A file that was written in small pieces lies in small pages until it leaves the page cache, and rows of products are
/// read from those at 16 to 19 GB/s, against 26 to 31 from huge ones (one core of a Zen 4; collapsing the pages of a
/// mapped file, `MADV_COLLAPSE`, needs a kernel option that distributions leave off, and no call tells which pages a
/// file has). A copy pays for itself within some twenty tokens, but all of it comes before the first: first touch of
/// memory took 1.5 s a GiB on the virtual machine measured, whose host has to find it, and twice that beside other work:
/// 0.4 to 0.8 s for this border. So loads stay below a second; 440 MB took 1.7 s once.
pub const COPY_AT_MOST: u64 = 256 << 20;

/// Where every tensor of a program will lie, before anything is copied.
pub struct Plan {
    /// Of every tensor its place in a file; none where it is copied.
    held: Vec<Option<Held>>,
    footprint: Footprint,
}

/// How many bytes lie where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes in memory of our own.
    pub copied: u64,
    /// Bytes that stay in files, which the system can drop and read again.
    pub mapped: u64,
}

/// All weights of a program.
pub struct Store {
    own: MmapMut,
    /// For every parameter its copies, one for each layer or one in all; of each copy its segments.
    places: Vec<Vec<Vec<Place>>>,
}

/// Where a segment lies.
enum Place {
    /// In memory of our own, in bytes.
    Own(Range<usize>),
    /// In a file.
    File(Held),
}

/// A matrix or a table.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    store: &'a Store,
    segments: &'a [Place],
    dtype: WeightType,
    columns: usize,
    width: usize,
}

/// A tensor that a parameter takes, and where it goes.
struct Job<'p> {
    parameter: &'p Parameter,
    /// Canonical name, layer filled in.
    tensor: String,
    rows: u64,
    columns: u64,
    dtype: WeightType,
    scale: f64,
}

impl Plan {
    /// Looks for every tensor that the program names. Matrices are copied where they come to `copy_at_most` bytes or less.
    ///
    /// # Errors
    /// The first weight that is missing, or has another shape or type.
    pub fn new(program: &CpuProgram, weights: &dyn Weights, copy_at_most: u64) -> Result<Plan, WeightError> {
        let jobs = jobs(program);
        let mut held = jobs.par_iter().map(|job| job.held(weights)).collect::<Result<Vec<_>, _>>()?;
        let read = jobs.iter().zip(&mut held).filter(|(job, held)| job.is_matrix() && held.is_some());
        let matrices: Vec<(&Job, &mut Option<Held>)> = read.collect();
        if matrices.iter().fold(0u64, |sum, (job, _)| sum.saturating_add(job.bytes())) <= copy_at_most {
            matrices.into_iter().for_each(|(_, held)| *held = None);
        }
        let mut footprint = Footprint::default();
        for (job, held) in jobs.iter().zip(&held) {
            match held {
                None => footprint.copied = footprint.copied.saturating_add(job.room()),
                Some(_) => footprint.mapped = footprint.mapped.saturating_add(job.bytes()),
            }
        }
        Ok(Plan { held, footprint })
    }

    /// What lies where.
    pub fn footprint(&self) -> Footprint {
        self.footprint
    }
}

impl Store {
    /// Reads every tensor that the program names.
    ///
    /// # Errors
    /// The first weight that is missing, has another shape or type, or does not fit into memory.
    pub fn load(program: &CpuProgram, weights: &dyn Weights, plan: Plan) -> Result<Store, WeightError> {
        let jobs = jobs(program);
        let mut end = 0u64;
        let mut own = |job: &Job| {
            let start = end;
            end = start.saturating_add(job.room());
            start as usize..start.saturating_add(job.bytes()) as usize
        };
        let place =
            |(job, held): (&Job, Option<Held>)| held.map_or_else(|| Place::Own(own(job)), Place::File);
        let places: Vec<Place> = jobs.iter().zip(plan.held).map(place).collect();
        let own = copies(&program.model.name, end, &jobs, &places, weights)?;
        Ok(Store { own, places: sorted(program, places) })
    }

    fn bytes<'a>(&'a self, place: &'a Place) -> &'a [u8] {
        match place {
            Place::Own(range) => &self.own[range.clone()],
            Place::File(held) => held.bytes(),
        }
    }

    fn copy(&self, id: ParameterId, layer: usize) -> &[Place] {
        let copies = &self.places[id];
        &copies[if copies.len() == 1 { 0 } else { layer }]
    }

    /// A vector, filled up to whole chunks of 16.
    pub fn vector(&self, id: ParameterId, layer: usize) -> &[f32] {
        bytemuck::cast_slice(self.copy(id, layer).first().map_or(&[], |place| self.bytes(place)))
    }

    /// A matrix or a table.
    pub fn matrix(&self, form: &Form, id: ParameterId, layer: usize) -> Matrix<'_> {
        let (dtype, columns) = match form {
            Form::Matrix { dtype, columns, .. } | Form::Table { dtype, columns, .. } => (*dtype, *columns),
            Form::Vector { length, .. } => (WeightType::F32, *length),
        };
        let width = form.starts().last().copied().unwrap_or(0) as usize;
        Matrix { store: self, segments: self.copy(id, layer), dtype, columns: columns as usize, width }
    }

    /// Every segment's bytes, for measuring how fast they can be read.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.places.iter().flatten().flatten().map(|place| self.bytes(place))
    }

    /// Bytes that were copied into memory of our own; the others are read from the file.
    pub fn copied(&self) -> usize {
        let own = |place: &Place| if let Place::Own(range) = place { range.len() } else { 0 };
        self.places.iter().flatten().flatten().map(own).sum()
    }
}

/// The tensors of a program: parameters, their layers and their segments in order.
fn jobs(program: &CpuProgram) -> Vec<Job<'_>> {
    let mut jobs = Vec::new();
    for parameter in &program.parameters {
        for layer in 0..copies_of(program, parameter) {
            let named = |tensor: &str| tensor.replace('*', &layer.to_string());
            let segment = |s: &Segment, dtype: WeightType, columns: u64| Job {
                parameter,
                tensor: named(&s.tensor),
                rows: s.rows,
                columns,
                dtype,
                scale: s.scale,
            };
            match &parameter.form {
                Form::Matrix { dtype, columns, segments } => {
                    jobs.extend(segments.iter().map(|s| segment(s, *dtype, *columns)));
                }
                Form::Table { dtype, columns, segment: s } => jobs.push(segment(s, *dtype, *columns)),
                Form::Vector { tensor, length, scale } => jobs.push(Job {
                    parameter,
                    tensor: named(tensor),
                    rows: 1,
                    columns: *length,
                    dtype: WeightType::F32,
                    scale: *scale,
                }),
            }
        }
    }
    jobs
}

fn copies_of(program: &CpuProgram, parameter: &Parameter) -> u64 {
    if parameter.per_layer { program.model.layers } else { 1 }
}

/// Places by parameter and copy.
fn sorted(program: &CpuProgram, places: Vec<Place>) -> Vec<Vec<Vec<Place>>> {
    let mut rest = places.into_iter();
    let mut of = |parameter: &Parameter| {
        let segments = if let Form::Matrix { segments, .. } = &parameter.form { segments.len() } else { 1 };
        (0..copies_of(program, parameter)).map(|_| rest.by_ref().take(segments).collect()).collect()
    };
    program.parameters.iter().map(&mut of).collect()
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

/// Converts what is not read from files.
fn copies(
    model: &str,
    bytes: u64,
    jobs: &[Job],
    places: &[Place],
    weights: &dyn Weights,
) -> Result<MmapMut, WeightError> {
    let mut memory = allocate(model, bytes)?;
    // Huge pages are cleared and mapped with far fewer faults; where the system refuses, loading only takes longer.
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage);
    let mut targets = Vec::new();
    let mut rest: &mut [u8] = &mut memory;
    let mut at = 0;
    for (job, place) in jobs.iter().zip(places) {
        let Place::Own(range) = place else { continue };
        let (_, from_here) = std::mem::take(&mut rest).split_at_mut(range.start - at);
        let (target, after) = from_here.split_at_mut(range.len());
        (rest, at) = (after, range.end);
        targets.push((job, target));
    }
    targets
        .into_par_iter()
        .try_for_each(|(job, target)| job.fill(weights, bytemuck::cast_slice_mut(target)))?;
    Ok(memory)
}

impl Job<'_> {
    /// Words of a row.
    fn words(&self) -> usize {
        self.dtype.words(self.columns as usize)
    }

    /// Bytes of a copy. Vectors are filled up to whole chunks of 16, as row functions read them.
    fn bytes(&self) -> u64 {
        match self.parameter.form {
            Form::Vector { length, .. } => length.next_multiple_of(16).saturating_mul(4),
            _ => self.rows.saturating_mul(self.words() as u64).saturating_mul(4),
        }
    }

    /// Bytes of a copy up to where the next one starts.
    fn room(&self) -> u64 {
        self.bytes().saturating_add(ALIGN - 1) / ALIGN * ALIGN
    }

    fn is_matrix(&self) -> bool {
        matches!(self.parameter.form, Form::Matrix { .. })
    }

    fn is_vector(&self) -> bool {
        matches!(self.parameter.form, Form::Vector { .. })
    }

    fn view<'w>(&self, weights: &'w dyn Weights) -> Result<TensorView<'w>, WeightError> {
        let view = weights.tensor(&self.tensor)?;
        match self.is_vector() {
            true => view.expect(&self.tensor, &[self.columns])?,
            false => view.expect(&self.tensor, &[self.rows, self.columns])?,
        }
        Ok(view)
    }

    /// The tensor in its file, where it can be read there as it is.
    fn held(&self, weights: &dyn Weights) -> Result<Option<Held>, WeightError> {
        let view = self.view(weights)?;
        let whole_words = (self.columns as usize).is_multiple_of(self.dtype.per_word());
        let aligned = (view.bytes.as_ptr() as usize).is_multiple_of(4);
        let as_it_is = self.is_stored_so(&view) && whole_words && aligned && cfg!(target_endian = "little");
        Ok(if as_it_is && !self.is_vector() { weights.held(&view.bytes) } else { None })
    }

    /// Whether the stored elements are those that are computed with.
    fn is_stored_so(&self, view: &TensorView) -> bool {
        let stored = match self.dtype {
            WeightType::F32 => DType::F32,
            WeightType::Bf16 => DType::Bf16,
        };
        view.dtype == stored && self.scale == 1.0
    }

    fn fill(&self, weights: &dyn Weights, target: &mut [u32]) -> Result<(), WeightError> {
        let view = self.view(weights)?;
        let rows = target.par_chunks_mut(self.words().max(1)).take(self.rows as usize).enumerate();
        rows.for_each_init(Vec::new, |values, (row, out)| self.write(&view, row, values, out));
        Ok(())
    }

    /// Writes one row. Stored elements that need no change come as whole words; others pass through f32, where the
    /// factor is multiplied in.
    fn write(&self, view: &TensorView, row: usize, values: &mut Vec<f32>, into: &mut [u32]) {
        let columns = self.columns as usize;
        let size = columns * view.dtype.bytes() as usize;
        if self.is_stored_so(view) && size.is_multiple_of(4) {
            let words = view.bytes[row * size..][..size].as_chunks().0;
            return into.iter_mut().zip(words).for_each(|(word, b)| *word = u32::from_le_bytes(*b));
        }
        values.resize(columns, 0.0);
        view.read(row * columns, values);
        if self.scale != 1.0 {
            values.iter_mut().for_each(|x| *x = (f64::from(*x) * self.scale) as f32);
        }
        pack(self.dtype, values, into.iter_mut());
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

    /// Width of the product: every segment begins at a multiple of 32 columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The matrix rows that make columns `32 panel..32 panel + 32` of the product: 32, or fewer where a segment ends.
    pub fn panel(&self, panel: usize) -> &'a [u32] {
        let mut first = panel;
        for place in self.segments {
            let words = self.words(place);
            let panels = words.len().div_ceil(self.steps().max(1)).div_ceil(COLUMNS);
            if first < panels {
                let size = COLUMNS * self.steps();
                return &words[first * size..words.len().min((first + 1) * size)];
            }
            first -= panels;
        }
        &[]
    }

    fn words(&self, place: &'a Place) -> &'a [u32] {
        bytemuck::cast_slice(self.store.bytes(place))
    }

    /// Rows of a table, or of a matrix's first segment.
    pub fn rows(&self) -> usize {
        let words = self.segments.first().map_or(0, |place| self.words(place).len());
        words / self.steps().max(1)
    }

    /// One row of a table.
    pub fn row(&self, row: usize, into: &mut [f32]) {
        let Some(place) = self.segments.first() else { return };
        unpack(
            self.dtype,
            &self.words(place)[row * self.steps()..][..self.steps()],
            &mut into[..self.columns],
        );
    }
}

/// Values of words.
fn unpack(dtype: WeightType, words: &[u32], into: &mut [f32]) {
    match dtype {
        WeightType::F32 => into.iter_mut().zip(words).for_each(|(x, word)| *x = f32::from_bits(*word)),
        WeightType::Bf16 => {
            let pairs = into.chunks_mut(2).zip(words);
            pairs.for_each(|(pair, word)| pair.copy_from_slice(&of_pair(*word)[..pair.len()]));
        }
    }
}
