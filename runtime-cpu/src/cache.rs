//! The key-value cache, laid out so that attention streams through it with the kernels of the matrix products.
//!
//! ```text
//! keys    per layer, sequence, head:  [blocks of 32 positions][words of head_dim][32]     a panel for q kᵀ
//! values  per layer, sequence, head:  [blocks of 32 columns][words of positions][32]     a panel for p v
//! ```
//! A word is one f32 or two neighbouring bf16, as in [`crate::simd`].

use crate::program::{Cache, CacheKind, WeightType};
use crate::simd::{COLUMNS, of_pair, to_bf16};
use crate::store::allocate;
use crate::weights::WeightError;
use memmap2::MmapMut;
use rayon::prelude::*;

/// Keys or values of every layer and sequence.
pub struct KeyValues {
    form: HeadForm,
    /// Key-value heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Element type.
    pub dtype: WeightType,
    sequences: usize,
    data: MmapMut,
}

/// Rows to store: which sequence and position each belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Index of the sequence.
    pub sequence: usize,
    /// Position in it.
    pub position: usize,
}

impl KeyValues {
    /// An empty cache. Memory is touched only where tokens are stored, in small pages: huge ones would clear all of a
    /// long cache for the first token, and gave no measurable speed.
    ///
    /// # Errors
    /// When the system has no room for it.
    pub fn new(
        cache: &Cache,
        layers: usize,
        sequences: usize,
        positions: usize,
    ) -> Result<KeyValues, WeightError> {
        let (heads, head_dim) = (cache.heads as usize, cache.head_dim as usize);
        let capacity = positions.next_multiple_of(COLUMNS);
        let form = HeadForm { kind: cache.kind, dtype: cache.dtype, capacity, head_dim };
        let count = (heads as u64).saturating_mul(sequences as u64).saturating_mul(layers as u64);
        let data =
            allocate("key-value cache", (form.words() as u64).saturating_mul(count).saturating_mul(4))?;
        Ok(KeyValues { form, heads, head_dim, dtype: cache.dtype, sequences, data })
    }

    /// One head of one sequence in one layer.
    pub fn head(&self, layer: usize, sequence: usize, head: usize) -> &[u32] {
        let at = (layer * self.sequences + sequence) * self.heads + head;
        &bytemuck::cast_slice(&self.data)[at * self.form.words()..][..self.form.words()]
    }

    /// The keys of positions `32 block..32 block + 32` as a panel `[words of head_dim][32]` of a key head.
    pub fn key_panel<'h>(&self, head: &'h [u32], block: usize) -> &'h [u32] {
        let words = self.dtype.words(self.head_dim) * COLUMNS;
        &head[block * words..][..words]
    }

    /// Columns `32 block..32 block + 32` of positions `from..to` as a panel `[words][32]` of a value head; `from` is
    /// where a word begins. Where the last word holds a position more, that one is zero.
    pub fn value_panel<'h>(&self, head: &'h [u32], block: usize, from: usize, to: usize) -> &'h [u32] {
        let words = |positions| self.dtype.words(positions);
        let start = block * words(self.form.capacity);
        &head[(start + from / self.dtype.per_word()) * COLUMNS..(start + words(to)) * COLUMNS]
    }

    /// One value of a head.
    pub fn value(&self, head: &[u32], position: usize, column: usize) -> f32 {
        let (word, half) = self.form.place(position, column);
        match self.dtype {
            WeightType::F32 => f32::from_bits(head[word]),
            WeightType::Bf16 => of_pair(head[word])[half],
        }
    }

    /// Stores rows of `heads * head_dim` values, `pitch` apart; positions of a sequence ascend.
    pub fn store(&mut self, layer: usize, places: &[Place], rows: &[f32], pitch: usize) {
        let (form, heads, head_dim) = (self.form, self.heads, self.head_dim);
        let layer_size = form.words() * heads * self.sequences;
        let store = |(at, head): (usize, &mut [u32])| {
            let (sequence, column) = (at / heads, at % heads * head_dim);
            for (place, row) in places.iter().zip(rows.chunks(pitch)).filter(|(p, _)| p.sequence == sequence)
            {
                form.store(head, place.position, &row[column..column + head_dim]);
            }
        };
        let data: &mut [u32] = bytemuck::cast_slice_mut(&mut self.data);
        let heads_of_layer = &mut data[layer * layer_size..][..layer_size];
        // Below this the threads would take longer to wake up than to store.
        match places.len() < 64 {
            true => heads_of_layer.chunks_mut(form.words()).enumerate().for_each(store),
            false => heads_of_layer.par_chunks_mut(form.words()).enumerate().for_each(store),
        }
    }
}

/// How one head of one sequence lies in memory.
#[derive(Clone, Copy)]
struct HeadForm {
    kind: CacheKind,
    dtype: WeightType,
    /// Positions, a multiple of 32.
    capacity: usize,
    head_dim: usize,
}

impl HeadForm {
    /// Words of a head.
    fn words(&self) -> usize {
        match self.kind {
            CacheKind::Key => self.capacity * self.dtype.words(self.head_dim),
            CacheKind::Value => self.dtype.words(self.capacity) * self.head_dim.next_multiple_of(COLUMNS),
        }
    }

    /// The word of one value, and where in the word it is.
    fn place(&self, position: usize, column: usize) -> (usize, usize) {
        // Every value stored comes through here: a shift, since the number of elements in a word is not known beforehand.
        let shift = self.dtype.per_word().ilog2();
        let half = |at: usize| at & (self.dtype.per_word() - 1);
        match self.kind {
            CacheKind::Key => {
                let step = position / COLUMNS * self.dtype.words(self.head_dim) + (column >> shift);
                (step * COLUMNS + position % COLUMNS, half(column))
            }
            CacheKind::Value => {
                let step = column / COLUMNS * self.dtype.words(self.capacity) + (position >> shift);
                (step * COLUMNS + column % COLUMNS, half(position))
            }
        }
    }

    /// Stores the row of one position. What shares a word with it and comes later is cleared, so that a product over
    /// whole words never meets what a longer sequence left behind.
    fn store(&self, head: &mut [u32], position: usize, row: &[f32]) {
        for (column, x) in row.iter().enumerate() {
            let (word, half) = self.place(position, column);
            head[word] = match (self.dtype, half) {
                (WeightType::F32, _) => x.to_bits(),
                (WeightType::Bf16, 0) => to_bf16(*x),
                (WeightType::Bf16, _) => head[word] & 0xffff | to_bf16(*x) << 16,
            };
        }
    }
}
